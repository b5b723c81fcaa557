"""Verdicts of several metrics, of made-up measurements: where they agree and where they do not."""

import math
from dataclasses import replace

import numpy as np
import pytest
from comparison.test_results import findings, finished

from dualrate.comparison.results import ComparisonResults
from dualrate.comparison.rows import MeasuredCandidate
from studies import verdicts as module
from studies.saving import Saving
from studies.verdicts import (
    CHEAPER,
    COSTLIER,
    OPEN,
    SPLIT,
    beyond,
    headline_table,
    rising,
    significant_together,
    verdict_table,
    verdicts,
)

SPREAD = np.linspace(-1, 1, 41)
LAW = [finished("single", cost, 8 / cost, heavy=4, other=8 / cost) for cost in (1, 4)]


def seen(first: float, second: float, spread: float = 0.0, cost: float = 1) -> ComparisonResults:
    """A plan's scores by both metrics, against baselines whose score is 8 / cost by both."""
    one = finished("dual", cost, first, other=second)
    return findings([with_replicates(one, {"FD-other": second + spread * SPREAD})], LAW)


def with_replicates(one: MeasuredCandidate, replicates: dict[str, np.ndarray]) -> MeasuredCandidate:
    return replace(one, replicates={**one.replicates, **replicates})


@pytest.mark.parametrize(
    ("first", "second", "spread", "cost", "word"),
    [
        (4.0, 5.0, 0.0, 1, CHEAPER),  # the baselines pay 2 and 1.6 times as much
        (4.0, 4.5, 0.0, 4, COSTLIER),
        (4.0, 7.0, 2.0, 1, SPLIT),  # the second one's interval holds 1
        (4.0, 8.0, 0.0, 1, SPLIT),
        (8.0, 8.0, 0.0, 1, OPEN),
        (9.0, 9.0, 0.0, 0.5, OPEN),  # the cheapest costs twice as much, and is better: a cheaper one may be too
    ],
)
def test_metrics_agree_where_every_interval_leaves_out_1_on_one_side(first, second, spread, cost, word):
    (found,) = verdicts(seen(first, second, spread, cost))
    assert list(found.by_metric) == ["FD-squares", "FD-other"]
    assert found.words == (word,) * 3


def test_of_measured_time_a_saving_within_the_noise_of_timing_is_none():
    (found,) = verdicts(seen(7.6, 7.6))  # 1.05, without any noise of images
    assert found.words == (CHEAPER, OPEN, OPEN)


@pytest.mark.parametrize(
    ("low", "high", "slack", "expected"),
    [
        (1.1, 2, 1, 1), (math.inf, math.inf, 1, 1), (0.5, 0.9, 1, -1), (0, 0.9, 1, -1), (0.9, 1.1, 1, 0),
        (1, 2, 1, 0), (0, 0.996, 1, 0), (1.004, 2, 1, 0), (1.15, 2, 1.1, 1), (1.05, 2, 1.1, 0), (0.5, 0.95, 1.1, 0),
    ],
)  # fmt: skip
def test_the_side_of_1_that_an_interval_is_on(low, high, slack, expected):
    assert beyond(Saving(1.0, low, high, at_most=False), slack) == expected


def test_a_plan_has_a_line_for_two_of_its_ratios_and_a_column_for_each_metric():
    results = seen(4.0, 8.0)
    made = verdict_table(results)
    assert made.header[3:] == ("FD-squares", "FD-other", "together")
    assert [line[2] for line in made.cells] == ["FLOPs", "time alone"]
    assert made.cells[0][3:] == ("2.00 [2.00, 2.00]", "1.00 [0.00, 1.00]", SPLIT)
    assert [line[-1] for line in made.cells] == [SPLIT] * 2
    assert made.notes[-1].startswith("on FLOPs 1 ratios of 2 are significantly above 1, 0 below; 1 remain")
    assert headline_table(results).cells[0][3:] == made.cells[0][3:5]
    assert headline_table(results).cells[0][:2] == made.cells[0][:2]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(3.0, 2.1, 2), (2.1, 3.0, 2), (-3.0, 2.1, 2), (2.1, 2.1, 0), (2.3, 1.9, 1), (1.9, 1.9, 0), (0.0, 0.0, 0)],
)
def test_significant_together_is_decided_at_stricter_levels_one_by_one(first, second, expected):
    """Two ratios, this many standard deviations from 1: one has to be 2.24 away, the other then 1.96."""
    scores = [8 * math.exp(-0.1 * away) for away in (first, second)]  # the baselines have 8 there
    noise = np.exp(0.1 * SPREAD / SPREAD.std(ddof=1))
    one = finished("dual", 1, scores[0], other=scores[1])
    results = findings([with_replicates(one, {"FD-squares": scores[0] * noise, "FD-other": scores[1] * noise})], LAW)
    assert significant_together(results, verdicts(results)) == expected


def test_significant_together_has_the_noise_of_training_of_its_level(monkeypatch):
    """Replicates of several trainings are made anew: here noisier at stricter levels than at the usual one."""
    results, levels = seen(4.0, 4.0), []
    assert significant_together(results, verdicts(results)) == 2

    def noisier(measured, level):
        levels.append(level)
        factor = np.exp(10 * SPREAD)
        return [
            replace(one, replicates=dict.fromkeys(one.replicates, 4 * factor)) if one.row.network == "dual" else one
            for one in measured
        ]

    monkeypatch.setattr(module, "pooled_rows", noisier)
    assert significant_together(results, verdicts(results)) == 0
    assert levels == [1 - 0.05 / 2]


def test_a_timing_that_is_out_of_order_moves_no_curve():
    """Timings that rise stay, and those that fall are pooled."""
    assert rising([1.0, 2.0, 4.0]) == pytest.approx([1, 2, 4])
    assert rising([1.0, 4.0, 1.0]) == pytest.approx([1, 2, 2])
