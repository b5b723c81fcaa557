"""Scores of forecasts by lead time: M members from each of N starts against what came; in units of `scale`, if any.

With members X_1 .. X_M of one start at one lead time, their mean X, the truth y, and means over points and channels:

    crps            fair CRPS (see `ensembles`); of one member its mean absolute error
    rmse            sqrt(mean (X - y)^2);            rmse_member  sqrt(mean (X_i - y)^2)
    spread          sqrt((M + 1) / M mean var(X_i));  spread_skill  spread / rmse, 1 for a calibrated ensemble
    correlation     of X and y over the points of a start, then the mean over starts; correlation_member of X_i and y
    rate            mean |X_i(t) - X_i(t - 1)| / mean |y(t) - y(t - 1)|, |.| over the points of a field
    spectrum        mean over a band's wavenumbers k of |log(P_X(k) / P_y(k))|, P the mean power spectrum
    ranks           how many members lie below y: uniform on 0 .. M for a calibrated ensemble
    edges           (M + 1) / 2 of the share of ranks 0 and M, 1 for a calibrated ensemble
    brier           mean (p - o)^2 - p (1 - p) / (M - 1), p the share of X_i above a threshold, o whether y is (0 or 1);
                    its integral over thresholds is the fair CRPS
    until           the lead at which the correlation first falls below 0.9 and 0.8

Sources: Fortin et al. 2014 (spread and skill); Lippe et al. 2023, PDE-Refiner, arXiv 2308.05732 (time until the
correlation falls); Kohl et al. 2023, arXiv 2309.01745 (rate of change); Ferro 2014 (fair Brier score).

Means over points are weighted, by area and without those that a mask hides (`Geometry.weights`); ranks are too. Spectra
are not: they see all points of the grid.

Every score is a function of means over starts. An interval resamples groups of starts, such as those of a trajectory,
which tell the same twice. The n groups are drawn as `distances` draws vectors, without the (n - 1) / n by which few
would make the spread too small. Its ends are the replicates' quantiles Phi(-q) and Phi(q), with Phi the normal law's
distribution and q the 97.5% quantile of Student's t with n - 1 degrees of freedom: few groups make it wider. Fewer than
`GROUPS` give no interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.diffusion.random import Draws
from dualrate.forecasts.spectra import BANDS, Spectrum, power_spectrum, spectrum_distance
from dualrate.forecasts.sums import Sums
from dualrate.metrics.distances import LEVEL, resampling_weights

THRESHOLDS = (0.9, 0.8)  # of `until`
GROUPS = 5  # of starts: the median lies within n values with probability 1 - 2^(1 - n), 0.94 of 5, 0.88 of 4
EVENTS = (0.1, 0.5, 0.9)  # of `brier`: above these quantiles of the training data at a point


def time_until(correlations: Tensor, leads: Tensor, threshold: float) -> Tensor:
    """Times (R,) when curves (R, T) at lead times (T,) first fall below a threshold, in units of the leads; inf: never.

    Linear between lead times, from 1 at lead 0.
    """
    curve = torch.cat([torch.ones_like(correlations[:, :1]), correlations], 1)
    time, below = torch.cat([torch.zeros_like(leads[:1]), leads]), curve < threshold
    after = below.int().argmax(1).clamp(min=1)
    high, low = (curve.gather(1, index[:, None])[:, 0] for index in (after - 1, after))
    crossed = time[after - 1] + (high - threshold) / (high - low) * (time[after] - time[after - 1])
    return crossed.where(below.any(1), torch.inf)


@dataclass(frozen=True)
class Score:
    """A score, and what it would have been from other starts.

    value:      (T,), or (T, 3) by band, or by threshold
    replicates: (R, ...) of the bootstrap; R = 0: too few groups of starts. Those of two forecasts from the same starts,
                with the same seed, are paired: Score(difference of values, difference of replicates, groups) has the
                interval of the difference
    groups:     of starts that were resampled
    """

    value: NDArray[np.float64]
    replicates: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    groups: int = 0

    @property
    def low(self) -> NDArray[np.float64]:
        """The lower end of the interval; NaN where there are no replicates."""
        return self._quantile(-1)

    @property
    def high(self) -> NDArray[np.float64]:
        """The upper end."""
        return self._quantile(1)

    def _quantile(self, side: int) -> NDArray[np.float64]:
        if not len(self.replicates):
            return np.full_like(self.value, np.nan)
        share = NormalDist().cdf(side * students_t((1 + LEVEL) / 2, self.groups - 1))
        return np.quantile(self.replicates, share, axis=0, method="inverted_cdf")  # one of them: some are infinite


def students_t(share: float, freedom: int) -> float:
    """The quantile t of Student's law with nu degrees of freedom, by Abramowitz and Stegun 26.7.5; z: the normal one

        t = z + (z^3 + z) / (4 nu) + (5 z^5 + 16 z^3 + 3 z) / (96 nu^2) + (3 z^7 + 19 z^5 + 17 z^3 - 15 z) / (384 nu^3)

    share: below t; freedom: nu. At 97.5% it is 0.25% too small for nu = 4, and less for more.
    """
    z = NormalDist().inv_cdf(share)
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


@dataclass(frozen=True)
class ForecastScores:
    """Scores by lead time, as the module says; NaN where a score is not defined: the spread of one member.

    leads:              (T,)
    crps .. rate:       (T,) each, in the data's units or those of `scale`
    edges:              (T,) how many times their share the outermost ranks hold; 1 for a calibrated ensemble
    spectrum:           (T, 3) by band
    brier:              (T, K) by threshold, those of `EVENTS` if there are some
    until, until_member: (2,) by `THRESHOLDS`, in units of the leads; inf: not within them
    ranks:              (T, M + 1) shares
    power, power_truth: (T, C, K) mean spectra of the members and of the truth, by wavenumber
    """

    starts: int
    members: int
    leads: NDArray[np.float64]
    crps: Score
    rmse: Score
    rmse_member: Score
    spread: Score
    spread_skill: Score
    correlation: Score
    correlation_member: Score
    rate: Score
    edges: Score
    spectrum: Score
    brier: Score
    until: Score
    until_member: Score
    ranks: NDArray[np.float64]
    power: NDArray[np.float64]
    power_truth: NDArray[np.float64]

    def table(self) -> list[dict[str, float | None]]:
        """A row a lead time: each score, with _low and _high; None where it is not defined, as JSON knows no NaN."""
        scores = {name: value for name, value in vars(self).items() if isinstance(value, Score)}
        columns = {name: score for name, score in scores.items() if name not in _OTHERWISE}
        columns |= {f"spectrum_{band}": _column(self.spectrum, i) for i, band in enumerate(BANDS)}
        events = EVENTS[: self.brier.value.shape[1]]
        columns |= {f"brier_{100 * share:.0f}": _column(self.brier, i) for i, share in enumerate(events)}
        return rows_of("lead", self.leads.tolist(), columns)

    def times(self) -> list[dict[str, float | None]]:
        """A row a threshold: until when the correlation lies above it; None: longer than all lead times."""
        return rows_of("threshold", THRESHOLDS, {"until": self.until, "until_member": self.until_member})


_OTHERWISE = "spectrum", "brier", "until", "until_member"  # scores by band and by threshold: all others are by lead


def _column(score: Score, index: int) -> Score:
    return Score(score.value[:, index], score.replicates[:, :, index], score.groups)


def rows_of(key: str, values: Sequence[float], columns: dict[str, Score]) -> list[dict[str, float | None]]:
    """Rows for JSON, of each value of a key: columns of scores, with _low and _high."""
    parts = {
        f"{name}{end}": part
        for name, score in columns.items()
        for end, part in (("", score.value), ("_low", score.low), ("_high", score.high))
    }
    return [
        {key: value} | {name: float(part[i]) if math.isfinite(part[i]) else None for name, part in parts.items()}
        for i, value in enumerate(values)
    ]


class ForecastScorer:
    """Takes forecasts a few starts at a time, and of those a lead time at a time; keeps 2 T C K numbers a start.

    leads:       T lead times, positive and rising, in the unit in which `until` is wanted
    scale:       (C,) by which channels are divided, their standard deviations: what has different units adds up
    climatology: (C, H, W), or what broadcasts to it: the mean state that correlations are about, in the data's units
                 too. None: a field's own mean of each channel, as PDE-Refiner does
    weights:     (C, H, W), or what broadcasts to it, of points in all means but spectra; of mean 1. None: all alike
    thresholds:  (K, C, H, W), or what broadcasts to it, of `brier`, in the data's units
    spectrum:    that of the fields' geometry
    seed:        orders members equal to the truth, by start, lead time and point: chunks change nothing

    Raises ValueError for other leads or scales.
    """

    def __init__(
        self,
        leads: Sequence[float],
        *,
        scale: Tensor | None = None,
        climatology: Tensor | None = None,
        weights: Tensor | None = None,
        thresholds: Tensor | None = None,
        seed: int = 0,
        spectrum: Spectrum = power_spectrum,
    ) -> None:
        self._leads = torch.tensor(leads, dtype=torch.float64)
        if not len(leads) or self._leads[0] <= 0 or (self._leads.diff() <= 0).any():
            raise ValueError(f"got lead times {list(leads)}; give at least one, positive and each above the one before")
        if scale is not None and (scale.ndim != 1 or not ((scale > 0) & scale.isfinite()).all()):
            raise ValueError(f"got scales {scale.tolist()}; give one positive number for each channel")
        self._scale = torch.ones(1) if scale is None else scale.cpu()
        self._about = None if climatology is None else climatology.cpu()
        self._weights = torch.ones(1, 1, 1).double() if weights is None else weights.cpu().double()
        self._thresholds = torch.zeros(0, 1, 1, 1) if thresholds is None else thresholds.cpu()
        self._seed, self._spectrum = seed, spectrum
        self._channels: list[int] | None = None
        self._others: list[ForecastScorer] = []
        self._rows: list[dict[str, Tensor]] = []  # of each chunk: (n, T, ...)
        self._shape: torch.Size | None = None  # (M, C, H, W)
        self._ranks = torch.zeros(())
        self._starts = 0

    def beside(
        self, channels: list[int] | None = None, *, scale: Tensor | None = None, weights: Tensor | None = None
    ) -> ForecastScorer:
        """A scorer of some channels, or by other weights, of what is added to this one: members are sorted once."""
        how = {"climatology": self._about, "thresholds": self._thresholds, "seed": self._seed}
        how |= {"spectrum": self._spectrum}
        weights = self._weights if weights is None else weights
        scorer = ForecastScorer(self._leads.tolist(), scale=scale, weights=weights, **how)
        scorer._channels = channels
        self._others.append(scorer)
        return scorer

    def add(self, frames: Iterable[tuple[Tensor, Tensor]], *, start: Tensor | None = None) -> None:
        """The next n starts: (members (n, M, C, H, W), truth (n, C, H, W)) of each lead time, any float type.

        frames: of whole arrays (n, M, T, C, H, W) and (n, T, C, H, W), `zip(members.unbind(2), truth.unbind(1))`
        start:  (n, C, H, W) the last known frame, from which the first change is counted; None: its rate is NaN.
                Rates mean nothing where the frames of a member were drawn apart from each other.
        Raises ValueError for shapes that differ, other numbers of lead times, and truth that is not finite.
        """
        scorers = self, *self._others
        weightings = list({id(each._weights): each._weights for each in scorers}.values())
        of_leads: list[list[tuple[dict[str, Tensor], Tensor]]] = []
        before = None if start is None else (start[:, None], start)
        for members, truth in frames:
            if len(of_leads) == len(self._leads):
                raise ValueError(f"got more lead times than the {len(of_leads)} of this scorer; give it all of them")
            self._check(members, truth, None if before is None else before[1])
            weights = torch.stack([each.expand(truth.shape[1:]) for each in weightings])
            numbers = torch.arange(self._starts, self._starts + len(truth))
            chance = Draws(self._seed, numbers).uniform(f"rank {len(of_leads)}", *truth.shape[1:])
            thresholds = self._thresholds.expand(-1, *truth.shape[1:])
            sums = Sums.of((members, truth), before, weights, self._about, thresholds, chance, self._spectrum)
            views = [next(i for i, each in enumerate(weightings) if each is scorer._weights) for scorer in scorers]
            count = members.shape[1]
            of_leads.append([scorer._row(sums, view, count) for scorer, view in zip(scorers, views, strict=True)])
            before = members, truth
        if len(of_leads) < len(self._leads):
            raise ValueError(f"got {len(of_leads)} lead times of the {len(self._leads)} of this scorer: give all")
        for scorer, of_scorer in zip(scorers, zip(*of_leads, strict=True), strict=True):
            rows, ranks = zip(*of_scorer, strict=True)
            scorer._rows.append({name: torch.stack([row[name] for row in rows], 1) for name in rows[0]})
            scorer._ranks = scorer._ranks + torch.stack(ranks)
            scorer._starts, scorer._shape = scorer._starts + len(rows[0]["crps"]), self._shape

    def scores(self, groups: Tensor | None = None, *, resamples: int = 1000, seed: int = 0) -> ForecastScores:
        """Scores of all starts that were added, in the order in which they came.

        groups: (N,) int64, one number for all starts of a trajectory, which are not independent of each other; None:
                each start is independent of the others
        Raises ValueError before the first start, and for groups of another number of starts.
        """
        if self._shape is None or not self._starts:
            raise ValueError("no forecasts were added: a score needs one start")
        groups = torch.arange(self._starts) if groups is None else groups
        if groups.shape != (self._starts,):
            raise ValueError(f"got groups {tuple(groups.shape)} of {self._starts} starts; expected a number for each")
        rows = {name: torch.cat([chunk[name] for chunk in self._rows]) for name in self._rows[0]}
        weights = torch.cat([torch.ones(1, self._starts).double(), _group_weights(groups, resamples, seed)])
        weights = weights / weights.sum(1, keepdim=True)
        count, *_, height, width = self._shape
        leads = []
        for lead in range(len(self._leads)):
            means = {name: torch.tensordot(weights, part[:, lead], 1) for name, part in rows.items()}
            leads.append(_from_means(means, count, max(height, width)))
        replicates = {name: torch.stack([lead[name] for lead in leads], 1) for name in leads[0]}
        for name, curve in (("until", "correlation"), ("until_member", "correlation_member")):
            times = [time_until(replicates[curve], self._leads, threshold) for threshold in THRESHOLDS]
            replicates[name] = torch.stack(times, 1)
        distance = replicates["spectrum"]  # of a resample it is too long by what chance adds to it a second time
        distance[1:] = (distance[:1] + distance[1:] - distance[1:].mean(0)).clamp(min=0)
        return ForecastScores(
            self._starts,
            count,
            self._leads.numpy(),
            **{name: Score(part[0].numpy(), part[1:].numpy(), count_of(groups)) for name, part in replicates.items()},
            ranks=(self._ranks / self._ranks.sum(1, keepdim=True)).numpy(),
            power=rows["power"].mean(0).numpy(),
            power_truth=rows["power_truth"].mean(0).numpy(),
        )

    def _check(self, members: Tensor, truth: Tensor, before: Tensor | None) -> None:
        """Check shapes, and keep that of the first members."""
        if members.ndim != 5 or members[:, 0].shape != truth.shape:
            raise ValueError(
                f"got members {tuple(members.shape)} and truth {tuple(truth.shape)} at a lead time; expected "
                "(n, M, C, H, W) and (n, C, H, W)"
            )
        self._shape = self._shape or members.shape[1:]
        if members.shape[1:] != self._shape or (before is not None and before.shape != truth.shape):
            raise ValueError(
                f"got members {tuple(members.shape)}; all before were (n, {', '.join(map(str, self._shape))}), with "
                "one n for a chunk of starts and its `start`"
            )
        if len(self._scale) not in (1, truth.shape[1]):
            raise ValueError(f"got {truth.shape[1]} channels and {len(self._scale)} scales; give one for each channel")
        if not truth.isfinite().all():
            raise ValueError("the truth holds numbers that are not finite; leave these starts out, or the points")

    def _row(self, sums: Sums, view: int, count: int) -> tuple[dict[str, Tensor], Tensor]:
        """Numbers by start (n, ...), whose means `_from_means` takes; and the weight of each rank, (M + 1,).

        view: of the sums' weightings, this scorer's; count: M
        """
        channels = list(range(sums.power.shape[1])) if self._channels is None else self._channels
        points = {name: each[:, channels] for name, each in sums.points.items()}
        weights, scale = self._weights.expand(sums.points["crps"].shape[1:])[channels], self._scale.double()
        variance, ranks = scale.square(), points["rank"]

        def mean(fields: Tensor, units: Tensor) -> Tensor:
            return (weights * fields / units[:, None, None]).flatten(1).mean(1)

        def change(squares: Tensor) -> Tensor:
            return (squares[:, :, view, channels] / variance).mean(-1).sqrt().mean(1)

        square, variances = (mean(points[name], variance) for name in ("square", "variance"))
        outer = ((ranks == 0) | (ranks == count)).double()
        row = {
            "crps": mean(points["crps"], scale),
            "square": square,
            "square_member": square + variances,
            "variance": variances * (count / (count - 1) if count > 1 else torch.nan),
            "outer": mean(outer, torch.ones(1).double()),
            "brier": (weights[..., None] * points["brier"]).flatten(1, 3).mean(1),
            "correlation": sums.mean.correlation(channels, variance, view),
            "correlation_member": sums.members.correlation(channels, variance, view),
            "change": change(sums.change),
            "change_truth": change(sums.change_truth),
            "power": sums.power[:, channels] / variance[:, None],
            "power_truth": sums.power_truth[:, channels] / variance[:, None],
        }
        return row, torch.bincount(ranks.flatten(), weights.expand(ranks.shape).flatten(), minlength=count + 1)


def count_of(groups: Tensor) -> int:
    """The number of different groups."""
    return len(groups.unique())


def _group_weights(groups: Tensor, resamples: int, seed: int) -> Tensor:
    """(R, N) float64: how often each start counts; R = 0 where there are fewer than `GROUPS` groups."""
    whole, of_start = groups.unique(return_inverse=True)
    if len(whole) < GROUPS:
        return torch.zeros(0, len(groups), dtype=torch.float64)
    drawn = resampling_weights(torch.zeros(len(whole), dtype=torch.int64), resamples, seed)
    return torch.stack([weight[of_start] for weight in drawn])


def _from_means(mean: dict[str, Tensor], members: int, side: int) -> dict[str, Tensor]:
    """The scores of one lead time, (R,) or (R, 3), of means over starts (R, ...), by the fields of `ForecastScores`.

    mean: by the names of the rows of `ForecastScorer`; the first is over all starts, the others over resampled ones
    """
    rmse = mean["square"].sqrt()
    spread = ((members + 1) / members * mean["variance"]).sqrt()
    return {
        "crps": mean["crps"],
        "rmse": rmse,
        "rmse_member": mean["square_member"].sqrt(),
        "spread": spread,
        "spread_skill": spread / rmse,
        "correlation": mean["correlation"],
        "correlation_member": mean["correlation_member"],
        "rate": mean["change"] / mean["change_truth"],
        "edges": mean["outer"] * (members + 1) / 2,
        "spectrum": spectrum_distance(mean["power"], mean["power_truth"], side),
        "brier": mean["brier"],
    }
