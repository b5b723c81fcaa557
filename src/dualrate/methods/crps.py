"""A sample in one call of noise, trained by a proper score of a few draws (FGN, arXiv 2506.10772; U-Cast).

    X_m = x_hat(z_m, t = 1, y),    z_m ~ N(0, I),    m = 1 .. M
    L   = mean_m |X_m - x| - sum_{m<n} |X_m - X_n| / (M (M - 1))        crps: of each pixel; energy: of the whole image
    L   = mean_m |X_m - x|^2                                            regression: all samples become the mean E[x | y]

A score L is unbiased in M, and least for X ~ p(x | y) (metrics/ensembles.py). The CRPS of pixels sees marginals alone.

Two rates are ours: the heavy network sees y once, and the light one makes all M draws of its features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from dualrate.config.ranges import Range, Ranged
from dualrate.data.conditions import Conditioning, Unconditional
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.context import Batch, Cond, shared_time
from dualrate.diffusion.process import Process
from dualrate.diffusion.random import Draws
from dualrate.experiment.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiment.plan_support import ONE_STEP, OwnSteps
from dualrate.metrics.ensembles import energy_score, fair_crps, members_squared_error
from dualrate.training.method import Loss, OnePhase

SCORES = {"crps": fair_crps, "energy": energy_score, "regression": members_squared_error}
ScoreName = Literal["crps", "energy", "regression"]
ScoredDraws = Annotated[int, Range(2, 64)]


@dataclass(frozen=True)
class OneCall(OnePhase):
    """The loss of the module. draws: M; condition: whose `weighed` says how much each number counts"""

    model: Denoiser
    process: Process
    draws: ScoredDraws
    score: ScoreName
    condition: Conditioning = Unconditional()

    def denoiser(self) -> Denoiser:
        return self.model

    def loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """The mean over the batch's rows. Logs `spread`: the mean distance of a pixel in two draws."""
        x = batch.x
        streams = [f"member {m}" for m in range(self.draws)]
        z = self.process.noise(draws, streams, *x.shape[1:]).transpose(0, 1).flatten(0, 1)
        members = self.members(z.to(x.dtype), Cond(given=batch.given)).unflatten(0, (len(x), self.draws))
        spread = (members[:, 0] - members[:, 1]).abs().mean().detach()
        power = 1.0 if self.score == "crps" else 0.5  # of weights: absolute errors, or squared ones
        members, x = (self.condition.weighed(part, power) for part in (members, x))
        return Loss(SCORES[self.score](members, x).mean(), {"spread": spread})

    def members(self, z: Tensor, cond: Cond) -> Tensor:
        """(B M, C, H, W): a sample of each z, of conditions (B, ...) as of `for_rows`, of one heavy call."""
        t = shared_time(1.0)
        return self.model.denoise(z, t, self.model.encode(z, t, cond), cond)


@dataclass(frozen=True)
class OneCallConfig(MethodConfig, Ranged):
    """A sample in one call, trained by the score of a few draws."""

    draws: ScoredDraws = 2
    """Number of samples of each condition in the score."""
    score: ScoreName = "crps"
    """crps: of each pixel. energy: of the whole image, so that it also sees how pixels depend on each other.
    regression: the squared error, for a mean and no samples."""

    @property
    def serves(self) -> OwnSteps:
        return ONE_STEP

    def check(self, experiment: Experiment) -> None:
        _ = experiment.gaussian
        if experiment.networks.given is None:
            raise ValueError(
                f"{experiment.name} is given nothing; a score compares samples of one condition: give a task"
            )

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        networks, denoiser = experiment.build()
        return Prepared(OneCall(networks, denoiser, experiment.process, self.draws, self.score, experiment.condition))
