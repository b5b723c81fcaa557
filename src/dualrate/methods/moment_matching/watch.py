"""Warnings of a distillation that goes wrong, read from its logs: the auxiliary lags, or the student collapses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dualrate.machine.progress import Reporter

WINDOW = 200  # updates of a phase whose means are compared
LAG = (0.0, 3.0)  # `gap_ahead` in moment gaps: 1 where the auxiliary keeps up, below 0 where the student has passed it
COLLAPSE = 0.5  # the least that may be left of the student's power
GROWTH = 2.0  # of the moment gap over its least
MEANINGLESS = "student/loss"  # of moment matching: its gradient says something, its value nothing


@dataclass
class Watch:
    """A reporter that passes on what means something, and adds each of three warnings once.

    Means over a window of a phase's updates are judged, from the second window on: in the first, auxiliary and student
    are still near what they started from, so there is no gap yet. A resumed run is judged from its own second window.
    """

    shown: Reporter
    window: int = WINDOW
    _logs: dict[str, list[Mapping[str, float]]] = field(default_factory=dict)  # of the window, by phase
    _power: float | None = None  # of the student in the first window
    _least: float = math.inf  # mean moment gap of a window after the first
    _judged: bool = False  # there was a first window of the auxiliary
    _warned: set[str] = field(default_factory=set)

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        self.shown.update(iteration, total, {name: value for name, value in logs.items() if name != MEANINGLESS})
        if means := self._means("student", logs, "moment_gap", "power"):
            self._judge_student(iteration, *means)
        if means := self._means("auxiliary", logs, "moment_gap", "gap_ahead"):
            self._judge_auxiliary(iteration, *means)

    def note(self, text: str) -> None:
        self.shown.note(text)

    def close(self) -> None:
        self.shown.close()

    def _means(self, phase: str, logs: Mapping[str, float], *names: str) -> list[float]:
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

    def _judge_student(self, iteration: int, gap: float, power: float) -> None:
        if self._power is None:
            self._power = power
            return
        self._least = min(self._least, gap)
        if power < COLLAPSE * self._power:
            self._warn(
                iteration,
                "the student collapses",
                f"the mean square of its images fell from {self._power:.3g} to {power:.3g}: go back to a new run with "
                "a lower --student-rate or a larger --fit.batch-size",
            )
        if gap > GROWTH * self._least:
            self._warn(
                iteration,
                "the moment gap grows",
                f"from {self._least:.3g} at its least to {gap:.3g}: lower --student-rate",
            )

    def _judge_auxiliary(self, iteration: int, gap: float, ahead: float) -> None:
        first, self._judged = not self._judged, True
        if not first and not LAG[0] * gap <= ahead <= LAG[1] * gap:
            self._warn(
                iteration,
                "the auxiliary lags behind the student",
                f"from it to the student's moments is {ahead / gap:.1f} of the way from the teacher's to it, not "
                "about 1: lower --student-rate, or raise --fit.batch-size",
            )

    def _warn(self, iteration: int, what: str, why: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self.shown.note(f"warning at iteration {iteration}: {what}; {why}")
