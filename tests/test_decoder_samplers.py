"""studies/decoder_samplers.py: what it takes for the best, and what a comparison is then told to measure."""

import json
import sys
from pathlib import Path

import pytest

import dualrate as dr
from dualrate.diffusion.values import Refresh

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "studies"))

import decoder_samplers as study


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(study, "WHERE", tmp_path)
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(study, "ROOT", tmp_path)
    return tmp_path


def measured(here: Path, name: str, found: dict[str, list[float]]) -> None:
    judged = {key: dict(zip("abc", values, strict=True)) for key, values in found.items()}
    (here / f"{name}.json").write_text(json.dumps({"found": judged}))


def test_the_best_has_the_least_product_and_unusual_times_are_a_plan(here):
    measured(here, "dual", {"ddim log-snr": [1.0, 9.0, 1.0], "ddim t": [2.0, 2.0, 2.0], "ancestral t": [4.0, 4.0, 4.0]})
    assert study.entry("dual", 4) == "dual=runs/decoder-dual:4@ddim"  # even in t, as usual with it
    measured(here, "dual", {"ddim log-snr": [1.0, 7.0, 1.0], "ddim t": [2.0, 2.0, 2.0]})
    assert study.entry("dual", 4) == "dual=runs/decoder-dual:plans/decoders/4-1/log-snr.json@ddim"
    plan = dr.StepPlan.from_json((here / "plans/decoders/4-1/log-snr.json").read_text())
    assert (plan.num_steps, plan.num_heavy, plan.refresh[0]) == (4, 1, Refresh.FULL)
    measured(here, "small", {"sde-dpm++2m:0.1 log-snr": [1.0, 1.0, 1.0]})
    assert study.entry("small", 6) == "small=runs/decoder-small:plans/decoders/6/log-snr.json@sde-dpm++2m:0.1"
    plan = dr.StepPlan.from_json((here / "plans/decoders/6/log-snr.json").read_text())
    assert (plan.num_steps, plan.num_heavy) == (6, 6)
    assert study.entry("heavy", 4) == "heavy=runs/decoder-heavy:4@sde-dpm++2m:0.1"  # not measured yet


def test_the_table_has_every_sampler_once_on_its_best_times(here):
    measured(here, "dual", {"ddim log-snr": [1.0, 9.0, 1.0], "ddim t": [2.0, 2.0, 2.0], "ancestral t": [1.0, 1.0, 1.0]})
    assert study.table().splitlines()[2:] == ["| dual | ancestral | t | 1 | 1 | 1 |", "|  | ddim | t | 2 | 2 | 2 |"]
