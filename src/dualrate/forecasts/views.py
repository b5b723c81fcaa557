"""Regions and events that are scored besides the whole; an event is a variable above a threshold.

region       rows and columns within bounds in degrees; points count there as everywhere, by their area
reliability  for each p = k / M of M members above the threshold the share w of points, and the share o of these
             where the truth lies above it as well: p for a reliable forecast
brier        sum of w ((p - 1)^2 o + p^2 (1 - o));   brier_fair  brier - sum of w p (1 - p) / (M - 1)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.forecasts.geometry import Geometry
from dualrate.forecasts.metadata import variable_number

NAMED = {
    "tropics": "-20:20",
    "north": "20:90",
    "south": "-90:-20",
    "europe": "35:75,-12.5:42.5",
    "north-america": "25:60,-120:-75",
}


@dataclass(frozen=True)
class Views:
    """Regions and events.

    regions: names of `NAMED`, SOUTH:NORTH or SOUTH:NORTH,WEST:EAST; events: VARIABLE:VALUE
    """

    regions: tuple[str, ...] = ()
    events: tuple[str, ...] = ()

    def inside(self, geometry: Geometry) -> dict[str, NDArray[np.bool_]]:
        """The points of each region, (H, W). Raises ValueError for what is none, or holds no point."""
        places = {axis.place: np.array(axis.values) for axis in geometry.axes if axis.values}
        if self.regions and {*places} != {"latitude", "longitude"}:
            raise ValueError("the run does not know its latitudes and longitudes: drop --region")
        regions = {name: _inside(name, places["latitude"], places["longitude"]) for name in self.regions}
        if empty := [name for name, points in regions.items() if not points.any()]:
            ends = ", ".join(f"{place} {values.min():g} to {values.max():g}" for place, values in places.items())
            raise ValueError(f"region {empty[0]} holds no point of the data, {ends}: give another")
        return regions

    def thresholds(self, names: Sequence[str]) -> list[tuple[int, float]]:
        """The channel and the value of each event. Raises ValueError for what is none."""
        events = (variable_number(event, names, "threshold", "VALUE") for event in self.events)
        return [(list(names).index(name), value) for name, value in events]


def _inside(region: str, latitudes: NDArray[Any], longitudes: NDArray[Any]) -> NDArray[np.bool_]:
    try:
        bounds = [tuple(map(float, part.split(":"))) for part in NAMED.get(region, region).split(",")]
        (south, north), (west, east) = (*bounds, (0.0, 360.0))[:2]
    except ValueError as error:
        raise ValueError(
            f"region {region!r} is none; expected SOUTH:NORTH or SOUTH:NORTH,WEST:EAST in degrees, or "
            f"{', '.join(NAMED)}"
        ) from error
    rows = (latitudes >= south) & (latitudes <= north)
    columns = (longitudes - west) % 360 <= (east - west if east - west >= 360 else (east - west) % 360)
    return rows[:, None] & columns


@dataclass
class Reliability:
    """Weights of points by lead time, number of members above a threshold, and whether the truth is: (T, M + 1, 2)."""

    channel: int
    threshold: float
    weights: Tensor
    counts: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, frames: Iterable[tuple[Tensor, Tensor]]) -> None:
        """The next starts, as `ForecastScorer.add` takes them, of all channels."""
        counts = []
        for members, truth in frames:
            above = (members[:, :, self.channel] > self.threshold).sum(1)
            place = 2 * above + (truth[:, self.channel] > self.threshold)
            weights = self.weights[self.channel].expand(place.shape)
            count = torch.bincount(place.flatten(), weights.flatten(), minlength=2 * (members.shape[1] + 1))
            counts.append(count.unflatten(0, (-1, 2)))
        self.counts = self.counts + torch.stack(counts)

    def rows(self, leads: Sequence[float]) -> list[dict[str, Any]]:
        """A row for JSON of each lead time."""
        counts = (self.counts / self.counts.sum((1, 2), keepdim=True)).numpy()
        members = counts.shape[1] - 1
        p = np.arange(members + 1) / members
        rows = []
        for lead, (missed, hit) in zip(leads, counts.transpose(0, 2, 1), strict=True):
            share = missed + hit
            brier = float((hit * (p - 1) ** 2 + missed * p**2).sum())
            fair = brier - float((share * p * (1 - p)).sum()) / (members - 1) if members > 1 else None
            observed = [float(a / b) if b else None for a, b in zip(hit, share, strict=True)]
            row: dict[str, Any] = {"lead": lead, "brier": brier, "brier_fair": fair, "frequency": float(hit.sum())}
            rows.append(row | {"probability": p.tolist(), "share": share.tolist(), "observed": observed})
        return rows


EVERYTHING = Views()
Events = Mapping[str, list[dict[str, Any]]]  # by name -> rows by lead time
