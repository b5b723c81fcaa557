"""Flux.1: blocks of a text's tokens and an image's, then blocks of both in one row.

An image's tokens are 2 x 2 positions of the latents. Where guidance was distilled into the network (`guidance_embeds`),
its scale is a number that the network is given: a part of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dualrate.diffusion.context import Shape
from dualrate.pipelines.classes import kind

SCALE = "guidance"
ROWS = replace(kind.PAIRED, names=(kind.BLOCKS, "single_transformer_blocks"))


def prompt(config: kind.Config, tokens: int, shape: Shape) -> tuple[kind.PromptPart, ...]:
    parts = kind.pooled(config, tokens, 768)
    return (*parts, kind.PromptPart(SCALE, (), stays=True, default=3.5)) if config.get("guidance_embeds") else parts


def call(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, inputs: kind.TextInputs) -> Tensor:
    return with_places(net, state, time, inputs, state.new_zeros(inputs[kind.TEXT].shape[1], 3))


def with_places(net: Any, state: Tensor, time: Tensor, inputs: kind.TextInputs, of_text: Tensor) -> Tensor:
    """Call a network that is told where tokens stand: those of an image at (0, row, column), of a text at `of_text`."""
    height, width = state.shape[2] // 2, state.shape[3] // 2
    rows, columns = (torch.arange(side, device=state.device, dtype=state.dtype) for side in (height, width))
    down, across = (axis.flatten() for axis in torch.meshgrid(rows, columns, indexing="ij"))
    tokens = net(
        hidden_states=kind.in_patches(state),
        timestep=time,
        img_ids=torch.stack((torch.zeros_like(down), down, across), 1),
        txt_ids=of_text,
        return_dict=False,
        **inputs,
    )[0]
    return kind.of_patches(tokens, state)


def encode(pipeline: Any, texts: Sequence[str], tokens: int) -> kind.TextInputs:
    embeddings = pipeline.encode_prompt(prompt=list(texts), prompt_2=None, max_sequence_length=tokens)
    return {kind.TEXT: embeddings[0], kind.POOLED: embeddings[1]}


KIND = kind.NetworkSpec(
    call,
    prompt=prompt,
    encode=encode,
    rows=ROWS,
    between=(kind.CONTROL, "controlnet_single_block_samples"),
    **kind.PATCHED,
)
