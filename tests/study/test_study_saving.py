"""Savings against closed forms: on a power law of cost, interpolation is exact."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from studies.saving import PRECISION, Point, cost_at, saving, side

CLOSE = pytest.approx


def near(value: float):
    """Ends of an interval are found to PRECISION."""
    return pytest.approx(value, rel=1.5 * PRECISION)


def point(cost: float, score: float, replicates=None, curve: str | None = "curve") -> Point:
    return Point(f"{cost}", cost, score, np.full(5, score) if replicates is None else np.array(replicates), curve)


def power_law(costs, scale: float = 8.0, power: float = 0.7) -> list[Point]:
    return [point(cost, scale * cost**-power) for cost in costs]


LAW = power_law([1, 4, 16])


def noisy(points, deviation: float, seed: int = 0, count: int = 4000) -> list[Point]:
    rng = np.random.default_rng(seed)
    return [
        Point(p.name, p.cost, p.score, p.score * np.exp(deviation * rng.standard_normal(count)), p.curve)
        for p in points
    ]


@pytest.mark.parametrize("cost", [1.0, 1.7, 4.0, 6.3, 16.0])
def test_interpolation_is_exact_on_a_power_law(cost):
    assert cost_at(power_law([1, 4, 16]), 8 * cost**-0.7) == CLOSE(cost)


def test_outside_the_curves_nothing_is_assumed():
    points = power_law([1, 4])
    assert cost_at(points, 9.0) == 1
    assert cost_at(points, 8 * 4.01**-0.7) == math.inf


def test_between_two_curves_nothing_is_assumed():
    apart = [point(1, 8.0, curve="a"), point(4, 2.0, curve="b"), point(16, 0.5, curve=None)]
    assert cost_at(apart, 4.0) == 4
    assert cost_at(apart, 1.0) == 16


def test_a_point_above_its_curve_is_passed_on_the_way_to_the_next():
    bent = [point(1, 8.0), point(2, 9.0), point(4, 2.0)]
    assert cost_at(bent, 4.0) == CLOSE(2 * 2 ** (math.log(9 / 4) / math.log(9 / 2)))


def test_a_saving_is_the_ratio_of_two_power_laws():
    found = saving(point(2.0, 8 * 5.0**-0.7), power_law([1, 4, 16]))
    assert found.ratio == CLOSE(2.5)
    assert (found.low, found.high) == (near(2.5), near(2.5))
    assert found.low <= found.ratio <= found.high
    assert not found.at_most


def moved(points, noise) -> list[Point]:
    """All points of a curve by the same noise of their log scores."""
    return [replace(p, replicates=p.score * np.exp(noise)) for p in points]


def ends(ratio: float, noise, level: float = 0.95) -> tuple[float, float]:
    """log ratio = noise of the scores / 0.7 + const, whose mean moves the end that this widens, and not the other."""
    wide, mean = NormalDist().inv_cdf((1 + level) / 2) * noise.std(ddof=1), noise.mean()
    low, high = (ratio * math.exp(way * (wide + max(-way * mean, 0)) / 0.7) for way in (-1, 1))
    return low, high


def test_the_interval_holds_the_noise_of_both_sides():
    of_own, of_rivals = np.random.default_rng(1).standard_normal((2, 4000)) * [[0.05], [0.03]]
    (own,) = moved([point(2.0, 8 * 5.0**-0.7)], of_own)
    found = saving(own, moved(power_law([1, 4, 16, 64]), of_rivals))
    low, high = ends(2.5, of_rivals - of_own)
    assert (found.low, found.high) == (near(low), near(high))


def test_a_replicate_of_the_rivals_is_the_least_of_theirs():
    """Two rivals are as good as each other, apart in their noise s: the least of two is s / sqrt(pi) lower in the mean,
    and has the variance s^2 (1 - 1 / pi)."""
    noise = 0.03 * np.random.default_rng(2).standard_normal((2, 40_000))
    curves = [[replace(p, curve=name) for p in power_law([1, 4, 16, 64])] for name in ("one", "other")]
    rivals = [p for curve, of_curve in zip(curves, noise, strict=True) for p in moved(curve, of_curve)]
    score = 8 * 5.0**-0.7
    found = saving(point(2.0, score, np.full(40_000, score)), rivals)
    low, high = ends(2.5, noise.min(0))
    assert (found.low, found.high) == (near(low), near(high))
    deviation = 0.03 * math.sqrt(1 - 1 / math.pi)
    expected = (1.96 * deviation, 1.96 * deviation + 0.03 / math.sqrt(math.pi))
    assert (-0.7 * math.log(found.low / 2.5), 0.7 * math.log(found.high / 2.5)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_interval_of_the_own_noise_alone(sign, level):
    noise = sign * 0.05 * np.random.default_rng(0).standard_normal(4000)
    (own,) = moved([point(2.0, 8 * 5.0**-0.7)], noise)
    rivals = [point(p.cost, p.score, np.full(4000, p.score)) for p in power_law([1, 2, 4, 8, 16, 32])]
    found = saving(own, rivals, level=level)
    low, high = ends(2.5, -noise, level)
    assert (found.low, found.high) == (near(low), near(high))


def test_replicates_of_all_points_are_paired():
    """Noise that all scores share, as that of the same seeds, is no uncertainty of their ratio."""
    shared = np.exp(0.2 * np.random.default_rng(0).normal(size=50))
    rivals = [point(1, 4.0, 4 * shared), point(4, 1.0, shared)]
    found = saving(point(1, 2.0, 2 * shared), rivals)
    assert (found.low, found.high) == (near(2.0), near(2.0))
    apart = saving(point(1, 2.0, 2 * shared), [point(1, 4.0, 4 * shared[::-1]), point(4, 1.0, shared[::-1])])
    assert apart.low < 1.5 < 2.5 < apart.high


def test_the_least_of_many_equal_rivals_is_corrected_upwards_only():
    """Ten rivals of one true score: the least of their estimates, and again of replicates, is too low."""
    rivals = noisy([point(4, 1.0, curve=None)] * 10 + [point(16, 0.9, curve=None)], 0.05, seed=3)
    own = point(1, 0.97, np.full(4000, 0.97))
    least = np.mean([min(draw) for draw in 0.05 * np.random.default_rng(0).standard_normal((4000, 10))])
    assert least < math.log(0.97)  # a replicate of the rivals reaches the score, though no rival does
    found = saving(own, rivals)
    assert found.high == math.inf
    assert found.low == 0
    apart = saving(replace(own, score=0.85, replicates=np.full(4000, 0.85)), rivals)
    assert apart.low == 16 / 1  # beyond the noise of the ten


def test_scores_beyond_the_rivals_are_said_to_be():
    rivals = power_law([1, 4])
    best = saving(point(1.0, 0.1), rivals)
    assert (best.ratio, best.low, best.high) == (math.inf, math.inf, math.inf)
    assert str(best) == "never reached [never, never]"
    maybe = saving(
        noisy([point(1.0, 8 * 4.1**-0.7)], 0.05)[0], [point(p.cost, p.score, [p.score] * 4000) for p in rivals]
    )
    assert maybe.low < 4
    assert maybe.high == math.inf
    worst = saving(point(2.0, 20.0), rivals)
    assert worst.at_most
    assert (worst.ratio, worst.low, worst.high) == (0.5, 0, 0.5)


@pytest.mark.parametrize("score", [0.99, 1.01])
def test_a_lone_rival_that_may_be_as_good_tells_no_lower_end(score):
    """It costs four times as much; what a cheaper one would have scored nobody knows."""
    own, rival = noisy([point(1, 1.0), point(4, score)], 0.05)
    found = saving(own, [rival])
    assert (found.low, found.high) == (0, math.inf)


@pytest.mark.parametrize("alone", [True, False])
def test_rivals_of_one_cost_that_are_better_beyond_noise_bound_the_ratio(alone):
    own, *rivals = noisy([point(2, 20.0), point(1, 1.0), point(1, 1.1, curve=None)], 0.05)
    found = saving(own, rivals[:1] if alone else rivals)
    assert (found.ratio, found.low, found.high, found.at_most) == (0.5, 0, 0.5, True)


def test_of_equal_costs_on_a_curve_the_best_goes_on_in_any_order():
    points = [point(1, 1.0), point(1, 2.0), point(4, 0.25)]
    for rivals in (points, [points[1], points[0], points[2]]):
        assert cost_at(rivals, 0.5) == CLOSE(2)
        assert saving(point(1, 0.5), rivals).high == near(2)
        assert cost_at(rivals, 1.5) == 1


def test_a_curve_whose_first_plan_is_better_bounds_the_ratio_and_tells_no_lower_end():
    """A cheaper plan of it was not measured; of rivals that stand alone there is none."""
    cheap, dear = [point(1, 4.0, curve="a"), point(2, 3.0, curve="a")], [point(8, 0.5), point(16, 0.4)]
    own, *rivals = noisy([point(2, 1.0), *cheap, *dear], 0.01)
    found = saving(own, rivals)
    assert (found.ratio, found.low, found.high, found.at_most) == (4, 0, 4, True)
    assert [side(own, rivals, ratio) for ratio in (0.5, 3.9, 4.0, 4.1)] == [0, 0, 0, 1]
    reached = saving(own, [*rivals, *noisy([point(1, 2.0, curve="b"), point(7.8, 1.005, curve="b")], 0.01, seed=1)])
    assert (reached.low, reached.at_most) == (0, True)  # though by noise a line may reach it sooner
    alone = saving(own, [replace(one, curve=None) for one in rivals])
    assert (alone.ratio, alone.low, alone.high, alone.at_most) == (4, 4, 4, False)
    exact = saving(replace(own, score=0.5), rivals)  # the plan that is as good is there
    assert (exact.ratio, exact.at_most) == (4, False)
    sooner = saving(own, [*rivals, *noisy([point(4, 1.5), point(7.9, 1.01)], 0.01, seed=1)])  # the line comes to it
    assert not sooner.at_most
    assert 3.8 < sooner.low < sooner.high < 4.1


def test_a_first_plan_that_may_be_as_good_tells_no_lower_end():
    """The score is reached a little later on its curve; by noise its first plan reaches it, and a cheaper one may."""
    cheap, dear = [point(1, 4.0, curve="a"), point(2, 3.0, curve="a")], [point(8, 1.005), point(16, 0.4)]
    own, *rivals = noisy([point(2, 1.0), *cheap, *dear], 0.01)
    found = saving(own, rivals)
    assert 4 < found.ratio < found.high < 4.3
    assert (found.low, found.at_most) == (0, False)
    assert [side(own, rivals, ratio) for ratio in (0.5, 3.9, 4.3)] == [0, 0, 1]


def test_replicates_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="5 replicates"):
        saving(point(1, 1), [point(1, 1, [1.0, 2.0])])
    with pytest.raises(ValueError, match="baselines"):
        saving(point(1, 1), [])
    for replicates in ([1.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="at least two replicates"):
            saving(point(1, 1, replicates), [point(1, 1, replicates)])


@pytest.mark.parametrize("seed", range(5))
def test_the_side_of_a_ratio_is_that_of_the_interval(seed):
    """Several curves have noise apart."""
    (own,) = noisy([point(2.0, 8 * 5.0**-0.7)], 0.05, seed=seed)
    curves = [replace(p, curve=name) for name in "abc" for p in power_law([1, 4, 16])]
    rivals = noisy(curves, 0.05, seed=10 + seed)
    found = saving(own, rivals)
    ratios = (found.low / 1.01, found.low * 1.01, found.high / 1.01, found.high * 1.01)
    assert [side(own, rivals, ratio) for ratio in ratios] == [-1, 0, 0, 1]
    cheapest = min(p.cost for p in rivals) / own.cost
    assert [side(own, rivals, ratio) for ratio in (cheapest, cheapest / 2)] == [-1, -1]
    good = [replace(p, score=p.score / 10, replicates=p.replicates / 10) for p in rivals]
    assert side(own, good, cheapest / 2) == 0  # a cheaper one could do


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.3])
def test_a_plan_is_told_from_rivals_of_equal_cost_by_the_normal_law_of_its_noise(factor):
    (own,) = noisy([point(2.0, factor * 8 * 2.0**-0.7)], 0.05)
    noise = np.log(own.replicates / own.score)
    rivals = [replace(p, replicates=np.full(4000, p.score)) for p in LAW]
    wide = NormalDist().inv_cdf(0.975) * noise.std(ddof=1)
    low = math.exp(min(0, noise.mean()) - wide) / factor  # of the rivals' score over its own
    high = math.exp(max(0, noise.mean()) + wide) / factor
    assert side(own, rivals, 1.0) == int(high < 1) - int(low > 1)


def test_where_the_front_falls_at_once_the_fall_is_the_interval():
    """Two rivals without a line between them, the better of which is better beyond all noise."""
    own = noisy([point(1.0, 1.0)], 0.01)[0]
    rivals = noisy([point(1, 2.0, curve=None), point(3, 0.5, curve=None), point(9, 0.4, curve=None)], 0.01)
    found = saving(own, rivals)
    assert (found.low, found.ratio, found.high) == (3, 3, 3)
    assert [side(own, rivals, ratio) for ratio in (2.9, 3.0, 3.1)] == [-1, 0, 1]


def test_intervals_cover_what_they_say():
    """Curves of known scores, estimated with noise; the true ratio is 2 (studies/coverage.py: more of the kind)."""
    rng = np.random.default_rng(5)
    deviation, count, trials = 0.08, 100, 1000
    truth = [point(cost, 8 * cost**-0.7 * lift, curve=f"{lift}") for cost in (1, 2, 4, 8) for lift in (1, 1.02, 1.05)]
    held = 0
    for trial in range(trials):
        seen = [replace(p, score=p.score * math.exp(deviation * rng.standard_normal())) for p in truth]
        own = point(2.0, 8 * 4**-0.7 * math.exp(deviation * rng.standard_normal()))
        own, *rivals = noisy([own, *seen], deviation, seed=trial, count=count)
        held += side(own, rivals, 2.0) == 0
    assert 0.93 <= held / trials <= 0.97


def test_replicates_end_at_a_thousandth_of_the_score():
    """Replicates of a score near zero may lie below it."""
    found = Point("p", 1, 2.0, np.array([-1.0, 0.0, 1e-3, 2.0])).log_replicates
    np.testing.assert_allclose(found, np.log([2e-3, 2e-3, 2e-3, 2.0]))


@pytest.mark.parametrize(("cost", "score"), [(0, 1), (1, 0), (1, -1), (1, math.inf), (math.nan, 1)])
def test_a_point_that_has_no_logarithm_is_refused(cost, score):
    with pytest.raises(ValueError, match="both must be positive numbers"):
        Point("p", cost, score, np.ones(2))
