"""Checks of HDF5, NetCDF and zarr files before a library reads them: what they may hold, and whether it is all there.

Such files can name other files of the machine, and the code that decodes them. So metadata are read first, and refused
where they name anything but numbers in the file itself, written by codecs of a list:

    HDF5, NetCDF   no external storage, external links or virtual datasets, no filters that are loaded as plugins
    zarr           no links, pipes or devices; no codec but those of `NUMBERS` and `CODECS_3`; no objects but texts

Pieces that were never written read as zeros: `missing_of_hdf5` and `missing_of_zarr` count them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualrate.data.source import reading
from dualrate.system.files import MEMORY, check_regular, parse_json, read_bytes

MOST = 2**24  # trajectories of a file, and numbers of a coordinate
SHARE = 8  # a frame, a chunk or an array that is read whole takes no more than such a part of this machine's memory
EXTRA = 'pip install "dualrate[forecast]"'


@contextmanager
def with_extra() -> Iterator[None]:
    """Says of a package that is missing that the extra `forecast` has it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"HDF5, NetCDF and zarr want the extra `forecast` ({error}): {EXTRA}") from error


# HDF5 and NetCDF

FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}


def check_hdf5(path: Path) -> None:
    """Raises ValueError for HDF5 that names other files or filters of plugins; nothing that it names is opened.

    Raises OSError, too, for what is no HDF5.
    """
    import h5py

    check_regular(path)
    with h5py.File(path, "r") as file:
        groups: list[Any] = [file]
        seen: set[Any] = {file["/"]}
        while groups:
            group = groups.pop()
            links = {name: group.get(name, getlink=True) for name in group}  # through none of them
            for name, link in links.items():
                if isinstance(link, h5py.ExternalLink):
                    raise ValueError(f"{path}: {group.name}/{name} is a link to another file: copy what it leads to")
                if "/" in name:
                    raise ValueError(f"{path}: a member of {group.name} is called {name!r}, which is a path")
            for data in (group[name] for name, link in links.items() if isinstance(link, h5py.HardLink)):
                if isinstance(data, h5py.Dataset):
                    _check_dataset(path, data)
                elif isinstance(data, h5py.Group) and data not in seen:
                    seen.add(data)
                    groups.append(data)


def _check_dataset(path: Path, dataset: Any) -> None:
    import h5py

    place, properties = f"{path}: {dataset.name}", dataset.id.get_create_plist()
    if properties.get_external_count():
        raise ValueError(f"{place} keeps its numbers in another file: write them into this one (h5repack)")
    if properties.get_layout() == h5py.h5d.VIRTUAL:
        raise ValueError(f"{place} is a virtual dataset, whose numbers are elsewhere: write them into it")
    for i in range(properties.get_nfilters()):
        if (code := properties.get_filter(i)[0]) not in FILTERS:
            raise ValueError(
                f"{place} is written by filter {code}, a plugin; expected {', '.join(FILTERS.values())}: write it by "
                "one of these (h5repack -f GZIP=4)"
            )


def check_netcdf(path: Path) -> None:
    """Check as `check_hdf5`, and that no coordinate, all of which xarray reads, claims more numbers than `MOST`."""
    import h5py

    check_hdf5(path)
    with h5py.File(path, "r") as file:
        for name, data in file.items():
            if isinstance(data, h5py.Dataset) and len(data.shape or ()) == 1:
                check_claim(f"{path}: {name}", data.shape[0], "numbers along one axis")


def is_classic(path: Path) -> bool:
    """Whether a file is NetCDF 3. Raises ValueError for the kind with data of 64 bits, which scipy cannot read."""
    check_regular(path)
    with path.open("rb") as opened:
        begin = opened.read(4)
    if begin == b"CDF\x05":
        raise ValueError(f"{path} is NetCDF 3 with data of 64 bits: make it NetCDF 4 (nccopy -k nc4 OLD.nc NEW.nc)")
    return begin[:3] == b"CDF"


def check_claim(place: str | Path, count: int, what: str) -> None:
    """Raises ValueError for more trajectories, or numbers along an axis (`what`), than any file holds."""
    if count > MOST:
        raise ValueError(f"{place} claims {count:,} {what}; at most {MOST:,} are read")


def array_of(path: Path, group: Any, name: str) -> Any:
    """The dataset of this name, of h5py. Raises ValueError for what is no array."""
    import h5py

    data = group.get(name)
    if not isinstance(data, h5py.Dataset) or data.shape is None:
        raise ValueError(f"{path}: {group.name}/{name} is no array")
    return data


def missing_of_hdf5(dataset: Any) -> tuple[int, int]:
    """The number of pieces of a dataset of h5py that were never written, and of all."""
    if dataset.chunks:
        pieces = math.prod(_pieces(dataset.shape, dataset.chunks))
        return pieces - min(pieces, dataset.id.get_num_chunks()), pieces
    return int(dataset.id.get_storage_size() < dataset.size * dataset.id.get_type().get_size()), 1


def _pieces(shape: tuple[int, ...] | list[int], chunk: tuple[int, ...] | list[int]) -> list[int]:
    """The number of chunks along each axis."""
    return [-(-length // part) for length, part in zip(shape, chunk, strict=True)]


def check_written(place: str, missing: int, pieces: int, zarr: bool = False) -> None:
    """Raises ValueError where pieces are missing. zarr: whether zarr, which may leave them out, wrote them"""
    if missing:
        raise ValueError(
            f"{place}: {missing:,} of {pieces:,} piece(s) (chunks) are not there, and would be read as its fill value: "
            "fetch or write them again; if they are meant, write them out" + " (write_empty_chunks=True)" * zarr
        )


def whole_of(path: Path, group: Any, name: str) -> NDArray[Any]:
    """All numbers of a dataset of h5py. Raises ValueError for no array, missing pieces, and more than memory holds."""
    dataset = array_of(path, group, name)
    check_written(f"{path}: {dataset.name}", *missing_of_hdf5(dataset))
    check_size(f"{path}: {dataset.name}", dataset.size * dataset.dtype.itemsize)
    return np.asarray(dataset[()])


def check_size(place: str, size: int) -> None:
    """Raises ValueError for something to be read at once that takes too much of the memory."""
    if size > MEMORY // SHARE:
        raise ValueError(
            f"{place} takes {size:,} bytes at once; the most on this machine, of {MEMORY:,} bytes of memory, is "
            f"{MEMORY // SHARE:,}"
        )


# Zarr

V3 = "zarr.json"
METADATA = (V3, ".zarray", ".zgroup", ".zattrs", ".zmetadata")
MOST_METADATA = 2**24  # bytes of one of these
NUMBERS = {"blosc", "zlib", "gzip", "bz2", "lzma", "zstd", "lz4", "shuffle", "delta", "fixedscaleoffset", "quantize"}
NUMBERS |= {"bitround", "packbits", "astype", "crc32", "crc32c", "adler32", "fletcher32"}
TEXT = "vlen-utf8"
CODECS_3 = {"bytes", "transpose", "blosc", "gzip", "zstd", "crc32c", TEXT} | {f"numcodecs.{name}" for name in NUMBERS}
SHARDED = "sharding_indexed"
DTYPE = re.compile(r"[<>|=]?[biufcmMSU][0-9]{1,9}(\[[0-9]*[a-zA-Z]{1,2}\])?")
NUMERIC = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128)")
DTYPES_3 = {"string", "fixed_length_utf32", "null_terminated_bytes", "numpy.datetime64", "numpy.timedelta64"}
OF_TEXT = 16  # bytes of one, about
ABSENT_PIECE = 2**64 - 1  # offset and size in a shard's index


def check_zarr(path: Path) -> None:
    """Raises ValueError for a zarr store that names code, or leads out of its folder, and for what is no store.

    All metadata are read, of both formats, consolidated or not, of every group.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is no folder, which a zarr store is: unpack it")
    if "::" in str(path):  # zarr takes it for the address of something that fsspec fetches
        raise ValueError(f"{path} has :: in its name: rename it")
    folders = [path]
    while folders:
        folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise ValueError(f"{entry.path} is a link: copy what it leads to into the store")
                if entry.is_dir():
                    folders.append(Path(entry.path))
                elif not entry.is_file():
                    check_regular(Path(entry.path))
        names = [name for name in METADATA if (folder / name).exists()]
        if V3 in names and len(names) > 1:
            raise ValueError(f"{folder} has metadata of zarr formats 2 and 3 ({', '.join(names)}): keep one kind")
        for name in names:
            with reading(folder / name, "metadata of zarr"):
                for place, array in _arrays_of(name, _metadata(folder / name)):
                    check = _check_v3 if name == V3 else _check_v2
                    check(f"{folder / name}{place}", array)


def open_members(path: Path) -> None:
    """Open the arrays and groups of a zarr store one by one, so that an error names its place.

    xarray opens them at once, and where two fail, asyncio says the second one in a traceback of its own.
    """
    import zarr

    for child in sorted(path.iterdir()):
        if any((child / name).exists() for name in METADATA):
            with reading(child, "zarr"):
                zarr.open(str(child), mode="r")


def _metadata(file: Path) -> dict[str, Any]:
    metadata = parse_json(read_bytes(file, MOST_METADATA), str(file))
    if not isinstance(metadata, dict):
        raise ValueError(f"{file} holds no JSON object, as metadata of zarr are")
    return metadata


def _arrays_of(name: str, metadata: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Metadata of arrays in a file of this name, and where in it they stand."""
    if name == ".zarray" or (name == V3 and metadata.get("node_type") != "group"):
        yield "", metadata
    elif name in (V3, ".zmetadata"):
        inside = metadata if name == ".zmetadata" else metadata.get("consolidated_metadata") or {}
        for key, entry in dict(inside.get("metadata") or {}).items():
            inner = ".zarray" if str(key).endswith(".zarray") else name if name == V3 else ""
            if inner:
                yield from ((f": {key}{place}", array) for place, array in _arrays_of(inner, entry))


def _check_v2(place: str, array: Mapping[str, Any]) -> None:
    dtype, compressor = array.get("dtype"), array.get("compressor")
    names = [codec.get("id") for codec in array.get("filters") or []]
    text = dtype == "|O" and names[:1] == [TEXT]
    _check_names(place, names[text:] + ([] if compressor is None else [compressor.get("id")]), NUMBERS)
    if not text and not (isinstance(dtype, str) and DTYPE.fullmatch(dtype)):
        raise ValueError(f"{place} has the dtype {dtype!r}; expected numbers, dates or texts, no objects")
    _check_shape(place, array["shape"], array["chunks"], OF_TEXT if text else np.dtype(dtype).itemsize)


def _check_v3(place: str, array: Mapping[str, Any]) -> None:
    kind = array.get("data_type")
    ((name, more),) = _named([kind])
    if not isinstance(name, str) or not (NUMERIC.fullmatch(name) or name in DTYPES_3):
        raise ValueError(f"{place} has the data type {name!r}; expected numbers, dates or texts")
    itemsize = np.dtype(name).itemsize if NUMERIC.fullmatch(name) else more.get("length_bytes", OF_TEXT)
    chunk, codecs = _chunk_of(place, array), _named(array["codecs"])
    names = [codec for codec, _ in codecs]
    _check_names(place, names, CODECS_3 | {SHARDED})
    if SHARDED in names:
        if len(codecs) > 1:
            raise ValueError(f"{place}: {SHARDED} stands beside other codecs; expected it alone")
        inner = codecs[0][1]
        _check_names(place, [codec for codec, _ in _named(inner["codecs"])], CODECS_3)
        _check_names(place, [codec for codec, _ in _named(inner["index_codecs"])], {"bytes", "crc32c"})
        if len(part := inner["chunk_shape"]) != len(chunk) or any(a % b for a, b in zip(chunk, part, strict=True)):
            raise ValueError(f"{place}: shards of {chunk} do not divide into chunks of {part}")
        chunk = part
    _check_shape(place, array["shape"], chunk, itemsize)


def _chunk_of(place: str, array: Mapping[str, Any]) -> list[int]:
    grid = array["chunk_grid"]
    if grid.get("name") != "regular":
        raise ValueError(f"{place} has chunks on the grid {grid.get('name')!r}; expected regular")
    return grid["configuration"]["chunk_shape"]


def _named(listed: Any) -> list[tuple[Any, Mapping[str, Any]]]:
    """Name and configuration of each codec or other entry of metadata."""
    return [
        (entry, {}) if isinstance(entry, str) else (entry["name"], entry.get("configuration") or {}) for entry in listed
    ]


def _check_names(place: str, names: list[Any], allowed: set[str]) -> None:
    for name in names:
        if not isinstance(name, str) or name not in allowed:
            raise ValueError(
                f"{place} names the codec {name!r}, and a codec is code that runs; expected one of "
                f"{', '.join(sorted(allowed))}"
            )


def _check_shape(place: str, shape: list[int], chunk: list[int], itemsize: int) -> None:
    if len(shape) != len(chunk) or not all(
        type(size) is int and size >= least
        for size, least in [*((size, 0) for size in shape), *((size, 1) for size in chunk)]
    ):
        raise ValueError(f"{place} has the shape {shape} and chunks of {chunk}; expected as many whole numbers")
    if len(shape) == 1:
        check_claim(place, shape[0], "numbers along one axis")
    check_size(f"{place}: a chunk {chunk}", math.prod(chunk) * itemsize)


def missing_of_zarr(folder: Path) -> tuple[int, int]:
    """The number of chunks of an array in this folder that are not there, and of all; of shards the chunks in them."""
    sharded: Mapping[str, Any] = {}
    if (folder / V3).exists():
        array = _metadata(folder / V3)
        chunk = _chunk_of(str(folder), array)
        ((encoding, more),) = _named([array["chunk_key_encoding"]])
        start = "c" if encoding == "default" else ""
        between = more.get("separator", "/" if start else ".")
        first, more = _named(array["codecs"])[0]
        sharded = more if first == SHARDED else {}
    else:
        array, start = _metadata(folder / ".zarray"), ""
        chunk, between = array["chunks"], array.get("dimension_separator") or "."
    shape = array["shape"]
    grid = _pieces(shape, chunk)
    pieces = math.prod(_pieces(shape, sharded.get("chunk_shape", chunk)))
    key = re.escape(between).join([start] * bool(start) + ["([0-9]+)"] * len(grid)) or "0"
    present = 0
    for inside, _, names in os.walk(folder):
        for name in names:
            file = Path(inside) / name
            if not (match := re.fullmatch(key, file.relative_to(folder).as_posix())):
                continue
            at = [int(number) for number in match.groups()]
            if all(i < n and str(i) == digits for i, n, digits in zip(at, grid, match.groups(), strict=True)):
                present += _in_shard(file, shape, chunk, at, sharded) if sharded else 1
    return pieces - present, pieces


def _in_shard(file: Path, shape: list[int], shard: list[int], at: list[int], sharded: Mapping[str, Any]) -> int:
    """The number of chunks that a shard holds, of those that lie in the array."""
    part = sharded["chunk_shape"]
    inner = _pieces(shard, part)
    codecs = dict(_named(sharded["index_codecs"]))
    size = math.prod(inner) * 16
    length = size + 4 * ("crc32c" in codecs)
    if file.stat().st_size < length:
        raise ValueError(f"{file} has {file.stat().st_size:,} bytes, fewer than the index of a shard: fetch it again")
    with file.open("rb") as opened:
        if sharded.get("index_location", "end") == "end":
            opened.seek(-length, os.SEEK_END)
        order = ">" if codecs.get("bytes", {}).get("endian") == "big" else "<"
        index = np.frombuffer(opened.read(size), f"{order}u8").reshape(*inner, 2)
    within = _pieces([min(s, n - i * s) for s, n, i in zip(shard, shape, at, strict=True)], part)
    return int((index[tuple(slice(n) for n in within)] != ABSENT_PIECE).any(-1).sum())
