"""Training of early exits (denoisers/early_exit.py): heads and probes beside a frozen network.

    t ~ U(0, 1),  z_t = alpha_t x + sigma_t eps;  x_i, eps_i of g_i
    e_i = mean over what an image holds of tanh |eps_i - eps|,  without gradient
    L   = sum_i w(t) |x - x_i|^2 / numel(x) + sum_i (u_i - e_i)^2

Source: DeeDiff, later AdaDiff (Tang et al. 2023, arXiv 2309.17074), frozen and with a probe for each block as DuoDiff's
authors found best (arXiv 2410.09633).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from dualrate.config.ranges import Classes, Probability, Ranged
from dualrate.denoisers.denoiser import Denoiser
from dualrate.denoisers.early_exit import EarlyExit, ExitUViT
from dualrate.diffusion.context import Batch
from dualrate.diffusion.prediction import eps_from_v, x_from_v
from dualrate.diffusion.process import GaussianProcess, Process, require_gaussian
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Sigmoid, Weighting, x_loss_weight
from dualrate.experiment.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiment.model import Model
from dualrate.experiment.network_configs import NetworksConfig
from dualrate.experiment.plan_support import AnyPlan
from dualrate.experiment.teaching import check_drops_labels, check_targets, fill, teachers_network
from dualrate.methods.times import stratified_uniform, to_device, with_null
from dualrate.networks.uvit import UViTConfig
from dualrate.training.method import Loss, OnePhase


@dataclass(frozen=True)
class EarlyExitTraining(OnePhase):
    """Trains heads and probes.

    model:     of the network "exits"
    null:      the null class, for classifier-free guidance; label_dropout: probability of training a row with it
    """

    model: EarlyExit
    process: GaussianProcess
    weighting: Weighting
    null: Classes = 0
    label_dropout: Probability = 0.1

    def denoiser(self) -> EarlyExit:
        return self.model

    def loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """L of the module docstring, the mean over the batch's rows.

        Logs: its two sums, `heads` and `probes`; of the first and the last exit the mean e_i, `first_error` and
        `last_error`.
        """
        x, label = batch.x, with_null(batch, draws, self.null, self.label_dropout)
        (t,) = to_device(x.device, stratified_uniform(draws.host))
        eps = draws.normal("z_t", *x.shape[1:]).to(x.dtype)
        z_t = self.process.add_noise(x, t, eps)
        log_snr = self.process.log_snr(t).to(z_t.dtype)
        outputs, estimates = self.networks["exits"](z_t, log_snr, label)
        v = outputs[:-1].to(z_t.dtype)
        heads = (x_from_v(z_t, v, log_snr) - x).square().flatten(2).mean(2)
        errors = (eps_from_v(z_t, v.detach(), log_snr) - eps).abs().tanh().flatten(2).mean(2)  # e_i, without gradient
        heads = (x_loss_weight(self.weighting, self.process.schedule, t).to(heads.dtype) * heads).sum(0).mean()
        probes = (estimates - errors).square().sum(0).mean()
        logs = {"heads": heads, "probes": probes, "first_error": errors[0].mean(), "last_error": errors[-1].mean()}
        return Loss(heads + probes, {name: value.detach() for name, value in logs.items()})


@dataclass(frozen=True)
class EarlyExitNetwork(NetworksConfig):
    """A single-rate U-ViT, and exits of it."""

    exits: UViTConfig
    bfloat16_weights = True

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        network = ExitUViT(self.exits)
        return nn.ModuleDict({"exits": network}), EarlyExit(network, require_gaussian(process, "a network with exits"))

    @property
    def configs(self) -> Mapping[str, UViTConfig]:
        return {"exits": self.exits}

    @property
    def kind(self) -> str:
        return "a model with early exits"


@dataclass(frozen=True)
class EarlyExitConfig(MethodConfig, Ranged):
    """Heads and probes beside a frozen network."""

    backbone_from: str | None = None
    """The single-rate run, or released weights, whose network it is."""
    threshold: Probability = 0.1
    """Estimated error at which sampling leaves the network; 0: no exit."""
    weighting: Weighting = Sigmoid()
    label_dropout: Probability = 0.1
    """Share of the images that train without their label, for classifier-free guidance."""

    @property
    def serves(self) -> AnyPlan:
        return AnyPlan()

    def adapted(self, denoiser: Any) -> Denoiser:
        return replace(denoiser, threshold=self.threshold)

    def check(self, experiment: Experiment) -> None:
        require_gaussian(experiment.process, experiment.name)
        if not isinstance(experiment.networks, EarlyExitNetwork):
            raise ValueError(f"expected networks with exits (EarlyExitNetwork), got {experiment.networks.kind}")

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        networks, denoiser = experiment.build()
        weights = self._fill(experiment, networks, start) if start.fresh else {}
        method = EarlyExitTraining(
            networks,
            cast(EarlyExit, denoiser),
            experiment.gaussian,
            self.weighting,
            null=experiment.num_classes,
            label_dropout=self.label_dropout,
        )
        return Prepared(method, weights)

    def _fill(self, experiment: Experiment, networks: nn.ModuleDict, start: Start) -> dict[str, str]:
        """Puts the network's weights in, and returns which. Raises ValueError for a model that is no such network."""
        if self.backbone_from is None:
            raise ValueError("exits are trained beside a trained network: name its run, --method.backbone-from RUN")
        source: Model = start.load(self.backbone_from)
        if not hasattr(teachers_network(source.experiment, self.backbone_from).configs.get("model"), "levels"):
            raise ValueError(f"{self.backbone_from}: expected a single-rate U-ViT, got {source.experiment.networks}")
        check_targets(experiment, source, "backbone_from")
        if self.label_dropout:
            check_drops_labels(experiment, source)
        problem = f"{self.backbone_from}: its network is not that of {experiment.name}"
        fill(networks.get_submodule("exits.net"), source.networks["model"].state_dict(), problem)
        return {"backbone": str(source)}
