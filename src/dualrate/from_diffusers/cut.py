"""A transformer of another library in two: what its row of blocks adds to the tokens, and the rest.

A call is one of a copy of the network that shares all its parts but one: in the place of the blocks stands what runs
them and notes what they add, or what adds that without running them. The network itself is left as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dualrate.config.ranges import OuterLevels, Ranged
from dualrate.networks.uvit import chosen_of, require_shape, with_chosen

BY_TOKEN = "BasicTransformerBlock"  # a block of attention and of what sees one token at a time


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

    def whole(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the blocks add, (B, n, C), and v, as the network's. Arguments: the network's."""
        row = _Row(getattr(self.network.net, self.row))
        v = self.called_with(row, z, log_snr, label)
        assert row.added is not None
        return row.added, v

    def rest(self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Tensor) -> Tensor:
        """v without the blocks, given what they add. Raises ValueError where that has another shape."""
        return self.called_with(_Row(getattr(self.network.net, self.row), added), z, log_snr, label)

    def called_with(self, row: nn.Module, z: Tensor, log_snr: Tensor, label: Tensor | None) -> Tensor:
        """v of the network with this in the place of its blocks."""
        net = _replaced(self.network.net, self.row, nn.ModuleList([row]))
        return _replaced(self.network, "net", net)(z, log_snr, label)


class _Row(nn.Module):
    """Blocks as one, for one call; other attributes are the first block's, as a head may ask for them.

    added: what they add; None: they run, and it is noted
    """

    def __init__(self, blocks: Sequence[nn.Module], added: Tensor | None = None) -> None:
        super().__init__()
        self.blocks, self.added = list(blocks), added

    def forward(self, h: Tensor, *given: Any, **named: Any) -> Tensor:
        if self.added is not None:
            require_shape(self.added, h)
            return h + self.added
        out = h
        for block in self.blocks:
            out = block(out, *given, **named)
        self.added = out - h
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["blocks"][0], name)


@dataclass(frozen=True)
class CutTokens:
    """A network as that of `CutNetwork`, whose blocks' attention among tokens can be kept: `networks.uvit.UViTTokens`.

    scores: whether a whole call counts the attention that tokens receive, for which it is computed a second time
    Raises ValueError for blocks that are more than attention and what sees one token at a time.
    """

    network: Any
    row: str
    scores: bool = False

    def __post_init__(self) -> None:
        _ = self.cut
        if strange := {type(block).__name__ for block in self._blocks} - {BY_TOKEN}:
            raise ValueError(f"tokens are renewed one by one in a {BY_TOKEN}, got {', '.join(sorted(strange))}")

    @property
    def cut(self) -> CutNetwork:
        """The row of blocks apart."""
        return CutNetwork(self.network, self.row)

    @property
    def _blocks(self) -> Any:
        return getattr(self.network.net, self.row)

    def whole(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the blocks add, (B, n, C), what attention adds in each, (B, blocks, n, C), what tokens receive, (B, n),
        zeros without `scores`, and v.
        """
        noting = [_Noting(block.attn1, self.scores) for block in self._blocks]
        row = _Row([_replaced(block, "attn1", note) for block, note in zip(self._blocks, noting, strict=True)])
        v = self.cut.called_with(row, z, log_snr, label)
        assert row.added is not None
        kept = torch.stack([cast(Tensor, note.kept) for note in noting], 1)
        received = [note.received for note in noting if note.received is not None]
        none = row.added.new_zeros(row.added.shape[:2])
        return row.added, kept, torch.stack(received).mean(0) if received else none, v

    def part(
        self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Tensor, attention: Tensor, chosen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the blocks add, that of the chosen tokens, (B, k), made anew, and v. Raises ValueError for what `whole`
        did not return.
        """
        kept = [_Kept(chosen_of(one, chosen)) for one in attention.unbind(1)]
        blocks = [_replaced(block, "attn1", one) for block, one in zip(self._blocks, kept, strict=True)]
        row = _Chosen(blocks, added, chosen)
        v = self.cut.called_with(row, z, log_snr, label)
        assert row.added is not None
        return row.added, v

    def rest(self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Tensor) -> Tensor:
        """v without the blocks, given what they add."""
        return self.cut.rest(z, log_snr, label, added)


class _Chosen(_Row):
    """Blocks that run for the chosen tokens alone, and renew what is added to these."""

    def __init__(self, blocks: Sequence[nn.Module], added: Tensor, chosen: Tensor) -> None:
        super().__init__(blocks, added)
        self.chosen = chosen

    def forward(self, h: Tensor, *given: Any, **named: Any) -> Tensor:
        assert self.added is not None
        require_shape(self.added, h)
        tokens = start = chosen_of(h, self.chosen)
        for block in self.blocks:
            tokens = block(tokens, *given, **named)
        self.added = with_chosen(self.added, self.chosen, tokens - start)
        return h + self.added


class _Noting(nn.Module):
    """Attention that notes what it gave, and, with `scores`, what tokens received of it, (B, n)."""

    def __init__(self, attention: Any, scores: bool) -> None:
        super().__init__()
        self.attention, self.scores = attention, scores
        self.kept: Tensor | None = None
        self.received: Tensor | None = None

    def forward(self, h: Tensor, *given: Any, **named: Any) -> Tensor:
        self.kept = kept = self.attention(h, *given, **named)
        if self.scores:
            q, k = (
                self.attention.head_to_batch_dim(project(h)) for project in (self.attention.to_q, self.attention.to_k)
            )
            weights = self.attention.get_attention_scores(q, k).unflatten(0, (h.shape[0], -1))  # (B, heads, n, n)
            self.received = weights.mean(1).sum(1)
        return kept


class _Kept(nn.Module):
    """In the place of attention: what it gave."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, h: Tensor, *given: Any, **named: Any) -> Tensor:
        return self.kept


def _replaced(module: nn.Module, name: str, part: nn.Module) -> nn.Module:
    """A copy that shares all parts but one, and is called as its class is: what was compiled holds the old part."""
    copied = copy.copy(module)
    copied.__dict__["_modules"] = {**module._modules, name: part}
    copied.__dict__.pop("forward", None)
    return copied
