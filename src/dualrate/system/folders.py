"""Folders that are whole or absent, and manifests by which their content is checked before anything is used.

    FOLDER/MANIFEST.json   size and sha256 of files beside it

Reading: `Manifest.content` returns the very bytes that it checked.

Writing: into `.tmp-*` beside the folder, every file and the directory synced, renamed, the parent synced. A crash at
any point leaves what was there before or the new folder. What a killed process leaves aside, the next writer removes.
"""

from __future__ import annotations

import glob
import hashlib
import json
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dualrate.system import files
from dualrate.system.files import ABSENT, MEMORY, locked, shown, sync, write_whole

MANIFEST = "MANIFEST.json"
FORMAT = 1  # which a manifest need not say


class Damaged(OSError):
    """Content that is not what its manifest says."""


@dataclass(frozen=True)
class Manifest:
    """Sizes and hashes that files of a folder must have. entries: name -> size and sha256 (hex)."""

    folder: Path
    entries: Mapping[str, tuple[int, str]]

    @staticmethod
    def write(folder: Path, names: Collection[str]) -> None:
        """The manifest of these files, as they are."""
        entries = {}
        for name in sorted(names):
            files.check_regular(folder / name)
            with files.naming(folder / name), (folder / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            entries[name] = {"size": (folder / name).stat().st_size, "sha256": digest}
        write_whole(folder / MANIFEST, json.dumps({"files": entries}, separators=(",", ":")))

    @staticmethod
    def read(folder: Path, required: Collection[str]) -> Manifest | None:
        """The manifest of a folder, None if there is none.

        Raises Damaged unless it lists what is required, ValueError for one that a newer version wrote.
        """
        file = folder / MANIFEST
        try:
            plain = files.read_json(file)
            newest = plain.get("format", FORMAT)
            entries = {name: (entry["size"], entry["sha256"]) for name, entry in plain.get("files", {}).items()}
            if sizes := [size for size, _ in entries.values() if type(size) is not int]:
                raise ValueError(f"a size is a whole number, got {shown(sizes[0], 60)}")
        except OSError as error:
            if error.errno in ABSENT:
                return None
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{file}: no readable manifest ({shown(error)})") from error
        check_format(file, newest, FORMAT)
        if missing := [name for name in required if name not in entries]:
            raise Damaged(f"{file}: does not list {missing[0]}")
        if paths := [name for name in entries if Path(name).name != name]:
            raise Damaged(f"{file}: {shown(paths, 200)} are not plain file names")
        return Manifest(folder, entries)

    def content(self, name: str, limit: int = MEMORY) -> bytes:
        """A file's content, once it is what the manifest says. Raises Damaged, naming it, otherwise.

        limit: bytes that it may have
        """
        file, (size, expected) = self.folder / name, self.entries[name]
        try:
            content = files.read_bytes(file, min(size, limit))
        except ValueError as error:  # a pipe, or more bytes
            raise Damaged(f"{file}: its content is not what the manifest says ({error})") from error
        except OSError as error:
            if error.errno in ABSENT:
                raise Damaged(f"{file}: {error.strerror}") from error
            raise
        if len(content) != size or hashlib.sha256(content).hexdigest() != expected:
            raise Damaged(f"{file}: its content is not what the manifest says")
        return content


def check_format(file: Path, number: object, newest: int) -> None:
    """Raises ValueError for another format of a file than the newest."""
    if type(number) is int and number > newest:
        raise ValueError(
            f"{file} was written by a newer version of dualrate (format {shown(number, 20)}, this one reads {newest}): "
            "update it"
        )
    if type(number) is not int or number != newest:
        raise ValueError(f"{file} has format {shown(number, 60)}, expected {newest}: use the version that wrote it")


def fault_point(point: str) -> None:
    """Do nothing: fault tests stop the process here."""


def check_link(path: Path) -> None:
    """Raises ValueError for a link that leads nowhere."""
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link that leads nowhere: create what it points to, or remove it")


def some_of(names: Sequence[object], most: int = 3) -> str:
    """The first of some names, for a message."""
    return ", ".join(str(name).replace("\n", r"\n") for name in names[:most]) + (", ..." if len(names) > most else "")


@contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `target`, which takes its place at the end; on failure nothing is left behind.

    replace: whether in the place of a folder that is not empty, which goes as a whole
    Raises OSError if it cannot be written, or something is in its place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    pattern = f".tmp-{glob.escape(target.name)}-*"
    for old in target.parent.glob(f"{pattern}-old") if not target.exists() else ():
        old.rename(target)  # a kill between the two renames of a replacement left it so
        break
    for leftover in target.parent.glob(pattern):  # of killed processes: those at work hold a lock
        with suppress(OSError), locked(leftover) as is_ours:
            if is_ours:
                shutil.rmtree(leftover)
    token = secrets.token_hex(4)
    unlocked, aside = (
        target.with_name(f".tmp-{name}") for name in (f"{token}-{target.name}", f"{target.name}-{token}")
    )
    unlocked.mkdir()
    with locked(unlocked):
        unlocked.rename(aside)  # to where it is taken for a dead process's if it is not locked
        try:
            if target.is_dir():
                shutil.copymode(target, aside)
            yield aside
            for file in (*aside.rglob("*"), aside):
                sync(file)
            fault_point("before rename")
            old = aside.with_name(f"{aside.name}-old")
            if replaced := replace and target.is_dir():
                target.rename(old)
            try:
                aside.rename(target)
            except OSError:
                if replaced:
                    old.rename(target)
                raise
            if replaced:
                fault_point("in replacing")
                shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync(target.parent)
    fault_point("after rename")
