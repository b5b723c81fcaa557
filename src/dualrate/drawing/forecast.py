"""Forecasts: roll-outs of members from starts, and a folder of them that a killed process leaves to be gone on with.

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
the first window is what `Drawer` draws, and neither batches nor the number of members decide a frame. What goes on from
a window are its frames as they are on disk: a roll-out that was killed goes on with the same bits.

    OUT/forecast.json      what the forecast is of; another one is never written over it
    OUT/forecast.npy       (start, member, time, C, H, W) float32, in the data's units
    OUT/forecast.journal   which frames are there, a JSON object a line: rows, of starts and members, and frames of each
    OUT/truth.npy          (start, time, C, H, W), of starts from the data, as many frames as it has
    OUT/scores.json        by lead time, where the truth is known (forecast_scores.py)
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.config.ranges import as_path
from dualrate.config.serial import from_json, to_plain
from dualrate.data.field_files import read_file
from dualrate.data.fields import Fields, check_writable, write_fields
from dualrate.data.forecast import Forecast
from dualrate.data.source import read_arrays, reading
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.random import Draws
from dualrate.diffusion.rolling import Rolling
from dualrate.diffusion.values import Shape
from dualrate.drawing.drawer import Drawer, Guidance, plain_step, spread
from dualrate.drawing.samples import Identity, joined_calls, refuse_others
from dualrate.experiment.experiment import Model
from dualrate.methods.rolling import roll
from dualrate.metrics.store import PIXELS, Origin
from dualrate.report.field_pictures import Shown, forecast_figure, write_animation
from dualrate.report.figures import png
from dualrate.runs.train import FORECAST, LOGS
from dualrate.sampling.trajectory import MEMBER, sample_batches
from dualrate.system.device import environment, own_defaults
from dualrate.system.files import (
    append_record,
    naming,
    read_bytes,
    read_records,
    sync,
    whole,
    write_whole,
    written_aside,
)
from dualrate.system.folders import check_link, some_of
from dualrate.system.progress import ImageProgress, run_lock

WINDOW = 1 << 20  # between the keys of two windows of a roll-out; starts and windows are fewer
ARRAY, JOURNAL, TRUTH = "forecast.npy", "forecast.journal", "truth.npy"
PICTURE, ANIMATION = "forecast.png", "forecast.webp"
Format = Literal["npz", "netcdf"]
ENDINGS: dict[Format, str] = {"npz": ".npz", "netcdf": ".nc"}
SCORES = "scores.json"
OURS = (
    FORECAST,
    ARRAY,
    JOURNAL,
    TRUTH,
    SCORES,
    PICTURE,
    ANIMATION,
    *(f"forecast{ending}" for ending in ENDINGS.values()),
)
SAVED_EVERY = 5.0  # seconds of work that a kill may lose
STARTS = 50  # if nothing else is asked for
SHOWN_FRAMES, SHOWN_MEMBERS = 400, 3  # in pictures, at most
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


@dataclass(frozen=True, eq=False)
class Starts:
    """past: (N, past, C, H, W) float32, in the data's units, the latest last; source: where they are from, in words.

    known: frames after each that the data has, of those asked for; truth: start i -> (known, C, H, W)
    block: starts in a row that are of about one trajectory, so not independent
    """

    past: Frame
    source: str
    known: int = 0
    truth: Callable[[int], Frame] | None = None
    block: int = 1

    def __len__(self) -> int:
        return len(self.past)

    @property
    def digest(self) -> str:
        """sha256 of all of them."""
        return hashlib.sha256(repr(self.past.shape).encode() + self.past.tobytes()).hexdigest()


def held_out_starts(model: Model, frames: int, count: int | None = None) -> Starts:
    """Starts evenly spread over the test split of a model's data, and the frames that come after them there.

    If trajectories are too short for all these frames, as many as the longest has are known.
    count: None: STARTS, or as many as there are. Raises ValueError for more than there are, and what reading raises.
    """
    forecast, data = forecast_of(model), model.experiment.data.items("test")
    assert isinstance(data, Fields)
    longest = (max(one.shape[0] for one in data.trajectories) - 1) // forecast.lead + 1
    known = min(frames, longest - forecast.past)
    if known < 1:
        raise ValueError(
            f"{data.name} has at most {longest} frame(s) in a row, {forecast.lead} time step(s) apart, and a forecast "
            f"starts from {forecast.past}: give starts of your own, --from FILE"
        )
    span = (forecast.past + known - 1) * forecast.lead + 1
    windows = data.windows(span)
    if count is not None and count > len(windows):
        raise ValueError(
            f"{data.name} has {len(windows)} starts of which {known} frame(s) are known, got {count}: take fewer, or "
            "fewer frames"
        )
    chosen = windows[spread(min(len(windows), STARTS if count is None else count), len(windows))]
    past = (forecast.past - 1) * forecast.lead + 1
    start = [data.frames(int(i), int(first), past)[:: forecast.lead] for i, first in chosen]

    def truth(number: int) -> Frame:
        i, first = map(int, chosen[number])
        return data.frames(i, first + past - 1, span - past + 1)[forecast.lead :: forecast.lead]

    block = -(-len(chosen) // len({int(i) for i, _ in chosen}))
    return Starts(np.stack(start).astype(np.float32), f"{len(chosen)} of {data.name}", known, truth, block)


def read_starts(path: Path, model: Model) -> Starts:
    """Starts from a file: (time, C, space) of one, (start, time, C, space) of several; the latest time steps are taken.

    Time steps are those of the training data. Space is (H, W), or (W,) of fields of one dimension. Of a file of another
    kind than .npy and .npz each trajectory is a start.
    Raises ValueError for other shapes, too few time steps, other variables or another order of them, and for what is
    not finite; OSError for a file that cannot be read.
    """
    forecast, frame = forecast_of(model), frame_shape(model)
    if path.suffix in (".npy", ".npz"):
        array, names = _array(path)
        found = _as_starts(path, array, model)
    else:
        held = read_file(path)
        found, names = [one for part in held.splits.values() for one in part], held.variables
        if odd := [one.shape for one in found if tuple(one.shape[1:]) != frame]:
            raise ValueError(f"{path} holds (time, C, H, W) = {odd[0]}, and {model.name} starts from (time, *{frame})")
    needed = (forecast.past - 1) * forecast.lead + 1
    shortest = min((one.shape[0] for one in found), default=0)
    if shortest < needed:
        raise ValueError(
            f"{path} holds {len(found)} start(s) of {shortest} time step(s), and {model.name} starts from {needed}: "
            f"{forecast.past} frame(s), {forecast.lead} time step(s) apart. Give a longer piece"
        )
    unnamed = names is None or all(re.fullmatch(r"u?\d*", name) for name in names)
    if not unnamed and forecast.variables and names != forecast.variables:
        raise ValueError(
            f"{path} holds the variables {', '.join(names or ())}, and {model.name} was trained on "
            f"{', '.join(forecast.variables)}, in this order: bring them to it"
        )
    latest = [np.asarray(one[one.shape[0] - needed : one.shape[0]], np.float32)[:: forecast.lead] for one in found]
    past = np.stack(latest).reshape(len(found), forecast.past, *frame)
    if len(bad := np.argwhere(~np.isfinite(past))):
        start, step, channel = bad[0][:3]
        raise ValueError(
            f"{path} holds {len(bad)} value(s) that are not finite, the first in start {start}, frame {step}, channel "
            f"{channel} of those that a forecast starts from: fill them in first"
        )
    return Starts(past, str(path))


def _array(path: Path) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    """The array of a file, and the names of its channels if it says them."""
    if path.suffix == ".npy":
        with reading(path, ".npy"):
            return np.load(path, mmap_mode="r", allow_pickle=False), None

    def wanted(there: list[str]) -> list[str]:
        fields = [name for name in there if name not in ("variables", "step")]
        if "fields" not in there and len(fields) != 1:
            raise ValueError(f"{path} has the arrays {some_of(there)}: name the one to start from `fields`")
        return ["fields" if "fields" in there else fields[0], *(["variables"] if "variables" in there else [])]

    arrays = read_arrays(path, wanted)
    names = arrays.pop("variables", None)
    return next(iter(arrays.values())), None if names is None else tuple(map(str, names.tolist()))


def _as_starts(path: Path, array: NDArray[Any], model: Model) -> list[NDArray[Any]]:
    """(time, C, H, W) of each start, or of a field of one dimension (time, C, W). Raises ValueError, for others."""
    frame, shape = frame_shape(model), tuple(array.shape)
    if frame[1] == 1 and len(shape) == 5 and shape[2:] == frame:
        return list(array)
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
    return past


def roll_out(
    drawer: Drawer, starts: Frame | Tensor, frames: int, *, seed: int = 0, earlier: Earlier | None = None
) -> Iterator[Piece]:
    """Roll out all members of some starts: a batch of rows to its end, then the next; only the last frames are held.

    drawer:  its members are those of each start, its batch size the rows at a time
    starts:  (N, past, C, H, W), in the data's units
    seed:    of the first start
    earlier: frames of a forecast that was interrupted; what begins after them is all that comes
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
            made = _rolled(drawer, denoiser, own, keys, members, first)
        else:
            made = _windows(drawer, denoiser, own, keys, members, there)
        for begun, new in made:
            now = range(begun, min(begun + new.shape[2], frames))
            yield Piece(some, members, now, new[:, :, : len(now)].numpy())
            if now.stop == frames:
                break


def _windows(
    drawer: Drawer, denoiser: Denoiser, start: Tensor, keys: Tensor, members: range, there: Frame | None
) -> Iterator[tuple[int, Tensor]]:
    """The windows that are not there, without end: the number of their first frame, and (n, m, f, C, H, W)."""
    forecast, held = forecast_of(drawer.model), start[:, None].expand(-1, len(members), *[-1] * 4)
    window = 0 if there is None else there.shape[2] // forecast.frames
    if there is not None and window:
        stop = window * forecast.frames
        latest = torch.tensor(np.asarray(there[:, :, max(0, stop - forecast.past) : stop]))
        held = torch.cat((held, latest), 2)[:, :, -forecast.past :]
    while True:
        new = _window(drawer, denoiser, held, keys, members, window)
        yield window * forecast.frames, new
        held, window = torch.cat((held, new), 2)[:, :, -forecast.past :], window + 1


def _rolled(
    drawer: Drawer, denoiser: Denoiser, start: Tensor, keys: Tensor, members: range, first: int
) -> Iterator[tuple[int, Tensor]]:
    """By Rolling Diffusion, frame by frame from the first one on, without end: its number, and (n, m, 1, C, H, W).

    Frames before it are drawn again: the window behind them is not on disk.
    """
    model, forecast, process = drawer.model, forecast_of(drawer.model), drawer.model.process
    assert isinstance(process, Rolling)
    past = forecast.statistics.normalised(start.to(model.device)).flatten(1, 2)
    number = torch.arange(members.start, members.stop, device=model.device)
    rows, steps = (keys[:, None] + MEMBER * number).flatten(), drawer.plan.num_steps
    for window in roll(denoiser, process, forecast, past, rows, steps, bfloat16=drawer.bfloat16):
        if window.rolls >= first:
            frame = forecast.statistics.restored(window.frame)
            yield window.rolls, frame.unflatten(0, (len(keys), len(members)))[:, :, None].cpu()


@own_defaults()
def _window(drawer: Drawer, denoiser: Denoiser, past: Tensor, keys: Tensor, members: range, window: int) -> Tensor:
    """The frames of one window, (n, m, f, C, H, W). past: (n, m, past, C, H, W), in the data's units; keys: (n,)"""
    model, forecast, count = drawer.model, forecast_of(drawer.model), len(members)
    past = forecast.statistics.normalised(past.to(model.device))
    if window:
        number = torch.arange(members.start, members.stop, device=model.device)
        seeds, rows, shared = (keys[:, None] + WINDOW * window + MEMBER * number).flatten(), past.flatten(0, 1), 1
    else:
        seeds, rows, shared = keys, past[:, 0], count
    y = forecast.observe(rows.flatten(1, 2), Draws(0, seeds))
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


def _cost(drawer: Drawer) -> dict[str, float]:
    """frames: that come at once; first_window, later_window: multiply-adds of a member for them."""
    frames, later = forecast_of(drawer.model).frames, replace(drawer, members=1).cost.macs
    if not isinstance(drawer.model.process, Rolling):
        return {"frames": frames, "first_window": drawer.cost.macs, "later_window": later}
    calls = drawer.model.call_cost
    first = calls.heavy / drawer.members + frames * drawer.plan.num_steps * calls.light
    return {"frames": 1, "first_window": round(first), "later_window": later}


@dataclass(frozen=True)
class Record:
    """forecast.json.

    model, path, iteration: where the weights are from; their hash is in `origin`
    sampler, step, plan:    the update rule in words, with all its settings, and its times and heavy calls
    first_seed:             start i has the seed first_seed + i
    source, digest:         where the starts are from, in words; sha256 of them
    known:                  frames of truth.npy
    lead_times, unit:       of each frame after its start
    cost:                   multiply-adds of a member: of the first window, where members share a heavy call; of a later
    calls:                  what drew it: commands, batch sizes, devices, versions; no two differ in dates alone
    """

    model: str
    path: str
    iteration: int
    sampler: str
    step: dict
    plan: dict
    guidance: Guidance
    origin: Origin
    first_seed: int
    starts: int
    members: int
    frames: int
    source: str
    digest: str
    known: int
    variables: tuple[str, ...]
    lead_times: tuple[float, ...]
    unit: str
    cost: dict
    calls: tuple[dict, ...] = ()

    @staticmethod
    def of(drawer: Drawer, starts: Starts, frames: int, seed: int, command: str) -> Record:
        model, forecast = drawer.model, forecast_of(drawer.model)
        channels = frame_shape(model)[0]
        leads = (forecast.lead * (1 if forecast.step is None else forecast.step) * (k + 1) for k in range(frames))
        device = {"device": str(model.device), **environment(model.device)}
        return Record(
            model=model.name,
            path=str(model.path.resolve()) if model.path else "",
            iteration=model.iteration,
            sampler=drawer.sampler,
            step=plain_step(drawer.step),
            plan=json.loads(drawer.plan.to_json()),
            guidance=drawer.guidance,
            origin=drawer.origin(PIXELS),
            first_seed=seed,
            starts=len(starts),
            members=drawer.members,
            frames=frames,
            source=starts.source,
            digest=starts.digest,
            known=starts.known,
            variables=forecast.variables or tuple(map(str, range(channels))),
            lead_times=tuple(map(float, leads)),
            unit="time steps" if forecast.step is None else "time",
            cost=_cost(drawer),
            calls=({"command": command, "batch_size": drawer.batch_size, **device},),
        )

    def joined(self, earlier: Record | None, directory: Path) -> Record:
        """With the calls of an earlier record of the same forecast. Raises ValueError for one of another."""
        if earlier is None:
            return self
        refuse_others(earlier._identity(), self._identity(), f"{directory} holds another forecast, they differ in")
        return replace(self, calls=joined_calls(earlier.calls, self.calls))

    def _identity(self) -> Identity:
        """What is equal in all frames of a folder: the value, and how an error shows it."""
        found = {one.name: getattr(self.origin, one.name) for one in fields(Origin)}
        found |= {"seed": self.first_seed, "members": self.members, "frames": self.frames, "starts": self.digest}
        weights = f"{self.model} at iteration {self.iteration}, {self.origin.weights[:12]}"
        words = {"weights": weights, "experiment": self.origin.experiment[:12], "sampler": self.sampler}
        words |= {"starts": f"{self.source}, {self.digest[:12]}"}
        return {name: (value, words.get(name, value)) for name, value in found.items()}


def read_record(directory: Path) -> Record | None:
    """What the forecast in a directory is of; None for a directory that is new, or empty but for logs.

    Raises ValueError for a directory that holds anything else.
    """
    check_link(directory)
    if not directory.exists():
        return None
    if not directory.is_dir():
        raise ValueError(f"{directory} is a file; a forecast is kept in a directory: choose another --out")
    file = directory / FORECAST
    if file.exists():
        try:
            return from_json(Record, read_bytes(file), str(file))
        except ValueError as error:
            raise ValueError(f"{error}; choose another --out") from error
    names = sorted(os.listdir(directory))
    foreign = [name for name in names if not (name.startswith(".") or name.endswith(LOGS) or _left(name))]
    if foreign:
        raise ValueError(f"{directory} holds {some_of(foreign)} but no {FORECAST}: choose a new directory as --out")
    return None


def _left(name: str) -> bool:
    """Whether a process that was killed left this file beside a forecast."""
    return written_aside(name) in OURS


class Store:
    """The frames on disk, written in place, by the process that holds the lock of the directory.

    x: (N, M, T, C, H, W), a view of the file; done: (N, M), how many frames of each are there
    """

    def __init__(self, out: Path, shape: tuple[int, ...]) -> None:
        self.path, self.journal, self.shape = out / ARRAY, out / JOURNAL, shape
        if not self.path.exists():
            self.journal.unlink(missing_ok=True)
            with whole(self.path) as aside:
                made = np.lib.format.open_memmap(aside, "w+", np.float32, shape)
                with aside.open("r+b") as file:  # a disk that is too small says so now
                    os.posix_fallocate(file.fileno(), 0, made.offset + made.nbytes)
        try:
            self.x: np.memmap = np.load(self.path, mmap_mode="r")
        except ValueError as error:
            raise ValueError(f"{self.path} is no whole array ({error}): delete it, and it is drawn again") from error
        if (self.x.shape, self.x.dtype) != (shape, np.dtype(np.float32)):
            raise ValueError(f"{self.path} holds {self.x.shape}, expected {shape}: delete it, and it is drawn again")
        self.done = np.zeros(shape[:2], np.int64)
        for where, line in read_records(self.journal):
            try:
                first, stop = line["rows"]
                self.done.reshape(-1)[first:stop] = line["frames"]
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{where} does not say which frames are there: remove that line") from error
        self.pending: dict[str, object] | None = None
        self.saved = time.monotonic()

    def earlier(self, starts: range, members: range) -> Frame:
        """The frames that all of these have."""
        own = np.s_[starts.start : starts.stop, members.start : members.stop]
        return self.x[own][:, :, : self.done[own].min()]

    def write(self, piece: Piece) -> None:
        """Write frames where they belong; note them, and what came before, every few seconds and at the last frame."""
        members, frames = self.shape[1:3]
        size = self.x.itemsize * int(np.prod(self.shape[3:]))
        with naming(self.path), self.path.open("r+b") as file:
            for start, own in zip(piece.starts, piece.x, strict=True):
                for member, new in zip(piece.members, own, strict=True):
                    file.seek(self.x.offset + ((start * members + member) * frames + piece.frames.start) * size)
                    file.write(new.tobytes())
        self.done[piece.starts.start : piece.starts.stop, piece.members.start : piece.members.stop] = piece.frames.stop
        first = piece.starts.start * members + piece.members.start
        rows = [first, first + len(piece.starts) * len(piece.members)]
        self.pending = {"rows": rows, "frames": piece.frames.stop}
        if piece.frames.stop == frames or time.monotonic() - self.saved > SAVED_EVERY:
            self.save()

    def save(self) -> None:
        """Note what was written since, once it is on disk."""
        if self.pending is not None:
            sync(self.path)
            append_record(self.journal, self.pending)
        self.pending, self.saved = None, time.monotonic()

    @contextmanager
    def naming_progress(self) -> Iterator[None]:
        """Says in an interruption, and in an error of a file, how far it came; an interruption notes all there is."""

        def so_far() -> str:
            frames = self.shape[0] * self.shape[1] * self.shape[2]
            return f"{self.done.sum():,} of {frames:,} frames are in {self.path.parent}"

        try:
            yield
        except KeyboardInterrupt:
            self.save()
            raise KeyboardInterrupt(f"interrupted: {so_far()}; the same command goes on") from None
        except OSError as error:
            raise OSError(f"{error}. {so_far()}; once that is mended, the same command goes on") from error


@dataclass(frozen=True)
class Written:
    """What a call of `write_forecast` did.

    x:       (N, M, T, C, H, W), a view of the file, in the data's units
    truth:   (N, known, C, H, W), of starts from the data
    drawn:   frames that it drew, in so many seconds of networks and sampler
    burst:   members whose last frame is not finite
    """

    x: Frame
    truth: Frame | None
    drawn: int
    seconds: float
    burst: int
    record: Record


def write_forecast(
    drawer: Drawer,
    starts: Starts,
    frames: int,
    out: Path | str,
    *,
    seed: int = 0,
    format: Format | None = None,
    pictures: bool = False,
    progress: ImageProgress | None = None,
    command: str = "dualrate.write_forecast",
) -> Written:
    """Roll out what `out` lacks, and write each window at once; then what else is asked for.

    drawer:   of precision "auto": that of the frames that are there, if any
    format:   also write all of it as such a file, a trajectory a member, those of a start one after the other
    pictures: also forecast.png and forecast.webp, of the first start
    progress: called with (frames there, of how many, of all members) at first and after every window
    Raises ValueError, before anything is written, for what cannot be rolled out, and for an `out` that holds another
    forecast or anything else; OSError for a file that cannot be written or read, with its name, and for a folder that
    another process is filling. That error and a KeyboardInterrupt say how many frames are there.
    """
    out = as_path(out)
    if (found := read_record(out)) is not None and drawer.precision == "auto":
        drawer = replace(drawer, precision="bfloat16" if found.origin.precision.startswith("bfloat16") else "float32")
    _ = checked(drawer, starts.past, frames, seed)
    record = Record.of(drawer, starts, frames, seed, command)
    _ = record.joined(found, out)
    other = None if format is None else out / f"forecast{ENDINGS[format]}"
    if other is not None and not other.exists():
        check_writable(other)
    out.mkdir(parents=True, exist_ok=True)
    with run_lock(out, "filled with a forecast"):
        record = record.joined(read_record(out), out)  # again: before the lock was held, another process may have come
        for name in filter(_left, os.listdir(out)):
            (out / name).unlink()
        write_whole(out / FORECAST, json.dumps(to_plain(record), indent=1) + "\n")
        truth = None if starts.truth is None else _truth(out / TRUTH, starts, frame_shape(drawer.model))
        store = Store(out, (len(starts), drawer.members, frames, *frame_shape(drawer.model)))
        report, there = progress or (lambda done, total: None), int(store.done.sum())
        report(there, store.done.size * frames)
        begun = time.perf_counter()
        with store.naming_progress():
            for piece in roll_out(drawer, starts.past, frames, seed=seed, earlier=store.earlier):
                store.write(piece)
                report(int(store.done.sum()), store.done.size * frames)
            seconds = time.perf_counter() - begun
            if other is not None and not other.exists():
                rows = store.x.reshape(-1, *store.x.shape[2:])
                write_fields(other, rows, record.variables, record.lead_times[0])
            if pictures:
                shown = _shown(store.x, truth, record)
                write_whole(out / PICTURE, png(forecast_figure(shown)))
                write_animation(shown, out / ANIMATION)
    burst = sum(int((~np.isfinite(of_start[:, -1]).all((1, 2, 3))).sum()) for of_start in store.x)
    return Written(store.x, truth, int(store.done.sum()) - there, seconds, burst, record)


def _truth(path: Path, starts: Starts, frame: Sequence[int]) -> Frame:
    """The frames after each start that the data has now, in a file, one start in memory at a time."""
    assert starts.truth is not None
    with whole(path) as aside:
        made = np.lib.format.open_memmap(aside, "w+", np.float32, (len(starts), starts.known, *frame))
        for i in range(len(starts)):
            made[i] = starts.truth(i)
        made.flush()
    return np.load(path, mmap_mode="r")


def _shown(x: Frame, truth: Frame | None, record: Record) -> Shown:
    """What pictures show: the first variable of the first start."""
    some = spread(min(record.frames, SHOWN_FRAMES), record.frames)
    members = np.stack([x[0, member, some, 0] for member in range(min(len(x[0]), SHOWN_MEMBERS))])
    mean, deviation = np.empty_like(members[0]), np.empty_like(members[0])
    for i, frame in enumerate(some):
        own = x[0, :, frame, 0].astype(np.float64)
        mean[i], deviation[i] = own.mean(0), own.std(0, ddof=min(1, len(own) - 1))
    real = None
    if truth is not None:
        real = np.full_like(mean, np.nan)
        real[some < record.known] = truth[0, some[some < record.known], 0]
    times = np.array(record.lead_times)[some]
    name, lead = record.variables[0], "lead time" if record.unit == "time" else f"lead time in {record.unit}"
    return Shown(members, mean, deviation, real, times, f"variable {name}" if name.isdecimal() else name, lead)
