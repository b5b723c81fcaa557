"""Files that are written whole or not at all, and read back with errors that say which file it was and what it lacks.

Two kinds of trouble are separate everywhere. Content that is not what it should be is a ValueError, or what its reader
makes of it. A system that does not give the content (no permission, a failing disk, too many open files) is an OSError.
That is no evidence about the content: nothing is thrown away, set aside or called damaged for it.
"""

from __future__ import annotations

import errno
import io
import json
import mmap
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

try:
    import fcntl
except ModuleNotFoundError:  # on Windows
    fcntl = None

ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)  # no such file
MOST_HEADER = 10**8  # bytes; the library's own limit
MOST_JSON = 2**28  # bytes
CHUNK = 2**20  # bytes of zeros that are written at once
FOLDERS_OPEN = bool(getattr(os, "O_DIRECTORY", 0))  # not on Windows, which syncs only what is open for writing
try:
    MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # bytes of this machine
except (AttributeError, ValueError):  # not every system says
    MEMORY = sys.maxsize
for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # of a container
    with suppress(OSError, ValueError):
        MEMORY = min(MEMORY, int(Path(limit).read_text()))


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """An OSError from within names the file, as one from `open` does; those of writing, reading and syncing do not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        elif type(error) is OSError and error.errno is None and str(path) not in str(error):
            raise OSError(f"{path}: {error}") from error
        raise


@contextmanager
def blaming(path: Path | str) -> Iterator[None]:
    """Around code that goes by what a file says, and may be led anywhere by it: every error is one line that names it.

    An OSError stays, and so does a lack of memory; anything else becomes a ValueError.
    """
    try:
        yield
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        text = shown(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {shown(error)}"
        raise ValueError(f"{path}: {text}") from error


def shown(value: object, most: int = 500) -> str:
    """A value in one line of a message, cut where it is long."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[:most]} ..."


def check_regular(path: Path, limit: int | None = None) -> None:
    """Raise OSError if there is no such file; ValueError for a directory, pipe, socket or device, all of which may
    block or never end, and for a file of more than `limit` bytes."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"{path} is {kinds.get(stat.S_IFMT(status.st_mode), 'a device')}; expected a file")
    if limit is not None and status.st_size > limit:
        raise ValueError(f"{path} has more than {limit:,} bytes, the most that is accepted here")


def check_room(folder: Path, needed: int, way: str) -> None:
    """Raises OSError where the disk of a folder has no room for so many bytes. way: out of it"""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} is to hold {needed:,} bytes more, and {free:,} are free there: make room for "
            f"{needed - free:,}, or {way}"
        )


def when_seen(path: Path, seconds: float) -> Path:
    """The path, once what another process wrote there is seen here, which takes a network's disk some seconds.

    seconds: to wait at most
    """
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    return path


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """The content of a file; an OSError that names it.

    Raises ValueError as `check_regular`. limit: None: this machine's memory
    """
    with naming(path):
        check_regular(path, MEMORY if limit is None else limit)
        return path.read_bytes()


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises ValueError, naming it, for anything else, and for more than MOST_JSON bytes."""
    return parse_json(read_bytes(path, MOST_JSON), str(path))


def parse_json(content: bytes | bytearray, where: str) -> Any:
    """The value of some JSON. Raises ValueError that says where it is from, also for an object with a key twice."""
    try:
        return json.loads(content, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"the key {key!r} stands there twice")
        members[key] = value
    return members


def read_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(place, object) of every line of a file of JSON lines, the place for messages; none if there is no such file.

    A last line without an end is what a kill in the middle of writing leaves: it is left out.
    Raises ValueError, naming file and line, for any other line that is no object.
    """
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(read_bytes(path).split(b"\n")[:-1], 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                record = parse_json(line, where)
            except ValueError as error:
                raise ValueError(f"{error}; remove that line") from error
            if not isinstance(record, dict):
                raise ValueError(f"{where} is no JSON object; remove that line")
            records.append((where, record))
    return records


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line to a file of JSON lines, made if it is missing. A last line that a kill cut off goes first."""
    with naming(path), path.open("a+b") as file:
        if size := os.fstat(file.fileno()).st_size:
            file.seek(0)
            file.truncate(file.read(size).rfind(b"\n") + 1)
        file.write(json.dumps(record).encode() + b"\n")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file written whole or not at all: yields the place beside it to write, which is synced and renamed at the end.

    If the block fails, or the process is killed, the file is what it was; what a kill leaves is written over next time.
    """
    usual, spare = (path.with_name(f"{path.name}.{mark}.partial") for mark in ("0" * 8, secrets.token_hex(4)))
    if not path.parent.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder: make it first", str(path.parent))
    holding = locked(usual, os.O_RDWR | os.O_CREAT)  # another process may be writing there now
    with naming(path), holding as is_ours, _renamed(usual if is_ours else spare, path) as aside:
        yield aside
        sync(aside)


@contextmanager
def _renamed(aside: Path | str, path: Path) -> Iterator[Any]:
    """Yields the first, which is renamed to the second at the end, or removed if the block fails."""
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(aside)
        raise


@contextmanager
def locked(path: Path, flags: int = os.O_RDONLY) -> Iterator[bool]:
    """Holds a file or folder, which the kernel lets go when the process dies; yields whether it is this process that
    holds it: not another one, and not where the system has no such locks.

    flags: of opening it
    """
    if fcntl is None:
        yield False
        return
    descriptor = os.open(path, flags, 0o666)
    try:
        yield _lock(descriptor, path)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    """Whether this process now holds the lock of an open file, and the path still leads there."""
    assert fcntl is not None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def reserve(file: IO[bytes], start: int, stop: int) -> None:
    """Gives these bytes of an open file, of which none is written yet, their place on the disk.

    Raises OSError where there is no room.
    """
    try:
        os.posix_fallocate(file.fileno(), start, stop - start)
    except (AttributeError, OSError) as error:  # macOS and Windows have no such call, some file systems refuse it
        if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        file.seek(start)
        for done in range(start, stop, CHUNK):
            file.write(bytes(min(CHUNK, stop - done)))


def forget(array: Any) -> None:
    """Drop from memory what was read of a file by a map of it, which reads it anew; of other arrays nothing."""
    pages, unneeded = getattr(array, "_mmap", None), getattr(mmap, "MADV_DONTNEED", None)  # Windows has none
    if pages is not None and unneeded is not None:
        pages.madvise(unneeded)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all; text in UTF-8."""
    with whole(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_unsynced(path: Path, content: bytes) -> None:
    """Write one of thousands of files, in a folder that this process holds (`locked`): whole or not at all, but a loss
    of power may cut it, so its reader looks whether it is whole."""
    aside = f"{path}.{'0' * 8 if fcntl else secrets.token_hex(4)}.partial"
    with naming(path), _renamed(aside, path), open(aside, "wb") as file:
        file.write(content)


def written_aside(name: str) -> str | None:
    """The name of the file that was to become of one that `whole` writes under this name; None for all others."""
    match = re.fullmatch(r"(.+)\.[0-9a-f]{8}\.partial", name)
    return match and match[1]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file that is for everyone the umask lets read it; the library's own is for its owner alone."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        safetensors.torch.save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    path.chmod(mode)


def read_header(file: IO[bytes]) -> dict[str, Any]:
    """The header of a safetensors file, from its beginning. Raises ValueError for none, and for a name twice in it.

    The library takes the last of two tensors of a name.
    """
    size = int.from_bytes(file.read(8), "little")
    header = parse_json(file.read(size), "its header") if size <= MOST_HEADER else None
    if not isinstance(header, dict):
        raise ValueError(f"no safetensors file: a header of {size} bytes")
    return header


def tensors_of(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file's content. Raises ValueError for another content."""
    read_header(io.BytesIO(content))
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise ValueError(f"no safetensors file: {error}") from error


def check_dtypes(tensors: Mapping[str, Tensor], expected: Mapping[str, torch.dtype]) -> None:
    """Raises ValueError, which names the first, for tensors of other dtypes than these, which would be cast.

    Weights are held in float32 and written in bfloat16, so either may stand for the other.
    """
    for name, tensor in tensors.items():
        pair = {tensor.dtype, expected.get(name, tensor.dtype)}
        if len(pair) > 1 and pair != {torch.float32, torch.bfloat16}:
            raise ValueError(f"{name} is of {tensor.dtype}, expected {expected[name]}: fetch the file again")


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file, of which single tensors can be read.

    Raises ValueError for another content; OSError if the system does not give it, which the library calls missing.
    """
    with naming(path):
        check_regular(path)
        try:
            with path.open("rb"), safetensors.safe_open(path, framework="pt") as file:
                yield file
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from error


def sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk; not for a folder where none can be opened."""
    if not FOLDERS_OPEN and path.is_dir():
        return
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY if FOLDERS_OPEN else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def holders(folder: Path, name: str) -> list[Path]:
    """The folders in `folder` that hold a file of this name, sorted; none where it is no folder."""
    return sorted(path.parent for path in folder.glob(f"*/{name}") if path.is_file())
