"""What a long work says of itself to people: the library speaks to a `Reporter`.

`PlainReporter` is the one that needs no terminal.

What keeps a run safe from its surroundings: one process a run, and signals that save first.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Protocol, TextIO

from filelock import FileLock, Timeout

SHOWN = ("loss", "_gap")  # how the names of values end that are shown to people

ImageProgress = Callable[[int, int], None]  # called with (images done, images in all)


class Reporter(Protocol):
    """Where a run reports to."""

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        """After every iteration: how many are done, and how many there will be, which may be a guess that changes;
        `logs` has "images", "seconds", "lr", "<phase>/loss", ...

        Where calls of networks are counted, "calls" is in place of "images".
        A device that queues is read now and then: then come the logs of the iterations since, an update each, and
        updates between have none.
        """
        ...

    def note(self, text: str) -> None:
        """Something the user should see, once."""
        ...

    def close(self) -> None:
        """The run is over, for whatever reason."""
        ...


def image_progress(progress: Reporter) -> ImageProgress:
    """Images counted on a display of iterations."""
    return lambda done, total: progress.update(done, total, {"images": done})


class PlainReporter:
    """One plain line every `seconds`: iterations, mean losses since the last line, rate, time to go."""

    def __init__(self, seconds: float = 30.0, stream: TextIO | None = None) -> None:
        self.seconds = seconds
        self.stream = sys.stderr if stream is None else stream
        self._last: tuple[float, int, float, int] | None = (
            None  # clock, iteration, images or calls, total at the last line
        )
        self._losses: dict[str, list[float]] = {}

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        now, unit = time.monotonic(), "calls" if "calls" in logs else "images"
        other = self._last is not None and total != self._last[3] and iteration <= self._last[1]  # a guess may change
        if self._last is None or other:  # the first pays for warming up: measure from its end
            self._last = (now, iteration, logs[unit], total)
        for name, value in logs.items():
            if name.endswith(SHOWN):
                self._losses.setdefault(name, []).append(value)
        clock, iteration_then, count_then, _ = self._last
        if iteration == iteration_then or (now - clock < self.seconds and iteration < total):
            return
        rate = (iteration - iteration_then) / (now - clock)
        losses = "  ".join(f"{name} {sum(values) / len(values):.4g}" for name, values in self._losses.items())
        per_second = (logs[unit] - count_then) / (now - clock)
        to_go = duration((total - iteration) / rate)
        self.note(f"{iteration}/{total}  {losses}  {per_second:.0f} {unit}/s  {to_go} to go")
        self._last, self._losses = (now, iteration, logs[unit], total), {}

    def note(self, text: str) -> None:
        with suppress(OSError):  # a full disk or a closed pipe behind the stream must not end the training
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        self._last, self._losses = None, {}  # whatever is reported next has its own rate


class Silent:
    """A reporter that says nothing: of a process beside one that reports."""

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def duration(seconds: float) -> str:
    """h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


@contextmanager
def run_lock(run_dir: Path, doing: str = "trained") -> Iterator[None]:
    """Hold `run_dir/.lock`; OSError if another process does. The kernel drops the lock of a process that dies.

    doing: what the holder of the lock is doing to the directory, for that error
    """
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"{run_dir} is being {doing} by another process; wait for it or stop it") from None
    except NotImplementedError as error:
        raise OSError(f"{run_dir} is on a file system without locks: choose another one, or mount it with") from error
    try:
        yield
    finally:
        lock.release()


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
