"""Geometry of a field: where its points lie, which edges meet, how much each point counts, and which are hidden.

    order     rows from north to south, columns from west to east; of a circle of longitudes from 0 on
    periodic  the edges of longitudes that go round the circle meet; those of latitudes never do
    poles     beyond a pole lies the row before it, half a turn round
    area      of a row, sin(upper edge) - sin(lower edge): edges lie halfway between latitudes, or at a pole
    mask      points that were never observed, or that a variable of the file names. They are filled by the mean, which
              is 0 to the networks, and count nowhere

A run keeps its geometry, so that a start needs nothing but its own file, in whatever order that has.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data.source import split_named
from dualrate.denoisers.denoiser import Wrapper
from dualrate.diffusion.context import Cond, Context, Shape
from dualrate.forecasts.metadata import Coordinate, Metadata, way
from dualrate.forecasts.netcdf import LABELLED, read_static
from dualrate.forecasts.trajectories import GAP, FieldSource

AT_A_TIME = 2**22  # numbers that are read at once
EVEN = 1e-2  # of a step: two steps that differ less are the same
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Order:
    """The order of points in a file, beside the usual one.

    swapped: whether columns are latitudes; flipped: whether rows, columns go the other way, rolled: columns that come
    before the first one; both after swapping
    turns: round the circle, that the file's first longitude lies beyond 0 to 360; None: not known
    """

    swapped: bool = False
    flipped: tuple[bool, bool] = (False, False)
    rolled: int = 0
    turns: int | None = None

    def usual(self, frames: NDArray[Any]) -> NDArray[Any]:
        """Frames of a file (..., H, W) in the usual order."""
        frames = frames.swapaxes(-2, -1) if self.swapped else frames
        frames = frames[..., :: -1 if self.flipped[0] else 1, :: -1 if self.flipped[1] else 1]
        return np.roll(frames, -self.rolled, -1) if self.rolled else frames

    def restored(self, frames: NDArray[Any]) -> NDArray[Any]:
        """Frames (..., H, W) in the order of the file: the inverse of `usual`."""
        frames = np.roll(frames, self.rolled, -1) if self.rolled else frames
        frames = frames[..., :: -1 if self.flipped[0] else 1, :: -1 if self.flipped[1] else 1]
        return frames.swapaxes(-2, -1) if self.swapped else frames


@dataclass(frozen=True)
class Geometry:
    """The geometry of fields that a run is trained on; without axes nothing is known, and frames are as in the file.

    axes:      of the points of a frame, rows first, each with its coordinates where the data says them
    order:     of the file of the training data
    periodic:  whether the edges of rows (upper and lower), of columns (left and right) meet
    spherical: whether points count by their area
    mask:      hidden points, packed; empty: none
    """

    axes: tuple[Coordinate, ...] = ()
    order: Order = Order()
    periodic: tuple[bool, bool] = (False, False)
    spherical: bool = False
    mask: str = ""

    @staticmethod
    def of(fields: FieldSource, *, sphere: bool = True, periodic: bool = False) -> Geometry:
        """The geometry of a source in its usual order. sphere: whether latitudes and longitudes mean what they say

        periodic: whether edges meet, but for latitudes of a sphere
        """
        in_order, order = ordered(fields)
        axes = axes_of(in_order.axes, in_order.metadata, len(in_order.space))
        places = [axis.place if sphere else "" for axis in axes]
        meet = [
            place != "latitude" and (periodic or (sphere and circles(axis)))
            for place, axis in zip(places, axes, strict=True)
        ]
        down, across = (False, *meet) if len(meet) == 1 else meet
        placed = any(place == "latitude" and len(axis.values) > 1 for place, axis in zip(places, axes, strict=True))
        return Geometry(axes, order, (down, across), placed)

    @property
    def identity(self) -> dict[str, Any]:
        """The parts that change the training: nothing of the order in a file, and no names."""
        latitudes = self.latitudes[1] if self.spherical else ()
        return {name: part for name, part in (("latitudes", list(latitudes)), ("mask", self.mask)) if part}

    @property
    def latitudes(self) -> tuple[int, tuple[float, ...]]:
        """The axis of latitudes, counted from the last one (-1 columns, -2 rows), and its values; none: (0, ())."""
        pairs = [(i - len(self.axes), axis.values) for i, axis in enumerate(self.axes) if axis.place == "latitude"]
        return pairs[0] if pairs and len(pairs[0][1]) > 1 else (0, ())

    @property
    def poles(self) -> bool:
        """Whether the row beyond a pole is the one before it, half a turn round: circles of longitude that halve, up to
        both poles, none of them a pole."""
        return self.whole and len(self.axes[-1].values) % 2 == 0 and all(gap > 1 / 2 for gap in self._gaps)

    @property
    def whole(self) -> bool:
        """Whether points lie all round a sphere: rows up to both poles, or on them, and columns round the circle."""
        axis, latitudes = self.latitudes
        around = self.spherical and axis == -2 and circles(self.axes[-1])
        return around and latitudes[0] * latitudes[-1] < 0 and all(gap < 2 for gap in self._gaps)

    @property
    def _gaps(self) -> list[float]:
        """Twice the distance of the first and the last latitude from a pole, in steps there."""
        _, latitudes = self.latitudes
        ends = (latitudes[0], latitudes[1]), (latitudes[-1], latitudes[-2])
        return [2 * (90 - abs(end)) / abs(end - inner) for end, inner in ends]

    @property
    def area(self) -> NDArray[np.float64]:
        """Weights of points, (H, W) or what broadcasts to that, of mean 1 where a weight stands for as many points."""
        axis, latitudes = self.latitudes
        if not self.spherical or not latitudes:
            return np.ones((1, 1))
        areas = row_areas(np.array(latitudes))
        return (areas / areas.mean()).reshape((-1, 1) if axis == -2 else (1, -1))

    @property
    def hidden(self) -> Mask | None:
        """The hidden points, (C, H, W); None: there are none."""
        return from_text(self.mask) if self.mask else None

    def weights(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """(C, H, W): the weight of each number of a frame in a mean, 0 where it is hidden; of mean 1 in a channel."""
        weights = np.broadcast_to(self.area, tuple(shape)).copy()
        if (hidden := self.hidden) is not None:
            weights[hidden] = 0
        return weights / weights.mean((1, 2), keepdims=True)

    @property
    def planes(self) -> NDArray[np.float32]:
        """Planes that tell networks of the mask, (P, H, W): 1 where a channel is observed; one for all alike."""
        hidden = self.hidden
        if hidden is None:
            return np.zeros((0, 1, 1), np.float32)
        return (~np.unique(hidden, axis=0)).astype(np.float32)

    def notes(self, frame: Sequence[int]) -> list[str]:
        """Lines that say what follows from it. frame: (C, H, W)"""
        edges = [("upper and lower", self.periodic[0] and frame[1] > 1), ("left and right", self.periodic[1])]
        meet, hidden = [name for name, meets in edges if meets], self.hidden
        lines = [f"the {' and the '.join(meet)} edges meet" + ", and rows over the poles" * self.poles] * bool(meet)
        if self.spherical:
            _, latitudes = self.latitudes
            lines.append(f"points count by their area, over latitudes from {latitudes[0]:g} to {latitudes[-1]:g}")
        if hidden is not None:
            lines.append(f"hidden points: {hidden.mean():.1%} of all, which are filled and count nowhere")
        return lines

    def masked(self, hidden: Mask, names: Sequence[str]) -> Geometry:
        """This geometry with these points hidden, (C, H, W). Raises ValueError for a channel of which all would be."""
        if (whole := np.flatnonzero(hidden.all((1, 2)))).size:
            raise ValueError(f"the mask hides all points of {names[whole[0]]}: leave it out, by --data.variables")
        return replace(self, mask=to_text(hidden) if hidden.any() else "")


# Order


def ordered(fields: FieldSource) -> tuple[FieldSource, Order]:
    """The same fields in the usual order, and how they were; as they are where nothing says what their axes are."""
    axes = axes_of(fields.axes, fields.metadata, len(fields.space))
    if len(axes) == 1:  # a line: its columns are whatever the axis is
        axes = Coordinate("", (), ()), axes[0]
    swapped = len(fields.space) == 2 and (axes[0].place == "longitude" or axes[1].place == "latitude")
    rows, columns = axes[::-1] if swapped else axes
    flipped = _falls(rows, wanted=True), _falls(columns, wanted=columns.place == "latitude")
    rolled = 0
    if columns.place == "longitude" and len(columns.values) > 1:
        rolled = _first(columns, np.array(columns.values)[:: -1 if flipped[1] else 1])
    order = Order(swapped, flipped, rolled, math.floor(min(columns.values[:1]) / 360) if rolled else None)
    if order == Order():
        return fields, order
    coordinates = tuple(_reordered(each, order, fields.space) for each in fields.metadata.coordinates)
    names = [axis.partition(" (")[0] for axis in fields.axes]
    in_order = replace(fields.metadata, coordinates=coordinates)
    names = names[::-1] if swapped else names
    ways = [way(np.array(axis.values)) for axis in axes_of(names, in_order, len(fields.space))]
    axes = tuple(name + way for name, way in zip(names, ways, strict=False))
    statics = {name: lambda read=read: order.usual(read()) for name, read in fields.statics.items()}
    return replace(fields.changed(order.usual), statics=statics, axes=axes, metadata=in_order), order


def axes_of(names: Sequence[str], metadata: Metadata, count: int) -> tuple[Coordinate, ...]:
    """The coordinate of each axis of space: the one of its name, or the first along it alone."""
    axes: list[Coordinate] = []
    for i in range(count):
        name = names[i].partition(" (")[0] if i < len(names) else ""
        along = [each for each in metadata.coordinates if each.axes == (i,)]
        named = [each for each in along if each.name == name]
        if not named and {"latitude", "longitude"} <= {each.place for each in along}:
            along = []  # cells, of which each has its own
        named = named or [each for each in along if each.place]
        axes.append(next(iter(named or along), Coordinate(name, (i,), ())))
    return tuple(axes)


def circles(axis: Coordinate) -> bool:
    """Whether an axis is one of longitudes in degrees, evenly once round the circle."""
    if axis.place != "longitude" or len(axis.values) < 3:
        return False
    steps = np.diff(axis.unwound)
    return bool((np.abs(steps - steps[0]) < EVEN * abs(steps[0])).all()) and math.isclose(
        abs(steps.mean()) * len(axis.values), 360, rel_tol=EVEN / len(axis.values)
    )


def _falls(axis: Coordinate, *, wanted: bool) -> bool:
    """Whether latitudes or longitudes go the other way than wanted. wanted: whether they are to fall"""
    if len(axis.values) < 2 or not axis.place:
        return False
    usual = np.median(np.diff(axis.unwound))  # longitudes may begin anew within
    return bool(usual > 0 if wanted else usual < 0)


def _first(columns: Coordinate, values: NDArray[np.float64]) -> int:
    """The first of columns whose longitudes rise: on a circle the one from 0 on, of a region that goes on round the
    circle the one after its hole."""
    if circles(columns):
        values = values % 360
        return int(np.argmin(np.where(values > 360 - 1e-9, 0, values)))
    gaps = np.diff(values, append=values[:1]) % 360
    widest = int(gaps.argmax())
    return (widest + 1) % len(values) if gaps[widest] > GAP * np.delete(gaps, widest).max() else 0


def check_even(source: str, axes: Sequence[Coordinate]) -> None:
    """Raises ValueError for latitudes and longitudes, in their usual order, that have a hole or do not all rise."""
    for axis in (axis for axis in axes if axis.place and len(axis.values) > 2):
        steps = np.diff(axis.unwound)
        sizes, mixed = np.abs(steps), steps * np.median(steps) <= 0
        beside = np.maximum(np.append(sizes[1:], 0), np.insert(sizes[:-1], 0, 0))
        mixed[-1] |= axis.place == "longitude" and sizes.sum() > 360 - EVEN * sizes.min()
        holes = mixed if mixed.any() else sizes > GAP * beside
        if not holes.any():
            continue
        before, after = axis.values[holes.argmax() : holes.argmax() + 2]
        turn = ", which going round 360 degrees does not close," * (axis.place == "longitude")
        what = "turn back or come round the circle again" if mixed.any() else f"have a hole{turn}"
        raise ValueError(
            f"{source}: its {axis.place}s {axis.name} {what} from {before:g} to {after:g}: sort or choose them "
            "(xarray: data.sortby, data.isel), or let all points count alike: --geometry plane"
        )


def _reordered(coordinate: Coordinate, order: Order, space: Sequence[int]) -> Coordinate:
    """A coordinate of a file, in the usual order."""
    if not coordinate.axes:
        return coordinate
    values = np.reshape(coordinate.values, [space[i] for i in coordinate.axes])
    values = values.T if coordinate.axes == (1, 0) else values
    of_rows = len(space) == 2 and coordinate.axes == (0,)
    values = order.usual(np.broadcast_to(values[:, None] if of_rows else values, (1, *space)[-2:]))
    if len(coordinate.axes) == 2:
        return replace(coordinate, axes=(0, 1), values=tuple(values.ravel().tolist()))
    of_rows ^= order.swapped
    values = values[:, 0] if of_rows else values[0]
    values = values % 360 if order.rolled and circles(coordinate) else values
    return replace(coordinate, axes=(0 if of_rows else len(space) - 1,), values=tuple(values.tolist()))


def row_areas(latitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas of rows on the unit sphere, over 2 pi, of latitudes in degrees that rise or fall.

    The outer edges are half a step further, or the poles.
    """
    inner = (latitudes[1:] + latitudes[:-1]) / 2
    ends = latitudes[0] - (inner[0] - latitudes[0]), latitudes[-1] + (latitudes[-1] - inner[-1])
    edges = np.clip(np.array([ends[0], *inner, ends[1]]), -90, 90)
    return np.abs(np.diff(np.sin(np.deg2rad(edges))))


# Masks


def to_text(numbers: NDArray[Any]) -> str:
    """Hidden points or float32 (C, H, W) as a short text."""
    raw = np.packbits(numbers) if numbers.dtype == bool else numbers.astype("<f4")
    content = base64.b64encode(zlib.compress(raw.tobytes(), 9)).decode()
    return f"{'x'.join(map(str, numbers.shape))}:{content}"


def hidden_points(source: str, fields: FieldSource, mask: str) -> Mask:
    """The points, (C, H, W), that `--mask` hides. Raises ValueError for a variable that the source does not have."""
    parts = [part for split, part in fields.splits.items() if split_named(split) in ("", "train")]
    trajectories = [trajectory for part in parts for trajectory in part] or fields.trajectories
    channels, height, width = trajectories[0].shape[1:]
    if mask in ("auto", "any"):
        never, ever = np.ones((channels, height, width), bool), np.zeros((channels, height, width), bool)
        for trajectory in trajectories if mask == "auto" else fields.trajectories:
            each = max(1, AT_A_TIME // never.size)
            for first in range(0, trajectory.shape[0], each):
                finite = np.isfinite(trajectory[first : first + each])
                never &= ~finite.any(0)
                ever |= ~finite.all(0)
        return never if mask == "auto" else ever
    name = mask.removeprefix("not:")
    values = np.nan_to_num(static_of(source, fields, name, ("auto", "any")))
    return np.broadcast_to((values == 0) ^ (mask != name), (channels, height, width)).copy()


def static_of(source: str, fields: FieldSource, name: str, words: Sequence[str] = ()) -> NDArray[Any]:
    """A variable over space alone, (H, W), of a source in its usual order, or FILE:VARIABLE of another file.

    words: what may stand in place of a name, for messages

    Raises ValueError where there is none, and for another file of other points; what reading it raises.
    """
    if name in fields.statics:
        return fields.statics[name]()
    path, _, variable = name.rpartition(":")
    varies = name in (*fields.varying, *fields.variables)
    if not varies and Path(path).suffix.lower() not in LABELLED:
        names = ", ".join(fields.statics) or "none"
        choices = [*words, *["one of these"] * bool(fields.statics), "FILE:VARIABLE of a NetCDF, zarr or GRIB file"]
        raise ValueError(
            f"{source} has no variable {name} over space alone; it has {names}: give {' or '.join(choices)}"
        )
    static = fields if varies else ordered(read_static(Path(path), variable))[0]
    if varies or static.trajectories[0].shape[0] > 1:
        raise ValueError(
            f"{name} of {source} varies in time, and a static field or a mask does not: --forcings {variable} takes it "
            "as known ahead, where it is among the data; or write one time of it alone (xarray: data.isel)"
        )
    apart = [(f"points {static.space}", f"{fields.space}")] * (static.space != fields.space)
    for mine, theirs in (*apart, *static.metadata.differences(fields.metadata, ())):
        raise ValueError(f"{path} has {mine}, and {source} has {theirs}: bring it to the points of the fields")
    return static.trajectories[0][0:1][0, 0]


@lru_cache(maxsize=4)
def from_text(text: str, dtype: type = bool) -> NDArray[Any]:
    """The inverse of `to_text`, of float32 or bool. Raises ValueError for what is none."""
    try:
        sizes, _, content = text.partition(":")
        channels, height, width = map(int, sizes.split("x"))
        count = channels * height * width
        size = -(-count // 8) if dtype is bool else 4 * count
        raw = zlib.decompressobj().decompress(base64.b64decode(content, validate=True), max(1, size))
        if len(raw) != size:
            raise ValueError(f"{len(raw)} of {size} bytes")
        numbers = np.frombuffer(raw, np.uint8 if dtype is bool else "<f4")
        numbers = np.unpackbits(numbers, count=count) if dtype is bool else numbers
        return numbers.reshape(channels, height, width).astype(dtype)
    except (ValueError, zlib.error) as error:
        what = "mask" if dtype is bool else "static field"
        raise ValueError(f"{text[:40]!r} is no {what} ({error}): train the run again") from error


@lru_cache(maxsize=16)
def weights_on(device: torch.device, geometry: Geometry, frame: Shape, power: float) -> Tensor:
    """Weights of the numbers of a frame (C, H, W) to some power, float32 on a device."""
    return torch.from_numpy(geometry.weights(frame) ** power).to(device, torch.float32)


@lru_cache(maxsize=16)
def planes_on(device: torch.device, geometry: Geometry) -> Tensor:
    """The planes that tell networks of the mask, (P, H, W) on a device."""
    return torch.from_numpy(geometry.planes).to(device)


@lru_cache(maxsize=16)
def hidden_on(device: torch.device, geometry: Geometry, frames: int) -> Tensor:
    """The hidden points of a window of frames, (frames C, H, W) bool on a device."""
    assert geometry.hidden is not None
    return torch.from_numpy(geometry.hidden).to(device).repeat(frames, 1, 1)


@dataclass(frozen=True)
class Hiding(Wrapper):
    """A denoiser whose x_hat is 0 at hidden points: the data's own value there. frames: of a window"""

    geometry: Geometry
    frames: int

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        context = self.inner.encode(z, t, cond)
        return context if context.x_hat is None else replace(context, x_hat=self._cleared(context.x_hat))

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        return self._cleared(self.inner.denoise(z, t, context, cond))

    def _cleared(self, x_hat: Tensor) -> Tensor:
        return x_hat.masked_fill(hidden_on(x_hat.device, self.geometry, self.frames), 0)
