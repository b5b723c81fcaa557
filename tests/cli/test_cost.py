"""`dualrate cost` of a recipe: what its training will take, marked as predicted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import get_args

import pytest
import torch
from cli.command import call

from dualrate.cli import cost, distill, train
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import NetworksConfig, OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes import imagenet
from dualrate.recipes.students import StudentRecipe
from dualrate.runs import prediction
from dualrate.runs.store import read_experiment, write_experiment
from dualrate.training.accelerators import ACCELERATORS
from dualrate.training.config import FitConfig
from dualrate.training.memory import PassCost

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


def size(networks: NetworksConfig) -> int:
    """Bytes of its weights."""
    with torch.device("meta"):
        return 4 * sum(parameter.numel() for parameter in networks.build(SMALL.process)[0].parameters())


ONE, TWO = OneNetwork(NET), TwoNetworks(NET, NET)


@pytest.fixture
def no_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which take half a minute of large networks, and seconds of small ones in many steps."""
    monkeypatch.setattr(prediction, "pass_cost", lambda *_, **__: PassCost(1.0, 1.0, 1.0, 1))


@pytest.mark.parametrize("by", ["moments", "consistency", "em"])
def test_the_passes_of_every_distillation_can_be_counted(by, monkeypatch, capsys):
    """Of the networks of all roles."""
    monkeypatch.setitem(distill.RECIPES, "tiny", lambda: StudentRecipe("tiny", NET, SMALL.fit))
    monkeypatch.setitem(distill.TEACHERS, "tiny", "small")
    options = ("--steps", "2", "--heavy", "1") if by == "moments" else ("--by", by)
    assert call(monkeypatch, "cost", "distill", "tiny", *options, "--json") == 0
    assert json.loads(capsys.readouterr().out)["predicted"]["flops"] > 0


@pytest.mark.usefixtures("no_passes")
@pytest.mark.parametrize(
    ("options", "networks"),
    [
        (("--steps", "8", "--heavy", "4"), (TWO, ONE, ONE)),
        (("--student", "plain"), (ONE, ONE, ONE)),
        (("--by", "consistency"), (ONE, ONE)),
        (("--by", "em"), (ONE, ONE, ONE)),
    ],
)
def test_a_distillation_needs_the_networks_of_all_roles(options, networks, monkeypatch, capsys):
    """Student, teacher and auxiliary, none of which is there yet."""
    fit = replace(SMALL.fit, precision="float32")
    monkeypatch.setitem(distill.RECIPES, "tiny", lambda: StudentRecipe("tiny", NET, fit))
    monkeypatch.setitem(distill.TEACHERS, "tiny", "small")
    assert call(monkeypatch, "cost", "distill", "tiny", *options, "--gpus", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["predicted"]["weights"] == sum(map(size, networks))


@pytest.mark.usefixtures("no_passes")
def test_a_student_of_imagenet_needs_its_heavy_network_three_times(monkeypatch, capsys):
    """Teacher, auxiliary and encoder."""
    options = ("--steps", "8", "--heavy", "4", "--fit.precision", "float32", "--json")
    assert call(monkeypatch, "cost", "distill", "imagenet64", "--gpus", "64", *options) == 0
    found = json.loads(capsys.readouterr().out)["predicted"]
    assert found["weights"] == size(imagenet.dual().networks) + 2 * size(imagenet.heavy().networks)
    assert found["images"] == 4  # of passes of 256


@pytest.mark.usefixtures("no_passes")
def test_a_student_of_tokens_is_predicted_too(monkeypatch, capsys):
    assert call(monkeypatch, "cost", "distill", "fashion-mnist-tokens", "--json") == 0
    assert json.loads(capsys.readouterr().out)["predicted"]["hours"] > 0


def test_every_recipe_of_a_distillation_but_auto_has_a_teacher_that_can_teach(tmp_path):
    for name, recipe in distill.RECIPES.items():
        if name == "auto":
            assert name not in distill.TEACHERS
            continue
        teacher = tmp_path / distill.TEACHERS[name]
        write_experiment(teacher, train.RECIPES[teacher.name]())
        made = distill.Student(recipe()).of(teacher)
        assert made.name.startswith(recipe().name or teacher.name)


@pytest.mark.usefixtures("no_passes")
def test_a_teacher_is_a_run_that_is_there_or_a_recipe_of_ours_or_of_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from dualrate.recipes.fashion_mnist import single\n\ndef recipe():\n    return single('medium-45')\n"
    )

    def weights(teacher: str) -> float:
        options = ("--fit.precision", "float32", "--json")
        assert call(monkeypatch, "cost", "distill", "fashion-mnist", "--teacher", teacher, *options) == 0
        return json.loads(capsys.readouterr().out)["predicted"]["weights"]

    medium, heavy = weights("fashion-mnist-medium-45"), weights("fashion-mnist-heavy")
    assert weights("mine:recipe") == medium < heavy
    write_experiment(tmp_path / "fashion-mnist-heavy", train.RECIPES["fashion-mnist-medium-45"]())
    assert weights("fashion-mnist-heavy") == medium


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("distill", "auto"), "--teacher"),
        (("distill", "tiny"), "there is no recipe 'tiny' of a distillation"),
        (("distill", "imagenet64", "--teacher", "nowhere"), "nowhere is no run"),
        (("distill", "fashion-mnist", "--version", "instant"), "pass --version alternating"),
        (
            ("distill", "fashion-mnist", "--teacher", "fashion-mnist-dual-45"),
            "dualrate: fashion-mnist-dual-45 is a dual-rate model",
        ),
        (("imagenet64", "--gpus", "64"), "imagenet64 is a recipe of distill: ask for cost distill imagenet64"),
    ],
)
def test_a_distillation_that_is_not_predicted_says_what_to_do(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "cost", *arguments) == 2
    assert said in capsys.readouterr().err


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
