"""A codec encodes images to latents, on which networks are trained, and decodes latents to images.

    x = (z_raw - mean) / std   per channel: networks and processes see the normalised latents x

A codec normalises its latents itself: no other part knows a scaling factor. An encoder gives a Gaussian for every
element (`Moments`), without spread if it is deterministic. A decoder may draw random numbers. They are keyed by the
image's seed (`Draws`), as a sampler's are, so a diffusion decoder is a codec like any other.

A decoder of noisy latents takes z_0 = alpha x + sigma eps, at its log-SNR (`log_snr`). The encoder gives the x of
processes; a process whose trajectories end in z_0 (`NoisyEnd`) draws what the decoder takes.

A codec that does not train stays in its folder, and the run holds its fingerprint (`CodecFolder`). One that trains is a
subclass of `CodecConfig` whose codec calls the run's own networks; the folder of such a run is a codec for others.
Networks on pixels have the codec `Pixels`, which does nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from dualrate.config.imports import imported
from dualrate.config.ranges import Ranged, Steps, as_path
from dualrate.config.serial import to_plain
from dualrate.diffusion.categorical import CategoricalProcess
from dualrate.diffusion.context import Shape
from dualrate.diffusion.process import Process
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import alpha, sigma
from dualrate.sampling.cost import macs_of
from dualrate.system.device import pick_device, whole_products
from dualrate.system.files import ABSENT, holders, read_json

AT_ONCE = 2**21  # pixels of images that go through a codec together: 8 of 512 x 512, 32 of 256 x 256


@dataclass(frozen=True)
class Moments:
    """A Gaussian for every element of some latents, normalised.

    mean, log_var: (B, C, H, W); log_var None: no spread
    """

    mean: Tensor
    log_var: Tensor | None = None

    def sample(self, eps: Tensor) -> Tensor:
        """mean + e^(log_var / 2) eps, in float32. eps: as `mean`, standard normal; unused where there is no spread."""
        if self.log_var is None:
            return self.mean.float()
        return self.mean.float() + (self.log_var.float() / 2).exp() * eps

    def stacked(self) -> Tensor:
        """(B, M, C, H, W): the mean, and log_var where there is one."""
        return torch.stack([self.mean] if self.log_var is None else [self.mean, self.log_var], 1)

    @staticmethod
    def of(stacked: Tensor) -> Moments:
        """Moments from the tensor of `stacked`."""
        return Moments(stacked[:, 0], stacked[:, 1] if stacked.shape[1] > 1 else None)


class Codec(Protocol):
    """A map between images, (B, C, H, W) in [-1, 1], and their latents, without gradient. It works in float32."""

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that its latents and images depend on: weights, rule of normalisation, settings.

        Empty: images are their own latents.
        """
        ...

    @property
    def latents(self) -> str:
        """sha256 of what its latents depend on: the fingerprint, unless its decoder is not the one that belongs to it.

        Models of its latents know it by this.
        """
        ...

    @property
    def device(self) -> torch.device:
        """The device that it works on."""
        ...

    @property
    def log_snr(self) -> float | None:
        """Log-SNR of the latents that `decode` takes; None: they have no noise."""
        ...

    def latent_shape(self, image: Shape) -> Shape:
        """(C, H, W) of the latent of an image of that shape. Raises ValueError for images that it cannot encode."""
        ...

    def image_shape(self, latent: Shape) -> Shape:
        """(C, H, W) of the image of a latent of that shape. Raises ValueError for latents that it cannot decode."""
        ...

    def encode(self, images: Tensor) -> Moments:
        """Normalised moments of the latents of some images."""
        ...

    def decode(self, x: Tensor, draws: Draws) -> Tensor:
        """Images of normalised latents, nominally in [-1, 1]: of z_0 where it takes them with noise.

        draws: of their seeds, for a decoder that draws
        """
        ...


@dataclass(frozen=True)
class Pixels:
    """Images are their own latents."""

    fingerprint: str = ""
    latents: str = ""
    device: torch.device = torch.device("cpu")
    log_snr = None  # no annotation: no field

    def latent_shape(self, image: Shape) -> Shape:
        return image

    def image_shape(self, latent: Shape) -> Shape:
        return latent

    def encode(self, images: Tensor) -> Moments:
        return Moments(images)

    def decode(self, x: Tensor, draws: Draws) -> Tensor:
        return x


ON_PIXELS = Pixels()


def in_parts(call: Callable[[slice, Draws], Tensor], image: Shape, draws: Draws) -> Tensor:
    """Results of `call` on some rows at a time, which bounds the memory: `AT_ONCE` pixels of images."""
    size = max(1, AT_ONCE // (image[1] * image[2]))
    parts = [slice(first, first + size) for first in range(0, len(draws.row), size)]
    with whole_products():
        return torch.cat([call(part, Draws(draws.seed, draws.row[part])) for part in parts])


def decoded(codec: Codec, x: Tensor, draws: Draws) -> Tensor:
    """`Codec.decode`, some rows at a time."""
    image = codec.image_shape((x.shape[1], x.shape[2], x.shape[3]))
    return in_parts(lambda part, rows: codec.decode(x[part], rows), image, draws)


def with_noise(codec: Codec, x: Tensor, draws: Draws) -> Tensor:
    """Latents as `Codec.encode` gives them, (B, C, H, W) -> as `Codec.decode` takes them."""
    if codec.log_snr is None:
        return x
    log_snr = torch.tensor(codec.log_snr)
    return alpha(log_snr) * x + sigma(log_snr) * draws.normal("z_0", *x.shape[1:])


def noisy_latents(codec: Codec, images: Tensor, draws: Draws) -> Tensor:
    """z_0 of images (B, C, H, W) in [-1, 1], drawn anew for every row of `draws`: what a decoder is given of them."""

    def encoded(part: slice, rows: Draws) -> Tensor:
        moments = codec.encode(images[part])
        return with_noise(codec, moments.sample(rows.normal("latent", *moments.mean.shape[1:])), rows)

    return in_parts(encoded, (images.shape[1], images.shape[2], images.shape[3]), draws)


def round_trip(codec: Codec, images: Tensor, draws: Draws) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] encoded, by the mean of each, and decoded."""
    with whole_products():
        encoded = codec.encode(images).mean
    return decoded(codec, with_noise(codec, encoded, draws), draws)


def decode_macs(codec: Codec, latent: Shape) -> int:
    """Multiply-adds of one image's decoding, counted."""
    x, row = torch.zeros(1, *latent, device=codec.device), torch.zeros(1, dtype=torch.int64, device=codec.device)
    return macs_of(lambda: codec.decode(x, Draws(0, row)))


CONFIG = "config.json"
RUN = "experiment.json"
OF_RUNS = "dualrate.runs.store:codec_of"  # by name: runs are built on codecs
OF_DIFFUSERS = "dualrate.pipelines.autoencoder:read_autoencoder"  # by name: the core does without that library


class CodecConfig(ABC):
    """The choice of how a run's networks see images. A subclass is a frozen dataclass.

    fingerprint: of a codec that does not train, whose latents the run is trained on; empty: it is trained on images
    instant:     whether its latents are made of images as they come, batch by batch: it learns nothing, costs nothing
    alphabet:    the characters of texts, whose pieces its data are, each by its place there; empty: they are pictures
    """

    fingerprint = ""
    instant = False
    alphabet: Any = ""  # Any: so that a class may have it as a field

    @property
    def identity(self) -> dict[str, Any]:
        """The codec's part of a run's identity, the same wherever the codec is stored."""
        return {"codec": to_plain(self)}

    def data_shape(self, latent: Shape) -> Shape:
        """(C, H, W) of what a run is trained on whose networks see `latent`: that, unless the codec trains too."""
        return latent

    def check(self, process: Process, shape: Shape) -> None:
        """Raises ValueError for a process, or states of (C, H, W), that its latents are none of."""
        if isinstance(process, CategoricalProcess):
            raise ValueError(f"{process} is of tokens, which {type(self).__name__} makes none: set a codec of tokens")

    def under(self, sampler: str | None, steps: int | None) -> CodecConfig:
        """This codec with another sampler or number of steps of its decoder; None: unchanged.

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
    """Folder of the codec, such as the vae of a diffusers pipeline."""
    fingerprint: str
    """sha256 of the codec. A folder with another codec is refused, unless that is a decoder of the same latents."""
    sampler: str | None = None
    """Of a diffusion decoder; None: its own, as it was trained, or that of `experiment.as_codec`."""
    steps: Steps | None = None
    """Of a diffusion decoder; None: as for the sampler."""

    @property
    def identity(self) -> dict[str, Any]:
        return {"codec": self.fingerprint}

    @staticmethod
    def at(folder: str | Path, device: torch.device | str | None = None) -> CodecFolder:
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


def read_codec(
    folder: str | Path, device: torch.device | str | None = None, sampler: str | None = None, steps: int | None = None
) -> Codec:
    """The codec that was saved in a folder, or that of a run which trained its own; read once in a process.

    device: as of `pick_device`; sampler, steps: of a diffusion decoder, in place of its own
    Raises ValueError for a folder that holds none that is known, and for a sampler or steps of one whose decoder does
    not draw; OSError where it cannot be read.
    """
    path = as_path(folder).resolve()
    files = sorted(path.iterdir()) if path.is_dir() else []
    state = tuple((file.name, stat.st_size, stat.st_ctime_ns) for file in files for stat in [file.stat()])
    return _read(path, state, str(pick_device(device)), sampler, steps)


@lru_cache(maxsize=1)
def _read(path: Path, state: tuple[Any, ...], device: str, sampler: str | None, steps: int | None) -> Codec:
    """As `read_codec`. state: of the folder's files, so that a changed folder is read anew."""
    if (path / RUN).is_file():
        return cast(Callable[..., Codec], imported(OF_RUNS))(path, device, sampler, steps)
    try:
        config = read_json(path / CONFIG)
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        candidates = [path / "vae"] if (path / "vae" / CONFIG).is_file() else holders(path, RUN)
        remedy = f"give its {' or '.join(map(str, candidates))}" if candidates else "name its new place (--codec)"
        raise ValueError(f"{path} holds no codec, which would have a {CONFIG}: {remedy}") from error
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise ValueError(f"{path / CONFIG} names no class (_class_name) of diffusers: no codec is known there")
    if sampler is not None or steps is not None:
        raise ValueError(f"{path} holds an autoencoder, which decodes at once: drop the sampler and the steps")
    return cast(Callable[[Path, str], Codec], imported(OF_DIFFUSERS))(path, device)
