"""Students of conditional models: the heavy network once a condition, the light loop in one step or two."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from runs.made import saved_random

import dualrate as dr
from dualrate.cli.distill import parse_distill
from dualrate.data.conditions import SuperResolution
from dualrate.denoisers.denoiser import Metered
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneConditional, ThreeConditional, TwoConditional
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import BothTimes, GivenTimes, SingleTime
from dualrate.networks.uvit import Level, UViTConfig

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("conv", 8, 1)), embedding=16)
GIVEN = (1, 4, 4)
RUNS = {
    "dual": (TwoConditional(NET, NET, GIVEN), GivenTimes()),
    "single": (OneConditional(NET, GIVEN), SingleTime()),
    "both": (ThreeConditional(NET, NET, NET, GIVEN), BothTimes()),
}
QUICK = (
    "--fit.iterations", 4, "--fit.batch-size", 4, "--fit.optim.warmup", 1, "--fit.sample-every", 4, "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    np.savez(root / "images.npz", images=np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), dtype=np.uint8))
    for name, (networks, times) in RUNS.items():
        method, data = DenoisingConfig(times, label_dropout=0.0), DataConfig(str(root / "images.npz"))
        made = Experiment(name, networks, method, dr.FitConfig(1), data, condition=SuperResolution(2))
        saved_random(made, root / name)
    return root


@pytest.mark.parametrize("teacher", ["dual", "single"])
@pytest.mark.parametrize(("method", "steps", "sampler"), [("moments", 2, dr.Ancestral), ("consistency", 1, dr.DDIM)])
def test_a_student_of_a_condition_reads_it_once_for_all_samples(
    root, tmp_path, monkeypatch, teacher, method, steps, sampler
):
    words = ("auto", "--teacher", root / teacher, "--method", method, "--steps", steps, "--out", tmp_path / "run")
    assert call(monkeypatch, "distill", *words, *QUICK) == 0
    student, before = dr.load(tmp_path / "run"), dr.load(root / teacher)
    assert student.experiment.networks == before.experiment.networks
    assert student.experiment.condition == before.experiment.condition
    weights, own = student.networks.state_dict(), before.networks.state_dict()
    changed = {name.split(".")[0] for name, weight in weights.items() if not torch.equal(weight, own[name])}
    assert changed == set(student.networks)
    metered = Metered(student.denoiser)
    plan = student.serves.default_plan()
    metered_student = replace(student, denoiser=metered)
    drawer = Drawer(metered_student, sampler(student.process), plan, members=5, precision="float32")
    assert torch.cat(list(drawer.states([0, 1, 2]))).shape == (15, 1, 8, 8)
    heavy = 3 if teacher == "dual" else 0
    assert (metered.meter.heavy, metered.meter.light) == (heavy, 15 * steps)
    assert drawer.cost.macs == student.call_cost.heavy // 5 + steps * student.call_cost.light


def test_what_has_no_student_of_a_condition_is_refused(root, tmp_path):
    def made(teacher: str, *words: str) -> dr.Experiment:
        return parse_distill(["auto", "--teacher", str(root / teacher), "--out", str(tmp_path), *words]).of(
            root / teacher
        )

    for teacher, words, message in (
        ("both", (), "both has both rates: .* Name a run of --rate dual, single"),
        ("dual", ("--student", "dual"), "whose student has its networks, called as they are: drop --student dual"),
        ("dual", ("--method", "consistency", "--heavy", "2"), "called as they are: drop --student dual and --heavy"),
        ("dual", ("--version", "instant"), "has a teacher of one network, .* two: drop --version"),
        ("dual", ("--method", "em"), "is dual-rate: one step is one heavy call"),
        ("single", ("--method", "em"), "is a conditional model, which EM distillation does not train"),
    ):
        with pytest.raises(ValueError, match=message):
            made(teacher, *words)
    assert "instant" in str(made("single", "--version", "instant").method)
