"""Progress and safety of long work: reporters, the lock of a run's directory, signals that save first.

The library reports to a `Reporter`, a protocol of three methods of which a program may write its own; `PlainReporter`
needs no terminal.
"""

from __future__ import annotations

import builtins
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Protocol, TextIO

from filelock import FileLock, Timeout

from dualrate.system.terminal import clean

SHOWN = ("loss", "_gap")  # how the names of values end that are shown to people

QUIET = 10.0  # seconds of a call of Python's that shows no progress
COUNTED = ("calls", "frames")  # other things than images that a program may report as done
ImageProgress = Callable[[int, int], None]  # called with (images done, images in all)


class Reporter(Protocol):
    """Where a run reports its progress: `update` after every iteration, `note` now and then, `close` at the end."""

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        """Called after every iteration.

        iteration: how many are done
        total: how many there will be, an estimate that may change
        logs: values by name: "images" done (or what else is counted, of COUNTED), "seconds", and in training "lr",
              "<phase>/loss", ... Losses on a GPU are read now and then: then one update comes for each iteration
              since, and updates in between have no losses
        """
        ...

    def note(self, text: str) -> None:
        """Called with a message for the user."""
        ...

    def close(self) -> None:
        """Called when the work ends, for whatever reason."""
        ...


def image_progress(progress: Reporter, unit: str = "images") -> ImageProgress:
    """A callback that reports images done, or another unit, as iterations."""
    return lambda done, total: progress.update(done, total, {unit: done})


class PlainReporter:
    """Prints a line every `seconds`: iterations, mean losses since the last line, rate, time to go."""

    def __init__(self, seconds: float = 30.0, stream: TextIO | None = None) -> None:
        self.seconds = seconds
        self.stream = sys.stderr if stream is None else stream
        # clock, iteration, images or calls, total at the last line
        self._last: tuple[float, int, float, int] | None = None
        self._losses: dict[str, list[float]] = {}

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        now, unit = time.monotonic(), next((counted for counted in COUNTED if counted in logs), "images")
        restart = self._last is not None and total != self._last[3] and iteration <= self._last[1]  # a guess may change
        if self._last is None or restart:  # the first pays for warming up: measure from its end
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
            print(clean(text), file=self.stream, flush=True)

    def close(self) -> None:
        self._last, self._losses = None, {}  # whatever is reported next has its own rate


class Silent(PlainReporter):
    """A reporter that prints nothing, for a process beside one that reports."""

    def note(self, text: str) -> None:
        pass


class Bar(PlainReporter):
    """A bar of tqdm, as notebooks show it, beside the notes."""

    def __init__(self) -> None:
        super().__init__(seconds=0)
        with warnings.catch_warnings(action="ignore"):  # where ipywidgets are missing the bar is text
            from tqdm.auto import tqdm

        self._make, self._bar = tqdm, None

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        if self._bar is None:
            self._bar = self._make(initial=iteration, total=total)
        self._bar.total = total
        if losses := {name: f"{value:.4g}" for name, value in logs.items() if name.endswith(SHOWN)}:
            self._bar.set_postfix(losses, refresh=False)
        self._bar.update(iteration - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


def reporter_here() -> Reporter:
    """A bar in a notebook that has tqdm, lines elsewhere."""
    shell = getattr(builtins, "get_ipython", lambda: None)()  # which IPython puts there
    if getattr(shell, "kernel", None) is not None:
        with suppress(ImportError):
            return Bar()
    return PlainReporter()


def duration(seconds: float) -> str:
    """h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


@contextmanager
def shown_later(unit: str = "images") -> Iterator[ImageProgress]:
    """Progress as `reporter_here` shows it, of a call that takes longer than QUIET seconds."""
    begun, reporter = time.monotonic(), reporter_here()

    def show(done: int, total: int) -> None:
        if time.monotonic() - begun > QUIET:
            reporter.update(done, total, {unit: done})

    with closing(reporter):
        yield show


@contextmanager
def run_lock(run_dir: Path, doing: str = "trained") -> Iterator[None]:
    """Hold `run_dir/.lock`; OSError if another process does. The kernel drops the lock of a process that dies.

    Where a file system has no locks, filelock warns, and the file itself is the lock.

    doing: what the holder of the lock is doing to the directory, for that error
    """
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"{run_dir} is being {doing} by another process; wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


# Slurm announces its time limit by a signal that the user chooses; a terminal that closes sends SIGHUP
STOPS = tuple(  # Windows lacks the last two
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
)


def stops() -> list[signal.Signals]:
    """The signals of STOPS that save first. Under nohup a process ignores SIGHUP, and goes on doing so."""
    return [number for number in STOPS if number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN]


ECHO = 1.0  # seconds in which a signal to a whole group and its launcher's copy of it count as one


class Interrupts:
    """Within the block the first signal of `stops` is kept in `received`; a second one has its usual effect.

    echoes: whether a launcher passes signals on, so that a signal to the whole group comes twice within ECHO seconds
    raises: whether the first one is also raised, as a KeyboardInterrupt
    Python delivers signals to the main thread only; in any other thread this does nothing.
    """

    def __init__(self, *, echoes: bool = False, raises: bool = False) -> None:
        self.received: signal.Signals | None = None
        self.echoes, self.raises = echoes, raises
        self._at = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in stops():
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = signal.Signals(number), now
            if not self.echoes:
                self.__exit__()
            if self.raises:
                raise KeyboardInterrupt
        elif now - self._at > ECHO:
            self.__exit__()
            signal.raise_signal(number)
