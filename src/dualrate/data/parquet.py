"""Images in Parquet files, in the layout of Hugging Face `datasets`.

Column `image` or `img`: a struct with `bytes`, or the encoded bytes themselves. Column `label`, optional: integers or
strings. Class names come from the schema's `huggingface` metadata (ClassLabel), else from the values.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualrate.data.source import Raw, Source, Split, class_numbers, hold_out
from dualrate.data.untrusted import printable, reading
from dualrate.machine.files import check_regular

TEST_NAMES = ("test", "val")  # prefixes; validation files count as test files where there are none
IMAGE_COLUMNS = ("image", "img")


def parquet_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Training and test files of a folder, or of its data/ sub-folder; both empty if there are no .parquet files.

    Files named train* are the training split, test* (else val*) the test split, others are left aside; if no name
    says what it is, all are training files. Raises ValueError for test files without training files.
    """
    files = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    train = [file for file in files if file.name.startswith("train")]
    tests = ([file for file in files if file.name.startswith(prefix)] for prefix in TEST_NAMES)
    test = next((found for found in tests if found), [])
    if test and not train:
        raise ValueError(f"{test[0].parent} has test files ({test[0].name}) but no train*.parquet")
    return train or files, test


def parquet_source(train: Sequence[Path], test: Sequence[Path], name: str, split: Split) -> Source:
    """The images of Parquet files; without test files, a tenth of the training rows is held out (`hold_out`).

    Raises, when read, OSError for files that cannot be opened or read; ValueError for damaged files, unexpected
    columns, labels that `class_numbers` refuses, and labels that only the test files have.
    """
    chosen = test if test and split == "test" else train

    def read() -> Raw:
        count = sum(map(_rows, chosen))
        labels, class_names = _labels(chosen, train, count)
        rows = np.arange(count) if test else hold_out([str(i) for i in range(count)], split, str(chosen[0]))
        return Raw(_Rows(chosen, rows), len(rows), None if labels is None else labels[rows], class_names)

    return Source(f"{printable(name)}/{split}", tuple(dict.fromkeys([*train, *chosen])), read)


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    """The file, while it is read: see `reading` for errors."""
    check_regular(file)
    with (
        reading(file, "Parquet"),
        pa.OSFile(os.fsencode(file)) as content,  # as bytes: a name may be no UTF-8
        pq.ParquetFile(content, page_checksum_verification=True) as parquet,
    ):
        yield parquet


def _rows(file: Path) -> int:
    """The number of rows, which the file only claims: no image takes less than a byte."""
    with _opened(file) as parquet:
        rows = parquet.metadata.num_rows
        if not 0 <= rows <= file.stat().st_size:
            raise ValueError(f"it claims {rows:,} rows in {file.stat().st_size:,} bytes")
        return rows


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some rows of all files together, ascending. Groups of rows that hold none of them are not read."""

    files: Sequence[Path]
    rows: np.ndarray

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        wanted, offset = set(self.rows.tolist()), 0
        for file in self.files:
            for first, batch in self._batches(file, offset):
                for i, value in enumerate(batch.column(0), first):
                    if i in wanted:
                        yield f"{printable(file.name)}[{i - offset}]", _encoded(value.as_py())
            offset += _rows(file)

    def __getitem__(self, part: slice, /) -> _Rows:
        return _Rows(self.files, self.rows[part])

    def _batches(self, file: Path, offset: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches with the number of their first row; the file's own first is `offset`."""
        with _opened(file) as parquet:
            column = _image_column(parquet.schema_arrow, file)
            for group in range(parquet.num_row_groups):
                first, offset = offset, offset + parquet.metadata.row_group(group).num_rows
                if np.searchsorted(self.rows, first) == np.searchsorted(self.rows, offset):
                    continue
                for batch in parquet.iter_batches(batch_size=256, row_groups=[group], columns=[column]):
                    yield first, batch
                    first += batch.num_rows


def _encoded(value: bytes | dict[str, bytes | None] | None) -> bytes:
    """Missing bytes become an empty file, which `decode` refuses like any other bad image."""
    return (value.get("bytes") if isinstance(value, dict) else value) or b""


def _image_column(schema: pa.Schema, file: Path) -> str:
    """The column of encoded bytes, or the field of the struct that has them: nothing else of it is read."""
    for name in IMAGE_COLUMNS:
        if name in schema.names:
            kind, path = schema.types[schema.names.index(name)], name
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                kind, path = kind.field("bytes").type, f"{name}.bytes"
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return path
            raise ValueError(f"column {name} of {file} is {kind}; expected a struct with bytes, or binary")
    raise ValueError(f"{file} has the columns {', '.join(schema.names)}; expected {' or '.join(IMAGE_COLUMNS)}")


def _labels(files: Sequence[Path], train: Sequence[Path], count: int) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """(count,) labels of `files`; the classes are those of the training files."""
    with _opened(train[0]) as parquet:
        schema = parquet.schema_arrow
    if "label" not in schema.names:
        return None, ()
    values, reference = _column(files), _column(train)
    if pa.types.is_integer(reference.type) and pa.types.is_integer(values.type):
        declared = _declared_names(schema, train[0])
        known = reference.to_numpy()
        return class_numbers(values.to_numpy(), str(files[0]), count, reference=known, class_names=declared)
    with reading(files[0], "Parquet"):
        words, known = values.to_pylist(), set(reference.to_pylist())
    numbers = {name: i for i, name in enumerate(sorted(known))}
    unknown = sorted(set(words) - known)
    if unknown:
        raise ValueError(f"labels {unknown[:5]} of {files[0]} do not occur in the training files")
    labels = np.array([numbers[word] for word in words], np.int64)
    return class_numbers(labels, str(files[0]), count, class_names=tuple(numbers))


def _column(files: Sequence[Path]) -> pa.ChunkedArray:
    """The labels of all files: integers or strings, none missing."""
    columns = []
    for file in files:
        with _opened(file) as parquet:
            column = parquet.read(columns=["label"]).column("label")
            text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            if column.null_count or not (text or pa.types.is_integer(column.type)):
                raise ValueError(
                    f"column label of {file} is {column.type} with {column.null_count} nulls; expected integers or "
                    "strings"
                )
            columns.append(column)
    with reading(files[0], "Parquet (with its sister files)"):
        return pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type)


def _declared_names(schema: pa.Schema, file: Path) -> tuple[str, ...]:
    """Class names of a ClassLabel column; empty if the schema declares none."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    with reading(file, "Parquet: the huggingface metadata of its schema are not as expected"):
        names = json.loads(text).get("info", {}).get("features", {}).get("label", {}).get("names") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"names of label are {str(names)[:80]}, no list of strings")
        return tuple(names)
