"""Climatologies that know the season: of training frames some of the same time of the year; and at every point a curve

    C(t) = a_0 + sum over k of a_k cos(2 pi k t) + b_k sin(2 pi k t)     t: the part of the year that is over

by least squares over all training frames, in float64. Anomalies are what fields are beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.drawing.drawer import spread
from dualrate.forecasts.externals import hours_between, hours_of_step, year_parts
from dualrate.forecasts.fields import Fields
from dualrate.forecasts.geometry import from_text, to_text
from dualrate.forecasts.statistics import AT_A_TIME, Statistics, survey
from dualrate.forecasts.trajectories import Lazy, timing_of

LOOKED_AT = 1024  # frames of the training data that random ones are drawn of
NEAR = 1 / 24  # of a year: frames of the same time of it, before and after
YEAR = 360 * 24.0  # hours of the shortest year


@dataclass(frozen=True)
class Seasons:
    """Training frames of the same time of the year. near: (N, T, F), whether each is, for each start and lead time"""

    near: NDArray[np.bool_]

    @staticmethod
    def of(data: Fields, dates: NDArray[Any] | None, leads: int, ahead: int) -> tuple[Seasons | None, str]:
        """The training frames about each lead time after the dates of starts, `ahead` time steps from each to the next.

        None without dates, or a year of these, and where they say no more than any frames, with a line.
        """
        if dates is None or dates.dtype.kind not in "MO":
            return None, ""
        times = [timing_of(each) for each in data.trajectories]
        hours = [hours_between(each.times, each.breaks) for each in times]
        if not all(map(len, hours)) or max(each.sum() for each in hours) < YEAR:
            return None, ""
        step = float(np.concatenate(hours).mean()) * ahead
        later = year_parts(dates, [step * (k + 1) for k in range(leads)])
        some = np.array([year_parts(times[i].times[at : at + 1])[0, 0] for i, at in _places(data, 0)])
        near = np.abs((some - later[:, :, None] + 0.5) % 1 - 0.5) <= NEAR
        if near.all() or near.sum(2).min() < 2:
            few = "all training frames are" if near.all() else "fewer than two training frames are, for some lead time,"
            return None, f"no score of the season: {few} of the same time of the year, so see climatology"
        return Seasons(near), ""

    def drawn(self, frames: Tensor, part: range, members: int, leads: int) -> Iterator[Tensor]:
        """(n, M, C, H, W) of each lead time: random frames (F, C, H, W) of its time of the year, none twice; all of
        them where there are no more members than that, of the lead time that has the fewest."""
        members = min(members, int(self.near.sum(2).min()))
        for lead in range(leads):
            near = [(start, np.flatnonzero(self.near[start, lead])) for start in part]
            chosen = [np.random.default_rng((start, lead)).choice(each, members, replace=False) for start, each in near]
            yield frames[torch.from_numpy(np.stack(chosen))]


@dataclass(frozen=True)
class Anomalies:
    """Anomalies to C(t); of no harmonics the fields themselves.

    harmonics:    K; coefficients: a_0 and pairs of a_k and b_k, ((1 + 2 K) C, H, W), packed
    hours:        of a time step, in the mean
    statistics:   of the anomalies
    """

    harmonics: int = 0
    hours: float = 0.0
    coefficients: str = ""
    statistics: Statistics = Statistics((), (), ())

    def __bool__(self) -> bool:
        return self.harmonics > 0

    def fitted(self, fields: Fields) -> Anomalies:
        """The same for fields to train on. Raises ValueError for fields without dates, or of too little of a year."""
        if not self:
            return self
        hours = hours_of_step(fields.name, fields.trajectories, "a climatology", "--anomalies")
        parts = [year_parts(timing_of(each).times)[:, 0] for each in fields.trajectories]
        order, most = np.sort(np.concatenate(parts)), 1 / (1 + 2 * self.harmonics)
        if (gap := float(np.diff(order, append=order[0] + 1).max())) > most:
            raise ValueError(
                f"{fields.name} has no frame in {gap:.0%} of the year, and a climatology of {self.harmonics} "
                f"harmonic(s) wants one in every {most:.0%}: train on whole years, or drop --anomalies"
            )
        coefficients = curves(fields, parts, self.harmonics).astype(np.float32)
        if fields.hidden is not None:  # of which the mean is known
            coefficients[1:, fields.hidden] = 0
        anomalies = replace(self, hours=hours, coefficients=to_text(coefficients.reshape(-1, *coefficients.shape[2:])))

        def beside(number: int) -> Lazy:
            def read(first: int, stop: int) -> NDArray[np.float32]:
                usual = anomalies.climatology(parts[number][first:stop], torch.device("cpu")).numpy()
                return fields.frames(number, first, stop - first) - usual

            return Lazy((len(parts[number]), *fields.shape), read, timing_of(fields.trajectories[number]))

        measured = survey(fields.name, [*map(beside, range(len(parts)))], fields.variables, hidden=fields.hidden)[1]
        return replace(anomalies, statistics=measured)

    def climatology(self, parts: NDArray[np.float64], device: torch.device) -> Tensor:
        """C(t), (..., C, H, W), at parts of the year (...)."""
        mean, *waving = coefficients_on(device, self)
        terms = torch.from_numpy(waves(parts, self.harmonics).astype(np.float32)).to(device)[..., None, None, None]
        total = mean.expand(*parts.shape, *mean.shape)
        for number, each in enumerate(waving, 1):
            total = total + terms[..., number, :, :, :] * each
        return total


@lru_cache(maxsize=4)
def coefficients_on(device: torch.device, anomalies: Anomalies) -> Tensor:
    """The coefficients, (1 + 2 K, C, H, W) on a device."""
    packed = from_text(anomalies.coefficients, np.float32).copy()
    return torch.from_numpy(packed).unflatten(0, (1 + 2 * anomalies.harmonics, -1)).to(device)


def waves(parts: NDArray[np.float64], harmonics: int) -> NDArray[np.float64]:
    """1, and cos and sin of each harmonic, (..., 1 + 2 K), at parts of the year (...)."""
    angles = 2 * np.pi * np.arange(1, harmonics + 1) * parts[..., None]
    pairs = np.stack((np.cos(angles), np.sin(angles)), -1).reshape(*parts.shape, 2 * harmonics)
    return np.concatenate((np.ones((*parts.shape, 1)), pairs), -1)


def curves(fields: Fields, parts: Sequence[NDArray[np.float64]], harmonics: int) -> NDArray[np.float64]:
    """The coefficients, (1 + 2 K, C, H, W), that fit best. parts: of the year, of the frames of each trajectory"""
    mean = np.array(fields.statistics.mean)[:, None, None]
    gram, moments = np.zeros((1 + 2 * harmonics,) * 2), np.zeros((1 + 2 * harmonics, *fields.shape))
    each = max(1, AT_A_TIME // mean.size // int(np.prod(fields.shape[1:])))
    for number, times in enumerate(parts):
        for first in range(0, len(times), each):
            terms = waves(times[first : first + each], harmonics)
            gram += terms.T @ terms
            moments += np.tensordot(terms.T, fields.frames(number, first, len(terms)) - mean, 1)
    moments[:] = np.linalg.solve(gram, moments.reshape(len(gram), -1)).reshape(moments.shape)
    moments[0] += mean
    return moments


def training_frames(data: Fields, *steps: int) -> Tensor:
    """Training frames, (K len(steps), C, H, W) float32: those each of `steps` after K places, spread evenly.

    The last step is the largest.
    """
    places = _places(data, steps[-1])
    return torch.from_numpy(np.concatenate([data.frames(i, first + step, 1) for i, first in places for step in steps]))


def _places(data: Fields, last: int) -> list[list[int]]:
    windows = data.windows(last + 1)
    return windows[spread(min(len(windows), LOOKED_AT), len(windows))].tolist()
