"""One self-contained HTML page: text, tables, pictures and figures. Nothing is fetched, every string is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from dualrate.report.figures import svg
from dualrate.report.table import TEXT_COLUMNS, Table


@dataclass(frozen=True)
class Text:
    """A paragraph. lead: large, for what matters most; note: small."""

    text: str
    kind: Literal["plain", "lead", "note"] = "plain"


@dataclass(frozen=True)
class Points:
    """A list of short texts."""

    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and values, one pair per line."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """pixels: (H, W) or (H, W, 3) uint8, enlarged without smoothing to the width of its place."""

    pixels: np.ndarray
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side where there is room."""

    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Drawing:
    """A figure of `report.figures`."""

    figure: Figure
    caption: str


Element = Text | Points | Facts | Table | Picture | Gallery | Drawing


@dataclass(frozen=True)
class Section:
    heading: str
    elements: Sequence[Element]


def page(title: str, sections: Sequence[Section]) -> str:
    """The page as one string. A section without a heading continues the title."""
    body = "\n".join(_section(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    heading = f"<h2>{escape(section.heading)}</h2>\n" if section.heading else ""
    return f"<section>\n{heading}" + "\n".join(_element(element) for element in section.elements) + "\n</section>"


def _element(element: Element) -> str:
    match element:
        case Text(text, kind):
            return f'<p class="{kind}">{escape(text)}</p>'
        case Points(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        case Facts(pairs):
            return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in pairs)}</dl>"
        case Table(header, cells, notes):
            return _table(header, cells, notes)
        case Picture():
            return _picture(element)
        case Gallery(pictures):
            return f'<div class="gallery">{"".join(_picture(picture) for picture in pictures)}</div>'
        case Drawing(figure, caption):
            return f'<figure class="drawing">{svg(figure)}<figcaption>{escape(caption)}</figcaption></figure>'


def _table(header: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    def line(tag: str, values: Sequence[str]) -> str:
        parts = (f"<{tag}{_aligned(i)}>{escape(value)}</{tag}>" for i, value in enumerate(values))
        return f"<tr>{''.join(parts)}</tr>"

    rows = "\n".join(line("td", row) for row in cells)
    below = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead>{line("th", header)}</thead>\n<tbody>{rows}</tbody>\n'
        f"</table></div>{below}"
    )


def _aligned(column: int) -> str:
    return "" if column < TEXT_COLUMNS else ' class="number"'


def _picture(picture: Picture) -> str:
    target = io.BytesIO()
    Image.fromarray(picture.pixels).save(target, "PNG", optimize=True)
    data = base64.b64encode(target.getvalue()).decode("ascii")
    caption, (height, width) = escape(picture.caption), picture.pixels.shape[:2]
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


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
