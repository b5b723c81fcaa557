"""Sentences: a win needs separate intervals and no higher cost; a rival is the best that costs no more."""

import pytest

from dualrate.report.table import best_within, compare, describe, distinguishable, name, nearest, tally
from report.made import DUAL, HEAVY, LIGHT, row


def test_overlapping_intervals_are_never_a_win():
    for first, second in ((DUAL, HEAVY), (HEAVY, DUAL)):
        verdict = compare(first, second).verdict
        assert "not distinguishable" in verdict
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
    assert "13.0 [12.0, 14.0] against 14.1 [13.1, 15.1]" in compare(DUAL, HEAVY).sentence
    assert "0.787 times the FLOPs and 0.875 times the measured time" in compare(DUAL, HEAVY).sentence


def test_neighbours_are_chosen_by_cost_whatever_the_scores():
    near = row("near", macs=2_000_000_000, value=90)
    assert nearest(DUAL, [LIGHT, near, HEAVY]) is near
    cheaper, dearer = row("a", macs=1_400_000_000, value=1), row("b", macs=2_900_000_000, value=1)
    assert nearest(DUAL, [cheaper, dearer]) is dearer  # by their ratio: of 2.1


def test_the_rival_is_the_best_of_those_that_cost_no_more():
    cheap, good = row("cheap", macs=100_000_000, value=20), row("good", macs=2_300_000_000, value=12)
    dear = row("dear", macs=2_320_000_000, value=1)  # of 2.1 GMACs, 1.1 times are 2.31
    assert best_within(DUAL, [cheap, good, dear]) is good
    assert best_within(DUAL, [cheap, dear]) is cheap
    assert best_within(DUAL, [dear]) is None


def test_a_tally_counts_intervals_that_are_apart():
    better, worse, close = row(value=15.1), row(value=10.9), row(value=14.9)
    assert distinguishable(DUAL, better)
    assert not distinguishable(DUAL, close)
    pairs = [(DUAL, better), (DUAL, worse), (worse, better), (DUAL, close), (close, DUAL)]
    assert tally(pairs) == "better in 2 of 5 plans, worse in 1, not distinguishable in 2"


def test_scores_of_different_conditions_are_not_compared():
    with pytest.raises(ValueError, match="count"):
        compare(DUAL, row(count=5000))
