"""Networks trained several times: one line of a report each, with the noise of training."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparison.test_results import finished
from scipy import stats

from dualrate.comparison.rows import MeasuredCandidate
from studies.trainings import pooled_rows

METRIC = "FD-squares"


def trained(network: str, cost: float, scores) -> list[MeasuredCandidate]:
    """A plan in trainings of these scores."""
    made = [finished(network, cost, score) for score in scores]
    names = [network, *(f"{network}-seed{i}" for i in range(1, len(made)))]
    return [replace(one, candidate=replace(one.candidate, network=name)) for one, name in zip(made, names, strict=True)]


def test_a_line_is_the_geometric_mean_of_its_trainings():
    one, other = pooled_rows([*trained("a", 1, [1, 4]), *trained("b", 1, [2, 2, 16])])
    assert (one.row.score.value, other.row.score.value) == (pytest.approx(2), pytest.approx(4))
    assert one.row.score.low < 1.5 < 2.5 < one.row.score.high
    tails = np.quantile(np.log(other.replicates[METRIC]), [0.025, 0.975])
    assert (math.log(other.row.score.low), math.log(other.row.score.high)) == pytest.approx(tuple(tails))
    assert "3 trainings" in other.row.score.note


def test_stricter_levels_make_the_noise_of_training_wider():
    """By Student's t over the normal law, whose tails differ the more the further out."""
    measured, freedom = [*trained("a", 1, [1, 4]), *trained("b", 1, [2, 3, 16])], 3
    spread = [np.log(pooled_rows(measured, level)[0].replicates[METRIC]).std() for level in (0.95, 0.99)]
    wider = [stats.t.ppf(p, freedom) / stats.norm.ppf(p) for p in (0.975, 0.995)]
    assert spread[1] / spread[0] == pytest.approx(wider[1] / wider[0])


def test_every_metric_pools_its_own_scores():
    def seen_by_two(one: MeasuredCandidate, value: float) -> MeasuredCandidate:
        other = replace(one.row.score, metric="FD-circles", value=value)
        row = replace(one.row, beside=(other,))
        return replace(one, row=row, replicates={**one.replicates, "FD-circles": np.full(41, value)})

    scores = [1, 1, 1, 1], [5, 20, 5, 20]
    (one,) = pooled_rows([seen_by_two(*pair) for pair in zip(trained("a", 1, scores[0]), scores[1], strict=True)])
    first, other = one.row.scores.values()
    assert (first.value, other.value) == (pytest.approx(1), pytest.approx(10))
    assert np.array_equal(one.replicates[METRIC], np.ones(82))  # equal scores: no noise of training
    noise = np.log(one.replicates["FD-circles"] / 10)
    assert np.ptp(noise) > 0.5
    tails = tuple(np.quantile(noise, [0.025, 0.975]))
    assert (math.log(other.low / 10), math.log(other.high / 10)) == pytest.approx(tails)
    assert first.low == first.high == pytest.approx(1)


def test_a_plan_that_a_training_lacks_is_left_out():
    lacking = trained("a", 2, [3, 3, 3, 3])[:2]
    made = pooled_rows([*trained("a", 1, [1, 1.1, 1.2, 1.3]), *lacking])
    assert [one.candidate.key for one in made] == [trained("a", 1, [1])[0].candidate.key]


def test_a_network_counts_once_whoever_calls_it():
    """Two trainings under three denoisers tell of two trainings, not of six."""
    called = [trained(name, 1 + i, [1, 4]) for i, name in enumerate(("a", "a, taylor", "a, fora"))]
    measured = [
        replace(one, candidate=replace(one.candidate, run=Path("ab"[i])))
        for plan in called
        for i, one in enumerate(plan)
    ]
    assert pooled_rows(measured) == measured[::2]
    more = trained("b", 1, [1, 2, 4])
    made = pooled_rows([*measured, *more])
    shifts = [np.log(one.replicates[METRIC] / one.row.score.value) for one in made]
    assert shifts[0] == pytest.approx(shifts[1])
    assert abs(np.corrcoef(shifts[0], shifts[3])[0, 1]) < 0.1


def test_with_too_few_trainings_the_first_ones_stand_alone():
    measured = trained("a", 1, [1, 4])
    assert pooled_rows(measured) == measured[:1]
    single = trained("a", 1, [1])
    assert pooled_rows(single) == single
