"""Rows that are kept: they come back whole, stand for images and features, and are of nothing else."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dualrate.comparison.candidates import Candidate
from dualrate.comparison.compare import Session
from dualrate.comparison.rows import keep_row, read_row
from dualrate.comparison.yardstick import Yardstick
from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.measure import Measurement
from dualrate.metrics.distances import KernelDistance, PrecisionRecall
from dualrate.metrics.quality import Details, QualityScore
from dualrate.metrics.store import Fingerprint, Origin
from dualrate.report.table import Row

DETAILS = Details("KD-net", KernelDistance(1 / 3, 0.1, 100, 50), PrecisionRecall(0.7, 0.6, 3), 40)
SCORE = QualityScore(
    "FD-net", 1 / 7, 0.1, 0.2, 0.95, 0.01, 40, Fingerprint("net:1", "real:1", None, 40, "0-39", "none")
)
ROW = Row(
    "dual", "DDIM", 4, 2, 10, 0.1, 2, "float32", replace(SCORE, details=DETAILS), (replace(SCORE, metric="FD-b"),)
)
CANDIDATE = Candidate(Path("dual"), "dual", "ddim", StepPlan.uniform(4, 2))
REPLICATES = {"FD-b": np.array([0.3, 1 / 11]), "FD-net": np.array([0.1, 1 / 9])}


def test_a_row_comes_back_to_the_last_bit(tmp_path):
    keep_row(tmp_path / "row.json", Measurement(ROW, {}, REPLICATES), "here, commit 1234567")
    kept = read_row(tmp_path / "row.json", CANDIDATE)
    assert kept.row == ROW
    assert list(kept.replicates) == ["FD-net", "FD-b"]
    assert all(np.array_equal(kept.replicates[metric], REPLICATES[metric]) for metric in REPLICATES)
    assert kept.ran_on == "here, commit 1234567"


def test_a_floor_that_is_not_there_comes_back_too(tmp_path):
    row = replace(ROW, score=replace(SCORE, floor=math.nan), beside=())
    keep_row(tmp_path / "row.json", Measurement(row, {}, REPLICATES), "here, commit 1234567")
    assert math.isnan(read_row(tmp_path / "row.json", CANDIDATE).row.score.floor)


@pytest.mark.parametrize("content", ["{", "{}", '{"row": 1, "replicates": [], "ran_on": ""}'])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path, content):
    (tmp_path / "row.json").write_text(content)
    with pytest.raises(ValueError, match=r"row\.json.*delete it"):
        read_row(tmp_path / "row.json", CANDIDATE)


def test_replicates_of_a_metric_that_is_missing_are_a_damaged_file(tmp_path):
    keep_row(tmp_path / "row.json", Measurement(ROW, {}, REPLICATES), "here, commit 1234567")
    content = (tmp_path / "row.json").read_text()
    (tmp_path / "row.json").write_text(content.replace(f", {[0.3, 1 / 11]}", ""))
    with pytest.raises(ValueError, match="2 scores with replicates of"):
        read_row(tmp_path / "row.json", CANDIDATE)


def metric(net: str = "net:1", reference: str = "train", held_out: str | None = "test") -> SimpleNamespace:
    real = None if held_out is None else SimpleNamespace(fingerprint=held_out)
    return SimpleNamespace(
        net=SimpleNamespace(identity=net), reference=SimpleNamespace(fingerprint=reference), held_out=real
    )


def drawer(weights: str = "1", precision: str = "float32", macs: int = 7) -> SimpleNamespace:
    return SimpleNamespace(
        expected_cost=SimpleNamespace(macs=macs),
        members=1,
        origin=lambda features: Origin(weights, "experiment", "DDIM", "4 steps", "none", features, precision),
    )


def row_file(drawer: SimpleNamespace, metrics: list, seeds: range, candidate: Candidate = CANDIDATE) -> str:
    yardstick = Yardstick.__new__(Yardstick)
    yardstick.evaluators = metrics
    session = SimpleNamespace(directory=Path(), drawer=lambda one: drawer, yardstick=yardstick)
    return Session.row_file(session, candidate, seeds).name


def test_whatever_gives_another_row_has_another_name():
    usual = (drawer(), [metric()], range(40))
    others = [
        (drawer("2"), [metric()], range(40)),
        (drawer(macs=8), [metric()], range(40)),  # which are counted otherwise by now
        (drawer(precision="bfloat16"), [metric()], range(40)),
        (drawer(), [metric("net:2")], range(40)),
        (drawer(), [metric(reference="other")], range(40)),
        (drawer(), [metric(held_out="other")], range(40)),
        (drawer(), [metric(held_out=None)], range(40)),
        (drawer(), [metric(), metric("net:2")], range(40)),
        (drawer(), [metric()], range(1, 40)),
        (drawer(), [metric()], range(41)),
    ]
    names = [row_file(*of) for of in (usual, *others)]
    assert len(set(names)) == len(names)
    assert row_file(*usual) == names[0]
    assert all(name.startswith(f"{CANDIDATE.key}-") for name in names)
    again = replace(CANDIDATE, run=Path("again"))
    assert row_file(*usual, candidate=again) == names[0]  # the digest holds the weights
