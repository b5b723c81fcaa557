"""Arrays of a NumPy archive (.npz) of unknown origin: what a member claims is checked before any memory is taken."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import numpy as np

from dualrate.data.untrusted import reading
from dualrate.machine.files import check_regular

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(path: Path, wanted: Callable[[list[str]], Iterable[str]], kind: str = ".npz") -> dict[str, np.ndarray]:
    """Some arrays of a .npz file; nothing is ever unpickled.

    wanted: the names to read, given those that there are
    kind:   what the file should be, for the error
    Raises OSError for a file that cannot be opened or read; ValueError, naming the file, for one that is no archive
    or damaged, and for an array that holds objects, is not as large as it claims, or is larger than all memory.
    """
    check_regular(path)
    with reading(path, kind), open(path, "rb") as file:
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            raise ValueError("it is a single array (.npy), not an archive, which numpy.savez makes")
        with zipfile.ZipFile(file) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            return {name: _array(archive, members[name], name) for name in wanted(list(members))}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> np.ndarray:
    with archive.open(member) as stream:
        _check_header(stream, member.file_size, name)
    with archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read(1)  # the archive compares its checksum when it meets the end
    return array


def _check_header(stream: IO[bytes], there: int, name: str) -> None:
    """`there`: bytes of the member, header included."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"array {name} is of .npy version {version}; expected one of {', '.join(map(str, _HEADERS))}")
    shape, _, dtype = _HEADERS[version](stream)
    if dtype.hasobject:
        raise ValueError(f"array {name} holds Python objects, which are never unpickled")
    claimed, there = math.prod(shape) * dtype.itemsize, there - stream.tell()
    if min(shape, default=0) < 0 or claimed != there:
        raise ValueError(f"array {name} claims {dtype} {shape}, {claimed:,} bytes; it has {there:,}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if claimed > memory:
        raise ValueError(f"array {name} takes {claimed:,} bytes; this machine has {memory:,} bytes of memory")
