"""Conversions between what a network predicts and x_hat, at log_snr. Everything goes through x.

    z = alpha x + sigma eps,    v = alpha eps - sigma x
    x = alpha z - sigma v,      eps = (z - alpha x) / sigma,    score = -eps / sigma

Of rectified flow, whose state is x_r = s z with r = sigmoid(-log_snr / 2), s = sqrt((1 - r)^2 + r^2) (schedule.py):

    u = eps - x = (v - (1 - 2 r) z) / s,    v = (1 - 2 r) z + s u

z, x, v, eps, u: (B, ...); log_snr: (B,) or any leading axes.

What a network takes and predicts itself, a `Convention`, in terms of (z, log_snr) and v:

    discrete   state z; time: a step of a table of betas; predicts eps, x or v
    flow       state x_r; time: r, or 1 - r where data is at 1; predicts u, or -u

Rectified flow and the variance-preserving process are one: the state differs by a factor, u and v by a linear map. So a
network of either kind trains and samples under any schedule of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from dualrate.config.ranges import Factor, Range, Ranged
from dualrate.diffusion.context import expand
from dualrate.diffusion.schedule import Betas, alpha, sigma


def x_from_v(z: Tensor, v: Tensor, log_snr: Tensor) -> Tensor:
    """x = alpha z - sigma v."""
    return expand(alpha(log_snr), z) * z - expand(sigma(log_snr), z) * v


def v_from_x(z: Tensor, x: Tensor, log_snr: Tensor) -> Tensor:
    """v = (alpha z - x) / sigma."""
    return (expand(alpha(log_snr), z) * z - x) / expand(sigma(log_snr), z)


def eps_from_x(z: Tensor, x: Tensor, log_snr: Tensor) -> Tensor:
    """eps = (z - alpha x) / sigma."""
    return (z - expand(alpha(log_snr), z) * x) / expand(sigma(log_snr), z)


def eps_from_v(z: Tensor, v: Tensor, log_snr: Tensor) -> Tensor:
    """eps = sigma z + alpha v."""
    return expand(sigma(log_snr), z) * z + expand(alpha(log_snr), z) * v


def v_from_eps(z: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
    """v = (eps - sigma z) / alpha."""
    return (eps - expand(sigma(log_snr), z) * z) / expand(alpha(log_snr), z)


def flow_time(log_snr: Tensor) -> Tensor:
    """r = sigmoid(-log_snr / 2): the share of noise in the state of rectified flow."""
    return torch.sigmoid(-log_snr / 2)


def flow_scale(log_snr: Tensor) -> Tensor:
    """s = sqrt((1 - r)^2 + r^2), by which the state of rectified flow is z."""
    return torch.sqrt(torch.sigmoid(log_snr / 2) ** 2 + torch.sigmoid(-log_snr / 2) ** 2)


def v_from_flow(z: Tensor, u: Tensor, log_snr: Tensor) -> Tensor:
    """v = (1 - 2 r) z + s u."""
    return expand(torch.tanh(log_snr / 4), z) * z + expand(flow_scale(log_snr), z) * u


Prediction = Literal["epsilon", "sample", "v_prediction"]
TO_V: dict[Prediction, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": v_from_eps,
    "sample": v_from_x,
    "v_prediction": lambda z, v, log_snr: v,
}


@dataclass(frozen=True)
class Discrete(Ranged):
    """A network of a table of betas.

    clip: the range +-clip of the data, to which x_hat is clamped; None: it is not
    """

    betas: Betas
    predicts: Prediction = "epsilon"
    clip: Annotated[float, Range(0, 1_000_000, above=True)] | None = None

    def state(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """The state that the network takes for z, (B, C, H, W), at log_snr, (B,)."""
        return z

    def time(self, log_snr: Tensor) -> Tensor:
        """The time that the network takes, (B,).

        Looked up in float64: a step is 1e-2 in log-SNR. Rounding of log_snr in float32 is 1e-4 of a step at most.
        """
        index = self.betas.index(log_snr.double())
        whole = index.round()
        return index.where((index - whole).abs() > 1e-3, whole).to(log_snr.dtype)

    def v(self, z: Tensor, output: Tensor, log_snr: Tensor) -> Tensor:
        """v, computed from the network's output."""
        v = TO_V[self.predicts](z, output, log_snr)
        return v if self.clip is None else v_from_x(z, x_from_v(z, v, log_snr).clamp(-self.clip, self.clip), log_snr)


@dataclass(frozen=True)
class Flow(Ranged):
    """A network of rectified flow; its methods are those of `Discrete`.

    units: the network's time at the end that is 1; noise_at: which end of time is noise
    """

    units: Factor = 1000.0
    noise_at: Literal[0, 1] = 1
    predicts: Literal["eps - x", "x - eps"] = "eps - x"

    def state(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return expand(flow_scale(log_snr), z) * z

    def time(self, log_snr: Tensor) -> Tensor:
        return self.units * flow_time(log_snr if self.noise_at == 1 else -log_snr)

    def v(self, z: Tensor, output: Tensor, log_snr: Tensor) -> Tensor:
        return v_from_flow(z, output if self.predicts == "eps - x" else -output, log_snr)


Convention = Discrete | Flow
REPA = Flow(units=1.0)
SIT = Flow(units=1.0, noise_at=0, predicts="x - eps")
