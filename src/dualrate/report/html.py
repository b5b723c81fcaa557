"""HTML pages of one file, made by jinja2: a base template and its macros. Every text is escaped, nothing is fetched."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from jinja2 import DictLoader, Environment, StrictUndefined
from PIL import Image

from dualrate.report.table import TEXT_COLUMNS

STYLE = """
:root { color-scheme: light dark; --ink: #24262b; --soft: #5d6370; --page: #fff; --line: #d9dce2; --tint: #f4f5f8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --soft: #a2a8b4; --page: #15171b; --line: #353a44; --tint: #1d2026 }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line) }
p, ul { max-width: 46rem; margin: .6rem 0 }
ul { padding-left: 1.2rem }
li { margin: .4rem 0 }
.lead { font-size: 1.15rem; padding: .9rem 1.1rem; background: var(--tint); border-radius: .5rem; max-width: none }
.note, figcaption { font-size: .86rem; color: var(--soft) }
.note { margin: .3rem 0 }
.scroll { overflow-x: auto; margin: 1rem 0 .75rem }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums }
th, td { padding: .45rem .6rem; text-align: left; border-bottom: 1px solid var(--line); min-width: 8rem }
th { font-weight: 600; color: var(--soft); vertical-align: bottom }
.number { text-align: right; min-width: 0 }
td.number { white-space: nowrap }
figure { margin: 0 }
figcaption { margin-top: .35rem }
img { display: block; width: 100%; height: auto; image-rendering: pixelated; border-radius: .2rem }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1.4rem 1.5rem }
.drawing { margin: 1rem 0 1.75rem; overflow-x: auto }
.drawing svg { width: 100%; min-width: 32rem; height: auto; display: block }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; font-size: .93rem }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
"""

BASE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
{% block body %}{% endblock %}
</main>
</body>
</html>
"""

MACROS = """
{% macro table(made) %}
<div class="scroll" tabindex="0"><table>
<thead>{{ line("th", made.header) }}</thead>
<tbody>
{% for cells in made.cells %}{{ line("td", cells) }}
{% endfor %}</tbody>
</table></div>
{% for note in made.notes %}<p class="note">{{ note }}</p>
{% endfor %}{% endmacro %}

{% macro line(tag, cells) %}<tr>
{%- for cell in cells %}<{{ tag }}{% if loop.index > text_columns %} class="number"{% endif %}>{{ cell }}</{{ tag }}>
{%- endfor %}</tr>{% endmacro %}

{% macro drawing(svg, caption) %}<figure class="drawing">{{ svg | safe }}<figcaption>{{ caption }}</figcaption></figure>
{% endmacro %}

{% macro picture(pixels, caption) %}
<figure><img src="{{ pixels | png }}" width="{{ pixels.shape[1] }}" height="{{ pixels.shape[0] }}" alt="{{ caption }}">
<figcaption>{{ caption }}</figcaption></figure>
{% endmacro %}

{% macro passage(text, caption) %}<figure><pre>{{ text }}</pre><figcaption>{{ caption }}</figcaption></figure>
{% endmacro %}

{% macro facts(pairs) %}<dl>
{%- for name, value in pairs.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% endmacro %}
"""


def page(template: str, **values: Any) -> str:
    """A page as one string. template: extends "base", and may import macros from "macros"; values: its names.

    Every text is escaped, but the SVG of the macro `drawing`.
    """
    return _ENVIRONMENT.from_string(template).render(**values)


def _png(pixels: np.ndarray) -> str:
    """(H, W) or (H, W, 3) uint8 as a data URL."""
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(target.getvalue()).decode('ascii')}"


_ENVIRONMENT = Environment(
    loader=DictLoader({"base": BASE, "macros": MACROS}),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["png"] = _png
_ENVIRONMENT.globals |= {"text_columns": TEXT_COLUMNS, "style": STYLE}
