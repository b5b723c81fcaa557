"""What a training run says: metrics as JSON lines for machines, progress for people.

The library prints through a `Progress`; `PlainReporter` is the one that needs no terminal.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

from dualrate.files import parse_record

SHOWN = ("loss", "_gap")  # how the names of values end that are shown to people


class Progress(Protocol):
    """Where a run reports to."""

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        """After every iteration: how many are done; `logs` has "images", "seconds", "lr", "<phase>/loss", ..."""
        ...

    def note(self, text: str) -> None:
        """Something the user should see, once."""
        ...

    def close(self) -> None:
        """The run is over, for whatever reason."""
        ...


class PlainReporter:
    """One plain line every `seconds`: iterations, mean losses since the last line, rate, time to go."""

    def __init__(self, seconds: float = 30.0, stream: TextIO | None = None) -> None:
        self.seconds = seconds
        self.stream = sys.stderr if stream is None else stream
        self._last: tuple[float, int, float] | None = None  # clock, iteration, images at the last line
        self._losses: dict[str, list[float]] = {}

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        now = time.monotonic()
        if self._last is None:  # the first iteration pays for warming up: measure from its end
            self._last = (now, iteration, logs["images"])
        for name, value in logs.items():
            if name.endswith(SHOWN):
                self._losses.setdefault(name, []).append(value)
        clock, iteration_then, images_then = self._last
        if iteration == iteration_then or (now - clock < self.seconds and iteration < total):
            return
        rate = (iteration - iteration_then) / (now - clock)
        losses = "  ".join(f"{name} {sum(values) / len(values):.4g}" for name, values in self._losses.items())
        images_per_second = (logs["images"] - images_then) / (now - clock)
        to_go = duration((total - iteration) / rate)
        self.note(f"{iteration}/{total}  {losses}  {images_per_second:.0f} images/s  {to_go} to go")
        self._last, self._losses = (now, iteration, logs["images"]), {}

    def note(self, text: str) -> None:
        with suppress(OSError):  # a full disk or a closed pipe behind the stream must not end the training
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        self._last, self._losses = None, {}  # whatever is reported next has its own rate


def duration(seconds: float) -> str:
    """h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


class Meter:
    """Means of named values over a log interval. Its state goes into checkpoints, so a resumed interval is whole."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.sums: dict[str, list[float]] = {name: list(pair) for name, pair in (state or {}).items()}

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            entry = self.sums.setdefault(name, [0.0, 0])
            entry[0] += value
            entry[1] += 1

    def means(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self.sums.items()}

    def state(self) -> dict[str, list[float]]:
        return {name: list(pair) for name, pair in self.sums.items()}


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, appended; lines after `iteration` (of a lost continuation) go.

    Trouble writing never stops training: it is noted once, and the file is then left alone.
    """

    def __init__(self, path: Path, iteration: int, note: Callable[[str], None]) -> None:
        self.path, self._note, self._lost = path, note, False
        try:
            self._cut(iteration)
        except OSError as error:
            self._give_up(error)

    def _cut(self, iteration: int) -> None:
        """Lines that are none go from the end, where a kill leaves them; others stay, and the first is noted."""
        if not self.path.is_file():
            return
        size, kept, odd, inside = 0, 0, [], []
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                size += len(line)
                try:
                    beyond = parse_record(line, "")["iteration"] > iteration
                except (ValueError, KeyError, TypeError):
                    odd.append(number)
                    continue
                if beyond or not line.endswith(b"\n"):
                    break
                kept, inside, odd = size, inside + odd, []
        os.truncate(self.path, kept)
        if inside:
            self._note(f"{self.path}, line {inside[0]} is no line of a log: what reads it wants it removed")

    def write(self, values: Mapping[str, float]) -> None:
        if self._lost:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._lost = True
        self._note(f"cannot write {self.path} ({error.strerror}): training goes on without its log")
