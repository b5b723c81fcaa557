"""A folder that holds a forecast, which a killed process leaves to be gone on with.

OUT/forecast.json      what the forecast is of; another one is never written over it
OUT/forecast.npy       (start, member, time, C, H, W) float32, in the data's units
OUT/forecast.journal   which frames are there, a JSON object a line: rows, of starts and members, frames of each, and a
                       hash of each row's
OUT/truth.npy          (start, time, C, H, W), of starts from the data, as many frames as it has
OUT/forecast.nc, .zarr if asked for: all of it as xarray reads it (output.py)
OUT/forecast.png, .webp, .mp4   if asked for, and always of clips: the first start (pictures.py, film.py)
OUT/scores.json        by lead time, where the truth is known (evaluation.py)
OUT/index.html         scores and pictures (page.py)
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dualrate.config.ranges import as_path, many
from dualrate.data.source import reading
from dualrate.drawing.drawer import Drawer, spread
from dualrate.drawing.record import SamplingRecord, as_before, drawn_by, naming_progress
from dualrate.experiment.summary import stopped_early
from dualrate.forecasts.coastlines import Axis
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.file_checks import with_extra
from dualrate.forecasts.film import Film, write_video
from dualrate.forecasts.metadata import Coordinate
from dualrate.forecasts.model import Frame, begins, costs, forecast_of, frame_shape
from dualrate.forecasts.netcdf import check_writable, write_dataset, write_fields
from dualrate.forecasts.pictures import Shown, forecast_figure, write_animation
from dualrate.forecasts.rollout import FrameBlock, check_starts, roll_out
from dualrate.forecasts.starts import Starts
from dualrate.report.figures import png
from dualrate.runs.train import FORECAST
from dualrate.system.files import (
    append_record,
    check_regular,
    forget,
    naming,
    read_records,
    reserve,
    sync,
    whole,
    write_whole,
)
from dualrate.system.launch import Lost
from dualrate.system.progress import ImageProgress
from dualrate.system.workers import Mapper, in_turn

ARRAY, JOURNAL, TRUTH = "forecast.npy", "forecast.journal", "truth.npy"
PICTURE, ANIMATION, VIDEO, PAGE = "forecast.png", "forecast.webp", "forecast.mp4", "index.html"
Format = Literal["npz", "netcdf", "zarr"]
ENDINGS: dict[Format, str] = {"npz": ".npz", "netcdf": ".nc", "zarr": ".zarr"}
SCORES = "scores.json"
OURS = (FORECAST, ARRAY, JOURNAL, TRUTH, SCORES, PICTURE, ANIMATION, VIDEO, PAGE, "forecast.npz", "forecast.nc")
DIGITS = 16  # of sha256, in the journal
SAVED_EVERY = 5.0  # seconds of work that a kill may lose
NORTHWARD = {"latitude", "grid_latitude", "projection_y_coordinate"}  # names of coordinates that rise to the north
SHOWN_FRAMES, SHOWN_MEMBERS, SHOWN_LINES = 400, 3, 50  # in pictures, at most; lines are members at a point


@dataclass(frozen=True, kw_only=True)
class Record(SamplingRecord):
    """forecast.json. Start i has the seed first_seed + i.

    source, digest:   where the starts are from, in words; sha256 of them
    known:            frames of truth.npy
    lead_times, unit: of each frame after its start
    cost:             multiply-adds of a member: of the first window, where members share a heavy call; of a later one
    """

    file, content, whole = FORECAST, "forecasts", OURS
    starts: int
    frames: int
    source: str
    digest: str
    known: int
    variables: tuple[str, ...]
    lead_times: tuple[float, ...]
    unit: str

    @staticmethod
    def of(drawer: Drawer, starts: Starts, frames: int, seed: int, command: str) -> Record:
        forecast = forecast_of(drawer.model)
        return Record(
            **drawn_by(drawer, command, labels="none"),  # its conditions are the starts, which have a digest here
            first_seed=seed,
            starts=len(starts),
            frames=frames,
            source=starts.source,
            digest=starts.digest(begins(drawer.model, frames), forecast.year_parts(starts.dates, range(1))),
            known=starts.known,
            variables=forecast.names,
            lead_times=forecast.lead_times(frames),
            unit=forecast.lead_unit or "time",
            cost=costs(drawer),
        )

    def identity(self) -> dict[str, tuple[Any, Any]]:
        starts = self.digest, f"{self.source}, {self.digest[:12]}"
        return super().identity() | {"frames": (self.frames, self.frames), "starts": starts}


class ForecastArray:
    """The frames on disk, written in place, by the process that holds the lock of the directory.

    x: (N, M, T, C, H, W), a view of the file; done: (N, M), how many frames of each are there
    damaged: members whose frames are not those that were written, so that they are drawn again
    """

    def __init__(self, out: Path, shape: tuple[int, ...]) -> None:
        self.path, self.journal, self.shape = out / ARRAY, out / JOURNAL, shape
        if not self.path.exists():
            self.journal.unlink(missing_ok=True)
            with whole(self.path) as aside:
                array = np.lib.format.open_memmap(aside, "w+", np.float32, shape)
                place = array.offset, array.offset + array.nbytes
                del array  # what is mapped cannot be renamed on Windows
                with aside.open("r+b") as file:
                    reserve(file, *place)  # a disk that is too small says so now
        try:
            check_regular(self.path)
            with reading(self.path, "the frames that were written"):
                self.x: np.memmap = np.load(self.path, mmap_mode="r")
        except ValueError as error:
            raise ValueError(f"{error}: delete it, and it is drawn again") from error
        if (self.x.shape, self.x.dtype) != (shape, np.dtype(np.float32)):
            raise ValueError(f"{self.path} holds {self.x.shape}, expected {shape}: delete it, and it is drawn again")
        self.done = np.zeros(shape[:2], np.int64)
        noted = np.full(self.done.size, "", f"U{DIGITS}")
        for where, line in read_records(self.journal):
            try:
                first, stop = line["rows"]
                if not 0 <= line["frames"] <= shape[2]:
                    raise ValueError(line)
                self.done.reshape(-1)[first:stop] = line["frames"]
                noted[first:stop] = line.get("hashes", "")  # an earlier version wrote none
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{where} does not say which frames are there: remove that line") from error
        self.pending: dict[range, dict[str, Any]] = {}  # lines of the journal, of rows whose frames are not noted
        self.saved = time.monotonic()
        self.hashes: dict[int, hashlib._Hash] = {}  # of rows that are being written
        counts = self.done.flatten().tolist()
        wrong = [row for row, hash in enumerate(noted) if hash and hash != _short(self._hash(row, counts[row]))]
        self.damaged, self.done.reshape(-1)[wrong] = len(wrong), 0

    def _hash(self, row: int, frames: int) -> hashlib._Hash:
        """The hash of a row's first frames, as they are on disk."""
        hashed = hashlib.sha256(self.x.reshape(-1, *self.shape[2:])[row, :frames].data)
        forget(self.x)
        return hashed

    @property
    def burst(self) -> int:
        """How many members have a last frame that is not finite."""
        count = 0
        for row in self.x.reshape(-1, *self.shape[2:]):
            count += not np.isfinite(row[-1]).all()
            forget(self.x)
        return count

    def earlier(self, starts: range, members: range) -> Frame:
        """The frames that all of these members have on disk."""
        place = np.s_[starts.start : starts.stop, members.start : members.stop]
        return self.x[place][:, :, : self.done[place].min()]

    def write(self, piece: FrameBlock) -> None:
        """Write frames where they belong; note them, and what came before, every few seconds and at the last frame."""
        members, frames = self.shape[1:3]
        first = piece.starts.start * members + piece.members.start
        rows = range(first, first + len(piece.starts) * len(piece.members))
        place = np.s_[piece.starts.start : piece.starts.stop, piece.members.start : piece.members.stop]
        mixed = (self.done[place] > piece.frames.start).any()  # a batch cut otherwise: a kill must not leave a mixture
        if mixed:
            self.save()
        if mixed or not self.hashes.keys() >= set(rows):
            self.hashes |= {row: self._hash(row, piece.frames.start) for row in rows}
        if mixed:
            append_record(self.journal, self._line(rows, piece.frames.start))
        size = self.x.itemsize * int(np.prod(self.shape[3:]))
        with naming(self.path), self.path.open("r+b") as file:
            for start, of_start in zip(piece.starts, piece.x, strict=True):
                for member, new in zip(piece.members, of_start, strict=True):
                    row = start * members + member
                    file.seek(self.x.offset + (row * frames + piece.frames.start) * size)
                    file.write(new.tobytes())
                    self.hashes[row].update(new.tobytes())
        self.done[place] = piece.frames.stop
        self.pending[rows] = self._line(rows, piece.frames.stop)  # now: what stops the next piece leaves it as it is
        if piece.frames.stop == frames or time.monotonic() - self.saved > SAVED_EVERY:
            self.save()
        if piece.frames.stop == frames:
            for row in rows:
                del self.hashes[row]

    def save(self) -> None:
        """Note what was written since, once it is on disk."""
        if self.pending:
            sync(self.path)
        for line in self.pending.values():
            append_record(self.journal, line)
        self.pending, self.saved = {}, time.monotonic()

    def _line(self, rows: range, frames: int) -> dict[str, Any]:
        hashes = [_short(self.hashes[row]) for row in rows]
        return {"rows": [rows.start, rows.stop], "frames": frames, "hashes": hashes}

    def __str__(self) -> str:
        """The progress: frames that are on disk, of all."""
        return f"{self.done.sum():,} of {self.done.size * self.shape[2]:,} frames are in {self.path.parent}"


def _short(hash: hashlib._Hash) -> str:
    return hash.hexdigest()[:DIGITS]


@dataclass(frozen=True)
class ForecastWritten:
    """The result of a call of `write_forecast`.

    x:       (N, M, T, C, H, W), a view of the file, in the data's units
    truth:   (N, known, C, H, W), of starts from the data
    drawn:   frames that it drew, in so many seconds of networks and sampler
    burst:   members whose last frame is not finite
    starts, forecast: what it is of
    troubles: in words, that the model's training stopped before its end, or that starts look like another unit
    """

    x: Frame
    truth: Frame | None
    drawn: int
    seconds: float
    burst: int
    record: Record
    starts: Starts
    forecast: Forecast
    troubles: tuple[str, ...] = ()

    @property
    def dataset(self) -> Any:
        """All of it as a dataset of xarray (output.py), whose frames are read when they are asked for."""
        with with_extra():
            from dualrate.forecasts.output import dataset_of
        return dataset_of(self.x, self.truth, self.starts, self.record, self.forecast)

    @property
    def film(self) -> Film | None:
        """The first start of a forecast of clips; None of other fields."""
        if not self.forecast.of_clips:
            return None
        step = self.forecast.step and self.forecast.step * self.forecast.ahead
        truth = None if self.truth is None else self.truth[0]
        return Film.of(self.starts.past[0], np.array(self.x[0, :SHOWN_MEMBERS]), truth, step)


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
    note: Callable[[str], None] = warnings.warn,
    mapper: Mapper = in_turn,
    command: str = "dualrate.write_forecast",
) -> ForecastWritten:
    """Roll out what `out` lacks, and write each window at once; then what else is asked for, anew.

    drawer:   of precision "auto": that of the frames that are there, if any
    format:   also write all of it as such a file, a trajectory a member, those of a start one after the other
    pictures: also forecast.png and forecast.webp, of the first start, which a forecast of clips always has
    progress: called with (frames there, of how many, of all members) at first and after every window
    note:     called where frames that are there are not what was written
    mapper:   rolls out; frames are written here
    Raises ValueError, before anything is written, for what cannot be rolled out, and for an `out` that holds another
    forecast or anything else; OSError for a file that cannot be written or read, with its name, and for a folder that
    another process is filling. That error and a KeyboardInterrupt say how many frames are there.
    """
    out = as_path(out)
    drawer = as_before(drawer.for_seeds(len(starts)), Record.read(out))
    check_starts(drawer, starts, frames, seed)
    record = Record.of(drawer, starts, frames, seed, command)
    target = None if format is None else out / f"forecast{ENDINGS[format]}"
    if target is not None and not target.exists():
        check_writable(target)
    with record.filling(out) as record:
        with naming_progress(f"{out} keeps what it has"):
            record.write(out)
            truth = None if starts.truth is None else _truth(out / TRUTH, starts, frame_shape(drawer.model))
            array = ForecastArray(out, (len(starts), drawer.members, frames, *frame_shape(drawer.model)))
        with naming_progress(array):
            report, before = progress or (lambda done, total: None), int(array.done.sum())
            if array.damaged:
                note(f"{array.path}: {many(array.damaged, 'member')} not as written, to be drawn again")
            report(before, array.done.size * frames)
            begun = time.perf_counter()
            try:
                for piece in roll_out(drawer, starts, frames, seed=seed, earlier=array.earlier, mapper=mapper):
                    array.write(piece)
                    report(int(array.done.sum()), array.done.size * frames)
            except (KeyboardInterrupt, Lost):
                array.save()
                raise
            seconds, drawn = time.perf_counter() - begun, int(array.done.sum()) - before
            burst = array.burst
            forecast = forecast_of(drawer.model)
            troubles = (stopped_early(drawer.model.experiment, drawer.model.iteration), starts.strange)
            written = ForecastWritten(array.x, truth, drawn, seconds, burst, record, starts, forecast, troubles)
            if target is not None:
                if target.is_file():
                    target.unlink()  # nothing says whether it is what was written
                if format != "npz":
                    write_dataset(target, written.dataset, "lead_time")
                else:
                    rows = array.x.reshape(-1, *array.x.shape[2:])
                    step = None if record.unit == "time steps" else record.lead_times[0]
                    write_fields(target, rows, record.variables, step)
            if film := written.film:
                write_whole(out / PICTURE, film.sheet())
                write_whole(out / ANIMATION, film.animation())
                write_video(film.moving(), 1 / film.seconds, out / VIDEO)
            elif pictures:
                first = shown(array.x, truth, record, forecast)
                write_whole(out / PICTURE, png(forecast_figure(first)))
                write_animation(first, out / ANIMATION)
    return written


def _truth(path: Path, starts: Starts, frame: Sequence[int]) -> Frame:
    """The frames after each start that the data has now, in a file, one start in memory at a time."""
    assert starts.truth is not None
    with whole(path) as aside:
        array = np.lib.format.open_memmap(aside, "w+", np.float32, (len(starts), starts.known, *frame))
        for i in range(len(starts)):
            array[i] = starts.truth(i)
            forget(array)
        array.flush()
    return np.load(path, mmap_mode="r")


def shown(x: Frame, truth: Frame | None, record: Record, forecast: Forecast, members: int = SHOWN_MEMBERS) -> Shown:
    """The first variable of the first start, for pictures: its first members. North is up where latitudes say it,
    also those over both axes, of a rotated pole or of a projection."""
    space = x.shape[5:] if x.shape[4] == 1 else x.shape[4:]
    rows, columns = ([_axis(forecast, i, space) for i in range(len(space))] * 2)[-2:]
    turned = len(space) == 2 and (columns.place, rows.place) in (("latitude", ""), ("latitude", "longitude"))
    if turned:
        x, truth = np.swapaxes(x, -2, -1), None if truth is None else np.swapaxes(truth, -2, -1)
        rows, columns = columns, rows
    north = [each for each in forecast.metadata.coordinates if each.axes in ((0,), (0, 1)) and each.values]
    north = [each.values for each in north if {each.place, each.description.standard_name} & NORTHWARD]
    rows_of = [np.array_split(values, min(space[0], len(values))) for values in north]  # of thinned ones
    southern = len(space) == 2 and not turned and any(each[0].mean() < each[-1].mean() for each in rows_of)
    some = spread(min(record.frames, SHOWN_FRAMES), record.frames)
    drawn = np.stack([x[0, member, some, 0] for member in range(min(len(x[0]), members))])
    mean, deviation = np.empty_like(drawn[0]), np.empty_like(drawn[0])
    for i, frame in enumerate(some):
        ensemble = x[0, :, frame, 0].astype(np.float64)
        mean[i], deviation[i] = ensemble.mean(0), ensemble.std(0, ddof=min(1, len(ensemble) - 1))
        forget(x)
    real = None
    if truth is not None:
        real = np.full_like(mean, np.nan)
        real[some < record.known] = truth[0, some[some < record.known], 0]
    if (hidden := forecast.geometry.hidden) is not None:
        for field in (drawn, mean, deviation, real):
            if field is not None:
                field[..., hidden[0].T if turned else hidden[0]] = np.nan
    name, (factor, lead) = record.variables[0], lead_axis(record, forecast)
    times = np.array(record.lead_times)[some] * factor
    name = f"variable {name}" if name.isdecimal() else name
    if forecast.metadata.variables and (units := forecast.metadata.variables[0].units):
        name = f"{name} [{units}]"
    first = Shown(drawn, mean, deviation, real, times, name, lead, rows, columns, southern=southern)
    return replace(first, plume=np.array(x[0, :SHOWN_LINES, :, 0, *first.point][:, some]))


def lead_axis(record: Record, forecast: Forecast) -> tuple[float, str]:
    """The factor by which lead times are shown, and their name with the unit."""
    factor, unit = forecast.shown_unit(record.lead_times[-1])
    return factor, f"lead time in {unit}" if unit else "lead time"


def _axis(forecast: Forecast, number: int, space: Sequence[int]) -> Axis:
    name, _, way = (*forecast.axes, *[""] * len(space))[number].partition(" (")
    coordinates = [each for each in forecast.metadata.coordinates if each.axes == (number,) and each.fits(space)]
    best = max(coordinates, key=lambda each: each.name == name, default=Coordinate(name, (number,), ()))
    points, units = best.unwound, best.description.units
    ways = {"rising)": 1, "falling)": -1}.get(way, 0), *np.unique(np.sign(np.diff(points))).astype(int).tolist()
    in_order = len(ways) == 2 and ways[1] != 0
    label = f"{best.name} [{units}]" if units and not best.place else best.name
    return Axis(label, tuple(points.tolist()) if in_order else (), ways[1] if in_order else ways[0], best.place)
