"""What keeps a run safe from its surroundings: one process a run, and signals that save first."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dualrate.machine.files import naming


@contextmanager
def run_lock(run_dir: Path, doing: str = "trained") -> Iterator[bool]:
    """Hold `run_dir/.lock`; OSError if another process does. The kernel drops the lock of a process that dies.

    Yields whether it is held: a file system may have no locks (Lustre and NFS, as they may be mounted).
    doing: what the holder of the lock is doing to the directory, for that error
    """
    path = run_dir / ".lock"
    with path.open("a+") as file:
        held = True
        try:
            with naming(path):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise OSError(f"{run_dir} is being {doing} by {file.read().strip()}; wait for it or stop it") from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            held = False
        with naming(path):  # without a buffer, which closing would write a second time
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield held


WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
# Slurm warns of its time limit by any that it is told to; a terminal that goes away, by SIGHUP
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def stops() -> list[signal.Signals]:
    """Those of STOPS to listen to. Under nohup a process ignores SIGHUP, and goes on doing so."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOPS if number != signal.SIGHUP or not ignored]


ECHO = 1.0  # seconds in which a signal to a whole group and its supervisor's copy of it are one


class Interrupts:
    """Turns the first of `stops` into `received`; a second one acts as if nobody listened, at once.

    echoes: whether a supervisor passes signals on, so that one which all were sent comes twice, within ECHO
    Python delivers signals to the main thread only; in any other thread this does nothing.
    """

    def __init__(self, *, echoes: bool = False) -> None:
        self.received: signal.Signals | None = None
        self.echoes = echoes
        self._at = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in stops():
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = signal.Signals(number), now
            if not self.echoes:
                self._restore()
        elif now - self._at > ECHO:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._before.clear()
