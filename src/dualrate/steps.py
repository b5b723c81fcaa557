"""Update rules of samplers: z_t -> z_s given a denoiser, one small class each.

Ancestral (Ho, Jain, Abbeel 2020; DDPM) draws z_s from q(z_s | z_t, x = x_hat), with the variance interpolated on a log
scale between the posterior's own (gamma = 0) and that of the transition q(z_t | z_s) (gamma = 1):

    variance = exp(gamma log(c sigma_t^2) + (1 - gamma) log(c sigma_s^2)),   c = 1 - exp(log_snr(t) - log_snr(s))

The others solve the probability-flow ODE. DDIM (Song, Meng, Ermon 2021) takes x_hat as constant over the step,

    z_s = alpha_s x_hat + sigma_s eps_hat,   eps_hat = (z_t - alpha_t x_hat) / sigma_t

which is Euler's method in X = z / alpha, S = sigma / alpha: dX/dS = eps_hat. Two methods of second order are the same
move with a better x_hat. With l = log(alpha / sigma), half the log-SNR, and h = l_s - l_t:

    Heun (in X and S; Karras et al. 2022)    x_t + e^h / 2 (x_s - x_t)            x_s at the end of a DDIM step
    DPM-Solver++ 2M (Lu et al. 2022)         x_t + h / (2 h_prev) (x_t - x_prev)  x_prev, h_prev of the step before

SDE-DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095) is the ancestral step with the x_hat of 2M. It solves the reverse
SDE, whose paths have the forward law, to second order, where Ancestral does to first: so a context may be reused. With
gamma above 0 it is of first order again, with an error of the opposite sign, which few steps can use.

X itself is never formed: it is of size 1 / alpha, some thousands at t = 1, and would cost float32 its digits there.

Both ends are of first order. At s = 0 h is finite only because the schedule is truncated, and x_hat is the answer. At
t = 1, too, S stands for infinity: x_hat is the data's mean, for which a first-order step is exact, and Heun's e^h / 2,
tens to hundreds there, would multiply whatever x_s differs from it by.

`markovian` says whether the chain keeps the forward law of pairs (z_s, z_t), which a reused dual-rate context needs.
Noise alone is not enough: any DDIM kernel breaks it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dualrate.prediction import eps_from_x
from dualrate.process import Gaussian, GaussianProcess, expand

Denoise = Callable[[Tensor, Tensor], Tensor]  # (z, t) -> x_hat
Draw = Callable[[], Tensor]  # this step's next standard normal numbers, in the state's shape
Carry = Any  # what a multistep solver remembers: a value threaded by the loop, () for most


class Step(Protocol):
    """An update rule. A step is stateless; times are (B,) with s < t."""

    @property
    def markovian(self) -> bool:
        """Whether (z_s, z_t) keeps the law of the forward process."""
        ...

    def start(self) -> Carry:
        """The carry before the first step."""
        ...

    def __call__(
        self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry
    ) -> tuple[Tensor, Carry]:
        """z_s and the next carry. z: (B, ...)."""
        ...


@runtime_checkable
class MarkovStep(Step, Protocol):
    """A step with a Gaussian kernel: calling it samples p(z_s | z_t), a likelihood bound integrates it."""

    @property
    def process(self) -> GaussianProcess: ...

    def kernel(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """p(z_s | z_t), of finite variance at s = 0 too."""
        ...


@dataclass(frozen=True)
class Ancestral:
    """Samples the reverse chain; the step into t = 0 returns x_hat without noise. gamma in [0, 1]: module docstring."""

    process: GaussianProcess
    gamma: float = 0.0
    markovian = True  # no annotation: a fact about the class, not a field

    def __str__(self) -> str:
        """For a table: the settings only where they are not the usual ones."""
        return f"ancestral, gamma {self.gamma:g}" if self.gamma else "ancestral"

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma interpolates between two variances, so it lies in [0, 1], got {self.gamma}")

    def start(self) -> Carry:
        return ()

    def kernel(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """p(z_s | z_t), also at s = 0, where the variance is that of the schedule's end point."""
        posterior = self.process.posterior(z, denoise(z, t), t, s)
        if self.gamma == 0:
            return posterior
        # log of (c sigma_t^2) / (c sigma_s^2): c cancels, so that nothing is lost for small steps
        log_snr_t, log_snr_s = self.process.schedule.log_snr(t), self.process.schedule.log_snr(s)
        log_ratio = torch.nn.functional.logsigmoid(-log_snr_t) - torch.nn.functional.logsigmoid(-log_snr_s)
        return Gaussian(posterior.mean, posterior.variance * expand(torch.exp(self.gamma * log_ratio), z))

    def __call__(
        self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry
    ) -> tuple[Tensor, Carry]:
        if bool((s == 0).all()):
            return denoise(z, t), carry
        return self.kernel(denoise, z, t, s).sample(draw()), carry


def move(process: GaussianProcess, z: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """z_s on the probability-flow ODE if x_hat were x all the way from z_t. z, x: (B, ...); t, s: (B,)."""
    return process.add_noise(x, s, eps_from_x(z, x, process.schedule.log_snr(t)))


@dataclass(frozen=True)
class DDIM:
    """The deterministic sampler of first order; the step into t = 0 returns x_hat."""

    process: GaussianProcess
    markovian = False

    def __str__(self) -> str:
        return "DDIM"

    def start(self) -> Carry:
        return ()

    def __call__(
        self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry
    ) -> tuple[Tensor, Carry]:
        x_hat = denoise(z, t)
        return x_hat if bool((s == 0).all()) else move(self.process, z, x_hat, t, s), carry


@dataclass(frozen=True)
class Heun:
    """Second order by two evaluations a step; one where it starts at t = 1 or ends at t = 0: 2 N - 2 an image."""

    process: GaussianProcess
    markovian = False

    def __str__(self) -> str:
        return "Heun"

    def start(self) -> Carry:
        return ()

    def __call__(
        self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry
    ) -> tuple[Tensor, Carry]:
        x_t = denoise(z, t)
        if bool((s == 0).all()):
            return x_t, carry
        z_s = move(self.process, z, x_t, t, s)
        if bool((t == 1).all()):
            return z_s, carry
        log_snr = self.process.schedule.log_snr
        growth = torch.exp((log_snr(s) - log_snr(t)) / 2)
        x = x_t + expand(growth / 2, z) * (denoise(z_s, s) - x_t)
        return move(self.process, z, x, t, s), carry


@dataclass(frozen=True)
class DPMSolver2M:
    """Second order by one evaluation a step and the last one's; the first step and that into t = 0 are of first order.

    Its carry is the x_hat of the step before and its time.
    """

    process: GaussianProcess
    markovian = False

    def __str__(self) -> str:
        return "DPM-Solver++ 2M"

    def start(self) -> Carry:
        return ()

    def __call__(
        self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry
    ) -> tuple[Tensor, Carry]:
        x_t = denoise(z, t)
        if bool((s == 0).all()):
            return x_t, (x_t, t)
        return move(self.process, z, extrapolated(self.process, x_t, t, s, carry), t, s), (x_t, t)


@dataclass(frozen=True)
class SDEDPMSolver2M:
    """The reverse SDE to second order by one evaluation a step; ends, and carry, as those of DPMSolver2M.

    Of a dual-rate model the line through two x_hat may cross a heavy call, where x_hat jumps with its context.
    gamma: noise level as Ancestral's
    """

    process: GaussianProcess
    gamma: float = 0.0
    markovian = True  # to the order of the method, as Ancestral: exact for short steps

    def __str__(self) -> str:
        return f"SDE-DPM-Solver++ 2M{f', gamma {self.gamma:g}' if self.gamma else ''}"

    def __post_init__(self) -> None:
        Ancestral(self.process, self.gamma)  # raises for a gamma that is none

    def start(self) -> Carry:
        return ()

    def __call__(
        self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry
    ) -> tuple[Tensor, Carry]:
        x_t = denoise(z, t)
        if bool((s == 0).all()):
            return x_t, (x_t, t)
        x = extrapolated(self.process, x_t, t, s, carry)
        return Ancestral(self.process, self.gamma).kernel(lambda *_: x, z, t, s).sample(draw()), (x_t, t)


def extrapolated(process: GaussianProcess, x_t: Tensor, t: Tensor, s: Tensor, carry: Carry) -> Tensor:
    """x_hat in mid-step, on the line in log-SNR through x_t and the carry, (x_hat, time) of the step before; or x_t."""
    if not carry:
        return x_t
    x_prev, t_prev = carry
    log_snr = process.schedule.log_snr
    ratio = (log_snr(s) - log_snr(t)) / (log_snr(t) - log_snr(t_prev))
    return x_t + expand(ratio / 2, x_t) * (x_t - x_prev)
