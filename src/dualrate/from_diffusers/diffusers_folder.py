"""Folders as diffusers writes them, of a pipeline (model_index.json) or of a network alone (config.json).

Read is JSON, and weights are safetensors: no code of a folder is run, and no pickle is loaded. A `ForeignConfig` builds
the network again without its folder, as a part of a run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from dualrate.config.ranges import Classes, Ranged
from dualrate.diffusion.schedule import Schedule
from dualrate.diffusion.values import Shape
from dualrate.from_diffusers.foreign_network import ForeignNetwork, check_direction, labels_of, shape_of
from dualrate.from_diffusers.kinds import KINDS, kind_of
from dualrate.from_diffusers.schedulers import NO_MEAN, Convention, read_scheduler
from dualrate.system.files import check_files, read_json
from dualrate.system.folders import some_of

INDEX, NETWORK, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
COMPONENTS, CODECS = ("transformer", "unet"), ("vae", "vqvae")
WEIGHTS = "diffusion_pytorch_model"
VARIANT = re.compile(rf"{WEIGHTS}\.(\w+)(?:-\d+-of-\d+)?\.safetensors")
PICKLES = (".bin", ".ckpt", ".pt")
PRECISIONS = ("fp16", "bf16", "fp32")  # of variants that are read, in float32, where they are the only weights
DISTILLED = {"schnell", "turbo", "lcm", "lightning", "sprint", "dmd", "distill", "distilled", "hyper", "tcd"}


@dataclass(frozen=True)
class Folder:
    """A network's folder, and what stands beside it.

    name, config: the network's class and configuration; scheduler: the scheduler's, None if there is none
    codec:        of the pipeline's VAE, None if it has none: then an image is of latents
    class_names:  as of `names_of`
    """

    place: Path
    name: str
    config: Mapping[str, Any]
    scheduler: Mapping[str, Any] | None
    codec: Path | None
    class_names: tuple[str, ...] = ()

    def network(self) -> nn.Module:
        """With its weights.

        Raises OSError where there are none in safetensors, as `variant_of`; ValueError where some lack, for a
        configuration that the class does not take, and without diffusers.
        """
        kind = network_class(self.name)
        from diffusers.utils.import_utils import is_accelerate_available

        try:
            net, info = kind.from_pretrained(
                self.place,
                variant=variant_of(self.place, self.name),
                use_safetensors=True,
                low_cpu_mem_usage=is_accelerate_available(),  # without it diffusers asks for it at length
                output_loading_info=True,
            )
        except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
            raise ValueError(f"{self.place / NETWORK} is no {self.name} that diffusers can build: {error}") from error
        if missing := info["missing_keys"]:
            raise ValueError(
                f"{self.place} lacks weights of its {self.name}, {min(missing)} the first of {len(missing)}: fetch it "
                "again"
            )
        return cast(nn.Module, net)

    @property
    def fingerprint(self) -> str:
        """sha256 of the configuration and the weights' files."""
        digest = hashlib.sha256()
        for path in (self.place / NETWORK, *sorted(self.place.glob("*.safetensors"))):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def variant_of(place: Path, name: str) -> str | None:
    """Which weights of a network's folder are read: None for the plain ones; else the only variant, if it says a
    precision. name: the network's class.

    Raises OSError, which lists what is there and says what to do, where there are neither.
    """
    names = sorted(file.name for file in place.glob("*") if file.suffix in (".safetensors", *PICKLES))
    if any(re.fullmatch(rf"{WEIGHTS}(-\d+-of-\d+)?\.safetensors", found) for found in names):
        return None
    variants = sorted({match[1] for found in names if (match := VARIANT.fullmatch(found))})
    if len(variants) == 1 and variants[0] in PRECISIONS:
        return variants[0]
    way = "fetch it"
    if variants or any(found.endswith(PICKLES) for found in names):
        how = f"variant={variants[0]!r}" if variants else "use_safetensors=False"
        trust = "" if variants else "a pickle, which can run any code, is never read: if you trust its origin, "
        way = f"{trust}write it by diffusers.{name}.from_pretrained({str(place)!r}, {how}).save_pretrained(FOLDER)"
    raise OSError(f"{place} has no {WEIGHTS}.safetensors, it has {some_of(names) or 'no weights'}: {way}")


def is_diffusers(path: Path) -> bool:
    """Whether a folder looks like one of theirs."""
    return (path / INDEX).is_file() or (path / NETWORK).is_file()


def read_folder(path: Path) -> Folder:
    """Raises ValueError for a folder that is none of theirs, or of a distilled model; OSError if it cannot be read."""
    if not is_diffusers(path):
        raise ValueError(f"{path} is no folder of diffusers: it has neither {INDEX} nor {NETWORK}")
    index = _object(path / INDEX) if (path / INDEX).is_file() else {}
    role = next((role for role in COMPONENTS if index.get(role)), None)
    if index and role is None:
        raise ValueError(f"{path} has no {' or '.join(COMPONENTS)}; its {INDEX} lists {', '.join(index)}")
    place = _component(path, role) if role else path
    check_files(place)  # their library would wait for a pipe
    config = _object(place / NETWORK)
    beside = _component(path, "scheduler") / SCHEDULER
    check_name(path, config)
    codec = next((role for role in CODECS if index.get(role)), None)
    return Folder(
        place,
        str(config.get("_class_name")),
        config,
        _object(beside) if beside.is_file() else None,
        path / codec if codec else None,
        names_of(index.get("id2label")),
    )


def names_of(labels: object) -> tuple[str, ...]:
    """The classes' names, by number, of a pipeline's `id2label`: {"0": name, "1": name, ...}; none if it is no such."""
    by_number: Mapping[str, object] = labels if isinstance(labels, dict) else {}
    found = [name for number in range(len(by_number)) if isinstance(name := by_number.get(str(number)), str)]
    return tuple(found) if len(found) == len(by_number) else ()


def _object(path: Path) -> dict[str, Any]:
    """What a file of settings holds. Raises ValueError, naming it, for anything but a JSON object."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no settings: expected a JSON object, got {str(found)[:60]}")
    return found


def _component(path: Path, role: str) -> Path:
    """A component's folder; in old pipelines the pipeline's own."""
    return path / role if (path / role).is_dir() else path


def check_name(path: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError where a name says that a model is distilled. path: it is from; config: of its network."""
    names = " ".join(_name(Path(place)) for place in (path.resolve(), str(config.get("_name_or_path") or "")))
    if found := DISTILLED & set(re.split(r"[^a-z]+", names.lower())):
        raise ValueError(
            f"{path} is a distilled model, by its name ({', '.join(sorted(found))}): {NO_MEAN}. If the name says "
            "something else, rename the folder"
        )


def _name(place: Path) -> str:
    """Of a pipeline, for a component's folder too; of its repository, for one in the Hub's cache."""
    place = place.parent if place.name in COMPONENTS else place
    return (place.parents[1] if place.parent.name == "snapshots" else place).name


def network_class(name: str) -> Any:
    """The class of this name. Raises ValueError for one that is not known, and without diffusers."""
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(f"{name} is of diffusers, which is not here: pip install 'dualrate[diffusers]'") from error
    if name not in KINDS:
        raise ValueError(f"no {name} is known; known are {', '.join(KINDS)}")
    return getattr(diffusers, name)


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
