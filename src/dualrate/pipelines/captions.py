"""Captions of the images of a source, from a file or from text files beside the images.

They are lines of a text file, rows of a table (.csv, .tsv, .jsonl, .parquet), or a text file beside each image, of
its name. Which column of a table, or beginning of a line, names the images is seen by what stands there (`Images`).
Captions without names are in the order of the images: by path, the numbers in it by their values. They are read as a
stream: what is held of a caption is its place in the file, and its image's name.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualrate.data.finding import column_of, named_splits
from dualrate.data.folders import by_number
from dualrate.data.source import (
    ROW,
    SPLITS,
    SUFFIXES,
    DataProgress,
    Raw,
    Split,
    names_of,
    printable,
    read_utf8,
    reading,
    resolved,
    silent,
    skipped,
    without_ending,
)
from dualrate.system.files import check_regular, parse_json, whole
from dualrate.system.folders import some_of

KINDS = "a .txt, .csv, .tsv, .jsonl or .parquet file"
SEPARATORS = {".csv": ",", ".tsv": "\t"}
COLUMNS = ("caption", "text", "prompt", "captions", "texts", "prompts")  # of captions, the first that there is
NAMES = ("file_name", "filename", "file", "image", "name", "path")  # of images


Pairs = Iterator[tuple[str, str]]  # the image's name, empty where nothing says it, and its caption


@dataclass(frozen=True, eq=False)
class Captions:
    """Captions of the images of a source.

    rows:    reads them in their own order
    places:  of each split, where in the file that `write` makes each image's caption is, in bytes
    content: sha256 of captions and places
    """

    place: str
    rows: Callable[[], Pairs]
    places: dict[Split, NDArray[np.int64]]
    content: str

    def write(self, file: Path) -> None:
        with whole(file) as aside, aside.open("wb") as opened:
            for _, caption in self.rows():
                opened.write(_line(caption))


def _line(caption: str) -> bytes:
    return json.dumps(caption).encode() + b"\n"


class Images:
    """The images of a source, found by what captions call them.

    names: without endings, of each split; roots: the folder that each split's are in, empty without one
    Raises ValueError for several images of one name.
    """

    def __init__(self, source: str, names: Sequence[Sequence[str]], roots: Sequence[str]) -> None:
        self.source, self.roots, self.splits = source, roots, names
        self.names = [name for some in names for name in some]
        by_name = {name: i for i, name in enumerate(self.names)}
        if len(by_name) < len(self.names):
            raise ValueError(
                f"{source} has several images of one name, without its ending: captions cannot tell them apart"
            )
        self._by_end: dict[str, int] = {}  # -1: of several
        for i, name in enumerate(self.names):
            while "/" in name:
                name = name.partition("/")[2]
                self._by_end[name] = -1 if name in self._by_end else i
        self._by_end |= by_name

    def find(self, text: str) -> int | None:
        """The number of the image whose path ends in this, with or without its ending; None: of none, or of several."""
        wanted = end = without_ending([text.strip().replace("\\", "/")])[0].removeprefix("./").lstrip("/")
        while (number := self._by_end.get(end, -1)) < 0 and "/" in end:
            end = end.partition("/")[2]
        if number < 0:
            return None
        root = self.roots[number >= len(self.splits[0])]
        return number if f"{root}/{self.names[number]}".endswith(f"/{wanted}") else None

    def in_order(self) -> list[int]:
        """Their numbers, by path, and rows of a file by number."""
        return by_number(self.names)


def read_captions(
    place: str | Path, source: str | Path, label: str | None = None, progress: DataProgress = silent
) -> Captions:
    """The captions of a source's images. place: a file, FILE#COLUMN, or a folder of Parquet files or of text files

    source, label: as in `load_images`
    progress: is also told which captions are left out, and which are empty (`source.NOTED`)
    Raises ValueError for a file without a column of captions, naming the columns, or with columns of which none names
    the images, for images without a caption, and for a prepared source, which has no names; OSError for what cannot be
    read.
    """
    raws = [read.read() for read in named_splits(source, "captions", label, progress).values()]
    images = Images(str(source), [without_ending(names_of(raw.items)) for raw in raws], [_root(raw) for raw in raws])
    rows, named, note = _reader(place, images)
    names, order = images.names, [] if named else images.in_order()
    places = np.full(len(names), -1, np.int64)
    twice, strangers, empty = list[str](), list[str](), list[str]()
    digest, start, count = hashlib.sha256(), 0, 0
    for name, caption in rows():
        line = _line(caption)
        i = images.find(name) if named else order[count] if count < len(names) else None
        if i is None:
            strangers.append(name or caption[:40])
        elif places[i] >= 0:
            twice.append(names[i])
        else:
            places[i] = start
            empty += [] if caption.strip() else [names[i]]
        digest.update(line)
        start += len(line)
        count += 1
    lacking = [names[i] for i in np.flatnonzero(places < 0)]
    if lacking or (count > len(names) and not named):
        text = f"none for {len(lacking)} of them ({some_of(lacking)})" if lacking else "and nothing says whose they are"
        raise ValueError(
            f"{place} has captions ({count}) for the images ({len(names)}) of {source}, {text}: give one per "
            f"line or row, in the order of the images, or name the image of each in a column {NAMES[0]}"
        )
    notes = [
        "" if named else f"paired by order: the first caption is of {names[order[0]]}, the last of {names[order[-1]]}",
        note,
        skipped(twice, "more caption", " of images whose first one is taken"),
        skipped(strangers, "caption", " of no image"),
        f"without text: {some_of(empty)} ({len(empty)} in all), read as the empty prompt" if empty else "",
    ]
    for note in filter(None, notes):
        progress(len(names), len(names), note)
    by_split = dict(zip(SPLITS, np.split(places, [len(images.splits[0])]), strict=True))
    digest.update(places.tobytes())
    return Captions(str(place), rows, by_split, digest.hexdigest())


def _root(raw: Raw) -> str:
    """The folder that the names of images begin in; empty where they are no files of their own."""
    name, content = raw.items[0] if isinstance(raw.items, list) else ("", None)
    return printable(content.as_posix()).removesuffix(f"/{name}") if isinstance(content, Path) else ""


@dataclass(frozen=True, eq=False)
class _Table:
    """Rows of files, by columns.

    columns: those of texts or whole numbers, ROW among them where rows have names; barred: those of anything else
    rows:    reads some of these, of each row by name
    """

    file: Path
    columns: Sequence[str]
    rows: Callable[[Sequence[str]], Iterator[Mapping[str, Any]]]
    barred: Sequence[str] = ()

    def read(self, texts: str, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Each row's caption, in column `texts`, and other columns. Raises ValueError for captions of no text."""
        for row in self.rows([texts, *columns]):
            caption = row.get(texts)
            if not isinstance(caption, str | None):
                names = ", ".join(name for name in (*self.columns, *self.barred) if name != ROW)
                raise ValueError(
                    f"column {texts} of {self.file} holds no texts, one string a row; it has the columns {names}: name "
                    f"another, {self.file.name}#COLUMN"
                )
            yield caption or "", row

    def pairs(self, texts: str, naming: str) -> Pairs:
        for caption, row in self.read(texts, [naming] if naming else []):
            name = row.get(naming)
            yield "" if name is None else str(name), caption


def _reader(place: str | Path, images: Images) -> tuple[Callable[[], Pairs], bool, str]:
    """A reader of the captions, whether they have names, and a note on what it passes over, or ""."""
    place, column = column_of(place)
    path = resolved(place)
    if not path.exists():
        raise FileNotFoundError(f"no captions at {path}: expected {KINDS}, or a folder of these")
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if column and (not files or path.suffix.lower() == ".txt"):
        raise ValueError(f"#{column} names a column of a table, and {path} has none: drop it")
    if not files:
        return _beside(path, images)
    if path.suffix.lower() == ".txt":
        named = _lines_are_named(path, images)
        return partial(_of_lines, path, named), named, ""
    table = _table(files)
    texts = _texts_column(table, column)
    naming = _naming_column(table, texts, images)
    unused = [name for name in table.columns if name not in (texts, naming, ROW)]
    return partial(table.pairs, texts, naming), bool(naming), skipped(unused, "column", f" of {path.name}")


def _table(files: list[Path]) -> _Table:
    """Raises ValueError for files of another kind."""
    file = files[0]
    if file.suffix.lower() == ".parquet":
        try:
            from dualrate.data.parquet import columns_of, table_rows
        except ModuleNotFoundError as error:
            raise ValueError(f"pyarrow reads {file}: pip install 'dualrate[parquet]'") from error
        columns = columns_of(file)
        usable, barred = ([name for name in columns if columns[name] == usable] for usable in (True, False))
        return _Table(file, [ROW, *usable], partial(table_rows, files), barred)
    if file.suffix.lower() == ".jsonl":
        return _Table(file, [*dict.fromkeys(key for row in _of_json(file) for key in row)], lambda _: _of_json(file))
    if file.suffix.lower() not in SEPARATORS:
        raise ValueError(f"captions are in {KINDS}, or in a folder of text files, got {file}")
    with reading(file, _utf8(file)), _opened(file, "") as opened:
        header = csv.DictReader(opened, delimiter=SEPARATORS[file.suffix.lower()]).fieldnames or []
    return _Table(file, header, lambda _: _of_csv(file))


def _texts_column(table: _Table, wanted: str) -> str:
    """The column of captions: the one that is wanted, or else the first of the usual names."""
    names = [name for name in (*table.columns, *table.barred) if name != ROW]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{table.file} has several columns called {twice[0]!r}: give each a name of its own")
    column = wanted or next((name for usual in COLUMNS for name in names if name.lower() == usual), "")
    if column not in names:
        looked = wanted or ", ".join(COLUMNS[:3])
        raise ValueError(
            f"{table.file} has the columns {', '.join(names) or 'none'}, and none of captions ({looked}): name it "
            f"after the file, {table.file.name}#COLUMN"
        )
    return column


def _naming_column(table: _Table, texts: str, images: Images) -> str:
    """The column whose values are the names of all images; of several one with a usual name. Empty: there is no column
    but those that count the rows. Where names are missing, the column that has most.

    Raises ValueError for several that name the images differently, and for others of which none names an image.
    """

    def rank(name: str) -> int:
        return -1 if name == ROW else NAMES.index(name.lower()) if name.lower() in NAMES else len(NAMES)

    columns = sorted((name for name in table.columns if name != texts), key=rank)
    seen = {name: np.zeros(len(images.names), bool) for name in columns}
    order, counts = dict.fromkeys(columns, 0), {name: {0, 1} for name in columns}  # of rows, from 0 on or from 1
    for number, (_, row) in enumerate(table.read(texts, columns)):
        for name in columns:
            cell = "" if row.get(name) is None else str(row[name])
            image = images.find(cell)
            seen[name][[] if image is None else image] = True
            order[name] = hash((order[name], image))
            counts[name] = {first for first in counts[name] if cell == str(first + number)}
    full = [name for name in columns if seen[name].all()]
    full = [name for name in full if not counts[name]] or full  # to count the rows is to name them only by chance
    if full and rank(full[0]) == len(NAMES) and len({order[name] for name in full}) > 1:
        raise ValueError(f"{table.file} names the images in {some_of(full)}, each column in another way: keep one")
    usual = [name for name in columns if name.lower() in NAMES]
    best = max(columns, key=lambda name: seen[name].sum(), default="")  # the first of equal ones
    if full or usual or (best and seen[best].any()):
        return full[0] if full else best if seen[best].any() else usual[0]
    if rest := [name for name in columns if name != ROW and not counts[name]] + [*table.barred]:
        raise ValueError(
            f"{table.file} has the columns {', '.join(rest)}, and none of them holds names of the images of "
            f"{images.source} ({some_of(images.names)}): put these into a column {NAMES[0]}, or the captions alone, in "
            "the order of the images, into a .txt file"
        )
    return ""


def _utf8(file: Path) -> str:
    return f"{file.suffix[1:].upper()} in UTF-8"


def _opened(file: Path, newline: str | None = None) -> io.TextIOWrapper:
    check_regular(file)
    return file.open(encoding="utf-8-sig", newline=newline)


def _of_csv(file: Path) -> Iterator[Mapping[str, Any]]:
    with reading(file, _utf8(file)), _opened(file, "") as opened:
        table = csv.DictReader(opened, delimiter=SEPARATORS[file.suffix.lower()])
        for row in table:
            if None in row:
                raise ValueError(f"line {table.line_num} has more values than the header: put commas between quotes")
            yield row


def _of_json(file: Path) -> Iterator[Mapping[str, Any]]:
    with reading(file, _utf8(file)), _opened(file) as opened:
        for number, line in enumerate(opened, 1):
            row = parse_json(line.encode(), f"{file}, line {number}") if line.strip() else {}
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no object")
            if row:
                yield row


_WITH_NAME = re.compile(
    rf'"?(.+?(?:{"|".join(map(re.escape, SUFFIXES))}))"?(?:#[0-9]+)?(?:\s*[\t,;:|]\s*|\s+)(.*)', re.IGNORECASE
)


def _lines(file: Path) -> Iterator[tuple[str, str, str]]:
    """Each line, whole and in two parts, name and caption: parted after the name of a picture, or at a tab."""
    with reading(file, "text in UTF-8"), _opened(file) as opened:
        for line in opened:
            line = line.rstrip("\r\n")
            picture = _WITH_NAME.fullmatch(line)
            name, tab, caption = line.partition("\t")
            if picture:
                name, caption = picture[1], picture[2]
            elif not tab:
                name, caption = "", line
            yield line, name, caption


def _lines_are_named(file: Path, images: Images) -> bool:
    """Whether a line begins with the name of an image, or every line with that of a picture, or a word and a tab."""
    count, alike = 0, 0
    for line, name, _ in _lines(file):
        if name and images.find(name) is not None:
            return True
        count += bool(line.strip())
        alike += bool(name) and (name.lower().endswith(SUFFIXES) or not re.search(r"\s", name))
    return 0 < count == alike


def _of_lines(file: Path, named: bool) -> Pairs:
    for line, name, caption in _lines(file):
        if not named:
            yield "", line
        elif line.strip():
            yield name, caption


def _beside(folder: Path, images: Images) -> tuple[Callable[[], Pairs], bool, str]:
    files, strangers = dict[int, Path](), list[str]()
    for file in sorted(folder.rglob("*.txt")):
        name = printable(file.relative_to(folder).as_posix())
        number = images.find(name.removesuffix(".txt"))
        if number is None or files.setdefault(number, file) != file:
            strangers.append(name)

    def rows() -> Pairs:
        for number in sorted(files):
            yield images.names[number], read_utf8(files[number]).strip()

    return rows, True, skipped(strangers, "text file", f" of no image in {folder.name}")
