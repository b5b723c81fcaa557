"""Warnings of a distillation that goes wrong, read from its logs: the auxiliary lags, or the student collapses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dualrate.training.log import Progress

WINDOW = 200  # updates of a phase whose means are compared
LAG = (0.0, 3.0)  # `gap_ahead` in moment gaps: 1 where the auxiliary keeps up, below 0 where the student has passed it
COLLAPSE = 0.5  # the least that may be left of the student's power
GROWTH = 2.0  # of the moment gap over its least
MEANINGLESS = "student/loss"  # of moment matching: its gradient says something, its value nothing


@dataclass
class Watch:
    """A progress that passes on what means something, and adds each of three warnings once.

    Means over a window of updates are judged, from the second window on: in the first, auxiliary and student are still
    what the teacher is, so there is no gap yet.
    """

    shown: Progress
    window: int = WINDOW
    _sums: dict[str, list[float]] = field(default_factory=dict)
    _power: float | None = None  # of the student in the first window
    _least: float | None = None  # mean moment gap of a window after the first
    _windows: int = 0
    _told: set[str] = field(default_factory=set)

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        self.shown.update(iteration, total, {name: value for name, value in logs.items() if name != MEANINGLESS})
        names = ("moment_gap", "gap_ahead", "student_power")
        if "auxiliary/moment_gap" in logs:
            for name in names:
                self._sums.setdefault(name, []).append(logs.get(f"auxiliary/{name}", 0.0))
            if len(self._sums["moment_gap"]) == self.window:
                self._judge(iteration, *(sum(self._sums[name]) / self.window for name in names))
                self._sums.clear()

    def note(self, text: str) -> None:
        self.shown.note(text)

    def close(self) -> None:
        self.shown.close()

    def _judge(self, iteration: int, gap: float, ahead: float, power: float) -> None:
        self._windows += 1
        if self._power is None:
            self._power = power
            return
        self._least = gap if self._least is None else min(self._least, gap)
        if power < COLLAPSE * self._power:
            self._warn(
                iteration,
                "the student collapses",
                f"the mean square of its images fell from {self._power:.3g} to {power:.3g}: go back to a new run with "
                "a lower --student-rate or a larger --fit.batch-size",
            )
        if not LAG[0] * gap <= ahead <= LAG[1] * gap:
            self._warn(
                iteration,
                "the auxiliary lags behind the student",
                f"from it to the student's moments is {ahead / gap:.1f} of the way from the teacher's to it, not "
                "about 1: lower --student-rate, or raise --fit.batch-size",
            )
        if gap > GROWTH * self._least:
            self._warn(
                iteration,
                "the moment gap grows",
                f"from {self._least:.3g} at its least to {gap:.3g}: lower --student-rate",
            )

    def _warn(self, iteration: int, what: str, why: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self.shown.note(f"warning at iteration {iteration}: {what}; {why}")
