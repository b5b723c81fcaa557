"""The method in one file of plain torch, held against the package: the same loss, the same samples."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import dualrate as dr
from dualrate.denoisers.denoiser import DualRate
from dualrate.diffusion.context import Batch, Cond
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Sigmoid
from dualrate.methods.denoising import Denoising
from dualrate.methods.times import TimeSampler
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.trajectory import rollout

FILE = Path(__file__).resolve().parents[2] / "examples" / "dual_rate_in_one_file.py"


@pytest.fixture(scope="module")
def one_file() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dual_rate_in_one_file", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pair(one_file: ModuleType) -> tuple[nn.Module, nn.Module]:
    """Its two networks in float64, with no weight at zero, so that every path counts."""
    torch.manual_seed(0)
    networks = nn.ModuleList((one_file.Encoder(16, 2, 8), one_file.Light(8, 1))).double()
    with torch.no_grad():
        for weight in networks.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return networks[0], networks[1]


class AsEncoder(nn.Module):
    """The file's encoder with the package's signature."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[tuple[Tensor, ...], None]:
        return (self.encoder(z, log_snr),), None


class AsLight(nn.Module):
    """The file's light network with the package's signature."""

    def __init__(self, light: nn.Module) -> None:
        super().__init__()
        self.light = light

    def forward(self, z: Tensor, log_snr: Tensor, label: None, features: Any, tau: Tensor, present: Any) -> Tensor:
        present = torch.ones(len(z), dtype=z.dtype) if present is None else present.to(z.dtype)
        return self.light(z, log_snr, *features, tau, present)


def packaged(encoder: nn.Module, light: nn.Module) -> tuple[nn.ModuleDict, DualRate, GaussianProcess]:
    process = GaussianProcess(Cosine())
    networks = nn.ModuleDict({"encoder": AsEncoder(encoder), "light": AsLight(light)})
    return networks, DualRate(networks["encoder"], networks["light"], process), process


def test_it_has_the_package_s_loss_and_gradient(one_file: ModuleType) -> None:
    encoder, light = pair(one_file)
    networks, model, process = packaged(encoder, light)
    x = torch.rand(6, 3, 8, 8, dtype=torch.float64) * 2 - 1
    draws = Draws(3, torch.arange(40, 46))
    times = TimeSampler(heavy=(2, 8))
    method = Denoising(networks, model, process, Sigmoid(), times, label_dropout=0.0)
    theirs = method.loss(Batch(x, None, torch.arange(40, 46)), 0, draws).total
    drawn = times(draws)
    eps = process.noise(draws, ["z_tau", "z_t"], 3, 8, 8).double()
    ours = one_file.dual_rate_loss(encoder, light, x, drawn.t, drawn.tau, drawn.heavy_rows, (eps[0], eps[1]))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    for one, other in zip(
        torch.autograd.grad(ours, list(networks.parameters())),
        torch.autograd.grad(theirs, list(networks.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_the_loss_for_one_s_own_loop_is_the_same(one_file: ModuleType) -> None:
    """By the rows, or by torch's generator; and what it trains draws images in one call."""
    encoder, light = pair(one_file)
    networks, _, process = packaged(encoder, light)
    loss = dr.DualRateLoss(networks["encoder"], networks["light"], times=TimeSampler(heavy=(2, 8)))
    x, rows = torch.rand(6, 3, 8, 8, dtype=torch.float64) * 2 - 1, torch.arange(40, 46)
    drawn = TimeSampler(heavy=(2, 8))(Draws(0, rows))
    eps = process.noise(Draws(0, rows), ["z_tau", "z_t"], 3, 8, 8).double()
    ours = one_file.dual_rate_loss(encoder, light, x, drawn.t, drawn.tau, drawn.heavy_rows, (eps[0], eps[1]))
    torch.testing.assert_close(ours, loss(x, rows=rows), rtol=1e-6, atol=0)
    values = [(torch.manual_seed(seed), loss(x).item())[1] for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    with pytest.raises(ValueError, match="labels are given"):
        loss(x, torch.zeros(6, dtype=torch.int64))
    networks.float()
    images = loss.sample(3, (3, 8, 8), steps=4, heavy=2)
    assert images.shape == (3, 3, 8, 8)
    torch.testing.assert_close(loss.sample([2], (3, 8, 8), steps=4, heavy=2)[0], images[2])


@pytest.mark.parametrize(("steps", "heavy"), [(8, 8), (8, 2), (7, 3)])
def test_it_draws_the_package_s_samples(one_file: ModuleType, steps: int, heavy: int) -> None:
    encoder, light = pair(one_file)
    _, model, process = packaged(encoder, light)
    noise = list(torch.randn(steps, 2, 3, 8, 8, dtype=torch.float64))
    ours = one_file.sample(encoder, light, noise, heavy)
    with torch.no_grad():
        theirs = rollout(
            model, Ancestral(process), StepPlan.uniform(steps, heavy), noise[0], Cond(None), lambda i, _: noise[i + 1]
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_its_times_are_those_of_a_plan(one_file: ModuleType) -> None:
    torch.manual_seed(0)
    t, tau = one_file.draw_times(100_000, least=4, most=4)
    assert (t <= tau).all()
    inside = t < 0.75  # further up tau ends at 1
    age = (tau - t)[inside]
    assert age.max() <= 0.25 + 1e-6
    assert age.mean().item() == pytest.approx(0.125, abs=1e-3)


def test_it_is_short_and_draws_a_picture(one_file: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With networks of a block each and small batches, since its own take seconds an iteration."""
    assert len(FILE.read_text().splitlines()) <= 250
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    encoder, light = one_file.Encoder, one_file.Light
    monkeypatch.setattr(one_file, "Encoder", lambda channels, blocks, light_channels: encoder(16, 1, light_channels))
    monkeypatch.setattr(one_file, "Light", lambda channels, blocks: light(channels, 1))
    monkeypatch.setattr(one_file, "train", partial(one_file.train, batch=8))
    command = [str(FILE), str(tmp_path), "--minutes", "0.001", "--out", str(tmp_path / "out.png")]
    monkeypatch.setattr(sys, "argv", command)
    one_file.main()
    assert Image.open(tmp_path / "out.png").size == (8 * 32 * 4, 3 * 32 * 4)
