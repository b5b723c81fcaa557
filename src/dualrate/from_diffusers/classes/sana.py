"""Sana: linear attention among the image's tokens, and attention to a text.

The network has the unit of its time in its configuration, and leaves it to whoever calls it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from dualrate.diffusion.values import Shape
from dualrate.from_diffusers.classes.kind import CONTROL, MASK, TEXT, Config, Given, Kind, Part, Rows, by_text

INSTRUCTION = "complex_human_instruction"  # that the pipeline puts before a text, unless told otherwise


def prompt(config: Config, tokens: int, shape: Shape) -> tuple[Part, ...]:
    return Part(TEXT, (tokens, config.get("caption_channels", 2304))), Part(MASK, (tokens,), mask=True)


def encode(pipeline: Any, texts: Sequence[str], negative: str | None, tokens: int) -> tuple[Given, Given]:
    instruction = inspect.signature(type(pipeline).__call__).parameters[INSTRUCTION].default
    text, mask, of_negative, negative_mask = pipeline.encode_prompt(
        list(texts),
        negative_prompt=negative or "",
        max_sequence_length=tokens,
        complex_human_instruction=instruction,
    )
    return {TEXT: text, MASK: mask}, {TEXT: of_negative, MASK: negative_mask}


KIND = Kind(
    by_text,
    prompt=prompt,
    tokens=300,
    encode=encode,
    known={"guidance_embeds": (None, False)},
    rows=Rows(embedded="timestep"),
    between=(CONTROL,),
    units=lambda net: 1 / net.config.timestep_scale,
)
