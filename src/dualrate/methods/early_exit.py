"""Training of early exits beside a frozen network: heads that say what it would, probes that say how wrong they are.

    t ~ U(0, 1),  z_t = alpha_t x + sigma_t eps,  blocks i = 1 .. K - 1 of K
    x_i, eps_i     of g_i, the v after block i
    e_i = mean over what an image holds of tanh |eps_i - eps|,  without gradient
    L   = sum_i w(t) |x - x_i|^2 / numel(x) + sum_i (u_i - e_i)^2

Source: DeeDiff, later AdaDiff (Tang et al. 2023, arXiv 2309.17074), its layer-wise loss and its loss of estimates;
frozen, and with a probe for each block, as DuoDiff's authors found best (arXiv 2410.09633). It trains the network too,
and adds the heads' loss weighted by 1 - u_i. The error is that of eps, which its networks predict: small where noise is
high, so the first steps of a sampler leave first. The network here predicts v, whose error is that of eps over alpha_t.

Ours: in place of x and eps the target may be the network's own estimate, x_K and eps_K (`reference`). Then u_i is what
leaving loses, where the published one is above all what nobody can know of eps, at a block as at the last; and the
heads' gradient is without the spread of x around its mean.

The configuration of early exits beside a frozen single-rate U-ViT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from dualrate.config.ranges import Classes, Probability, Ranged
from dualrate.denoisers.denoiser import Denoiser
from dualrate.denoisers.early_exit import EarlyExit
from dualrate.diffusion.prediction import Sigmoid, Weighting, eps_from_v, x_from_v, x_loss_weight
from dualrate.diffusion.process import GaussianProcess, Process, require_gaussian
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Batch
from dualrate.experiment.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiment.network_configs import NetworksConfig
from dualrate.experiment.plan_support import AnyPlan
from dualrate.experiment.teaching import check_drops_labels, check_targets, fill, teachers_network
from dualrate.methods.times import moved, stratified_uniform, with_null
from dualrate.networks.early_exit import ExitUViT
from dualrate.networks.uvit import UViTConfig
from dualrate.training.method import Loss, Phase

Reference = Literal["data", "network"]


@dataclass(frozen=True)
class EarlyExitTraining(Ranged):
    """One phase, "model", that trains heads and probes.

    model:     of the network "exits"
    reference: x and eps of the data, or those that the network says
    null:      the null class, for classifier-free guidance; label_dropout: probability of training a row with it
    """

    networks: nn.ModuleDict
    model: EarlyExit
    process: GaussianProcess
    weighting: Weighting
    reference: Reference
    null: Classes = 0
    label_dropout: Probability = 0.1

    @property
    def auxiliaries(self) -> nn.ModuleDict:
        """None."""
        return nn.ModuleDict()

    def phases(self, iteration: int) -> tuple[Phase, ...]:
        return (Phase("model", tuple(p for p in self.networks.parameters() if p.requires_grad), self.loss),)

    def denoiser(self) -> EarlyExit:
        return self.model

    def loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """L of the module docstring, the mean over the batch's rows.

        Logs: its two sums, `heads` and `probes`; of the first and the last exit the mean e_i, `first_error` and
        `last_error`.
        """
        x, label = batch.x, with_null(batch, draws, self.null, self.label_dropout)
        (t,) = moved(x.device, stratified_uniform(draws.host))
        eps = draws.normal("z_t", *x.shape[1:]).to(x.dtype)
        z_t = self.process.add_noise(x, t, eps)
        log_snr = self.process.log_snr(t).to(z_t.dtype)
        outputs, estimates = self.networks["exits"](z_t, log_snr, label)
        outputs = outputs.to(z_t.dtype)
        heads, errors = self.judged(outputs, z_t, log_snr, x, eps)
        heads = (x_loss_weight(self.weighting, self.process.schedule, t).to(heads.dtype) * heads).sum(0).mean()
        probes = (estimates - errors).square().sum(0).mean()
        logs = {"heads": heads, "probes": probes, "first_error": errors[0].mean(), "last_error": errors[-1].mean()}
        return Loss(heads + probes, {name: value.detach() for name, value in logs.items()})

    def judged(self, outputs: Tensor, z_t: Tensor, log_snr: Tensor, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """|x - x_i|^2 / numel(x), and e_i, without gradient: (K - 1, B) each. outputs: v, (K, B, C, H, W)."""
        x_of, eps_of = x_from_v(z_t, outputs, log_snr), eps_from_v(z_t, outputs.detach(), log_snr)
        if self.reference == "network":
            x, eps = x_of[-1].detach(), eps_of[-1]
        return (x_of[:-1] - x).square().flatten(2).mean(2), (eps_of[:-1] - eps).abs().tanh().flatten(2).mean(2)


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
    """Heads and probes beside a network that stays as it is."""

    backbone_from: str | None = None
    """The single-rate run, or released weights, whose network it is."""
    threshold: Probability = 0.1
    """Of the estimated error at which sampling leaves the network, where no other is named (--denoiser
    early-exit-0.05); 0: no exit."""
    reference: Reference = "data"
    """What heads learn and probes judge them by: data, as published, or the network's own output."""
    weighting: Weighting = Sigmoid()
    label_dropout: Probability = 0.1
    """Share of the images that train without their label, for classifier-free guidance."""

    @property
    def serves(self) -> AnyPlan:
        return AnyPlan()

    @property
    def drops_labels(self) -> bool:
        return self.label_dropout > 0

    def called(self, denoiser: Any) -> Denoiser:
        return replace(denoiser, threshold=self.threshold)

    def check(self, experiment: Experiment) -> None:
        require_gaussian(experiment.process, experiment.name)
        if not isinstance(experiment.networks, EarlyExitNetwork):
            raise ValueError(
                f"exits are trained beside one U-ViT; {experiment.name} is {experiment.networks.kind}: take networks "
                "that have exits (EarlyExitNetwork)"
            )

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        networks, denoiser = experiment.build()
        weights = self._fill(experiment, networks, start) if start.fresh else {}
        assert isinstance(denoiser, EarlyExit)
        method = EarlyExitTraining(
            networks,
            denoiser,
            experiment.gaussian,
            self.weighting,
            self.reference,
            null=experiment.num_classes,
            label_dropout=self.label_dropout,
        )
        return Prepared(method, weights)

    def _fill(self, experiment: Experiment, networks: nn.ModuleDict, start: Start) -> dict[str, str]:
        """Put the network's weights in; says which. Raises ValueError for a model that is no such network."""
        if self.backbone_from is None:
            raise ValueError(
                "exits are trained beside a trained network: say which run has it, with --method.backbone-from RUN"
            )
        source = start.load(self.backbone_from)
        single = teachers_network(source.experiment, self.backbone_from)
        if not single.configs:
            raise ValueError(
                f"{self.backbone_from} is a {type(single).__name__}, and exits are those of a U-ViT: name a run of one"
            )
        check_targets(experiment, source, "backbone_from")
        if self.label_dropout:
            check_drops_labels(experiment, source)
        problem = f"{self.backbone_from}: its network is not that of {experiment.name}"
        fill(networks.get_submodule("exits.net"), source.networks["model"].state_dict(), problem)
        return {"backbone": str(source)}
