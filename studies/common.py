"""Folders, released models, kept rows, and places for tables on pages, for all studies."""

from __future__ import annotations

import argparse
import json
import lzma
import re
import tarfile
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import dualrate as dr
from dualrate.report.table import TEXT_COLUMNS, Table
from dualrate.system.device import keep_freed_memory
from dualrate.system.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
RESULTS, RUNS = ROOT / "docs" / "results", ROOT / "runs"
LINE = 119  # characters of a note in Markdown, at most
METRICS = "fashion-mnist,fashion-mnist-b,fashion-mnist-c"  # feature nets of Fashion-MNIST, those that ship
PRETRAINED = "efficientnet"  # and one that nobody here trained


def command(doc: str | None) -> argparse.ArgumentParser:
    """The parser of a study with this docstring."""
    return argparse.ArgumentParser(description=(doc or "").splitlines()[0])


def on_one_thread() -> None:
    """Compute on one thread, as all that is timed here did."""
    keep_freed_memory()
    torch.set_num_threads(1)


@cache
def load(model: str | Path) -> dr.Model:
    """model: a directory, below the repository."""
    return dr.load(ROOT / model)


def save(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, text)


@contextmanager
def kept_rows(name: str) -> Iterator[Path]:
    """A folder of a report's rows, those that docs/results/rows/NAME.tar.xz keeps; it is gone afterwards."""
    with TemporaryDirectory() as folder, tarfile.open(RESULTS / "rows" / f"{name}.tar.xz") as archive:
        for member in archive:
            if content := archive.extractfile(member):
                (Path(folder) / Path(member.name).name).write_bytes(content.read())
        yield Path(folder)


Row = dict[str, Any]  # a measurement


def rows_of(out: Path) -> list[Row]:
    """Rows in OUT/rows.jsonl; none where it is not there."""
    file = out / "rows.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def add_rows(out: Path, rows: Iterable[Row]) -> None:
    """Appends to OUT/rows.jsonl."""
    with (out / "rows.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_rows(out: Path, rows: Iterable[Row]) -> None:
    """Writes OUT/rows.jsonl anew, whole or not at all."""
    write_whole(out / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def keep(file: Path, rows: Sequence[Row]) -> None:
    """Writes the rows that a file (.json.xz) keeps."""
    write_whole(file, lzma.compress(json.dumps(rows, separators=(",", ":")).encode()))


def kept(file: Path, out: Path) -> list[Row]:
    """The rows of OUT, which the file (.json.xz) keeps from now on; where OUT has none, those that it keeps."""
    if rows := rows_of(out):
        keep(file, rows)
    return rows or kept_in(file)


def kept_in(file: Path) -> list[Row]:
    """The rows that a file (.json.xz) keeps."""
    return json.loads(lzma.decompress(file.read_bytes()))


# Tables


def pages_with(name: str, pages: Iterable[Path]) -> list[Path]:
    """Pages with a place for the table of this name. Raises ValueError if none has."""
    matches = [page for page in pages if f"<!-- {name} -->\n" in page.read_text()]
    if not matches:
        raise ValueError(f"no page has a place for the table {name!r}: <!-- {name} --> ... <!-- end of {name} -->")
    return matches


def place(name: str, table: str, page: Path) -> None:
    """Puts a table where the page has a place for it."""
    between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)
    save(page, between.sub(lambda _: table, page.read_text()))


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]], texts: int = TEXT_COLUMNS) -> str:
    """A Markdown table, whose first columns, so many, are texts, and the others numbers."""
    rule = ["---" if i < texts else "---:" for i in range(len(header))]
    lines = [[str(cell).replace("|", "\\|") for cell in line] for line in (header, *rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def as_markdown(table: Table) -> str:
    """A Markdown table, the notes as a list below, no line of it longer than `LINE`."""
    notes = [
        textwrap.fill(note, LINE, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
        for note in table.notes
    ]
    return "\n".join([markdown(table.header, table.cells, table.texts), *notes])
