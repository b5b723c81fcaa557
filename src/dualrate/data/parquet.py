"""Images in Parquet files, in the layout of Hugging Face `datasets`. pyarrow, of the extra `parquet`, reads them.

Column `image` or `img`, or the one that is asked for (FILE#COLUMN): a struct with `bytes`, or the encoded bytes
themselves. The column of labels, optional, holds integers, strings or booleans: the one that is asked for, else the
first of `LABEL_COLUMNS`. Class names come from the schema's `huggingface` metadata (ClassLabel), else from the values.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualrate.data import source
from dualrate.data.source import Listed, Member, Raw, Source, Split, printable
from dualrate.system.files import check_regular
from dualrate.system.folders import some_of

PREFIXES = ("train", "test", "val")  # of files' names, in any case
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")  # all but the first in any case
NO_BYTES = "it has no bytes, and a path is no image: embed the images, or name the folder that they are in"


def _files(folder: Path) -> tuple[list[Path], list[list[Path]], list[Path]]:
    """Training files of a folder, or of its data/ sub-folder; the groups of files that may be the test split, the
    first choice first; and the files that are left aside.

    Files named train* are the training split; test*, val*, dev and eval are groups; others are left aside. If no name
    says what it is, all are training files. Raises ValueError for test files without training files, and for training
    files of which some are missing (`check_complete`).
    """
    files = source.tables_in(folder) or source.tables_in(folder / "data")
    groups: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        name = file.name.lower()
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
        groups[prefix or source.split_named(re.split("[^a-z]", name)[0])].append(file)
    train, tests = groups["train"], [groups[name] for name in source.HELD_OUT if name in groups]
    if tests and not train:
        raise ValueError(f"{tests[0][0].parent} has test files ({tests[0][0].name}) but no train*.parquet")
    check_complete(train or files)
    used = {*train, *(file for group in tests for file in group)}
    return train or files, tests, [file for file in files if train and file not in used]


def check_complete(files: Sequence[Path]) -> None:
    """Raises ValueError, which names them, for files that are missing among those named NAME-00000-of-00003.parquet."""
    numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for file in files:
        if parts := re.match(r"(.*)-([0-9]{1,6})-of-([0-9]{1,6})\b", file.name):
            numbers[parts[1], parts[3]].add(int(parts[2]))
    missing = [
        f"{name}-{i:0{len(total)}}-of-{total}.parquet"
        for (name, total), indices in numbers.items()
        for first in [int(int(total) in indices)]  # numbered from 0, or from 1
        for i in range(first, int(total) + first)
        if i not in indices
    ]
    if missing:
        raise ValueError(
            f"{files[0].parent} lacks {len(missing)} of the Parquet files of a split: {some_of(missing)}; fetch them, "
            "or name one file alone as the source"
        )


def parquet_source(path: Path, split: Split, label: str | None = None, images: str = "") -> Source:
    """The images of a Parquet file, or of a folder of them.

    label: the column of labels; None: the usual one; images: the column of images; empty: the usual one

    The test split is the first group of test files that has labels, if the training files have; without one, a tenth of
    the training rows is held out (`hold_out`).
    Raises ValueError for missing files. Raises, when read, OSError for files that cannot be opened or read; ValueError
    for damaged files, unexpected columns, and labels that `class_numbers` refuses or only the test files have.
    """
    train, tests, rest = _files(path) if path.is_dir() else ([path], [], [])

    def read() -> Raw:
        with _opened(train[0]) as parquet:
            schema = parquet.schema_arrow
            _image_column(schema, train[0], images)
        column, note = _label_column(schema, train[0], label, images)
        labelled = [files for files in tests if column is None or not all(_unlabelled(file, column) for file in files)]
        passed = [printable(file.name) for files in tests if files not in labelled for file in files]
        test = labelled[0] if labelled else []
        unused = [printable(file.name) for file in [*rest, *(file for files in labelled[1:] for file in files)]]
        check_complete(test)
        training = _listed(train, column, images)
        chosen = _listed(test, column, images) if test and split == "test" else training
        place = str((test if test and split == "test" else train)[0])
        names = _declared_names(schema, train[0], column)
        pictures = [file.name for file in path.glob("*") if file.name.lower().endswith(source.SUFFIXES)]
        beside = [printable(picture) for picture in pictures if not source.hidden(picture)]
        others = source.skipped(passed, "file", " without labels"), source.skipped(unused, "file", " of other splits")
        notes = filter(None, (note, *others, source.skipped(beside, "picture", " beside Parquet files")))
        return chosen.raw(training, place, None if test else split, names, "; ".join(notes))

    files = dict.fromkeys([*train, *(file for test in tests for file in test)])
    name = printable(path.stem) + (images and f"#{images}")
    return Source(f"{name}/{split}", tuple(files), read, label)


def _unlabelled(file: Path, column: str) -> bool:
    """Whether no image has a label: -1 stands for none on the Hugging Face Hub."""
    with _opened(file) as parquet:
        if column not in parquet.schema_arrow.names:
            return True
        values = parquet.read(columns=[column]).column(column).drop_null()
        return len(values) == 0 or (pa.types.is_signed_integer(values.type) and bool((values.to_numpy() == -1).all()))


def _label_column(schema: pa.Schema, file: Path, label: str | None, images: str) -> tuple[str | None, str]:
    """The column of labels, or None; and a note on other columns, as in `Raw`. label: the column that a user names"""
    if label is not None and label not in schema.names:
        raise ValueError(f"{file} has the columns {', '.join(schema.names)}; --data.label {label} is none of them")
    usable = [column.name for column in schema if _is_label(column.type)]
    usual = [name for wanted in LABEL_COLUMNS for name in usable if name.lower() == wanted]
    label = label or (LABEL_COLUMNS[0] if LABEL_COLUMNS[0] in schema.names else next(iter(usual), None))
    columns = [
        f"{column.name} ({column.type})"
        for column in schema
        if column.name not in (*IMAGE_COLUMNS, images, label) and not _is_image(column.type)
    ]
    if label is not None:
        return label, source.skipped(columns, "column", f" of {printable(file.name)}")
    text = f"without labels: {printable(file.name)} has the columns {some_of(columns, 10)}; --data.label COLUMN"
    return None, f"{text} takes one of integers or strings for labels" if columns else ""


def _is_label(kind: pa.DataType) -> bool:
    return _is_text(kind) or _is_whole(kind) or pa.types.is_boolean(kind)


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    """The file, while it is read: see `reading` for errors."""
    check_regular(file)
    with (
        source.reading(file, "Parquet"),
        pa.OSFile(os.fsencode(file)) as content,  # as bytes: a name may be no UTF-8
        pq.ParquetFile(content, page_checksum_verification=True) as parquet,
    ):
        yield parquet


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some rows of all files together, ascending. Groups of rows that hold none of them are not read."""

    files: Sequence[Path]
    rows: np.ndarray
    images: str = ""

    def __getitem__(self, rows: np.ndarray | slice, /) -> _Rows:
        return _Rows(self.files, self.rows[rows], self.images)

    def _of(self, first: int, count: int) -> list[int]:
        """Numbers of these rows among the `count` rows from `first` on, counted from there."""
        return (self.rows[slice(*np.searchsorted(self.rows, (first, first + count)))] - first).tolist()

    def names(self) -> list[str]:
        names, row = [], 0
        for file in self.files:
            with _opened(file) as parquet:
                count = parquet.metadata.num_rows
            names += [f"{printable(file.name)}[{i}]" for i in self._of(row, count)]
            row += count
        return names

    def __iter__(self) -> Iterator[tuple[str, bytes | Member]]:
        row = 0
        for file in self.files:
            start = row
            with _opened(file) as parquet:
                column = _image_column(parquet.schema_arrow, file, self.images)
                for group in range(parquet.num_row_groups):
                    end = row + parquet.metadata.row_group(group).num_rows
                    if self._of(row, end - row):
                        for batch in parquet.iter_batches(batch_size=256, row_groups=[group], columns=[column]):
                            for i in self._of(row, batch.num_rows):
                                image, name = batch.column(0)[i].as_py(), f"{printable(file.name)}[{row - start + i}]"
                                if isinstance(image, dict):
                                    image = image["bytes"] or Member(name, file, 0, 0, NO_BYTES)
                                yield name, image or b""  # of a null: an empty file, which `decode` refuses
                            row += batch.num_rows
                    row = end


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return kind in (pa.binary(), pa.large_binary(), pa.binary_view())


def _image_column(schema: pa.Schema, file: Path, column: str) -> str:
    """The column of encoded bytes, or the field of the struct that has them. column: that a user names, or empty"""
    wanted = (column,) if column else IMAGE_COLUMNS
    for name in wanted:
        if name in schema.names:
            kind = schema.types[schema.names.index(name)]
            if _is_image(kind):
                return f"{name}.bytes" if pa.types.is_struct(kind) else name
            hint = ": paths are no images, name the folder that they are in" if _is_text(kind) else ""
            raise ValueError(f"column {name} of {file} is {kind}; expected a struct with bytes, or binary{hint}")
    hint = "" if column else "; name another one after the file, as FILE#COLUMN"
    raise ValueError(f"{file} has the columns {', '.join(schema.names)}; expected {' or '.join(wanted)}{hint}")


def _listed(files: Sequence[Path], column: str | None, images: str) -> Listed:
    """All rows of files; booleans are words. Raises ValueError where labels, integers or strings, are missing."""
    count, columns = 0, []
    for file in files:
        with _opened(file) as parquet:
            rows = parquet.metadata.num_rows
            if not 0 <= rows <= file.stat().st_size:  # no image takes less than a byte
                raise ValueError(f"it claims {rows:,} rows in {file.stat().st_size:,} bytes")
            count += rows
            if column is None:
                continue
            if column not in parquet.schema_arrow.names:
                raise ValueError(f"it has no column {column}, which other files have")
            labels = parquet.read(columns=[column]).column(column)
            if labels.null_count or not _is_label(labels.type):
                raise ValueError(
                    f"column {column} of {file} is {labels.type} with {labels.null_count} nulls; expected integers or "
                    "strings (--data.label names another column)"
                )
            columns.append(labels.cast(_plain(labels.type) if _is_whole(labels.type) else pa.string()))
    items = _Rows(files, np.arange(count), images)
    if not columns:
        return Listed(items, count, None)
    with source.reading(files[0], "Parquet (with its sister files)" if len(files) > 1 else "Parquet"):
        values = pa.chunked_array([chunk for labels in columns for chunk in labels.chunks], columns[0].type)
        return Listed(items, count, values.to_numpy() if pa.types.is_integer(values.type) else values.to_pylist())


def _declared_names(schema: pa.Schema, file: Path, column: str | None) -> tuple[str, ...]:
    """Class names of a ClassLabel column; empty if the schema declares none."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    with source.reading(file, "Parquet: the huggingface metadata of its schema are not as expected"):
        names = json.loads(text).get("info", {}).get("features", {}).get(column, {}).get("names") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"names of {column} are {str(names)[:80]}, no list of strings")
        return tuple(names)


def columns_of(file: Path) -> dict[str, bool]:
    """The columns of a file, by name: whether each is of texts or whole numbers. Raises ValueError for no Parquet file,
    and for two columns of one name."""
    with _opened(file) as parquet:
        columns = {column.name: _is_text(column.type) or _is_whole(column.type) for column in parquet.schema_arrow}
        if len(columns) < len(parquet.schema_arrow):
            raise ValueError("it has several columns of one name")
        return columns


def _is_text(kind: pa.DataType) -> bool:
    return _plain(kind) in (pa.string(), pa.large_string(), pa.string_view())


def _is_whole(kind: pa.DataType) -> bool:
    return pa.types.is_integer(_plain(kind))


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values of a column, which may be kept as numbers of a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def table_rows(files: Sequence[Path], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Some columns, row by row, by their names; under ROW FILE[row]. Raises ValueError for one that a file lacks."""
    for file in files:
        present, first = columns_of(file), 0
        wanted = [name for name in columns if name != source.ROW]
        if lacking := [name for name in wanted if name not in present]:
            raise ValueError(f"{file} lacks the column {lacking[0]}, it has {', '.join(present)}")
        with _opened(file) as parquet:
            for batch in parquet.iter_batches(batch_size=256, columns=wanted):
                for i, row in enumerate(batch.to_pylist(), first):
                    yield {**row, source.ROW: f"{printable(file.name)}[{i}]"}
                first += batch.num_rows
