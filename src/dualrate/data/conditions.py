"""Conditions: what a sample is made of, where it is a tensor y. Each says how y is made of an image x, and read.

    super-resolution:4   x at a quarter of its side, by PIL's antialiased bicubic resizing, in 8 bits
    inpainting:16        x without a square hole of 16 x 16 at a random place, and a plane that is 1 where x is known
    colour               x in grey (ITU-R 601 luma), in 8 bits
    pairs:SOURCE         the image of the same name in another source, of a size of its own
    a codec's latents    z_0 of x, with its noise (`Latent`): the model is a decoder
    prompts              of the captions of x, encoded beforehand (`pipelines.condition`)

What is random is drawn by keys, so a resumed run sees the same conditions, and so does every model that is measured:
held-out image i has the condition of seed i. A seed counts round the images.

The name by which pairs are found is the path in the source without the picture's ending; of Parquet files it is the
file and the row. So two folders make pairs, and so do two columns of the same files. The targets' split holds for both:
the partner of a held-out image is held out, whatever its own ending would say.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from statistics import median_low
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from dualrate.codecs.codec import Codec, CodecConfig, NoCodec, noisy_latents
from dualrate.config.ranges import Range, Ranged, Side, is_whole
from dualrate.config.serial import to_plain
from dualrate.data.cache import cache_dir
from dualrate.data.decode import Options, decode, scale_key, sides_of, sixteen_bit
from dualrate.data.images import ImageSet, Look, decoded_source, look_at, named_splits, to_bytes, to_float, to_uint8
from dualrate.data.loader import Augment, Derived, TrainingSet
from dualrate.data.source import SPLITS, Item, Raw, Source, Split, names_of, silent, without_ending
from dualrate.diffusion.context import Shape
from dualrate.diffusion.random import Draws
from dualrate.system.folders import some_of

MOST_SIDE = 256  # of the other images of pairs, unless the images themselves are larger
Make = Callable[[Tensor, Draws], Tensor]  # x (B, C, H, W) in [-1, 1], draws of its rows -> y (B, c, h, w)


class Condition(ABC):
    """A subclass is a frozen dataclass: it is part of the experiment, and of the run's identity.

    codec:    of latents; of any other condition none
    labelled: whether a sample has a class besides; of prompts class 0 says that its prompt counts
    """

    codec: CodecConfig = NoCodec()
    labelled = False

    @property
    def identity(self) -> dict[str, Any]:
        """The fields by which a run is identified, as a part of the run's identity."""
        return {"condition": to_plain(self)}

    @abstractmethod
    def shape(self, image: Shape) -> Shape:
        """(c, h, w) of y, of images (C, H, W). Raises ValueError for images that it cannot be made of."""

    @abstractmethod
    def build(self, device: torch.device | str) -> Make:
        """The function that makes y of x, on a device; of pairs, of the other image."""

    def fitted(self, targets: Look, image: Shape) -> Condition:
        """The same for images that were looked at, and become (C, H, W). Raises what a look at others raises."""
        return self

    def check(self, image: Shape, augment: Augment) -> None:  # noqa: B027  # most follow every change
        """Raises ValueError for changes of images (C, H, W) that the condition cannot follow."""

    def partners(self, targets: str, split: Split, *, label: str | None, on_bad: str) -> TrainingSet | None:
        """The other images of pairs, in the order of the targets; None: y is made of the images themselves.

        targets, label, on_bad: as in `load_images`. Raises what loading them raises.
        """
        return None

    def target(self, image: Shape) -> Shape:
        """(C, H, W) of a sample, of what one item of the data is."""
        return image

    def held_out(self, source: str) -> Given | None:
        """Held-out conditions that lie beside the data, so that no image is read for them; None: they are made of
        images."""
        return None

    def conditioned(self, targets: TrainingSet, partners: TrainingSet | None = None) -> Conditioned:
        """The set that networks are trained on, of one split of the data. partners: of the items, from `partners`"""
        return Conditioned(targets, self, partners)

    def keep(self, x: Tensor, y: Tensor) -> Tensor:
        """A sample (B, C, H, W) with what the condition knows of it put back: nothing, unless overridden."""
        return x

    def unknown(self, y: Tensor) -> Tensor | None:
        """(B, 1, H, W) bool: the pixels that conditions (B, c, h, w) do not show; None: all."""
        return None

    def accepted(self, y: Tensor) -> Tensor:
        """Conditions of one's own, (N, c, h, w), as networks take them. Raises ValueError for what cannot be one."""
        return y

    def check_pictured(self) -> None:  # noqa: B027  # most are of pictures
        """Raises ValueError where samples are no pictures."""

    def shown(self, x: Tensor) -> Tensor:
        """Samples (B, C, H, W) as pictures, in [-1, 1]: as they are, unless overridden."""
        return x

    def read(self, data: bytes, name: str, channels: int) -> Tensor:
        """y of a picture's file, (c, h, w) in [-1, 1], c = channels. Raises ValueError, for what is no such picture."""
        return to_float(decode(data, name, channels=channels))


@dataclass(frozen=True)
class Unconditional(Condition):
    """Samples are made of noise alone."""

    @property
    def identity(self) -> dict[str, Any]:
        return {}  # as before there were conditions

    def shape(self, image: Shape) -> Shape:
        raise ValueError("this model has no condition, nothing but noise")

    def build(self, device: torch.device | str) -> Make:
        raise ValueError("this model has no condition, nothing but noise")


class OfPicture(Condition):
    """A condition that is a picture, in [-1, 1]."""

    def accepted(self, y: Tensor) -> Tensor:
        low, high = y.aminmax()
        if not (y.is_floating_point() and low >= -1 and high <= 1):
            raise ValueError(
                f"conditions are numbers from -1 to 1, got {y.dtype} from {low:g} to {high:g}: of 8 bits take "
                "x / 127.5 - 1"
            )
        return y


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
class Pairs(OfPicture, Ranged):
    """The other image of a pair."""

    source: str
    """Where they are: a folder whose pictures have the names of --data.source, or FILE.parquet#COLUMN."""
    size: Side = 32
    """Side that they are brought to."""
    channels: Literal[1, 3] = 3
    """1 grey, 3 colours."""

    def shape(self, image: Shape) -> Shape:
        return self.channels, self.size, self.size

    def build(self, device: torch.device | str) -> Make:
        return lambda x, draws: x

    def fitted(self, targets: Look, image: Shape) -> Pairs:
        """Fits the size: as large beside x as they are beside the targets, by a power of 2, which all networks take."""
        sizes = look_at(self.source).shapes
        mine, target = (median_low(min(shape[1:]) for shape in shapes) for shapes in (sizes, targets.shapes))
        ratio, size = mine / target, image[1]
        while ratio >= 2**0.5 and 2 * size <= max(image[1], MOST_SIDE):
            ratio, size = ratio / 2, 2 * size
        while ratio < 0.5**0.5 and size % 2 == 0:
            ratio, size = ratio * 2, size // 2
        return replace(self, size=size, channels=1 if all(shape[0] == 1 for shape in sizes) else 3)

    def read(self, data: bytes, name: str, channels: int) -> Tensor:
        """Cropped and resized as in training."""
        return to_float(decode(data, name, size=self.size, channels=channels))

    def check(self, image: Shape, augment: Augment) -> None:
        if augment.translate and image[1:] != (self.size, self.size):
            raise ValueError(
                f"images of {image[1]} x {image[2]} and their partners of {self.size} x {self.size} cannot be shifted "
                "by the same pixels: drop --data.augment.translate"
            )

    def partners(self, targets: str, split: Split, *, label: str | None, on_bad: str) -> ImageSet:
        """Raises ValueError for names that one source lacks, or has twice, for partners of another aspect ratio than
        their targets, since both are cropped to squares, and what `load_images` raises."""
        if on_bad != "fail":
            raise ValueError("an image cannot be left out without its partner: drop --data.on-bad, repair the images")
        source = partner_source(self.source, targets, split, label)
        return decoded_source(source, split, Options(self.size, self.channels, on_bad), cache_dir(), silent)


def partner_source(source: str | Path, targets: str | Path, split: Split, label: str | None) -> Source:
    """The partners of the targets of a split, in their order. label: the column of labels of the targets

    Raises ValueError for a prepared source, and when read for names that one source lacks, or has twice, and for
    partners of another aspect ratio than their targets.
    """
    partner_splits, target_splits = named_splits(source, "pairs"), named_splits(targets, "pairs", label)

    def read() -> Raw:
        items = {part: split_source.read().items for part, split_source in partner_splits.items()}
        names = {part: without_ending(names_of(some)) for part, some in items.items()}
        aims = {part: split_source.read().items for part, split_source in target_splits.items()}
        wanted = {part: without_ending(names_of(some)) for part, some in aims.items()}
        _check_paired(names, wanted, source, targets)
        partners = items[split]
        if names[split] != wanted[split]:
            by_name: dict[str, Item] = {}
            for part in sorted(SPLITS, key=lambda part: part == split):  # a name of both splits is of this one
                by_name |= zip(names[part], items[part], strict=True)
            partners = [by_name[name] for name in wanted[split]]
        for (name, partner), (_, target) in zip(partners, aims[split], strict=True):
            _check_aspects(name, (sides_of(partner), source), (sides_of(target), targets))
        return Raw(partners, len(wanted[split]), None, ())  # pyright: ignore[reportArgumentType]  # a list is sliced, too

    sources = (*partner_splits.values(), *target_splits.values())
    files = dict.fromkeys(file for split_source in sources for file in split_source.files)
    return Source(f"{partner_splits[split].name} beside {target_splits[split].name}", tuple(files), read)


def _check_aspects(name: str, *pair: tuple[tuple[int, int] | None, str | Path]) -> None:
    """Raises ValueError for two aspect ratios, up to a pixel of rounding. pair: height and width, and the source"""
    (mine, source), (target, targets) = pair
    if mine is None or target is None:  # what is no image is refused where it is decoded
        return
    (height, width), (high, wide) = mine, target
    if abs(height * wide - width * high) > max(height, width, high, wide):
        raise ValueError(
            f"{name}: the pictures of a pair are {height} x {width} in {source} beside {high} x {wide} in {targets}: "
            "cropped to squares they would show different parts. Crop the two of a pair alike"
        )


def _check_paired(
    names: dict[str, list[str]], wanted: dict[str, list[str]], source: str | Path, targets: str | Path
) -> None:
    mine, other = (Counter(name for part in SPLITS for name in some[part]) for some in (names, wanted))
    for lacks, where, has, elsewhere in ((other - mine, source, other, targets), (mine - other, targets, mine, source)):
        if lacks:
            raise ValueError(
                f"{where} lacks {lacks.total()} of the {has.total()} images of {elsewhere}: {some_of(sorted(lacks))}. "
                "Give the two of a pair the same name, whatever their endings"
            )
    for some, where in ((names, source), (wanted, targets)):
        if twice := [name for part in SPLITS for name, count in Counter(some[part]).items() if count > 1]:
            raise ValueError(f"{where} has several images of one name, without its ending: {some_of(sorted(twice))}")


@dataclass(frozen=True)
class Latent(Condition):
    """z_0 of an image, which a decoder makes the image of."""

    codec: CodecConfig = NoCodec()
    """Where they are from; it does not train."""

    @property
    def identity(self) -> dict[str, Any]:
        return {"condition": {"type": "Latent", "codec": self.codec.fingerprint}}

    def shape(self, image: Shape) -> Shape:
        return self.codec.build(nn.ModuleDict(), "cpu").latent_shape(image)

    def build(self, device: torch.device | str) -> Make:
        codec = self.codec.build(nn.ModuleDict(), device)
        return torch.no_grad()(lambda x, draws: noisy_latents(codec, x, draws))

    def read(self, data: bytes, name: str, channels: int) -> Tensor:
        raise ValueError(f"{name}: a decoder takes latents, not pictures: decode them by dualrate data decode")


TASKS: dict[str, Callable[..., Condition]] = {
    "super-resolution": SuperResolution,
    "inpainting": Inpainting,
    "colour": Colour,
}


def task_named(text: str) -> Condition:
    """super-resolution:4, inpainting:16, colour, pairs:SOURCE.

    Without a number: the usual one. Raises ValueError for a name that is none, or a number it cannot have.
    """
    name, _, number = text.partition(":")
    if name == "pairs" and number:
        return Pairs(number)
    if name not in TASKS or (number and not is_whole(number)) or (number and name == "colour"):
        raise ValueError(f"a task is super-resolution:4, inpainting:16, colour or pairs:SOURCE, got {text!r}")
    return TASKS[name](*[int(number)] if number else [])


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


def read_conditions(files: Iterable[tuple[str, bytes]], condition: Condition, expected: Shape) -> Tensor:
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


KEPT = 2**28  # bytes of conditions, so that a drawing of them is timed without what makes them


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The conditions of some images, or windows of fields.

    of:    what they are made of: these images, or of pairs the others
    codec: of latents; of other conditions that of pixels
    """

    images: TrainingSet
    of: TrainingSet
    make: Make
    device: torch.device | str
    codec: Codec
    _kept: dict[tuple[int, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def digest(self) -> str:
        """sha256 of what they are made of."""
        return self.of.fingerprint

    def rows(self, seeds: Tensor) -> Tensor:
        """(B,) int64: the numbers of the images of these seeds, (B,)."""
        return seeds.cpu() % len(self.images)

    def originals(self, seeds: Tensor) -> NDArray[Any]:
        """(B, C, H, W): the images of these seeds, (B,), uint8; of fields what a sample should be, float32."""
        return self._of(self.images, seeds).numpy()

    def __call__(self, seeds: Tensor) -> Tensor:
        """y: (B, c, h, w) float32, on the device. seeds: (B,)."""
        key = tuple(seeds.tolist())
        if key not in self._kept:
            draws = Draws(0, seeds.to(self.device))
            y = self.make(self.of.floats(self._of(self.of, seeds).to(self.device), draws), draws)
            self._kept[key] = y
            for oldest in list(self._kept)[: -max(1, KEPT // y.nbytes)]:
                del self._kept[oldest]
        return self._kept[key]

    def _of(self, some: TrainingSet, seeds: Tensor) -> Tensor:
        return some.rows(self.rows(seeds).numpy(), Draws(0, seeds.cpu()), Augment())


class Rows(Protocol):
    """Rows that are only read, (N, c, h, w), by their numbers: in files, or made when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def sums(self) -> str:
        """A text that all of them follow from, such as their sha256."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: NDArray[np.int64], /) -> NDArray[Any] | Tensor: ...


class Lines(Protocol):
    """Texts by their numbers."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> str: ...


@dataclass(frozen=True, eq=False)
class Given:
    """Conditions of one's own. y: (N, c, h, w) numbers, rows in files, or made of texts; seed i has number i, round and
    round

    texts: (N,) that prompts were made of, where they are known; files: (N,) that pictures were read of, if they were
    """

    y: Tensor | Rows
    texts: Lines | None = None
    files: tuple[str, ...] = ()

    def __call__(self, seeds: Tensor) -> Tensor:
        """(B, c, h, w), on the device of the seeds, (B,)."""
        return torch.as_tensor(self.y[seeds.cpu().numpy() % len(self.y)]).to(seeds.device).float()

    def texts_of(self, seeds: Iterable[int]) -> list[str] | None:
        """Texts of these seeds; None: not known."""
        return None if self.texts is None else [self.texts[seed % len(self.y)] for seed in seeds]

    @cached_property
    def digest(self) -> str:
        """sha256 of all of them."""
        content = self.y.detach().cpu().numpy().tobytes() if isinstance(self.y, Tensor) else self.y.sums.encode()
        return hashlib.sha256(repr(tuple(self.y.shape)).encode() + content).hexdigest()


class Conditioned(Derived):
    """Images with the conditions of each, made on the device as images come.

    partner_images: of pairs the other images, in the same order. Raises ValueError for another number of them.
    """

    def __init__(self, images: TrainingSet, condition: Condition, partners: TrainingSet | None = None) -> None:
        if partners is not None and len(partners) != len(images):
            raise ValueError(f"{images.name} has {len(images)} images, {partners.name} {len(partners)}: expected pairs")
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
