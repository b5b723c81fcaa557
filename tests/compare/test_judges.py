"""What several judges come to, of made-up measurements: where they agree, where they do not, and who chose."""

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from test_savings import RIVALS, findings, finished

from dualrate.compare.judges import CHEAPER, DEARER, OPEN, SPLIT, beyond, roles, told_together, verdict_table, verdicts
from dualrate.compare.page import compare_page, front_table
from dualrate.compare.records import as_csv, as_json
from dualrate.compare.savings import ComparisonResults, savings
from dualrate.compare.work import TimedContender
from dualrate.drawing.choice import CHOSEN_IN
from dualrate.report import html

SPREAD = np.linspace(-1, 1, 9)


def seen(one: TimedContender, score: float, spread: float = 0.0) -> TimedContender:
    """Also by a second judge: its score, whose replicates reach to `spread` on either side."""
    row, replicates = one.row, score + spread * SPREAD
    fingerprint = replace(row.score.fingerprint, features="other:bb")
    other = replace(row.score, metric="FD-other", value=score, fingerprint=fingerprint)
    measured = replace(one.measured, row=replace(row, beside=(other,)), beside={"FD-other": replicates})
    return replace(one, measured=measured)


def judged(judge, first: float, second: float, spread: float = 0.0, cost: float = 1) -> ComparisonResults:
    """A plan's scores by both judges, against rivals whose score is 8 / cost by both."""
    rivals = [seen(rival, rival.row.score.value) for rival in RIVALS]
    return findings(judge, [seen(finished("dual", cost, first), second, spread)], rivals)


@pytest.mark.parametrize(
    ("first", "second", "spread", "cost", "word"),
    [
        (4.0, 5.0, 0.0, 1, CHEAPER),  # the rivals pay 2 and 1.6 times as much
        (4.0, 4.5, 0.0, 4, DEARER),
        (4.0, 7.0, 2.0, 1, SPLIT),  # the second one's interval holds 1
        (4.0, 8.0, 0.0, 1, SPLIT),
        (8.0, 8.0, 0.0, 1, OPEN),
        (9.0, 9.0, 0.0, 0.5, OPEN),  # the rivals' cheapest costs twice as much, and is better: a cheaper one may be too
    ],
)
def test_judges_agree_where_every_interval_leaves_out_1_on_one_side(
    judge, first, second, spread, cost, word, monkeypatch
):
    monkeypatch.setattr(html, "svg", lambda figure: "<svg></svg>")
    results = judged(judge, first, second, spread, cost)
    (found,) = verdicts(results)
    assert list(found.by_judge) == ["FD-squares", "FD-other"]
    assert found.words == (word,) * 3
    assert f"On FLOPs the 2 judges {word}." in compare_page(results)


def test_of_measured_time_a_saving_within_the_noise_of_timing_is_none(judge):
    (found,) = verdicts(judged(judge, 7.6, 7.6))  # 1.05, without any noise of images
    assert found.words == (CHEAPER, OPEN, OPEN)


def test_the_first_judge_s_ratios_are_those_of_the_savings(judge):
    results = judged(judge, 4.0, 5.0)
    (found,), (own,) = verdicts(results), savings(results)
    assert found.first.savings == own.savings
    assert [one.savings[0].ratio for one in found.by_judge.values()] == pytest.approx([2.0, 1.6])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1.1, 2, 1), (math.inf, math.inf, 1), (0.5, 0.9, -1), (0, 0.9, -1), (0.9, 1.1, 0), (1, 2, 0), (0, math.inf, 0),
     (0, 0.996, 0), (1.004, 2, 0), (0, 0.994, -1)],
)  # fmt: skip
def test_the_side_of_1_that_an_interval_is_on(judge, low, high, expected):
    (found,) = verdicts(judged(judge, 4.0, 5.0))
    assert beyond(replace(found.first.savings[0], low=low, high=high)) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(1.15, 2, 1), (1.05, 2, 0), (0.5, 0.9, -1), (0.5, 0.95, 0), (0.9, 1.1, 0)]
)
def test_what_was_timed_is_beyond_1_by_more_than_its_noise(judge, low, high, expected):
    (found,) = verdicts(judged(judge, 4.0, 5.0))
    assert beyond(replace(found.first.savings[0], low=low, high=high), 1.1) == expected


def test_a_line_a_judge_and_what_they_come_to(judge):
    made = verdict_table(judged(judge, 4.0, 8.0))
    assert [line[3] for line in made.cells] == ["FD-squares", "FD-other", "the judges"]
    assert [line[4] for line in made.cells] == ["4.00", "8.00", ""]
    assert [line[5] for line in made.cells] == ["2.00 [2.00, 2.00]", "1.00 [1.00, 1.00]", ""]
    assert made.cells[0][6].startswith("2.00 [")
    assert made.cells[1][6].startswith("1.00 [")
    assert made.cells[2][6:] == (SPLIT,) * 3
    assert made.notes[-1].startswith(
        "on FLOPs 1 of 2 ratios leave out 1 above, 0 below, each by an interval of its own"
    )
    assert "were all of them 1, 0.05 a side would by chance" in made.notes[-1]
    assert "1 leave it out by Holm's procedure" in made.notes[-1]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(3.0, 2.1, 2), (2.1, 3.0, 2), (-3.0, 2.1, 2), (2.1, 2.1, 0), (2.3, 1.9, 1), (1.9, 1.9, 0), (0.0, 0.0, 0)],
)
def test_what_is_told_together_is_told_at_stricter_levels_one_by_one(judge, first, second, expected):
    """Of two ratios, this many standard deviations from 1: one has to be 2.24 away, the other then 1.96."""

    scores = [8 * math.exp(-0.1 * away) for away in (first, second)]  # the rivals have 8 there
    noise = np.exp(0.1 * SPREAD / SPREAD.std(ddof=1))
    one = seen(finished("dual", 1, scores[0]), scores[1])
    measured = replace(one.measured, replicates=scores[0] * noise, beside={"FD-other": scores[1] * noise})
    rivals = [seen(rival, rival.row.score.value) for rival in RIVALS]
    results = findings(judge, [replace(one, measured=measured)], rivals)
    found = verdicts(results)
    assert told_together(results, found) == expected


def test_what_is_told_together_has_the_noise_of_training_of_its_level(judge, monkeypatch):
    """Of several trainings replicates are made anew: here noisier at stricter levels than at the usual one."""
    results = judged(judge, 4.0, 4.0)
    assert told_together(results, verdicts(results)) == 2
    levels = []

    def noisier(measured, level):
        levels.append(level)
        factor = np.exp(10 * SPREAD)
        return [replace(one, replicates=factor * one.replicates, beside={"FD-other": factor * 4}) for one in measured]

    monkeypatch.setattr("dualrate.compare.judges.as_one", noisier)
    several = replace(results, measured=[one.measured for one in results.own])
    assert told_together(several, verdicts(several)) == 0
    assert levels == [1 - 0.05 / 2]


def test_columns_a_judge_on_the_page_in_csv_and_in_json(judge):
    results = judged(judge, 4.0, 8.0)
    header = front_table(results.finished).header
    assert [name for name in header if name.startswith("FD-")] == ["FD-squares", "FD-other"]
    assert header.count("95% interval") == 2
    lines = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert [float(line["FD-other value"]) for line in lines] == [8.0, 8.0, 2.0]
    assert [line["judges on FLOPs"] for line in lines] == [SPLIT, "", ""]
    (saved,) = json.loads(as_json(results))["savings"]
    ratios = [saved["judges"][metric]["FLOPs"]["ratio"] for metric in ("FD-squares", "FD-other")]
    assert ratios == pytest.approx([2.0, 1.0])
    scores = [saved["judges"][metric]["score at equal FLOPs"]["ratio"] for metric in ("FD-squares", "FD-other")]
    assert scores == pytest.approx([2.0, 1.0])
    assert saved["judges on FLOPs"] == SPLIT


@pytest.mark.parametrize(("by_other", "listed"), [(4.0, 2), (6.0, 1)])
def test_a_plan_that_any_judge_has_on_the_front_is_judged(judge, by_other, listed):
    """Beside one that costs as much and has 4 and 5; by the first judge it has 6."""
    rivals = [seen(rival, rival.row.score.value) for rival in RIVALS]
    own = [seen(finished("dual", 1, 4.0), 5.0), seen(finished("dual", 1, 6.0, heavy=1), by_other)]
    results = findings(judge, own, rivals)
    assert len(verdicts(results)) == len(savings(results)) == listed


def test_of_one_judge_nothing_more_is_said(judge):
    results = findings(judge, [finished("dual", 1, 4.0)], RIVALS)
    assert verdicts(results) == []
    assert "judges agree" not in compare_page(results)
    assert not any("judge" in key for key in json.loads(as_json(results))["savings"][0])
    assert "judges on" not in as_csv(results)


def test_who_chose_is_no_independent_witness(judge, monkeypatch):
    results = judged(judge, 4.0, 8.0)
    first, second = roles(results)
    assert first.startswith("FD-squares (squares:aa) chose which contenders")
    assert second == "FD-other (other:bb) chose nothing here: independent, unless it chose what you named."
    assert second in compare_page(results)
    monkeypatch.setattr("dualrate.compare.judges.CHOSEN_IN", "other:bb")
    assert "FD-other (other:bb) chose the usual samplers and plans" in roles(results)[1]
    assert CHOSEN_IN.startswith("fashion-mnist:")
