"""Sana: linear attention among the image's tokens, and attention to a text.

The network has the unit of its time in its configuration, and leaves it to whoever calls it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from dualrate.pipelines.classes.kind import CONTROL, MASK, TEXT, NetworkSpec, Rows, TextInputs, by_text, masked_prompt

INSTRUCTION = "complex_human_instruction"  # that the pipeline puts before a text, unless told otherwise


def encode(pipeline: Any, texts: Sequence[str], tokens: int) -> TextInputs:
    instruction = inspect.signature(type(pipeline).__call__).parameters[INSTRUCTION].default
    return _encoded(pipeline, texts, tokens, instruction)


def negative(pipeline: Any, text: str | None, tokens: int) -> TextInputs:
    return _encoded(pipeline, [text or ""], tokens, None)


def _encoded(pipeline: Any, texts: Sequence[str], tokens: int, instruction: Sequence[str] | None) -> TextInputs:
    how: dict[str, Any] = {"max_sequence_length": tokens, INSTRUCTION: instruction}
    embeddings = pipeline.encode_prompt(list(texts), do_classifier_free_guidance=False, **how)
    return {TEXT: embeddings[0], MASK: embeddings[1]}


KIND = NetworkSpec(
    by_text,
    prompt=masked_prompt(lambda config: config.get("caption_channels", 2304)),
    tokens=300,
    encode=encode,
    negative=negative,
    settings={"guidance_embeds": (None, False)},
    rows=Rows(),
    between=(CONTROL,),
    units=lambda net: 1 / net.config.timestep_scale,
)
