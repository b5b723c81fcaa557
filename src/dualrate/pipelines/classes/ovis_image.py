"""Ovis-Image: blocks as Flux's, of a text alone. Its tokens stand on the diagonal of the image's places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dualrate.pipelines.classes import kind
from dualrate.pipelines.classes.flux import ROWS, with_places


def call(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, inputs: kind.TextInputs) -> Tensor:
    place = torch.arange(inputs[kind.TEXT].shape[1], device=state.device, dtype=state.dtype)
    return with_places(net, state, time, inputs, torch.stack((torch.zeros_like(place), place, place), 1))


def encode(pipeline: Any, texts: Sequence[str], tokens: int) -> kind.TextInputs:
    return {
        kind.TEXT: pipeline.encode_prompt(list(texts), do_classifier_free_guidance=False, max_sequence_length=tokens)[0]
    }


KIND = kind.NetworkSpec(
    call,
    prompt=lambda config, tokens, shape: (
        kind.PromptPart(kind.TEXT, (tokens, config.get("joint_attention_dim", 2048))),
    ),
    encode=encode,
    rows=ROWS,
    **(kind.PATCHED | dict[str, Any](tokens=256)),
)
