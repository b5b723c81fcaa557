"""Images in Parquet files, in the layout of Hugging Face `datasets`.

Column `image` or `img`: a struct with `bytes`, or the encoded bytes themselves. Column `label`, optional: integers or
strings. Class names come from the schema's `huggingface` metadata (ClassLabel), else from the values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualrate.data.source import Raw, Source, Split, hold_out

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

    Raises ValueError, when read, for unreadable files, unexpected columns, and labels that only the test files have.
    """
    chosen = test if test and split == "test" else train

    def read() -> Raw:
        labels, class_names = _labels(chosen, train)
        count = sum(_opened(file).metadata.num_rows for file in chosen)
        rows = np.arange(count) if test else hold_out([str(i) for i in range(count)], split)
        return Raw(_items(chosen, rows), len(rows), None if labels is None else labels[rows], class_names)

    return Source(f"{name}/{split}", tuple(dict.fromkeys([*train, *chosen])), read)


def _opened(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} cannot be read as Parquet: {error}") from error


def _items(files: Sequence[Path], rows: np.ndarray) -> Iterator[tuple[str, bytes]]:
    wanted, offset = set(rows.tolist()), 0
    for file in files:
        for batch in _batches(file):
            for i, value in enumerate(batch.column(0)):
                if offset + i in wanted:
                    yield f"{file.name}[{offset + i}]", _encoded(value.as_py())
            offset += batch.num_rows


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    with _opened(file) as parquet:
        column = _image_column(parquet.schema_arrow, file)
        try:
            yield from parquet.iter_batches(batch_size=256, columns=[column])
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file} cannot be read as Parquet: {error}") from error


def _encoded(value: bytes | dict[str, bytes | None] | None) -> bytes:
    """Missing bytes become an empty file, which `decode` refuses like any other bad image."""
    return (value.get("bytes") if isinstance(value, dict) else value) or b""


def _image_column(schema: pa.Schema, file: Path) -> str:
    for name in IMAGE_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                kind = kind.field("bytes").type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name
            raise ValueError(f"column {name} of {file} is {kind}; expected a struct with bytes, or binary")
    raise ValueError(f"{file} has the columns {', '.join(schema.names)}; expected {' or '.join(IMAGE_COLUMNS)}")


def _labels(files: Sequence[Path], train: Sequence[Path]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels of `files`; the classes are those of the training files."""
    if "label" not in _opened(train[0]).schema_arrow.names:
        return None, ()
    values, reference = _column(files), _column(train)
    if reference.dtype.kind in "iu":
        declared = _declared_names(_opened(train[0]).schema_arrow)
        return values.astype(np.int64), declared or tuple(str(i) for i in range(int(reference.max(initial=-1)) + 1))
    names = sorted(set(reference.tolist()))
    unknown = sorted(set(values.tolist()) - set(names))
    if unknown:
        raise ValueError(f"labels {unknown[:5]} of {files[0]} do not occur in the training files")
    return np.searchsorted(np.array(names), values).astype(np.int64), tuple(names)


def _column(files: Sequence[Path]) -> np.ndarray:
    try:
        tables = [pq.read_table(file, columns=["label"]) for file in files]
        column = pa.concat_tables([table.replace_schema_metadata() for table in tables]).column("label")
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise ValueError(f"column label of {files[0]} (and its sister files) cannot be read: {error}") from error
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if column.null_count or not (text or pa.types.is_integer(column.type)):
        raise ValueError(
            f"column label of {files[0]} is {column.type} with {column.null_count} nulls; expected integers or strings"
        )
    return column.to_numpy().astype(str) if text else column.to_numpy()


def _declared_names(schema: pa.Schema) -> tuple[str, ...]:
    """Class names of a ClassLabel column; empty if the schema declares none."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        label = json.loads(text).get("info", {}).get("features", {}).get("label", {})
        return tuple(str(name) for name in label.get("names", ()))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"the huggingface metadata of the Parquet schema is not the expected JSON: {error}") from error
