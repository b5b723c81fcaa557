"""Sentences: a win needs separate intervals and no higher cost, and the pair shown first is chosen by cost alone."""

import pytest

from dualrate.report.headline import closest_pair, compare, describe, name, nearest
from report.made import DUAL, HEAVY, LIGHT, row


def test_overlapping_intervals_are_never_a_win():
    for first, second in ((DUAL, HEAVY), (HEAVY, DUAL)):
        verdict = compare(first, second).verdict
        assert "not told apart" in verdict
        assert "beats" not in verdict
        assert "better" not in verdict


@pytest.mark.parametrize(
    ("flops", "seconds", "expected"),
    [
        (1.0, 1.0, "at no higher cost"),
        (0.5, 1.09, "at no higher cost"),
        (1.0, 1.2, "takes more time"),
        (1.2, 1.0, "takes more FLOPs"),
        (1.2, 1.2, "neither wins"),
    ],
)
def test_a_win_says_at_which_cost(flops, seconds, expected):
    good = row("good", value=5, macs=round(flops * 1e9), seconds=seconds)
    bad = row("bad", value=10, macs=1_000_000_000, seconds=1.0)
    for comparison in (compare(good, bad), compare(bad, good)):
        assert comparison.first is good
        assert comparison.verdict.startswith("good")
        assert expected in comparison.verdict
        assert ("beats" in comparison.verdict) == ("neither" not in expected)


def test_sentences_hold_the_numbers():
    assert (
        describe(DUAL) == "dual-rate ancestral 32/8: FD-squares 13.0 [12.0, 14.0] at 4.20 GFLOPs and 35.0 ms per image"
    )
    assert name(HEAVY) == "heavy DDIM 16"
    assert "13.0 [12.0, 14.0] against 14.1 [13.1, 15.1]" in compare(DUAL, HEAVY).short
    assert "0.787 times the FLOPs and 0.875 times the measured time" in compare(DUAL, HEAVY).short
    assert describe(HEAVY) in compare(DUAL, HEAVY).long


def test_neighbours_are_chosen_by_cost_whatever_the_scores():
    near = row("near", macs=2_000_000_000, value=90)
    assert nearest(DUAL, [LIGHT, near, HEAVY]) is near
    far = row("far", macs=9_000_000_000, value=0.5, half=0.1)
    pair = closest_pair([DUAL, far], [LIGHT, near])
    assert {pair.first, pair.second} == {DUAL, near}


def test_scores_of_different_conditions_are_not_compared():
    with pytest.raises(ValueError, match="count"):
        compare(DUAL, row(count=5000))
