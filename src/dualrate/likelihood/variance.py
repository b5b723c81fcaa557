"""A Markovian step with the variance that costs the bound least, measured on data.

A step's kernel p(z_s | z_t) = N(mean_p, v) stands in for q(z_s | z_t, x) = N(mean_q, V), whose x it has to guess. Over
data, KL = d/2 (V/v - 1 - log(V/v)) + E|mean_q - mean_p|^2 / (2 v) is least at

    v = V + E|mean_q - mean_p|^2 / d          = V + B^2 E|x - x_hat|^2 / d for Ancestral, B = c alpha_s

With it a long step costs bits in proportion to log(v/V), where the posterior's own variance (gamma = 0) charges the
whole squared error over V. Any number here gives a true bound on other images than those it was measured on.

Source: Bao, Li, Sun, Zhu, Zhang, "Estimating the Optimal Covariance with Imperfect Mean in Diffusion Probabilistic
Models", ICML 2022 (arXiv 2206.07309); here it is one number per step of a plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.draws import Draws
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import Gaussian, GaussianProcess
from dualrate.diffusion.times import expand
from dualrate.diffusion.values import Cond
from dualrate.likelihood.bound import along_path
from dualrate.sampling.covariance import place
from dualrate.sampling.step import Carry, Denoise, Draw, MarkovStep, Stepped


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

    def __post_init__(self) -> None:
        if len(self.t) != len(self.excess):
            raise ValueError(f"one excess per step: got {len(self.excess)} for {len(self.t)} times")

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
        own = self.process.posterior(mean, mean, t, s).variance  # whatever the state and the image
        return Gaussian(mean, own + expand(self._excess(t), z))

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        return self.kernel(denoise, z, t, s).sample(draw()), carry

    def _excess(self, t: Tensor) -> Tensor:
        excess = torch.tensor(self.excess, dtype=t.dtype, device=t.device)
        return excess[place(torch.tensor(self.t, dtype=torch.float64), t)]


def mean_errors(denoiser: Denoiser, step: MarkovStep, plan: StepPlan, x: Tensor, cond: Cond, draws: Draws) -> Tensor:
    """(B, N): |mean_q - mean_p|^2 / d of images x: (B, ...) at every step of a plan, without gradient.

    Raises ValueError where the denoiser's context may not be reused under this step.
    """

    def mean_squared_gap(q: Gaussian, p: Gaussian) -> Tensor:
        return (q.mean - p.mean).double().square().flatten(1).mean(1)

    with torch.no_grad():
        return along_path(denoiser, step, plan, x, cond, draws, mean_squared_gap)[1]
