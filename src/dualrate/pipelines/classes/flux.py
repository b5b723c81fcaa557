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

from dualrate.diffusion.values import Shape
from dualrate.pipelines.classes.kind import (
    BLOCKS,
    CONTROL,
    PAIRED,
    POOLED,
    TEXT,
    Config,
    NetworkSpec,
    PromptPart,
    TextInputs,
    in_patches,
    of_patches,
)

SCALE = "guidance"
ROWS = replace(PAIRED, names=(BLOCKS, "single_transformer_blocks"))


def prompt(config: Config, tokens: int, shape: Shape) -> tuple[PromptPart, ...]:
    width, pooled = config.get("joint_attention_dim", 4096), config.get("pooled_projection_dim", 768)
    parts = PromptPart(TEXT, (tokens, width)), PromptPart(POOLED, (pooled,))
    return (*parts, PromptPart(SCALE, (), stays=True, default=3.5)) if config.get("guidance_embeds") else parts


def call(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, inputs: TextInputs) -> Tensor:
    height, width = state.shape[2] // 2, state.shape[3] // 2
    rows, columns = (torch.arange(side, device=state.device, dtype=state.dtype) for side in (height, width))
    down, across = (axis.flatten() for axis in torch.meshgrid(rows, columns, indexing="ij"))
    tokens = net(
        hidden_states=in_patches(state),
        timestep=time,
        img_ids=torch.stack((torch.zeros_like(down), down, across), 1),
        txt_ids=state.new_zeros(inputs[TEXT].shape[1], 3),
        return_dict=False,
        **inputs,
    )[0]
    return of_patches(tokens, state)


def encode(pipeline: Any, texts: Sequence[str], tokens: int) -> TextInputs:
    embeddings = pipeline.encode_prompt(prompt=list(texts), prompt_2=None, max_sequence_length=tokens)
    return {TEXT: embeddings[0], POOLED: embeddings[1]}


KIND = NetworkSpec(
    call,
    channels=lambda config: config.get("in_channels", 64) // 4,
    patch=lambda config: 2,
    prompt=prompt,
    tokens=512,
    encode=encode,
    even=True,
    rows=ROWS,
    between=(CONTROL, "controlnet_single_block_samples"),
    units=lambda net: 1000.0,
)
