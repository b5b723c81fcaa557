"""`dr.evaluate`: scores of a model in one call, as the command prints them, and as Python has them."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli.command import call
from metrics.untrained import untrained
from runs.made import saved_random

import dualrate as dr
from dualrate.drawing.evaluators import evaluator
from dualrate.drawing.measure import measure
from dualrate.metrics.features import Architecture
from dualrate.report.table import Row
from dualrate.system.progress import Silent

NET = dr.UViTConfig(image_size=8, image_channels=1, levels=(dr.Level("conv", 8, 1),), num_classes=2, embedding=16)
HOW = {"progress": Silent()}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A run, its images, and a feature net."""
    root = tmp_path_factory.mktemp("evaluated")
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.savez(root / "images.npz", images=images, labels=np.arange(64) % 2)
    data = dr.DataConfig(str(root / "images.npz"))
    saved_random(dr.Experiment("run", dr.OneNetwork(NET), dr.DenoisingConfig(), dr.FitConfig(1), data), root / "run")
    untrained(Architecture(1, 8, 2, features=4), "noise").save(root / "net")
    return root


def test_a_model_is_scored_as_its_images_are_measured(root):
    model = dr.load(root / "run", device="cpu")
    drawer = dr.Choice(2).drawer(model)
    evaluation = dr.evaluate(drawer, 40, seed=3, features=root / "net", details=True, **HOW)
    judge = evaluator(model.experiment.data, features=root / "net", progress=Silent())
    row = measure(drawer, range(3, 43), judge, details=True).row
    assert isinstance(evaluation.scores, Row)
    assert evaluation.scores.score == row.score
    assert (evaluation.plain["macs"], evaluation.plain["steps"]) == (drawer.cost.macs, 2)
    assert "FD-noise" in str(evaluation) == repr(evaluation)
    assert "recall" in str(evaluation).splitlines()[-1]
    assert all(part in evaluation._repr_html_() for part in ("<table>", "FD-noise", "recall"))


def test_a_model_alone_is_drawn_as_is_recommended(root):
    model = dr.load(root / "run", device="cpu")
    scores = [dr.evaluate(each, 40, features=root / "net", **HOW).scores for each in (model, dr.Choice().drawer(model))]
    assert scores[0].score == scores[1].score
    assert scores[0].num_steps == dr.Choice().step_plan(model).num_steps


def test_the_command_says_what_the_call_says(root, monkeypatch, capsys):
    words = ("evaluate", root / "run", "--steps", 2, "--num", 40, "--features", root / "net", "--device", "cpu")
    assert call(monkeypatch, *words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    drawer = dr.Choice(2).drawer(dr.load(root / "run", device="cpu"))
    evaluation = dr.evaluate(drawer, 40, features=root / "net", **HOW)
    assert told["score"]["value"] == evaluation.scores.score.value
    assert told.keys() - {"command"} == evaluation.plain.keys()


def test_images_that_exist_are_scored_by_the_command(root, monkeypatch, capsys):
    words = ("evaluate", root / "run", "--images", root / "images.npz", "--features", root / "net", "--device", "cpu")
    assert call(monkeypatch, *words) == 0
    assert capsys.readouterr().out.startswith("FD-noise ")
    assert call(monkeypatch, *words, "--steps", 2) == 2
    assert "draws and bounds none: drop --steps" in " ".join(capsys.readouterr().err.split())


def test_an_unknown_feature_net_is_refused_before_anything_is_drawn(root):
    with pytest.raises(ValueError, match="there is no feature net 'gone'"):
        dr.evaluate(dr.load(root / "run", device="cpu"), features="gone")


@pytest.mark.parametrize("call", [dr.evaluate, dr.sample])
def test_the_name_of_a_model_is_no_model(call):
    with pytest.raises(TypeError, match=r"expected a model, got 'weights/mine': dr\.load"):
        call("weights/mine", 8)


def test_runs_are_compared_by_their_paths():
    with pytest.raises(TypeError, match=r"by their paths, such as 'runs/mine:16/4', got a int"):
        dr.compare([7])
