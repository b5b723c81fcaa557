"""A network of another library as a part of a run: what builds it again, without its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dualrate.config.ranges import Classes, Ranged
from dualrate.diffusion.schedule import Schedule
from dualrate.diffusion.values import Shape
from dualrate.from_diffusers.direction import check_direction
from dualrate.from_diffusers.folder import Folder, network_class, read_folder
from dualrate.from_diffusers.kinds import kind_of
from dualrate.from_diffusers.network import ForeignNetwork, labels_of, shape_of
from dualrate.from_diffusers.schedulers import Convention, read_scheduler

OWN_CLASSES = "dualrate_num_classes"  # in a network's config.json, where its last label is the null class


@dataclass(frozen=True)
class ForeignConfig(Ranged):
    """A network of diffusers, and what it takes and gives."""

    kind: str
    """Its class."""
    config: str
    """Of the class, as JSON."""
    convention: Convention
    """What it takes for its time, and predicts."""
    num_classes: Classes = 0
    """Labels, without a null class."""
    null: bool = False
    """Whether the label after these is a null class."""
    source: str = ""
    """The folder that it is from."""
    fingerprint: str = ""
    """sha256 of configuration and weights in that folder."""

    def build(self) -> ForeignNetwork:
        """With random weights. Raises ValueError for a configuration of no network, and without diffusers."""
        kind = network_class(self.kind)
        try:
            return self.around(kind.from_config(self._config))
        except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
            raise ValueError(f"{self.kind} of diffusers cannot be built as configured: {error}") from error

    def around(self, net: nn.Module) -> ForeignNetwork:
        """Such a network that is there already."""
        kind = kind_of(self.kind, self._config)
        return ForeignNetwork(net, kind, self.convention, num_classes=self.num_classes, null=self.null)

    @property
    def shape(self) -> Shape:
        """(C, H, W) of an image."""
        return shape_of(self._config)

    @property
    def _config(self) -> dict[str, Any]:
        return json.loads(self.config)


@dataclass(frozen=True)
class Adopted:
    """A folder's network, its schedule, and its weights' module."""

    network: ForeignConfig
    schedule: Schedule
    folder: Folder

    def weights(self) -> nn.Module:
        """The module, with its weights. Raises ValueError where its time runs another way than its scheduler says."""
        net = self.folder.network()
        check_direction(self.network.around(net), self.network.shape)
        return net


def adopted(path: Path, num_classes: int | None = None) -> Adopted:
    """What a run needs to know of a folder of diffusers.

    num_classes: as of `from_diffusers`; None: as the network's config.json says by OWN_CLASSES, if it does
    Raises ValueError for a folder that `from_diffusers` refuses, one without scheduler, and a model of texts.
    """
    folder = read_folder(path)
    if folder.scheduler is None:
        raise ValueError(f"{path} has no scheduler, which says the schedule: name the pipeline's folder")
    kind = kind_of(folder.name, folder.config)
    if kind.takes:
        raise ValueError(
            f"{path} holds a model of texts ({folder.name}); a run has labels alone: wrap it by from_diffusers"
        )
    schedule, convention = read_scheduler(folder.scheduler)
    own = {name: value for name, value in folder.config.items() if not name.startswith("_")}
    config = {name: value for name, value in own.items() if name != OWN_CLASSES}
    num_classes = own.get(OWN_CLASSES) if num_classes is None else num_classes
    network = ForeignConfig(
        folder.name,
        json.dumps(config, sort_keys=True),
        convention,
        **labels_of(kind, config, num_classes),
        source=str(path),
        fingerprint=folder.fingerprint,
    )
    return Adopted(network, schedule, folder)
