"""Stable Diffusion 3: blocks of a text's tokens and an image's, which see each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dualrate.diffusion.values import Shape
from dualrate.pipelines.classes.kind import PAIRED, POOLED, TEXT, Config, NetworkSpec, PromptPart, TextInputs, by_text

OF_CLIP = 77  # of the tokens


def prompt(config: Config, tokens: int, shape: Shape) -> tuple[PromptPart, ...]:
    width, pooled = config.get("joint_attention_dim", 4096), config.get("pooled_projection_dim", 2048)
    return PromptPart(TEXT, (tokens, width)), PromptPart(POOLED, (pooled,))


def encode(pipeline: Any, texts: Sequence[str], tokens: int) -> TextInputs:
    embeddings = pipeline.encode_prompt(
        prompt=list(texts),
        prompt_2=None,
        prompt_3=None,
        do_classifier_free_guidance=False,
        max_sequence_length=tokens - OF_CLIP,
    )
    return {TEXT: embeddings[0], POOLED: embeddings[2]}


KIND = NetworkSpec(
    by_text,
    prompt=prompt,
    tokens=OF_CLIP + 256,
    encode=encode,
    rows=PAIRED,
    between=("block_controlnet_hidden_states", "skip_layers"),
)
