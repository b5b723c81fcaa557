"""Forecasts: the frames of a field that come next, of those before.

    y = past frames, normalised, at every k-th point of each axis, with noise         what a model is given
    x = the frames after, normalised                                                  what it makes, of each frame
        or (frame - last frame of the past) / scale                                   with `difference`

Frames are `lead` time steps of the data apart, those that are made `lead stride`. A field of one dimension has one
row. A fully observed system that obeys a law without chance has one future, and needs no diffusion: several futures fit
what is observed in part, or with noise.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.config.ranges import Positive, Range, Ranged
from dualrate.config.serial import to_plain
from dualrate.data.conditions import Condition, Conditioned, Make
from dualrate.data.fields import Fields, Statistics
from dualrate.data.loader import Augment, TrainingSet
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Shape

Frames = Annotated[int, Range(1, 256)]
LOOKED_AT = 1000  # windows, for the scale of differences
SHOWN_ROWS, SHOWN_RANGE = 8, 3.0  # of a frame of one dimension in a picture; standard deviations from black to white


@dataclass(frozen=True)
class Forecast(Condition, Ranged):
    """The frames of a field that come next, of those before."""

    past: Frames = 1
    """Frames that are given."""
    frames: Frames = 1
    """Frames of a sample: a window, of one heavy call."""
    lead: Annotated[int, Range(1, 100_000)] = 1
    """Time steps of the data from one frame to the next."""
    difference: bool = False
    """Whether samples are differences from the last frame that is given."""
    every: Annotated[int, Range(1, 256)] = 1
    """Points from one that is observed to the next, on each axis."""
    noise: Annotated[float, Range(0, 100)] = 0.0
    """Standard deviation of noise on what is observed, in standard deviations of the field."""
    statistics: Statistics = Statistics((), (), ())
    """Of the training data; `of` fills this in, and the scale."""
    scale: tuple[Positive, ...] = ()
    """Of each channel of each frame of a sample, in standard deviations of the field; 1 where nothing changes."""
    variables: tuple[str, ...] = ()
    """Names of the channels, in their order."""
    step: Positive | None = None
    """Time from one time step of the data to the next, where the data says it."""
    fingerprint: str = ""
    """sha256 of the training fields; empty: unknown."""
    stride: Frames = 1
    """Frames, `lead` apart, from one that is made to the next."""

    @property
    def identity(self) -> dict[str, Any]:
        """Without the fingerprint: the identity of a run has that of its data."""
        return {"condition": {name: value for name, value in to_plain(self).items() if name != "fingerprint"}}

    def of(self, fields: Fields) -> Forecast:
        """The same for fields to train on, with their statistics. Raises ValueError where they are too short."""
        known, channels = fields.statistics, fields.shape[0]
        names = tuple(fields.variables)
        whole = replace(
            self,
            statistics=known,
            scale=(1.0,) * (channels * self.frames),
            variables=names,
            step=fields.step,
            fingerprint=fields.fingerprint,
        )
        targets = Windows(fields, whole)  # refuses fields that are too short
        if not self.difference:
            return whole
        some = np.linspace(0, len(targets) - 1, min(len(targets), LOOKED_AT)).astype(np.int64)
        x = targets.rows(some, Draws(0, torch.from_numpy(some)), Augment()).double()
        scale = x.square().mean((0, 2, 3)).sqrt()
        if not (scale > 0).any():
            raise ValueError(f"{fields.name} never changes from frame to frame: give a larger lead")
        return replace(whole, scale=tuple(torch.where(scale > 0, scale, 1.0).tolist()))

    @property
    def span(self) -> int:
        """Time steps of the data that a window of past and sample is long."""
        return self.known + self.frames * self.ahead

    @property
    def known(self) -> int:
        """Time steps of the data that the past is long."""
        return (self.past - 1) * self.lead + 1

    @property
    def ahead(self) -> int:
        """Time steps of the data from one frame that is made to the next, and from the past to the first."""
        return self.lead * self.stride

    @property
    def names(self) -> tuple[str, ...]:
        """Of the channels; their numbers, where the run knows no names."""
        return self.variables or tuple(map(str, range(len(self.statistics.mean))))

    def lead_times(self, frames: int) -> tuple[float, ...]:
        """Of each frame after its start: in the time of the data, or in its time steps where it does not say that."""
        step = 1.0 if self.step is None else self.step
        return tuple(float(self.ahead * step * (k + 1)) for k in range(frames))

    @property
    def lead_unit(self) -> str:
        """In what `lead_times` are."""
        return "time steps" if self.step is None else "time"

    def target(self, image: Shape) -> Shape:
        channels, height, width = image
        return self.frames * channels, height, width

    def shape(self, image: Shape) -> Shape:
        channels, height, width = image
        if channels % self.frames:
            raise ValueError(f"samples of {channels} channels do not divide into {self.frames} frames")
        return self.past * channels // self.frames, -(-height // self.every), -(-width // self.every)

    def build(self, device: torch.device | str) -> Make:
        return self.observe

    def observe(self, past: Tensor, draws: Draws) -> Tensor:
        """y (B, c, h, w) of normalised frames (B, past C, H, W). draws: of the noise, for the same rows"""
        y = past[..., :: self.every, :: self.every]
        return y + self.noise * draws.normal("observation", *y.shape[1:]) if self.noise else y

    def check(self, image: Shape, augment: Augment) -> None:
        if augment != Augment():
            raise ValueError("fields are not mirrored or shifted in training: drop --data.augment")

    def conditioned(self, targets: TrainingSet, others: TrainingSet | None = None) -> Conditioned:
        assert isinstance(targets, Fields)
        windows = Windows(targets, self)
        return Conditioned(windows, self, windows.pasts())

    def sample_of(self, last: Tensor, following: Tensor) -> Tensor:
        """x (B, frames C, H, W), of normalised frames: the last given (B, C, H, W) and those after (B, frames, ...)."""
        if self.difference:
            following = following - last[:, None]
        return following.flatten(1, 2) / self._scale(following)

    def frames_of(self, x: Tensor, last: Tensor) -> Tensor:
        """The inverse of `sample_of`: (B, frames, C, H, W), normalised."""
        following = (x * self._scale(x)).unflatten(1, (self.frames, -1))
        return following + last[:, None] if self.difference else following

    def _scale(self, like: Tensor) -> Tensor:
        return torch.tensor(self.scale, device=like.device)[:, None, None]

    def check_pictured(self) -> None:
        raise ValueError("a forecast makes fields, not pictures: draw it by dualrate forecast RUN")

    def shown(self, x: Tensor) -> Tensor:
        """The first channel of every frame, one below the other: (B, 1, frames H, W), grey."""
        first = x.unflatten(1, (self.frames, -1))[:, :, 0] / SHOWN_RANGE
        rows = SHOWN_ROWS if first.shape[2] == 1 else 1
        return first.repeat_interleave(rows, 2).flatten(1, 2)[:, None]

    def read(self, data: bytes, name: str) -> Tensor:
        raise ValueError(f"{name}: a forecast starts from arrays, not pictures: dualrate forecast RUN --from FILE")


class Windows(TrainingSet):
    """Windows of fields: what a forecast is given of each, or makes of it.

    past: which of the two. Raises as `Fields.windows`.
    """

    def __init__(self, fields: Fields, forecast: Forecast, *, past: bool = False) -> None:
        self.fields, self.forecast, self.past = fields, forecast, past
        self.starts, self._latest = fields.windows(forecast.span), lru_cache(maxsize=1)(self._read)
        self.name, self.labels, self.class_names, self.floats = fields.name, None, (), fields.floats

    @property
    def fingerprint(self) -> str:
        return self.fields.fingerprint

    @property
    def shape(self) -> Shape:
        channels, height, width = self.fields.shape
        return channels * (self.forecast.past if self.past else self.forecast.frames), height, width

    def __len__(self) -> int:
        return len(self.starts)

    def pasts(self) -> Windows:
        """The pasts of the same windows. A window of both is read once, if they are asked for it in turn."""
        made = copy(self)
        made.past = True
        return made

    def frames(self, index: NDArray[np.int64]) -> Tensor:
        """(B, past + frames, C, H, W) float32, normalised: of the windows of these numbers."""
        return self._latest(tuple(index.tolist()))

    def _read(self, index: tuple[int, ...]) -> Tensor:
        forecast = self.forecast
        made = range(forecast.known - 1 + forecast.ahead, forecast.span, forecast.ahead)
        steps = [*range(0, forecast.known, forecast.lead), *made]
        found = [self.fields.frames(int(i), int(first), forecast.span)[steps] for i, first in self.starts[list(index)]]
        return self.forecast.statistics.normalised(torch.from_numpy(np.stack(found)))

    def rows(self, index: NDArray[np.int64], draws: Draws, augment: Augment, /) -> Tensor:
        frames, past = self.frames(index), self.forecast.past
        if self.past:
            return frames[:, :past].flatten(1, 2)
        return self.forecast.sample_of(frames[:, past - 1], frames[:, past:])
