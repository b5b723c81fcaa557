"""The configuration of early exits beside a frozen single-rate U-ViT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from dualrate.config.ranges import Probability, Ranged
from dualrate.denoisers.denoiser import Denoiser
from dualrate.denoisers.early_exit import EarlyExit
from dualrate.diffusion.process import Process, require_gaussian
from dualrate.diffusion.weighting import Sigmoid, Weighting
from dualrate.experiments.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiments.networks import NetworksConfig
from dualrate.experiments.serves import AnyPlan
from dualrate.experiments.teaching import check_drops_labels, check_targets, fill, teachers_network
from dualrate.methods.early_exit import EarlyExitTraining, Reference
from dualrate.networks.early_exit import ExitUViT
from dualrate.networks.uvit import UViTConfig


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
