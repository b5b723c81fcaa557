"""The front is what no other point beats, and points are positive."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dualrate.report.pareto import Point, front


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
