"""Covariance-aware steps: z_s is drawn with the covariance of x given z_t, not from its mean alone.

If x* ~ p(x | z_t) had been drawn, a kernel would take it to z_s = A z_t + B x* + sqrt(V) n, so that

    E[z_s | z_t] = A z_t + B x_hat,    Cov[z_s | z_t] = B^2 C + V I,    C = Cov[x | z_t]

    "markov"  z_s ~ q(z_s | z_t, x*):  B = c alpha_s,  V = c sigma_s^2,  c = 1 - exp(log_snr(t) - log_snr(s))
    "ddim"    eps_hat held:            B = alpha_s - alpha_t sigma_s / sigma_t,  V = 0

Ancestral and DDIM leave B^2 C out, and so lose spread in long steps. Only the Markov kernel keeps the law of pairs
(z_s, z_t), which a reused context needs; the other one draws noise too, and breaks it. By Tweedie's formula of second
order C is a derivative, also at a fixed context: q(z_t | x, z_tau) has a mean linear in x, and its variance over that
slope is the same factor,

    C = (sigma_t^2 / alpha_t) d x_hat / d z_t

Two ways to have B^2 C:

- In frequency bands (`Bands`) C = U^T diag(l) U with one l a band, estimated for each image from the derivative J along
  one probe U^T r of random signs r, l = (sigma_t^2 / alpha_t) r (U J U^T r), mean over the band (`probed`; the step is
  that of fourier.py).
- Along the noise (`NoiseCovariance`), with the derivative in the direction of the step's own noise n. An eigenvalue
  lambda = alpha_t J of the derivative is 0 where z_t has settled x and 1 where it has all the information, and

      markov  sqrt(V) (n + (B^2 / V) C n / (1 + e^(h / 2))),  h = log_snr(s) - log_snr(t)
      ddim    B sigma_t J n

  have exactly the right covariance at both; between them they have less, above 1 (between separate modes) more: the
  root of a sum, replaced by its chord. It needs no bands, and knows where in an image the uncertainty lies.

Source: after Schioppa and Salimans, arXiv 2605.13910, whose own sampler is fourier.py. The Markov kernel in bands
and the step along the noise are ours.

Bands: an orthonormal transform of rows and columns, frequencies grouped by radius, and a DCT over channels. Where an
image's edge is a mirror ("even"), that is a DCT-II; where opposite edges meet ("periodic"), a DFT in its real form,
Hartley's, of which waves k and N - k have the same frequency:

    even      U[k, n] = sqrt((2 - [k = 0]) / N) cos(pi k (n + 1/2) / N)           along an axis of N
    periodic  U[k, n] = (cos(2 pi k n / N) + sin(2 pi k n / N)) / sqrt(N)

Over three colours the same transform is an opponent rotation: grey, red against blue, green against both. A band is a
ring of spatial frequencies of one such channel; the lowest holds the mean and, of large images, little else. Rings are
of equal width in the square root of the radius, so that they are thinner where images have their energy.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from dualrate.config.ranges import Range, Ranged, Rings, Side
from dualrate.diffusion.context import cached_for_shared_time, expand
from dualrate.diffusion.process import GaussianProcess, posterior_weights
from dualrate.diffusion.schedule import alpha
from dualrate.sampling.step import Carry, Denoise, Draw, Step, Stepped, move_weights

Boundary = Literal["even", "periodic"]


@dataclass(frozen=True)
class Bands(Ranged):
    """Bands of an image's frequencies: rings in each channel.

    shape: (C, H, W) of an image; rings: in a channel, at most; those that a small image leaves empty are dropped
    boundary: of an image: a mirror, or opposite edges meet
    """

    shape: tuple[Side, Side, Side]
    rings: Rings = 12
    boundary: Boundary = "even"

    @cached_property
    def index(self) -> Tensor:
        """(C, H, W) int64: the band of each coefficient."""
        channels, height, width = self.shape
        down, right = (_frequencies(size, self.boundary) for size in (height, width))
        root = (down[:, None] ** 2 + right**2) ** 0.25
        ring = (root / root.max().clamp_min(1e-9) * self.rings).long().clamp_max(self.rings - 1)
        ring = torch.unique(ring, return_inverse=True)[1]
        return ring + (int(ring.max()) + 1) * torch.arange(channels)[:, None, None]

    @cached_property
    def count(self) -> int:
        """K, the number of bands."""
        return int(self.index.max()) + 1

    def transform(self, x: Tensor) -> Tensor:
        """U x. x: (B, C, H, W), coefficients of the same shape and dtype."""
        channels, height, width = _matrices(self, x.dtype, x.device)
        return torch.einsum("dc,bchw->bdhw", channels, height @ x @ width.mT)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """U^T c."""
        channels, height, width = _matrices(self, coefficients.dtype, coefficients.device)
        return torch.einsum("dc,bdhw->bchw", channels, height.mT @ coefficients @ width)

    def mean(self, coefficients: Tensor) -> Tensor:
        """(B, K): the mean over each band. coefficients: (B, C, H, W)."""
        flat = coefficients.flatten(1)
        members, sizes = _members(self, flat.dtype, flat.device)
        return flat @ members / sizes

    def spread(self, values: Tensor) -> Tensor:
        """(B, C, H, W): each band's value at all of its coefficients. values: (B, K), or (1, K) for all rows."""
        return values[:, _index(self, values.device)].unflatten(1, self.shape)

    def noise(self, variance: Tensor, normal: Tensor) -> Tensor:
        """U^T sqrt(variance) U n, (B, C, H, W). variance: (B, K) of each band; normal: n"""
        with torch.autocast(normal.device.type, enabled=False):
            return self.inverse(self.spread(variance.sqrt()) * self.transform(normal))


@cache
def _index(bands: Bands, device: torch.device) -> Tensor:
    """(C H W,) the band of each coefficient; one copy for each device."""
    return bands.index.flatten().to(device)


@cache
def _members(bands: Bands, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """A matrix (C H W, K), 1 in the band of each coefficient, and its sums (K,). Sums by it have one order on a GPU."""
    members = torch.nn.functional.one_hot(_index(bands, device), bands.count)
    return members.to(dtype), members.sum(0).to(dtype)


def _frequencies(size: int, boundary: Boundary) -> Tensor:
    """(N,) the frequency of each wave, from 0 to 1."""
    k = torch.arange(size)
    return k / size if boundary == "even" else 2 * torch.minimum(k, size - k) / size


def _matrices(bands: Bands, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    """U of the channels, rows and columns, (N, N) each."""
    for size, boundary in zip(bands.shape, ("even", bands.boundary, bands.boundary), strict=True):
        yield waves(size, boundary, dtype, device)


@cache
def waves(size: int, boundary: Boundary, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(N, N) orthonormal, rows are frequencies; cached."""
    n = torch.arange(size, dtype=torch.float64, device=device)
    if boundary == "periodic":
        angle = 2 * math.pi / size * (n[:, None] * n % size)
        return ((torch.cos(angle) + torch.sin(angle)) / math.sqrt(size)).to(dtype)
    cosines = torch.cos(math.pi / size * n[:, None] * (n + 0.5)) * math.sqrt(2 / size)
    cosines[0] *= math.sqrt(0.5)
    return cosines.to(dtype)


Kernel = Literal["markov", "ddim"]
ONE_LEVEL = threading.Lock()  # of derivatives: torch has one for all threads of a process
FALLBACK = 0.05  # of sigma_t: the length of a finite difference where forward mode has no rule


class KernelStep(Ranged, Step):
    """A step that gives one of two kernels the covariance of x (module docstring). A subclass is a frozen dataclass."""

    kernel: Kernel

    @property
    def markovian(self) -> bool:
        return self.kernel == "markov"


@dataclass(frozen=True)
class NoiseCovariance(KernelStep):
    """The covariance along the step's own noise, by one derivative a step; no bands.

    length: of the finite difference that stands for the derivative, in units of sigma_t; None: forward mode. A long one
            averages the derivative over as much of z_t's surroundings, and is faster (dev/LOG.md has both compared)
    The step into t = 0 returns x_hat.
    """

    process: GaussianProcess
    kernel: Kernel = "markov"
    length: Annotated[float, Range(0, 100, above=True)] | None = 0.3
    calls_per_step = 2
    single_call_steps = 1
    grid = "log-snr"

    def __str__(self) -> str:
        length = "" if self.length == 0.3 else f", {'forward mode' if self.length is None else self.length}"
        return f"covariance-aware, along the noise{', DDIM kernel' if self.kernel == 'ddim' else ''}{length}"

    @property
    def order(self) -> int:
        """2 where the derivative is exact: a difference of finite length stays off it however short the step."""
        return 2 if self.markovian and self.length is None else 1

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        if self.process.ends(s):
            return denoise(z, t), carry
        normal = draw()
        x_hat, along = derivative(self.process, denoise, z, t, normal, self.length)
        from_z, from_x, from_normal, from_along = (
            expand(part, z) for part in _along_noise(self.process, self.kernel, t, s)
        )
        return from_z * z + from_x * x_hat + from_normal * normal + from_along * along, carry


@cached_for_shared_time
def _along_noise(process: GaussianProcess, kernel: Kernel, t: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    """Weights, in z_s, of z, x_hat, the noise n, and the derivative along n (module docstring)."""
    if kernel == "ddim":
        a, b = move_weights(process, t, s)
        return a, b, torch.zeros_like(b), b * process.scales(t)[1]
    a, b, v = posterior_weights(process, t, s)
    half = (process.schedule.log_snr(s) - process.schedule.log_snr(t)) / 2
    return a, b, v.sqrt(), b**2 / v.sqrt() * tweedie(process, t) / (1 + torch.exp(half))


def probed(
    process: GaussianProcess, bands: Bands, denoise: Denoise, z: Tensor, t: Tensor, normal: Tensor
) -> tuple[Tensor, Tensor]:
    """x_hat, (B, C, H, W), and one probe's estimate of the variance of x in each band, (B, K), which may be negative.

    normal: random numbers of z's shape, of which the signs are the probe. Unbiased for the mean over a band of the
    diagonal of U C U^T, and exact if that is diagonal.
    """
    with torch.autocast(z.device.type, enabled=False):
        probe = torch.where(normal < 0, -1.0, 1.0).to(z.dtype)
        direction = bands.inverse(probe)
    x_hat, along = derivative(process, denoise, z, t, direction, None)
    with torch.autocast(z.device.type, enabled=False):
        estimate = bands.mean(probe * bands.transform(along))
    return x_hat, expand(tweedie(process, t), estimate) * estimate


@cached_for_shared_time
def tweedie(process: GaussianProcess, t: Tensor) -> Tensor:
    """sigma_t^2 / alpha_t, (B,): C over the derivative of x_hat."""
    log_snr = process.schedule.log_snr(t)
    return torch.sigmoid(-log_snr) / alpha(log_snr)


def derivative(
    process: GaussianProcess, denoise: Denoise, z: Tensor, t: Tensor, direction: Tensor, length: float | None
) -> tuple[Tensor, Tensor]:
    """x_hat at z and its derivative along a direction, both (B, ...), at a fixed context.

    Where the context came with an x_hat (a heavy call's), that is the x_hat, and the derivative is the
    denoiser's given the context. length: of a finite difference in units of sigma_t; None: forward mode, or a short
    difference where an operation of the network has no forward rule.
    """
    cached = None  # x_hat that came with the context and has no derivative; the next call's is the network's
    if length is None:
        try:
            while True:
                with ONE_LEVEL, forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no rule
                    x_hat, along = forward_ad.unpack_dual(denoise(forward_ad.make_dual(z, direction), t))
                if cached is not None or along is not None:
                    return x_hat if cached is None else cached, torch.zeros_like(z) if along is None else along
                cached = x_hat
        except NotImplementedError:
            length = FALLBACK
    x_hat, step = denoise(z, t) if cached is None else cached, expand(length * process.scales(t)[1], z)
    return x_hat, (denoise(z + step * direction, t) - denoise(z, t)) / step
