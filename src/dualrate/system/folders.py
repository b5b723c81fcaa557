"""Folders that are whole or absent, and manifests by which their content is checked before anything is used.

    FOLDER/MANIFEST.json   size and sha256 of files beside it

Reading: `Manifest.opened` hashes the bytes as they are read, so those that are used are those that were checked,
whatever happens to the file meanwhile.

Writing: into `.tmp-*` beside the folder, every file and the directory synced, renamed, the parent synced. A crash at
any point leaves what was there before or the new folder. What a killed process leaves aside, the next writer removes.
"""

from __future__ import annotations

import ctypes
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from dualrate.system.files import ABSENT, MEMORY, check_regular, naming, read_json, sync, write_whole

MANIFEST = "MANIFEST.json"
CHUNK = 2**20  # bytes that are read at once: few enough to be hashed in the processor's cache


class Damaged(OSError):
    """Content that is not what its manifest says."""


@dataclass(frozen=True)
class Manifest:
    """What some files of a folder must be. entries: name -> size and sha256 (hex)."""

    folder: Path
    entries: Mapping[str, tuple[int, str]]

    @staticmethod
    def write(folder: Path, names: Collection[str]) -> None:
        """The manifest of these files, as they are."""
        entries = {name: _entry(folder / name) for name in sorted(names)}
        write_whole(folder / MANIFEST, json.dumps({"files": entries}, separators=(",", ":")))

    @staticmethod
    def read(folder: Path, required: Collection[str]) -> Manifest | None:
        """The manifest of a folder, None if there is none. Raises Damaged unless it lists what is required."""
        file = folder / MANIFEST
        try:
            listed = read_json(file)["files"]
            entries = {name: (entry["size"], entry["sha256"]) for name, entry in listed.items()}
        except OSError as error:
            if error.errno in ABSENT:
                return None
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{file}: no readable manifest ({error})") from error
        if missing := [name for name in required if name not in entries]:
            raise Damaged(f"{file}: does not list {missing[0]}")
        if odd := [name for name in entries if Path(name).name != name]:
            raise Damaged(f"{file}: {odd} are not plain file names")
        return Manifest(folder, entries)

    def content(self, name: str, limit: int = MEMORY) -> bytes:
        """A file's content, once it is what the manifest says. Raises Damaged, naming it, otherwise.

        limit: bytes that it may have
        """
        with self.opened(name, limit) as file:
            content = bytearray(file.left)
            file.fill(content)
        return bytes(content)

    @contextmanager
    def opened(self, name: str, limit: int | None = None) -> Iterator[Hashed]:
        """A file to be read once. What was made of it may be used when the block has ended: then it is checked.

        limit: bytes that it may have
        Raises Damaged, naming the file, unless its content is what the manifest says, whatever ValueError came of it.
        """
        file, (size, expected) = self.folder / name, self.entries[name]
        damaged = Damaged(f"{file}: its content is not what the manifest says")
        try:
            check_regular(file, limit)
            with naming(file), file.open("rb", buffering=0) as opened:
                if os.fstat(opened.fileno()).st_size != size:
                    raise damaged
                content, problem = Hashed(opened, size), None
                try:
                    yield content
                except ValueError as error:
                    problem = error
                content.finish()
        except ValueError as error:
            raise Damaged(f"{file!r}: no file that can be read ({error})") from error
        except OSError as error:
            if error.errno in ABSENT:
                raise Damaged(f"{file}: {error.strerror}") from error
            raise
        if content.left or content.digest.hexdigest() != expected:
            raise damaged from problem
        if problem is not None:
            raise problem


class Hashed:
    """A file of `left` more bytes that is hashed as it is read. Raises ValueError where it ends before them."""

    def __init__(self, file: FileIO, size: int) -> None:
        self.file, self.left, self.digest = file, size, hashlib.sha256()

    def fill(self, buffer: bytearray | memoryview) -> None:
        """Read as many bytes as the buffer has."""
        view = memoryview(buffer)
        while view:
            count = self.file.readinto(view[:CHUNK])
            if not count:
                raise ValueError("the file ends too early")
            self.digest.update(view[:count])
            self.left -= count
            view = view[count:]

    def finish(self) -> None:
        """Read what is left, for its hash alone."""
        chunk = memoryview(bytearray(CHUNK))
        with suppress(ValueError):
            while self.left > 0:
                self.fill(chunk[: self.left])


def _entry(file: Path) -> dict[str, int | str]:
    check_regular(file)
    with naming(file), file.open("rb") as opened:
        return {"size": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def fault_point(point: str) -> None:
    """Where the fault tests stop the process; does nothing."""


def check_link(path: Path) -> None:
    """Raises ValueError for a link that leads nowhere."""
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link that leads nowhere: create what it points to, or remove it")


def some_of(names: Sequence[object], most: int = 3) -> str:
    """The first of some names, for a message."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


@contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `target`, which takes its place at the end; on failure nothing is left behind.

    replace: whether in the place of a folder that is not empty, which goes as a whole
    Raises OSError if it cannot be written, or something is in its place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    token = secrets.token_hex(4)
    made, aside = (target.with_name(f".tmp-{name}") for name in (f"{token}-{target.name}", f"{target.name}-{token}"))
    made.mkdir()
    with ExitStack() as stack:
        with suppress(OSError):  # a file system without locks: then nobody removes what others left
            stack.enter_context(_locked(made))
        made.rename(aside)  # to where it is taken for a dead process's if it is not locked
        try:
            if target.is_dir():
                shutil.copymode(target, aside)
            yield aside
            for file in (*aside.rglob("*"), aside):
                sync(file)
            fault_point("before rename")
            if replace and target.is_dir():
                _take_the_place(aside, target)
            else:
                aside.rename(target)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync(target.parent)
    fault_point("after rename")


def _remove_leftovers(target: Path) -> None:
    """What processes left that were killed while they wrote `target`; those at work hold a lock.

    Where folders cannot be swapped, a kill between two renames leaves what was there under another name: it is put
    back.
    """
    if not target.exists():
        for old in target.parent.glob(f".tmp-{glob.escape(target.name)}-*-old"):
            old.rename(target)
            break
    for leftover in target.parent.glob(f".tmp-{glob.escape(target.name)}-*"):
        with suppress(OSError), _locked(leftover):
            shutil.rmtree(leftover)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder, which the kernel lets go when the process dies. Raises OSError if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _take_the_place(aside: Path, target: Path) -> None:
    """`aside` becomes `target`, whose content goes: at once where the system can swap two folders."""
    try:
        _swap(aside, target)
        old = aside
    except OSError:
        old = aside.with_name(f"{aside.name}-old")
        target.rename(old)
        try:
            aside.rename(target)
        except OSError:
            old.rename(target)
            raise
    fault_point("in replacing")
    shutil.rmtree(old, ignore_errors=True)


def _swap(first: Path, second: Path) -> None:
    """Exchange two folders. Raises OSError where that cannot be done at once: elsewhere than on Linux, or over NFS."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call is None or call(here, os.fsencode(first), here, os.fsencode(second), exchange):
        raise OSError(ctypes.get_errno(), "folders cannot be exchanged", str(first))
