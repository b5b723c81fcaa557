"""The classes of diffusers that are known: how each is called, what an image is to it, and how many labels it has.

A class is known by its name, so that nothing here needs diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dualrate.from_diffusers.schedulers import NO_MEAN

Config = Mapping[str, Any]
Given = Mapping[str, Tensor]  # what a network takes besides, a row of each per row of z
Call = Callable[[nn.Module, Tensor, Tensor, Tensor | None, Given], Tensor]  # net, state, time, label


@dataclass(frozen=True)
class Kind:
    """A class of networks.

    call:    one forward pass
    classes: how many labels a configuration has, without a null class
    null:    whether the label after the last is a null class
    takes:   arguments that labels stand for (`ForeignNetwork`)
    blocks:  the parts that run one after another
    tapped:  of what such a part returns, the image's share: a map (B, C, h, w), or tokens (B, n, C)
    row:     the attribute that lists its blocks, where each takes tokens (B, n, C) first and returns no more; "": none
    odd:     of a configuration, why it cannot be called
    """

    call: Call
    classes: Callable[[Config], int] = lambda config: 0
    null: bool = False
    takes: tuple[str, ...] = ()
    blocks: Callable[[Any], list[nn.Module]] = lambda net: []
    tapped: Callable[[Any], Tensor] = lambda output: output
    row: str = ""
    odd: Callable[[Config], str | None] = lambda config: None


def _by_label(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, given: Given) -> Tensor:
    return net(state, timestep=time, class_labels=label, return_dict=False)[0]


def _by_text(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, given: Given) -> Tensor:
    return net(state, timestep=time, return_dict=False, **given)[0]


def _by_text_and_size(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, given: Given) -> Tensor:
    """PixArt of 1024 pixels wants their number, and the ratio of the sides: its VAE halves a side three times."""
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if net.use_additional_conditions:
        height, width = state.shape[2:]
        added["resolution"] = state.new_tensor([[8 * height, 8 * width]]).expand(state.shape[0], 2)
        added["aspect_ratio"] = state.new_tensor([[height / width]]).expand(state.shape[0], 1)
    return net(state, timestep=time, added_cond_kwargs=added, return_dict=False, **given)[0]


def _by_scaled_time(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, given: Given) -> Tensor:
    scale: float = cast(Any, net).config["timestep_scale"]
    return _by_text(net, state, time * scale, label, given)


def by_place(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, given: Given) -> Tensor:
    """As SiT and those that descend from it are called."""
    output = net(state, time, label)
    return output if isinstance(output, Tensor) else output[0]


def _odd_unet(config: Config) -> str | None:
    if config.get("time_embedding_type", "positional") != "positional":
        return f"time_embedding_type {config['time_embedding_type']!r}, of another process: positional is known"
    if config.get("class_embed_type") is not None:
        return f"class_embed_type {config['class_embed_type']!r}: a table of classes (None) is known"
    return None


def _in_a_row(net: Any) -> list[nn.Module]:
    return list(net.transformer_blocks)


def _down_and_up(net: Any) -> list[nn.Module]:
    return [*net.down_blocks, *([] if net.mid_block is None else [net.mid_block]), *net.up_blocks]


def _without_skips(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


BLOCKS = "transformer_blocks"
TEXT = "encoder_hidden_states"
MASKED = (TEXT, "encoder_attention_mask")
KINDS: dict[str, Kind] = {
    "DiTTransformer2DModel": Kind(
        _by_label,
        lambda config: config.get("num_embeds_ada_norm", 1000),
        null=True,
        blocks=_in_a_row,
        row=BLOCKS,
    ),
    "UNet2DModel": Kind(
        _by_label,
        lambda config: config.get("num_class_embeds") or 0,
        odd=_odd_unet,
        blocks=_down_and_up,
        tapped=_without_skips,
    ),
    "SD3Transformer2DModel": Kind(
        _by_text, takes=(TEXT, "pooled_projections"), blocks=_in_a_row, tapped=lambda output: output[1]
    ),
    "PixArtTransformer2DModel": Kind(_by_text_and_size, takes=MASKED, blocks=_in_a_row, row=BLOCKS),
    "SanaTransformer2DModel": Kind(_by_scaled_time, takes=MASKED, blocks=_in_a_row, row=BLOCKS),
}
OPTIONAL = {"encoder_attention_mask"}


def kind_of(name: str, config: Config) -> Kind:
    """The kind of a class. Raises ValueError for one that is not known, is distilled, or is set up in an odd way."""
    if config.get("guidance_embeds"):
        raise ValueError(f"this {name} was distilled to take its guidance as an input (guidance_embeds): {NO_MEAN}")
    if config.get("time_cond_proj_dim") is not None:
        raise ValueError(f"this {name} was distilled for consistency (time_cond_proj_dim): {NO_MEAN}")
    if name not in KINDS:
        raise ValueError(
            f"no {name} is known; known are {', '.join(KINDS)}, and with convention='sit' or 'repa' any network that "
            "is called (state, time, label)"
        )
    if odd := KINDS[name].odd(config):
        raise ValueError(f"this {name} has {odd}")
    return KINDS[name]


def rows_of(embeddings: Given, label: Tensor | None, size: int) -> dict[str, Tensor]:
    """Of each table, the row of every label; without labels the last, which stands for no text."""
    if not embeddings:
        return {}
    last = len(next(iter(embeddings.values()))) - 1
    if label is None:
        label = torch.full((size,), last, device=next(iter(embeddings.values())).device)
    return {name: table[label] for name, table in embeddings.items()}
