"""Where forecasts start: at frames of held-out data, after which the truth is known, or in a file of one's own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data.source import read_arrays, reading
from dualrate.diffusion.context import Shape
from dualrate.drawing.drawer import spread
from dualrate.experiment.model import Model
from dualrate.forecasts.clips import CLIPS, ClipReading
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.externals import Forcings, forcings_after
from dualrate.forecasts.fields import Fields
from dualrate.forecasts.geometry import Order, ordered
from dualrate.forecasts.metadata import Metadata
from dualrate.forecasts.rollout import Frame, begins, forecast_of, frame_shape
from dualrate.forecasts.sources import check_variable_names, find_fields, step_of
from dualrate.forecasts.splits import part_of, pieces_of
from dualrate.forecasts.start_checks import check_axes, check_shapes, strange_units
from dualrate.forecasts.statistics import as_float32
from dualrate.forecasts.trajectories import FieldSource, Trajectory, numbered, timing_of
from dualrate.system.files import check_regular
from dualrate.system.folders import some_of

STARTS = 50  # if nothing else is asked for
DAYS, YEAR = 96.0, 365.2425 * 24  # hours
YEARS = 2 * 360 * 24.0  # hours, of years of 360 days or more


@dataclass(frozen=True, eq=False)
class Starts:
    """Starts of forecasts.

    past:     (N, past, C, H, W) float32, in the data's units, the latest last; source: where they are from, in words
    known: frames after each that the data has, of those asked for; truth: start i -> (known, C, H, W)
    observed: whether the past is what was observed: it gets no more noise, and is 0 between the observed points
    places:   (N, 2) of starts from the data, trajectory of the test split and time step of the latest frame in it
    training: the fields that the model was trained on, where they were read
    dates:    (N,) times of the latest frames, where they are known; metadata: what the source says
    order:    of points in the file that they are from; None: that of the training data
    forcings: what is known ahead of each, where the forecast has forcings
    strange: in words, that their numbers look like another unit
    """

    past: Frame
    source: str
    known: int = 0
    truth: Callable[[int], Frame] | None = None
    observed: bool = False
    places: NDArray[np.int64] | None = None
    training: Fields | None = None
    dates: NDArray[Any] | None = None
    metadata: Metadata = Metadata()
    order: Order | None = None
    forcings: Forcings | None = None
    strange: str = ""

    def __len__(self) -> int:
        return len(self.past)

    @property
    def groups(self) -> Tensor:
        """(N,) int64: the trajectory of each, whose starts are not independent."""
        return torch.arange(len(self)) if self.places is None else torch.from_numpy(self.places[:, 0])

    def digest(self, begins: Sequence[int] = (0,), parts: NDArray[np.float64] | None = None) -> str:
        """sha256 of all starts, and of what is known ahead of them for windows that begin at these time steps.

        parts: of the year, where these count. Raises ValueError where that is not known.
        """
        ahead = [] if parts is None else [parts.tobytes()]
        if (forcings := self.forcings) is not None:
            later = begins[1:] if forcings.externals.variables else ()  # what is computed follows from the first
            for i in range(len(self)):
                ahead += [forcings([i]).numpy().tobytes(), *(forcings.values(i, after).tobytes() for after in later)]
        kind = repr((self.past.shape, "observed")) if self.observed else repr(self.past.shape)
        return hashlib.sha256(b"".join((kind.encode(), self.past.tobytes(), *ahead))).hexdigest()


def held_out_starts(model: Model, frames: int, count: int | None = None) -> Starts:
    """Starts evenly spread over the test split of a model's data, and the frames that come after them there.

    Where pieces of trajectories without a gap in time are too short for all these frames, the known frames are as many
    as fit the longest pieces that together hold half of all time steps, but at least a window where one piece has room
    for it. Shorter pieces are left out.
    count: None: STARTS, or as many as there are. Raises ValueError for more than there are, for data that changed since
    the training, and what reading raises.
    """
    forecast, training = forecast_of(model), training_fields(model)
    source = model.experiment.data.source
    data = forecast.read_fields(model.experiment.data, "test", forecast.statistics)
    _check_metadata(source, model.name, forecast, data.metadata)
    lengths = [stop - first for trajectory in data.trajectories for first, stop in pieces_of(trajectory)]
    longest = (max(lengths) - forecast.past_steps) // forecast.ahead
    if longest < 1:
        raise ValueError(
            f"{data.name} has at most {max(lengths)} time step(s) in a row, and a forecast starts from {forecast.past} "
            f"frame(s), {forecast.lead} apart, and makes one {forecast.ahead} later: give starts of your own, --from "
            "FILE"
        )
    order = sorted(lengths, reverse=True)
    half = order[int(np.searchsorted(np.cumsum(order), sum(order) / 2))]
    truth_frames = max(
        min(frames, (half - forecast.past_steps) // forecast.ahead), min(frames, forecast.frames, longest)
    )
    past, span = forecast.past_steps, forecast.past_steps + truth_frames * forecast.ahead
    short = sum(length < span for length in lengths)
    reach = span
    if forecast.externals.variables:  # the last window wants those of all its frames
        reach = max(span, past + begins(model, frames)[-1] + forecast.externals.lead * forecast.externals.frames)
    windows = data.windows(reach)
    if count is not None and count > len(windows):
        most = max(
            (n for n in range(1, truth_frames) if _starts_of(lengths, past + n * forecast.ahead) >= count), default=0
        )
        raise ValueError(
            f"{data.name} has {len(windows)} start(s) of which {truth_frames} of the {frames} frame(s) asked for are "
            f"known, got --starts {count}: "
            + (f"so many starts allow --frames {most} at most" if most else f"take at most {len(windows)}")
        )
    chosen = windows[spread(min(len(windows), STARTS if count is None else count), len(windows))]
    start = [data.frames(int(i), int(first), past)[:: forecast.lead] for i, first in chosen]

    def truth(number: int) -> Frame:
        i, first = map(int, chosen[number])
        return data.frames(i, first + past - 1, span - past + 1)[forecast.ahead :: forecast.ahead]

    externals = forecast.externals, forecast.geometry, data.trajectories, data.forced
    return Starts(
        np.stack(start).astype(np.float32),
        f"{len(chosen)} of {data.name}" + f", without {short} of its {len(lengths)} pieces, too short" * bool(short),
        truth_frames,
        truth,
        places=chosen + np.array([0, past - 1]),
        training=training,
        dates=_dates(timing_of(data.trajectories[i]).times[first : first + past] for i, first in chosen),
        metadata=data.metadata,
        forcings=forcings_after(*externals, chosen + np.array([0, past - 1])),
    )


def _starts_of(lengths: Iterable[int], span: int) -> int:
    """The number of windows of this many time steps in pieces of these lengths."""
    return sum(max(0, length - span + 1) for length in lengths)


def _dates(times: Iterable[NDArray[Any]]) -> NDArray[Any] | None:
    """The last time of each start; None where a start has none."""
    last = [each[-1:] for each in times]
    return np.concatenate(last) if all(map(len, last)) else None


def training_fields(model: Model) -> Fields:
    """The fields that a model was trained on, all of them read once.

    Raises ValueError where others lie there by now, and what reading raises.
    """
    source, forecast = model.experiment.data.source, forecast_of(model)
    fields, expected = forecast.read_fields(model.experiment.data, "train"), forecast.fingerprint
    if expected and fields.fingerprint != expected:
        raise ValueError(
            f"{source} has changed since {model.name} was trained: its training fields have the fingerprint "
            f"{fields.fingerprint[:12]}, those of the run {expected[:12]}. Put back what it was trained on, or "
            f"forecast from the new fields: --from {source}"
        )
    return fields


def read_starts(path: Path, model: Model, note: Callable[[str], None] = lambda text: None) -> Starts:
    """Starts from a file: (time, C, space) of one, (start, time, C, space) of several; the latest time steps are taken.

    They are what was observed, with its own noise: at all points, or at those that the model observes. Time steps are
    those of the training data. Space is (H, W), or (W,) of fields of one dimension. Of a file of another kind than .npy
    and .npz, and of frames:FOLDER, each trajectory is a start. Of four axes, a field of one dimension may also be
    (time, C, 1, W).
    note: called with what is taken for granted: names, units and points that the file or the model does not say; the
    time between frames, of which one alone is taken; and with another calendar
    Variables are found by their names, where the file and the model say them.
    Raises ValueError for other shapes, too few time steps, another time between them, a gap, other variables, axes,
    units or coordinates or another order of axes, and for what is not finite; OSError for a file that cannot be read.
    """
    forecast, needed = forecast_of(model), forecast_of(model).past_steps
    shapes = [frame_shape(model)]  # of a frame: whole, and as the model observes it
    observed = shapes[0][0], *forecast.shape(model.shape)[1:]
    if observed != shapes[0] and not forecast.difference:  # a difference is from a whole frame
        shapes.append(observed)
    if path.suffix in (".npy", ".npz"):
        fields, order, forced = _from_array(path, model, shapes), None, None
    else:
        fields, order, forced = _from_fields(path, model, shapes[0], note)
    if fields.note:
        note(f"{path}: {fields.note}")
    _check_time(path, model.name, forecast, fields, note)
    check_axes(path, model.name, forecast, fields.axes)
    if {*forecast.variables} == {*fields.variables}:
        fields = fields.picked(forecast.variables)
    _check_variables(path, model.name, forecast, fields.variables, note)
    _check_metadata(path, model.name, forecast, fields.metadata)
    check_shapes(path, model.name, fields, shapes)
    if fields.metadata.said and not forecast.metadata.said:
        note(f"{model.name} does not say in which units and at which points it was trained: those of {path} are taken")
    if unsaid := fields.metadata.unsaid(forecast.metadata, forecast.names):
        note(f"{path} does not say the {unsaid}: those that {model.name} was trained on are taken")
    calendar, expected = fields.metadata.calendar, forecast.metadata.calendar
    if calendar and expected and calendar != expected:
        note(f"{path} has the calendar {calendar}, and {model.name} was trained on {expected}: dates are in {calendar}")
    latest = [
        trajectory[trajectory.shape[0] - needed : trajectory.shape[0]][:: forecast.lead]
        for trajectory in fields.trajectories
    ]
    past = np.stack([as_float32(path, trajectory) for trajectory in latest])
    hidden = forecast.geometry.hidden
    if hidden is not None:
        hidden = hidden if past.shape[2:] == shapes[0] else hidden[:, :: forecast.every, :: forecast.every]
        past = forecast.statistics.filled(past, hidden)
    if len(bad := np.argwhere(~np.isfinite(past))):
        start, step, channel = bad[0][:3]
        raise ValueError(
            f"{path} holds {len(bad)} value(s) that are not finite, the first in start {start}, frame {step}, channel "
            f"{channel} of those that a forecast starts from: fill them in first"
        )
    strange = strange_units(path, model.name, forecast, fields.metadata, past)
    if strange:
        note(strange)
    whole = past if past.shape[2:] == shapes[0] else forecast.spread_out(past, shapes[0])
    dates = _dates(timing_of(trajectory).times for trajectory in fields.trajectories)
    more = {
        "metadata": fields.metadata,
        "order": order,
        "forcings": _forcings(path, forecast, fields, forced, dates, shapes[0]),
        "strange": strange,
    }
    return Starts(whole, str(path), observed=True, dates=dates, **more)


def _from_fields(
    path: Path, model: Model, frame: Shape, note: Callable[[str], None]
) -> tuple[FieldSource, Order, FieldSource | None]:
    """Each trajectory of a source of fields, with the model's variables alone, where it has them all; its order; and
    the variables that the model has as forcings.

    With those, frames at the end in which all others are missing are still to come.
    Raises ValueError for forcings that are not there.
    """
    forecast, order, source = forecast_of(model), Order(), str(path)
    how = ClipReading.of(model.experiment.data, forecast.past_steps)
    if forecast.of_clips:
        source, (_, height, width) = f"{CLIPS}{source.removeprefix(CLIPS)}", frame
        rate = how.rate or (1 / forecast.step if forecast.step else None)
        how = replace(how, rate=rate, size=how.size or (height if height == width else None))
    _, fields = find_fields(source, clips=how)
    if forecast.geometry.axes:
        fields, order = ordered(fields)
    forced = fields.picked(forecast.externals.variables) if forecast.externals.variables else None
    if forced is not None:
        fields = fields.picked([name for name in fields.variables if name not in forced.variables])
    if {*forecast.variables} <= {*fields.variables}:
        if others := [name for name in fields.variables if name not in forecast.variables]:
            note(f"{path}: {some_of(others)} are left out, which {model.name} was not trained on")
        fields = fields.picked(forecast.variables)
    if forced is not None:
        ends = [_last_known(trajectory) for trajectory in fields.trajectories]
        parts = [part_of(each, 0, end) for each, end in zip(fields.trajectories, ends, strict=True)]
        fields = replace(fields, splits={"": parts})
    return fields, order, forced


def _last_known(trajectory: Trajectory) -> int:
    """The number of frames up to the last one that has a number."""
    count = trajectory.shape[0]
    while count > 1 and not np.isfinite(trajectory[count - 1 : count]).any():
        count -= 1
    return count


def _forcings(
    path: Path,
    forecast: Forecast,
    fields: FieldSource,
    forced: FieldSource | None,
    dates: NDArray[Any] | None,
    frame: Shape,
) -> Forcings | None:
    """Forcings after the starts of a file. forced: the variables among them, beyond the frames of `fields`"""
    externals, (_, *grid) = forecast.externals, frame
    if not externals.forcings:
        return None
    if externals.variables and forced is None:
        raise ValueError(
            f"{path} has no variable {', '.join(externals.variables)}, a forcing: give a .nc or .zarr file"
        )

    def values(number: int, after: int) -> NDArray[np.float32]:
        assert forced is not None
        number %= len(forced.trajectories)
        at = fields.trajectories[number].shape[0] - 1 + after
        x = externals.values(forced.trajectories[number], at)
        return x if [*x.shape[2:]] == grid else forecast.spread_out(x, frame)

    return Forcings(externals, forecast.geometry, (grid[0], grid[1]), dates, values)


def _check_time(path: Path, name: str, forecast: Forecast, fields: FieldSource, note: Callable[[str], None]) -> None:
    """Raises ValueError for another step than the model was trained on, for too few time steps, and for a gap."""
    trajectories, needed = fields.trajectories, forecast.past_steps
    apart = [] if fields.step is None else [fields.step]
    for steps in (timing_of(trajectory).steps for trajectory in trajectories):
        apart += steps[max(0, len(steps) - needed + 1) :].tolist()
    if wrong := [step for step in apart if forecast.step and not math.isclose(step, forecast.step, rel_tol=1e-3)]:
        (mine, theirs) = (plain_lead(step, lead_unit(forecast)) for step in (wrong[0], forecast.step or 0.0))
        says = f"{path} has {mine} between its time steps, and {name} was trained on {theirs}"
        if needed > 1:
            raise ValueError(f"{says}: give time steps as far apart")
        note(f"{says}: it starts from one frame, the latest, so that this changes nothing")
    shortest = min((trajectory.shape[0] for trajectory in trajectories), default=0)
    if shortest < needed:
        raise ValueError(
            f"{path} holds {len(trajectories)} start(s) of {shortest} time step(s), and {name} starts from {needed}: "
            f"{forecast.past} frame(s), {forecast.lead} time step(s) apart. Give a longer piece"
        )
    for trajectory in trajectories:
        if gaps := [at for at in timing_of(trajectory).breaks if at > trajectory.shape[0] - needed]:
            raise ValueError(
                f"{path} has a gap in time before its time step {gaps[-1]} of {trajectory.shape[0]}, and {name} starts "
                f"from the last {needed}: fill it"
            )


def _check_metadata(source: str | Path, name: str, forecast: Forecast, metadata: Metadata) -> None:
    """Raises ValueError for other units or coordinates than the model was trained on."""
    for mine, theirs in metadata.differences(forecast.metadata, forecast.names, forecast.every):
        raise ValueError(
            f"{source} has {mine}, and {name} was trained on {theirs}: bring them to that, or correct or drop what the "
            "file says"
        )


def _check_variables(
    path: Path, name: str, forecast: Forecast, names: tuple[str, ...], note: Callable[[str], None]
) -> None:
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


def lead_unit(forecast: Forecast, starts: Starts | None = None) -> str:
    """The unit of lead times, of dates hours; empty where neither the run nor its data say it."""
    of_data = starts.metadata.time if starts is not None and starts.places is not None else ""
    return (forecast.metadata.time or of_data).partition(" since ")[0] if forecast.step is not None else ""


def plain_lead(time: float, unit: str, longest: float | None = None) -> str:
    """A length of time with its unit, for people. longest: by which the unit is chosen; None: the time itself"""
    factor, unit = plain_unit(time if longest is None else longest, unit)
    return f"{time * factor:.6g} {unit}".rstrip()


def plain_unit(longest: float, unit: str) -> tuple[float, str]:
    """The factor and the unit by which people read times up to the longest: of hours, days from `DAYS` on, years from
    `YEARS` on."""
    if unit != "hours" or longest < DAYS:
        return 1.0, unit
    return (1 / 24, "days") if longest < YEARS else (1 / YEAR, "years")


def have_names(variables: tuple[str, ...]) -> bool:
    """Whether they are names that a source gave, and no numbers of channels: pressure levels are names."""
    count = len(variables)
    return bool(variables) and variables not in (numbered(count), tuple(map(str, range(count))))


def _from_array(path: Path, model: Model, shapes: Sequence[Shape]) -> FieldSource:
    """The starts of an array, with the names of its channels and the time between its frames if the file says them."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path} to start from: name one of arrays over time")
    if path.suffix == ".npy":
        check_regular(path)
        with reading(path, ".npy"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        return FieldSource({"": _divided(path, array, model, shapes)}, (), None)

    def wanted(members: list[str]) -> list[str]:
        fields = [name for name in members if name not in ("variables", "step")]
        if "fields" not in members and len(fields) != 1:
            raise ValueError(f"{path} has the arrays {some_of(members)}: name the one to start from `fields`")
        chosen = "fields" if "fields" in members else fields[0]
        return [chosen, *(name for name in ("variables", "step") if name in members)]

    arrays = read_arrays(path, wanted)
    names, step = arrays.pop("variables", np.array([])), step_of(path, arrays.pop("step", None))
    (array,), names = arrays.values(), tuple(map(str, np.atleast_1d(names)))
    check_variable_names(str(path), names, shapes[0][0])
    return FieldSource({"": _divided(path, array, model, shapes)}, names, step)


def _divided(path: Path, array: NDArray[Any], model: Model, shapes: Sequence[Shape]) -> list[NDArray[Any]]:
    """(time, C, H, W) of each start. shapes: (C, H, W) that a frame may have. Raises ValueError for other arrays."""
    forms: list[str] = []
    for channels, height, width in shapes:
        frame = channels, height, width
        if height == 1 and array.shape[2:] == frame:
            return list(array)
        if height == 1 and array.ndim == 4 and array.shape[1:] == frame:
            return [_one_start(path, array, forecast_of(model).past_steps)]
        space = (channels, width) if height == 1 else frame
        count = array.ndim - len(space)
        if count in (1, 2) and array.shape[count:] == space:
            starts = array if count == 2 else array[None]
            return list(starts[:, :, :, None] if height == 1 else starts)
        forms.append(" or ".join(f"({lead}, {', '.join(map(str, space))})" for lead in ("time", "start, time")))
    raise ValueError(
        f"{path} holds an array of {array.shape}, and {model.name} starts from {' or, as observed, '.join(forms)}: "
        "bring it to that"
    )


def _one_start(path: Path, array: NDArray[Any], needed: int) -> NDArray[Any]:
    """The array of a start, (time, C, 1, W). Raises ValueError where it may as well be (start, time = 1, C = 1, W)."""
    frames, channels, _, width = array.shape
    if frames > 1 and channels == needed == 1:
        raise ValueError(
            f"{path} holds an array of {array.shape}: {frames} starts of one time step, or {frames} time steps of one "
            f"start. Make it (time, channel, space) = ({frames}, 1, {width}) for one start, or (start, time, channel, "
            f"y, space) = ({frames}, 1, 1, 1, {width}) for {frames} of them"
        )
    return array
