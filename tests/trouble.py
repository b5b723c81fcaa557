"""A system that does not do what it is asked: files of somebody else, full disks, errors of any kind."""

from __future__ import annotations

import fcntl
import os
import random
import resource
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NOBODY = 65534


@contextmanager
def unreadable(path: Path, tree: Path) -> Iterator[None]:
    """A file or folder without any permission within `tree`, which is otherwise the user's own.

    Root may read everything, so root becomes somebody else meanwhile, whom the tree and the way to it are opened to.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    path.chmod(0)
    try:
        with somebody(tree):
            yield
    finally:
        path.chmod(mode)


@contextmanager
def somebody(tree: Path) -> Iterator[None]:
    """An ordinary user, who owns `tree`; one process at a time, for trees lie below folders that tests share."""
    if os.geteuid():
        yield
        return
    with locked(Path(tempfile.gettempdir())):
        for place in (tree, *tree.rglob("*")):
            os.chown(place, NOBODY, NOBODY, follow_symlinks=False)
        modes = {place: stat.S_IMODE(place.stat().st_mode) for place in tree.parents}
        try:
            for place, mode in modes.items():
                place.chmod(mode | 0o011)
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            for place, mode in modes.items():
                place.chmod(mode)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Every other process that asks for the same folder waits."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


@contextmanager
def full_disk(size: int = 2048) -> Iterator[None]:
    """Files end at so many bytes: the error is another one than that of a full disk, its way the same."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def children(process: int) -> list[int]:
    """List those of its main thread, in the order in which they were started."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def forked(work: Callable[[], object]) -> int:
    """Works on one thread in a process of its own, which has all that is imported here: its exit code."""
    import torch  # here, since processes that import this file alone would wait for it

    child = os.fork()
    if not child:
        try:
            signal.alarm(60)  # a process that hangs ends
            torch.set_num_threads(1)
            work()
            os._exit(0)
        finally:  # nothing of it may go on with the tests
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(monkeypatch: pytest.MonkeyPatch, point: str, work: Callable[[], object]) -> int:
    """Works in a process of its own, which dies at a point of writing a folder: its exit code, 9 if it did so."""

    from dualrate.system import folders

    def dies() -> None:
        monkeypatch.setattr(folders, "fault_point", lambda reached: os._exit(9) if reached == point else None)
        work()

    return forked(dies)


def failing(monkeypatch: pytest.MonkeyPatch, file: Path, number: int) -> None:
    """Reading a file ends with a system error that does not say which file it was, as those of reading do not."""

    def fails(method: Callable[..., object]) -> Callable[..., object]:
        def tried(path: Path, *args: Any, **settings: Any) -> object:
            if path == file:
                raise OSError(number, os.strerror(number))
            return method(path, *args, **settings)

        return tried

    monkeypatch.setattr(Path, "read_bytes", fails(Path.read_bytes))
    monkeypatch.setattr(Path, "open", fails(Path.open))


def flip_each(files: Iterable[Path]) -> Iterator[Path]:
    """Every file in turn while one bit of it is flipped; the last one is left so where the caller stops before."""
    for file in files:
        content = file.read_bytes()
        file.write_bytes(next(flips(content, 1)))
        yield file
        file.write_bytes(content)


def flips(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """The content with one bit flipped, at `count` places; at all of them if they are not more."""
    places = range(8 * len(content))
    for place in random.Random(seed).sample(places, min(count, len(places))):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        yield bytes(flipped)
