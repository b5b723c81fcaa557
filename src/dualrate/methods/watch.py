"""Warnings of a training that goes wrong, read from its logs by a reporter around the one that shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dualrate.system.progress import Reporter

WINDOW = 200  # updates of a phase whose means are compared
COLLAPSE = 0.5  # the least that may be left of what is lost as samples become alike
GROWTH = 2.0  # of a mean over its least
REMEDY = "go back to a new run with a lower --student-rate or a larger --fit.batch-size"

Windows = Sequence[Mapping[str, float]]  # means of a phase's logs, by name: of each window so far
Warnings = Iterator[tuple[str, str]]  # what goes wrong, and how far it went and what to do


@dataclass
class LogWatch:
    """A reporter that passes logs on, and adds each warning once.

    checks: by phase, the names of logs, and a function of their windows that yields what goes wrong
    hidden: a log that is not shown, since its value means nothing
    A resumed run begins with a new first window.
    """

    shown: Reporter
    checks: Mapping[str, tuple[tuple[str, ...], Callable[[Windows], Warnings]]]
    hidden: str = ""
    window: int = WINDOW
    _logs: dict[str, list[Mapping[str, float]]] = field(default_factory=dict)  # of the window, by phase
    _windows: dict[str, list[Mapping[str, float]]] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        self.shown.update(iteration, total, {name: value for name, value in logs.items() if name != self.hidden})
        for phase, (names, check) in self.checks.items():
            if not all(f"{phase}/{name}" in logs for name in names):
                continue
            seen = self._logs.setdefault(phase, [])
            seen.append({name: logs[f"{phase}/{name}"] for name in names})
            if len(seen) < self.window:
                continue
            windows = self._windows.setdefault(phase, [])
            windows.append({name: sum(values[name] for values in seen) / self.window for name in names})
            seen.clear()
            for what, why in check(windows):
                if what not in self._warned:
                    self._warned.add(what)
                    self.shown.note(f"warning at iteration {iteration}: {what}; {why}")

    def note(self, text: str) -> None:
        self.shown.note(text)

    def close(self) -> None:
        self.shown.close()


def collapse(windows: Windows, name: str, what: str, remedy: str = REMEDY) -> Warnings:
    """A warning where less than half of the first window's mean is left. what: the quantity, in words."""
    first, last = windows[0][name], windows[-1][name]
    if last < COLLAPSE * first:
        yield "the student collapses", f"the {what} fell from {first:.3g} to {last:.3g}: {remedy}"


def growth(windows: Windows, name: str, what: str, remedy: str) -> Warnings:
    """A warning where a mean is more than twice its least. what: the warning itself, in words."""
    least = min((window[name] for window in windows), default=0)
    if windows and windows[-1][name] > GROWTH * least:
        yield what, f"from {least:.3g} at its least to {windows[-1][name]:.3g}: {remedy}"


def lag(windows: Windows, least: float, most: float) -> Warnings:
    """A warning where `gap_ahead` is not between two multiples of `moment_gap`, from the second window on."""
    gap, ahead = windows[-1]["moment_gap"], windows[-1]["gap_ahead"]
    if len(windows) > 1 and gap and not least * gap <= ahead <= most * gap:
        why = f"gap_ahead is {ahead / gap:.1f} moment gaps, expected from {least:g} to {most:g}"
        yield "the auxiliary lags behind the student", f"{why}: lower --student-rate, or raise --fit.batch-size"
