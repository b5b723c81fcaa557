"""Progress for people: a live bar on a terminal, plain lines otherwise. The only library module that uses rich."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dualrate.training.log import PlainReporter
from dualrate.training.log import Progress as Reporter


class LiveReporter:
    """A bar with rate, losses and time to go; notes appear above it."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        if self._bar is None or self._task is None:
            self._bar = Progress(
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=self.console,
            )
            self._task = self._bar.add_task("", total=total, completed=iteration)
            self._bar.start()
        shown = [f"{name} {value:.4f}" for name, value in logs.items() if name.endswith("loss")]
        if logs.get("seconds"):
            shown.append(f"{logs['images'] / logs['seconds']:.0f} images/s")
        self._bar.update(self._task, completed=iteration, total=total, description="  ".join(shown))

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def reporter() -> Reporter:
    """A live bar if standard error is a terminal, else a plain line every now and then."""
    return LiveReporter() if sys.stderr.isatty() else PlainReporter(seconds=10)
