"""Schedules of discrete models: log_snr tabulated at the integer steps of a table of betas.

    alpha_k^2 = prod_{j <= k} (1 - beta_j),   k = 0..T-1;   t = (k + 1) / T,   log_snr linear in t between the steps

Step k is what such a network takes for its time. t = 0 is one step below the table, to which the first piece is
extended: a sampler that steps there returns x_hat. Tables end at log-SNR -10.1 (linear) or -5.4 (scaled-linear), where
z is nearly noise; a table rescaled to end without signal (Lin et al. 2024, arXiv 2305.08891, algorithm 1) is cut at
log-SNR -30, in float32 the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Annotated, Literal

import torch
from torch import Tensor

from dualrate.config.ranges import Range, Ranged
from dualrate.diffusion.schedule import Schedule

Beta = Annotated[float, Range(0, 1, above=True, below=True)]
Kind = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
LOWEST = -30.0  # log-SNR of a table's end without signal


@dataclass(frozen=True)
class Betas(Schedule, Ranged):
    """The schedule of a table of betas, made as its kind says: Ho et al. 2020 (linear), LDM (scaled_linear: linear in
    the square root), Nichol and Dhariwal 2021 (squaredcos_cap_v2, which knows no ends), GeoDiff (sigmoid)."""

    kind: Kind = "linear"
    """How beta grows."""
    start: Beta = 1e-4
    """The first beta."""
    end: Beta = 0.02
    """The last beta."""
    steps: Annotated[int, Range(3, 100_000)] = 1000
    """T, how many there are."""
    zero_terminal: bool = False
    """Whether the table is rescaled to end without signal."""

    def __post_init__(self) -> None:
        super().__post_init__()
        flat = (_table(self).diff() >= 0).nonzero()
        if len(flat):
            raise ValueError(
                f"of these {self.steps} betas, {self.kind} from {self.start:g} to {self.end:g}, nothing is left of the "
                f"signal after step {int(flat[0]) - 1} (log-SNR {LOWEST:g}): smaller betas, or fewer, are expected"
            )

    def log_snr(self, t: Tensor) -> Tensor:
        table, low, place = self._piece(t)
        return table[low] + (place - low) * (table[low + 1] - table[low])

    def log_snr_derivative(self, t: Tensor) -> Tensor:
        table, low, _ = self._piece(t)
        return self.steps * (table[low + 1] - table[low])

    def time(self, log_snr: Tensor) -> Tensor:
        table = _table_on(self, log_snr)
        low = (torch.searchsorted(-table, -log_snr.contiguous()) - 1).clamp(0, self.steps - 1)
        return (low + (log_snr - table[low]) / (table[low + 1] - table[low])) / self.steps

    def index(self, log_snr: Tensor) -> Tensor:
        """k, where the table has this log-SNR: a network's time, between the steps too, from step 0 to T - 1."""
        return (self.time(log_snr) * self.steps - 1).clamp(0, self.steps - 1)

    def time_of(self, index: float) -> float:
        """t of step k."""
        return (index + 1) / self.steps

    def _piece(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The table, the step at or below t, and t in steps."""
        place = t * self.steps
        return _table_on(self, t), place.detach().long().clamp(0, self.steps - 1), place


def _table_on(betas: Betas, like: Tensor) -> Tensor:
    """The table where `like` is: a device gets one copy for good, for which a program would wait at every call.

    What torch compiles makes it anew in every call.
    """
    if like.device.type == "cpu" or type(like) is not Tensor:  # a tensor that only says what it would be is not kept
        return _table(betas).to(like)
    return _copied_table(betas, like.device, like.dtype)


@cache
def _copied_table(betas: Betas, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return _table(betas).to(device, dtype)


@lru_cache(64)
def _table(betas: Betas) -> Tensor:
    """(T + 1,) float64: log_snr at t = 0, 1/T, ..., 1."""
    with torch.inference_mode(False), torch.no_grad():
        log_alpha = torch.log1p(-_betas(betas)).cumsum(0) / 2
        if betas.zero_terminal:
            alpha = log_alpha.exp()
            log_alpha = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])).log()
        log_snr = (2 * log_alpha - torch.log(-torch.expm1(2 * log_alpha))).clamp(min=LOWEST)
        return torch.cat((2 * log_snr[:1] - log_snr[1:2], log_snr))


def _betas(of: Betas) -> Tensor:
    """(T,) float64."""
    share = torch.linspace(0, 1, of.steps, dtype=torch.float64, device="cpu")
    match of.kind:
        case "linear":
            return of.start + (of.end - of.start) * share
        case "scaled_linear":
            return (math.sqrt(of.start) + (math.sqrt(of.end) - math.sqrt(of.start)) * share) ** 2
        case "sigmoid":
            return torch.sigmoid(12 * share - 6) * (of.end - of.start) + of.start
        case "squaredcos_cap_v2":
            edges = torch.arange(of.steps + 1, dtype=torch.float64, device="cpu") / of.steps
            remaining = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
            return (1 - remaining[1:] / remaining[:-1]).clamp(max=0.999)
