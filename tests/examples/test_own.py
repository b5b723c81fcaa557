"""Own networks, own sampler and own loop: the files of examples/, at tiny size."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from PIL import Image
from theory.exact import GaussianMixture, OracleDenoiser

import dualrate as dr
from dualrate.diffusion.schedule import Cosine
from dualrate.sampling.trajectory import rollout

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--networks.side", "8", "--networks.classes", "2", "--networks.width", "16"]


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In a folder with images of two classes, from where Python finds the examples."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(64) % 2)
    return tmp_path


def test_the_commands_train_and_draw_own_networks(beside: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    fit = ["--fit.iterations", "2", "--fit.batch-size", "4", "--data.source", "images.npz"]
    assert call(monkeypatch, "train", "examples.own_networks:recipe", *TINY, *fit, "--out", "run") == 0
    run = ["--import", "examples.own_networks"]
    sample = ["sample", "run", "--steps", "4", "--heavy", "2", "--num", "2", "--out", "drawn"]
    assert call(monkeypatch, *run, *sample) == 0, capsys.readouterr().err
    assert call(monkeypatch, *run, "cost", "run", "--steps", "4", "--heavy", "2") == 0, capsys.readouterr().err
    model = dr.load("run")
    assert model.call_cost.heavy > 2 * model.call_cost.light > 0
    assert dr.sample(model, 2, steps=4, heavy=2).shape == (2, 1, 8, 8)


def test_a_row_without_a_context_is_the_light_network_alone(beside: Path) -> None:
    from examples.own_networks import Encoder, Light  # pyright: ignore[reportMissingImports]

    encoder, light = Encoder(1, 8, 4, 2), Light(1, 4, 2)
    z, log_snr, label, present = (
        torch.randn(2, 1, 8, 8),
        torch.zeros(2),
        torch.tensor([0, 1]),
        torch.tensor([True, False]),
    )
    (feature,), _ = encoder(z, log_snr + 1, label)
    mixed = light(z, log_snr, label, (feature * present[:, None, None, None],), log_snr + 1, present)
    alone = light(z, log_snr, label)
    torch.testing.assert_close(mixed[1], alone[1])
    assert not torch.allclose(mixed[0], alone[0])


def test_the_own_sampler_is_of_second_order_and_known_to_the_commands(beside: Path, monkeypatch, capsys) -> None:
    from examples.own_sampler import Midpoint  # pyright: ignore[reportMissingImports]

    process = dr.GaussianProcess(Cosine())
    mixture = GaussianMixture.isotropic(torch.zeros(1, 1, dtype=torch.float64), 0.25)
    z = torch.ones(1, 1, dtype=torch.float64)

    def end(step: dr.Step, steps: int) -> float:
        plan = dr.StepPlan.uniform(steps)
        return rollout(OracleDenoiser(mixture, process), step, plan, z, dr.Cond(), lambda i, j: z).item()

    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    variance = 0.25 * process.alpha(ends) ** 2 + process.sigma(ends) ** 2
    exact = float((variance[0] / variance[1]).sqrt())  # where the probability-flow ODE goes from 1
    errors = [abs(end(Midpoint(process), steps) - exact) for steps in (32, 64)]
    assert errors[1] < errors[0] / 3
    assert errors[0] < abs(end(dr.DDIM(process), 64) - exact)
    experiment = dr.Experiment(
        "one",
        dr.OneNetwork(dr.UViTConfig(8, 1, (dr.Level("conv", 8, 1),), 2, embedding=16)),
        dr.DenoisingConfig(),
        dr.FitConfig(1, batch_size=4),
        dr.DataConfig("images.npz"),
    )
    dr.train(experiment, "one")
    arguments = ["--steps", "2", "--sampler", "examples.own_sampler:Midpoint", "--num", "2", "--out", "drawn"]
    assert call(monkeypatch, "sample", "one", *arguments) == 0, capsys.readouterr().err


def test_an_own_sampler_is_named_by_its_class_and_settings(beside: Path) -> None:
    """In tables, without the process, which is the model's."""
    from examples.own_sampler import Midpoint  # pyright: ignore[reportMissingImports]

    @dataclass(frozen=True)
    class Shorter(Midpoint):
        share: float = 0.5

    process = dr.GaussianProcess(Cosine())
    assert (str(Midpoint(process)), str(Shorter(process, 0.25))) == ("Midpoint", "Shorter, share 0.25")


def test_the_own_loop_trains_and_draws(beside: Path, capsys) -> None:
    from own_loop import main  # pyright: ignore[reportMissingImports]

    main(["images.npz", "--side", "8", "--iterations", "3", "--batch-size", "8", "--out", "images.png"])
    assert "iteration 3, loss " in capsys.readouterr().out
    assert Image.open(beside / "images.png").width >= 4 * 8
    sys.modules.pop("own_loop")
