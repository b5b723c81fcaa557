"""Fronts and savings against closed forms: on a power law of cost, interpolation is exact."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualrate.report.pareto import Point, cost_at, front, saving


def point(cost: float, score: float, replicates=None) -> Point:
    return Point(f"{cost}", cost, score, np.full(5, score) if replicates is None else np.array(replicates))


def power_law(costs, scale: float = 8.0, power: float = 0.7) -> list[Point]:
    return [point(cost, scale * cost**-power) for cost in costs]


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=1, max_size=12))
def test_front_is_what_nothing_beats(pairs):
    points = [point(*pair) for pair in pairs]
    kept = front(points)
    assert [one.cost for one in kept] == sorted(one.cost for one in kept)
    for one in points:
        beaten = any(
            other.cost <= one.cost and other.score <= one.score and (other.cost, other.score) != (one.cost, one.score)
            for other in points
        )
        assert ((one.cost, one.score) in [(other.cost, other.score) for other in kept]) == (not beaten)


@pytest.mark.parametrize("cost", [1.0, 1.7, 4.0, 6.3, 16.0])
def test_interpolation_is_exact_on_a_power_law(cost):
    points = power_law([1, 4, 16])
    assert cost_at(points, 8 * cost**-0.7) == pytest.approx(cost)


def test_outside_the_front_nothing_is_assumed():
    points = power_law([1, 4])
    assert cost_at(points, 9.0) == 1
    assert cost_at(points, 8 * 4.01**-0.7) == math.inf


def test_a_saving_is_the_ratio_of_two_power_laws():
    own, rivals = point(2.0, 8 * 5.0**-0.7), power_law([1, 4, 16])
    found = saving(own, rivals)
    assert found.ratio == pytest.approx(2.5)
    assert (found.low, found.high) == (pytest.approx(2.5), pytest.approx(2.5))
    assert not found.at_most
    assert str(found) == "2.50 [2.50, 2.50]"


def test_the_interval_follows_the_replicates_of_both_sides():
    rng = np.random.default_rng(0)
    noise = 0.05
    rivals = [
        Point("r", one.cost, one.score, one.score * np.exp(noise * rng.standard_normal(4000)))
        for one in power_law([1, 2, 4, 8, 16, 32])
    ]
    score = 8 * 5.0**-0.7
    own = Point("own", 2.0, score, score * np.exp(noise * rng.standard_normal(4000)))
    found = saving(own, rivals)
    own_alone = saving(own, [Point("r", one.cost, one.score, np.full(4000, one.score)) for one in rivals])
    # log cost = -log score / 0.7 + const: the own noise alone gives a deviation of noise / 0.7
    spread = math.log(own_alone.high / own_alone.low) / (2 * 1.96)
    assert spread == pytest.approx(noise / 0.7, rel=0.1)
    assert math.log(found.high / found.low) > 1.1 * math.log(own_alone.high / own_alone.low)


def test_replicates_of_all_points_are_paired():
    """What all scores share, as the noise of the same seeds, is no uncertainty of their ratio."""
    shared = np.exp(np.random.default_rng(0).normal(size=50))
    rivals = [point(1, 4.0, 4 * shared), point(4, 1.0, shared)]
    found = saving(point(1, 2.0, 2 * shared), rivals)
    assert (found.low, found.high) == pytest.approx((2.0, 2.0))
    apart = saving(point(1, 2.0, 2 * shared), [point(1, 4.0, 4 * shared[::-1]), point(4, 1.0, shared[::-1])])
    assert apart.low < 1.5 < 2.5 < apart.high


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_interval_leaves_out_as_much_on_either_side(level):
    """Rivals of score 1 / cost, so that the ratio is that of a replicate: 1000 of them, from 1 to 2."""
    ratios = np.linspace(1, 2, 1001)
    rivals = [point(cost, 1 / cost, np.full(1001, 1 / cost)) for cost in (0.5, 1.0, 4.0)]
    found = saving(point(1, 1 / 1.5, 1 / ratios), rivals, level=level)
    assert (found.low, found.high) == pytest.approx((1.5 - level / 2, 1.5 + level / 2), abs=2e-3)


def test_scores_beyond_the_rivals_are_said_to_be():
    rivals = power_law([1, 4])
    best = point(1.0, 0.1, [0.1, 0.1, 0.1, 0.1, 8 * 3.0**-0.7])
    found = saving(best, rivals)
    assert (found.ratio, found.high) == (math.inf, math.inf)
    assert found.low == pytest.approx(3.0)
    assert str(found) == "never reached [3.00, never]"
    worst = saving(point(2.0, 20.0), rivals)
    assert worst.at_most
    assert worst.ratio == 0.5


def test_replicates_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="5 replicates"):
        saving(point(1, 1), [point(1, 1, [1.0, 2.0])])
    with pytest.raises(ValueError, match="rivals"):
        saving(point(1, 1), [])
