"""Sana: linear attention among the image's tokens, and attention to a text.

The network has the unit of its time in its configuration, and leaves it to whoever calls it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from dualrate.diffusion.values import Shape
from dualrate.pipelines.classes.kind import CONTROL, MASK, TEXT, Config, Given, Kind, Part, Rows, by_text

INSTRUCTION = "complex_human_instruction"  # that the pipeline puts before a text, unless told otherwise


def prompt(config: Config, tokens: int, shape: Shape) -> tuple[Part, ...]:
    return Part(TEXT, (tokens, config.get("caption_channels", 2304))), Part(MASK, (tokens,), mask=True)


def encode(pipeline: Any, texts: Sequence[str], tokens: int) -> Given:
    own = inspect.signature(type(pipeline).__call__).parameters[INSTRUCTION].default
    return _encoded(pipeline, texts, tokens, own)


def negative(pipeline: Any, text: str | None, tokens: int) -> Given:
    return _encoded(pipeline, [text or ""], tokens, None)


def _encoded(pipeline: Any, texts: Sequence[str], tokens: int, instruction: Sequence[str] | None) -> Given:
    how: dict[str, Any] = {"max_sequence_length": tokens, INSTRUCTION: instruction}
    made = pipeline.encode_prompt(list(texts), do_classifier_free_guidance=False, **how)
    return {TEXT: made[0], MASK: made[1]}


KIND = Kind(
    by_text,
    prompt=prompt,
    tokens=300,
    encode=encode,
    negative=negative,
    known={"guidance_embeds": (None, False)},
    rows=Rows(embedded="timestep"),
    between=(CONTROL,),
    units=lambda net: 1 / net.config.timestep_scale,
)
