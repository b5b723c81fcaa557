"""A regression and the diffusion of what it leaves: exact where (x, y) is Gaussian, whatever the residual's scale.

x | y ~ N(mu(y), S), and a regression with a bias b, m = mu + b. The light network knows what remains of the mean, and

    E[x | z_t, y] = mu + alpha S (alpha^2 S + sigma^2 I)^-1 (z_t - alpha mu)
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import dualrate as dr
from dualrate.data.conditions import SuperResolution
from dualrate.diffusion.context import Batch, Cond, shared_time
from dualrate.diffusion.prediction import v_from_x
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine, alpha, sigma
from dualrate.diffusion.weighting import Sigmoid
from dualrate.experiment.experiment import Start
from dualrate.methods.residual import Regression, Residual, ResidualConfig, ResidualDenoising, ResidualNetworks
from dualrate.methods.times import GivenTimes
from dualrate.networks.uvit import UViT

PROCESS = dr.GaussianProcess(Cosine())
ROOT = torch.tensor([[0.4, 0.0], [0.2, 0.1]], dtype=torch.float64)
S, EYE = ROOT @ ROOT.mT, torch.eye(2, dtype=torch.float64)
BIAS = torch.tensor([0.05, -0.1], dtype=torch.float64)


def normals(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def means(y: Tensor) -> Tensor:
    """mu(y): (B, 2, 1, 1)"""
    return torch.cat((0.5 * y, y.square() - 0.3), 1)


class BiasedMean(nn.Module):
    """m = mu + b, b learned; its features say how much of the mean is left."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(BIAS.clone())

    def forward(self, log_snr: Tensor, given: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        bias = self.bias[:, None, None]
        return ((-bias.detach().expand(len(given), 2, 1, 1)),), -(means(given) + bias) / sigma(log_snr)[0]


class ExactLight(nn.Module):
    """v of the scaled residual r / s ~ N((mu - m) / s, S / s^2)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, z: Tensor, log_snr: Tensor, label: None, features: tuple[Tensor, ...]) -> Tensor:
        left = features[0].repeat_interleave(len(z) // len(features[0]), 0) / self.scale
        a, of_noise = alpha(log_snr)[:, None, None], sigma(log_snr)[:, None, None]
        spread = S / self.scale**2
        gain = a * spread @ torch.linalg.inv(a**2 * spread + of_noise**2 * EYE)
        offset = z - a[..., None] * left
        return v_from_x(z, left + (gain @ offset[..., 0])[..., None], log_snr)


def exact(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """E[x | z_t, y]; y has a row for each of z."""
    log_snr = PROCESS.log_snr(t).expand(len(z))
    a, of_noise = alpha(log_snr)[:, None, None], sigma(log_snr)[:, None, None]
    gain = a * S @ torch.linalg.inv(a**2 * S + of_noise**2 * EYE)
    mean = means(y)
    return mean + (gain @ (z - a[..., None] * mean)[..., 0])[..., None]


@pytest.mark.parametrize("scale", [0.05, 0.25, 1.0, 3.0])
@pytest.mark.parametrize("time", [0.05, 0.4, 0.9])
def test_x_hat_is_the_posterior_mean_whatever_the_scale_of_the_residual(scale: float, time: float) -> None:
    denoiser = Residual(BiasedMean(), ExactLight(scale), PROCESS, scale)
    y, z, t = normals(3, 1, 1, 1), normals(12, 2, 1, 1), shared_time(time)
    cond = Cond(None, y)
    context = denoiser.encode(z, t, cond)
    torch.testing.assert_close(context.features[-1], means(y) + BIAS[:, None, None])
    every = y.repeat_interleave(4, 0)
    torch.testing.assert_close(denoiser.denoise(z, t, context, cond), exact(z, t, every))
    times = torch.linspace(0.1, time, 12, dtype=torch.float64)  # one each row, as in training
    torch.testing.assert_close(denoiser.denoise(z, times, context, cond), exact(z, times, every))
    torch.testing.assert_close(denoiser.denoise(z[:3], times[:3], context, cond), exact(z[:3], times[:3], y))


def test_without_a_heavy_call_there_is_no_mean() -> None:
    denoiser = Residual(BiasedMean(), ExactLight(1.0), PROCESS, 1.0)
    with pytest.raises(ValueError, match="begin the plan with a heavy call"):
        denoiser.denoise(normals(2, 2, 1, 1), shared_time(0.5), dr.Context(), Cond(None, normals(2, 1, 1, 1)))


NET = dr.UViTConfig(8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1)), patch=2, embedding=16, head_dim=16)
LIGHT = replace(NET, levels=(dr.Level("conv", 4, 1), dr.Level("conv", 8, 1)))
GIVEN = SuperResolution(2).shape((1, 8, 8))


def regression(features: bool) -> Regression:
    torch.manual_seed(0)
    made = Regression(NET, LIGHT, GIVEN, features)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made.double()


def test_where_all_is_noise_x_hat_is_the_regression_s() -> None:
    """Networks are as they begin, with a v of 0."""
    denoiser = Residual(regression(True), UViT(LIGHT).double(), PROCESS, 0.25)
    z, t, cond = normals(2, 1, 8, 8), shared_time(1.0), Cond(None, normals(2, *GIVEN))
    with torch.no_grad():
        context = denoiser.encode(z, t, cond)
        off = denoiser.denoise(z, t, context, cond) - context.features[-1]
    assert 0 < off.abs().max() < 1e-3
    assert context.features[-1].abs().max() > 0.1


def batch() -> Batch:
    return Batch(normals(6, 2, 1, 1), None, torch.arange(6), given=normals(6, 1, 1, 1))


def test_the_mean_learns_by_the_regression_alone() -> None:
    encoder, data = BiasedMean(), batch()
    model = Residual(encoder, ExactLight(0.5), PROCESS, 0.5)
    for weight in (0.0, 4.0):
        method = ResidualDenoising(
            nn.ModuleDict({"encoder": encoder}),
            model,
            PROCESS,
            Sigmoid(),
            GivenTimes(),
            mean_weight=weight,
        )
        loss = method.loss(data, 0, data.draws(0))
        error = means(data.given) + BIAS[:, None, None] - data.x
        torch.testing.assert_close(loss.logs["mean_loss"], weight * error.square().mean())
        (gradient,) = torch.autograd.grad(loss.total, [encoder.bias], allow_unused=True, materialize_grads=True)
        torch.testing.assert_close(gradient, weight * error.mean((0, 2, 3)))  # of the mean of two pixels' squares


@pytest.mark.parametrize("features", [True, False])
def test_the_light_network_of_corrdiff_gets_the_condition_and_the_mean_alone(features: bool) -> None:
    encoder, y = regression(features), normals(3, *GIVEN)
    added, v = encoder(PROCESS.log_snr(torch.ones(3, dtype=torch.float64)), y)
    heavy = list(encoder.net.parameters())
    gradients = torch.autograd.grad(
        sum(part.square().sum() for part in added), heavy, allow_unused=True, materialize_grads=True
    )
    assert any(bool(gradient.any()) for gradient in gradients) == features
    if not features:
        own, mean = encoder.light(y), encoder.mean(-v)
        torch.testing.assert_close(added, tuple(a + b for a, b in zip(own, mean, strict=True)))


def test_the_residual_s_loss_is_weighted_as_that_of_an_image_of_its_size() -> None:
    """With |r / s - its estimate|^2 at the noise level that r / s has, log_snr + 2 log s."""
    scale = 0.25
    networks = ResidualNetworks(NET, LIGHT, GIVEN, scale=scale)
    weighting = Sigmoid(-1.0)
    experiment = dr.Experiment(
        "run", networks, ResidualConfig(weighting), dr.FitConfig(2), condition=SuperResolution(2)
    )
    nothing = Start(True, torch.device("cpu"), False, lambda path: None, lambda i: None, print)  # pyright: ignore[reportArgumentType]
    method = experiment.method.prepare(experiment, nothing).method
    log_snr = torch.linspace(-8, 8, 9, dtype=torch.float64)
    expected = weighting.snr_weight(log_snr + 2 * math.log(scale)) / scale**2
    torch.testing.assert_close(method.weighting.snr_weight(log_snr), expected)
    assert method.mean_weight == 1 / scale**2
    data = Batch(normals(4, 1, 8, 8).float(), None, torch.arange(4), given=normals(4, *GIVEN).float())
    loss = method.loss(data, 0, Draws(0, data.sample))
    loss.total.backward()
    assert loss.total.isfinite()
