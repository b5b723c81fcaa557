"""HTML pages of one file, made of the jinja2 templates in templates/. Text is escaped; a page fetches nothing."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

TEMPLATES = Path(__file__).with_name("templates")


def page(template: str, **values: Any) -> str:
    """A page as one string. template: a file of TEMPLATES; values: what it names.

    Text is escaped, except for the SVG of the macro `drawing`.
    """
    return ENVIRONMENT.get_template(template).render(**values)


def notebook(value: object, drawing: str) -> str:
    """HTML of a value in a notebook: the lines that print it, and below them an SVG or a picture."""
    return f"<pre>{escape(repr(value))}</pre>{drawing}"


def picture(pixels: np.ndarray) -> str:
    """HTML of a picture (H, W) or (H, W, 3) uint8."""
    return f'<img src="{_png(pixels)}">'


def _png(pixels: np.ndarray) -> str:
    """(H, W) or (H, W, 3) uint8 as a data URL."""
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(target.getvalue()).decode('ascii')}"


ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters["png"] = _png
