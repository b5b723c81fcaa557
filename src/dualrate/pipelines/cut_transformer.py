"""A transformer of another library in two: what its row of blocks adds to the tokens, and the rest.

Each call uses a copy of the network that shares all parts but one: the blocks are replaced by a module that runs them
and notes what they add, or that adds it without running them. The network itself stays unchanged.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dualrate.config.ranges import OuterLevels, Ranged
from dualrate.networks.blocks import attention_weights, chosen_of, require_shape, with_chosen
from dualrate.pipelines.classes.kind import TEXT

BY_TOKEN = {  # blocks of attention and of what sees one token at a time, and what of them is attention among tokens
    "BasicTransformerBlock": ("attn1",),
    "JointTransformerBlock": ("attn", "attn2"),
    "FluxTransformerBlock": ("attn",),
    "FluxSingleTransformerBlock": ("attn",),
    "QwenImageTransformerBlock": ("attn",),
    "OvisImageTransformerBlock": ("attn",),
    "OvisImageSingleTransformerBlock": ("attn",),
}
IMAGE_FIRST = {"JointTransformerBlock"}  # whose attention has the image's tokens before the text's


@dataclass(frozen=True)
class CutNetwork(Ranged):
    """A network around another library's, `network.net`, whose blocks stand in `network.net.<row>`.

    outer: 0, since such a network has one level: what makes tokens of the image and an image of the last ones is
           outside
    """

    network: Any
    row: str
    outer: OuterLevels = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self.network.net).__name__
        if not self.row:
            raise ValueError(f"the blocks of {name} do not stand in a row that tokens alone go through: leave it whole")
        if self.outer:
            raise ValueError(f"{name} has one level, all inside (outer 0), got outer {self.outer}")

    @property
    def blocks(self) -> Any:
        """The row."""
        return getattr(self.network.net, self.row)

    def whole(self, z: Tensor, log_snr: Tensor, *condition: Any) -> tuple[Tensor, Tensor]:
        """The sum that the blocks add to the tokens, (B, n, C), and v. Arguments: the network's."""
        return self.called_with(_Row(self.blocks), z, log_snr, *condition)

    def rest(self, z: Tensor, log_snr: Tensor, *arguments: Any) -> Tensor:
        """v without the blocks. arguments: the network's condition, then what the blocks add, (B, n, C).

        Raises ValueError where that has another shape.
        """
        *condition, added = arguments
        return self.called_with(_Row(self.blocks, added), z, log_snr, *condition)[1]

    def called_with(self, row: _Row, z: Tensor, log_snr: Tensor, *condition: Any) -> tuple[Tensor, Tensor]:
        """The sum that the row adds in the place of the blocks, (B, n, C), and v."""
        net = sharing(self.network.net, **{self.row: nn.ModuleList([row])})
        v = sharing(self.network, net=net)(z, log_snr, *condition)
        return cast(Tensor, row.added), v


class _Row(nn.Module):
    """Blocks as one, for one call; other attributes are the first block's, as a head may ask for them.

    added: what they add; None: they run, and it is noted
    """

    chosen: Tensor | None = None

    def __init__(self, blocks: Sequence[nn.Module], added: Tensor | None = None) -> None:
        super().__init__()
        self.blocks, self.added = list(blocks), added

    def forward(self, hidden_states: Tensor, *positional: Any, **named: Any) -> Tensor:
        if self.added is not None:
            require_shape(self.added, hidden_states)
            return hidden_states + self.added
        out = hidden_states
        for block in self.blocks:
            out = self.ran(block, out, positional, named)
        self.added = out - hidden_states
        return out

    @staticmethod
    def ran(block: nn.Module, h: Tensor, positional: Any, named: dict[str, Any]) -> Tensor:
        """The image's tokens after a block; of two streams the text's are put in the place of those before."""
        out = block(h, *positional, **named)
        if isinstance(out, tuple):
            named[TEXT], out = out
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["blocks"][0], name)


class _Tokens(_Row):
    """The same, block by block. added: what each adds, (B, blocks, n, C).

    chosen: (B, blocks, k) tokens of each block for which it runs, so that what is added to these is renewed; None: it
            runs for all, and what it adds is noted
    """

    def __init__(self, blocks: Sequence[nn.Module], added: Tensor | None = None, chosen: Tensor | None = None) -> None:
        super().__init__(blocks, added)
        self.chosen = chosen

    def forward(self, hidden_states: Tensor, *positional: Any, **named: Any) -> Tensor:
        out, sums = hidden_states, list[Tensor]()
        if self.added is not None:
            require_shape(self.added[:, 0], out)
        for i, block in enumerate(self.blocks):
            if self.added is None or self.chosen is None:
                after = self.ran(block, out, positional, named)
                sums.append(after - out)
                out = after
                continue
            places = self.chosen[:, i]
            some = chosen_of(out, places)
            sums.append(with_chosen(self.added[:, i], places, self.ran(block, some, positional, named) - some))
            out = out + sums[-1]
        self.added = torch.stack(sums, 1)
        return out


@dataclass(frozen=True)
class CutTokens:
    """A network as that of `CutNetwork`, whose blocks' attention among tokens can be kept: `networks.uvit.UViTTokens`.

    Of two streams the image's tokens alone are: a partial call passes the blocks a text of no tokens.

    scores: whether a whole call counts the attention that tokens receive, for which it is computed a second time
    Raises ValueError for blocks that are more than attention and what sees one token at a time.
    """

    cut: CutNetwork
    scores: bool = False

    def __post_init__(self) -> None:
        if strange := {type(block).__name__ for block in self.cut.blocks} - BY_TOKEN.keys():
            raise ValueError(
                f"tokens are renewed one by one in {', '.join(BY_TOKEN)}, got {', '.join(sorted(strange))}"
            )

    def whole(self, z: Tensor, log_snr: Tensor, *condition: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The sums that the blocks add, (B, blocks, n, C), the output of every attention, (B, attentions, n, C), the
        attention that tokens receive in each block, (B, blocks, n), a sum over its attentions, zeros without
        `scores`, and v.
        """
        noting = [_Attention(getattr(block, name), scores=self.scores) for _, block, name in self._attention]
        sums, v = self.cut.called_with(self._row(noting), z, log_snr, *condition)
        n = sums.shape[2]
        outputs = torch.stack([cast(Tensor, note.output)[:, -n:] for note in noting], 1)
        received = sums.new_zeros(sums.shape[:3])
        for (i, block, _), note in zip(self._attention, noting, strict=True):
            if note.received is not None:  # what the text receives is left out
                of_image = slice(n) if type(block).__name__ in IMAGE_FIRST else slice(-n, None)
                received[:, i] += note.received[:, of_image]
        return sums, outputs, received, v

    def part(self, z: Tensor, log_snr: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        """The sums that the blocks add, made anew for the tokens that are chosen in each, and v.

        arguments: the network's condition, what `whole` returned that the blocks and that attention adds, and the
        chosen tokens, (B, blocks, k). Raises ValueError for what `whole` did not return.
        """
        *condition, sums, attention, chosen = arguments
        each = zip(self._attention, attention.unbind(1), strict=True)
        modules = [_Attention(None, chosen_of(output, chosen[:, i])) for (i, _, _), output in each]
        return self.cut.called_with(self._row(modules, sums, chosen), z, log_snr, *condition)

    def rest(self, z: Tensor, log_snr: Tensor, *arguments: Any) -> Tensor:
        """v without the blocks, as `CutNetwork.rest`."""
        return self.cut.rest(z, log_snr, *arguments)

    @property
    def _attention(self) -> list[tuple[int, Any, str]]:
        """Numbers of blocks, the blocks, and the names of their attention among tokens."""
        every = [(i, block, name) for i, block in enumerate(self.cut.blocks) for name in BY_TOKEN[type(block).__name__]]
        return [each for each in every if getattr(each[1], each[2], None) is not None]

    def _row(self, modules: Sequence[_Attention], sums: Tensor | None = None, chosen: Tensor | None = None) -> _Tokens:
        instead: list[dict[str, nn.Module]] = [{} for _ in self.cut.blocks]
        for (i, _, name), module in zip(self._attention, modules, strict=True):
            instead[i][name] = module
        blocks = [sharing(block, **parts) for block, parts in zip(self.cut.blocks, instead, strict=True)]
        return _Tokens(blocks, sums, chosen)


class _Attention(nn.Module):
    """Stands in the place of a block's attention. It notes the output, or returns the `output` that it has.

    scores: whether it notes what tokens receive of attention, (B, n)
    """

    def __init__(self, attention: Any, output: Tensor | None = None, scores: bool = False) -> None:
        super().__init__()
        self.attention, self.output, self.scores = attention, output, scores
        self.received: Tensor | None = None

    def forward(self, hidden_states: Tensor, *positional: Any, **named: Any) -> Any:
        text = named.get(TEXT)
        if self.output is not None:
            return self.output if text is None else (self.output, text)
        with _Received() if self.scores else nullcontext() as seen:
            output = self.attention(hidden_states, *positional, **named)
        self.output, *texts = output if isinstance(output, tuple) else (output,)
        self.received = seen and seen.received
        of_all_rows = self.received is not None and len(self.received) == len(hidden_states)
        if len(texts) > 1 or (self.scores and not of_all_rows):
            raise ValueError(
                f"{type(self.attention).__name__} returns more than two streams, or computes attention its own way: "
                "drop the adapter, the perturbed guidance or the backend (set_attention_backend('native')), or take "
                "'fora'"
            )
        return output


class _Received(TorchFunctionMode):
    """Notes what keys receive of attention, (B, n), a mean over heads."""

    received: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | (kwargs or {})
            weights = attention_weights(named["query"], named["key"])  # (B, heads, queries, keys)
            if (mask := named.get("attn_mask")) is not None:
                weights = F.normalize(weights * (mask if mask.dtype is torch.bool else mask.exp()), p=1, dim=-1)
            self.received = weights.mean(1).sum(1)
        return func(*args, **(kwargs or {}))


class CachedForward(functools.partial[Any]):
    """Stands in for the `forward` of a network with a cache. A deep copy has none; pickled it is only without."""

    def __deepcopy__(self, memo: Any) -> Any:
        return copy.deepcopy(self.args[0].before, memo)

    def __reduce__(self) -> Any:
        if not self.args[0].on:  # what was put around it since holds it still
            return functools.partial, (self.args[0].before,)
        raise TypeError(f"{self.args[0].name} is accelerated: call remove() of its handle before you pickle it")


def sharing(module: Any, **parts: nn.Module | None) -> Any:
    """A copy that shares all parts but these. What was compiled, or hooked, holds the old ones, so it is left out."""
    copied = copy.copy(module)
    copied.__dict__["_modules"] = {**module._modules, **parts}
    for name in ("forward", "_compiled_call_impl"):
        copied.__dict__.pop(name, None)
    return copied
