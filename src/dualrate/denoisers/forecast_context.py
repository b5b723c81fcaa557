"""Contexts of a dual-rate model, forecast: between heavy calls the features go on along the last two.

    F(t) = F(tau) + (u_t - u_tau) (F(tau) - F(tau')) / (u_tau - u_tau'),   u = log-SNR, tau' the heavy call before tau

Newton's form of the line through both (denoisers/feature_cache.py). The light network is told that they are of t, since
that is what they are forecast for; told tau it would age them once more. After the first heavy call, and after steps
without a context, there is one to go by, which stays as it is.

Source: ours, after TaylorSeer (Liu et al. 2025, arXiv 2503.06923), which forecasts features of a network that runs
whole at every few steps: there along a deterministic path, where they are smooth. Here the path has noise of its own,
of which a difference of two features is full, and the light network never saw forecasts when it was trained, unless
that was asked for (`DenoisingConfig.forecast`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from dualrate.denoisers.denoiser import Denoiser
from dualrate.denoisers.feature_cache import forecast
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Schedule
from dualrate.diffusion.values import Cond, Context, Reuse


@dataclass(frozen=True)
class ForecastContext:
    """A dual-rate denoiser whose light network gets the context's features as they would be now.

    Raises ValueError for a denoiser without a context that is trained to be reused, and for tokens.
    """

    inner: Denoiser
    process: GaussianProcess

    def __post_init__(self) -> None:
        if self.inner.reuse is not Reuse.MARKOV:
            raise ValueError(f"contexts are forecast of a dual-rate model, got {type(self.inner).__name__}")
        if not isinstance(self.process, GaussianProcess):
            raise ValueError(f"contexts are forecast along Gaussian paths; states of {self.process} are no lines")

    @property
    def reuse(self) -> Reuse:
        return self.inner.reuse

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return replace(self.inner.encode(z, t, cond), keeps=1)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        if context.x_hat is None and context.earlier:
            context = carried(context, t, self.process.schedule)
        return self.inner.denoise(z, t, context, cond)


def carried(context: Context, t: Tensor, schedule: Schedule) -> Context:
    """A context as it is forecast for t, (B,), by itself and those before it, which all rows have."""
    return Context(forecast(context, t, schedule, "newton"), t, context.present)
