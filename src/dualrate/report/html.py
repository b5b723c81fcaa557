"""One self-contained HTML page: text, tables, pictures and figures. Nothing is fetched, every string is escaped.

Images to files and back: PNGs, and the npz layout of the reference evaluators.
"""

from __future__ import annotations

import base64
import io
import struct
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from dualrate.report.figures import STYLE, svg
from dualrate.report.table import TEXT_COLUMNS, Table
from dualrate.system.files import check_regular, whole


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
class Passage:
    """A text, line by line as it is."""

    text: str
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Pictures, or passages, side by side where there is room."""

    pictures: Sequence[Picture | Passage]


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
            return f'<div class="gallery">{"".join(_shown(picture) for picture in pictures)}</div>'
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


def _shown(one: Picture | Passage) -> str:
    if isinstance(one, Picture):
        return _picture(one)
    return f"<figure><pre>{escape(one.text)}</pre><figcaption>{escape(one.caption)}</figcaption></figure>"


def _picture(picture: Picture) -> str:
    target = io.BytesIO()
    Image.fromarray(picture.pixels).save(target, "PNG", optimize=True)
    data = base64.b64encode(target.getvalue()).decode("ascii")
    caption, (height, width) = escape(picture.caption), picture.pixels.shape[:2]
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


_COLOUR_TYPE = {1: 0, 3: 2}  # of a PNG: grey, RGB
_END = b"\0\0\0\0IEND\xaeB`\x82"


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """(C, H, W) uint8, C = 1 or 3, as the content of a PNG file."""
    picture = image.transpose(1, 2, 0)
    content = io.BytesIO()
    Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(content, "PNG")
    return content.getvalue()


def is_whole_png(path: Path, shape: tuple[int, int, int]) -> bool:
    """Whether a file begins as a PNG of this shape (C, H, W) does, and ends as one. Reads 38 bytes of it."""
    channels, height, width = shape
    start = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBB", width, height, 8, _COLOUR_TYPE[channels])
    check_regular(path)
    with path.open("rb", buffering=0) as file:
        if file.read(len(start)) != start:
            return False
        file.seek(-len(_END), io.SEEK_END)
        return file.read() == _END


def read_png(path: Path) -> NDArray[np.uint8]:
    """(C, H, W) uint8. Raises OSError for a file that is no picture, or a damaged one."""
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise OSError(f"{path} is damaged ({error}): delete it, and it is drawn again") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def write_npz(
    path: Path, images: Iterable[NDArray[np.uint8]], shape: tuple[int, int, int, int], labels: NDArray[np.int64] | None
) -> None:
    """arr_0 (N, H, W, C) uint8 and, if there are any, arr_1 (N,) labels, holding one image at a time.

    images: N of (C, H, W); shape: (N, C, H, W). The file is whole or not there. Raises OSError that names it.
    """
    count, channels, height, width = shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, height, width, channels)}
    with whole(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for image in images:
                member.write(image.transpose(1, 2, 0).tobytes())
        if labels is not None:
            with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, labels, allow_pickle=False)
