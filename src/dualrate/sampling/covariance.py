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

- In frequency bands (`Bands`) C = U^T diag(l) U with one l a band. `TabulatedCovariance` takes l, the mean of
  |U (x - x_hat)|^2 over data, from a table, at no cost. `ProbedCovariance` estimates it for each image from the
  derivative J along one probe U^T r of random signs r, l = (sigma_t^2 / alpha_t) r (U J U^T r), mean over the band,
  where the table shows that this can be trusted. Both have the Markov kernel; fourier.py has DDIM's, and no table. A
  table's marginals are exact where x - x_hat is not correlated with z_t: of a network that makes too little of z_t it
  spreads too much. It is of a denoiser without guidance.
- Along the noise (`NoiseCovariance`), with the derivative in the direction of the step's own noise n. An eigenvalue
  lambda = alpha_t J of the derivative is 0 where z_t has settled x and 1 where it has all the information, and

      markov  sqrt(V) (n + (B^2 / V) C n / (1 + e^(h / 2))),  h = log_snr(s) - log_snr(t)
      ddim    B sigma_t J n

  have exactly the right covariance at both; between them they have less, above 1 (between separate modes) more: the
  root of a sum, replaced by its chord. It needs neither bands nor a table, and knows where in an image the uncertainty
  lies.

Source: after Schioppa and Salimans, arXiv 2605.13910, whose own sampler is fourier.py. The Markov kernel in bands, the
table by context and the step along the noise are ours.

Bands: an orthonormal transform of rows and columns, frequencies grouped by radius, and a DCT over channels. Where an
image's edge is a mirror ("even"), that is a DCT-II; where opposite edges meet ("periodic"), a DFT in its real form,
Hartley's, of which waves k and N - k have the same frequency:

    even      U[k, n] = sqrt((2 - [k = 0]) / N) cos(pi k (n + 1/2) / N)           along an axis of N
    periodic  U[k, n] = (cos(2 pi k n / N) + sin(2 pi k n / N)) / sqrt(N)

Over three colours the same transform is an opponent rotation: grey, red against blue, green against both. A band is a
ring of spatial frequencies of one such channel; the lowest holds the mean and, of large images, little else. Rings are
of equal width in the square root of the radius, so that they are thinner where images have their energy.

Table of a model:

    variance[t, tau, band] = mean of |U (x - x_hat)|^2 over images and the frequencies of a band

with U the transform of `Bands`: what `TabulatedCovariance` takes. Beside it the same by the derivative,

    ratio[t, tau, band] = mean of (sigma_t^2 / alpha_t) r (U J U^T r) / variance

which is 1 for an exact denoiser. A network's derivative at a context that it over-trusts is too small, at one that it
ignores too large; `ProbedCovariance` uses the derivative where the ratio lies in TRUSTED.
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
from dualrate.diffusion.plan import StepPlan
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


@dataclass(frozen=True, eq=False)
class TabulatedCovariance(Ranged, Step):
    """The covariance in bands as measured on data, for the steps of one plan.

    t:        (N,) float64 times at which the plan's steps start
    variance: (N, K) l, per band
    The step into t = 0 keeps its noise.
    """

    process: GaussianProcess
    bands: Bands
    t: Tensor
    variance: Tensor
    markovian = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance.shape != (len(self.t), self.bands.count):
            want = (len(self.t), self.bands.count)
            raise ValueError(f"one variance per step and band: expected {want}, got {tuple(self.variance.shape)}")

    def __str__(self) -> str:
        return "covariance-aware, table"

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        return self.drawn(z, denoise(z, t), at_time(self.variance, self.t, t, z), t, s, draw()), carry

    def drawn(self, z: Tensor, x_hat: Tensor, variance: Tensor, t: Tensor, s: Tensor, normal: Tensor) -> Tensor:
        """A z_t + B x_hat + U^T sqrt(B^2 l + V) U n. variance: (B, K), l of each band."""
        a, b, v = posterior_weights(self.process, t, s)
        variance = expand(b**2, variance) * variance + expand(v, variance)
        return expand(a, z) * z + expand(b, z) * x_hat + self.bands.noise(variance, normal)


@dataclass(frozen=True, eq=False)
class ProbedCovariance(Step):
    """The covariance in bands estimated for every image, by one derivative a step; else as TabulatedCovariance.

    table:   what the bands that are not trusted use
    trusted: (N, K) bool
    data:    (K,) variance of the data in each band
    An estimate is moved into [0, data]. It is a noisy one, and of one z; that l <= data holds for the mean over z only,
    so a clamp is no error. Nothing is clamped at sigma_t^2 / alpha_t^2, which bounds no data with separate modes.
    """

    table: TabulatedCovariance
    trusted: Tensor
    data: Tensor
    calls_per_step = 2
    markovian = True

    def __str__(self) -> str:
        return "covariance-aware, JVP"

    @property
    def process(self) -> GaussianProcess:
        return self.table.process

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        table = self.table
        x_hat, estimate = probed(table.process, table.bands, denoise, z, t, draw())
        most, trusted = self.data.to(z, non_blocking=True), at_time(self.trusted, table.t, t, z)
        tabulated = at_time(table.variance, table.t, t, z)
        variance = torch.where(trusted > 0, torch.minimum(estimate.clamp_min(0), most), tabulated)
        return table.drawn(z, x_hat, variance, t, s, draw()), carry


@dataclass(frozen=True)
class NoiseCovariance(Ranged, Step):
    """The covariance along the step's own noise, by one derivative a step; no bands, no table.

    length: of the finite difference that stands for the derivative, in units of sigma_t; None: forward mode. A long one
            averages the derivative over as much of z_t's surroundings, and is faster (dev/LOG.md has both compared)
    The step into t = 0 returns x_hat.
    """

    process: GaussianProcess
    kernel: Kernel = "markov"
    length: Annotated[float, Range(0, 100, above=True)] | None = 0.3
    calls_per_step = 2
    single_call_steps = 1

    def __str__(self) -> str:
        length = "" if self.length == 0.3 else f", {'forward mode' if self.length is None else self.length}"
        return f"covariance-aware, along the noise{', DDIM kernel' if self.kernel == 'ddim' else ''}{length}"

    @property
    def order(self) -> int:
        """2 where the derivative is exact: a difference of finite length stays off it however short the step."""
        return 2 if self.kernel == "markov" and self.length is None else 1

    @property
    def markovian(self) -> bool:
        return self.kernel == "markov"

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


def at_time(values: Tensor, times: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """The rows of values: (N, K) at which the plan's steps start at t, in the precision of `like`: (B, K) or (1, K)."""
    rows = values.to(t.device)[place(times, t.reshape(-1))]
    return rows.to(like, non_blocking=True)


def place(times: Tensor, t: Tensor) -> Tensor:
    """The plan's steps that start at t: (B,) or (); like t. Raises ValueError for a time at which none does."""
    distance = (t[..., None] - times.to(t)).abs()
    if bool((strange := distance.amin(-1) > 1e-9).any()):
        raise ValueError(f"no step of the plan starts at t = {t[strange][0]:g}: make the step for the plan that is run")
    return distance.argmin(-1)


TRUSTED = (0.7, 1.4)  # ratios at which a derivative is believed
SHOWN = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24)  # ages that are shown


@dataclass(frozen=True, eq=False)
class CovarianceTable:
    """The table of a model.

    log_snr:  (M,) of the times, increasing
    variance: (M, M + 1, K): [i, j] at time i with the context of time j <= i; [i, i] at a heavy call; [i, -1] without a
              context. Entries for j > i are not used
    ratio:    of the same shape
    """

    bands: Bands
    log_snr: Tensor
    variance: Tensor
    ratio: Tensor

    @staticmethod
    def of_white_noise(bands: Bands) -> CovarianceTable:
        """The exact table of data that are white noise of variance 1: sigma_t^2, whatever the context."""
        log_snr = torch.arange(-12, 13, dtype=torch.float64)
        variance = torch.sigmoid(-log_snr).float()[:, None, None].expand(-1, len(log_snr) + 1, bands.count)
        return CovarianceTable(bands, log_snr, variance, torch.ones_like(variance))

    def tabulated(self, process: GaussianProcess, plan: StepPlan) -> TabulatedCovariance:
        """The step for a plan."""
        t = torch.tensor(plan.t[:-1], dtype=torch.float64)
        return TabulatedCovariance(process, self.bands, t, self._along(self.variance, process, plan))

    def probed(self, process: GaussianProcess, plan: StepPlan) -> ProbedCovariance:
        """The step for a plan, which trusts derivatives where the ratio lets it."""
        ratio = self._along(self.ratio.clamp_min(1e-6), process, plan)
        trusted = (ratio >= TRUSTED[0]) & (ratio <= TRUSTED[1])
        return ProbedCovariance(self.tabulated(process, plan), trusted, self.data)

    @property
    def data(self) -> Tensor:
        """(K,) variance of the data in each band, which is that of x in pure noise."""
        return self.variance[0, 0]

    def _along(self, values: Tensor, process: GaussianProcess, plan: StepPlan) -> Tensor:
        """(N, K) values of the plan's steps: their logarithms linear between the table's (t, tau)."""
        logarithms = values.log()
        at = process.schedule.log_snr(torch.tensor(plan.t[:-1], dtype=torch.float64)).tolist()
        of_contexts = (None if step is None else at[step] for step in plan.context_steps)
        return torch.stack([self._at(logarithms, *pair).exp() for pair in zip(at, of_contexts, strict=True)])

    def _at(self, values: Tensor, log_snr: float, of_context: float | None) -> Tensor:
        """(K,) values at one (t, tau), by their log-SNR. of_context: that of tau; None: no context."""
        first, every = float(self.log_snr[0]), float(self.log_snr[1] - self.log_snr[0])
        place = min(max((log_snr - first) / every, 0.0), len(self.log_snr) - 1.0)
        at = int(min(place, len(self.log_snr) - 2))

        def row(i: int) -> Tensor:
            if of_context is None:
                return values[i, -1]
            age = min((log_snr - of_context) / every, float(i))
            younger = int(age)
            older = min(younger + 1, i)
            return values[i, i - younger].lerp(values[i, i - older], age - younger)

        return row(at).lerp(row(at + 1), place - at)

    def trust(self) -> list[tuple[str, float, float]]:
        """Rows of an age of the context, in log-SNR, the median ratio, and the share of trusted bands and times.

        A model whose context has no age has one row.
        """
        every, size = float(self.log_snr[1] - self.log_snr[0]), len(self.log_snr)
        ages = {f"{age * every:g}": self.ratio.diagonal(-age) for age in SHOWN if age < size}
        ages["none"] = self.ratio[:, -1]
        if torch.equal(self.ratio[:, 0], self.ratio[:, -1]):
            ages = {"any": ages["none"]}
        low, high = TRUSTED
        return [
            (age, ratios.quantile(0.5).item(), ((ratios >= low) & (ratios <= high)).float().mean().item())
            for age, ratios in ages.items()
        ]
