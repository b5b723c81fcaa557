"""Stable Diffusion 3: blocks of a text's tokens and an image's, which see each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dualrate.pipelines.classes.kind import PAIRED, POOLED, TEXT, NetworkSpec, TextInputs, by_text, pooled

OF_CLIP = 77  # of the tokens


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
    prompt=lambda config, tokens, shape: pooled(config, tokens, 2048),
    tokens=OF_CLIP + 256,
    encode=encode,
    rows=PAIRED,
    between=("block_controlnet_hidden_states", "skip_layers"),
)
