"""Qwen-Image: blocks of a text's tokens and an image's, which see each other. An image's tokens are as Flux's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dualrate.pipelines.classes import kind

MASK = "encoder_hidden_states_mask"


def call(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, inputs: kind.TextInputs) -> Tensor:
    sizes = [[(1, state.shape[2] // 2, state.shape[3] // 2)]] * len(state)
    tokens = net(kind.in_patches(state), timestep=time, img_shapes=sizes, return_dict=False, **inputs)[0]
    return kind.of_patches(tokens, state)


def encode(pipeline: Any, texts: Sequence[str], tokens: int) -> kind.TextInputs:
    text, mask = pipeline.encode_prompt(prompt=list(texts), max_sequence_length=tokens)
    return {kind.TEXT: text} if mask is None else {kind.TEXT: text, MASK: mask}


def negative(pipeline: Any, text: str | None, tokens: int) -> kind.TextInputs:
    return encode(pipeline, [" " if text is None else text], tokens)  # its makers' own choice


KIND = kind.NetworkSpec(
    call,
    prompt=kind.masked_prompt(lambda config: config.get("joint_attention_dim", 3584), MASK),
    encode=encode,
    negative=negative,
    settings={
        "guidance_embeds": (None, False),
        "zero_cond_t": (None, False),
        "use_additional_t_cond": (None, False),
        "use_layer3d_rope": (None, False),
    },
    rows=kind.PAIRED,
    between=(kind.CONTROL,),
    **kind.PATCHED,
)
