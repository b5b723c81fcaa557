"""Models of diffusers: as denoisers (`from_diffusers`), and read from folders for runs (`adopted`).

A folder is that of a pipeline (model_index.json) or of a network alone (config.json). Only JSON and safetensors are
read: no code of a folder is run, and no pickle is loaded. A `ForeignConfig` builds the network again without its
folder, as a part of a run.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from torch import nn

from dualrate.config.ranges import Classes, Range, Ranged, as_path
from dualrate.denoisers.denoiser import Plain
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.prediction import REPA, SIT, Convention
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import RectifiedFlow, Schedule
from dualrate.diffusion.values import Shape
from dualrate.networks.blocks import copied
from dualrate.pipelines.classes.catalogue import KINDS, kind_of
from dualrate.pipelines.classes.kind import NetworkSpec, PromptLayout, TextInputs, by_place
from dualrate.pipelines.network import ForeignNetwork, check_direction, labels_of, shape_of
from dualrate.pipelines.prompts import COMPONENTS, check_whole, is_pipeline, negative_prompt, parts_of
from dualrate.pipelines.schedulers import NO_MEAN, own_times, read_scheduler
from dualrate.system.device import own_defaults
from dualrate.system.files import blaming, check_files, check_fractions, read_json, shown
from dualrate.system.folders import some_of

INDEX, NETWORK, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
CODECS = ("vae", "vqvae")
WEIGHTS = "diffusion_pytorch_model"
VARIANT = re.compile(rf"{WEIGHTS}(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")
PICKLES = (".bin", ".ckpt", ".pt")
PRECISIONS = {"fp16", "bf16", "fp32"}  # of variants that are read, in float32, where they are the only weights
READ = (*COMPONENTS, *CODECS, "text_encoder", "tokenizer", "scheduler")  # parts of a pipeline, as their names begin
KNOWN = ("diffusers", "transformers", None)  # libraries of these
EXPORT = "dualrate.pipelines.export"  # reads those that dualrate exported
LORA = re.compile(r"\.base_layer\.|\.lora_[AB]\.")  # in a weight's name
FUSE = "make it a part of them before (pipe.fuse_lora(), then pipe.unload_lora_weights()), and save again"
DISTILLED = {"schnell", "turbo", "lcm", "lightning", "sprint", "dmd", "distill", "distilled", "hyper", "tcd"}


@dataclass(frozen=True)
class Folder:
    """A network's folder, and what stands beside it.

    name, config: the network's class and configuration
    scheduler:    the scheduler's configuration, None if there is none; beside: its file
    codec:        of the pipeline's VAE, None if it has none: then an image is of latents
    class_names:  as of `class_names_of`
    """

    place: Path
    name: str
    config: Mapping[str, Any]
    scheduler: Mapping[str, Any] | None
    codec: Path | None
    class_names: tuple[str, ...] = ()
    beside: Path | None = None

    def network(self) -> nn.Module:
        """The network with its weights. Raises what `class_named` and `read_weights` raise."""
        return read_weights(class_named(self.name), self.place)

    def schedule(self, tokens: int) -> tuple[Schedule, Convention]:
        """As of `read_scheduler`; there is a scheduler."""
        assert self.scheduler is not None
        assert self.beside is not None
        with blaming(self.beside):
            return read_scheduler(self.scheduler, tokens)

    @property
    def fingerprint(self) -> str:
        """sha256 of the configuration and the weights' files."""
        digest = hashlib.sha256()
        for path in (self.place / NETWORK, *sorted(self.place.glob("*.safetensors"))):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def read_weights(kind: Any, place: Path) -> nn.Module:
    """A model of a class of diffusers, with the weights of its folder.

    Raises OSError where there are none in safetensors, as `_variant`; ValueError where some lack, or are whole numbers,
    and for a configuration that the class does not take. Warns of weights that the class does not have.
    """
    from diffusers.utils.import_utils import is_accelerate_available

    name = kind.__name__
    variant = _variant(place, name)
    check_fractions(place)
    with blaming(place / NETWORK):
        net, info = kind.from_pretrained(
            place,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=is_accelerate_available(),  # without it diffusers asks for it at length
            output_loading_info=True,
        )
    if any(LORA.search(key) for key in info["unexpected_keys"]):
        raise ValueError(f"{place} was saved with a LoRA beside its weights: {FUSE}")
    if wrong := [key for keys in ("missing_keys", "mismatched_keys") for key in info[keys]]:
        raise ValueError(f"{place} lacks weights of its {name}, {min(wrong)} the first of {len(wrong)}: fetch it again")
    if more := info["unexpected_keys"]:
        warnings.warn(
            f"{place} has weights that a {name} of its {NETWORK} does not have, {min(more)} the first of {len(more)}: "
            "they are left out. If they belong to it, its configuration is another's",
            stacklevel=2,
        )
    return cast(nn.Module, net)


def _variant(place: Path, name: str) -> str | None:
    """The variant of a folder's weights to read: None for the plain ones; else the only one, if it says a precision.

    Raises OSError, which lists what is there and says what to do, where there are neither.
    """
    names = sorted(file.name for file in place.glob("*") if file.suffix in (".safetensors", *PICKLES))
    variants = {match[1] for file_name in names if (match := VARIANT.fullmatch(file_name))}
    if None in variants:
        return None
    if len(variants) == 1 and variants <= PRECISIONS:
        return variants.pop()
    way = "fetch it"
    if names:
        how = f"variant={min(variants)!r}" if variants else "use_safetensors=False"
        way = f"write it by diffusers.{name}.from_pretrained({str(place)!r}, {how}).save_pretrained(FOLDER)"
        way += "" if variants else ", if you trust its origin: a pickle can run any code, and is never read here"
    raise OSError(f"{place} has no {WEIGHTS}.safetensors, it has {some_of(names) or 'no weights'}: {way}")


def is_diffusers(path: Path) -> bool:
    """Whether a folder looks like one of theirs."""
    return (path / INDEX).is_file() or (path / NETWORK).is_file()


def read_folder(path: Path) -> Folder:
    """Raises ValueError for a folder that is none of theirs, or of a distilled model; OSError if it cannot be read."""
    if not is_diffusers(path):
        raise ValueError(f"{path} is no folder of diffusers: it has neither {INDEX} nor {NETWORK}")
    index = settings_in(path / INDEX) if (path / INDEX).is_file() else {}
    check_own(path, index)
    role = next((role for role in COMPONENTS if index.get(role)), None)
    if index and role is None:
        raise ValueError(f"{path} has no {' or '.join(COMPONENTS)}; its {INDEX} lists {', '.join(index)}")
    place = path / role if role and (path / role).is_dir() else path  # of old pipelines the pipeline's own
    check_files(place)  # their library would wait for a pipe
    config = settings_in(place / NETWORK)
    beside = next((file for file in (path / "scheduler" / SCHEDULER, path / SCHEDULER) if file.is_file()), None)
    check_name(path, config)
    check_config(place, config)
    codec = next((role for role in CODECS if index.get(role)), None)
    return Folder(
        place,
        str(config.get("_class_name")),
        config,
        None if beside is None else settings_in(beside),
        path / codec if codec else None,
        class_names_of(index.get("id2label")),
        beside,
    )


def check_own(path: Path, index: Mapping[str, Any]) -> None:
    """Raises ValueError for a pipeline with code of its own, by its model_index.json, in a part that is read."""
    read = {name: part for name, part in index.items() if name.startswith(READ) and isinstance(part, list)}
    if any(str(part[0]).startswith("dualrate.") for part in read.values() if part):
        raise ValueError(
            f"{path} is a pipeline that dualrate exported: DualRatePipeline.from_pretrained({str(path)!r}) of {EXPORT} "
            "reads it, or name the run that it was made of"
        )
    foreign = [f"its {name} is of {shown(part[0], 60)}" for name, part in read.items() if part and part[0] not in KNOWN]
    if isinstance(index.get("_class_name"), list):
        foreign.append("its class is in a file of the folder")
    if foreign:
        raise ValueError(
            f"the pipeline in {path} has code of its own ({foreign[0]}), which may do anything and is never run: pass "
            "its network and scheduler in Python (dualrate.from_diffusers), or take a pipeline of diffusers' own"
        )


def check_config(place: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError for a model in a folder that is quantised, or larger than any."""
    with blaming(place / NETWORK):
        check_sizes(config)
    if config.get("quantization_config"):
        raise ValueError(
            f"the model in {place} is quantised: take one in float32, float16 or bfloat16, or load it so "
            "(torch_dtype=torch.bfloat16, without quantization_config), and save that"
        )


LARGEST, LAYERS = 10_000_000, 1000  # numbers in a configuration, and those of layers or blocks


def check_sizes(config: Mapping[str, Any]) -> None:
    """Raises ValueError for numbers with which another library would build a network for ever."""
    for name, value in config.items():
        most = LAYERS if re.search("layer|block|depth", name) and "channel" not in name else LARGEST
        if any(abs(number) > most for number in _whole_numbers(value)):
            raise ValueError(f"its {name} is {shown(value, 60)}, expected at most {most:,}")


def _whole_numbers(value: object) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _whole_numbers(item)


def class_names_of(labels: object) -> tuple[str, ...]:
    """The classes' names, by number, of a pipeline's `id2label`: {"0": name, "1": name, ...}; none if it is no such."""
    by_number: Mapping[str, object] = labels if isinstance(labels, dict) else {}
    names = [name for number in range(len(by_number)) if isinstance(name := by_number.get(str(number)), str)]
    return tuple(names) if len(names) == len(by_number) else ()


def settings_in(path: Path) -> dict[str, Any]:
    """Reads a file of settings. Raises ValueError, naming it, for anything but a JSON object."""
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings: expected a JSON object, got {shown(settings, 60)}")
    return settings


def check_name(path: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError where a name says that a model is distilled. path: it is from; config: of its network."""
    names = []
    for place in (path.resolve(), Path(str(config.get("_name_or_path") or ""))):
        place = place.parent if place.name in COMPONENTS else place
        names.append((place.parents[1] if place.parent.name == "snapshots" else place).name)  # in the Hub's cache
    if words := DISTILLED & set(re.split(r"[^a-z]+", " ".join(names).lower())):
        names = ", ".join(sorted(words))
        raise ValueError(f"{path} is a distilled model, by its name ({names}): {NO_MEAN}. If it is none, rename it")


def class_named(name: str, classes: Collection[str] = KINDS) -> Any:
    """The class of diffusers. Raises ValueError for one that is not known, and without diffusers."""
    if name not in classes:
        raise ValueError(f"no {shown(name, 60)} is known; known are {', '.join(classes)}")
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(f"{name} is of diffusers, which is not here: pip install 'dualrate[diffusers]'") from error
    return getattr(diffusers, name)


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
        return _adopted(path, folder, num_classes)


def _adopted(path: Path, folder: Folder, num_classes: int | None) -> Adopted:
    kind = kind_of(folder.name, folder.config)
    settings = {name: value for name, value in folder.config.items() if not name.startswith("_")}
    config = {name: value for name, value in settings.items() if name not in (OWN_CLASSES, OWN_TOKENS)}
    side = USUAL_SIDE if kind.tokens and not config.get("sample_size") else 0
    grows = (folder.scheduler or {}).get("use_dynamic_shifting")
    tokens_of_image = image_tokens(kind, config, shape_of(kind, config, side)) if grows else 0
    schedule, convention = folder.schedule(tokens_of_image)
    num_classes = settings.get(OWN_CLASSES) if num_classes is None else num_classes
    network = ForeignConfig(
        folder.name,
        json.dumps(config, sort_keys=True),
        convention,
        **labels_of(kind, config, num_classes),
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
            side = getattr(pipeline, "default_sample_size", 0)
            shape = shape_of(kind_of(type(source).__name__, source.config), source.config, side)
    if isinstance(source, nn.Module):
        whole: nn.Module = getattr(source, "_orig_mod", source)  # of torch.compile
        check_whole(whole)
        net = copied(whole, whole, bfloat16=False)
        name, config = type(net).__name__, dict(getattr(net, "config", {}))
        check_name(Path(name), config)
    else:
        folder = read_folder(as_path(source))
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
        is_config = isinstance(scheduler, Mapping)
        named = scheduler if is_config else {**scheduler.config, "_class_name": type(scheduler).__name__}
        schedule, spoken = read_scheduler(named, tokens_of_image)
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


def scheduler_plan(denoiser: Plain, scheduler: Any, steps: int, shape: Shape, heavy: int | None = None) -> StepPlan:
    """The plan of a scheduler's own N steps for states (C, H, W), as the network's pipeline has them.

    denoiser: of `from_diffusers`; heavy: as of `StepPlan.uniform`
    Its first time may lie before 1: `sampling.trajectory.rollout` takes it. A scheduler that calls the network several
    times at a noise level has one step there.
    """
    network: Any = denoiser.network
    tokens = image_tokens(network.kind, network.net.config, shape)
    times = own_times(scheduler, denoiser.process.schedule, steps, tokens, even=network.kind.even)
    return StepPlan.spread(times, heavy)
