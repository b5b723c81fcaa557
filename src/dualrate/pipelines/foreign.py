"""Models of diffusers as ones of ours: denoisers (`from_diffusers`), and parts of runs (`adopted`).

A `ForeignConfig` builds the network again without its folder, as a part of a run.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import nn

from dualrate.config.ranges import Classes, Range, Ranged, as_path
from dualrate.denoisers.denoiser import Plain
from dualrate.diffusion.context import Shape
from dualrate.diffusion.prediction import REPA, SIT, Convention
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import RectifiedFlow, Schedule
from dualrate.networks.blocks import copied
from dualrate.pipelines.classes.catalogue import KINDS, kind_of
from dualrate.pipelines.classes.kind import NetworkSpec, PromptLayout, TextInputs, by_place
from dualrate.pipelines.folder import NETWORK, Folder, check_name, check_sizes, class_named, read_folder
from dualrate.pipelines.network import ForeignNetwork, check_direction, labels_of, shape_of
from dualrate.pipelines.prompts import check_whole, is_pipeline, negative_prompt, parts_of
from dualrate.pipelines.schedulers import NO_MEAN, read_scheduler
from dualrate.system.device import own_defaults
from dualrate.system.files import blaming

GUIDED = (
    "guidance was distilled into this {name}, so x_hat is of guided images: draw by DDIM, as its pipeline does; "
    + NO_MEAN
)
USUAL_SIDE = 128  # of latents of a text-to-image model whose configuration says none
OWN_CLASSES = "dualrate_num_classes"  # in a network's config.json, where its last label is the null class
OWN_TOKENS = "dualrate_tokens"  # there, where its prompts have other tokens than as many as its class has


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
    tokens: Annotated[int, Range(0, 100_000)] = 0
    """Of a prompt, where it takes prompts; 0: as many as its class has."""
    side: Annotated[int, Range(0, 100_000)] = 0
    """Of a state, where its configuration says none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        with blaming(f"{self.kind} of diffusers, as configured"):
            check_sizes(self._config)
            _ = self.shape, self.prompt.size

    @property
    def guided_already(self) -> bool:
        """Whether guidance was distilled into it."""
        return bool(self._config.get("guidance_embeds"))

    def build(self) -> ForeignNetwork:
        """A network with random weights. Raises ValueError for a configuration of no network, and without diffusers."""
        kind = class_named(self.kind)
        with blaming(f"{self.kind} of diffusers, as configured"):
            return self.around(kind.from_config(self._config))

    def around(self, net: nn.Module) -> ForeignNetwork:
        """Wrap such a network, which is built already."""
        labels = {"num_classes": self.num_classes, "null": self.null}
        return ForeignNetwork(net, self.spec, self.convention, **labels, prompt=self.prompt)

    @property
    def spec(self) -> NetworkSpec:
        """The specification of its class."""
        return kind_of(self.kind, self._config)

    @property
    def shape(self) -> Shape:
        """(C, H, W) of an image."""
        return shape_of(self.spec, self._config, self.side)

    @property
    def prompt(self) -> PromptLayout:
        """Its inputs for a text."""
        return layout_of(self.spec, self._config, self.tokens, self.side)

    @property
    def _config(self) -> dict[str, Any]:
        return json.loads(self.config)


def layout_of(kind: NetworkSpec, config: Mapping[str, Any], tokens: int = 0, shape: Shape | int = 0) -> PromptLayout:
    """A network's inputs for a text of so many tokens; 0: as many as its class has. shape: of a state, or its side"""
    if not kind.tokens:
        return PromptLayout()
    shape = shape_of(kind, config, shape) if isinstance(shape, int) else shape
    return PromptLayout(kind.prompt(config, tokens or kind.tokens, shape))


@dataclass(frozen=True)
class Adopted:
    """A folder's network, its schedule, and its weights' module."""

    network: ForeignConfig
    schedule: Schedule
    folder: Folder

    def weights(self) -> nn.Module:
        """The module, with its weights. Raises ValueError where its time runs another way than its scheduler says."""
        net = self.folder.network()
        with blaming(self.folder.place / NETWORK):
            check_direction(self.network.around(net), self.network.shape)
        return net


def adopted(path: Path, num_classes: int | None = None) -> Adopted:
    """Read a folder of diffusers for a run.

    num_classes: as of `from_diffusers`; None: as the network's config.json says by OWN_CLASSES, if it does
    Raises ValueError for a folder that `from_diffusers` refuses, and one without scheduler.
    """
    folder = read_folder(path)
    if folder.scheduler is None:
        raise ValueError(f"{path} has no scheduler, which says the schedule: name the pipeline's folder")
    with blaming(folder.place / NETWORK):
        kind = kind_of(folder.name, folder.config)
        settings = {name: value for name, value in folder.config.items() if not name.startswith("_")}
        config = {name: value for name, value in settings.items() if name not in (OWN_CLASSES, OWN_TOKENS)}
        side = USUAL_SIDE if kind.tokens and not config.get("sample_size") else 0
        grows = folder.scheduler.get("use_dynamic_shifting")
        schedule, convention = folder.schedule(image_tokens(kind, config, shape_of(kind, config, side)) if grows else 0)
        network = ForeignConfig(
            folder.name,
            json.dumps(config, sort_keys=True),
            convention,
            **labels_of(kind, config, settings.get(OWN_CLASSES) if num_classes is None else num_classes),
            source=str(path),
            fingerprint=folder.fingerprint,
            tokens=settings.get(OWN_TOKENS, 0),
            side=side,
        )
        return Adopted(network, schedule, folder)


CONVENTIONS: dict[str, Convention] = {"repa": REPA, "sit": SIT}


def from_diffusers(
    source: Any,
    scheduler: Any = None,
    *,
    convention: Literal["diffusers", "repa", "sit"] | Convention = "diffusers",
    num_classes: int | None = None,
    shape: Shape | None = None,
    negative: str | TextInputs | None = None,
    tokens: int = 0,
) -> Plain:
    """A denoiser around a trained network of diffusers: any sampler, plan, bound or meter of ours takes it.

    source:      a pipeline, a folder that `save_pretrained` wrote, of a pipeline or of a network, or the network
                 itself. Where `torch.compile` returned it, what was compiled is taken
    scheduler:   of diffusers, or its configuration; that of the folder if not given
    convention:  what the network takes for its time and predicts; "diffusers": as its scheduler says; "repa": r in
                 [0, 1] with noise at 1, eps - x; "sit": data at 1, x - eps. With the last two the scheduler only says
                 the shift, and a network of a class that is not known is called (state, time, label)
    num_classes: where not all labels of the network are classes, such as a UNet2DModel's whose last one is null; None:
                 as dualrate_num_classes in its folder's config.json says, if it is there
    shape:       (C, H, W) of an image, or of latents, where its configuration does not say, or another is drawn
    negative:    of a text-to-image model, the prompt that its null class stands for: a text that the pipeline encodes,
                 or what `prompts` takes; None: what the pipeline takes where it is given none. Without a pipeline that
                 has encoders there is no null class then
    tokens:      of a prompt; 0: as many as its folder's config.json says, or its class has
    A network that is passed stays as it is: the denoiser has a copy in evaluation mode, which shares its weights.
    What is done to that network later, but for its weights, such as a move to a device, the copy does not follow.
    `denoiser.process` has its schedule.
    Raises ValueError for classes and schedulers that are not known, for distilled models, and where the network's time
    runs another way than the convention says; or if diffusers is missing. Also for pipelines with code of their own,
    or with more networks, and for a network that is offloaded or quantised. Warns of an untrained network, and of one
    that guidance was distilled into.
    """
    pipeline, folder = source if is_pipeline(source) else None, None
    if pipeline is not None:
        source, scheduler = parts_of(pipeline, scheduler)
        if shape is None and not getattr(source, "config", {}).get("sample_size"):
            side = getattr(pipeline, "default_sample_size", 0) or 0
            side //= pipeline.vae_scale_factor if "default_sample_size" in pipeline.config else 1  # PRX: in pixels
            shape = shape_of(kind_of(type(source).__name__, source.config), source.config, side)
    if isinstance(source, nn.Module):
        whole: nn.Module = getattr(source, "_orig_mod", source)  # of torch.compile
        check_whole(whole)
        net = copied(whole, whole, bfloat16=False)
        name, config = type(net).__name__, dict(getattr(net, "config", {}))
        check_name(Path(name), config)
    else:
        folder = read_folder(as_path(source, "a pipeline, network or folder"))
        name, config, tokens = folder.name, folder.config, tokens or folder.config.get(OWN_TOKENS, 0)
        num_classes = config.get(OWN_CLASSES) if num_classes is None else num_classes
        with blaming(folder.place / NETWORK):
            kind_of(name, config)
        with own_defaults():
            net = folder.network()
        config = dict(getattr(net, "config", config))
    if isinstance(convention, str) and convention not in ("diffusers", *CONVENTIONS):
        raise ValueError(f"convention is diffusers, {', '.join(CONVENTIONS)}, or a Convention, got {convention!r}")
    with nullcontext() if folder is None else blaming(folder.place / NETWORK):
        kind = NetworkSpec(by_place) if convention in CONVENTIONS and name not in KINDS else kind_of(name, config)
        shape = shape_of(kind, config) if shape is None else shape
        labels, prompt = labels_of(kind, config, num_classes), layout_of(kind, config, tokens, shape)
        tokens_of_image = image_tokens(kind, config, shape)
    schedule, spoken = RectifiedFlow(), None
    if scheduler is None and folder is not None and folder.beside is not None:
        schedule, spoken = folder.schedule(tokens_of_image)
    elif scheduler is not None:
        named = {} if isinstance(scheduler, Mapping) else {"_class_name": type(scheduler).__name__}
        schedule, spoken = read_scheduler({**getattr(scheduler, "config", scheduler), **named}, tokens_of_image)
    if convention != "diffusers":
        spoken = CONVENTIONS[convention] if isinstance(convention, str) else convention
    if spoken is None:
        raise ValueError("a network alone does not say its schedule: pass the scheduler that it was trained with")
    empty = negative_prompt(kind, prompt, negative, pipeline)
    if config.get("guidance_embeds"):
        warnings.warn(GUIDED.format(name=name), stacklevel=2)
    if prompt.parts:
        labels["null"] = empty is not None
    empty = None if empty is None else empty.to(next(net.parameters()).device)
    network = ForeignNetwork(net, kind, spoken, **labels, prompt=prompt, empty=empty)
    with nullcontext() if folder is None else blaming(folder.place / NETWORK):
        check_direction(network, shape)
    return Plain(network, GaussianProcess(schedule))


def image_tokens(kind: NetworkSpec, config: Mapping[str, Any], shape: Shape) -> int:
    """The number of tokens of a state (C, H, W); 0 where its class has none."""
    patch = kind.patch(config)
    return (shape[1] // patch) * (shape[2] // patch) if patch else 0
