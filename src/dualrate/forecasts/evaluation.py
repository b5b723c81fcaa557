"""Scores of a forecast by lead time, beside two that need no model: the start's last frame again, and random frames.

Beside them, with or without truth, whether a roll-out keeps the look of the training data (`Stability`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.drawing.drawer import Drawer, spread
from dualrate.experiment.model import Model
from dualrate.forecasts.baselines import climatology, persistence, regressed, regression_of
from dualrate.forecasts.geometry import Geometry
from dualrate.forecasts.model import Frame, forecast_of
from dualrate.forecasts.rollout import roll_out
from dualrate.forecasts.scores import EVENTS, GROUPS, ForecastScorer, ForecastScores, Score, count_of, rows_of
from dualrate.forecasts.seasons import Seasons, training_frames
from dualrate.forecasts.spectra import spectrum_of
from dualrate.forecasts.stability import STEADY, WITHIN, Stability, steady_numbers
from dualrate.forecasts.starts import Starts, held_out_starts, training_fields
from dualrate.forecasts.views import EVERYTHING, Events, Reliability, Views
from dualrate.report.table import Table, as_text, with_interval
from dualrate.system.files import forget
from dualrate.system.progress import ImageProgress
from dualrate.system.workers import Mapper, in_turn

AT_A_TIME = 2**24  # numbers that are scored together
JUDGED = 2**21  # that are judged together
RANDOM = 100  # members of a forecast without a model, at most: fair scores of more are the same in the mean
SHOWN = 12  # lead times, at most
WITHOUT_MODEL = {
    "persistence": "the last known frame again",
    "climatology": "random frames of the training data",
    "season": "such frames of the same time of the year",
    "regression": "a linear regression",
}


@dataclass(frozen=True, repr=False)
class ForecastReport:
    """Scores of a forecast by lead time.

    by_name:     of the forecast, persistence, climatology, that of the time of the year where the training data has a
                 year of dates, and, where it can be fit, a linear regression, in standard deviations of the training
                 data
    by_variable: of the forecast, by the names of its variables, in their own units
    left_out:    variables that are constant in the training data, and count in none
    shown:       the factor and the unit by which people read lead times
    source:      where the starts are from, in words
    by_region:   of the forecast, by the names of regions, as by_name
    events:      Brier scores and reliability of each threshold, by lead time
    plain_scores: as by_name, where points that count by their area there all count alike; else empty
    notes:       on how points count
    """

    by_name: dict[str, ForecastScores]
    by_variable: dict[str, ForecastScores]
    left_out: tuple[str, ...]
    shown: tuple[float, str]
    source: str
    plain_scores: dict[str, ForecastScores] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    by_region: dict[str, ForecastScores] = field(default_factory=dict)
    events: Events = field(default_factory=dict)

    @property
    def notices(self) -> list[str]:
        """Notes on what is left out, and how points count."""
        names = ", ".join(self.left_out)
        return [f"constant in the training data, so in no score: {names}"] * bool(names) + [*self.notes]

    @property
    def shown_leads(self) -> tuple[list[str], str]:
        """Lead times as people read them, and their unit."""
        leads = self.by_name["forecast"].leads
        return [f"{lead * self.shown[0]:.6g}" for lead in leads.tolist()], self.shown[1] or "time"

    @property
    def skill(self) -> dict[str, Score]:
        """1 - CRPS / CRPS of each baseline: 0 for one that is no better, 1 for a perfect forecast."""
        mine, *baselines = (scores.crps for scores in self.by_name.values())
        with np.errstate(divide="ignore", invalid="ignore"):  # of a baseline that is perfect
            return {
                name: Score(1 - mine.value / crps.value, 1 - mine.replicates / crps.replicates, mine.groups)
                for name, crps in zip(list(self.by_name)[1:], baselines, strict=True)
            }

    def plain(self) -> dict[str, Any]:
        """Values for JSON: scores by lead time, until when each forecast correlates, and shares of ranks."""

        def rows(scores: Mapping[str, ForecastScores]) -> dict[str, Any]:
            return {
                name: {"leads": score.table(), "until": score.times(), "ranks": score.ranks.tolist()}
                for name, score in scores.items()
            }

        return rows(self.by_name) | {
            "skill": rows_of("lead", self.by_name["forecast"].leads.tolist(), self.skill),
            "variables": rows(self.by_variable),
            **({"plain": rows(self.plain_scores)} if self.plain_scores else {}),
            **({"regions": rows(self.by_region)} if self.by_region else {}),
            **({"thresholds": dict(self.events)} if self.events else {}),
            "left_out": list(self.left_out),
            "starts": self.source,
        }

    def __repr__(self) -> str:
        """The tables as text."""
        return "\n\n".join(map(as_text, self.tables))

    @property
    def tables(self) -> list[Table]:
        """Scores at `SHOWN` evenly spread lead times, by variable, and, of those asked for, by region and threshold."""
        forecast, baselines = self.by_name["forecast"], [*self.by_name][1:]
        times, unit = self.shown_leads
        columns = {
            f"of {name}" if i else f"fair CRPS of {name}": self.by_name[name].crps for i, name in enumerate(baselines)
        }
        columns |= {"RMSE of mean": forecast.rmse, "spread / skill": forecast.spread_skill}
        columns["correlation"] = forecast.correlation
        lines = []
        for i in some_leads(len(forecast.leads)):
            crps = (float(part[i]) for part in (forecast.crps.value, forecast.crps.low, forecast.crps.high))
            lines.append((times[i], with_interval(*crps, places=3), *(_number(score, i) for score in columns.values())))
        notes = (
            f"starts: {self.source}",
            "fair CRPS, RMSE: lower is better, in standard deviations of the data",
            "brackets: 95% intervals over starts, those of a trajectory together"
            if len(forecast.crps.replicates)
            else f"no intervals: they need {GROUPS} trajectories at least",
            "spread / skill: 1 for a calibrated ensemble; below, too sure",
            *self.notices,
        )
        tables = [Table((f"lead {unit}", "fair CRPS", *columns), tuple(lines), notes, texts=1)]
        ends = some_leads(len(forecast.leads), 3)
        kinds = (
            ("variable", self.by_variable, "in the units of each variable, by lead time"),
            ("region", self.by_region, "in standard deviations of the data, by lead time"),
        )
        for kind, by_kind, note in kinds:
            lines = [
                (name, *(_number(score, i, 4) for score in (scores.crps, scores.rmse) for i in ends))
                for name, scores in by_kind.items()
            ]
            header = kind, *(f"{score} at {times[i]}" for score in ("fair CRPS", "RMSE") for i in ends)
            tables += [Table(header, tuple(lines), (note,), texts=1)] * bool(lines)
        header = "above", *(f"{score} at {times[i]}" for score in ("Brier", "share") for i in ends)
        lines = [
            (name, *(f"{rows[i][score]:.4f}" for score in ("brier", "frequency") for i in ends))
            for name, rows in self.events.items()
        ]
        note = "Brier score: lower is better; share: how often it happened; reliability is in the JSON"
        return tables + [Table(header, tuple(lines), (note,), texts=1)] * bool(lines)


def some_leads(total: int, count: int = SHOWN) -> NDArray[np.int64]:
    """Indices of at most `count` lead times, evenly spread over `total`."""
    return np.unique(spread(min(count, total), total))


def _number(score: Score, i: int, digits: int = 0) -> str:
    value = score.value[i]
    return "-" if np.isnan(value) else f"{value:#.{digits}g}" if digits else f"{value:.3f}"


def forecast_scores(
    model: Model, starts: Starts, x: Frame, geometry: Geometry | None = None, views: Views = EVERYTHING
) -> ForecastReport:
    """Score members x (N, M, T, C, H, W) from these starts, over the frames whose truth is known.

    geometry: by which points count; None: the model's; views: regions and events that are scored too
    A lead time of a batch of starts is held at a time. Raises ValueError where no truth is known.
    """
    if starts.truth is None or starts.training is None or not starts.known:
        raise ValueError("the truth of these starts is unknown: give a number of starts, of held-out data or of a file")
    forecast, (count, members) = forecast_of(model), x.shape[:2]
    std, mean = torch.tensor(forecast.statistics.std), torch.tensor(forecast.statistics.mean)[:, None, None]
    leads, names = forecast.lead_times(starts.known), forecast.names
    frames, size = training_frames(starts.training, 0), int(np.prod(x.shape[3:]))
    each = max(1, AT_A_TIME // (size * max(members, starts.known)))  # of all members a lead time is held, not more
    moving = _moving(frames)
    geometry = forecast.geometry if geometry is None else geometry
    weights = torch.from_numpy(geometry.weights(x.shape[3:]))
    alike = torch.from_numpy(replace(geometry, spherical=False).weights(x.shape[3:]))
    thresholds = torch.from_numpy(np.quantile(frames.numpy(), EVENTS, 0))

    ridge = regression_of(starts.training, forecast, starts.known)
    calendar, lacking = Seasons.of(starts.training, starts.dates, starts.known, forecast.ahead)
    random = min(max(2, members), RANDOM, len(frames))
    # Of some starts and their past: members (n, M, C, H, W) of each lead time.
    draws: dict[str, Callable[[range, Tensor], Iterable[Tensor]]] = {
        "forecast": lambda part, past: _by_lead(x[part.start : part.stop], starts.known),
        "persistence": lambda part, past: persistence(past, starts.known).unbind(2),
        "climatology": lambda part, past: climatology(frames, len(part), random, starts.known, part.start),
    }
    if calendar is not None:
        draws["season"] = lambda part, past: calendar.drawn(frames, part, random, starts.known)
    if ridge is not None:
        most = min(random, len(ridge.errors))
        draws["regression"] = lambda part, past: regressed(ridge, forecast, past, most, starts.known, part.start)
    about: dict[str, Any] = {"climatology": mean[moving], "thresholds": thresholds[:, moving]}
    about |= {"spectrum": spectrum_of(geometry)}
    scorers = {name: ForecastScorer(leads, scale=std[moving], weights=weights[moving], **about) for name in draws}
    plain = {}
    if geometry.spherical:
        plain = {name: each.beside(scale=std[moving], weights=alike[moving]) for name, each in scorers.items()}
    single = {c: scorers["forecast"].beside([i]) for i, c in enumerate(moving)}
    regions = {}
    for name, points in views.inside(forecast.geometry).items():
        within = weights * torch.from_numpy(points)
        within = (within / within.mean((1, 2), keepdim=True))[moving]
        regions[name] = scorers["forecast"].beside(scale=std[moving], weights=within)
    events = [Reliability(*event, weights) for event in views.thresholds(names)]

    for first in range(0, count, each):
        part = range(first, min(first + each, count))
        truth = torch.tensor(np.stack([starts.truth(i) for i in part]))
        past = torch.tensor(starts.past[first : part.stop])
        for event in events:
            event.add(zip(draws["forecast"](part, past), truth.unbind(1), strict=True))
        some = slice(moving[0], moving[-1] + 1) if moving[-1] - moving[0] < len(moving) else moving  # a view
        for name, scorer in scorers.items():
            frame_by_frame = zip(draws[name](part, past), truth.unbind(1), strict=True)
            scorer.add(((a[:, :, some], b[:, some]) for a, b in frame_by_frame), start=past[:, -1, some])
    by_variable = {names[c]: scorer.scores(starts.groups) for c, scorer in single.items()}
    still = tuple(name for c, name in enumerate(names) if c not in moving)
    return ForecastReport(
        {name: scorer.scores(starts.groups) for name, scorer in scorers.items()},
        by_variable,
        still,
        forecast.shown_unit(leads[-1]),
        starts.source,
        {name: scorer.scores(starts.groups) for name, scorer in plain.items()},
        (*[lacking] * bool(lacking), *_how_points_count(forecast.over_latitudes, geometry)),
        {name: scorer.scores(starts.groups) for name, scorer in regions.items()},
        {name: event.rows(leads) for name, event in zip(views.events, events, strict=True)},
    )


def _by_lead(x: Frame, leads: int) -> Iterator[Tensor]:
    """Views (n, M, C, H, W) of members (n, M, T, C, H, W), in memory until the next is asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        whole = torch.from_numpy(x)
    for lead in range(leads):
        yield whole[:, :, lead]
        forget(x)


def _how_points_count(over_latitudes: bool, geometry: Geometry) -> Iterator[str]:
    if geometry.spherical:
        yield "points count by their area; scores of points that all count alike are in the JSON, under plain"
    elif over_latitudes:
        yield "all points count alike, near the poles too: scores are not weighted by area, the cosine of latitude"
    if geometry.mask:
        yield "hidden points count in no score; spectra and stability see them as the mean"


def window_members(
    drawer: Drawer,
    count: int | None = None,
    *,
    seed: int = 0,
    progress: ImageProgress = lambda done, total: None,
    mapper: Mapper = in_turn,
) -> tuple[Starts, Frame]:
    """Held-out starts, and members (N, M, T, C, H, W) of one window from each. Nothing is written.

    count: of starts, as of `held_out_starts`; seed: of the first; mapper: rolls out. Raises what that and `roll_out`
    raise.
    """
    frames = forecast_of(drawer.model).frames
    starts, done = held_out_starts(drawer.model, frames, count), 0
    x = np.empty((len(starts), drawer.members, frames, *starts.past.shape[2:]), np.float32)
    for piece in roll_out(drawer, starts, frames, seed=seed, mapper=mapper):
        at = (slice(part.start, part.stop) for part in (piece.starts, piece.members, piece.frames))
        x[tuple(at)] = piece.x
        progress(done := done + piece.x[..., 0, 0, 0].size, x[..., 0, 0, 0].size)
    return starts, x


@dataclass(frozen=True)
class StabilityReport:
    """Whether a roll-out is stable. says: that in a line, or why it is not known; power: (C, K) of training frames"""

    says: str
    stability: Stability | None = None
    power: NDArray[np.float64] | None = None


def bad_news(
    scored: ForecastReport | None, judged: StabilityReport, burst: int, troubles: Sequence[str] = ()
) -> list[str]:
    """Sentences on what is wrong with a forecast, the worst first; none of a good one.

    burst: members not finite; troubles: of the model or its starts, as of `ForecastWritten`
    """
    news = [f"{each[0].upper()}{each[1:]}." for each in troubles if each]
    news += [f"{burst} member(s) end in numbers that are not finite."] * bool(burst)
    if scored is not None:
        scores, (times, unit) = scored.by_name["forecast"], scored.shown_leads
        for name, skill in scored.skill.items():
            if len(worse := np.flatnonzero(~(skill.value > 0))):
                at = f"{len(worse)} of {len(scores.leads)} lead times, from {times[worse[0]]} {unit}"
                news.append(f"No better than {WITHOUT_MODEL[name]} at {at}.")
    if judged.stability is not None and (first := judged.stability.first) is not None:
        news.append(f"Not stable: at frame {first + 1} members no longer look like the training data.")
    if scored is not None and (scores := scored.by_name["forecast"]).members > 1:
        ratio = scores.spread_skill.value
        at = int(np.nan_to_num(np.maximum(ratio, 1 / np.maximum(ratio, 1e-9)), nan=-1).argmax())
        if ratio[at] < WITHIN[0] or ratio[at] > WITHIN[1]:
            how, (times, unit) = "too much alike" if ratio[at] < 1 else "too far apart", scored.shown_leads
            when = f"{times[at]} {unit}"
            news.append(f"Members are {how}: their spread is {ratio[at]:.2f} times their mean's error at {when}.")
    return news


def judged(model: Model, starts: Starts, x: Frame) -> StabilityReport:
    """Judge members x (N, M, T, C, H, W) beside the data that the model was trained on, if that is still there."""
    try:
        training = starts.training or training_fields(model)
    except (OSError, ValueError) as error:
        return StabilityReport(f"stability is not judged: {error}")
    forecast, (count, members, frames) = forecast_of(model), x.shape[:3]
    statistics, ahead, spectrum = forecast.statistics, forecast.ahead, spectrum_of(forecast.geometry)
    looked = training_frames(training, 0, ahead)
    pairs = statistics.normalised(looked.unflatten(0, (-1, 2)))
    moving, means = _moving(looked), torch.zeros(frames, x.shape[3], len(STEADY), dtype=torch.float64)
    size = int(np.prod(x.shape[3:]))
    together = max(1, JUDGED // size)  # members
    each = max(1, JUDGED // (size * members * frames))
    some = max(1, JUDGED // (size * min(members, together) * each))
    for n, m in product(range(0, count, each), range(0, members, together)):
        before = torch.tensor(starts.past[n : n + each, None, -1:])
        for first in range(0, frames, some):
            now = torch.tensor(x[n : n + each, m : m + together, first : first + some])
            joined = statistics.normalised(torch.cat([before.expand(-1, now.shape[1], *[-1] * 4), now], 2))
            numbers = steady_numbers(joined[:, :, 1:], joined[:, :, :-1], spectrum).sum((0, 1))
            means[first : first + len(numbers)] += numbers / (count * members)
            before = now[:, :, -1:]
            forget(x)
    names, parts = forecast.names, pairs.split(max(1, JUDGED // size))
    training_numbers = torch.cat([steady_numbers(part[:, 1], part[:, 0], spectrum) for part in parts])
    power = torch.cat([spectrum(part[:, 1].double()) for part in parts]).mean(0)
    of_moving = [names[c] for c in moving], means[:, moving], training_numbers[:, moving]
    from_start = not starts.observed or (forecast.every == 1 and not forecast.noise)
    stability = Stability.of(forecast.lead_times(frames), *of_moving, count_of(starts.groups), from_start=from_start)
    return StabilityReport(str(stability), stability, power.numpy())


def _moving(frames: Tensor) -> list[int]:
    """The channels that are no constant in these frames (K, C, H, W); all, if each is one."""
    flat = frames.transpose(0, 1).flatten(1)
    return (flat != flat[:, :1]).any(1).nonzero()[:, 0].tolist() or list(range(len(flat)))
