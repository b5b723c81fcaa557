"""The front is what no other beats."""

from hypothesis import given
from hypothesis import strategies as st

from dualrate.report.figures import pareto_front


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=1, max_size=12))
def test_front_is_what_nothing_beats(points):
    kept = pareto_front(points, lambda one: one)
    assert kept == sorted(kept)
    for one in points:
        beaten = any(other[0] <= one[0] and other[1] <= one[1] and other != one for other in points)
        assert (one in kept) == (not beaten)
