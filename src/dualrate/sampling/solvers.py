"""Samplers of higher order. Each is the move of DDIM, or the draw of Ancestral, with a better x_hat than that at t.

With X = z / alpha, S = sigma / alpha, l = -log S, half the log-SNR, and h = l_s - l_t:

    Heun (in X and S; Karras et al. 2022)    x_t + e^h / 2 (x_s - x_t)            x_s at the end of a DDIM step
    DPM-Solver++ 2M (Lu et al. 2022)         x_t + h / (2 h_prev) (x_t - x_prev)  x_prev, h_prev of the step before

The ODE is d(z / sigma) = e^l x_hat dl, so that the x_hat a step asks for is the mean of x_hat over the step, weighted
with e^l. Of the parabola through the last three (third order; DPM-Solver++ 3M), in u = l - l_t, that mean is

    x_t + <u> x[t, p] + (<u^2> + h_p <u>) x[t, p, q]    x[...]: divided differences over l; h_p = l_t - l_p
    <u> = h / (1 - e^-h) - 1,   <u^2> = h (1 + <u>) - 2 <u>

Deviates from public code of DPM-Solver++ 3M, which takes half of <u^2>, as if x[t, p, q] were a second derivative, and
is of second order for it.

SDE-DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095) is the ancestral step with the x_hat of 2M. It solves the reverse
SDE to second order, where Ancestral solves it to first. Its paths have the forward law, so a context may be reused.
In a window that rolls (forecasts/rolling.py) each frame has its own h and h_prev, and its own ends of first order.
With gamma above 0 it is of first order, with an error of the opposite sign, which helps few steps.

X itself is never formed: it is of size 1 / alpha, some thousands at t = 1, and would cost float32 its digits there.

Both ends are of first order. At s = 0 h is finite only because the schedule is truncated, and x_hat is the answer. At
t = 1, too, S stands for infinity: x_hat is the data's mean, for which a first-order step is exact, and Heun's e^h / 2,
tens to hundreds there, would multiply whatever x_s differs from it by.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dualrate.config.ranges import Probability, Ranged
from dualrate.diffusion.context import cached_for_shared_time, expand
from dualrate.diffusion.process import GaussianNoise, GaussianProcess
from dualrate.sampling.ancestral import noisier
from dualrate.sampling.step import Carry, Denoise, Draw, Step, Stepped, move


@dataclass(frozen=True)
class Heun(Step):
    """Second order by two evaluations a step; one where it starts at t = 1 or ends at t = 0: 2 N - 2 an image."""

    process: GaussianProcess
    order = 2
    calls_per_step = 2
    single_call_steps = 2
    draws_noise = False
    grid = "log-snr"
    title = "Heun"

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        x_t = denoise(z, t)
        if self.process.ends(s):
            return x_t, carry
        z_s = move(self.process, z, x_t, t, s)
        if bool((t == 1).all()) or bool((s == 0).all()):
            return z_s, carry
        x = x_t + expand(_half_growth(self.process, t, s), z) * (denoise(z_s, s) - x_t)
        return move(self.process, z, x, t, s), carry


@dataclass(frozen=True)
class DPMSolver2M(Step):
    """Second order by one evaluation a step and the last one's; the first step is of first order, as is that
    into t = 0 of a process that ends in x_hat.

    Its carry is the x_hat of the step before and its time.
    """

    process: GaussianProcess
    order = 2
    draws_noise = False
    grid = "karras"
    title = "DPM-Solver++ 2M"

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        x_t = denoise(z, t)
        if self.process.ends(s):
            return x_t, (x_t, t)
        return move(self.process, z, extrapolated(self.process, x_t, t, s, carry), t, s), (x_t, t)


@dataclass(frozen=True)
class DPMSolver3M(Step):
    """Third order by one evaluation a step and the last two's; first order into t = 0 of a process that ends in x_hat.

    So is the first step, and the second is of second: they leave a path at second order, with an error that is small
    where x_hat hardly changes yet, in noise. Its carry is the x_hat of up to two steps before with their times, the
    latest first.
    """

    process: GaussianProcess
    order = 3
    draws_noise = False
    grid = "log-snr"
    title = "DPM-Solver++ 3M"

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        x_t = denoise(z, t)
        after = ((x_t, t), *carry[:1])
        if self.process.ends(s):
            return x_t, after
        if len(carry) < 2:
            x = extrapolated(self.process, x_t, t, s, carry[0] if carry else ())
        else:
            x = mean_of_parabola(self.process, x_t, t, s, carry)
        return move(self.process, z, x, t, s), after


@dataclass(frozen=True)
class SDEDPMSolver2M(Ranged, Step):
    """The reverse SDE to second order by one evaluation a step; ends, and carry, as those of DPMSolver2M.

    Of a dual-rate model the line through two x_hat may cross a heavy call, where x_hat jumps with its context.
    gamma: noise level as Ancestral's
    """

    process: GaussianNoise
    gamma: Probability = 0.0
    of = GaussianNoise
    markovian = True  # to the order of the method, as Ancestral: exact for short steps
    grid, reusing = "blend:0.5", "blend:0.3"

    def __str__(self) -> str:
        return f"SDE-DPM-Solver++ 2M{f', gamma {self.gamma:g}' if self.gamma else ''}"

    @property
    def order(self) -> int:
        return 1 if self.gamma else 2

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        x_t = denoise(z, t)
        if self.process.ends(s):
            return x_t, (x_t, t)
        x = extrapolated(self.process, x_t, t, s, carry)
        kernel = noisier(self.process, self.process.posterior(z, x, t, s), self.gamma, t, s)
        return kernel.sample(draw()), (x_t, t)


@cached_for_shared_time
def _half_growth(process: GaussianProcess, t: Tensor, s: Tensor) -> Tensor:
    """e^h / 2."""
    return torch.exp((process.schedule.log_snr(s) - process.schedule.log_snr(t)) / 2) / 2


def extrapolated(process: GaussianNoise, x_t: Tensor, t: Tensor, s: Tensor, carry: Carry) -> Tensor:
    """x_hat in mid-step, on the line in log-SNR through x_t and the carry, (x_hat, time) of the step before; or x_t."""
    if not carry:
        return x_t
    x_prev, t_prev = carry
    return x_t + process.spread(_half_ratio(process, t, s, t_prev), x_t) * (x_t - x_prev)


@cached_for_shared_time
def _half_ratio(process: GaussianNoise, t: Tensor, s: Tensor, t_prev: Tensor) -> Tensor:
    """h / (2 h_prev) of each part; 0 of one that becomes x, whose h is infinite, and of one that had not moved."""
    before, now, after = (process.levels(time) for time in (t_prev, t, s))
    return torch.where(torch.isinf(after) | (now == before), 0, (after - now) / (now - before) / 2)


def mean_of_parabola(process: GaussianProcess, x_t: Tensor, t: Tensor, s: Tensor, carry: Carry) -> Tensor:
    """x_hat's mean over the step, weighted with e^l, on the parabola through x_t and carry = ((x_p, p), (x_q, q))."""
    (x_p, p), (x_q, q) = carry
    h_p, h_q, mean, moment = _parabola(process, t, s, p, q)
    first = (x_t - x_p) / expand(h_p, x_t)
    second = (first - (x_p - x_q) / expand(h_q, x_t)) / expand(h_p + h_q, x_t)
    return x_t + expand(mean, x_t) * first + expand(moment, x_t) * second


@cached_for_shared_time
def _parabola(
    process: GaussianProcess, t: Tensor, s: Tensor, p: Tensor, q: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h_p, h_q, <u> and <u^2> + h_p <u>."""
    l_s, l_t, l_p, l_q = (process.schedule.log_snr(time) / 2 for time in (s, t, p, q))
    h, h_p = l_s - l_t, l_t - l_p
    mean = -h / torch.expm1(-h) - 1
    mean_square = h * (1 + mean) - 2 * mean
    return h_p, l_p - l_q, mean, mean_square + h_p * mean
