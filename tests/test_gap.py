"""The study of the gap between networks, against Gaussian data whose best estimate is known."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dualrate as dr
from dualrate.data.images import ImageSet
from dualrate.diffusion.prediction import Sigmoid
from dualrate.diffusion.schedule import Cosine
from dualrate.system.progress import PlainReporter
from dualrate.training.config import FitConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "studies"))

import gap

VARIANCE = 0.05  # of a pixel: few are clamped
LEVELS = np.array([-4.0, 0.0, 3.0])
PROCESS = dr.GaussianProcess(Cosine())


@dataclass(frozen=True)
class Scaled:
    """Times `factor` the posterior mean of x ~ N(0, VARIANCE), computed where the context is made, or after it."""

    factor: float
    own: bool
    reuse: dr.Reuse = dr.Reuse.FREE

    def encode(self, z: Tensor, t: Tensor, cond: dr.Cond) -> dr.Context:
        return dr.Context(x_hat=self._x_hat(z, t)) if self.own else dr.Context()

    def denoise(self, z: Tensor, t: Tensor, context: dr.Context, cond: dr.Cond) -> Tensor:
        assert (context.x_hat is not None) == self.own
        return self._x_hat(z, t) if context.x_hat is None else context.x_hat

    def _x_hat(self, z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
        gain = self.factor * alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
        return gain.to(z.dtype)[:, None, None, None] * z


def model(factor: float, own: bool = False) -> dr.Model:
    config = dr.UViTConfig(8, 1, (dr.Level("conv", 8, 0),))
    one = dr.Experiment("one", dr.OneNetwork(config), dr.DenoisingConfig(), FitConfig(1))
    return dr.Model("one", one, nn.ModuleDict({"model": nn.Linear(1, 1)}), Scaled(factor, own), 1, "")


def gaussian_images() -> ImageSet:
    x = VARIANCE**0.5 * np.random.default_rng(0).standard_normal((400, 1, 8, 8))
    return ImageSet(np.clip(np.round(127.5 * x + 127.5), 0, 255).astype(np.uint8), None, (), "gauss/test")


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return gaussian_images()


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_errors_are_those_of_the_closed_form(images: ImageSet, factor: float, own: bool) -> None:
    """E(x - f g z)^2 = V (1 - f g alpha)^2 + f^2 g^2 sigma^2."""
    found = gap.errors(model(factor, own), images, 400, LEVELS, PlainReporter())
    assert found.shape == (400, 3)
    alpha2 = 1 / (1 + np.exp(-LEVELS))
    gain = factor * alpha2**0.5 * VARIANCE / (alpha2 * VARIANCE + 1 - alpha2)
    expected = VARIANCE * (1 - gain * alpha2**0.5) ** 2 + gain**2 * (1 - alpha2)
    for i, level in enumerate(expected):
        estimate = gap.mean(found[:, i])
        assert estimate.value == pytest.approx(level, abs=4 * estimate.error)
        assert estimate.error == pytest.approx(level * (2 / 64 / 400) ** 0.5, rel=0.3)  # squares of 64 normals


def test_models_see_the_same_noise(images: ImageSet) -> None:
    first, second = (gap.errors(model(1.0, own), images, 20, LEVELS, PlainReporter()) for own in (False, True))
    assert np.array_equal(first, second)


def test_excess_of_a_multiple_has_no_error() -> None:
    base = np.random.default_rng(0).exponential(size=50)
    found = gap.excess(1.25 * base, base)
    assert found.value == pytest.approx(0.25)
    assert found.error == pytest.approx(0, abs=1e-12)


def test_the_standard_error_of_an_excess_is_the_spread_of_repetitions() -> None:
    draws = np.random.default_rng(0)
    base = 2 + draws.standard_normal((400, 100))
    other = 1.1 * base + 0.3 * draws.standard_normal((400, 100))
    found = [gap.excess(one, two) for one, two in zip(other, base, strict=True)]
    spread = np.std([one.value for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(spread, rel=0.1)


def test_the_loss_of_a_constant_error_is_the_integral_of_the_weight() -> None:
    levels, weighting = np.linspace(-6, 6, 201), Sigmoid(bias=1.0)
    found = gap.losses(np.full((2, 201), 0.3), levels, weighting)
    whole = weighting.integral(torch.tensor(-6.0), torch.tensor(6.0)).item()
    assert found == pytest.approx(0.5 * 0.3 * whole, rel=1e-4)


def test_a_table_has_a_line_for_every_level_and_the_loss(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap, "LOWEST", -1)
    monkeypatch.setattr(gap, "HIGHEST", 1)
    rows = gap.measure([model(1.0), replace(model(8.0), name="two")], images, 40, PlainReporter())
    assert list(rows) == ["-1", "0", "1", "loss"]
    assert all(other.value > 3 * other.error > 0 for _, other in rows.values())
    header, _, *lines = gap.table(["one", "two"], rows).splitlines()
    assert header == "| log-SNR | one, MSE | two, % |"
    assert len(lines) == 4
    assert lines[-1].startswith("| loss | ")
