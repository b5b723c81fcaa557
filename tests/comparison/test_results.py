"""Results of a comparison of made-up measurements: savings in closed form, merged trainings, the page, kept rows."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report.made import row

from dualrate.comparison.candidates import Candidate
from dualrate.comparison.compare import promising
from dualrate.comparison.results import (
    ComparisonResults,
    as_json,
    compare_page,
    front_table,
    headline,
    reusing_plans,
)
from dualrate.comparison.rows import MeasuredCandidate, Saving, cost_at, saving
from dualrate.diffusion.plan import StepPlan
from dualrate.metrics.ensembles import EnsembleScores


def finished(
    network: str,
    cost: float,
    score: float,
    *,
    heavy: int = 2,
    other: float | None = None,
    spread: float = 0.0,
    half: float = 0.1,
    seconds: float | None = None,
) -> MeasuredCandidate:
    """cost: GMACs; other: score by a second metric; spread: of the replicates, in logarithms; half: of the interval."""
    seconds = cost if seconds is None else seconds
    made = row(network, steps=4, heavy=heavy, macs=int(cost * 1e9), seconds=seconds, value=score, half=half)
    factors = np.exp(spread * np.linspace(-1, 1, 41))
    replicates = {"FD-squares": score * factors}
    if other is not None:
        made = replace(made, beside=(replace(made.score, metric="FD-other", value=other),))
        replicates["FD-other"] = other * factors
    plan = StepPlan.uniform(int(8 * cost), int(2 * cost * heavy))  # plans of a network differ in steps alone
    candidate = Candidate(Path(network), network, "ancestral", plan)
    images = np.zeros((2, 1, 4, 4), np.uint8)
    return MeasuredCandidate(candidate, made, replicates, seconds_alone=cost, images=images)


def findings(duals: list[MeasuredCandidate], baselines: list[MeasuredCandidate], *left: str) -> ComparisonResults:
    measured = [*duals, *baselines]
    return ComparisonResults(measured, measured, duals + baselines, frozenset({"dual"}), left, "command").with_savings()


BASELINES = [finished("single", cost, 8 / cost, heavy=4) for cost in (1, 4)]  # a power law, exact in logarithms


@pytest.mark.parametrize(
    ("cost", "score", "ratio"),
    [(1, 4.0, 2.0), (2, 4.0, 1.0), (4, 4.0, 0.5), (1, 1.9, math.inf)],
)
def test_a_saving_is_the_baselines_cost_for_the_same_score(cost, score, ratio):
    found = saving(finished("dual", cost, score), BASELINES)
    assert found is not None
    assert (found.ratio, found.low, found.high) == pytest.approx((ratio, ratio, ratio))
    assert not found.at_most


def test_an_upper_bound_has_no_lower_end():
    """The cheapest plan of a baseline is better already, so that a cheaper one, had it been measured, could do."""
    worse = finished("other", 5, 99.0, heavy=4)
    found = saving(finished("dual", 2, 9.0), [*BASELINES, worse])
    assert found is not None
    assert (found.ratio, found.low, found.high, found.at_most) == (0.5, 0.0, 0.5, True)
    assert str(found) == "at most 0.50 [0.00, 0.50]"
    other = replace(finished("dual", 2, 9.0), replicates={"FD-squares": np.full(41, 4.0)})
    assert str(saving(other, [*BASELINES, worse])) == "at most 0.50 [0.00, 1.00]"
    noisy = saving(finished("dual", 1, 8.5, spread=0.2), [*BASELINES, worse])  # in many replicates it needs more
    assert noisy is not None
    assert noisy.at_most
    assert noisy.low == 0 < noisy.ratio == 1 < noisy.high
    near = saving(finished("dual", 0.9, 7.9, spread=0.2), BASELINES)  # no bound itself, but half of its replicates are
    assert near is not None
    assert not near.at_most
    assert (near.low, near.high) == (0, pytest.approx(8 / (7.9 * math.exp(-0.2)) / 0.9, rel=0.02))


@pytest.mark.parametrize(("cost", "score"), [(0.5, 9.0), (2, 9.0), (0.5, 99.0)])
def test_nothing_is_saved_where_all_baselines_are_better_or_none_as_cheap_was_measured(cost, score):
    assert saving(finished("dual", cost, score), BASELINES) is None
    assert (saving(finished("dual", cost, score), [*BASELINES, finished("other", 5, 100.0)]) is None) == (cost < 1)
    results = findings([finished("dual", cost, score)], BASELINES)
    assert "saving" not in front_table(results.finished).header
    assert "saving_ratio" not in json.loads(as_json(results))["front"][0]


def test_its_interval_is_of_the_replicates_of_both_sides():
    """On the power law score times cost is 8, so that the ratio is 8 over own score and cost."""
    dual, baselines = finished("dual", 1, 4.0, spread=0.2), BASELINES
    found = saving(dual, baselines)
    tails = np.quantile(8 / dual.replicates["FD-squares"], [0.025, 0.975], method="inverted_cdf")
    assert (found.low, found.ratio, found.high) == pytest.approx((tails[0], 2.0, tails[1]))
    noisy = [finished("single", cost, 8 / cost, heavy=4, spread=0.2) for cost in (1, 4)]
    paired = saving(dual, noisy)  # the same images disturb both sides alike
    assert (paired.low, paired.high) == pytest.approx((2.0, 2.0))


def test_between_curves_and_beyond_them_nothing_is_assumed():
    assert cost_at(np.array([1.0, 4.0]), np.array([8.0, 2.0]), 4.0) == pytest.approx(2.0)
    assert cost_at(np.array([1.0, 4.0]), np.array([8.0, 2.0]), 9.0) == 1
    assert cost_at(np.array([1.0, 4.0]), np.array([8.0, 2.0]), 1.0) == math.inf
    assert cost_at(np.array([1.0, 2.0, 4.0]), np.array([8.0, 9.0, 2.0]), 4.0) == pytest.approx(
        2 * 2 ** (math.log(9 / 4) / math.log(9 / 2))
    )
    apart = [finished("a", 1, 8.0, heavy=4), finished("b", 4, 2.0, heavy=4)]
    assert saving(finished("dual", 1, 4.0), apart).ratio == 4


def test_without_baselines_nothing_is_saved():
    assert findings([finished("dual", 1, 4.0)], []).finished[0].saving is None
    assert all(one.saving is None for one in findings([], BASELINES).finished)


@pytest.mark.parametrize(
    ("cost", "score", "said"),
    [
        (1, 4.0, "Two rates pay here: baselines need 2.00 times their FLOPs for the same score (95%: 2.00 to 2.00)."),
        (4, 4.0, "not pay here: they need 2.00 times the FLOPs of the cheapest baseline for the same score (95%: 2.00"),
        (1, 1.0, "The best baseline is single in 4 steps: 2.00 [1.90, 2.10] at 8.00 GFLOPs and 4000 ms."),
        (1, 1.0, "Two rates pay here: no baseline reaches their score, and the nearest costs 4.00 times their FLOPs."),
        (2, 9.0, "not pay here: every baseline is better, the cheapest at 0.50 times their FLOPs. The best"),
        (2, 9.0, "Dual-rate has the worse score."),
    ],
)
def test_the_headline_says_what_is_saved(cost, score, said):
    text = headline(findings([finished("dual", cost, score)], BASELINES))
    assert text.startswith("Two rates")
    assert "The best plan of two rates is dual in 4 steps, 2 of them heavy: FD-squares" in text
    assert said in text
    assert headline(findings([], BASELINES)).startswith("The best is single in 4 steps: FD-squares 2.00")


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (Saving(1.5, 0.8, 2.0), "told with 1,000 images: for the same score baselines need 0.800 to 2.00 times"),
        (Saving(1.5, 0.8, math.inf), "need at least 0.800 times their FLOPs (95%)."),
        (Saving(0.9, 0.0, 1.5, at_most=True), "need at most 1.50 times their FLOPs (95%)."),
        (Saving(0.9, 0.0, math.inf, at_most=True), "cannot be told with 1,000 images."),
        (Saving(2.0, math.nan, math.nan), "cannot be told with 1,000 images."),
        (Saving(0.5, 0.0, 0.8, at_most=True), "they need at least 2.00 times the FLOPs of the cheapest baseline"),
        (Saving(math.inf, 3.8, math.inf), "reaches their score, and the nearest costs 4.00 times their FLOPs (95"),
        (Saving(math.inf, math.inf, math.inf), "reaches their score, and the nearest costs 4.00 times their FLOPs."),
        (Saving(2.0, 1.5, math.inf), "baselines need 2.00 times their FLOPs for the same score (95%: at least 1.50)."),
    ],
)  # fmt: skip
def test_the_verdict_is_in_words(saved, said, monkeypatch):
    monkeypatch.setattr("dualrate.comparison.results.saving", lambda *of: saved)
    assert said in headline(findings([finished("dual", 1, 4.0)], BASELINES))


def test_the_headline_calls_no_baseline_better_that_it_cannot_tell_apart():
    unsure = finished("dual", 8, 8.05, spread=0.2)  # the cheapest baseline has 8.0 +- 0.1
    said = (
        "not pay here: every baseline has a better score, or one that cannot be told from theirs, the cheapest at 0.12"
    )
    assert said in headline(findings([unsure], BASELINES))


def test_the_headline_names_samplers_where_they_differ():
    other = finished("dual", 1, 4.0)
    other = replace(other, row=replace(other.row, sampler="DDIM"))
    said = "The best plan of two rates is dual in 4 steps, 2 of them heavy, by DDIM: FD-squares"
    assert said in headline(findings([other], BASELINES))


def test_the_headline_has_the_time_of_both_sides():
    slow, quick = (finished("dual", 1, 4.0, seconds=seconds) for seconds in (8, 0.5))
    said = headline(findings([slow], BASELINES))
    assert "and 8000 ms an image" in said
    assert "In time a baseline is cheaper: single in 4 steps has 2.00 [1.90, 2.10] and takes 4000 ms, 0.500 of" in said
    assert "In time no baseline of such a score is cheaper" in headline(findings([quick], BASELINES))
    overlapping = finished("dual", 1, 1.85, seconds=8)  # to 1.95, and the baseline from 1.90
    assert "In time a baseline is cheaper: single" in headline(findings([overlapping], BASELINES))
    assert "In time" not in headline(findings([finished("dual", 1, 1.0, seconds=9)], BASELINES))  # none is as good


def test_scores_whose_intervals_overlap_are_not_distinguishable_in_words():
    """On the page, in JSON, in the headline; intervals of 2.3 +- 0.5, 2.0 +- 0.1 and 8.0 +- 0.1."""
    results = findings([finished("dual", 2, 2.3, half=0.5, spread=1.0)], BASELINES)
    assert "not distinguishable: their intervals, of 1,000 images each, overlap" in headline(results)
    assert "Whether two rates pay cannot be told with 1,000 images" in headline(results)
    said = "Not distinguishable from the best score, single ancestral 4, since intervals overlap: dual ancestral 4/2."
    assert said in compare_page(results)
    made = json.loads(as_json(results))
    assert made["not_distinguishable_from_the_best"] == ["dual ancestral 4/2"]
    assert made["headline"] == headline(results)
    apart = findings([finished("dual", 1, 4.0)], BASELINES)
    assert "istinguishable" not in compare_page(apart) + as_json(apart).replace("not_distinguishable", "")
    burst = finished("single", 3, math.nan, heavy=4)
    assert findings([], [burst, finished("a", 2, 1.0, half=1.0), finished("b", 1, 3.0, half=1.0)]).ties == [
        "a ancestral 4/2",
        "b ancestral 4/2",
    ]
    unsure = finished("b", 1, 3.0, half=math.nan)  # without an interval nothing is said
    assert findings([], [unsure, finished("a", 2, 1.0, half=9.0)]).ties == findings([], [burst]).ties == []
    assert "No score is finite." in headline(findings([], [burst]))


def test_without_intervals_scores_are_not_told_apart():
    """Too few samples to resample: rows without replicates."""

    def bare(network: str, cost: float, score: float, heavy: int) -> MeasuredCandidate:
        measured = finished(network, cost, score, heavy=heavy, half=math.nan)
        return replace(measured, replicates={"FD-squares": np.empty(0)})

    results = findings([bare("dual", 1, 4.0, 2)], [bare("single", cost, 8 / cost, 4) for cost in (1, 4)])
    assert str(results.finished[0].saving) == "2.00"
    assert "Whether these two scores differ is open: 1,000 images give no intervals." in headline(results)
    assert "Whether two rates pay cannot be told with 1,000 images." in headline(results)
    (line, *_) = json.loads(as_json(results))["front"]
    assert (line["saving_ratio"], line["saving_low"], line["low"]) == (2.0, None, None)


def test_a_row_of_few_groups_has_a_wider_interval():
    """A share of replicates below the interval that is smaller than the usual one."""
    dual = finished("dual", 1, 4.0, spread=0.2)
    wide, usual = (saving(replace(dual, more=more), BASELINES) for more in ({"tail": 0.0}, {}))
    assert (wide.low, wide.high) == pytest.approx((8 / (4 * math.exp(0.2)), 8 / (4 * math.exp(-0.2))))
    assert wide.low < usual.low < usual.high < wide.high


def test_results_print_and_show():
    results = findings([finished("dual", 1, 4.0)], BASELINES, "3 of 9 were not measured.")
    assert headline(results) in str(results)
    assert str(results).endswith("3 of 9 were not measured. The same command continues.")
    assert all(part in results._repr_html_() for part in ("<table>", "<svg", "So far: Two rates pay"))
    assert results.page == compare_page(results)


def test_further_metrics_are_columns():
    dual = finished("dual", 1, 4.0, other=5.0)
    results = findings([dual], [finished("single", cost, 8 / cost, heavy=4, other=8 / cost) for cost in (1, 4)])
    header = front_table(results.finished).header
    assert [name for name in header if name.startswith("FD-")] == ["FD-squares", "FD-other"]
    lines = json.loads(as_json(results))["front"]
    assert [line["FD-other value"] for line in lines] == [5.0, 8.0, 2.0]
    assert [line.get("saving_ratio") for line in lines] == [2.0, None, None]
    assert "FD-other" in compare_page(results)


def test_a_page_of_several_samples_a_condition_has_their_ranks_and_says_what_a_row_shows():
    scores = EnsembleScores(2, 8, 0.1, 0.2, 20, 18, (0.01, 0.02, 0.1, 0.1), 0.9, (0.5, 0.2, 0.3))
    one = finished("dual", 1, 4.0)
    several = replace(one, row=replace(one.row, ensemble=scores), columns=2)
    says = ["Ranks of the truth", "Each row: the condition"]
    assert all(part in compare_page(findings([several], BASELINES)) for part in says)
    assert not any(part in compare_page(findings([one], BASELINES)) for part in says)


def test_a_curve_is_of_plans_of_one_rate():
    def curve(steps: int, heavy: int) -> str:
        return Candidate(Path("dual"), "dual", "ancestral", StepPlan.uniform(steps, heavy)).curve

    assert curve(16, 4) == curve(32, 8) != curve(16, 8)
    assert curve(16, 0) == curve(32, 0)
    assert curve(16, 0) not in (curve(16, 1), curve(32, 2), curve(16, 16))


def test_what_is_unfinished_is_said_first():
    shown = compare_page(findings([finished("dual", 1, 4.0)], BASELINES, "3 of 9 were not measured."))
    assert "So far: Two rates pay" in shown
    assert "3 of 9 were not measured. The same command continues." in shown


def test_json_has_a_word_for_what_no_baseline_reaches():
    (line, *_) = json.loads(as_json(findings([finished("dual", 1, 0.5)], BASELINES)))["front"]
    assert (line["saving_ratio"], line["saving_at_most"]) == ("never", False)


def test_the_table_is_in_order_of_cost():
    made = front_table([BASELINES[1], finished("dual", 2, 3.0), BASELINES[0]])
    assert [line[5] for line in made.cells] == ["2.00", "4.00", "8.00"]
    assert [line[3] for line in made.cells] == ["-", "2", "-"]


def test_a_plan_that_reuses_is_drawn_once():
    dual = finished("dual", 1, 4.0)
    other = replace(dual.candidate, gamma=0.5)
    again = replace(dual, candidate=other)
    shown = reusing_plans([dual, again, finished("dual", 2, 3.0), *BASELINES])
    assert [name for name, _ in shown] == ["dual 8/4", "dual 16/8"]


def test_promising_are_the_fronts_by_turns():
    own = [finished("dual", cost, score) for cost, score in ((1, 5.0), (2, 6.0), (3, 4.0))]
    others = [*BASELINES, finished("single", 2, 9.0, heavy=4), finished("third", 5, 9.0)]
    made = promising(own + others, {"dual"})
    assert [one.network for one in made] == ["single", "dual", "single", "dual", "third"]
    named = replace(own[1], candidate=replace(own[1].candidate, named=True))
    assert promising([*own, *others, named], {"dual"})[0].named


def test_a_saving_whose_interval_holds_every_ratio_is_open():
    assert str(Saving(math.inf, 0.0, math.inf)) == "open"
    assert str(Saving(0.9, 0.0, math.inf, at_most=True)) == "open"
    assert str(Saving(math.inf, 1.2, math.inf)) == "never [1.20, never]"
