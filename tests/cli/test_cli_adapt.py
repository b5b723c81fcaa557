"""`dualrate adapt` end to end on tiny data: its run is one to every other command, and its base stays as it was."""

import json

import numpy as np
import pytest
import torch
from cli.command import call
from PIL import Image
from training.toy import Recorder

import dualrate as dr
from dualrate.cli.train import parse_adapt
from dualrate.comparison.candidates import RunRequest, candidates_of
from dualrate.methods.glance import FAST, SLOW
from dualrate.networks.adapters import layers_of, merged
from dualrate.runs.store import load, write_experiment
from dualrate.runs.train import train
from dualrate.training.config import FitConfig

LEVELS = (dr.Level("conv", 4, 1), dr.Level("transformer", 16, 1))
NET = dr.UViTConfig(8, 1, LEVELS, 4, patch=2, embedding=16, head_dim=16)
FIT = FitConfig(iterations=2, batch_size=8, precision="float32", log_every=1, checkpoint_every=2, sample_every=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model, and a run of each number of phases."""
    root = tmp_path_factory.mktemp("runs")
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), dtype=np.uint8)
    np.savez(root / "images.npz", images=images, labels=np.arange(32) % 4)
    data = dr.DataConfig(str(root / "images.npz"))
    base = dr.Experiment("base", dr.OneNetwork(NET), dr.DenoisingConfig(), FIT, data)
    train(base, root / "base", progress=Recorder())
    dual = dr.DenoisingConfig(dr.TimeSampler())
    write_experiment(root / "pair", dr.Experiment("pair", dr.TwoNetworks(NET, NET), dual, FIT, data))
    with pytest.MonkeyPatch.context() as patch:
        for phases in (0, 1, 2):
            assert adapt(patch, root, root / str(phases), "--phases", phases) == 0
    return root


def adapt(monkeypatch, root, out, *options, base="base") -> int:
    few = ("--fit.iterations", 1 if "0" in map(str, options) else 3, "--fit.precision", "float32")
    images = ("--images", root / "images.npz")
    return call(monkeypatch, "adapt", root / base, *images, *options, "--rank", 2, *few, "--out", out)


def test_only_the_adapters_are_trained(root):
    base = load(root / "base").networks["model"].state_dict()
    for phases in (0, 1, 2):
        adapted = load(root / str(phases)).networks["model"]
        assert len(adapted.phases) == phases
        found = merged(adapted.net, None).state_dict()
        assert all(torch.equal(found[name], base[name]) for name in base)
        layers = layers_of(adapted.net).values()
        assert bool(layers) == (phases > 0)
        assert all(any(layer.update(phase).any() for layer in layers) for phase in adapted.phases)
        given = torch.ones(2, 1, 8, 8), torch.zeros(2), torch.tensor([0, 1])
        outputs = {phase: adapted(phase, *given) for phase in (None, *adapted.phases)}
        assert len({tuple(output.flatten().tolist()) for output in outputs.values()}) == 1 + phases


def test_without_phases_it_is_the_model_on_the_grid(root):
    """Draws of the base on these times, by DDIM."""
    times = load(root / "0").serves.grid
    plan = dr.StepPlan.at(times, range(len(times) - 1))
    base = dr.Choice(plan=plan, sampler="ddim").drawer(load(root / "base"), precision="float32").draw([0, 1]).images
    found = dr.Choice().drawer(load(root / "0"), precision="float32").draw([0, 1]).images
    np.testing.assert_array_equal(found, base)


def test_the_run_is_one_to_other_commands(root, tmp_path, monkeypatch, capsys):
    for command in (["sample", "--out", tmp_path / "images", "--num", 2], ["cost"]):
        assert call(monkeypatch, command[0], root / "2", *command[1:], "--json") == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["steps"], report["light_calls_per_image"]) == (10, 10)
    assert call(monkeypatch, "export", root / "2", "--out", tmp_path / "weights") == 0
    exported, trained = load(tmp_path / "weights"), load(root / "2")
    draw = lambda model: dr.Choice().drawer(model, precision="float32").draw([0]).images  # noqa: E731
    assert np.abs(draw(exported).astype(int) - draw(trained)).max() <= 2
    assert call(monkeypatch, "sample", root / "2", "--steps", "8", "--out", tmp_path / "eight") == 2
    assert "10 steps at times of its own" in capsys.readouterr().err


def test_a_comparison_tries_its_own_steps_alone(root):
    (found,) = candidates_of([RunRequest.parse(str(root / "2"))], {root / "2": load(root / "2")})
    assert (found.plan, found.sampler) == (load(root / "2").serves.default_plan(), "ddim")


def test_the_same_command_resumes(root, tmp_path, monkeypatch, capsys):
    assert adapt(monkeypatch, root, tmp_path / "run", "--phases", 2, "--fit.checkpoint-every", 1) == 0
    assert adapt(monkeypatch, root, tmp_path / "run", "--phases", 2, "--fit.checkpoint-every", 1) == 0
    assert "resuming at iteration 3" in capsys.readouterr().err
    assert load(tmp_path / "run").weights_hash == load(root / "2").weights_hash


@pytest.mark.parametrize(("base", "message"), [("pair", "adapters go onto a single-rate one"), ("2", "is a student")])
def test_what_cannot_be_adapted_is_one_line(root, tmp_path, monkeypatch, capsys, base, message):
    assert adapt(monkeypatch, root, tmp_path / "run", "--phases", 2, base=base) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--images", "x"], 2), (["--help"], 0)])
def test_without_a_model_the_usage_is_told(arguments, code, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_adapt(arguments)
    assert stopped.value.code == code
    assert "usage: dualrate adapt RUN" in capsys.readouterr().out


def test_one_picture_is_enough(root, tmp_path, monkeypatch, capsys):
    """As in the paper; nothing is held out of it, and the times are the published ones."""
    place = tmp_path / "picture" / "0"
    place.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)).save(place / "it.png")
    out = tmp_path / "out"
    few = ("--fit.iterations", 3, "--fit.precision", "float32")
    assert call(monkeypatch, "adapt", root / "base", "--images", place.parent, *few, "--out", out) == 0
    assert "too early to judge" not in capsys.readouterr().err  # 60 samples are the whole training
    adapted = load(out)
    assert adapted.serves.grid == (*SLOW, *FAST, 0.0)
    layers = layers_of(adapted.networks["model"].net).values()
    assert all(any(layer.update(phase).any() for layer in layers) for phase in adapted.networks["model"].phases)
    with pytest.raises(ValueError, match="at least 2 are needed"):
        adapted.experiment.data.load("test")
