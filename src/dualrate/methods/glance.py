"""Few steps on a grid of times that is dense at high noise, with low-rank adapters by phase (Glance, Dong et al. 2025,
arXiv 2512.02899).

    calls at t = 1 - k / 50, of 50 steps of the frozen model:  k = 0, 2, 4, 6, 8 (slow), k = 10, 20, 30, 40, 49 (fast)
    t ~ uniform on a phase's own times,   z_t = alpha_t x + sigma_t eps
    L = mean |u - u_hat|^2 = (1 + alpha_t / sigma_t)^2 |x - x_hat|^2 / numel(x)        u = eps - x, of rectified flow

So it is denoising at few times, and no distillation: x_hat stays an estimate of E[x | z_t], and the sampler is DDIM.
Each phase trains its own adapter; in the paper in a training of its own, here side by side on the same images.

Controls: no phase (the grid alone, nothing is trained), and one phase for all times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn

from dualrate.config.ranges import Classes, Factor, Probability, Range, Ranged, Steps
from dualrate.denoisers.denoiser import Denoiser, Plain, condition_of
from dualrate.diffusion.context import Batch, Cond, Context, Shape
from dualrate.diffusion.process import GaussianProcess, Process, per_row
from dualrate.diffusion.random import Draws
from dualrate.experiment.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiment.model import Model
from dualrate.experiment.network_configs import NetworksConfig
from dualrate.experiment.plan_support import OwnSteps, steps_at
from dualrate.experiment.teaching import check_drops_labels, check_null_class, check_targets, fill
from dualrate.methods.times import to_device, with_null
from dualrate.networks.adapters import TARGETS, Adapted, merged
from dualrate.training.method import Loss, Phase

SLOW, FAST = (1.0, 0.96, 0.92, 0.88, 0.84), (0.8, 0.6, 0.4, 0.2, 0.02)


def names(phases: int) -> tuple[str, ...]:
    """Names of adapters, and of phases of training."""
    return tuple(f"phase-{number + 1}" for number in range(phases))


@dataclass(frozen=True)
class ByPhase(Ranged, Plain):
    """One network, called with the adapter of its time. starts: where each phase begins, from 1 down; a phase lasts
    until the next begins.
    """

    network: Adapted
    starts: tuple[Probability, ...] = ()

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        phase = self.phase(t)
        phases = phase.unique().tolist()
        if len(phases) == 1:
            return self.called(phases[0], z, t, cond)
        rows = [torch.nonzero(phase == number).flatten() for number in phases]
        parts = [self.called(number, z[row], t[row], cond[row]) for number, row in zip(phases, rows, strict=True)]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def phase(self, t: Tensor) -> Tensor:
        """The number of each time's phase, from 0; -1 without phases. Shape of t."""
        starts = torch.tensor(self.starts[1:], dtype=t.dtype, device=t.device)
        return (t[..., None] <= starts).sum(-1) if self.starts else torch.full_like(t, -1)

    def called(self, phase: int, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """x_hat by the adapter of a phase, whatever the time."""
        log_snr = self.process.log_snr(t).to(z.dtype)
        name = self.network.phases[int(phase)] if self.starts else None
        output = self.network(name, z, per_row(log_snr, z), *condition_of(cond))
        return self.process.x_hat(z, output.to(z.dtype), log_snr)


@dataclass(frozen=True)
class AdaptedNetwork(NetworksConfig, Ranged):
    """A single-rate model's network, with adapters."""

    base: NetworksConfig
    """That network."""
    adapters: Literal[0, 1, 2] = 2
    """Number of adapters, one per phase."""
    rank: Annotated[int, Range(1, 4096)] = 16
    """Rank of the update of a layer's weight."""
    scale: Factor = 4.0
    """Scale of the update: alpha / rank."""
    targets: str = TARGETS
    """A regular expression: linear layers and convolutions whose names end in it are adapted."""

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        networks, _ = self.base.build(process)
        network = Adapted(networks["model"], names(self.adapters), self.rank, self.scale, self.targets)
        return nn.ModuleDict({"model": network}), ByPhase(network, process)

    @property
    def bfloat16_weights(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.base.bfloat16_weights

    @property
    def roles(self) -> tuple[str, ...]:
        return self.base.roles

    @property
    def shape(self) -> Shape:
        return self.base.shape

    @property
    def num_classes(self) -> int:
        return self.base.num_classes

    @property
    def null_class(self) -> bool:
        return self.base.null_class

    @property
    def given(self) -> Shape | None:
        return self.base.given


@dataclass(frozen=True)
class Glance(Ranged):
    """The loss of the module. times: of each phase; null, label_dropout: as of `Denoising`"""

    networks: nn.ModuleDict
    model: ByPhase
    process: GaussianProcess
    times: tuple[tuple[Probability, ...], ...]
    null: Classes = 0
    label_dropout: Probability = 0.1
    auxiliaries: nn.ModuleDict = field(default_factory=nn.ModuleDict)

    def phases(self, iteration: int) -> tuple[Phase, ...]:
        adapted = self.model.network
        return tuple(
            Phase(name, adapted.parameters_of(name), partial(self.loss, number))
            for number, name in enumerate(adapted.phases)
        )

    def denoiser(self) -> ByPhase:
        return self.model

    def loss(self, phase: int, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """The mean over the batch's rows. Logs: the error of x_hat, `error`, unweighted."""
        times, x = torch.tensor(self.times[phase], dtype=torch.float64), batch.x
        (t,) = to_device(x.device, times[draws.host.integer("time", len(times))])
        z_t = self.process.add_noise(x, t, draws.normal("z_t", *x.shape[1:]).to(x.dtype))
        cond = Cond(with_null(batch, draws, self.null, self.label_dropout))
        error = self.process.deviance(x, self.model.called(phase, z_t, t, cond))
        weight = (1 + torch.exp(self.process.log_snr(t) / 2)).square().to(error.dtype)
        return Loss((weight * error).mean(), {"error": error.detach().mean()})


@dataclass(frozen=True)
class GlanceConfig(MethodConfig, Ranged):
    """Adapters by phase of a frozen model, trained on the times of their own steps."""

    backbone_from: str
    """The single-rate run, released weights, or folder of diffusers, that is adapted."""
    times: tuple[Probability, ...] = (*SLOW, *FAST)
    """Times of the steps, from 1 down; the last step leads to 0."""
    calls: tuple[Steps, ...] = (len(SLOW), len(FAST))
    """Number of steps of each phase, in turn. Empty: there are no adapters."""
    label_dropout: Probability = 0.1
    """Share of the images that train without their label, for classifier-free guidance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.times or self.times[0] != 1 or any(s >= t for t, s in pairwise((*self.times, 0.0))):
            raise ValueError(f"times go from 1 down and stay above 0, got {self.times}")
        if self.calls and sum(self.calls) != len(self.times):
            raise ValueError(
                f"the phases make {self.calls} steps, and there are {len(self.times)} times: share them out"
            )

    @property
    def serves(self) -> OwnSteps:
        return steps_at(self.times)

    @property
    def of_phases(self) -> Iterator[tuple[float, ...]]:
        """The times of each phase."""
        for count, end in zip(self.calls, accumulate(self.calls), strict=True):
            yield self.times[end - count : end]

    def adapted(self, denoiser: Any) -> Denoiser:
        return replace(denoiser, starts=tuple(times[0] for times in self.of_phases))

    def check(self, experiment: Experiment) -> None:
        _ = experiment.gaussian
        check_null_class(experiment, self.label_dropout)
        networks = experiment.networks
        if not isinstance(networks, AdaptedNetwork) or not networks.base.single_rate or networks.given is not None:
            raise ValueError(
                f"{experiment.name} has {networks.kind}; adapters go onto a single-rate one that draws from noise "
                "alone: name such a run"
            )
        if networks.adapters != len(self.calls):
            raise ValueError(f"{networks.adapters} adapters, and steps of {len(self.calls)} phases: make them the same")

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        if experiment.fit.recompute_from is not None:  # in evaluation mode blocks keep them
            what = "adapters train by activations that are kept"
            raise ValueError(f"{what}: drop --fit.recompute-from; --fit.micro-batch needs less memory")
        networks, denoiser = experiment.build()
        model, weights = cast(ByPhase, denoiser), {}
        networks.eval().requires_grad_(False)
        for name in model.network.phases:
            for weight in model.network.parameters_of(name):
                weight.requires_grad_(True)
        if start.fresh:
            source: Model = start.load(self.backbone_from)
            check_targets(experiment, source, "backbone_from")
            if self.label_dropout:
                check_drops_labels(experiment, source)
            problem = f"{self.backbone_from}: its network is not the one that {experiment.name} adapts"
            fill(merged(model.network.net, None), source.networks["model"].state_dict(), problem)
            weights = {"backbone": str(source)}
        parts = networks, model, experiment.gaussian, tuple(self.of_phases)
        return Prepared(Glance(*parts, null=experiment.num_classes, label_dropout=self.label_dropout), weights)
