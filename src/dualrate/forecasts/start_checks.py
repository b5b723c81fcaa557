"""Checks of a file of starts beside what a model was trained on: its axes, its shapes, and whether units look alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dualrate.diffusion.context import Shape
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.metadata import SAME_AXIS, Metadata
from dualrate.forecasts.rollout import Frame
from dualrate.forecasts.trajectories import FieldSource

FAR, TIMES = 6, 10  # standard deviations of a start's mean from that of the training data; times its spread


def check_shapes(path: Path, name: str, fields: FieldSource, shapes: Sequence[Shape]) -> None:
    """Raises ValueError for frames of another shape than these."""
    kinds = [trajectory.shape[1:] for trajectory in fields.trajectories]
    expected = kinds[0] if kinds and kinds[0] in shapes else shapes[0]
    if wrong := [trajectory.shape for trajectory in fields.trajectories if trajectory.shape[1:] != expected]:
        forms = " or, as observed, ".join(f"(time, {', '.join(map(str, shape))})" for shape in shapes)
        raise ValueError(f"{path} holds (time, C, H, W) = {wrong[0]}, and {name} starts from {forms}")


def strange_units(path: Path, name: str, forecast: Forecast, metadata: Metadata, past: Frame) -> str:
    """A clause on variables whose numbers are far from those of the training data; empty without such.

    Raises ValueError where the model says their units and the start does not.
    """
    if forecast.of_clips:
        return ""
    far, unsaid = list[str](), list[str]()
    mean, std = past.mean((0, 1, 3, 4), dtype=np.float64), past.std((0, 1, 3, 4), dtype=np.float64)
    for i, variable in enumerate(forecast.names):
        center, deviation = forecast.statistics.mean[i], forecast.statistics.std[i]
        ratio = std[i] / deviation
        if abs(mean[i] - center) > FAR * deviation or ratio > TIMES or 0 < ratio < 1 / TIMES:
            theirs, mine = (each.variables[i].units if each.variables else "" for each in (forecast.metadata, metadata))
            usual = f"{center:.4g} +- {deviation:.2g} {theirs}".rstrip()
            far.append(f"{variable} of {mean[i]:.4g} +- {std[i]:.2g}, trained on {usual}")
            unsaid += [variable] * bool(theirs and not mine)
    if unsaid:
        raise ValueError(
            f"{path} does not say the units of {', '.join(unsaid)}, which look like another unit than {name} was "
            f"trained on ({'; '.join(far)}): bring them to that, or set the attribute `units` (NetCDF, zarr)"
        )
    return f"{path}: far from what {name} was trained on, perhaps in another unit: {'; '.join(far)}" if far else ""


def _named(axes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The name of each axis, one spelling for all, and whether it rises or falls; empty where that is not said."""
    parts = [axis.partition(" (") for axis in axes]
    return [SAME_AXIS.get(name, name) for name, *_ in parts], [way for *_, way in parts]


def check_axes(path: Path, name: str, forecast: Forecast, axes: tuple[str, ...]) -> None:
    """Raises ValueError where axes of the same names are in another order, or a coordinate falls that should rise."""
    (names, ways), (expected, expected_ways) = _named(axes), _named(forecast.axes)
    opposite = any(a and b and a != b for a, b in zip(ways, expected_ways, strict=False))
    if sorted(names) == sorted(expected) and (names != expected or opposite):
        raise ValueError(
            f"{path} has the axes of space {', '.join(axes)}, and {name} was trained on {', '.join(forecast.axes)}: "
            "bring them to that"
        )
