"""Where forecasts start: at frames of held-out data, after which the truth is known, or in a file of one's own."""

from __future__ import annotations

import hashlib
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
from dualrate.forecasts.externals import Forcings
from dualrate.forecasts.fields import Fields
from dualrate.forecasts.geometry import Order, ordered
from dualrate.forecasts.metadata import Metadata, level_of
from dualrate.forecasts.model import Frame, begins, forecast_of, frame_shape
from dualrate.forecasts.simulations import SIMULATIONS
from dualrate.forecasts.sources import check_variable_names, find_fields, step_of
from dualrate.forecasts.splits import part_of, pieces_of
from dualrate.forecasts.start_checks import Note, at_levels, check_file, check_metadata, strange_units
from dualrate.forecasts.statistics import as_float32, survey
from dualrate.forecasts.trajectories import FieldSource, Trajectory, check_finite, timing_of
from dualrate.system.files import check_regular
from dualrate.system.folders import some_of

STARTS = 50  # if nothing else is asked for
COUNT = "--starts (in Python count)"
TO_SCORE = f"{COUNT} takes so many starts within longer data, and scores them by the frames after"


@dataclass(frozen=True, eq=False)
class Starts:
    """Starts of forecasts.

    past:     (N, past, C, H, W) float32, in the data's units, the latest last; source: where they are from, in words
    known: frames after each that the data has, of those asked for; truth: start i -> (known, C, H, W)
    observed: whether the past is what was observed: it gets no more noise, and is 0 between the observed points
    places:   (N, 2) of starts within data, trajectory (of a run's own data, of the test split) and time step of the
              latest frame in it
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

    @property
    def says(self) -> str:
        """A line on where they are, and on what is known after them."""
        if self.places is not None:
            return f"starts: {self.source}; of each the truth of {self.known} frame(s) is known"
        return f"starts: the latest frames of {self.source}: nothing comes after them to score against; " + TO_SCORE

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
    check_metadata(source, model.name, forecast, data.metadata)
    return replace(_within(forecast, data, frames, count, begins(model, frames)[-1]), training=training)


def _within(forecast: Forecast, data: Fields, frames: int, count: int | None, last: int) -> Starts:
    """Starts evenly spread over fields, as of `held_out_starts`. last: time step at which the last window begins"""
    lengths = [stop - first for trajectory in data.trajectories for first, stop in pieces_of(trajectory)]
    past, longest = forecast.past_steps, (max(lengths) - forecast.past_steps) // forecast.ahead
    if longest < 1:
        raise ValueError(
            f"{data.name} has at most {max(lengths)} time step(s) in a row, and a forecast starts from {forecast.past} "
            f"frame(s), {forecast.lead} apart, and makes one {forecast.ahead} later: give a longer file, or the latest "
            f"frames of one (a file without {COUNT}), which are not scored"
        )
    order = sorted(lengths, reverse=True)
    half = order[int(np.searchsorted(np.cumsum(order), sum(order) / 2))]
    truth_frames = max(min(frames, (half - past) // forecast.ahead), min(frames, forecast.frames, longest))
    span = past + truth_frames * forecast.ahead
    short = sum(length < span for length in lengths)
    reach = span
    if forecast.externals.variables:  # the last window wants those of all its frames
        reach = max(span, past + last + forecast.externals.lead * forecast.externals.frames)
    windows = data.windows(reach)
    if count is not None and count > len(windows):
        most = truth_frames - 1
        while most and sum(max(0, length - past - most * forecast.ahead + 1) for length in lengths) < count:
            most -= 1
        raise ValueError(
            f"{data.name} has {len(windows)} start(s) of which {truth_frames} of the {frames} frame(s) asked for are "
            f"known, got {count} as {COUNT}: "
            + (f"so many allow frames {most} at most" if most else f"take at most {len(windows)}")
        )
    chosen = windows[spread(min(len(windows), STARTS if count is None else count), len(windows))]
    start = [data.frames(int(i), int(first), past)[:: forecast.lead] for i, first in chosen]

    def truth(number: int) -> Frame:
        i, first = map(int, chosen[number])
        return data.frames(i, first + past - 1, span - past + 1)[forecast.ahead :: forecast.ahead]

    places = chosen + np.array([0, past - 1])
    return Starts(
        np.stack(start).astype(np.float32),
        f"{len(chosen)} of {data.name}" + f", without {short} of its {len(lengths)} pieces, too short" * bool(short),
        truth_frames,
        truth,
        places=places,
        dates=_dates(timing_of(data.trajectories[i]).times[first : first + past] for i, first in chosen),
        metadata=data.metadata,
        forcings=forecast.forcings_after(data.trajectories, data.forced, places),
    )


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
    if expected and fields.fingerprint != expected and source not in SIMULATIONS:  # which round as their machine does
        raise ValueError(
            f"{source} has changed since {model.name} was trained: its training fields have the fingerprint "
            f"{fields.fingerprint[:12]}, those of the run {expected[:12]}. Put back what it was trained on, or "
            f"give the new fields as starts (--from {source})"
        )
    return fields


def read_starts(
    path: Path, model: Model, note: Note = lambda text: None, *, frames: int = 1, count: int | None = None
) -> Starts:
    """Starts from a file: (time, C, space) of one, (start, time, C, space) of several; the latest time steps are taken.

    They are what was observed, with its own noise: at all points, or at those that the model observes. Time steps are
    those of the training data. Space is (H, W), or (W,) of fields of one dimension. Of a file of another kind than .npy
    and .npz, and of clips:FOLDER, each trajectory is a start. Of four axes, a field of one dimension may also be
    (time, C, 1, W).
    count: so many starts, evenly spread over all time steps, and up to `frames` that come after each, to score against
    note: called with what is taken for granted: names, units and points that the file or the model does not say; the
    time between frames, of which one alone is taken; and with another calendar
    Variables are found by their names, where the file and the model say them.
    Raises ValueError for other shapes, too few time steps, another time between them, a gap, other variables, axes,
    units or coordinates or another order of axes, and for what is not finite; OSError for a file that cannot be read.
    """
    forecast = forecast_of(model)
    shapes = [frame_shape(model)]  # of a frame: whole, and as the model observes it
    observed = shapes[0][0], *forecast.shape(model.shape)[1:]
    if observed != shapes[0] and not forecast.difference:  # a difference is from a whole frame
        shapes.append(observed)
    if path.suffix.lower() in (".npy", ".npz"):
        fields, order, ahead = _from_array(path, model, shapes), None, []
    else:
        fields, order, ahead = _from_fields(path, model, shapes[0], note)
    if fields.note:
        note(f"{path}: {fields.note}")
    fields = check_file(path, model, fields, shapes, note, within=count is not None)
    if order and forecast.geometry.axes and replace(order, turns=None) != replace(forecast.geometry.order, turns=None):
        note(f"{path} has latitudes, longitudes or axes in another order than {model.name}: they are put in that")
    if (names := forecast.externals.variables) and not ahead:
        raise ValueError(f"{path} has no variable {', '.join(names)}, a forcing: give a .nc or .zarr file")
    if count is None:
        starts = _latest(path, forecast, fields, ahead, shapes[0])
    else:
        if fields.trajectories[0].shape[1:] != shapes[0]:
            raise ValueError(f"{path} holds the observed points alone, so that no truth is known: drop {COUNT}")
        about, hidden = (fields.metadata, len(fields.space)), forecast.geometry.hidden
        hashed, _ = survey(str(path), fields.trajectories, forecast.names, hidden=hidden, about=about)
        read = fields.trajectories, forecast.names, fields.step, forecast.statistics, hashed
        data = Fields(str(path), *read, metadata=fields.metadata, hidden=hidden, forced=ahead)
        starts = _within(forecast, data, frames, count, begins(model, frames)[-1])
        try:
            starts = replace(starts, training=training_fields(model))
        except (OSError, ValueError) as error:
            note(f"{path}: the forecast is not scored, since scores need the training data: {error}")
            starts = replace(starts, truth=None, known=0)
    every = 1 if fields.trajectories[0].shape[1:] == shapes[0] else forecast.every
    seen = starts.past[..., ::every, ::every]
    if strange := strange_units(path, model.name, forecast, fields.metadata, seen):
        note(strange)
    return replace(starts, observed=True, metadata=fields.metadata, order=order, strange=strange)


def _latest(path: Path, forecast: Forecast, fields: FieldSource, ahead: Sequence[Trajectory], frame: Shape) -> Starts:
    """A start at the latest frames of each trajectory. ahead: the variables that are forcings; frame: (C, H, W)"""
    needed, hidden = forecast.past_steps, forecast.geometry.hidden
    ends = [trajectory.shape[0] for trajectory in fields.trajectories]
    latest = [each[end - needed : end][:: forecast.lead] for each, end in zip(fields.trajectories, ends, strict=True)]
    past = np.stack([as_float32(path, trajectory) for trajectory in latest])
    if hidden is not None:
        hidden = hidden if past.shape[2:] == frame else hidden[:, :: forecast.every, :: forecast.every]
        past = forecast.statistics.filled(past, hidden)
    times = [timing_of(trajectory).times for trajectory in fields.trajectories]
    for start, frames in enumerate(past):
        of_frames = times[start][-needed :: forecast.lead]
        about = fields.metadata, len(fields.space)
        check_finite(frames, forecast.names, about, of_frames, f"{path}: start {start}", 0)
    places = np.array([*enumerate(ends)]) - np.array([0, 1])
    forcings = forecast.forcings_after(fields.trajectories, ahead, places, frame)
    return Starts(forecast.spread_out(past, frame), str(path), dates=_dates(times), forcings=forcings)


def _from_fields(path: Path, model: Model, frame: Shape, note: Note) -> tuple[FieldSource, Order, list[Trajectory]]:
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
    wanted = *forecast.variables, *forecast.externals.variables
    try:  # variables of other grids may lie beside them
        fields = find_fields(source, names=wanted, clips=how)[1]
    except ValueError:  # other names, or levels in another unit
        fields = at_levels(find_fields(source, clips=how)[1], forecast)
    if forecast.geometry.axes:
        fields, order = ordered(fields)
    forced, names = fields.picked(forecast.externals.variables), fields.variables
    fields = fields.picked([name for name in names if name not in forced.variables])
    if {*forecast.variables} <= {*fields.variables}:
        used = {each for name in wanted for each in (name, level_of(name)[0])}
        if extra := [name for name in fields.varying or fields.variables if name not in used]:
            note(f"{path}: {some_of(extra)} are left out, which {model.name} was not trained on")
        fields = fields.picked(forecast.variables)
    if forced.variables:
        ends = [_last_known(trajectory) for trajectory in fields.trajectories]
        parts = [part_of(each, 0, end) for each, end in zip(fields.trajectories, ends, strict=True)]
        fields = replace(fields, splits={"": parts})
    return fields, order, forced.trajectories if forced.variables else []


def _last_known(trajectory: Trajectory) -> int:
    """The number of frames up to the last one that has a number."""
    count = trajectory.shape[0]
    while count > 1 and not np.isfinite(trajectory[count - 1 : count]).any():
        count -= 1
    return count


def _from_array(path: Path, model: Model, shapes: Sequence[Shape]) -> FieldSource:
    """The starts of an array, with the names of its channels and the time between its frames if the file says them."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path} to start from: name one of arrays over time")
    if path.suffix.lower() == ".npy":
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
