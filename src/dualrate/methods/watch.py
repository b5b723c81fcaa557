"""Warnings of a training that goes wrong, read from its logs: a reporter around the one that shows them.

Warnings of a distillation that goes wrong, read from its logs: the auxiliary lags, or the student collapses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dualrate.system.progress import Reporter

WINDOW = 200  # updates of a phase whose means are compared
COLLAPSE = 0.5  # the least that may be left of what is lost as samples become alike
GROWTH = 2.0  # of a mean over its least


@dataclass
class LogWatch:
    """A reporter that passes on what means something, and adds each of its warnings once.

    Means over a window of a phase's updates are judged, by `judge` of a subclass. A resumed run is judged from its own
    first window on.
    """

    shown: Reporter
    window: int = WINDOW
    _logs: dict[str, list[Mapping[str, float]]] = field(default_factory=dict)  # of the window, by phase
    _first: float | None = None  # mean of what `judge_collapse` was told, of the first window
    _least: float = math.inf  # mean of what `judge_growth` was told
    _warned: set[str] = field(default_factory=set)

    meaningless = ""  # no annotation: the name of a value that follows no trend, which is not shown

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        self.shown.update(iteration, total, {name: value for name, value in logs.items() if name != self.meaningless})
        self.judge(iteration, logs)

    def note(self, text: str) -> None:
        self.shown.note(text)

    def close(self) -> None:
        self.shown.close()

    def judge(self, iteration: int, logs: Mapping[str, float]) -> None:
        """Warns of what these logs, and those before, tell."""
        raise NotImplementedError

    def means(self, phase: str, logs: Mapping[str, float], *names: str) -> list[float]:
        """Of a phase's window that these logs complete; empty if they do not."""
        found = {name: logs[f"{phase}/{name}"] for name in names if f"{phase}/{name}" in logs}
        if len(found) < len(names):
            return []
        seen = self._logs.setdefault(phase, [])
        seen.append(found)
        if len(seen) < self.window:
            return []
        means = [sum(one[name] for one in seen) / self.window for name in names]
        seen.clear()
        return means

    def judge_collapse(self, iteration: int, what: str, mean: float, remedy: str) -> None:
        """Warns where half of the first window's mean is left. what: of samples, in words."""
        if self._first is None:
            self._first = mean
        elif mean < COLLAPSE * self._first:
            why = f"the {what} fell from {self._first:.3g} to {mean:.3g}: {remedy}"
            self.warn(iteration, "the student collapses", why)

    def judge_growth(self, iteration: int, what: str, mean: float, remedy: str) -> None:
        """Warns where a mean is twice its least, of all that were told. what: that it grows, in words."""
        self._least = min(self._least, mean)
        if mean > GROWTH * self._least:
            self.warn(iteration, what, f"from {self._least:.3g} at its least to {mean:.3g}: {remedy}")

    def warn(self, iteration: int, what: str, why: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self.shown.note(f"warning at iteration {iteration}: {what}; {why}")


LAG = (0.0, 3.0)  # `gap_ahead` in moment gaps: 1 where the auxiliary keeps up, below 0 where the student has passed it


@dataclass
class Watch(LogWatch):
    """Three warnings, from the second window on: in the first, auxiliary and student are still near what they started
    from, so there is no gap yet.
    """

    _judged: bool = False  # there was a first window of the auxiliary

    meaningless = "student/loss"  # whose gradient says something, its value nothing

    def judge(self, iteration: int, logs: Mapping[str, float]) -> None:
        if means := self.means("student", logs, "moment_gap", "spread_t3"):
            self._judge_student(iteration, *means)
        if means := self.means("auxiliary", logs, "moment_gap", "gap_ahead"):
            self._judge_auxiliary(iteration, *means)

    def _judge_student(self, iteration: int, gap: float, spread: float) -> None:
        first = self._first is None
        remedy = "go back to a new run with a lower --student-rate or a larger --fit.batch-size"
        self.judge_collapse(iteration, "spread of its samples", spread, remedy)
        if first:
            return
        self.judge_growth(iteration, "the moment gap grows", gap, "lower --student-rate")

    def _judge_auxiliary(self, iteration: int, gap: float, ahead: float) -> None:
        first, self._judged = not self._judged, True
        if not first and not LAG[0] * gap <= ahead <= LAG[1] * gap:
            self.warn(
                iteration,
                "the auxiliary lags behind the student",
                f"from it to the student's moments is {ahead / gap:.1f} of the way from the teacher's to it, not "
                "about 1: lower --student-rate, or raise --fit.batch-size",
            )
