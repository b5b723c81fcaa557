"""What a long work says of itself to people: the library speaks to a `Reporter`.

`PlainReporter` is the one that needs no terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol, TextIO

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
