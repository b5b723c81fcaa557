"""Qwen-Image: blocks of a text's tokens and an image's, which see each other. An image's tokens are as Flux's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dualrate.diffusion.values import Shape
from dualrate.pipelines.classes.kind import (
    CONTROL,
    PAIRED,
    TEXT,
    Config,
    NetworkSpec,
    PromptPart,
    TextInputs,
    in_patches,
    of_patches,
)

MASK = "encoder_hidden_states_mask"


def prompt(config: Config, tokens: int, shape: Shape) -> tuple[PromptPart, ...]:
    return PromptPart(TEXT, (tokens, config.get("joint_attention_dim", 3584))), PromptPart(MASK, (tokens,), mask=True)


def call(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, inputs: TextInputs) -> Tensor:
    sizes = [[(1, state.shape[2] // 2, state.shape[3] // 2)]] * len(state)
    tokens = net(in_patches(state), timestep=time, img_shapes=sizes, return_dict=False, **inputs)[0]
    return of_patches(tokens, state)


def encode(pipeline: Any, texts: Sequence[str], tokens: int) -> TextInputs:
    text, mask = pipeline.encode_prompt(prompt=list(texts), max_sequence_length=tokens)
    return {TEXT: text} if mask is None else {TEXT: text, MASK: mask}


def negative(pipeline: Any, text: str | None, tokens: int) -> TextInputs:
    return encode(pipeline, [" " if text is None else text], tokens)  # its makers' own choice


KIND = NetworkSpec(
    call,
    channels=lambda config: config.get("in_channels", 64) // 4,
    patch=lambda config: 2,
    prompt=prompt,
    tokens=512,
    encode=encode,
    negative=negative,
    even=True,
    settings={
        "guidance_embeds": (None, False),
        "zero_cond_t": (None, False),
        "use_additional_t_cond": (None, False),
        "use_layer3d_rope": (None, False),
    },
    rows=PAIRED,
    between=(CONTROL,),
    units=lambda net: 1000.0,
)
