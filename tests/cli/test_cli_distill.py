"""`dualrate distill` end to end on tiny data: its student is a run to every other command; a mistake is one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from training.toy import Recorder

from dualrate.cli import distill as cli_distill
from dualrate.comparison.candidates import RunRequest, candidates_of
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneNetwork
from dualrate.methods.denoising import DenoisingConfig
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes.students import StudentRecipe
from dualrate.runs.store import load
from dualrate.runs.train import train
from dualrate.training.config import FitConfig


def net(conv: int, transformer: int) -> UViTConfig:
    levels = (Level("conv", conv, 1), Level("transformer", transformer, 1))
    return UViTConfig(8, 1, levels, num_classes=4, patch=2, embedding=16, head_dim=16)


FIT = FitConfig(iterations=4, batch_size=8, precision="float32", log_every=1, checkpoint_every=2, sample_every=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A teacher and two students of it by the command line: plain (2 steps) and dual-rate (4 steps, 2 heavy calls)."""
    root = tmp_path_factory.mktemp("runs")
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.savez(root / "images.npz", images=images, labels=np.arange(64) % 4)
    data = DataConfig(str(root / "images.npz"))
    train(
        Experiment("teacher", OneNetwork(net(8, 32)), DenoisingConfig(), FIT, data),
        root / "teacher",
        progress=Recorder(),
    )
    with pytest.MonkeyPatch.context() as patch:
        assert distil(patch, root, root / "plain", "--student", "plain", "--steps", 2) == 0
        assert distil(patch, root, root / "dual", "--steps", 4, "--heavy", 2, "--pretraining", 1) == 0
    return root


def distil(monkeypatch, root, out, *options) -> int:
    monkeypatch.setitem(cli_distill.RECIPES, "fashion-mnist", lambda: StudentRecipe("tiny", net(4, 16), FIT))
    monkeypatch.setattr(cli_distill.students, "PRETRAINING", 1)
    return call(monkeypatch, "distill", "fashion-mnist", "--teacher", root / "teacher", "--out", out, *options)


@pytest.mark.parametrize(("student", "steps", "heavy", "light"), [("plain", 2, 0, 2), ("dual", 4, 2, 2)])
def test_a_student_is_sampled_with_its_own_steps(root, tmp_path, monkeypatch, capsys, student, steps, heavy, light):
    for command in (["sample", "--out", tmp_path / "images", "--num", 3], ["cost"]):
        assert call(monkeypatch, command[0], root / student, *command[1:], "--json") == 0
        report = json.loads(capsys.readouterr().out)
        calls = report["steps"], report["heavy_calls_per_image"], report["light_calls_per_image"]
        assert calls == (steps, heavy, light)


def test_the_card_of_a_student_shows_its_moment_gap(root, tmp_path, monkeypatch):
    assert distil(monkeypatch, root, tmp_path / "run", "--steps", 2, "--pretraining", 2, "--fit.iterations", 24) == 0
    assert call(monkeypatch, "export", tmp_path / "run", "--out", tmp_path / "weights") == 0
    assert "Moment gap, last value" in (tmp_path / "weights" / "README.md").read_text()
    assert (tmp_path / "weights" / "loss.svg").is_file()


def test_a_student_is_exported_and_bounded(root, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "export", root / "dual", "--out", tmp_path / "weights") == 0
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == [
        "MANIFEST.json",
        "README.md",
        "experiment.json",
        "model.safetensors",
    ]
    card = (tmp_path / "weights" / "README.md").read_text()
    assert "dualrate distill fashion-mnist" in card
    assert f"teacher {root / 'teacher'} at iteration 4, weights" in card
    capsys.readouterr()
    assert call(monkeypatch, "evaluate", tmp_path / "weights", "--bound", "--num", 4, "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_heavy"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "dual", "--out", "x", "--steps", "8"], "for 4 steps equal in t with 2 heavy calls"),
        (["cost", "dual", "--heavy", "4"], "serves no other plan"),
        (["evaluate", "dual", "--bound", "--steps", "8", "--heavy", "2"], "serves no other plan"),
        (["evaluate", "plain", "--steps", "1"], "distilled to 2 steps and takes as many or more"),
        (["sample", "plain", "--out", "x", "--steps", "4", "--grid", "karras"], "longer than 1/2"),
        (["plan", "dual", "--budget", "0.25x"], "was trained for the steps that it makes"),
    ],
)
def test_what_a_student_does_not_serve_is_one_line(root, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    command, name, *options = arguments
    assert call(monkeypatch, command, root / name, *options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("dualrate: ")
    assert message in error


def test_compare_takes_students_with_their_own_plans(root):
    models = {root / name: load(root / name) for name in ("plain", "dual", "teacher")}

    def candidates(request: str) -> list[tuple[int, int, str]]:
        found = candidates_of([RunRequest.parse(f"{root}/{request}")], models)
        return [(one.plan.num_steps, one.plan.num_heavy, one.sampler) for one in found]

    assert candidates("dual") == [(4, 2, "ancestral")]
    assert candidates("dual:4") == [(4, 2, "ancestral")]
    assert candidates("plain:3") == [(3, 3, "ancestral")]
    plain = candidates("plain")
    assert plain[0] == (2, 2, "ancestral")
    assert {sampler for _, _, sampler in plain} == {"ancestral"}
    for entry, message in (("plain:1", "2 steps"), ("dual:8/2", "no other plan"), ("dual@ddim", "drop the sampler")):
        with pytest.raises(ValueError, match=message):
            candidates(entry)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--teacher", "/nowhere"], "/nowhere is no run"),
        (["--teacher", "DUAL"], "is a dual-rate model; a teacher is a single-rate one"),
        (["--teacher", "PLAIN"], "is a student itself"),
        (["--steps", "4", "--heavy", "5"], "1 to 4 heavy calls, got 5"),
        (["--student", "plain", "--heavy", "2"], "drop --heavy"),
        (["--student", "plain", "--rollout", "full"], "learns from noised data"),
        (["--rollout", "data"], "learns from its own steps"),
        (["--student", "plain", "--pairs", "2"], "learns from noised data: drop pairs"),
        (["--pretraining", "4"], "4 of 4 iterations are pre-training"),
        (["--student-from", "DUAL", "--light-from", "TEACHER"], "drop encoder_from and light_from"),
        (["--encoder-from", "DUAL"], "is a dual-rate model; encoder_from takes a single-rate one"),
        (
            ["--student", "plain", "--encoder-from", "TEACHER"],
            "does not take --encoder-from: drop --encoder-from, or pass --student dual",
        ),
        (["--guidance", "nan"], "guidance is a number above 0 and at most 100, got nan"),
        (["--guidance", "-1"], "guidance is a number above 0 and at most 100, got -1"),
        (["--student-rate", "inf"], "student_rate is a number above 0 and at most 1,000, or None, got inf"),
        (["--shift", "nan"], "got nan"),
        (["--steps", "0"], "steps is a whole number from 1 to 100,000, or None, got 0"),
        (["--student", "plain", "--version", "instant", "--fit.batch-size", "5", "--fit.micro-batch", "2"], "one row"),
        (["--student-from", "TEACHER"], "student_from takes a dual-rate one"),
        (["--version", "instant", "--guidance", "2"], "needs a teacher without guidance: take the alternating one"),
        (["--source", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--eval-every", "3"], "multiple of --fit.sample-every"),
        (["--out", "TEACHER"], "choose a new directory as --out"),
        (["--out", "PLAIN"], "trained with another configuration"),
    ],
)
def test_a_distillation_that_cannot_be_is_refused(root, tmp_path, monkeypatch, capsys, options, message):
    places = {name.upper(): str(root / name) for name in ("plain", "dual", "teacher")}
    before = {name: sorted(path.name for path in Path(place).rglob("*")) for name, place in places.items()}
    assert distil(monkeypatch, root, tmp_path / "out", *(places.get(option, option) for option in options)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert message in error
    assert {name: sorted(path.name for path in Path(place).rglob("*")) for name, place in places.items()} == before
    assert not (tmp_path / "out" / "experiment.json").exists()


def test_the_same_command_goes_on_and_tells_the_peak_of_memory(root, tmp_path, monkeypatch, capsys):
    for iterations in (2, 4):
        assert distil(monkeypatch, root, tmp_path / "run", "--steps", 2, "--fit.iterations", iterations) == 0
    told = capsys.readouterr().err
    assert "resuming at iteration 2" in told
    assert "peak memory" in told
    assert (tmp_path / "run" / "samples" / "0000004.png").is_file()
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 2


def test_recipes_are_listed_and_a_wrong_one_is_named(monkeypatch, capsys):
    assert call(monkeypatch, "distill") == 2
    assert "auto, fashion-mnist" in capsys.readouterr().out
    assert call(monkeypatch, "distill", "mnist") == 2
    assert "there is no recipe 'mnist'" in capsys.readouterr().err
    for name, recipe in cli_distill.RECIPES.items():
        assert recipe().name is None, name  # students of two teachers are two runs, each named after its teacher


def test_a_resumed_distillation_takes_its_own_number_of_threads(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DUALRATE_THREADS", "auto")
    options = ["--student", "plain", "--steps", 2]
    before = torch.get_num_threads()
    assert distil(monkeypatch, root, tmp_path / "run", *options, "--fit.iterations", 2) == 0
    torch.set_num_threads(before + 1)
    try:
        assert distil(monkeypatch, root, tmp_path / "run", *options, "--fit.iterations", 4) == 0
    finally:
        torch.set_num_threads(before)
    told = capsys.readouterr().err
    assert "resuming at iteration 2" in told
    assert "not bit for bit" not in told
