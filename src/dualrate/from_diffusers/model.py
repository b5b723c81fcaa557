"""A model that diffusers holds, as a denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from dualrate.config.ranges import as_path
from dualrate.denoisers.denoiser import Plain
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import RectifiedFlow, Schedule
from dualrate.diffusion.values import Shape
from dualrate.from_diffusers.diffusers_folder import check_name, read_folder
from dualrate.from_diffusers.foreign_network import ForeignNetwork, check_direction, labels_of, shape_of
from dualrate.from_diffusers.kinds import KINDS, Kind, by_place, kind_of
from dualrate.from_diffusers.schedulers import REPA, SIT, Convention, read_scheduler
from dualrate.networks.blocks import copied
from dualrate.system.device import own_defaults

CONVENTIONS: dict[str, Convention] = {"repa": REPA, "sit": SIT}


def from_diffusers(
    source: str | Path | nn.Module,
    scheduler: Any = None,
    *,
    convention: Literal["diffusers", "repa", "sit"] | Convention = "diffusers",
    embeddings: Mapping[str, Tensor] | None = None,
    num_classes: int | None = None,
    shape: Shape | None = None,
) -> Plain:
    """A denoiser around a trained network of diffusers: any sampler, plan, bound or meter of ours takes it.

    source:      a folder that `save_pretrained` wrote, of a pipeline or of a network, or the network itself. Where
                 `torch.compile` returned it, what was compiled is taken
    scheduler:   of diffusers, or its configuration; that of the folder if not given
    convention:  what the network takes for its time and predicts; "diffusers": as its scheduler says; "repa": r in
                 [0, 1] with noise at 1, eps - x; "sit": data at 1, x - eps. With the last two the scheduler only says
                 the shift, and a network of a class that is not known is called (state, time, label)
    embeddings:  of a model of texts: `ForeignNetwork`
    num_classes: where not all labels of the network are classes, such as a UNet2DModel's whose last one is null
    shape:       (C, H, W) of an image, or of latents, where its configuration does not say
    A network that is passed stays as it is: the denoiser has a copy in evaluation mode, which shares its weights.
    What is done to that network later, but for its weights, such as a move to a device, the copy does not follow.
    `denoiser.process` has its schedule.
    Raises ValueError for classes and schedulers that are not known, for distilled models, and where the network's time
    runs another way than the convention says; or if diffusers is missing. Warns of an untrained network.
    """
    if isinstance(source, nn.Module):
        whole: nn.Module = getattr(source, "_orig_mod", source)  # of torch.compile
        net = copied(whole, whole, bfloat16=False)
        name, config = type(net).__name__, dict(getattr(net, "config", {}))
        check_name(Path(name), config)
    else:
        folder = read_folder(as_path(source))
        scheduler = folder.scheduler if scheduler is None else scheduler
        name, config = folder.name, folder.config
        kind_of(name, config)
        with own_defaults():
            net = folder.network()
        config = dict(getattr(net, "config", config))
    schedule, spoken = _spoken(scheduler, convention)
    kind = Kind(by_place) if convention in CONVENTIONS and name not in KINDS else kind_of(name, config)
    shape = shape_of(config) if shape is None else shape
    network = ForeignNetwork(net, kind, spoken, **labels_of(kind, config, num_classes), embeddings=embeddings)
    check_direction(network, shape)
    return Plain(network, GaussianProcess(schedule))


def _spoken(scheduler: Any, convention: str | Convention) -> tuple[Schedule, Convention]:
    """The schedule and the convention."""
    named = CONVENTIONS.get(convention) if isinstance(convention, str) else convention
    if named is None and convention != "diffusers":
        raise ValueError(f"convention is diffusers, {', '.join(CONVENTIONS)}, or a Convention, got {convention!r}")
    if scheduler is None and named is None:
        raise ValueError("a network alone does not say its schedule: pass the scheduler that it was trained with")
    if scheduler is None:
        return RectifiedFlow(), named  # pyright: ignore[reportReturnType]
    if isinstance(scheduler, Mapping):
        config = dict(scheduler)
    else:
        config = {**scheduler.config, "_class_name": type(scheduler).__name__}
    schedule, read = read_scheduler(config)
    return schedule, read if named is None else named
