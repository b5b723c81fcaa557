"""A forecast in one call: members from starts, scored where the truth is known, judged, and shown on a page."""

from __future__ import annotations

import json
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from dualrate.config.ranges import Precision, many
from dualrate.drawing.choice import Choice, check_loaded
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.model import Model
from dualrate.forecasts.evaluation import ForecastReport, StabilityReport, bad_news, forecast_scores, judged
from dualrate.forecasts.folder import PAGE, SCORES, ForecastWritten, write_forecast
from dualrate.forecasts.model import Frame, forecast_of, with_stride
from dualrate.forecasts.packing import unrounded
from dualrate.forecasts.page import forecast_page
from dualrate.forecasts.starts import TO_SCORE, Starts, held_out_starts, read_starts
from dualrate.forecasts.views import EVERYTHING, Views
from dualrate.report.html import page as page_of
from dualrate.system.files import write_whole
from dualrate.system.progress import ImageProgress, shown_later

AS_RECOMMENDED = Choice()


@dataclass(frozen=True, repr=False)
class ForecastResult:
    """A forecast of N starts with M members and T frames, in the units of the data.

    ensemble:  (N, M, T, C, H, W);  truth: (N, known, C, H, W), None of starts without one
    scores:    by lead time and by variable; None of starts without a truth
    stability: whether members go on looking like the training data
    page:      of scores and pictures, as HTML
    written:   what was drawn now, and the record of all of it
    """

    ensemble: Frame
    truth: Frame | None
    scores: ForecastReport | None
    stability: StabilityReport
    page: str
    written: ForecastWritten

    @property
    def dataset(self) -> Any:
        """The ensemble and the truth as a dataset of xarray, as forecast.nc has it: in the order of the data's points,
        with latitudes, longitudes, dates and units; frames are read when they are asked for."""
        return self.written.dataset

    def plain(self) -> dict[str, Any]:
        """Counts, costs and the verdict, for a report."""
        record, written = self.written.record, self.written
        return {
            "starts": record.starts,
            "members": record.members,
            "frames": record.frames,
            "frames_drawn": written.drawn,
            "frames_of_truth": record.known,
            "last_lead_time": record.lead_times[-1],
            "unit": written.forecast.lead_unit or record.unit,
            "macs_per_frame_at_first": record.cost["first_window"] / record.cost["frames"],
            "macs_per_frame_later": record.cost["later_window"] / record.cost["frames"],
            "seconds_per_frame": written.seconds / written.drawn if written.drawn else None,
            "members_not_finite": written.burst,
            "precision": record.origin.precision,
            "bad_news": " ".join(bad_news(self.scores, self.stability, written.burst, written.troubles)) or "none",
            "stability": self.stability.says,
        }

    def _repr_html_(self) -> str:
        """The tables of scores, in a notebook."""
        says = repr(self).partition("\n\n")[0].splitlines()
        tables = [] if self.scores is None else self.scores.tables
        return page_of("tables.html", says=says, tables=tables, figures=[], text="")

    def __repr__(self) -> str:
        record = self.written.record
        first = f"{many(record.members, 'member')} from {many(record.starts, 'start')}, {many(record.frames, 'frame')}"
        first += f"; {self.stability.says}"
        return f"{first}\n{self.written.starts.says}" if self.scores is None else f"{first}\n\n{self.scores}"


class InXarray(Protocol):
    """A Dataset or a DataArray."""

    def to_netcdf(self, path: Any, *, encoding: Any) -> Any: ...


def forecast(
    model: Model,
    starts: int | NDArray[Any] | InXarray | str | Path | Starts | None = None,
    *,
    frames: int = 100,
    members: int = 1,
    out: str | Path | None = None,
    stride: int = 1,
    choice: Choice = AS_RECOMMENDED,
    seed: int = 0,
    batch_size: int = 125,
    precision: Precision = "auto",
    progress: ImageProgress | None = None,
    note: Callable[[str], None] = warnings.warn,
    views: Views = EVERYTHING,
    count: int | None = None,
) -> ForecastResult:
    """Roll out `members` of a forecast from each start, for so many frames, and score them where the truth is known.

    starts:  how many of held-out data, by default 50 or all; or known frames, the latest last, as an array or a file
             (time, channel, space) or (start, time, channel, space), in the units of the training data; or as a
             Dataset or named DataArray of xarray, which is read as its file would be
    count:   so many starts evenly spread over these frames, scored against what comes after them; None: the latest
    out:     a directory that holds the forecast, where the same call goes on after a kill; None: it is in memory
    stride:  make every stride-th frame only, of a model trained with --window leads
    choice:  steps, heavy calls and sampler; seed: start i has seed + i
    note:    called with what is taken for granted
    progress: called with frames done and all; None: a call of more than ten seconds shows a bar, or lines
    views:   regions and events that are scored besides
    Raises TypeError for the name of a model, ValueError for one that makes no forecasts, and as `held_out_starts`,
    `read_starts` and `write_forecast`.
    """
    check_loaded(model)
    model = with_stride(model, stride)
    ready = starts if isinstance(starts, Starts) else starts_of(model, starts, frames, note, count)
    drawer = choice.drawer(model, note=note, members=members, batch_size=batch_size, precision=precision)
    more: dict[str, Any] = {"seed": seed, "note": note, "views": views}
    with shown_later("frames") as later, TemporaryDirectory() as folder:
        result = forecast_by(drawer, ready, frames, folder if out is None else out, progress=progress or later, **more)
        if out is not None:
            return result
        truth = None if result.truth is None else np.array(result.truth)
        written = replace(result.written, x=np.array(result.ensemble), truth=truth)
        return replace(result, ensemble=written.x, truth=truth, written=written)


def starts_of(
    model: Model,
    starts: int | NDArray[Any] | InXarray | str | Path | bytes | None,
    frames: int,
    note: Callable[[str], None],
    within: int | None = None,
) -> Starts:
    """Starts as `forecast` takes them, or the content of an .npy file. Raises what it raises."""
    count: Any = within if starts is None else starts
    if count is None or (isinstance(count, SupportsIndex) and not getattr(count, "ndim", 0)):
        if starts is not None and within is not None:
            raise ValueError(f"got {starts} starts and count={within}, which is of a file or an array: drop one")
        return held_out_starts(model, frames, None if count is None else operator.index(count))
    if within is not None and within < 1:
        raise ValueError(f"count is a number of starts, at least 1, got {within}")
    how: dict[str, Any] = {"frames": frames, "count": within}
    if isinstance(starts, str | Path):
        return read_starts(Path(starts), model, note, **how)
    write = getattr(starts, "to_netcdf", None)  # of xarray
    with TemporaryDirectory() as folder:
        file = Path(folder, "array.npy" if write is None else "array.nc")
        if write is not None:
            write(file, encoding=unrounded(starts))
        elif isinstance(starts, bytes):
            file.write_bytes(starts)
        else:
            np.save(file, np.asarray(starts), allow_pickle=False)
        try:
            report = (lambda text: None) if write is None else note  # an array says nothing
            ready = read_starts(file, model, report, **how)
            truth = [] if ready.truth is None else [ready.truth(i) for i in range(len(ready))]  # of the file
            source = ready.source.replace(str(file), "an array")
            return replace(ready, source=source, truth=truth.__getitem__ if truth else None)
        except ValueError as error:  # of a file that the caller never named
            raise ValueError(str(error).replace(str(file), "starts")) from None


def forecast_by(
    drawer: Drawer,
    starts: Starts,
    frames: int,
    out: str | Path,
    *,
    command: str = "dualrate.forecast",
    views: Views = EVERYTHING,
    **how: Any,
) -> ForecastResult:
    """The same of a drawer, in a folder: the frames, then scores.json, then index.html. how: as of `write_forecast`

    Raises what that raises.
    """
    forecast = forecast_of(drawer.model)
    _ = views.inside(forecast.geometry), views.thresholds(forecast.names)  # refused before anything is drawn
    if starts.truth is None and views != EVERYTHING:
        raise ValueError(f"regions and thresholds are scored, and the truth of these starts is not known: {TO_SCORE}")
    written = write_forecast(drawer, starts, frames, out, command=command, **how)
    model, scores = drawer.model, None
    if written.truth is not None:
        scores = forecast_scores(model, starts, written.x, views=views)
        write_whole(Path(out) / SCORES, json.dumps(scores.plain(), indent=1) + "\n")
    stability = judged(model, starts, written.x)
    page = forecast_page(forecast, written, scores, stability)
    write_whole(Path(out) / PAGE, page)
    return ForecastResult(written.x, written.truth, scores, stability, page, written)
