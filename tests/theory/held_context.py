"""Dual-rate denoisers whose samples have a variance in closed form (`held_variance`).

It depends on when the context was computed, so that a stale, missing or misnamed context is a failing test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dualrate.diffusion.context import Cond, Context, Refresh, Reuse
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess
from theory.exact import GaussianMixture


@dataclass(frozen=True)
class Echo:
    """A dual-rate denoiser whose light network returns what the encoder knew, E[x | z_tau]: fixed until a refresh."""

    mixture: GaussianMixture
    process: GaussianProcess
    reuse: Reuse = Reuse.MARKOV

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        """E[x | z_tau] as the only feature. z: (B, *D), t: (B,)."""
        known = self.mixture.posterior_mean(z, self.process.schedule.log_snr(t)).to(z.dtype)
        return Context(features=(known,), tau=t)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        """x_hat: (B, *D), the context's feature."""
        return context.features[0]


@dataclass(frozen=True)
class NeededContext:
    """A dual-rate denoiser that cannot do without its context; data x ~ N(0, variance I).

    The last axis of z holds the coordinates of two bands, low first. The light network sees the high band of z_t; the
    low band it knows from the context's z_tau only. Both are denoised exactly, given what is seen.
    """

    process: GaussianProcess
    variance: float
    reuse: Reuse = Reuse.MARKOV

    def _x_hat(self, z: Tensor, t: Tensor) -> Tensor:
        """E[x | z_t] = alpha c / (alpha^2 c + sigma^2) z_t."""
        log_snr = self.process.schedule.log_snr(t)
        gain = torch.sigmoid(log_snr).sqrt() * self.variance / _marginal_variance(log_snr, self.variance)
        return gain.view(-1, *[1] * (z.ndim - 1)) * z

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        """The low band of z_tau as the only feature. z: (B, ..., 2 n), t: (B,)."""
        return Context(features=(z.chunk(2, dim=-1)[0],), tau=t)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        """x_hat: (B, ..., 2 n). Raises ValueError without a context."""
        if context.tau is None:
            raise ValueError("this denoiser needs a context; the plan's first refresh must be FULL")
        return torch.cat((self._x_hat(context.features[0], context.tau), self._x_hat(z.chunk(2, dim=-1)[1], t)), dim=-1)


def _marginal_variance(log_snr: Tensor, c: float) -> Tensor:
    """v = Var z_t = alpha^2 c + sigma^2."""
    return torch.sigmoid(log_snr) * c + torch.sigmoid(-log_snr)


def held_variance(log_snr: Tensor, end: Tensor, c: float) -> Tensor:
    """Variance at log-SNR `end` of ancestral samples (gamma = 0) whose x_hat = E[x | z_tau] is held between refreshes.

    log_snr: (H,) of the refreshes, increasing, the first at the start z ~ N(0, I); end: (), infinity where the last
    step returns x_hat; c: Var x, mean 0. Steps that share x_hat compose, so only the refreshes matter, not the steps.

    With rho = e^log_snr, v = alpha^2 c + sigma^2 and D the deficit of Var z below v: a segment multiplies D by
    (alpha_j v_{j+1} / (alpha_{j+1} v_j))^2 and loses B^2 Var[x | z_j]. So D alpha^2 / v^2 grows, from
    alpha_1^2 (v_1 - 1) / v_1^2, by c (rho_{j+1} - rho_j)^2 / ((c rho_{j+1} + 1)^2 (c rho_j + 1)).
    """
    following = torch.cat((log_snr[1:], end.view(1)))
    lost = c * (torch.expm1(log_snr - following) / (c + torch.exp(-following))) ** 2 / (c * torch.exp(log_snr) + 1)
    first, last = _marginal_variance(log_snr[0], c), _marginal_variance(end, c)
    scaled_deficit = lost.sum() + torch.sigmoid(log_snr[0]) * (first - 1) / first**2
    return last - last**2 / torch.sigmoid(end) * scaled_deficit


def two_band_variance(process: GaussianProcess, plan: StepPlan, c: float) -> tuple[Tensor, Tensor]:
    """Variances (low band, high band) of `NeededContext` samples under `plan`, ancestral with gamma = 0.

    The low band is refreshed by heavy calls only, the high band at every step. Raises ValueError unless every step of
    the plan keeps or fully refreshes the context.
    """
    kinds = {refresh.name for refresh in plan.refresh}
    if not kinds <= {"KEEP", "FULL"}:
        raise ValueError(f"the closed form is for plans of KEEP and FULL, got {sorted(kinds)}")
    log_snr = process.schedule.log_snr(torch.tensor(plan.t, dtype=torch.float64))
    end = torch.full_like(log_snr[-1], math.inf) if plan.t[-1] == 0 else log_snr[-1]
    heavy = log_snr[:-1][[refresh is Refresh.FULL for refresh in plan.refresh]]
    return held_variance(heavy, end, c), held_variance(log_snr[:-1], end, c)
