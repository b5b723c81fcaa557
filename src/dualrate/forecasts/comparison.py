"""Forecasts of fields in a comparison: fair CRPS against multiply-adds, of one window from the same starts.

Frames lie in a folder while they are drawn, so that a killed comparison continues within a candidate; once its row is
there, they are deleted.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualrate.comparison.evaluate import refuse
from dualrate.comparison.rows import MeasuredCandidate
from dualrate.comparison.yardstick import Terms, Yardstick
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.measure import Measurement, row_of
from dualrate.experiment.model import Model
from dualrate.forecasts.curves import Panel, curves_figure
from dualrate.forecasts.evaluation import forecast_scores
from dualrate.forecasts.folder import JOURNAL, ForecastArray, write_forecast
from dualrate.forecasts.model import forecast_of, frame_shape, window_cost
from dualrate.forecasts.rollout import roll_out
from dualrate.forecasts.scores import Score, students_t
from dualrate.forecasts.starts import held_out_starts
from dualrate.metrics.distances import LEVEL
from dualrate.metrics.quality import QualityScore
from dualrate.metrics.store import Fingerprint
from dualrate.report.table import EACH
from dualrate.sampling.cost import CallCost
from dualrate.system.progress import ImageProgress, Reporter
from dualrate.system.workers import in_turn, mapper, share_of_time

SAME = ("past", "frames", "lead", "stride", "step", "variables", "statistics")  # else starts or lead times differ
REFUSED = ("screen", "features", "mixed", "baselines", "equal_classes")  # options
BASELINES = ("persistence", "climatology")  # without a model
METRIC = "CRPS"


class ForecastYardstick(Yardstick):
    """One window from held-out starts, all candidates from the same."""

    unit, keeps = "frames", False

    def __init__(self, models: Sequence[Model], terms: Terms, progress: Reporter) -> None:
        refuse("forecasts of fields have other scores", {name: getattr(terms, name) for name in REFUSED})
        check_same_starts(models)
        self.noun, self.screen, self.progress = models[0].experiment.noun, 0, progress
        self.terms, self.device, self.mapper = terms, models[0].device, in_turn
        self.frames = forecast_of(models[0]).frames
        self.starts = held_out_starts(models[0], self.frames, terms.count)
        self.count = len(self.starts)
        digest = hashlib.sha256(self.starts.digest().encode())
        assert self.starts.truth is not None
        self.geometry = forecast_of(models[0]).geometry  # by which points of all candidates count
        if self.geometry.identity:
            digest.update(repr(self.geometry.identity).encode())
        for start in range(self.count):
            digest.update(self.starts.truth(start).tobytes())
        self.reference = f"{self.starts.source}:{digest.hexdigest()[:12]}"

    def prepare(self) -> None:
        self.mapper = mapper(self.device)

    def see_real(self) -> None: ...

    def as_measured(self, drawer: Drawer) -> Drawer:
        return drawer.for_seeds(self.count)

    def origin(self, drawer: Drawer) -> str:
        content = f"{drawer.origin(METRIC, labels='none').json()} {drawer.members} {self.reference}"
        return hashlib.sha256(content.encode()).hexdigest()[:8]

    def identity(self, drawer: Drawer, seeds: range) -> list[object]:
        return [window_cost(drawer), self.origin(drawer)]

    def counts(self, first: int, most: int) -> list[int]:
        return [most]

    def seconds(self, drawer: Drawer, seeds: range, place: Path, calls: CallCost) -> float:
        shape = (self.count, drawer.members, self.frames, *frame_shape(drawer.model))
        done = ForecastArray(place, shape).done.mean() / self.frames if (place / JOURNAL).exists() else 0.0
        cost = drawer.expected_cost  # of a window drawn at once; one that rolls costs as many times more
        window = window_cost(drawer) / cost.macs * cost.total(calls)
        return window * self.count * drawer.members * (1 - done) * share_of_time(self.device)

    def measure(self, drawer: Drawer, seeds: range, place: Path, progress: ImageProgress) -> Measurement:
        how: dict[str, Any] = {"progress": progress, "note": self.progress.note, "mapper": self.mapper}
        written = write_forecast(drawer, self.starts, self.frames, place, **how, command="dualrate compare")
        scores = forecast_scores(drawer.model, self.starts, written.x, self.geometry)
        by_lead = scores.by_name["forecast"].crps
        crps = Score(np.array(by_lead.value.mean()), by_lead.replicates.mean(1), by_lead.groups)
        about = self.reference, None, self.count, f"0-{self.count - 1}", f"{drawer.members} members", "float32"
        ends = float(crps.value), float(crps.low), float(crps.high)
        notes = "; ".join(scores.notices)
        score = QualityScore(METRIC, *ends, LEVEL, math.nan, 0, Fingerprint(f"fair {METRIC}", *about), notes)
        seconds = written.seconds / max(1, written.drawn) * self.frames
        row = row_of(drawer, window_cost(drawer), seconds, drawer.batch_size, score)
        times, unit = scores.shown_leads
        leads = f"{' to '.join(dict.fromkeys((times[0], times[-1])))} {unit}"
        more: dict[str, Any] = {"members": drawer.members, "leads": leads, "scores": scores.plain()}
        if len(crps.replicates):
            more["tail"] = NormalDist().cdf(-students_t((1 + LEVEL) / 2, crps.groups - 1))
        return Measurement(row, {}, {METRIC: crps.replicates}, more)

    def draw(self, drawer: Drawer, count: int) -> float:
        past, begun = self.starts.past, time.perf_counter()
        starts = replace(self.starts, past=np.resize(past, (count, *past.shape[1:])))
        for _ in roll_out(drawer, starts, self.frames):
            pass
        return time.perf_counter() - begun

    def samples(self, drawer: Drawer, count: int) -> dict[str, Any]:
        return {}

    @staticmethod
    def columns(measured: MeasuredCandidate) -> dict[str, str]:
        crps, row = _by_lead(measured, "crps"), measured.row

        def mean(name: str, places: int) -> str:
            value = _by_lead(measured, name).mean()
            return EACH if np.isnan(value) else f"{value:.{places}f}"

        return {
            "MFLOPs a frame": f"{2 * row.macs / len(crps) / 1e6:.3g}",
            "ms a frame": f"{1000 * row.seconds_per_image / len(crps):.3g}",
            "by lead": f"{crps[0]:.3f} to {crps[-1]:.3f}",
            "RMSE of mean": mean("rmse", 3),
            "spread / skill": mean("spread_skill", 2),
            "correlation": mean("correlation", 3),
        }

    @staticmethod
    def notes(finished: Sequence[MeasuredCandidate]) -> list[str]:
        first = finished[0]
        without = (f"{_by_lead(first, 'crps', name).mean():.4f} of {name}" for name in BASELINES)
        return [
            f"a forecast: one window from a start, of {first.more['members']} members; FLOPs and ms are a member's. "
            f"{METRIC}: fair, in standard deviations of the data, mean over lead times of "
            f"{first.more.get('leads', 'a window')}",
            f"without a model: {METRIC} {' and '.join(without)} (the last frame again, and random frames)",
        ]

    @staticmethod
    def figures(finished: Sequence[MeasuredCandidate]) -> list[tuple[Any, str]]:
        if not finished:
            return []
        lines = {str(measured.row): _line(measured, "forecast") for measured in finished}
        lines |= {name: _line(finished[0], name)._replace(low=np.nan, high=np.nan) for name in BASELINES}
        leads = _by_lead(finished[0], "lead").tolist()
        return [(curves_figure(leads, [Panel(f"fair {METRIC}", lines, bottom=0)], "lead"), "By lead time.")]


class Line(NamedTuple):
    """A curve of scores by lead time, with its interval."""

    value: NDArray[np.float64]
    low: Any
    high: Any


def _line(measured: MeasuredCandidate, name: str) -> Line:
    return Line(*(_by_lead(measured, score, name) for score in ("crps", "crps_low", "crps_high")))


def _by_lead(measured: MeasuredCandidate, score: str, name: str = "forecast") -> NDArray[np.float64]:
    """A score at each lead time, (T,); NaN where it is not defined."""
    return np.array([row[score] for row in measured.more["scores"][name]["leads"]], np.float64)


def check_same_starts(models: Sequence[Model]) -> None:
    """Raises ValueError for models of another source, past or lead times than the first's."""
    first, *rest = models
    expected = forecast_of(first)
    for model in rest:
        if differing := [name for name in SAME if getattr(forecast_of(model), name) != getattr(expected, name)]:
            raise ValueError(
                f"{model.name} and {first.name} forecast from other starts: they differ in {', '.join(differing)}. "
                "Compare runs of one --data.source, --past, --frames and --lead"
            )
        for mine, theirs in forecast_of(model).metadata.differences(expected.metadata, expected.names):
            raise ValueError(f"{model.name} was trained on {mine}, {first.name} on {theirs}: they cannot be compared")
