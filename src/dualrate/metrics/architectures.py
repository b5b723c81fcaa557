"""Small classifiers of images, of architectures that share little: what one of them overlooks another may see.

An architecture is a dataclass that builds its network, and a feature net's file names its class; a new one is a
subclass here. Each has all features in one layer before the classes' logits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualrate.config.ranges import Channels, Classes, Ranged, Side


class Classifier(nn.Module, ABC):
    """A network whose penultimate layer is the features; classify: of features (B, D), to logits."""

    classify: nn.Module

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """(B, D) of x: (B, C, H, W) in [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_classes) logits."""
        return self.classify(self.features(x))


@dataclass(frozen=True)
class Architecture(Ranged):
    """channels and size of the images, classes told apart, D features. Of its own it is a `Pyramid`."""

    channels: Channels
    size: Side
    num_classes: Classes
    features: Channels = 96
    learning_rate: ClassVar[float] = 0.004  # the highest, of training

    @property
    def halvings(self) -> int:
        """How often the resolution is halved, to about 4 x 4."""
        return max(1, round(math.log2(self.size / 3.5)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after the stem and after every stage of a `Pyramid`; a stage, but the first, halves."""
        return tuple(min(self.features, 160 >> (self.halvings - i)) for i in range(self.halvings + 1))

    def build(self) -> Classifier:
        """The network, with weights from the global random state."""
        return Pyramid(self)


class Pyramid(Classifier):
    """A strided stem and stages of convolutions; what every stage holds, averaged over space, gives the features."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.stem = _convolution(arch.channels, arch.widths[0], kernel=5, stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *([_convolution(before, before, kernel=3, stride=2)] if i else []),
                _convolution(before, after, kernel=3, stride=1),
            )
            for i, (before, after) in enumerate(pairwise(arch.widths))
        )
        self.project = nn.Linear(sum(arch.widths[1:]), arch.features)
        self.classify = nn.Linear(arch.features, arch.num_classes)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = []
        for stage in self.stages:
            x = stage(x)
            pooled.append(x.mean((2, 3)))
        return F.silu(self.project(torch.cat(pooled, dim=1)))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.SiLU())


@dataclass(frozen=True)
class Stacked(Architecture):
    """A `Stack`: 3 x 3 convolutions, maxima and rectifiers (Simonyan and Zisserman, arXiv 1409.1556)."""

    features: Channels = 64
    learning_rate: ClassVar[float] = 0.003

    def build(self) -> Classifier:
        return Stack(self)


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
        side = arch.size >> arch.halvings
        self.project = nn.Linear(widths[-1] * side**2, arch.features)
        self.classify = nn.Sequential(nn.ReLU(), nn.Linear(arch.features, arch.num_classes))

    def features(self, x: Tensor) -> Tensor:
        return self.project(self.body(x).flatten(1))


def _rectified(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


@dataclass(frozen=True)
class Mixed(Architecture):
    """A `Mixer`: perceptrons over patches, no convolution (Tolstikhin et al., arXiv 2105.01601)."""

    features: Channels = 64
    learning_rate: ClassVar[float] = 0.003

    @property
    def patch(self) -> int:
        """Pixels of a patch's side: the largest divisor of the image's that leaves 6 patches in a row, or 1."""
        return max(side for side in range(1, self.size + 1) if self.size % side == 0 and side <= max(1, self.size // 6))

    def build(self) -> Classifier:
        return Mixer(self)


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
