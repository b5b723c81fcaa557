"""The denoising loss of a conditional model, whose context is of the condition alone.

    context = E(y)                                                          once for each image
    L = mean over K times of weight(t) |x - g(z_t, t, context)|^2            one heavy call serves all K

A single network has an empty context. `WeightedDenoising` is what this loss and that of methods/denoising.py share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor
from torch.nn.functional import avg_pool2d

from dualrate.config.ranges import LightDraws, Range
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.prediction import Weighting, x_loss_weight
from dualrate.diffusion.process import Process
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Batch, Cond, Context
from dualrate.methods.times import TimeSource, moved
from dualrate.training.method import Loss, OnePhase, quarters


@dataclass(frozen=True)
class WeightedDenoising(OnePhase):
    """Trains every network by the weighted error of x_hat.

    multiscale: copies of half the side, a quarter, ... whose errors are added
    """

    model: Denoiser
    process: Process
    weighting: Weighting
    times: TimeSource
    multiscale: Annotated[int, Range(0, 16)] = 0

    def denoiser(self) -> Denoiser:
        return self.model

    def weighted_error(self, x: Tensor, x_hat: Tensor, t: Tensor) -> Tensor:
        """(B,): the weighted error of each row, a mean over what it holds."""
        error = self.process.deviance(x, x_hat)
        if self.multiscale:
            error = error + coarser_errors(x - x_hat, self.multiscale)
        return x_loss_weight(self.weighting, self.process.schedule, t).to(error.dtype) * error


@dataclass(frozen=True)
class ConditionalDenoising(WeightedDenoising):
    """The loss of the module. draws: K, noise levels for each image and heavy call"""

    draws: LightDraws = 1

    def loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """The mean over rows and draws. Logs: `loss_t0` to `loss_t3`, and the heavy network's own losses."""
        many, x = draws.repeated(self.draws), batch.x.repeat_interleave(self.draws, 0)
        t = moved(x.device, *self.times(many.host))[0]
        z_t = self.process.add_noise(x, t, self.process.noise(many, ["z_t"], *x.shape[1:])[0])
        cond = Cond(given=batch.given)
        context = self.model.encode(z_t, t, cond)
        x_hat = self.model.denoise(z_t, t, self.detached(context), cond)
        loss = self.weighted_error(x, x_hat, t)
        own = self.own_loss(batch, context)
        logs = quarters("loss_t", loss, t) | {name: part.detach() for name, part in own.items()}
        return Loss(loss.mean() + sum(own.values()), logs)

    def detached(self, context: Context) -> Context:
        """What the light network is trained with: all of the context, unless overridden."""
        return context

    def own_loss(self, batch: Batch, context: Context) -> dict[str, Tensor]:
        """Losses of the heavy network alone, by name: none, unless overridden."""
        return {}


def coarser_errors(difference: Tensor, copies: int) -> Tensor:
    """(B,): the mean squares of a difference (B, C, H, W) at half its side, a quarter, ..., added up."""
    total = difference.new_zeros(len(difference))
    for _ in range(copies):
        difference = avg_pool2d(difference, 2)
        total = total + difference.square().flatten(1).mean(1)
    return total
