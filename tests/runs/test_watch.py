"""Warnings of a distillation: one line each, naming the knob, and none while all is well."""

import pytest
from training.toy import Recorder

from dualrate.runs.watch import Watch


def watched(*windows: tuple[float, float, float]) -> list[str]:
    """The notes after windows of (moment_gap, gap_ahead, student_power)."""
    recorder, iteration = Recorder(), 0
    watch = Watch(recorder, window=3)
    for window in windows:
        for share in (0.9, 1.0, 1.1):
            values = dict(zip(("moment_gap", "gap_ahead", "student_power"), window, strict=True))
            watch.update(iteration, 100, {f"auxiliary/{name}": share * value for name, value in values.items()})
            watch.update(iteration + 1, 100, {"student/moment_gap": 7.0})
            iteration += 2
    assert len(recorder.updates) == 6 * len(windows)  # all passed on
    return recorder.notes


def test_a_distillation_that_goes_well_is_not_disturbed():
    assert not watched((1e-6, 9e-6, 0.5), (4, 5, 0.5), (3, 3.3, 0.45), (4, 4.4, 0.5), (1, 2.5, 0.6))


@pytest.mark.parametrize(
    ("windows", "what"),
    [
        ([(1e-6, 0, 0.5), (1, 4, 0.5)], "the auxiliary lags behind the student"),
        ([(1e-6, 0, 0.5), (1, -0.5, 0.5)], "the auxiliary lags behind the student"),
        ([(1e-6, 0, 0.5), (1, 1, 0.5), (2.5, 2.5, 0.5)], "the moment gap grows"),
        ([(1e-6, 0, 0.5), (1, 1, 0.5), (1, 1, 0.2)], "the student collapses"),
    ],
)
def test_what_goes_wrong_is_told_once_with_the_knob(windows, what):
    notes = watched(*windows, windows[-1], windows[-1])
    assert len(notes) == 1
    assert what in notes[0]
    assert "--student-rate" in notes[0]
    assert notes[0].startswith(f"warning at iteration {6 * len(windows) - 2}")
