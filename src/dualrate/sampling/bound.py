"""The variational bound of a model under a Markovian plan, in nats, term by term.

Of images:

    -log p(x) <= KL(q(z_T | x) | N(0, I))                                      prior, z_T at plan.t[0]
               + sum over steps t -> s of E KL(q(z_s | z_t, x) | p(z_s | z_t, z_tau))
               + E[-log p(x | z_0)],  p(x | z_0) = N(z_0 / alpha_0, e^-log_snr_0)   reconstruction, z_0 at plan.t[-1]

Both sides of a step are Gaussians, with variance V = c sigma_s^2 for q and v for p:

    KL = sum over elements of 1/2 (V/v - 1 - log(V/v) + (mean_q - mean_p)^2 / v)

so any kernel variance gives a bound. It is of the sampler's own x_hat (guided, clipped), and no step is free of noise,
the last one included. It holds for a reused context too: p(z_s | z_t, z_tau) is autoregressive along the path, and the
expectation is over paths z_T, ..., z_0 of q given x. The sampling loop follows one path per image.

Over data, the KL of a step is least at the variance

    v = V + E|mean_q - mean_p|^2 / d          = V + B^2 E|x - x_hat|^2 / d for Ancestral, B = c alpha_s

With it (`FittedVariance`) a long step costs bits in proportion to log(v/V), where the posterior's own variance (gamma =
0) charges the whole squared error over V. Any number here gives a true bound on other images than those it was
measured on.

Of tokens, from t = 1, where no token is kept and the prior's term is 0, to s = 0, where all are:

    -log p(x) <= sum over steps t -> s of E KL(q(z_s | z_t, x) | p(z_s | z_t, z_tau))

The last step's term is the reconstruction, E[-log p(x | z_t)]. A KL is a sum over categories and tokens. Of a masked
process and an exact x_hat the bound reaches -log p(x) itself, for every x, as steps become small: tokens are then
revealed one by one, in a random order, and p(x) is the product of its conditionals in any order. The steps' terms
become -a_t' / (1 - a_t) times the cross-entropy of the masked tokens, integrated over t: the loss that trains.

Sources: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models", arXiv 2107.00630; the dual-rate form is derived.
Bao, Li, Sun, Zhu, Zhang, "Estimating the Optimal Covariance with Imperfect Mean in Diffusion Probabilistic Models",
ICML 2022 (arXiv 2206.07309); here it is one number per step of a plan. Sahoo et al. 2024 (MDLM, arXiv 2406.07524); Shi
et al. 2024 (MD4, arXiv 2406.04329).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.special import log_ndtr

from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.categorical import AXIS, Categorical
from dualrate.diffusion.context import Cond, expand
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import Gaussian, GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.sampling.step import Carry, Denoise, Draw, MarkovStep, Step, Stepped
from dualrate.sampling.trajectory import trajectory


@dataclass(frozen=True)
class Bound:
    """Terms of the bound, in nats per image. prior, reconstruction: (B,); steps: (B, N); dimensions: of an image."""

    prior: Tensor
    steps: Tensor
    reconstruction: Tensor
    dimensions: int

    @property
    def total(self) -> Tensor:
        """(B,) nats."""
        return self.prior + self.steps.sum(1) + self.reconstruction

    @property
    def bits_per_dimension(self) -> Tensor:
        """(B,): the bound in bits, a mean over the dimensions."""
        return self.total / (self.dimensions * math.log(2))


def variational_bound(
    denoiser: Denoiser, step: MarkovStep, plan: StepPlan, x: Tensor, cond: Cond, draws: Draws, *, bins: int | None = 256
) -> Bound:
    """The bound of images x: (B, ...), without gradient, along one path each; unbiased over `draws`, one row per image.

    bins: x are `bins` equally spaced values from -1 to 1, and their probability is bounded; the outer bins are open.
          None: x is continuous, and its density is bounded
    Raises ValueError where the denoiser's context may not be reused under this step.
    """

    process, dimensions = step.process, x[0].numel()
    first, last = (torch.full((len(x),), t, dtype=torch.float64, device=x.device) for t in (plan.t[0], plan.t[-1]))
    with torch.no_grad():
        z, steps = along_path(denoiser, step, plan, x, cond, draws, divergence)
        start = Gaussian(expand(process.alpha(first), x) * x, expand(process.sigma(first) ** 2, x))
        prior = divergence(start, Gaussian(torch.zeros_like(x), torch.ones_like(start.variance)))
        log_snr = process.schedule.log_snr(last)
        if bins is None:  # the expectation over z_0 is known
            reconstruction = dimensions / 2 * (math.log(2 * math.pi) - log_snr + 1)
        else:
            mean, deviation = z / expand(process.alpha(last), x), expand(torch.exp(-log_snr / 2), x)
            reconstruction = -log_probability(x, mean, deviation, bins).flatten(1).sum(1)
    return Bound(prior, steps, reconstruction, dimensions)


Compare = Callable[[Any, Any], Tensor]  # of a process's distributions: (q(z_s | z_t, x), p(z_s | z_t, z_tau)) -> (B,)


def along_path(
    denoiser: Denoiser, step: MarkovStep, plan: StepPlan, x: Tensor, cond: Cond, draws: Draws, compare: Compare
) -> tuple[Tensor, Tensor]:
    """One path z_T, ..., z_0 of q given x per image: its end, and q compared with p at every step, (B, N).

    Raises ValueError where the denoiser's context may not be reused under this step.
    """

    def noise(stream: str) -> Tensor:
        return step.process.noise(draws, [stream], *x.shape[1:])[0]

    first = torch.full((len(x),), plan.t[0], dtype=torch.float64, device=x.device)
    z = step.process.add_noise(x, first, noise("bound start"))
    forward = _Forward(step, x, compare)
    *_, end = trajectory(denoiser, forward, plan, z, cond, lambda i, _: noise(f"bound step {i}"))
    return end.z, torch.stack(end.carry, 1)


@dataclass(frozen=True)
class _Forward(Step):
    """Goes from z_t to z_s ~ q(z_s | z_t, x), and carries the results of `compare`."""

    step: MarkovStep
    x: Tensor
    compare: Compare

    @property
    def markovian(self) -> bool:
        return self.step.markovian

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        posterior = self.step.process.posterior(z, self.x, t, s)
        return posterior.sample(draw()), (*carry, self.compare(posterior, self.step.kernel(denoise, z, t, s)))


def divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q | p) in nats: (B,), summed over all elements."""
    ratio = (q.variance / p.variance).double()
    gap = (q.mean - p.mean).double().square() / p.variance
    return 0.5 * (ratio - 1 - ratio.log() + gap).expand(q.mean.shape).flatten(1).sum(1)


def log_probability(x: Tensor, mean: Tensor, deviation: Tensor, bins: int) -> Tensor:
    """log of N(mean, deviation^2)'s mass in the bin around x, one of `bins` values from -1 to 1; outer bins open."""
    half = 1 / (bins - 1)
    low, high = ((x - half - mean) / deviation).double(), ((x + half - mean) / deviation).double()
    low = low.masked_fill(x <= -1 + half, -math.inf)
    high = high.masked_fill(x >= 1 - half, math.inf)
    flip = low > 0  # of the two tails the one where the mass is small is exact
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    return log_ndtr(high) + torch.log1p(-torch.exp(log_ndtr(low) - log_ndtr(high)))


@dataclass(frozen=True)
class FittedVariance(MarkovStep):
    """The means of `step` with the variance V + excess.

    t:      (N,) times at which the steps of a plan start
    excess: (N,) E|mean_q - mean_p|^2 / d of these steps
    """

    step: MarkovStep
    t: tuple[float, ...]
    excess: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.step}, fitted variance"

    @property
    def markovian(self) -> bool:
        return self.step.markovian

    @property
    def process(self) -> GaussianProcess:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.step.process

    def start(self) -> Carry:
        return self.step.start()

    def kernel(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """p(z_s | z_t). Raises ValueError for a t at which no step of the fitted plan starts."""
        mean = self.step.kernel(denoise, z, t, s).mean
        variance = self.process.posterior(mean, mean, t, s).variance  # whatever the state and the image
        excess = torch.tensor(self.excess, dtype=t.dtype, device=t.device)
        return Gaussian(mean, variance + expand(excess[place(torch.tensor(self.t, dtype=torch.float64), t)], z))

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        return self.kernel(denoise, z, t, s).sample(draw()), carry


def place(times: Tensor, t: Tensor) -> Tensor:
    """The plan's steps that start at t: (B,) or (); like t. Raises ValueError for a time at which none does."""
    distance = (t[..., None] - times.to(t)).abs()
    if bool((strange := distance.amin(-1) > 1e-9).any()):
        raise ValueError(f"no step of the plan starts at t = {t[strange][0]:g}: make the step for the plan that is run")
    return distance.argmin(-1)


def mean_errors(denoiser: Denoiser, step: MarkovStep, plan: StepPlan, x: Tensor, cond: Cond, draws: Draws) -> Tensor:
    """(B, N): |mean_q - mean_p|^2 / d of images x: (B, ...) at every step of a plan, without gradient.

    Raises ValueError where the denoiser's context may not be reused under this step.
    """

    def mean_squared_gap(q: Gaussian, p: Gaussian) -> Tensor:
        return (q.mean - p.mean).double().square().flatten(1).mean(1)

    with torch.no_grad():
        return along_path(denoiser, step, plan, x, cond, draws, mean_squared_gap)[1]


def token_bound(denoiser: Denoiser, step: MarkovStep, plan: StepPlan, x: Tensor, cond: Cond, draws: Draws) -> Bound:
    """The bound of tokens x: (B, V, H, W), one-hot, along one path each; unbiased over `draws`, one row per x.

    Its dimensions are tokens. Raises ValueError for a plan that does not go from 1 to 0, and where the denoiser's
    context may not be reused under this step.
    """
    if (plan.t[0], plan.t[-1]) != (1, 0):
        raise ValueError(f"a plan of tokens goes from t = 1 to 0, this one from {plan.t[0]} to {plan.t[-1]}")
    with torch.no_grad():
        _, steps = along_path(denoiser, step, plan, x, cond, draws, token_divergence)
    nothing = steps.new_zeros(len(x))
    return Bound(nothing, steps, nothing, x[0].select(AXIS, 0).numel())


def token_divergence(q: Categorical, p: Categorical) -> Tensor:
    """KL(q | p) in nats: (B,), a sum over categories and tokens."""
    ours, theirs = q.probabilities.double(), p.probabilities.double()
    return (torch.special.xlogy(ours, ours) - torch.special.xlogy(ours, theirs)).flatten(1).sum(1)
