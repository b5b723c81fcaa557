"""`dualrate distill` of token models end to end on tiny data: masked and uniform, one network and two."""

import json
from dataclasses import replace

import numpy as np
import pytest
from cli.command import call
from training.toy import Recorder

import dualrate as dr
from dualrate.cli import distill as cli_distill
from dualrate.diffusion.categorical import Masked, Uniform
from dualrate.runs.store import load
from dualrate.runs.train import train
from dualrate.sampling.ancestral import Reverse
from dualrate.texts.codec import GreyLevels
from dualrate.texts.networks import OneTransformer
from dualrate.texts.recipe import TokenStudents
from dualrate.texts.transformer import TokensConfig
from dualrate.training.config import FitConfig

NET = TokensConfig(5, 8, 8, channels=16, blocks=1, num_classes=2, embedding=16, head_dim=16)
FIT = FitConfig(iterations=4, batch_size=4, precision="float32", log_every=1, checkpoint_every=4, sample_every=4)
LIGHT = replace(NET, channels=8, head_dim=8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A masked and a uniform teacher."""
    root = tmp_path_factory.mktemp("runs")
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    np.savez(root / "images.npz", images=images, labels=np.arange(20) % 2)
    for name, process, codec in (
        ("masked", Masked(), GreyLevels(4)),
        ("uniform", Uniform(), GreyLevels(5, mask=False)),
    ):
        data, method = dr.DataConfig(str(root / "images.npz")), dr.DenoisingConfig()
        one = dr.Experiment(name, OneTransformer(NET), method, FIT, data, process, codec)
        train(replace(one, fit=replace(FIT, iterations=1)), root / name, progress=Recorder())
    return root


def distil(monkeypatch, root, out, teacher, *options) -> int:
    recipe = TokenStudents("tiny", LIGHT, FIT)
    monkeypatch.setitem(cli_distill.RECIPES, "fashion-mnist-tokens", lambda: recipe)
    monkeypatch.setattr(cli_distill.students, "PRETRAINING", 2)
    arguments = ("--teacher", root / teacher, "--out", out, "--device", "cpu", *options)
    return call(monkeypatch, "distill", "fashion-mnist-tokens", *arguments)


@pytest.mark.parametrize(
    ("teacher", "options", "calls"),
    [
        ("masked", ("--steps", 2, "--student", "plain"), (0, 2)),
        ("uniform", ("--steps", 2, "--student", "plain", "--guidance", 1.5), (0, 2)),
        ("masked", ("--steps", 2, "--student", "plain", "--noise", 2), (0, 2)),
        ("masked", ("--steps", 4, "--heavy", 2, "--rollout", "segment", "--noise", 2), (2, 2)),
        ("uniform", ("--steps", 4, "--heavy", 2, "--temperature", 0.8, "--top-p", 0.9), (2, 2)),
    ],
)
def test_a_student_of_tokens_is_a_model_like_others(root, tmp_path, monkeypatch, capsys, teacher, options, calls):
    assert distil(monkeypatch, root, tmp_path / "student", teacher, *options) == 0, capsys.readouterr().err
    capsys.readouterr()
    student, made = tmp_path / "student", tmp_path / "images"
    assert call(monkeypatch, "sample", student, "--out", made, "--num", 3, "--json", "--device", "cpu") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["heavy_calls_per_image"], report["light_calls_per_image"]) == calls
    drawer = dr.Choice().drawer(load(student))
    assert drawer.step == Reverse(drawer.model.process)
    levels = {0, 85, 170, 255} if teacher == "masked" else {0, 64, 128, 191, 255}
    assert set(np.unique(drawer.draw(range(4)).images)) <= levels


def test_a_student_that_starts_from_two_networks_reads_the_noise_that_is_asked_for(root, tmp_path, monkeypatch, capsys):
    two, data = OneTransformer(NET).beside(None, "masked"), dr.DataConfig(str(root / "images.npz"))
    pair = dr.Experiment("two", two, dr.DenoisingConfig(dr.TimeSampler()), FIT, data, Masked(), GreyLevels(4))
    train(pair, tmp_path / "two", progress=Recorder())
    options = ("--steps", 4, "--heavy", 2, "--student-from", tmp_path / "two", "--noise", 2)
    assert distil(monkeypatch, root, tmp_path / "student", "masked", *options) == 0, capsys.readouterr().err
    assert load(tmp_path / "student").experiment.networks.noise == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--version", "instant", "--student", "plain"), "no Gaussian noise"),
        (("--method", "consistency"), "make students by moments"),
        (("--method", "em"), "no Gaussian noise"),
        (("--method", "consistency", "--top-p", 0.9), "does not take --top-p"),
    ],
)
def test_what_tokens_cannot_have_is_refused(root, tmp_path, monkeypatch, capsys, options, message):
    assert distil(monkeypatch, root, tmp_path / "out", "masked", *options) == 2
    assert message in capsys.readouterr().err


def test_a_light_network_of_another_kind_is_refused(root):
    with pytest.raises(ValueError, match="a UViTConfig, and masked has a TokensConfig"):
        OneTransformer(NET).beside(dr.UViTConfig(8, 1, (dr.Level("conv", 8, 1),)), "masked")
    two = OneTransformer(NET).beside(None, "masked")
    assert (two.light.channels, two.light.blocks, two.light.head_dim) == (8, 1, 8)
