"""Scores of a forecast by lead time, beside two that need no model: the last known frame again, and random frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualrate.data.fields import Fields
from dualrate.drawing.drawer import spread
from dualrate.drawing.forecast import Starts, forecast_of
from dualrate.drawing.forecast_folder import Written
from dualrate.experiment.experiment import Model
from dualrate.metrics.forecasts import ForecastScorer, ForecastScores, climatology, persistence
from dualrate.report.table import Table, as_text

AT_A_TIME = 2**24  # numbers of starts that are scored together
LOOKED_AT = 1024  # frames of the training data that random ones are drawn of
SHOWN = 12  # lead times, at most


def forecast_scores(model: Model, starts: Starts, written: Written) -> dict[str, ForecastScores]:
    """Of the forecast, of persistence and of climatology, over the frames whose truth is known.

    Channels are in standard deviations of the training data. Raises ValueError where no truth is known.
    """
    if written.truth is None or not starts.known:
        raise ValueError("the truth of these starts is not known: forecast held-out data, without --from, to score")
    forecast, (count, members) = forecast_of(model), written.x.shape[:2]
    scale = torch.tensor(forecast.statistics.std)
    mean = torch.tensor(forecast.statistics.mean)[:, None, None]
    leads = written.record.lead_times[: starts.known]
    names = ("forecast", "persistence", "climatology")
    scorers = {name: ForecastScorer(leads, scale=scale, climatology=mean) for name in names}
    frames, each = _training_frames(model), max(1, AT_A_TIME // written.x[0].size)
    for first in range(0, count, each):
        part = slice(first, first + each)
        truth, past = torch.tensor(written.truth[part]), torch.tensor(starts.past[part])
        drawn = torch.tensor(written.x[part, :, : starts.known])
        found = {
            "forecast": drawn,
            "persistence": persistence(past, starts.known),
            "climatology": climatology(frames, len(truth), min(max(2, members), len(frames)), starts.known, first),
        }
        for name, x in found.items():
            scorers[name].add(zip(x.unbind(2), truth.unbind(1), strict=True), start=past[:, -1])
    return {name: scorer.scores(block=starts.block) for name, scorer in scorers.items()}


def _training_frames(model: Model) -> Tensor:
    """(K, C, H, W) float32, evenly spread over the training data."""
    data = model.experiment.data.items("train")
    assert isinstance(data, Fields)
    windows = data.windows(1)
    some = windows[spread(min(len(windows), LOOKED_AT), len(windows))]
    return torch.from_numpy(np.concatenate([data.frames(int(i), int(first), 1) for i, first in some]))


def plain_scores(found: Mapping[str, ForecastScores]) -> dict[str, Any]:
    """For JSON: of each its rows by lead time, until when it correlates, and shares of ranks."""
    return {
        name: {"leads": one.table(), "until": one.times(), "ranks": one.ranks.tolist()} for name, one in found.items()
    }


def scores_table(found: Mapping[str, ForecastScores], unit: str) -> str:
    """For people: a line a lead time, of `SHOWN` evenly spread ones."""
    own = found["forecast"]
    baselines = "CRPS of persistence", "of climatology"
    header = (f"lead {unit}", "CRPS", *baselines, "RMSE of mean", "spread / skill", "correlation")
    lines = []
    for i in spread(min(SHOWN, len(own.leads)), len(own.leads)):
        interval = "" if np.isnan(own.crps.low[i]) else f" [{own.crps.low[i]:.3f}, {own.crps.high[i]:.3f}]"
        numbers = [own.rmse, own.spread_skill, own.correlation]
        others = [found[name].crps.value[i] for name in ("persistence", "climatology")]
        shown = [*others, *(one.value[i] for one in numbers)]
        cells = ["-" if np.isnan(value) else f"{value:.3f}" for value in shown]
        lines.append([f"{own.leads[i]:g}", f"{own.crps.value[i]:.3f}{interval}", *cells])
    notes = (
        "CRPS, RMSE: lower is better, in standard deviations of the data; brackets: 95% intervals over starts",
        "spread / skill: 1 for a calibrated ensemble; below, too sure",
    )
    return as_text(Table(header, tuple(map(tuple, lines)), notes))
