"""Unified Latents in closed form: Gaussian data, the exact prior and decoder, and losses integrated without chance.

For z ~ N(0, s^2) errors are quadratic in z and in every noise, so the numbers -1 and 1, equally likely, have the same
expectations as normal ones; times are the midpoints of a grid, or those of the method itself.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

import dualrate as dr
from dualrate.diffusion.context import Batch
from dualrate.diffusion.process import NoisyEnd
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine, RectifiedFlow
from dualrate.diffusion.weighting import Elbo, Sigmoid
from dualrate.methods.unified_latents import UnifiedLatents, bound, end

LOG_SNR = 5.0
SPREAD = 1 / (1 + math.exp(LOG_SNR))  # sigma_0^2


@dataclass(frozen=True)
class Linear:
    """The exact E[x | x_t, z_0] of x ~ N(0, variance) and z_0 = gain x + noise of variance `SPREAD`.

    Without z_0, or a gain, that of a prior.
    """

    process: dr.GaussianProcess
    variance: float
    gain: float | Tensor = 0.0
    reuse: dr.Reuse = dr.Reuse.FREE

    def encode(self, z: Tensor, t: Tensor, cond: dr.Cond) -> dr.Context:
        return dr.Context()

    def denoise(self, z: Tensor, t: Tensor, context: dr.Context, cond: dr.Cond) -> Tensor:
        scale, noise = (part.reshape(-1, *[1] * (z.ndim - 1)) for part in self.process.scales(t))
        z_0 = torch.zeros_like(z) if cond.given is None else cond.given
        precision = 1 / self.variance + (scale / noise) ** 2 + self.gain**2 / SPREAD
        return (scale / noise**2 * z + self.gain / SPREAD * z_0) / precision


def signs(count: int, times: int) -> list[Tensor]:
    """All combinations of `count` signs, (2^count times,) each, `times` times over."""
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    return [axis.flatten().repeat(times)[:, None] for axis in torch.meshgrid(*[ends] * count, indexing="ij")]


SCHEDULES = {
    f"{name}, from {low}": kind
    for low in (-12.0, -1.0)
    for name, kind in {
        "cosine": Cosine(low, LOG_SNR),
        "shifted": Cosine(low, LOG_SNR, shift=-1.0),
        "flow": RectifiedFlow(log_snr_min=low, log_snr_max=LOG_SNR),
    }.items()
}


@pytest.mark.parametrize(("s", "nats"), [(1.0, 2.5034), (0.5, 1.8202), (2.0, 3.1940)])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_gaussian_channel_costs_its_capacity_whatever_the_schedule(schedule, s, nats):
    """1/2 log(1 + s^2 e^5): sign, half, weight, and the divergence at t = 1, which counts where log_snr(1) is -1.

    There z_1 is not quite N(0, 1), which the bound pays for, and nothing else: KL(N(0, v), N(0, 1)), 0 at s = 1.
    """
    process, count = NoisyEnd(schedule), 4000
    t = ((torch.arange(count, dtype=torch.float64) + 0.5) / count).repeat_interleave(4)
    z, eps = signs(2, count)
    found = bound(Linear(process, s**2), process, s * z, t, eps, dr.Cond(), Elbo()) + end(process, s * z)
    v = 1 + (s**2 - 1) / (1 + math.exp(-schedule.log_snr_min))
    capacity = float(found.mean()) - (v - 1 - math.log(v)) / 2
    assert capacity == pytest.approx(nats, abs=1e-4)
    assert capacity == pytest.approx(0.5 * math.log(1 + s**2 * math.exp(LOG_SNR)), rel=1e-5)


class Scaled(nn.Module):
    """z = gain x of the first of two numbers. axis: along which they lie"""

    def __init__(self, gain: float, axis: int) -> None:
        super().__init__()
        self.gain, self.axis = nn.Parameter(torch.tensor(gain, dtype=torch.float64)), axis

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x.narrow(self.axis, 0, 1)


@dataclass(frozen=True)
class Given(Draws):
    """Numbers that are given, in place of drawn normal ones."""

    numbers: Mapping[str, Tensor] = field(default_factory=dict)

    def normal(self, stream: str, *shape: int) -> Tensor:
        return self.numbers[stream].view(-1, *shape)


# the encoder's; log_snr of the images' process at its ends, and of the latents' at t = 1
GAIN, LOW, HIGH, NOISIEST = 0.7, -6.0, 4.0, -1.0


def loss_of(gain: float = GAIN, *, axis: int = 3, **changes: object) -> tuple[UnifiedLatents, Tensor, dict[str, float]]:
    """The method, its loss of x = (x_1, x_2) ~ N(0, I) with z = gain x_1 under exact networks, and its logs.

    axis: 3, two pixels; 1, two channels of one
    """
    process, images = NoisyEnd(Cosine(NOISIEST, LOG_SNR)), dr.GaussianProcess(Cosine(LOW, HIGH, shift=1.0))
    shape = [2 if i == axis else 1 for i in (1, 2, 3)]
    encoder, seen = Scaled(gain, axis), torch.tensor([gain * math.sqrt(1 - SPREAD), 0], dtype=torch.float64)
    seen = seen.view(shape)
    prior, decoder = Linear(process, max(gain**2, 1e-12)), Linear(images, 1.0, seen)
    networks = nn.ModuleDict({"encoder": encoder})
    method = UnifiedLatents(networks, encoder, prior, decoder, process, images, Elbo(), 1.0)
    method, count = replace(method, **changes), 10_000
    *x, eps, eps_x, eps_0 = signs(5, count)
    row = torch.arange(count).repeat_interleave(32)  # all signs at every time
    draws = Given(0, row, numbers={"z_t": eps, "x_t": eps_x.expand(-1, 2).reshape(-1, 2), "z_0": eps_0})
    loss = method.loss(Batch(torch.cat(x, 1).view(-1, *shape), None, row), 0, draws)
    return method, loss.total, {name: value.item() for name, value in loss.logs.items()}


KNOWN = 1 + GAIN**2 * math.exp(LOG_SNR), 1.0  # precision of each pixel given z_0
V = 1 + (GAIN**2 - 1) / (1 + math.exp(-NOISIEST))  # the variance of z_1, which the bound takes for 1
CAPACITY = 0.5 * math.log(KNOWN[0]) + (V - 1 - math.log(V)) / 2  # nats of z_0, with that


def told(log_snr: float) -> float:
    """Nats that z_0 and x_t together tell of x, at a log-SNR of x_t."""
    return sum(0.5 * math.log(precision + math.exp(log_snr)) for precision in KNOWN)


def test_the_whole_loss_is_the_bound_of_a_linear_gaussian_model():
    """Information that z_0 holds of x, and x_t besides, from its noisiest state to its cleanest; of 2 pixels each."""
    _, total, logs = loss_of()
    assert total.item() == pytest.approx((CAPACITY + told(HIGH) - told(LOW)) / 2, rel=1e-3)
    assert logs["bits"] == pytest.approx(CAPACITY / math.log(2) / 2, rel=1e-3)
    assert logs["decoder_loss"] == pytest.approx((told(HIGH) - told(LOW)) / 2, rel=1e-3)
    assert logs["latent_square"] == pytest.approx(GAIN**2)


def test_bits_are_of_a_pixel_and_the_decoder_s_loss_of_a_number():
    """Two channels of one pixel in place of two pixels."""
    _, _, logs = loss_of(axis=1)
    assert logs["bits"] == pytest.approx(CAPACITY / math.log(2), rel=1e-3)
    assert logs["decoder_loss"] == pytest.approx((told(HIGH) - told(LOW)) / 2, rel=1e-3)


def test_bits_of_a_clip_are_of_a_pixel_of_a_frame():
    """Two channels as two frames."""
    _, _, logs = loss_of(axis=1, frames=2)
    assert logs["bits"] == pytest.approx(CAPACITY / math.log(2) / 2, rel=1e-3)


def test_an_encoder_that_says_nothing_pays_nothing_and_the_decoder_is_one_of_images_alone():
    """But for the divergence of z_1, which is all noise, of variance 1 / (1 + 1/e) here."""
    _, _, logs = loss_of(gain=0.0)
    v = 1 / (1 + math.exp(NOISIEST))
    assert logs["bits"] == pytest.approx((v - 1 - math.log(v)) / 2 / math.log(2) / 2, rel=1e-6)
    unconditional = 0.5 * (math.log1p(math.exp(HIGH)) - math.log1p(math.exp(LOW)))  # of each pixel
    assert logs["decoder_loss"] == pytest.approx(unconditional, rel=1e-3)


def test_the_decoder_is_weighted_down_where_noise_is_low_and_by_the_loss_factor():
    """w = c sigmoid(b - log_snr) on the bound's integrand, e^log_snr / 2 times the variance of x given x_t and z_0."""
    _, _, logs = loss_of(weighting=Sigmoid(1.0), loss_factor=1.5)
    log_snr = torch.linspace(LOW, HIGH, 100_001, dtype=torch.float64)
    snr, weight = log_snr.exp(), 1.5 * torch.sigmoid(1.0 - log_snr)
    integrand = torch.stack([0.5 * snr / (precision + snr) * weight for precision in KNOWN]).sum(0)
    assert logs["decoder_loss"] == pytest.approx(torch.trapezoid(integrand, log_snr).item() / 2, rel=1e-3)
    assert logs["bits"] == pytest.approx(CAPACITY / math.log(2) / 2, rel=1e-3)  # of weight 1, whatever the decoder's


def test_the_encoder_is_trained_by_both_losses_once_its_latents_are_priced():
    """A larger gain costs bits and helps the decoder: d/dgain of the bound at fixed networks is not zero."""
    gradients = []
    for priced_from in (0, 1):
        method, total, _ = loss_of(priced_from=priced_from)
        (gradient,) = torch.autograd.grad(total, tuple(method.encoder.parameters()))
        gradients.append(gradient.item())
    both, decoder = gradients
    low, high = (1 / (1 + GAIN**2 * math.exp(at)) for at in (NOISIEST, LOG_SNR))
    prior, end = (low - high) / GAIN, GAIN / (1 + math.exp(-NOISIEST))  # d/dgain of the bound's two parts
    assert both - decoder == pytest.approx((prior + end) / 2, rel=1e-2)
    assert abs(decoder) > 1e-3


@dataclass(frozen=True)
class Noting(Linear):
    """Keeps the times that it is called at."""

    times: list[Tensor] = field(default_factory=list)

    def denoise(self, z: Tensor, t: Tensor, context: dr.Context, cond: dr.Cond) -> Tensor:
        self.times.append(t)
        return super().denoise(z, t, context, cond)


def test_the_times_of_the_two_losses_are_independent():
    """Each uniform, and so are their pairs: all 16 parts of the square of both have a sixteenth of the rows."""
    rows, process, images = 1600, NoisyEnd(Cosine(NOISIEST, LOG_SNR)), dr.GaussianProcess(Cosine(LOW, HIGH))
    prior, decoder, encoder = Noting(process, 1.0), Noting(images, 1.0), Scaled(GAIN, 3)
    method = UnifiedLatents(nn.ModuleDict({"encoder": encoder}), encoder, prior, decoder, process, images, Elbo(), 1.0)
    x = torch.zeros(rows, 1, 1, 1, dtype=torch.float64)
    method.loss(Batch(x, None, torch.arange(rows)), 0, Draws(0, torch.arange(rows)))
    (t_z,), (t_x,) = prior.times, decoder.times
    found = torch.bincount((4 * t_z).long() * 4 + (4 * t_x).long(), minlength=16).double()
    torch.testing.assert_close(found, torch.full((16,), rows / 16, dtype=torch.float64), rtol=0.1, atol=0)
