"""Ratios at equal score: interpolated, bounded where no plan is worse, uncertain by cases and by trainings."""

import math

import numpy as np
import pytest

from studies.equal_score import Ratio, at_equal_score, resampled

KEY = "network", "by", "steps"


def plan(row):
    return tuple(row[name] for name in KEY)


def row(network, steps, values, seed=0):
    return {"network": network, "by": "diffusion", "steps": steps, "seed": seed, "values": np.asarray(values)}


def scores_of(rows):
    return resampled(rows, plan, lambda row: row["values"])


def law(cost):
    """A curve whose score is cost^(-1/2), a straight line in logarithms."""
    return np.full(5, cost**-0.5)


@pytest.mark.parametrize("cost", [2.0, 3.0, 5.0, 8.0])
def test_between_two_plans_the_cost_is_that_of_the_power_law(cost):
    rows = [row("large", steps, law(steps)) for steps in (1, 2, 4, 8)] + [row("pair", 1, law(cost))]
    scores = scores_of(rows)
    costs = {key: 1.0 if key[0] == "pair" else float(key[2]) for key in scores}
    ratio = at_equal_score(scores, costs, ("pair", "diffusion", 1), [key for key in scores if key[0] == "large"])
    np.testing.assert_allclose(ratio[:3], cost, rtol=1e-12)
    assert not ratio.at_most


def test_a_first_plan_that_is_better_bounds_the_ratio_alone():
    scores = scores_of([row("light", 2, [0.5, 0.5]), row("light", 4, [0.4, 0.4]), row("pair", 1, [0.6, 0.6])])
    costs = {key: float(key[2]) / 4 if key[0] == "light" else 1.0 for key in scores}
    ratio = at_equal_score(scores, costs, ("pair", "diffusion", 1), [key for key in scores if key[0] == "light"])
    assert ratio == Ratio(0.5, 0.0, 0.5, at_most=True)
    assert str(ratio) == "at most 0.500 [0, 0.500]"


def test_a_score_that_no_rival_reaches_is_never_reached():
    scores = scores_of([row("large", 2, [0.5, 0.7]), row("pair", 1, [0.1, 0.2])])
    ratio = at_equal_score(scores, dict.fromkeys(scores, 1.0), ("pair", "diffusion", 1), [("large", "diffusion", 2)])
    assert math.isinf(ratio.value)
    assert str(ratio) == "never"


def test_cases_are_drawn_anew_together_for_all_plans():
    cases = np.random.default_rng(0).uniform(size=50)
    scores = scores_of([row("large", 2, cases), row("pair", 1, cases - 0.01)])
    np.testing.assert_allclose(scores["large", "diffusion", 2] - scores["pair", "diffusion", 1], 0.01, rtol=1e-9)


def test_trainings_widen_an_interval_by_the_error_of_their_mean():
    """Scores differ by training alone: the variance of replicates is that of a mean of n, s^2 / n."""
    trainings = np.random.default_rng(1).normal(size=6)
    scores = scores_of([row("large", 2, np.full(4, value), seed) for seed, value in enumerate(trainings)])
    replicates = scores["large", "diffusion", 2][1:]
    assert scores["large", "diffusion", 2][0] == pytest.approx(trainings.mean())
    assert replicates.var() == pytest.approx(trainings.var(ddof=1) / 6, rel=0.1)
    assert np.ptp(scores_of([row("large", 2, np.full(4, 0.3))])["large", "diffusion", 2]) == 0


def test_plans_of_one_training_are_drawn_anew_together():
    trainings = np.random.default_rng(2).normal(size=3)
    rows = [
        row("large", steps, np.full(4, value + steps), seed) for steps in (2, 4) for seed, value in enumerate(trainings)
    ]
    scores = scores_of(rows)
    np.testing.assert_allclose(scores["large", "diffusion", 4] - scores["large", "diffusion", 2], 2, rtol=1e-9)
