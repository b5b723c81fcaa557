"""Data whose latents are made as they come, batch by batch on the device, by a codec that learns and costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dualrate.codecs.codec import Codec
from dualrate.codecs.config import CodecConfig
from dualrate.data.loader import Augment, TrainingSet
from dualrate.diffusion.draws import Draws
from dualrate.diffusion.values import Shape


@dataclass(frozen=True, eq=False)
class Encoded:
    """A `TrainingSet` of the latents of another one's images: 8-bit pixels travel, and are encoded where they arrive.

    by: the codec's configuration, where it is part of a run
    """

    images: TrainingSet
    by: CodecConfig
    made: Codec

    def __len__(self) -> int:
        return len(self.images)

    @property
    def name(self) -> str:
        return self.images.name

    @property
    def fingerprint(self) -> str:
        return self.images.fingerprint

    @property
    def labels(self) -> NDArray[np.int64] | None:
        return self.images.labels

    @property
    def num_classes(self) -> int:
        return self.images.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.images.class_names

    @property
    def shape(self) -> Shape:
        return self.made.latent_shape(self.images.shape)

    @property
    def alphabet(self) -> str:
        return self.images.alphabet

    @property
    def codec(self) -> CodecConfig:
        return self.by

    def rows(self, index: NDArray[np.int64], draws: Draws, augment: Augment) -> Tensor:
        return self.images.rows(index, draws, augment)

    @property
    def floats(self) -> Callable[[Tensor, Draws], Tensor]:
        return _Floats(self.images.floats, self.made)


@dataclass(frozen=True)
class _Floats:
    """As a value, so that workers can be sent it."""

    floats: Callable[[Tensor, Draws], Tensor]
    codec: Codec

    def __call__(self, rows: Tensor, draws: Draws) -> Tensor:
        return self.codec.encode(self.floats(rows, draws)).mean
