"""Warnings of a distillation: one line each, naming the knob, and none while all is well."""

import pytest
from training.toy import Recorder

from dualrate.methods.moment_matching import WATCH


def watched(*windows: tuple[float, float, float], instant: bool = False) -> list[str]:
    """The notes after windows of (moment_gap, gap_ahead, spread)."""
    recorder, iteration = Recorder(), 0
    watch = WATCH(recorder, window=3)
    for gap, ahead, spread in windows:
        for share in (0.9, 1.0, 1.1):
            if not instant:
                logs = {"auxiliary/moment_gap": share * gap, "auxiliary/gap_ahead": share * ahead}
                watch.update(iteration, 100, logs)
            student = {"student/moment_gap": share * gap, "student/spread_t3": share * spread}
            watch.update(iteration + 1, 100, student | {"student/loss": -1.0})
            iteration += 2
    assert len(recorder.updates) == (3 if instant else 6) * len(windows)  # all passed on
    assert not any("student/loss" in logs for _, _, logs in recorder.updates)  # whose value means nothing
    return recorder.notes


def test_a_distillation_that_goes_well_is_not_disturbed():
    assert not watched((1e-6, 9e-6, 0.5), (4, 5, 0.5), (3, 3.3, 0.45), (4, 4.4, 0.26), (1, 2.9, 0.6), (1, 0.01, 0.5))


@pytest.mark.parametrize(
    ("windows", "what"),
    [
        ([(1e-6, 0, 0.5), (1, 3.2, 0.5)], "the auxiliary lags behind the student"),
        ([(1e-6, 0, 0.5), (1, -0.05, 0.5)], "the auxiliary lags behind the student"),
        ([(1e-6, 0, 0.5), (1, 1, 0.5), (2.1, 2.1, 0.5)], "the moment gap grows"),
        ([(1e-6, 0, 0.5), (1, 1, 0.5), (1, 1, 0.24)], "the student collapses"),
    ],
)
def test_what_goes_wrong_is_told_once_with_the_knob(windows, what):
    notes = watched(*windows, windows[-1], windows[-1])
    assert len(notes) == 1
    assert what in notes[0]
    assert "--student-rate" in notes[0]
    last = 6 * len(windows) - (2 if "auxiliary" in what else 1)
    assert notes[0].startswith(f"warning at iteration {last}")


def test_without_an_auxiliary_the_student_is_watched_all_the_same():
    (grown,) = watched((1, 0, 0.5), (1, 0, 0.5), (3, 0, 0.5), instant=True)
    (collapsed,) = watched((1, 0, 0.5), (1, 0, 0.1), instant=True)
    assert "the moment gap grows" in grown
    assert "the student collapses" in collapsed
