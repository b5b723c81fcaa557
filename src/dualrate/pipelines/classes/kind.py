"""A class of networks of another library: how it is called, its inputs for a text, its parts.

The inputs for a text are one row of numbers, so that it goes wherever a condition goes (`Cond.given`). A
`PromptLayout` lists the row's parts: embeddings, pooled ones, a mask of tokens, sizes of the image, pixels to fill in.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualrate.diffusion.context import Shape

DECLARE = "its NetworkSpec is to have {} (pipelines/README.md)"
BLOCKS, HIDDEN, TEXT = "transformer_blocks", "hidden_states", "encoder_hidden_states"
Config = Mapping[str, Any]
TextInputs = Mapping[str, Tensor]  # of a network, by the names of its arguments, a row of each per text
Call = Callable[[nn.Module, Tensor, Tensor, Tensor | None, TextInputs], Tensor]  # net, state, time, label, inputs
Encode = Callable[[Any, Sequence[str], int], TextInputs]  # pipeline, texts, tokens


@dataclass(frozen=True)
class PromptPart:
    """An argument of a network; shape: of a row, with the tokens in front.

    stays:   whether it is no part of the text, so that it stays where the prompt is dropped: a size, a hole to fill
    default: the number that it is where it is not given; None: it has to be
    mask:    whether it is 1 for a token that is there, and 0 for one that is not; where it is not given, it is made
    """

    name: str
    shape: tuple[int, ...]
    stays: bool = False
    default: float | None = None
    mask: bool = False


@dataclass(frozen=True)
class PromptLayout:
    """The parts of a prompt in a row of `size` numbers, the embeddings of its tokens first. No parts: no prompts."""

    parts: tuple[PromptPart, ...] = ()

    @property
    def size(self) -> int:
        return sum(math.prod(part.shape) for part in self.parts)

    @property
    def shape(self) -> Shape:
        """(C, h, w) of a row as a condition."""
        return 1, 1, self.size

    def packed(self, inputs: TextInputs) -> Tensor:
        """(B, 1, 1, size) float32. inputs: (B, *shape) of each part; (1, *shape) stands for all rows.

        Where there is a mask, fewer tokens than the layout has are filled up. Raises ValueError for a part that lacks,
        one that is unknown, and one of another shape.
        """
        parts, first = {part.name: part for part in self.parts}, self.parts[0]
        lacking = [
            name for name, part in parts.items() if name not in inputs and part.default is None and not part.mask
        ]
        if lacking or not inputs.keys() <= parts.keys():
            raise ValueError(
                f"a prompt of this network is made of {', '.join(parts)}, got {', '.join(inputs) or 'nothing'}"
                + (f": add {', '.join(lacking)}" if lacking else ": drop what is not among these")
            )
        tokens, rows = inputs[first.name].shape[1], max(len(value) for value in inputs.values())
        filled = any(part.mask for part in self.parts)
        columns = []
        for name, part in parts.items():
            value = inputs.get(name)
            if value is None:
                value = inputs[first.name].new_full((1, *part.shape), 1.0 if part.default is None else part.default)
                value = value[:, :tokens] if part.mask else value
            if filled and part.shape[:1] == first.shape[:1] and 0 < value.shape[1] < part.shape[0]:
                value = F.pad(value, (0, 0) * (value.ndim - 2) + (0, part.shape[0] - value.shape[1]))
            if value.shape[1:] != part.shape or len(value) not in (1, rows):
                raise ValueError(
                    f"{name} of {rows} prompts is {(rows, *part.shape)} for this denoiser, got {tuple(value.shape)}: "
                    + (f"make the denoiser with tokens={tokens}" if part is first and value.shape[2:] == part.shape[1:]
                       else "encode the texts by the pipeline that the network is from")
                )  # fmt: skip
            columns.append(
                value.float().flatten(1).expand(rows, -1) if part.shape else value.float().expand(rows)[:, None]
            )
        return torch.cat(columns, 1)[:, None, None]

    def unpacked(self, prompts: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The parts by name, each (B, *shape), of rows (B, 1, 1, size)."""
        split = prompts.flatten(1).split([math.prod(part.shape) for part in self.parts], 1)
        pairs = zip(self.parts, split, strict=True)
        return {part.name: value.reshape(len(value), *part.shape).to(dtype) for part, value in pairs}


def no_texts(pipeline: Any, texts: Sequence[str], tokens: int) -> TextInputs:
    """Refuses texts, as the `NetworkSpec.encode` of a class that takes none."""
    raise ValueError(f"{type(pipeline).__name__} makes images of classes, not of texts: pass labels")


@dataclass(frozen=True)
class Rows:
    """Lists of blocks that run one after another, every block with the same streams.

    names:     the attributes of the network; one that it lacks counts as empty. A call under a cache leaves one module
               in the first list and none in the others. Blocks in lists that are not named always run
    streams:   what a block takes, by the names of its arguments, and returns, in this order. `hidden_states` is the
               image's tokens alone, or a retrofit can make no map of them. All else that a block takes is the same for
               every block, or caches draw other images
    """

    names: tuple[str, ...] = (BLOCKS,)
    streams: tuple[str, ...] = (HIDDEN,)

    def __post_init__(self) -> None:
        if not self.names or HIDDEN not in self.streams:
            raise ValueError(
                f"rows of blocks have names, and {HIDDEN!r} among their streams, got names {self.names} and streams "
                f"{self.streams}: name the network's lists of blocks, and what a block takes, the image's tokens so"
            )

    def blocks(self, net: Any) -> list[nn.Module]:
        """All of them, in the order in which they run."""
        return [block for name in self.names for block in getattr(net, name, ())]


@dataclass(frozen=True)
class NetworkSpec:
    """A class of networks.

    call:     one forward pass, at a time in the network's own units
    classes:  how many labels a configuration has, without a null class
    null:     whether the label after the last is a null class
    channels: of a state
    patch:    side of an image's token, which counts where a schedule's shift grows with the image; 0: none does
    prompt:   what it takes for a text of so many tokens, beside a state (C, H, W); nothing: it takes none
    tokens:   of a text, unless another number is chosen; as many as its pipeline has. 0: it takes no texts
    encode:   texts, by a pipeline's own encoders
    negative: the negative text (None: what the pipeline takes for none), where it is not as `encode` of it, or of ""
    settings: that another process, or another input, would have otherwise, and the values that are known, first the
              one that a configuration without the setting has
    rows:     of its blocks; None: there are none, and caches take it for a U-Net
    between:  arguments that enter between its blocks: a call with one of them runs whole
    units:    steps of its scheduler in one unit of the network's time: 1000 where its pipeline passes t / 1000
    """

    call: Call
    classes: Callable[[Config], int] = lambda config: 0
    null: bool = False
    channels: Callable[[Config], int | None] = lambda config: config.get("in_channels")
    patch: Callable[[Config], int] = lambda config: config.get("patch_size") or 0
    prompt: Callable[[Config, int, Shape], tuple[PromptPart, ...]] = lambda config, tokens, shape: ()
    tokens: int = 0
    encode: Encode = no_texts
    negative: Callable[[Any, str | None, int], TextInputs] | None = None
    settings: Mapping[str, tuple[object, ...]] | None = None
    rows: Rows | None = None
    between: tuple[str, ...] = ()
    units: Callable[[Any], float] = lambda net: 1.0

    @property
    def row(self) -> str:
        """The attribute that lists its blocks, where each takes tokens (B, n, C), as its first argument or by the name
        `hidden_states`, and returns no more; "": none.
        """
        return self.rows.names[0] if self.rows and self.rows.streams == (HIDDEN,) else ""

    def has_levels(self, net: Any) -> bool:
        """Whether a network is a U-Net, which has levels in place of rows."""
        return self.rows is None and getattr(net, "down_blocks", None) is not None

    def blocks(self, net: Any) -> list[nn.Module]:
        """The parts of the network that run one after another: the blocks of its rows, or a U-Net's levels."""
        if self.has_levels(net):
            return [*net.down_blocks, *([] if net.mid_block is None else [net.mid_block]), *net.up_blocks]
        return (self.rows or Rows()).blocks(net)

    def check_blocks(self, net: Any) -> None:
        """Raises ValueError where the blocks of a network are not as `rows` says, or nothing says where they are."""
        name, blocks, streams = type(net).__name__, self.blocks(net), self.rows.streams if self.rows else ()
        if not blocks:
            lists = [part for part, value in net.named_children() if isinstance(value, nn.ModuleList)]
            raise ValueError(
                f"{name} has no blocks in {', '.join((self.rows or Rows()).names)}: "
                f"{DECLARE.format('rows=Rows(names=...)')}; its lists are {', '.join(lists) or 'none'}"
            )
        for block in blocks:
            takes = inspect.signature(type(block).forward).parameters
            free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
            if lacking := [stream for stream in streams if not (free or stream in takes)]:
                raise ValueError(
                    f"{type(block).__name__} of {name} takes no {', '.join(lacking)}: "
                    + DECLARE.format("rows=Rows(names=..., streams=...), of lists whose blocks all take these")
                )

    def tapped(self, output: Any) -> Tensor:
        """The image's share of what such a part returns, as a map (B, C, h, w), before skips; tokens fill a square.

        Raises ValueError for tokens that do not.
        """
        if not isinstance(output, Tensor):
            output = output[self.rows.streams.index(HIDDEN) if self.rows else 0]
        if output.ndim == 4:
            return output
        side = math.isqrt(output.shape[1])
        if side * side != output.shape[1]:
            raise ValueError(
                f"a block returns {output.shape[1]} tokens, which are not those of a square image alone: "
                + DECLARE.format(f"rows=Rows(names=..., streams=...), with {HIDDEN} the stream of the image")
            )
        return output.transpose(1, 2).unflatten(2, (side, side))


MASK, POOLED = "encoder_attention_mask", "pooled_projections"
CONTROL = "controlnet_block_samples"
PAIRED = Rows(streams=(TEXT, HIDDEN))  # blocks of a text's tokens and an image's


def masked_prompt(
    width: Callable[[Config], int], mask: str = MASK
) -> Callable[[Config, int, Shape], tuple[PromptPart, ...]]:
    """The `prompt` of a class that takes the tokens of a text, of this width, and a mask of them."""
    return lambda config, tokens, shape: (
        PromptPart(TEXT, (tokens, width(config))),
        PromptPart(mask, (tokens,), mask=True),
    )


def pooled(config: Config, tokens: int, pooled_width: int) -> tuple[PromptPart, ...]:
    """The tokens of a text, and one vector of all of it."""
    width, of_all = config.get("joint_attention_dim", 4096), config.get("pooled_projection_dim", pooled_width)
    return PromptPart(TEXT, (tokens, width)), PromptPart(POOLED, (of_all,))


def by_label(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, inputs: TextInputs) -> Tensor:
    return net(state, timestep=time, class_labels=label, return_dict=False)[0]


def by_text(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, inputs: TextInputs) -> Tensor:
    return net(state, timestep=time, return_dict=False, **inputs)[0]


def by_place(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, inputs: TextInputs) -> Tensor:
    """Call a network by the places of its arguments, as SiT and its descendants take them."""
    output = net(state, time, label)
    return output if isinstance(output, Tensor) else output[0]


PATCHED: dict[str, Any] = {  # of classes whose tokens are patches of 2 x 2 that the pipeline makes
    "channels": lambda config: config.get("in_channels", 64) // 4,
    "patch": lambda config: 2,
    "tokens": 512,
    "units": lambda net: 1000.0,
}


def in_patches(state: Tensor) -> Tensor:
    """(B, C, H, W) as tokens of 2 x 2 positions, (B, H W / 4, 4 C)."""
    return F.pixel_unshuffle(state, 2).flatten(2).transpose(1, 2)


def of_patches(tokens: Tensor, state: Tensor) -> Tensor:
    """The inverse, of a state's height and width."""
    height, width = state.shape[2:]
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)
