"""Multilevel Euler-Maruyama: several single networks of growing size, the small one often, the large one seldom.

    x_hat = f^1 + sum_k B_k / p_k (f^k - f^(k-1)),   B_k ~ Bernoulli(p_k),   k = 2 .. K

ML-EM (Jacot 2026, arXiv 2603.24594) draws B_k anew at every step, one for all images, so the mean of x_hat over the
draws is f^K, and errors of single steps average out over many steps. The paper reports up to four times less compute on
CelebA-64 with UNets of growing size. No pair is trained, no features are shared: it is the plain rival of two rates.
Its drift is linear in x_hat, so a telescoping sum of x_hat is one of drifts. It is meant for steps of first order, such
as `Ancestral`; SDE-DPM-Solver++ 2M takes differences of x_hat between steps, which the draws make noisy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dualrate.config.ranges import Probability as Time
from dualrate.config.ranges import Ranged, Seed, Share
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.context import Cond, Context, Refresh, Reuse
from dualrate.diffusion.plan import StepPlan


@dataclass(frozen=True)
class Multilevel(Ranged, Denoiser):
    """Single networks f^1 .. f^K, and the plan by which they run.

    levels: from the lightest to the heaviest, at least two
    times: N + 1 times of the plan, from noise to data
    probabilities: K - 1 numbers in (0, 1]: how often f^2 .. f^K correct the level below
    seed: of the draws
    Raises ValueError for other numbers of levels and probabilities, or probabilities outside (0, 1].
    """

    levels: tuple[Denoiser, ...]
    times: tuple[Time, ...]
    probabilities: tuple[Share, ...]
    seed: Seed = 0
    reuse = Reuse.MARKOV
    alone_differs = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.levels) < 2 or len(self.probabilities) != len(self.levels) - 1:
            raise ValueError(
                f"{len(self.levels)} networks and {len(self.probabilities)} probabilities: expected two networks or "
                "more, and a probability for each but the lightest"
            )

    @cached_property
    def corrections(self) -> Tensor:
        """(N, K) float64: B_k / p_k of each step and level; 1 for the lightest."""
        p = torch.tensor((1.0, *self.probabilities), dtype=torch.float64)
        uniform = torch.rand(
            len(self.times) - 1, len(p), dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed)
        )
        return (uniform < p) / p

    @property
    def plan(self) -> StepPlan:
        """The plan whose heavy calls are the steps with a correction, and whose other steps stand alone."""
        corrected = (self.corrections[:, 1:] > 0).any(1).tolist()
        return StepPlan(self.times, tuple(Refresh.FULL if step else Refresh.NONE for step in corrected))

    @property
    def calls(self) -> tuple[int, ...]:
        """How often each network runs: f^k where it corrects, or is corrected."""
        return tuple(self._runs.sum(0).tolist())

    @property
    def _runs(self) -> Tensor:
        """(N, K) bool."""
        drawn = self.corrections > 0
        return drawn | torch.nn.functional.pad(drawn[:, 1:], (0, 1))

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        """A step with a correction. Raises ValueError for a time that is not of the plan."""
        if float(t) not in self.times[:-1]:
            raise ValueError(f"the networks were drawn for the times of a plan, which has no step at {float(t)}")
        step = self.times.index(float(t))
        weight, runs = self.corrections[step], self._runs[step]
        weight = weight - torch.nn.functional.pad(weight[1:], (0, 1))  # of each network in the telescoping sum
        parts = [
            share * level.denoise(z, t, level.encode(z, t, cond), cond)
            for level, share, run in zip(self.levels, weight.tolist(), runs.tolist(), strict=True)
            if run
        ]
        return Context(x_hat=torch.stack(parts).sum(0))

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        if context.x_hat is not None:
            return context.x_hat
        lightest = self.levels[0]
        return lightest.denoise(z, t, lightest.encode(z, t, cond), cond)
