"""Folders as diffusers writes them: of a pipeline (model_index.json), or of a network alone (config.json).

Read is JSON, and weights are safetensors: no code of a folder is run, and no pickle is loaded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from dualrate.foreign.kinds import KINDS
from dualrate.foreign.schedulers import NO_MEAN
from dualrate.machine.files import check_files, read_json

INDEX, NETWORK, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
COMPONENTS, CODECS = ("transformer", "unet"), ("vae", "vqvae")
DISTILLED = {"schnell", "turbo", "lcm", "lightning", "sprint", "dmd", "distill", "distilled", "hyper", "tcd"}


@dataclass(frozen=True)
class Folder:
    """A network's folder, and what stands beside it.

    name, config: the network's class and configuration; scheduler: the scheduler's, None if there is none
    codec:        of the pipeline's VAE, None if it has none: then an image is of latents
    """

    place: Path
    name: str
    config: Mapping[str, Any]
    scheduler: Mapping[str, Any] | None
    codec: Path | None

    def network(self) -> nn.Module:
        """With its weights.

        Raises OSError where there are none in safetensors; ValueError where some lack, for a configuration that the
        class does not take, and without diffusers.
        """
        kind = network_class(self.name)
        from diffusers.utils.import_utils import is_accelerate_available

        how = {"low_cpu_mem_usage": is_accelerate_available()}  # without it diffusers asks for it at length
        try:
            net, info = kind.from_pretrained(self.place, use_safetensors=True, output_loading_info=True, **how)
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
    )


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
