"""Networks trained several times: one line of a report each, from entries to the page."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from test_compare import EFFORT, Notes, here, pages, prepared  # noqa: F401
from test_savings import finished

from dualrate.compare.comparison import compare
from dualrate.compare.contenders import Entry
from dualrate.compare.judges import verdicts
from dualrate.compare.page import trainings_table
from dualrate.compare.trainings import as_one, with_trainings
from dualrate.compare.work import MeasuredContender
from dualrate.report.trainings import student_quantile
from dualrate.runs.store import load, write_experiment
from dualrate.training import checkpoint


def trained(network: str, cost: float, scores) -> list[MeasuredContender]:
    """A plan in trainings of these scores."""
    made = [finished(network, cost, score).measured for score in scores]
    return [replace(one, contender=replace(one.contender, training=i)) for i, one in enumerate(made)]


def test_a_line_is_the_geometric_mean_of_its_trainings():
    one, other = as_one([*trained("a", 1, [1, 4]), *trained("b", 1, [2, 2, 16])])
    assert (one.row.score.value, other.row.score.value) == (pytest.approx(2), pytest.approx(4))
    (metric,) = one.row.scores
    assert (one.trainings, other.trainings) == ({metric: (1, 4)}, {metric: (2, 2, 16)})
    assert one.row.score.low < 1.5 < 2.5 < one.row.score.high
    tails = np.quantile(np.log(other.replicates), [0.025, 0.975])
    assert (math.log(other.row.score.low), math.log(other.row.score.high)) == pytest.approx(tuple(tails))
    assert "3 trainings" in other.row.score.note


def test_stricter_levels_make_the_noise_of_training_wider():
    """By Student's t over the normal law, whose tails differ the more the further out."""
    measured, freedom = [*trained("a", 1, [1, 4]), *trained("b", 1, [2, 3, 16])], 3
    spread = [np.log(as_one(measured, level)[0].replicates).std() for level in (0.95, 0.99)]
    wider = [student_quantile(p, freedom) / NormalDist().inv_cdf(p) for p in (0.975, 0.995)]
    assert spread[1] / spread[0] == pytest.approx(wider[1] / wider[0])


def test_the_table_of_trainings_has_those_that_are_several():
    dear, cheap, once = trained("dear", 8, [1, 4]), trained("cheap", 2, [2, 3, 16]), trained("once", 1, [5])
    made = trainings_table(as_one([*dear, *once, *cheap]))
    assert [(cells[0], cells[2:]) for cells in made.cells] == [
        ("cheap", ("4/2", "2.00; 3.00; 16.0")),
        ("dear", ("4/2", "1.00; 4.00")),
    ]
    assert not trainings_table(as_one(once)).cells


def test_every_judge_pools_its_own_scores():
    def seen_by_two(one: MeasuredContender, value: float) -> MeasuredContender:
        other = replace(one.row.score, metric="FD-circles", value=value)
        row = replace(one.row, beside=(other,))
        return replace(one, row=row, beside={"FD-circles": np.full(9, value)})

    scores = [1, 1, 1, 1], [5, 20, 5, 20]
    (one,) = as_one([seen_by_two(*pair) for pair in zip(trained("a", 1, scores[0]), scores[1], strict=True)])
    first, other = one.row.scores.values()
    assert (first.value, other.value) == (pytest.approx(1), pytest.approx(10))
    assert np.array_equal(one.replicates, np.ones(18))  # equal scores: no noise of training
    noise = np.log(one.judged_by("FD-circles").replicates / 10)
    assert np.ptp(noise) > 0.5
    tails = tuple(np.quantile(noise, [0.025, 0.975]))
    assert (math.log(other.low / 10), math.log(other.high / 10)) == pytest.approx(tails)
    assert first.low == first.high == pytest.approx(1)


def test_a_plan_that_a_training_lacks_is_left_out():
    lacking = trained("a", 2, [3, 3, 3, 3])[:2]
    made = as_one([*trained("a", 1, [1, 1.1, 1.2, 1.3]), *lacking])
    assert [one.contender.key for one in made] == [trained("a", 1, [1])[0].contender.key]


def test_a_network_counts_once_whoever_calls_it():
    """Two trainings under three denoisers tell of two trainings, not of six."""
    run = trained("a", 1, [1])[0].contender.run
    called = [trained(name, 1 + i, [1, 4]) for i, name in enumerate(("a", "a, taylor", "a, fora"))]
    measured = [
        replace(one, contender=replace(one.contender, run=run if one.contender.training == 0 else Path("second")))
        for plan in called
        for one in plan
    ]
    assert as_one(measured) == [one for one in measured if one.contender.training == 0]
    more = trained("b", 1, [1, 2, 4])
    made = as_one([*measured, *more])
    shifts = [np.log(one.replicates / one.row.score.value) for one in made]
    assert shifts[0] == pytest.approx(shifts[1])
    assert abs(np.corrcoef(shifts[0], shifts[3])[0, 1]) < 0.1


def test_with_too_few_trainings_the_first_ones_stand_alone():
    measured = trained("a", 1, [1, 4])
    assert as_one(measured) == measured[:1]
    single = trained("a", 1, [1])
    assert as_one(single) == single


def test_trainings_may_be_named_by_several_entries_of_their_network():
    contender = trained("a", 1, [1])[0].contender
    run, first, second = contender.run, Path("first"), Path("second")
    entries = [Entry(run, "a", again=(first,)), Entry(run, "a", again=(second, first))]
    made = with_trainings([contender], entries)
    assert [(one.run, one.training) for one in made] == [(run, 0), (first, 1), (second, 2)]


def test_an_entry_of_several_runs(here):  # noqa: F811
    for name in ("other", "third"):
        shutil.copytree(here / "heavy", here / name)
    entry = Entry.parse("big=heavy,other,third:8@ddim")
    assert (entry.network, [str(run) for run in (entry.run, *entry.again)]) == ("big", ["heavy", "other", "third"])
    assert (entry.plan, entry.sampler) == ("8", "ddim")
    with pytest.raises(ValueError, match="no run 'nowhere'"):
        Entry.parse("heavy,nowhere:8")


def retrained(here, of: str, name: str, factor: float, seed: int = 1, **fit) -> None:  # noqa: F811
    """A run with other weights, from a seed; fit: what else is trained otherwise."""
    shutil.copytree(here / of, here / name)
    experiment = load(here / of).experiment
    (here / name / "experiment.json").unlink()
    write_experiment(here / name, replace(experiment, fit=replace(experiment.fit, seed=seed, **fit)))
    weights = {key: factor * value for key, value in load(here / of).networks.state_dict().items()}
    shutil.rmtree(here / name / "checkpoints")
    checkpoint.save(here / name / "checkpoints", 1, {"ema-model": weights, "model": weights}, {"iteration": 1})


def test_trainings_are_one_line_of_a_comparison(here, pages):  # noqa: F811
    for i, factor in enumerate((0.9, 1.1)):
        retrained(here, "heavy", f"heavy-{i}", factor, seed=i + 1, log_every=7)
        retrained(here, "dual", f"dual-{i}", factor, seed=i + 1)
    entries = ["heavy,heavy-0,heavy-1:3", "dual,dual-0,dual-1:4/2"]
    judges = f"{here / 'net'},{here / 'mixer'}"
    results = compare(entries, here / "report.html", EFFORT, features=judges, progress=Notes())
    assert [one.contender.network for one in results.finished] == ["heavy", "dual"]
    for one in results.finished:
        assert list(one.measured.trainings) == list(one.row.scores)
        for metric, scores in one.measured.trainings.items():
            assert len(set(scores)) == 3
            assert one.row.scores[metric].value == pytest.approx(math.exp(np.log(scores).mean()))
    front = json.loads((here / "report.json").read_text())["front"]
    for line, one in zip(front, results.finished, strict=True):
        assert {metric: line[f"{metric} trainings"] for metric in one.row.scores} == {
            metric: list(scores) for metric, scores in one.measured.trainings.items()
        }
    (saved,) = json.loads((here / "report.json").read_text())["savings"]
    (verdict,) = verdicts(results)
    assert saved["FLOPs"]["times_as_much_tells"] == verdict.first.savings[0].to_tell > 0
    assert len(results.measured) == 6
    assert len(list(csv.DictReader((here / "report.csv").open()))) == 2
    page = (here / "report.html").read_text()
    assert "3 trainings" in page
    assert "Every training" in page


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("heavy,heavy:3", "the same training"),
        ("heavy,dual:3", "not another training"),
        ("heavy,heavy-0:3", "name 3 or more"),
        ("heavy,longer:3", "how long and how they were trained differ"),
        ("heavy,again:3", r"have the seeds \[0, 0\]: name those of different"),
    ],
)
def test_what_is_no_retraining_is_refused(here, entry, says):  # noqa: F811
    retrained(here, "heavy", "heavy-0", 0.9)
    retrained(here, "heavy", "longer", 0.9, iterations=2)
    retrained(here, "heavy", "again", 0.9, seed=0)
    with pytest.raises(ValueError, match=says):
        compare([entry], here / "report.html", EFFORT, features=here / "net", progress=Notes())
