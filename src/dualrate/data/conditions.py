"""Conditions: what a sample is made of, where it is a tensor y. Each says how y is made of an image x, and read.

    super-resolution:4   x at a quarter of its side, by PIL's antialiased bicubic resizing, in 8 bits
    inpainting:16        x without a square hole of 16 x 16 at a random place, and a plane that is 1 where x is known
    colour               x in grey (ITU-R 601 luma), in 8 bits
    pairs:SOURCE         the image of the same name in another source, of a size of its own (pairs.py)
    a codec's latents    z_0 of x, with its noise (`Latent`): the model is a decoder
    prompts              of the captions of x, encoded beforehand (`pipelines.condition`)

What is random is drawn by keys, so a resumed run sees the same conditions, and so does every model that is measured:
held-out image i has the condition of seed i. A seed counts round the images.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from dualrate.codecs.codec import CodecConfig, CodecFolder, NoCodec, noisy_latents
from dualrate.config.ranges import Range, Ranged
from dualrate.config.serial import to_plain
from dualrate.data.condition_rows import Given, Make
from dualrate.data.decode import decode, scale_key, sixteen_bit
from dualrate.data.images import Look, to_bytes, to_float, to_uint8
from dualrate.data.loader import Augment, Derived, TrainingSet
from dualrate.data.source import Split, silent
from dualrate.diffusion.context import Shape
from dualrate.diffusion.random import Draws


class Conditioning(ABC):
    """Ingredients of samples, as far as every run asks for them.

    A subclass is a frozen dataclass: it is part of the experiment, and of the run's identity.
    codec:       of latents; of any other condition none
    labelled:    whether a sample has a class besides; of prompts class 0 says that its prompt counts
    no_pictures: why the condition is not given as a picture, in words that the model's name begins
    """

    codec: CodecConfig = NoCodec()
    labelled = False
    no_pictures = "takes no pictures as conditions: pass them as an array"

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """The fields by which a run is identified, as a part of the run's identity."""

    def target(self, image: Shape) -> Shape:
        """(C, H, W) of a sample, of what one item of the data is."""
        return image

    def items(self, data: Any, split: Split, progress: Callable[[int, int, str], None] = silent) -> TrainingSet | None:
        """One split of a `DataConfig`, where the condition says how it is read; None: as the data say themselves."""
        return None

    def around(self, denoiser: Any) -> Any:
        """A `Denoiser` that keeps to what the condition knows of all samples: the same, unless overridden."""
        return denoiser

    def with_codec(self, folder: str | None, sampler: str | None, steps: int | None) -> Conditioning | None:
        """The same condition, whose codec is read from another folder, or decodes otherwise; None: it has no codec."""
        return None

    def weighed(self, x: Tensor, power: float = 0.5) -> Tensor:
        """Samples or errors, times the weights of their numbers in a loss to some power: all 1, unless overridden."""
        return x


@dataclass(frozen=True)
class Unconditional(Conditioning):
    """Samples are made of noise alone."""

    no_pictures = "makes images of noise alone: drop the conditions"

    @property
    def identity(self) -> dict[str, Any]:
        return {}  # as before there were conditions


class Condition(Conditioning):
    """A tensor y, which is made of what the data hold."""

    @property
    def identity(self) -> dict[str, Any]:
        return {"condition": to_plain(self)}

    @abstractmethod
    def shape(self, image: Shape) -> Shape:
        """(c, h, w) of y, of images (C, H, W). Raises ValueError for images that it cannot be made of."""

    @abstractmethod
    def build(self, device: torch.device | str) -> Make:
        """The function that makes y of x, on a device; of pairs, of the other image."""

    def check(self, image: Shape, augment: Augment) -> None:  # most follow every change
        """Raises ValueError for changes of images (C, H, W) that the condition cannot follow."""

    def partners(self, targets: str, split: Split, *, label: str | None, on_bad: str) -> TrainingSet | None:
        """The other images of pairs, in the order of the targets; None: y is made of the images themselves.

        targets, label, on_bad: as in `load_images`. Raises what loading them raises.
        """
        return None

    def held_out(self, source: str) -> Given | None:
        """Held-out conditions that lie beside the data, so that no image is read for them; None: they are made of
        images."""
        return None

    def conditioned(self, targets: TrainingSet, partners: TrainingSet | None = None) -> Conditioned:
        """The set that networks are trained on, of one split of the data. partners: of the items, from `partners`"""
        return Conditioned(targets, self, partners)

    def accepted(self, y: Tensor) -> Tensor:
        """Conditions of one's own, (N, c, h, w), as networks take them. Raises ValueError for what cannot be one."""
        return y


class OfPicture(Condition):
    """A condition that is a picture, in [-1, 1]."""

    def fitted(self, targets: Look, image: Shape) -> OfPicture:
        """The same for images that were looked at, and become (C, H, W). Raises what a look at others raises."""
        return self

    def read(self, data: bytes, name: str, channels: int) -> Tensor:
        """y of a picture's file, (c, h, w), c = channels. Raises ValueError for what is no such picture."""
        return to_float(decode(data, name, channels=channels))

    def accepted(self, y: Tensor) -> Tensor:
        low, high = y.aminmax()
        if not (y.is_floating_point() and low >= -1 and high <= 1):
            raise ValueError(
                f"conditions are numbers from -1 to 1, got {y.dtype} from {low:g} to {high:g}: of 8 bits take "
                "x / 127.5 - 1"
            )
        return y

    def keep(self, x: Tensor, y: Tensor) -> Tensor:
        """A sample (B, C, H, W) with what the condition knows of it put back: nothing, unless overridden."""
        return x

    def unknown(self, y: Tensor) -> Tensor | None:
        """(B, 1, H, W) bool: the pixels that conditions (B, c, h, w) do not show; None: all."""
        return None


@dataclass(frozen=True)
class SuperResolution(OfPicture, Ranged):
    """A smaller image, which is made larger."""

    factor: Annotated[int, Range(2, 64)] = 4

    def shape(self, image: Shape) -> Shape:
        channels, height, width = image
        if height % self.factor or width % self.factor:
            raise ValueError(f"images of {height} x {width} are not divisible by {self.factor}: give another factor")
        return channels, height // self.factor, width // self.factor

    def build(self, device: torch.device | str) -> Make:
        return lambda x, draws: smaller(x, self.factor)


@dataclass(frozen=True)
class Inpainting(OfPicture, Ranged):
    """An image with a hole."""

    hole: Annotated[int, Range(1, 4096)] = 16
    """Side of the square that is missing, in pixels."""

    def shape(self, image: Shape) -> Shape:
        channels, height, width = image
        if self.hole >= min(height, width):
            raise ValueError(f"a hole of side {self.hole} covers images of {height} x {width}: make it smaller")
        return channels + 1, height, width

    def build(self, device: torch.device | str) -> Make:
        return lambda x, draws: masked(x, hole_mask(draws, self.hole, x.shape[2], x.shape[3]))

    def keep(self, x: Tensor, y: Tensor) -> Tensor:
        image, mask = y[:, :-1], y[:, -1:]
        return image * mask + x * (1 - mask)

    def unknown(self, y: Tensor) -> Tensor:
        return y[:, -1:] == 0

    def accepted(self, y: Tensor) -> Tensor:
        """Conditions without what is below the hole."""
        image, mask = super().accepted(y)[:, :-1], y[:, -1:]
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("the last channel of a condition is its mask: 0 in the hole, 1 elsewhere")
        return masked(image, mask)

    def read(self, data: bytes, name: str, channels: int) -> Tensor:
        """The hole is where the picture is transparent."""
        decode(data, name)  # refuses what is no picture, or too large
        with Image.open(io.BytesIO(data)) as opened:
            if sixteen_bit(opened):
                raise ValueError(f"{name} has grey values of 16 bits: save it with 8, and with an alpha channel")
            scale_key(opened, data)
            picture = ImageOps.exif_transpose(opened).convert("RGBA")
        alpha = torch.tensor(np.asarray(picture.getchannel("A")))
        if (alpha >= 128).all():
            raise ValueError(f"{name} has no mask: make the pixels of the hole transparent, and save it as PNG")
        image = np.asarray(picture.convert("RGB" if channels == 4 else "L"))
        image = image.reshape(*alpha.shape, -1).transpose(2, 0, 1)
        return masked(to_float(image)[None], (alpha >= 128).float()[None, None])[0]


@dataclass(frozen=True)
class Colour(OfPicture):
    """A grey image, which gets its colours."""

    def shape(self, image: Shape) -> Shape:
        if image[0] != 3:
            raise ValueError(
                "the images are grey and have no colours to learn: name coloured ones, or drop --data.channels 1"
            )
        return 1, *image[1:]

    def build(self, device: torch.device | str) -> Make:
        return lambda x, draws: grey(x)


@dataclass(frozen=True)
class Latent(Condition):
    """z_0 of an image, which a decoder makes the image of."""

    codec: CodecConfig = NoCodec()
    """Where they are from; it does not train."""

    no_pictures = "is a decoder, which takes latents, not pictures: pass them as an array"

    @property
    def identity(self) -> dict[str, Any]:
        return {"condition": {"type": "Latent", "codec": self.codec.fingerprint}}

    def with_codec(self, folder: str | None, sampler: str | None, steps: int | None) -> Latent:
        if sampler is not None or steps is not None:
            raise ValueError("this is a decoder, which draws by --sampler and --steps: drop the codec's")
        return Latent(CodecFolder(str(folder), self.codec.fingerprint))

    def shape(self, image: Shape) -> Shape:
        return self.codec.build(nn.ModuleDict(), "cpu").latent_shape(image)

    def build(self, device: torch.device | str) -> Make:
        codec = self.codec.build(nn.ModuleDict(), device)
        return torch.no_grad()(lambda x, draws: noisy_latents(codec, x, draws))


def smaller(x: Tensor, factor: int) -> Tensor:
    """(B, C, H, W) at 1 / factor of its sides, as PIL's antialiased bicubic resizing: two passes, each to 8 bits."""
    half = torch.full((), 127.5, device=x.device)  # as in `to_float`
    levels = torch.add(half, x, alpha=127.5)
    for size in ((x.shape[2], x.shape[3] // factor), (x.shape[2] // factor, x.shape[3] // factor)):
        levels = F.interpolate(levels, size, mode="bicubic", antialias=True, align_corners=False).round().clamp(0, 255)
    return levels / half - 1


def grey(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), as PIL's "L", in 8 bits."""
    red, green, blue = to_bytes(x).int().split(1, 1)
    luma = (19595 * red + 38470 * green + 7471 * blue) + 2**15 >> 16
    return to_float(luma.to(torch.uint8))


def hole_mask(draws: Draws, hole: int, height: int, width: int) -> Tensor:
    """(B, 1, H, W): 0 in a square of side `hole`, whose place is uniform, 1 elsewhere."""
    place = draws.host.uniform("hole", 2).to(draws.row.device, non_blocking=True)
    inside = []
    for axis, side in enumerate((height, width)):
        first = (place[:, axis] * (side - hole + 1)).long()[:, None]
        pixel = torch.arange(side, device=place.device)
        inside.append((pixel >= first) & (pixel < first + hole))
    return 1 - (inside[0][:, :, None] & inside[1][:, None]).float()[:, None]


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """(B, C + 1, H, W): x, 0 where it is not known, and the mask, 1 where it is."""
    return torch.cat((x * mask, mask), 1)


def picture_of(y: Tensor, image: Shape) -> NDArray[np.uint8] | None:
    """(B, C, H, W): conditions as pictures of the images' shape; None of latents and prompts."""
    channels, height, width = image
    fits = height % y.shape[2] == 0 or y.shape[2] % height == 0
    fits = fits and y.shape[2] * width == y.shape[3] * height
    if y.shape[1] not in (1, 3, channels, channels + 1) or not fits:
        return None
    y = y.float()
    if (y.shape[1], channels) == (3, 1):
        y = grey(y)
    shown = y[:, :channels] if y.shape[1] >= channels else y.expand(-1, channels, -1, -1)
    return to_uint8(F.interpolate(shown, (height, width))).cpu().numpy()


def read_conditions(files: Iterable[tuple[str, bytes]], condition: OfPicture, expected: Shape) -> Tensor:
    """(N, c, h, w) of pictures. Raises ValueError, with both shapes, for one of another shape than the model takes."""
    conditions = []
    for name, data in files:
        y = condition.read(data, name, expected[0])
        if tuple(y.shape) != expected:
            raise ValueError(
                f"{name} makes a condition of {tuple(y.shape)} (C, H, W), this model takes {expected}: crop and "
                "resize it to that"
            )
        conditions.append(y)
    return torch.stack(conditions)


class Conditioned(Derived):
    """Images with the conditions of each, made on the device as images come.

    partner_images: of pairs the other images, in the same order. Raises ValueError for another number of them.
    """

    def __init__(self, images: TrainingSet, condition: Condition, partners: TrainingSet | None = None) -> None:
        if partners is not None and len(partners) != len(images):
            raise ValueError(f"{len(images)} of {images.name} and {len(partners)} of {partners.name}: expected pairs")
        super().__init__(images)
        self.partner_images, self.make_conditions = partners, self._conditions
        self._build = cache(condition.build)

    @property
    def fingerprint(self) -> str:
        fingerprints = [images.fingerprint for images in (self.images, self.partner_images) if images is not None]
        return fingerprints[0] if len(fingerprints) == 1 else hashlib.sha256("".join(fingerprints).encode()).hexdigest()

    def partners(self, index: NDArray[np.int64], draws: Draws, augment: Augment, /) -> Tensor | None:
        return None if self.partner_images is None else self.partner_images.rows(index, draws, augment)

    def _conditions(self, x: Tensor, draws: Draws) -> Tensor:
        """y of x, or of its partner in 8 bits, (B, C, H, W) on a device. draws: of the rows' sample numbers"""
        return self._build(x.device)(x if x.is_floating_point() else to_float(x), draws)
