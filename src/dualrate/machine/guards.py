"""What keeps a run safe from its surroundings: one process a run, and signals that save first."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dualrate.machine.files import naming


@contextmanager
def run_lock(run_dir: Path, doing: str = "trained") -> Iterator[None]:
    """Hold `run_dir/.lock`; OSError if another process does. The kernel drops the lock of a process that dies.

    doing: what the holder of the lock is doing to the directory, for that error
    """
    path = run_dir / ".lock"
    with path.open("a+") as file:
        try:
            with naming(path):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise OSError(f"{run_dir} is being {doing} by {file.read().strip()}; wait for it or stop it") from None
        with naming(path):  # without a buffer, which closing would write a second time
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Slurm warns of its time limit by any that it is told to


class Interrupts:
    """Turns the first of STOPS into `received`; a second one acts as if nobody listened, at once.

    Python delivers signals to the main thread only; in any other thread this does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._before.clear()
