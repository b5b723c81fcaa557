"""Checks of a file of starts beside what a model was trained on: its axes, its shapes, and whether units look alike."""

from __future__ import annotations

import math
import re
import tokenize
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from dualrate.diffusion.context import Shape
from dualrate.experiment.model import Model
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.externals import months_of_step
from dualrate.forecasts.metadata import SAME_AXIS, Metadata, level_of, plain_units
from dualrate.forecasts.model import Frame, forecast_of
from dualrate.forecasts.trajectories import FieldSource, numbered, timing_of

Note = Callable[[str], None]  # is told what is taken for granted
NOT_UNITS = ArithmeticError, AssertionError, AttributeError, SyntaxError, TypeError, ValueError, tokenize.TokenError
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


def check_file(
    path: Path, model: Model, fields: FieldSource, shapes: Sequence[Shape], note: Note, *, within: bool
) -> FieldSource:
    """The fields of a file in the order of the model's variables, once all that it says fits: as of `read_starts`."""
    forecast, name = forecast_of(model), model.name
    check_time(path, name, forecast, fields, note, within=within)
    check_axes(path, name, forecast, fields.axes)
    if {*forecast.variables} == {*fields.variables}:
        fields = fields.picked(forecast.variables)
    check_variables(path, name, forecast, fields.variables, note)
    fields = in_units(path, forecast, fields, note)
    check_metadata(path, name, forecast, fields.metadata)
    check_shapes(path, name, fields, shapes)
    if any(fields.metadata.said) and not any(forecast.metadata.said):
        note(f"{name} does not say in which units and at which points it was trained: those of {path} are taken")
    if unsaid := fields.metadata.unsaid(forecast.metadata, forecast.names):
        note(f"{path} does not say the {unsaid}: those that {name} was trained on are taken")
    calendar, expected = fields.metadata.calendar, forecast.metadata.calendar
    if calendar and expected and calendar != expected:
        note(f"{path} has the calendar {calendar}, and {name} was trained on {expected}: dates are in {calendar}")
    return fields


def in_units(path: Path, forecast: Forecast, fields: FieldSource, note: Note) -> FieldSource:
    """The same fields in the units of the training data, where pint is installed and knows both."""
    factors, offsets = np.ones((len(fields.variables), 1, 1)), np.zeros((len(fields.variables), 1, 1))
    described, changes = list(fields.metadata.variables), list[str]()
    pairs = zip(fields.variables, fields.metadata.variables, forecast.metadata.variables, strict=False)
    for i, (variable, mine, theirs) in enumerate(pairs):
        if mine.units and theirs.units and (change := conversion(mine.units, theirs.units)):
            factors[i], offsets[i] = change
            described[i] = replace(mine, units=theirs.units)
            changes.append(f"{variable} from {mine.units} to {theirs.units}")
    if not changes:
        return fields
    note(f"{path}: converted {', '.join(changes)}")
    metadata = replace(fields.metadata, variables=tuple(described))
    return replace(fields.changed(lambda frames: frames * factors + offsets), metadata=metadata)


def conversion(mine: str, theirs: str) -> tuple[float, float] | None:
    """Factor and offset from one unit to another; None of units that are equal, or that pint cannot bring together."""
    plain = plain_units(mine), plain_units(theirs)
    if plain[0] == plain[1]:
        return None
    try:
        import pint  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    spelt = [re.sub(r"([^\W\d]+)(-?\d+)", r"\1**\2", unit).replace(" ", " * ") for unit in plain]
    quantity = pint.get_application_registry().Quantity
    for layer in ("kg * m**-2", "mm"):  # which are the same of water
        start, end = (unit.replace("kg * m**-2", layer) for unit in spelt)
        with suppress(*NOT_UNITS):  # of another dimension, or no unit
            offset, once, twice = (float(quantity(number, start).to(end).magnitude) for number in (0.0, 1.0, 2.0))
            return (once - offset, offset) if math.isclose(twice - once, once - offset, rel_tol=1e-6) else None
    return None


def at_levels(fields: FieldSource, forecast: Forecast) -> FieldSource:
    """The same fields, by the names of the training data where their levels are pressures in another unit."""
    of_file = {
        (level_of(name)[0], about.height): name
        for name, about in zip(fields.variables, fields.metadata.variables, strict=False)
    }
    names: dict[str, str] = {}
    for name in {*forecast.variables, *forecast.externals.variables} - {*fields.variables}:
        base, level = level_of(name)
        places = [(base, f"{number:.9g} hPa") for number in (level, level / 100)] if level else []
        names |= {of_file[place]: name for place in places if place in of_file}
    return replace(fields, variables=tuple(names.get(name, name) for name in fields.variables))


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


def check_time(path: Path, name: str, forecast: Forecast, fields: FieldSource, note: Note, *, within: bool) -> None:
    """Raises ValueError for another step than the model was trained on, for too few time steps, and for a gap.

    within: whether all time steps count, not those of the past at the end alone
    """
    trajectories, needed = fields.trajectories, forecast.past_steps
    apart = [] if fields.step is None else [fields.step]
    for timing in map(timing_of, trajectories):
        last = range(1 if within else max(1, len(timing.times) - needed + 1), len(timing.times))
        apart += [float(timing.steps[i - 1]) for i in last if not (within and i in timing.breaks)]
    wrong = [step for step in apart if forecast.step and not math.isclose(step, forecast.step, rel_tol=1e-3)]
    months = months_of_step(trajectories)
    if forecast.months and not forecast.step and months != forecast.months:
        wrong = apart
    if wrong:
        mine, theirs = replace(forecast, months=months, step=wrong[0]), forecast.plain_time(forecast.step or 1.0)
        says = f"{path} has {mine.plain_time(wrong[0])} between its time steps, and {name} was trained on {theirs}"
        if needed > 1 or within:
            raise ValueError(f"{says}: give time steps as far apart")
        note(f"{says}: it starts from one frame, the latest, so that this changes nothing")
    shortest = min((trajectory.shape[0] for trajectory in trajectories), default=0)
    if shortest < needed:
        raise ValueError(
            f"{path} holds {len(trajectories)} start(s) of {shortest} time step(s), and {name} starts from {needed}: "
            f"{forecast.past} frame(s), {forecast.lead} time step(s) apart. Give a longer piece"
        )
    for trajectory in [] if within else trajectories:
        if gaps := [at for at in timing_of(trajectory).breaks if at > trajectory.shape[0] - needed]:
            raise ValueError(
                f"{path} has a gap in time before its time step {gaps[-1]} of {trajectory.shape[0]}, and {name} starts "
                f"from the last {needed}: fill it"
            )


def check_metadata(source: str | Path, name: str, forecast: Forecast, metadata: Metadata) -> None:
    """Raises ValueError for other units or coordinates than the model was trained on."""
    for mine, theirs in metadata.differences(forecast.metadata, forecast.names, forecast.every):
        raise ValueError(
            f"{source} has {mine}, and {name} was trained on {theirs}: bring them to that, or correct or drop what the "
            "file says"
        )


def check_variables(path: Path, name: str, forecast: Forecast, names: tuple[str, ...], note: Note) -> None:
    """Raises ValueError for other variables."""
    if not have_names(names):
        return
    if not have_names(forecast.variables):
        note(f"{path} names its variables and {name} does not: {', '.join(names)} are taken in this order")
    elif names != forecast.variables:
        missing = [each for each in forecast.variables if each not in names]
        raise ValueError(
            f"{path} holds the variables {', '.join(names)}, and {name} was trained on "
            f"{', '.join(forecast.variables)}: bring them to that; missing: {', '.join(missing) or 'none'}"
        )


def have_names(variables: tuple[str, ...]) -> bool:
    """Whether they are names that a source gave, and no numbers of channels: pressure levels are names."""
    return bool(variables) and variables not in (numbered(len(variables)), tuple(map(str, range(len(variables)))))
