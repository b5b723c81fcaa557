"""The front is what no other point beats, and points are positive."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualrate.report.figures import Point, front


def point(cost: float, score: float) -> Point:
    return Point(f"{cost}", cost, score, np.full(5, score))


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


def test_replicates_end_at_a_thousandth_of_the_score():
    """Those of a score near zero may lie below it."""
    found = Point("p", 1, 2.0, np.array([-1.0, 0.0, 1e-3, 2.0])).log_replicates
    np.testing.assert_allclose(found, np.log([2e-3, 2e-3, 2e-3, 2.0]))


@pytest.mark.parametrize(("cost", "score"), [(0, 1), (1, 0), (1, -1), (1, math.inf), (math.nan, 1)])
def test_a_point_that_has_no_logarithm_is_refused(cost, score):
    with pytest.raises(ValueError, match="both must be positive numbers"):
        Point("p", cost, score, np.ones(2))
