"""Forecasts: starts, and roll-outs of members from them.

    past = start                                         frames of the data, in its units
    for each window:
        y = past, normalised and observed                of a member; of a start, in its first window
        x ~ model given y                                heavy: once a start in the first window, then once a member
        frames = x in the data's units                   written at once
        past = the last of (past, frames)

The first call of the heavy network is shared by all members of a start. After it each has a past of its own.

A model of Rolling Diffusion (methods/rolling.py) makes a frame at a time, by rolls of as many steps as the plan has. A
batch that was killed is drawn again from its start, and what is not there is written.

Start i has the key i + seed; noise of window w of member m has key + 2^20 w + 2^40 m, that of what is observed too. So
the first window is what `Drawer` draws, and the number of members decides no frame. Batches act on rounding alone,
which a chaotic roll-out amplifies. What goes on from a window are its frames: a roll-out that was interrupted goes on
with the same bits. forecast_folder.py keeps them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data.fields import breaks_of, find_fields, numbered, step_of
from dualrate.data.forecast import Fields, Forecast, pieces_of, read_fields
from dualrate.data.source import read_arrays, reading
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import SharedNoise
from dualrate.diffusion.random import Draws
from dualrate.diffusion.rolling import Rolling
from dualrate.diffusion.values import Shape
from dualrate.drawing.drawer import Drawer, spread
from dualrate.experiment.experiment import Model
from dualrate.methods.rolling import roll
from dualrate.sampling.trajectory import MEMBER, sample_batches
from dualrate.system.device import own_defaults
from dualrate.system.folders import some_of

WINDOW = 1 << 20  # between the keys of two windows of a roll-out; starts and windows are fewer
SAME_AXIS = {"lat": "y", "latitude": "y", "lon": "x", "longitude": "x"}
STARTS = 50  # if nothing else is asked for
Frame = NDArray[np.float32]


def forecast_of(model: Model) -> Forecast:
    """What the model is given and makes. Raises ValueError for one that is no forecast."""
    if not isinstance(condition := model.experiment.condition, Forecast):
        raise ValueError(
            f"{model.name} is no forecast: `dualrate sample` draws what it makes, and `dualrate train forecast` trains "
            "forecasts of arrays"
        )
    return condition


def frame_shape(model: Model) -> Shape:
    """(C, H, W) of a frame."""
    channels, height, width = model.shape
    return channels // forecast_of(model).frames, height, width


def with_stride(model: Model, stride: int) -> Model:
    """The same model, of whose windows every `stride`-th frame alone is made: the others cost nothing.

    Raises ValueError for a model whose frames are not made each by themselves, and where none would be left.
    """
    forecast, experiment = forecast_of(model), model.experiment
    networks: Any = experiment.networks
    if stride == 1:
        return model
    leads: tuple[int, ...] = getattr(networks, "leads", ())
    if not leads or networks.attention:
        raise ValueError(
            f"{model.name} makes the {forecast.frames} frame(s) of a window together: drop --stride, or train with "
            "--window leads, whose frames are made each by themselves"
        )
    if stride > len(leads):
        raise ValueError(f"{model.name} makes {len(leads)} frames, got a stride of {stride}: give 1 to {len(leads)}")
    leads = leads[stride - 1 :: stride]
    scale = np.array(forecast.scale).reshape(forecast.frames, -1)[stride - 1 :: stride].flatten().tolist()
    fewer: Any = {"frames": len(leads)}
    process = replace(model.process, **fewer) if isinstance(model.process, SharedNoise) else model.process
    experiment = replace(
        experiment,
        networks=replace(networks, leads=leads),
        condition=replace(forecast, stride=stride, scale=tuple(scale), **fewer),
        process=process,
    )
    built, denoiser = experiment.build()
    built.load_state_dict(model.networks.state_dict())
    built.to(model.device).eval().requires_grad_(False)
    return replace(model, experiment=experiment, networks=built, denoiser=denoiser)


@dataclass(frozen=True, eq=False)
class Starts:
    """past: (N, past, C, H, W) float32, in the data's units, the latest last; source: where they are from, in words.

    known: frames after each that the data has, of those asked for; truth: start i -> (known, C, H, W)
    observed: whether the past is what was observed: it gets no more noise, and is 0 between the observed points
    places:   (N, 2) of starts from the data, trajectory of the test split and time step of the latest frame in it
    training: the fields that the model was trained on, where they were read
    """

    past: Frame
    source: str
    known: int = 0
    truth: Callable[[int], Frame] | None = None
    observed: bool = False
    places: NDArray[np.int64] | None = None
    training: Fields | None = None

    def __len__(self) -> int:
        return len(self.past)

    @property
    def groups(self) -> Tensor:
        """(N,) int64: the trajectory of each, whose starts are not independent."""
        return torch.arange(len(self)) if self.places is None else torch.from_numpy(self.places[:, 0])

    @property
    def digest(self) -> str:
        """sha256 of all of them."""
        kind = repr((self.past.shape, "observed")) if self.observed else repr(self.past.shape)
        return hashlib.sha256(kind.encode() + self.past.tobytes()).hexdigest()


def held_out_starts(model: Model, frames: int, count: int | None = None) -> Starts:
    """Starts evenly spread over the test split of a model's data, and the frames that come after them there.

    Where pieces of trajectories without a gap in time are too short for all these frames, as many are known as those
    have that hold half of the time steps, and a whole window if any piece has one; shorter pieces are left out.
    count: None: STARTS, or as many as there are. Raises ValueError for more than there are, for data that changed since
    the training, and what reading raises.
    """
    forecast, training = forecast_of(model), training_fields(model)
    data = read_fields(model.experiment.data.source, "test", forecast.statistics)
    lengths = [stop - first for one in data.trajectories for first, stop in pieces_of(one)]
    longest = (max(lengths) - forecast.known) // forecast.ahead
    if longest < 1:
        raise ValueError(
            f"{data.name} has at most {max(lengths)} time step(s) in a row, and a forecast starts from {forecast.past} "
            f"frame(s), {forecast.lead} apart, and makes one {forecast.ahead} later: give starts of your own, --from "
            "FILE"
        )
    order = sorted(lengths, reverse=True)
    half = order[int(np.searchsorted(np.cumsum(order), sum(order) / 2))]
    known = max(min(frames, (half - forecast.known) // forecast.ahead), min(frames, forecast.frames, longest))
    past, span = forecast.known, forecast.known + known * forecast.ahead
    short = sum(length < span for length in lengths)
    windows = data.windows(span)
    if count is not None and count > len(windows):
        raise ValueError(
            f"{data.name} has {len(windows)} starts of which {known} frame(s) are known, got {count}: take fewer, or "
            "fewer frames"
        )
    chosen = windows[spread(min(len(windows), STARTS if count is None else count), len(windows))]
    start = [data.frames(int(i), int(first), past)[:: forecast.lead] for i, first in chosen]

    def truth(number: int) -> Frame:
        i, first = map(int, chosen[number])
        return data.frames(i, first + past - 1, span - past + 1)[forecast.ahead :: forecast.ahead]

    return Starts(
        np.stack(start).astype(np.float32),
        f"{len(chosen)} of {data.name}" + f", without {short} of its {len(lengths)} pieces, too short" * bool(short),
        known,
        truth,
        places=chosen + np.array([0, past - 1]),
        training=training,
    )


def training_fields(model: Model) -> Fields:
    """The fields that a model was trained on, all of them read once.

    Raises ValueError where others lie there by now, and what reading raises.
    """
    source, expected = model.experiment.data.source, forecast_of(model).fingerprint
    found = read_fields(source, "train")
    if expected and found.fingerprint != expected:
        raise ValueError(
            f"{source} has changed since {model.name} was trained: its training fields have the fingerprint "
            f"{found.fingerprint[:12]}, those of the run {expected[:12]}. Put back what it was trained on, or forecast "
            f"from the new fields: --from {source}"
        )
    return found


def read_starts(path: Path, model: Model, note: Callable[[str], None] = lambda text: None) -> Starts:
    """Starts from a file: (time, C, space) of one, (start, time, C, space) of several; the latest time steps are taken.

    They are what was observed, with its own noise: at all points, or at those that the model observes. Time steps are
    those of the training data. Space is (H, W), or (W,) of fields of one dimension. Of a file of another kind than .npy
    and .npz, and of frames:FOLDER, each trajectory is a start. Of four axes, a field of one dimension may also be
    (time, C, 1, W).
    note: told where names of variables are taken for those of a model that knows none
    Raises ValueError for other shapes, too few time steps, another time between them, a gap, other variables or axes or
    another order of them, and for what is not finite; OSError for a file that cannot be read.
    """
    forecast, frame = forecast_of(model), frame_shape(model)
    needed = forecast.known  # below: a difference is from a whole frame
    coarse = frame if forecast.difference else (frame[0], *forecast.shape(model.shape)[1:])
    axes, steps = (), np.zeros(0)
    if path.suffix in (".npy", ".npz"):
        array, names, step = _array(path)
        own = coarse if array.shape[-1:] == coarse[-1:] else frame
        found = _as_starts(path, array, model, needed, own)
    else:
        _, held = find_fields(path)
        found, names = [one for part in held.splits.values() for one in part], held.variables
        step, axes, steps = held.step, held.axes, held.steps
        own = coarse if found and tuple(found[0].shape[1:]) == coarse else frame
        if odd := [one.shape for one in found if tuple(one.shape[1:]) != own]:
            or_observed = f" or, as observed, (time, *{coarse})" * (coarse != frame)
            raise ValueError(
                f"{path} holds (time, C, H, W) = {odd[0]}, and {model.name} starts from (time, *{frame}){or_observed}"
            )
    apart = [*steps[max(0, len(steps) - needed + 1) :].tolist(), *([] if step is None else [step])]
    wrong = [one for one in apart if forecast.step and not math.isclose(one, forecast.step, rel_tol=1e-3)]
    if wrong:
        raise ValueError(
            f"{path} has {wrong[0]:g} between its time steps, and {model.name} was trained on {forecast.step:g}: give "
            "time steps as far apart"
        )
    if _contradict(axes, forecast.axes):
        raise ValueError(
            f"{path} has the axes of space {', '.join(axes)}, and {model.name} was trained on "
            f"{', '.join(forecast.axes)}: bring them to that"
        )
    shortest = min((one.shape[0] for one in found), default=0)
    if shortest < needed:
        raise ValueError(
            f"{path} holds {len(found)} start(s) of {shortest} time step(s), and {model.name} starts from {needed}: "
            f"{forecast.past} frame(s), {forecast.lead} time step(s) apart. Give a longer piece"
        )
    for one in found:
        if gaps := [at for at in breaks_of(one) if at > one.shape[0] - needed]:
            raise ValueError(
                f"{path} has a gap in time before its time step {gaps[-1]} of {one.shape[0]}, and {model.name} starts "
                f"from the last {needed}: fill it"
            )
    if have_names(names) and not have_names(forecast.variables):
        note(f"{path} names its variables and {model.name} does not: {', '.join(names or ())} are taken in this order")
    elif have_names(names) and names != forecast.variables:
        raise ValueError(
            f"{path} holds the variables {', '.join(names or ())}, and {model.name} was trained on "
            f"{', '.join(forecast.variables)}, in this order: bring them to it"
        )
    latest = [np.asarray(one[one.shape[0] - needed : one.shape[0]], np.float32)[:: forecast.lead] for one in found]
    past = np.stack(latest).reshape(len(found), forecast.past, *own)
    if len(bad := np.argwhere(~np.isfinite(past))):
        start, step, channel = bad[0][:3]
        raise ValueError(
            f"{path} holds {len(bad)} value(s) that are not finite, the first in start {start}, frame {step}, channel "
            f"{channel} of those that a forecast starts from: fill them in first"
        )
    return Starts(past if own == frame else forecast.spread_out(past, frame), str(path), observed=True)


def _contradict(axes: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Whether axes of the same names are in another order, or a coordinate falls in one and rises in the other."""
    (names, ways), (other_names, other_ways) = _named(axes), _named(others)
    if sorted(names) != sorted(other_names):
        return False
    opposite = any(a and b and a != b for a, b in zip(ways, other_ways, strict=True))
    return names != other_names or opposite


def _named(axes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """What each axis is called, by one name, and whether it rises or falls; empty where that is not said."""
    parts = [axis.partition(" (") for axis in axes]
    return [SAME_AXIS.get(name, name) for name, *_ in parts], [way for *_, way in parts]


def have_names(variables: tuple[str, ...] | None) -> bool:
    """Whether they are names that a source gave, and no numbers of channels: pressure levels are names."""
    count = len(variables or ())
    return bool(variables) and variables not in (numbered(count), tuple(map(str, range(count))))


def _array(path: Path) -> tuple[NDArray[Any], tuple[str, ...] | None, float | None]:
    """The array of a file, and the names of its channels and the time between its frames if it says them."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path} to start from: name one of arrays over time")
    if path.suffix == ".npy":
        with reading(path, ".npy"):
            return np.load(path, mmap_mode="r", allow_pickle=False), None, None

    def wanted(there: list[str]) -> list[str]:
        fields = [name for name in there if name not in ("variables", "step")]
        if "fields" not in there and len(fields) != 1:
            raise ValueError(f"{path} has the arrays {some_of(there)}: name the one to start from `fields`")
        chosen = "fields" if "fields" in there else fields[0]
        return [chosen, *(name for name in ("variables", "step") if name in there)]

    arrays = read_arrays(path, wanted)
    names, step = arrays.pop("variables", None), step_of(path, arrays.pop("step", None))
    return next(iter(arrays.values())), None if names is None else tuple(map(str, names.tolist())), step


def _as_starts(path: Path, array: NDArray[Any], model: Model, needed: int, frame: Shape) -> list[NDArray[Any]]:
    """(time, C, H, W) of each start, or of a field of one dimension (time, C, W). Raises ValueError, for others.

    needed: time steps of a start; frame: (C, H, W) of each
    """
    shape = tuple(array.shape)
    if frame[1] == 1 and len(shape) == 5 and shape[2:] == frame:
        return list(array)
    if frame[1] == 1 and len(shape) == 4 and shape[1:] == frame:
        if frame[0] > 1 or needed > 1:
            return [array]
        if shape[0] > 1:
            raise ValueError(
                f"{path} holds an array of {shape}: {shape[0]} starts of one time step, or {shape[0]} time steps of "
                f"one start. Make it (time, channel, space) = ({shape[0]}, 1, {frame[2]}) for one start, or (start, "
                f"time, channel, y, space) = ({shape[0]}, 1, 1, 1, {frame[2]}) for {shape[0]} of them"
            )
    space = (frame[0], frame[2]) if frame[1] == 1 else frame
    if len(shape) not in (len(space) + 1, len(space) + 2) or shape[-len(space) :] != space:
        forms = " or ".join(f"({lead}, {', '.join(map(str, space))})" for lead in ("time", "start, time"))
        raise ValueError(f"{path} holds an array of {shape}, and {model.name} starts from {forms}: bring it to that")
    return list(array if len(shape) == len(space) + 2 else array[None])


@dataclass(frozen=True, eq=False)
class Piece:
    """New frames of some members of some starts. x: (n, m, f, C, H, W) float32, in the data's units, on the host."""

    starts: range
    members: range
    frames: range
    x: Frame


def costs(drawer: Drawer) -> dict[str, float]:
    """frames: that come at once; first_window, later_window: multiply-adds of a member for them.

    A roll makes one frame by one heavy call, whatever the plan's. Before the first one of them a window goes through as
    many whole clocks as it has frames, of which each has a heavy call where contexts age.
    """
    frames, model = forecast_of(drawer.model).frames, drawer.model
    if not isinstance(model.process, Rolling):
        later = replace(drawer, members=1).cost.macs
        return {"frames": frames, "first_window": drawer.cost.macs, "later_window": later}
    calls, steps = model.call_cost, drawer.plan.num_steps
    first = calls.shared(drawer.members).of(frames * steps, frames if model.reuses_context else 1)
    return {"frames": 1, "first_window": round(first), "later_window": round(calls.of(steps, 1))}


def window_cost(drawer: Drawer) -> int:
    """Multiply-adds of a member's first window: of one that rolls, of as many frames."""
    found = costs(drawer)
    later = forecast_of(drawer.model).frames / found["frames"] - 1
    return round(found["first_window"] + later * found["later_window"])


Earlier = Callable[[range, range], Frame]  # starts, members -> their frames that are there, (n, m, f, C, H, W)


def parts(starts: int, drawer: Drawer) -> Iterator[tuple[range, range]]:
    """The starts and members that are rolled out together: at most a batch, and whole starts where that holds one."""
    for some in _split(starts, drawer.seeds_at_once):
        for members in _split(drawer.members, drawer.batch_size):
            yield some, members


def _split(count: int, size: int) -> Iterator[range]:
    return (range(first, min(first + size, count)) for first in range(0, count, size))


def checked(drawer: Drawer, starts: Frame | Tensor, frames: int, seed: int) -> Tensor:
    """The starts, as a tensor. Raises what `roll_out` raises."""
    forecast, past = forecast_of(drawer.model), torch.as_tensor(np.asarray(starts, np.float32))
    expected = (forecast.past, *frame_shape(drawer.model))
    if tuple(past.shape[1:]) != expected or not len(past):
        raise ValueError(f"starts are (N, {', '.join(map(str, expected))}), got {tuple(past.shape)}")
    if seed + len(past) > WINDOW or not 0 < frames <= forecast.frames * WINDOW:
        raise ValueError(
            f"a forecast has at most {WINDOW:,} starts, seed included, and 1 to {forecast.frames * WINDOW:,} frames; "
            f"got {len(past)} starts from seed {seed} on, of {frames} frames"
        )
    if isinstance(drawer.model.process, Rolling) and drawer.plan.t != StepPlan.uniform(drawer.plan.num_steps, 1).t:
        raise ValueError(f"{drawer.model.name} rolls its windows in even steps: drop times, grid or the plan of them")
    if forecast.stride > 1 and forecast.past > 1 and frames > forecast.frames:
        raise ValueError(
            f"{drawer.model.name} starts from {forecast.past} frames, {forecast.lead} time step(s) apart, and makes "
            f"frames {forecast.ahead} apart, from which it cannot go on: ask for {forecast.frames} frame(s) at most, "
            "or drop --stride"
        )
    return past


def roll_out(
    drawer: Drawer,
    starts: Frame | Tensor,
    frames: int,
    *,
    seed: int = 0,
    earlier: Earlier | None = None,
    observed: bool = False,
) -> Iterator[Piece]:
    """Roll out all members of some starts: a batch of rows to its end, then the next; only the last frames are held.

    drawer:   its members are those of each start, its batch size the rows at a time
    starts:   (N, past, C, H, W), in the data's units
    seed:     of the first start
    earlier:  frames of a forecast that was interrupted; what begins after them is all that comes
    observed: as of `Starts`
    Raises ValueError for a model that is no forecast, starts of another shape, and more than 2^20 of them, or windows.
    """
    past, denoiser = checked(drawer, starts, frames, seed), drawer.denoiser
    for some, members in parts(len(past), drawer):
        keys = torch.tensor(some, dtype=torch.int64, device=drawer.model.device) + seed
        there = None if earlier is None else earlier(some, members)
        first = 0 if there is None else there.shape[2]
        if first >= frames:
            continue
        own = past[some.start : some.stop]
        if isinstance(drawer.model.process, Rolling):
            made = _rolled(drawer, denoiser, own, keys, members, first, observed)
        else:
            made = _windows(drawer, denoiser, own, keys, members, there, observed)
        for begun, new in made:
            now = range(begun, min(begun + new.shape[2], frames))
            yield Piece(some, members, now, new[:, :, : len(now)].numpy())
            if now.stop == frames:
                break


def _windows(
    drawer: Drawer,
    denoiser: Denoiser,
    start: Tensor,
    keys: Tensor,
    members: range,
    there: Frame | None,
    observed: bool,
) -> Iterator[tuple[int, Tensor]]:
    """The windows that are not there, without end: the number of their first frame, and (n, m, f, C, H, W)."""
    forecast, held = forecast_of(drawer.model), start[:, None].expand(-1, len(members), *[-1] * 4)
    window = 0 if there is None else there.shape[2] // forecast.frames
    if there is not None and window:
        stop = window * forecast.frames
        latest = torch.tensor(np.asarray(there[:, :, max(0, stop - forecast.past) : stop]))
        held = torch.cat((held, latest), 2)[:, :, -forecast.past :]
    while True:
        still = max(0, forecast.past - window * forecast.frames) if observed else 0
        new = _window(drawer, denoiser, held, keys, members, window, still)
        yield window * forecast.frames, new
        held, window = torch.cat((held, new), 2)[:, :, -forecast.past :], window + 1


def _rolled(
    drawer: Drawer, denoiser: Denoiser, start: Tensor, keys: Tensor, members: range, first: int, observed: bool
) -> Iterator[tuple[int, Tensor]]:
    """By Rolling Diffusion, frame by frame from the first one on, without end: its number, and (n, m, 1, C, H, W).

    Frames before it are drawn again: the window behind them is not on disk.
    """
    model, forecast, process = drawer.model, forecast_of(drawer.model), drawer.model.process
    assert isinstance(process, Rolling)
    past = forecast.statistics.normalised(start.to(model.device)).flatten(1, 2)
    number = torch.arange(members.start, members.stop, device=model.device)
    rows, steps = (keys[:, None] + MEMBER * number).flatten(), drawer.plan.num_steps
    for window in roll(denoiser, process, forecast, past, rows, steps, observed=observed, bfloat16=drawer.bfloat16):
        if window.rolls >= first:
            frame = forecast.statistics.restored(window.frame)
            yield window.rolls, frame.unflatten(0, (len(keys), len(members)))[:, :, None].cpu()


@own_defaults()
def _window(
    drawer: Drawer, denoiser: Denoiser, past: Tensor, keys: Tensor, members: range, window: int, observed: int
) -> Tensor:
    """The frames of one window, (n, m, f, C, H, W). past: (n, m, past, C, H, W), in the data's units; keys: (n,)

    observed: frames of the past that are observations
    """
    model, forecast, count = drawer.model, forecast_of(drawer.model), len(members)
    past = forecast.statistics.normalised(past.to(model.device))
    if window:
        number = torch.arange(members.start, members.stop, device=model.device)
        seeds, rows, shared = (keys[:, None] + WINDOW * window + MEMBER * number).flatten(), past.flatten(0, 1), 1
    else:
        seeds, rows, shared = keys, past[:, 0], count
    y = forecast.observe(rows.flatten(1, 2), Draws(0, seeds), observed)
    (x,) = sample_batches(
        denoiser,
        drawer.step,
        drawer.plan,
        model.shape,
        seeds.tolist(),
        batch_size=len(keys) * count,
        device=model.device,
        bfloat16=drawer.bfloat16,
        given=lambda _: y,
        members=shared,
        first_member=0 if window else members.start,
    )
    frames = forecast.statistics.restored(forecast.frames_of(x, past[:, :, -1].flatten(0, 1)))
    return frames.unflatten(0, (len(keys), count)).cpu()
