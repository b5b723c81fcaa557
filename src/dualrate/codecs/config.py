"""Which codec a run is on, as a frozen dataclass, which is a part of the run's identity; and codecs read from folders.

A codec that does not train is none of a run's weights: it stays in its folder, and the run holds its fingerprint. One
that trains is a subclass of `CodecConfig` whose codec calls the run's own networks; the folder of such a run is a codec
for others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from dualrate.codecs.codec import Codec, Pixels
from dualrate.config.imports import imported
from dualrate.config.ranges import Ranged, Steps, as_path
from dualrate.config.serial import to_plain
from dualrate.diffusion.categorical import CategoricalProcess
from dualrate.diffusion.process import Process
from dualrate.diffusion.values import Shape
from dualrate.system.files import ABSENT, holders, read_json

CONFIG = "config.json"
RUN = "experiment.json"
OF_RUNS = "dualrate.runs.store:codec_of"  # by name: runs are built on codecs
OF_DIFFUSERS = "dualrate.integrations.codecs:read_autoencoder"  # by name: the core does without that library


class CodecConfig(ABC):
    """How a run's networks see images. A subclass is a frozen dataclass.

    fingerprint: of a codec that does not train, whose latents the run is trained on; empty: it is trained on images
    instant:     whether its latents are made of images as they come, batch by batch: it learns nothing, costs nothing
    alphabet:    the characters of texts, whose pieces its data are, each by its place there; empty: they are pictures
    """

    fingerprint = ""
    instant = False
    alphabet: Any = ""  # Any: so that a class may have it as a field

    @property
    def identity(self) -> dict[str, Any]:
        """What a run is by it, wherever it is, as a part of the run's identity."""
        return {"codec": to_plain(self)}

    def data_shape(self, latent: Shape) -> Shape:
        """(C, H, W) of what a run is trained on whose networks see `latent`: that, unless the codec trains too."""
        return latent

    def check(self, process: Process, shape: Shape) -> None:
        """Raises ValueError for a process, or states of (C, H, W), that its latents are none of."""
        if isinstance(process, CategoricalProcess):
            raise ValueError(f"{process} is of tokens, which {type(self).__name__} makes none: set a codec of tokens")

    def under(self, sampler: str | None, steps: int | None) -> CodecConfig:
        """With a decoder that draws in another way; None: as it does.

        Raises ValueError for a codec without a decoder that draws, here or in `build`.
        """
        if sampler is not None or steps is not None:
            raise ValueError(f"{type(self).__name__} has no decoder that takes steps: drop its sampler and its steps")
        return self

    @abstractmethod
    def build(self, networks: nn.ModuleDict, device: torch.device | str) -> Codec:
        """The codec, on a device. networks: of the run, for a codec that is trained with them."""


@dataclass(frozen=True)
class NoCodec(CodecConfig):
    """The networks see pixels."""

    @property
    def identity(self) -> dict[str, Any]:
        return {}  # as before there were codecs

    def build(self, networks: nn.ModuleDict, device: torch.device | str) -> Codec:
        return Pixels()


@dataclass(frozen=True)
class CodecFolder(CodecConfig, Ranged):
    """A codec that does not train, as it was saved."""

    folder: str
    """Where it is, such as the vae of a diffusers pipeline."""
    fingerprint: str
    """Its sha256; a folder that holds another one is refused, but for a decoder of its latents."""
    sampler: str | None = None
    """Of a diffusion decoder; None: its own, as it was trained, or that of `experiment.as_codec`."""
    steps: Steps | None = None
    """Of a diffusion decoder; None: as for the sampler."""

    @property
    def identity(self) -> dict[str, Any]:
        return {"codec": self.fingerprint}

    @staticmethod
    def at(folder: str | Path, device: torch.device | str = "cpu") -> CodecFolder:
        """The codec that is there now. Raises as `read_codec`."""
        return CodecFolder(str(as_path(folder).resolve()), read_codec(folder, device).latents)

    def under(self, sampler: str | None, steps: int | None) -> CodecFolder:
        return replace(self, sampler=sampler or self.sampler, steps=steps or self.steps)

    def build(self, networks: nn.ModuleDict, device: torch.device | str) -> Codec:
        return self.read(device)

    def read(self, device: torch.device | str) -> Codec:
        """The codec. Raises ValueError where the folder holds another one, and what `read_codec` raises."""
        codec = read_codec(self.folder, device, self.sampler, self.steps)
        if codec.latents != self.fingerprint:
            raise ValueError(
                f"the codec in {self.folder} is another one (sha256 {codec.latents[:12]}, expected "
                f"{self.fingerprint[:12]}): name the one that the latents were made by, or encode the images anew"
            )
        return codec


@dataclass(frozen=True)
class HeldCodec(CodecConfig):
    """A codec that is there already, such as that of a pipeline: for models that are not written as runs."""

    codec: Codec

    @property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.codec.latents

    def build(self, networks: nn.ModuleDict, device: torch.device | str) -> Codec:
        return self.codec


def read_codec(
    folder: str | Path, device: torch.device | str = "cpu", sampler: str | None = None, steps: int | None = None
) -> Codec:
    """The codec that was saved in a folder, or that of a run which trained its own; read once in a process.

    sampler, steps: of a diffusion decoder, in place of its own
    Raises ValueError for a folder that holds none that is known, and for a sampler or steps of one whose decoder does
    not draw; OSError where it cannot be read.
    """
    path = as_path(folder).resolve()
    return _read(path, _state(path), str(device), sampler, steps)


@lru_cache(maxsize=1)
def _read(path: Path, state: tuple[Any, ...], device: str, sampler: str | None, steps: int | None) -> Codec:
    """state: by which a folder is seen to have changed"""
    if (path / RUN).is_file():
        return cast(Callable[..., Codec], imported(OF_RUNS))(path, device, sampler, steps)
    _check_class(path)
    if sampler is not None or steps is not None:
        raise ValueError(f"{path} holds an autoencoder, which decodes at once: drop the sampler and the steps")
    return cast(Callable[[Path, str], Codec], imported(OF_DIFFUSERS))(path, device)


def _check_class(path: Path) -> None:
    """Raises ValueError for a folder without a class of diffusers, OSError where it cannot be read."""
    try:
        config = read_json(path / CONFIG)
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        others = [path / "vae"] if (path / "vae" / CONFIG).is_file() else holders(path, RUN)
        there = f": give its {' or '.join(map(str, others))}" if others else ""
        moved = "" if there else "; if it was moved, name its new place (--codec)"
        raise ValueError(f"{path} holds no codec, which would have a {CONFIG}{there}{moved}") from error
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise ValueError(f"{path / CONFIG} names no class (_class_name) of diffusers: no codec is known there")


def _state(path: Path) -> tuple[Any, ...]:
    files = sorted(path.iterdir()) if path.is_dir() else []
    return tuple((file.name, stat.st_size, stat.st_ctime_ns) for file in files for stat in [file.stat()])
