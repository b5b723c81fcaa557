"""Networks whose features a Frechet distance is measured in, and the small ones that are trained here.

A `FeatureNet` is a small classifier of a data set's own labels, or, of images without labels, of the quarter turns by
which they were turned (Gidaris, Singh, Komodakis, arXiv 1803.07728); its penultimate layer gives the features. Of clips
without labels it also tells those whose frames are out of order, so that its features see motion.
Inception's features are made for photographs of 299 x 299; on small images a classifier of the same data set sees more.
Distances in its features are called FD-<name>, never FID: they compare only with distances in the same weights
(`identity`). Features are computed on the CPU in float32 from uint8 images, so a score depends on no accelerator.

An architecture is a dataclass that builds its network, and a feature net's file names its class. The three
architectures share little, so one of them may see what another overlooks. A new one is a subclass here.

Training a feature net takes minutes on a CPU, once per data set.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualrate.config.ranges import Channels, Classes, Iterations, Probability, Ranged, Seed, Side
from dualrate.data.images import ImageSet, to_float
from dualrate.data.loader import Augment, Batches
from dualrate.metrics.trained_network import NetworkCard, Pixels, TrainedNetwork, fit_module, weight_bytes
from dualrate.system.progress import Reporter


class FeatureExtractor(Protocol):
    """A fixed network. Distances compare only within one `identity`.

    identity:    "<name>:<first 12 hex digits of the weights' sha256>", for fingerprints
    metric:      what a distance in its features is called: "FD-<name>", and "FID" in Inception's alone
    dim:         D, features of an image
    usual_count: images that scores are usually of; a score of fewer carries a note
    """

    @property
    def identity(self) -> str: ...

    @property
    def metric(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def usual_count(self) -> int: ...

    def features(self, images: Any) -> Tensor:
        """(N, D) float32 on the CPU, of images (N, C, H, W) uint8. Raises ValueError for images it does not take."""
        ...


# Architectures


class Classifier(nn.Module, ABC):
    """A network whose penultimate layer is the features; classify: of features (B, D), to logits."""

    classify: nn.Module

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """(B, D) of x: (B, C, H, W) in [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_classes) logits."""
        return self.classify(self.features(x))


class Pyramid(Classifier):
    """A strided stem and stages of convolutions; what every stage holds, averaged over space, gives the features.

    They pool every resolution, so that they tell classes apart and still react to blur and noise.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        widths = [min(arch.features, 160 >> (arch.halvings - i)) for i in range(arch.halvings + 1)]
        self.stem = _convolution(arch.channels, widths[0], kernel=5, stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *([_convolution(before, before, kernel=3, stride=2)] if i else []),
                _convolution(before, after, kernel=3, stride=1),
            )
            for i, (before, after) in enumerate(pairwise(widths))
        )
        self.project = nn.Linear(sum(widths[1:]), arch.features)
        self.classify = nn.Linear(arch.features, arch.num_classes)

    def features(self, x: Tensor) -> Tensor:
        x, pooled = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            pooled.append(x.mean((2, 3)))
        return F.silu(self.project(torch.cat(pooled, dim=1)))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.SiLU())


class Stack(Classifier):
    """Pairs of convolutions between maxima of 2 x 2 pixels; the features see where in the image something is.

    They are taken before their rectifier, and are signed.
    """

    def __init__(self, arch: Stacked) -> None:
        super().__init__()
        widths = [24 + 20 * i for i in range(arch.halvings + 1)]
        layers: list[nn.Module] = [*_rectified(arch.channels, widths[0])]
        for before, after in pairwise(widths):
            layers += [nn.MaxPool2d(2), *_rectified(before, after), *_rectified(after, after)]
        self.body = nn.Sequential(*layers)
        self.project = nn.Linear(widths[-1] * (arch.size >> arch.halvings) ** 2, arch.features)
        self.classify = nn.Sequential(nn.ReLU(), nn.Linear(arch.features, arch.num_classes))

    def features(self, x: Tensor) -> Tensor:
        return self.project(self.body(x).flatten(1))


def _rectified(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


class Mixer(Classifier):
    """Patches as tokens; blocks that mix tokens, then channels; the mean token gives the features."""

    def __init__(self, arch: Mixed, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        tokens = (arch.size // arch.patch) ** 2
        self.embed = nn.Conv2d(arch.channels, width, arch.patch, stride=arch.patch)
        self.blocks = nn.ModuleList(_MixerBlock(tokens, width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, arch.features)
        self.classify = nn.Linear(arch.features, arch.num_classes)

    def features(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).mT  # (B, tokens, width)
        for block in self.blocks:
            x = block(x)
        return F.gelu(self.project(self.norm(x).mean(1)))


class _MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.token_norm, self.tokens = nn.LayerNorm(width), _perceptron(tokens, width)
        self.channel_norm, self.channels = nn.LayerNorm(width), _perceptron(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.token_norm(x).mT).mT
        return x + self.channels(self.channel_norm(x))


def _perceptron(width: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


@dataclass(frozen=True)
class Architecture(Ranged):
    """channels and size of the images, number of classes, D features. This class itself builds a `Pyramid`."""

    channels: Channels
    size: Side
    num_classes: Classes
    features: Channels = 96
    learning_rate: ClassVar[float] = 0.004  # the highest, of training
    network: ClassVar[Callable[..., Classifier]] = Pyramid

    @property
    def halvings(self) -> int:
        """The number of halvings that make the resolution about 4 x 4."""
        return max(1, round(math.log2(self.size / 3.5)))

    def build(self) -> Classifier:
        """The network, with weights from the global random state."""
        return type(self).network(self)


@dataclass(frozen=True)
class Stacked(Architecture):
    """A `Stack`: 3 x 3 convolutions, maxima and rectifiers (Simonyan and Zisserman, arXiv 1409.1556)."""

    features: Channels = 64
    learning_rate: ClassVar[float] = 0.003
    network: ClassVar[Callable[..., Classifier]] = Stack


@dataclass(frozen=True)
class Mixed(Architecture):
    """A `Mixer`: perceptrons over patches, no convolution (Tolstikhin et al., arXiv 2105.01601)."""

    features: Channels = 64
    learning_rate: ClassVar[float] = 0.003
    network: ClassVar[Callable[..., Classifier]] = Mixer

    @property
    def patch(self) -> int:
        """Pixels of a patch's side: the largest divisor of the image's that leaves 6 patches in a row, or 1."""
        return max(side for side in range(1, self.size + 1) if self.size % side == 0 and side <= max(1, self.size // 6))


# The feature net

NAME = "features"
WEIGHTS, CARD = f"{NAME}.safetensors", f"{NAME}.json"
BATCH_SIZE = 256
EPOCHS, ITERATIONS = 10, 100  # of a training, at least: ten epochs of a few hundred images teach little
MAX_SHIFT = 1  # pixel, each way: the only augmentation
TURNS = 4  # quarter turns, the classes of images without labels
ROUGH = 0.5  # accuracy below which a score says that it is rough
ORDERED = 3  # frames that a clip has at least whose order is told, too


@dataclass(frozen=True)
class Card(NetworkCard):
    """Facts about a feature net, and where it comes from.

    data:     sha256 of the training images
    accuracy: on the test images, the mean of its classes' accuracies, in [0, 1], of which chance is 1 / classes; None
              without a test set
    seed, epochs: of the training
    classes:  that have training images; None: all of the architecture's
    task:     what it tells apart: labels, or the quarter turns of images without labels; of clips also whether their
              frames are in order
    """

    architecture: Architecture
    data: str
    accuracy: Probability | None
    seed: Seed
    epochs: Iterations
    classes: Classes | None = None
    task: Literal["classes", "turns", "order"] = "classes"

    @property
    def chance(self) -> float:
        """The accuracy of a guess."""
        return 1 / (self.classes or self.architecture.num_classes)

    @property
    def judgement(self) -> str:
        """A word on the classifier's accuracy; empty if that is not known."""
        if self.accuracy is None:
            return ""
        what = f"the classifier of {self.name} has accuracy {self.accuracy:.3g} on held-out images"
        what += {"turns": ", of how they are turned", "order": ", of how they are turned and in order"}.get(
            self.task, ""
        )
        rough = "; under 0.5, so distances in its features are rough" * (self.accuracy < ROUGH)
        return f"{what}, a guess {self.chance:.2g}{rough}"

    def check_accuracy(self) -> None:
        """Raises ValueError for one under twice chance, or, of two classes, under the middle of chance and 1.

        Of turns and order half as much above chance: where all turns look alike, who tells the order has twice chance.
        """
        least = min((1.5 if self.task == "order" else 2) * self.chance, (1 + self.chance) / 2)
        if self.accuracy is not None and self.accuracy < least:
            raise ValueError(
                f"the feature net of {self.name} has accuracy {self.accuracy:.2f} on held-out images (a mean over "
                f"classes; a guess has {self.chance:.2f}), and at least {least:.2f} is expected: distances in its "
                "features mean little. Give more images, or another net (--features efficientnet, "
                "inception or the DIRECTORY of one that was trained longer)"
            )


@dataclass(frozen=True)
class FeatureNet(TrainedNetwork):
    """A trained classifier and its card; a `FeatureExtractor`."""

    card: Card
    module: Classifier
    file, card_type = NAME, Card

    @property
    def dim(self) -> int:
        return self.card.architecture.features

    def features(self, images: Pixels, batch_size: int = 500) -> Tensor:
        """Features (N, D) float32 on the CPU of images (N, C, H, W) uint8; ValueError for others."""
        arch = self.card.architecture
        way_out = (
            "quantise by round(127.5x+127.5), take images of its size and colours, or train a feature net on yours"
        )
        self.check(images, (arch.channels, arch.size, arch.size), way_out)
        parts = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return torch.cat([self.module.features(to_float(part).cpu()) for part in parts])


def train_feature_net(
    images: ImageSet,
    test: ImageSet | None,
    *,
    seed: int = 0,
    epochs: int | None = None,
    kind: type[Architecture] = Architecture,
    name: str = "",
    progress: Reporter | None = None,
) -> FeatureNet:
    """Train a classifier of the images' labels in float32, with shifts of up to 1 pixel; without two classes, of the
    quarter turns by which images are turned.

    epochs: EPOCHS, or as many as make ITERATIONS, if not given
    kind: of architecture
    name: scores are called FD-<name>; that of the images if empty, with -turns or -order where it tells these apart
    The seed determines the weights bit for bit on one kind of machine at one number of threads. ValueError for images
    that are not square, and for a test set without the labels that the training images have.
    """
    check_trainable(images)
    turns = images.labels is None or len(np.unique(images.labels)) < 2
    channels, height, _ = images.images.shape[1:]
    order = images.frames_each if turns and images.frames_each >= ORDERED else 1
    classes = TURNS * (1 + (order > 1)) if turns else images.num_classes
    architecture, generator = kind(channels, height, classes), torch.Generator().manual_seed(seed)
    module = architecture.build()
    for part in module.modules():  # so that the global random state has no part in it
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    batches = Batches(images, min(BATCH_SIZE, len(images)), seed, Augment(translate=MAX_SHIFT))
    epochs = epochs or max(EPOCHS, math.ceil(ITERATIONS * batches.batch_size / len(images)))

    def loss_of(iteration: int) -> Tensor:
        batch = batches.batch(iteration)
        x, label = turned(batch.x, iteration, order) if turns or batch.label is None else (batch.x, batch.label)
        return F.cross_entropy(module(x.contiguous(memory_format=torch.channels_last)), label)

    iterations = max(1, round(epochs * len(images) / batches.batch_size))
    fit_module(module, loss_of, iterations, batches.batch_size, rate=architecture.learning_rate, progress=progress)
    identity = hashlib.sha256(weight_bytes(module)).hexdigest()
    present = classes if turns or images.labels is None else len(np.unique(images.labels))
    task = "order" if order > 1 else "turns" if turns else "classes"
    name = name or images.name.removesuffix("/train") + f"-{task}" * turns
    card = Card(name, identity, architecture, images.fingerprint, None, seed, epochs, present, task)
    net = FeatureNet(card, module)
    if test is None:
        return net
    pixels, labels = test.images, test.labels
    if turns:
        pixels, labels = (part.numpy() for part in turned(torch.as_tensor(np.asarray(test.images[:])), 0, order))
    if labels is None:
        raise ValueError(f"{test.name!r} has no labels to test the feature net on: give none, or a labelled test set")
    right = module.classify(net.features(pixels)).argmax(1).numpy() == labels
    accuracy = np.mean([right[labels == label].mean() for label in np.unique(labels)]).item()
    return replace(net, card=replace(net.card, accuracy=accuracy))


def turned(x: Tensor, first: int = 0, frames: int = 1) -> tuple[Tensor, Tensor]:
    """Images (B, C, S, S), each turned by as many quarters as its place says, and that number, (B,) int64.

    first:  quarters of the first one
    frames: of clips, of which every second four come with their odd frames after the even ones, and numbers 4 higher
    """
    numbers = (first + torch.arange(len(x), device=x.device)) % (TURNS * (1 + (frames > 1)))
    apart = [*range(0, frames, 2), *range(1, frames, 2)]
    turns = [torch.rot90(image, int(k) % TURNS, (1, 2)) for image, k in zip(x, numbers, strict=True)]
    mixed = [
        image.unflatten(0, (frames, -1))[apart].flatten(0, 1) if k >= TURNS else image
        for image, k in zip(turns, numbers, strict=True)
    ]
    return torch.stack(mixed), numbers


def check_trainable(images: ImageSet) -> None:
    """Raises ValueError for images that are not square."""
    height, width = images.images.shape[2:]
    if height != width:
        raise ValueError(f"{images.name!r} has images of {height} x {width}; the feature net takes square ones: crop")
