"""A regression once a condition, and diffusion of what it leaves (CorrDiff, arXiv 2309.15214).

    mean  m = m(y)                              once, trained by |x - m|^2
    state z_t - alpha_t m = alpha_t r + sigma_t eps,    r = x - m
    x_hat = m + r_hat(z_t - alpha_t m, t; y, m)         at every step, trained by the denoising loss; no gradient to m

So any sampler of x serves. The residual has the scale s: r / s in place of r is diffused at another noise level,

    c = sqrt(alpha^2 s^2 + sigma^2), log_snr' = log_snr + 2 log s, r_hat = s x_from_v((z_t - alpha m) / c, v, log_snr')

CorrDiff gives the light network y and m (`features` off). Two rates, ours: the regression's features too.
Deviates from CorrDiff: both are trained together, and the state is that of x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor, nn

from dualrate.config.ranges import Factor, LightDraws, Range, Ranged, Side
from dualrate.denoisers.denoiser import Denoiser, given_of
from dualrate.diffusion.context import Batch, Cond, Context, Reuse, Shape, expand, for_rows
from dualrate.diffusion.prediction import x_from_v
from dualrate.diffusion.process import GaussianProcess, Process, per_row
from dualrate.diffusion.schedule import sigma
from dualrate.diffusion.weighting import Sigmoid, Weighting
from dualrate.experiment.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiment.network_configs import PackageNetworks
from dualrate.experiment.plan_support import AnyPlan
from dualrate.methods.denoising import Denoising
from dualrate.methods.times import GivenTimes
from dualrate.networks.body import BodyConfig
from dualrate.networks.conditional import ConditionalBody, ConditionMaps
from dualrate.networks.dual import check_pair, of_last, projections


class Regression(nn.Module):
    """The network of a regression.

    forward: (log_snr at t = 1, y) -> (features of the light network, v), whose x_hat is the mean
    """

    def __init__(self, config: BodyConfig, light: BodyConfig, y_shape: Shape, features: bool) -> None:
        super().__init__()
        check_pair(config, light)
        if not config.head:
            raise ValueError(
                "a regression is an encoder with a head, got one without: leave out --networks.encoder.head"
            )
        self.net = ConditionalBody(config, y_shape)
        self.light, self.mean = ConditionMaps(y_shape, light), ConditionMaps(light.shape, light)
        self.projections = projections(config, light) if features else None

    def forward(self, log_snr: Tensor, y: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """log_snr: (B,); y: (B, c, h, w) -> ((B, light C_i, H_i, W_i), finest level first; v (B, C, H, W))."""
        levels, v = self.net.features(log_snr, y, None)
        assert v is not None  # of a head
        parts = [self.light(y), self.mean(-v.detach().to(y.dtype))]
        if self.projections is not None:
            parts.append(tuple(project(level) for project, level in of_last(list(self.projections), levels)))
        return tuple(torch.stack(level).sum(0) for level in zip(*parts, strict=True)), v


@dataclass(frozen=True)
class Residual(Ranged, Denoiser):
    """The mean of a regression, and diffusion of what is left of it.

    encoder: a `Regression`; light: (z, log_snr, label, features) -> v of the scaled residual
    """

    encoder: nn.Module
    light: nn.Module
    process: GaussianProcess
    scale: Factor
    reuse: Reuse = Reuse.FREE

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        """features: what the light network adds at its levels, and the mean. Raises ValueError without a condition."""
        y = given_of(cond)
        log_snr = per_row(self.process.log_snr(torch.ones((), dtype=torch.float64)).to(y.dtype), y)
        features, v = self.encoder(log_snr, y)
        return Context((*features, self.process.x_hat(torch.zeros_like(v), v, log_snr)))

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        """Raises ValueError without a context: then there is no mean."""
        if not context.features:
            raise ValueError("the residual is that of the regression's mean: begin the plan with a heavy call")
        *features, mean = context.features
        mean = for_rows(mean, len(z))
        log_snr = self.process.log_snr(t).to(z.dtype)
        shifted = log_snr + 2 * math.log(self.scale)
        alpha_t, sigma_t = (part.to(z.dtype) for part in self.process.scales(t))
        state = (z - expand(alpha_t, z) * mean) * expand(sigma(shifted) / sigma_t, z)
        v = self.light(state, per_row(shifted, z), None, tuple(features)).to(z.dtype)
        return mean + self.scale * x_from_v(state, v, shifted)


@dataclass(frozen=True)
class ResidualNetworks(PackageNetworks, Ranged):
    """A regression network and a light one. scale: of the residual, in units of x, half the range of a pixel."""

    encoder: BodyConfig
    light: BodyConfig
    given_shape: tuple[Side, Side, Side]
    """(C, h, w) of the condition."""
    features: bool = True
    """Whether the light network gets the regression's features, beside the condition and the mean."""
    scale: Factor = 0.25
    """Approximate standard deviation of the residual."""

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        assert isinstance(process, GaussianProcess)  # of `ResidualConfig.check`
        encoder, light = Regression(self.encoder, self.light, self.given_shape, self.features), self.light.network()
        return nn.ModuleDict({"encoder": encoder, "light": light}), Residual(encoder, light, process, self.scale)


@dataclass(frozen=True)
class ResidualDenoising(Denoising):
    """With the regression's own loss, |x - m|^2 / s^2, whose gradient m gets alone. mean_weight: 1 / s^2"""

    mean_weight: Annotated[float, Range(0, math.inf)] = 1.0

    def detached(self, context: Context) -> Context:
        *features, mean = context.features
        return Context((*features, mean.detach()))

    def heavy_losses(self, batch: Batch, context: Context) -> dict[str, Tensor]:
        return {"mean_loss": self.mean_weight * self.condition.weighed(batch.x - context.features[-1]).square().mean()}


@dataclass(frozen=True)
class ResidualConfig(MethodConfig, Ranged):
    """A regression once a condition, and diffusion of the residual."""

    weighting: Weighting = Sigmoid()
    """Loss weighting of the scaled residual."""
    draws: LightDraws = 4
    """Noise levels for each image and heavy call."""

    @property
    def serves(self) -> AnyPlan:
        return AnyPlan((1, 1))

    def check(self, experiment: Experiment) -> None:
        _ = experiment.gaussian
        if not isinstance(experiment.networks, ResidualNetworks):
            raise ValueError(f"{experiment.name} needs ResidualNetworks, got {type(experiment.networks).__name__}")

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        assert isinstance(experiment.networks, ResidualNetworks)
        networks, denoiser = experiment.build()
        scale, weighting = experiment.networks.scale, self.weighting
        if isinstance(weighting, Sigmoid):  # e^log_snr w |x - x_hat|^2 is that of r / s at log_snr'
            weighting = replace(weighting, bias=weighting.bias - 2 * math.log(scale))
        parts = networks, denoiser, experiment.process, weighting, GivenTimes(self.draws)
        return Prepared(ResidualDenoising(*parts, condition=experiment.condition, mean_weight=1 / scale**2))
