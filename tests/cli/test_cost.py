"""`dualrate cost` of a recipe: what its training will take, marked as predicted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import get_args

import pytest
from cli.command import call

from dualrate.cli import cost, train
from dualrate.experiments.denoising import DenoisingConfig
from dualrate.experiments.experiment import Experiment
from dualrate.experiments.networks import OneNetwork
from dualrate.machine.accelerators import ACCELERATORS
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs import prediction
from dualrate.runs.store import read_experiment, write_experiment
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16)
SMALL = Experiment("small", OneNetwork(NET), DenoisingConfig(), FitConfig(iterations=7200, batch_size=64))


@pytest.fixture(autouse=True)
def recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(train.RECIPES, "small", lambda: SMALL)


def test_what_a_training_takes_is_said_and_said_to_be_predicted(monkeypatch, capsys):
    assert call(monkeypatch, "cost", "small", "--gpus", "4", "--device", "a100-80", "--shard", "2") == 0
    told = capsys.readouterr().out
    assert told.startswith(
        "small: 7,200 iterations of 64 images\non 4 a100-80, 4 a machine, weights held together by 2\nPREDICTED"
    )
    for word in ("memory of a GPU", "fits", "weights", "gradients", "Adam", "averages", "activations of 16", "dollars"):
        assert word in told
    assert "1.9 an hour (assumed)" in told
    assert max(map(len, told.splitlines())) < 120


def test_the_same_as_json_with_options_of_the_recipe_and_a_price(monkeypatch, capsys):
    options = ("--gpus", "2", "--fit.batch-size", "32", "--price", "10", "--json")
    assert call(monkeypatch, "cost", "small", *options) == 0
    found = json.loads(capsys.readouterr().out)["predicted"]
    assert found["images"] == 16
    assert found["price"] == pytest.approx(10 * found["gpu_hours"])


def test_a_run_s_training_is_asked_for_by_its_gpus(monkeypatch, capsys, tmp_path):
    write_experiment(tmp_path / "run", replace(SMALL, name="mine"))
    assert call(monkeypatch, "cost", str(tmp_path / "run"), "--gpus", "1") == 0
    assert capsys.readouterr().out.startswith("mine: 7,200 iterations")


def test_what_does_not_fit_is_said_and_what_would(monkeypatch, capsys):
    found = prediction.needs(SMALL, read_experiment)
    monkeypatch.setattr(prediction, "needs", lambda *of: found)  # once

    def told(memory: float, *options: str) -> str:
        monkeypatch.setitem(ACCELERATORS, "h100", replace(ACCELERATORS["h100"], memory=memory))
        assert call(monkeypatch, "cost", "small", *options) == 0
        return capsys.readouterr().out

    assert "does NOT FIT on 1 h100, not even one image" in told(1)
    memory = (found.fixed + 40 * found.per_image + found.weights + found.trained + found.adam + found.ema) / 0.9
    ways = re.findall(
        r"does NOT FIT on 1 h100\n  what would fit +(--gpus 2), or (--fit.micro-batch 40)", told(memory + 1)
    )
    for way in ways[0]:
        assert ": fits; at most 40 images" in told(memory + 1, *way.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--gpus", "128"), "64 images a pass are fewer than 128 GPUs"),
        (("--gpus", "3", "--shard", "2"), "2 GPUs hold the weights together, of 3"),
        (("--price", "-1"), "price is a number from 0 to 10,000"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(options, said, monkeypatch, capsys):
    assert call(monkeypatch, "cost", "small", *options) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_devices_of_the_option_are_those_of_the_table():
    assert get_args(cost.GPU) == tuple(ACCELERATORS)
