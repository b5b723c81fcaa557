"""Training batches as a function of the iteration: no state, nothing to save but the iteration.

Row r of iteration k has the global sample number n = k * batch_size + r. Its epoch is n // N; its image is number
n % N of that epoch's order, a permutation drawn from (seed, epoch); its augmentation is drawn from (seed, n). So a
resumed run sees the same batches, and `Prefetched` may make the next ones in a thread without keeping an order.

The trainer takes any `TrainingSet`: images, latents (latent_set.py), or a subclass of yours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.codecs.codec import Codec, CodecConfig, NoCodec
from dualrate.config.ranges import Range, Ranged
from dualrate.diffusion.context import Batch, Shape
from dualrate.diffusion.random import Draws


@dataclass(frozen=True)
class Augment(Ranged):
    """Random changes of training images."""

    flip: bool = False
    """Mirror left to right with probability 1/2."""
    translate: Annotated[int, Range(0, 4096)] = 0
    """Shift by up to this many pixels on each axis, uniformly; the border is reflected."""

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Change row i by row i of `draws`.

        images: (B, C, H, W) on the CPU
        Raises ValueError unless 0 <= translate < min(H, W).
        """
        height, width = images.shape[2:]
        if not 0 <= self.translate < min(height, width):
            raise ValueError(
                f"translate {self.translate}; expected 0 to {min(height, width) - 1} for {height} x {width}"
            )
        pixels = images.numpy()  # numpy copies bytes in a fifth of torch's time
        if most := self.translate:
            padded = np.pad(pixels, ((0, 0), (0, 0), (most, most), (most, most)), "reflect")
            windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (2, 3))
            down, right = (2 * most - draws.integer("translate", 2 * most + 1, 2)).numpy().T  # most: the image itself
            pixels = windows[np.arange(len(images)), :, down, right]
        if self.flip:
            pixels, rows = pixels.copy(), self.mirrors(draws).numpy()
            pixels[rows] = pixels[rows, ..., ::-1]
        return torch.from_numpy(pixels)

    def mirrors(self, draws: Draws) -> Tensor:
        """(B,) bool: which rows are mirrored."""
        return (draws.uniform("flip", 1)[:, 0] < 0.5) & self.flip


class TrainingSet(ABC):
    """Data as the trainer needs them. A resumed run compares the fingerprint.

    labels:   (N,) in [0, num_classes); None: without labels
    codec:    of latents; of images `NoCodec()`
    alphabet, frames_each: as of an `ImageSet`
    floats:   `rows` on a device -> x: (B, C, H, W) float32 there, of the same draws; it travels with batches
    make_conditions: (x, draws) -> conditions of x, or of its partners, on a device; None: none
    """

    floats: Callable[[Tensor, Draws], Tensor]
    make_conditions: Callable[[Tensor, Draws], Tensor] | None = None
    name: str
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    codec: CodecConfig = NoCodec()
    alphabet: str = ""
    frames_each: int = 1

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 without labels."""
        return len(self.class_names)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 (hex) of the content."""

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """(C, H, W) of what networks are trained on."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, index: NDArray[np.int64], draws: Draws, augment: Augment, /) -> Tensor:
        """Rows (B, ...) on the CPU that travel to the device for these images. draws: of their sample numbers.

        A function of its arguments alone, so that a batch is the same whenever it is made.
        """

    def partners(self, index: NDArray[np.int64], draws: Draws, augment: Augment, /) -> Tensor | None:
        """The partners of images in pairs, (B, c, h, w) uint8 on the CPU, changed as `rows` are; None without pairs."""
        return None


@dataclass(frozen=True)
class ByteBatch:
    """A training batch before it is on a device. Images are 8-bit pixels, a quarter of the bytes of a `Batch`.

    x: of the training set's `rows`, which `floats` makes floats; label, sample: as in `Batch`; seed: of the run
    make_conditions: of a conditional model: makes conditions of x as floats, or of the partners
    partners: as of a `TrainingSet`
    """

    x: Tensor
    label: Tensor | None
    sample: Tensor
    floats: Callable[[Tensor, Draws], Tensor]
    seed: int
    make_conditions: Callable[[Tensor, Draws], Tensor] | None = None
    partners: Tensor | None = None

    def pinned(self) -> ByteBatch:
        """The batch in pinned memory, from which a GPU copies by itself."""
        parts = {name: getattr(self, name) for name in ("x", "label", "sample", "partners")}
        return replace(self, **{name: part.pin_memory() for name, part in parts.items() if part is not None})

    def to(self, device: torch.device | str) -> Batch:
        """The batch as floats on a device. From pinned memory nothing waits for the copy."""
        x, sample = (part.to(device, non_blocking=True) for part in (self.x, self.sample))
        label = None if self.label is None else self.label.to(device, non_blocking=True)
        draws = Draws(self.seed, sample, self.sample)
        x = self.floats(x, draws)
        of = x if self.partners is None else self.partners.to(device, non_blocking=True)
        given = None if self.make_conditions is None else self.make_conditions(of, draws)
        return Batch(x, label, sample, here=self.sample, given=given)


class Batches:
    """All training batches of a run: `batch(k)` is the same however often, in whatever order, it is asked for.

    rows: numbers of the rows of every batch to make, ascending; None: all
    """

    def __init__(
        self, images: TrainingSet, batch_size: int, seed: int, augment: Augment = Augment(), rows: Tensor | None = None
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}; expected at least 1")
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.rows = torch.arange(batch_size) if rows is None else rows
        self._order = lru_cache(maxsize=2)(self._permutation)

    def batch(self, iteration: int) -> Batch:
        """Batch number `iteration`, on the CPU. Raises ValueError for a negative number."""
        return self.bytes(iteration).to("cpu")

    def bytes(self, iteration: int) -> ByteBatch:
        """Batch number `iteration` before it goes to a device. Raises as `batch`."""
        if iteration < 0:
            raise ValueError(f"iteration {iteration}; expected 0 or more")
        sample = self.rows + iteration * self.batch_size
        epoch, place = sample // len(self.images), sample % len(self.images)
        parts = [self._order(int(e))[place[epoch == e]] for e in epoch.unique()]
        index = torch.cat(parts).numpy()  # samples ascend, and so do epochs
        labels, draws = self.images.labels, Draws(self.seed, sample)
        return ByteBatch(
            x=self.images.rows(index, draws, self.augment),
            label=None if labels is None else torch.from_numpy(labels[index]),
            sample=sample,
            floats=self.images.floats,
            seed=self.seed,
            make_conditions=self.images.make_conditions,
            partners=self.images.partners(index, draws, self.augment),
        )

    def _permutation(self, epoch: int) -> Tensor:
        """(N,) int64: the epoch's order. From keyed draws: torch.randperm may change with the version of torch.

        It is `argsort(stable=True)` of the draws, in a quarter of the time: drawn in parts that stay in the caches, and
        sorted as whole numbers, each the 32 bits that were drawn above the 31 of its place.
        """
        place = torch.arange(len(self.images))
        drawn = [Draws(self.seed, part).uniform(f"order of epoch {epoch}", 1) for part in place.split(2**13)]
        keys = (torch.cat(drawn)[:, 0] * 2**32).long() << 31 | place
        return torch.from_numpy(np.sort(keys.numpy())) & (2**31 - 1)


AHEAD = 2  # batches: the next one is ready even if the one after it takes twice as long as usual


class Prefetched:
    """`batches` on a device, with the next ones made ahead by a thread; for a `with`, at whose end the thread is gone.

    ahead: how many, AHEAD if not given, none on a CPU, whose trainer needs the thread's time (docs/results/tried.md)
    On CUDA, 8-bit pixels travel from pinned memory and become floats there. An error in making a batch is raised by
    `batch` of that number, and by no other.
    """

    def __init__(self, batches: Batches, device: torch.device | str, ahead: int | None = None) -> None:
        self.batches, self.device = batches, torch.device(device)
        self.ahead = (0 if self.device.type == "cpu" else AHEAD) if ahead is None else ahead
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())  # a thread's own is the first
        self._executor = ThreadPoolExecutor(1, "batches", self._begin)
        self._begun: dict[int, Future[ByteBatch]] = {}

    def __enter__(self) -> Prefetched:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def batch(self, iteration: int) -> Batch:
        """Batch number `iteration`, on the device. Raises what making it raises."""
        if not self.ahead:
            return self.batches.batch(iteration).to(self.device)
        wanted = range(iteration, iteration + 1 + self.ahead)
        for number in self._begun.keys() - set(wanted):
            self._begun.pop(number).cancel()
        for number in wanted:
            if number not in self._begun:
                self._begun[number] = self._executor.submit(self._make, number)
        return self._begun.pop(iteration).result().to(self.device)

    def _begin(self) -> None:
        torch.set_num_threads(1)  # of this thread: more would be in the way of the trainer's
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def _make(self, iteration: int) -> ByteBatch:
        batch = self.batches.bytes(iteration)
        return batch.pinned() if self.device.type == "cuda" else batch


class Derived(TrainingSet):
    """A training set made from another: a subclass inherits what it does not override."""

    def __init__(self, images: TrainingSet) -> None:
        self.images, self.floats = images, images.floats
        self.name, self.labels, self.class_names = images.name, images.labels, images.class_names
        self.codec, self.alphabet, self.frames_each = images.codec, images.alphabet, images.frames_each

    @property
    def fingerprint(self) -> str:
        return self.images.fingerprint

    @property
    def shape(self) -> Shape:
        return self.images.shape

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, index: NDArray[np.int64], draws: Draws, augment: Augment, /) -> Tensor:
        return self.images.rows(index, draws, augment)


class Encoded(Derived):
    """The latents of another training set. An instant codec makes them on the device, batch by batch.

    codec: its configuration, where it is part of a run; built: the codec itself
    """

    def __init__(self, images: TrainingSet, codec: CodecConfig, built: Codec) -> None:
        super().__init__(images)
        self.codec, self.built, self.floats = codec, built, partial(_encoded, built, images.floats)

    @property
    def shape(self) -> Shape:
        return self.built.latent_shape(self.images.shape)


def _encoded(codec: Codec, floats: Callable[[Tensor, Draws], Tensor], rows: Tensor, draws: Draws) -> Tensor:
    return codec.encode(floats(rows, draws)).mean
