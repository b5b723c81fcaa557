"""Axes of space of pictures, and coastlines in the points of two of them, of Natural Earth, where cartopy is there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

MARGIN, FAR = 10, 1000  # degrees around a map into which lines go on, to reach its edges; points beyond an axis


@dataclass(frozen=True, eq=False)
class Axis:
    """An axis of space. values: of points in order, or none; way: 1 rising, -1 falling; place: as of `Coordinate`"""

    label: str = ""
    values: tuple[float, ...] = ()
    way: int = 0
    place: str = ""

    def ticks(self, most: int) -> tuple[list[float], list[str]]:
        """At most so many ticks at round numbers: their places in points, and their texts; none without values."""
        if len(self.values) < 2:
            return [], []
        low, high = min(self.values), max(self.values)
        steps = [1, 2, 3, 6, 9, 10] if self.place else [1, 2, 2.5, 5, 10]
        numbers = np.asarray(MaxNLocator(most, steps=steps).tick_values(low, high))
        inside = numbers[(numbers >= low) & (numbers <= high)]
        return self.points(inside).tolist(), [f"{number:g}" for number in inside]

    def points(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Places of coordinates in points, of which the first is 0; those beyond an end by the last distance there."""
        order = np.argsort(self.values)
        values = np.array(self.values)[order]
        xp, fp = ([at[0] + FAR * (at[0] - at[1]), *at, at[-1] + FAR * (at[-1] - at[-2])] for at in (values, order))
        return np.interp(numbers, xp, fp)

    def words(self, point: int) -> str:
        """The coordinate of a point, such as 45.2 N; longitudes are those of the ticks, up to 360."""
        value = self.values[point]
        sides = {"latitude": "NS", "longitude": "EW"}.get(self.place)
        return f"{abs(value):.4g} {sides[int(value < 0)]}" if sides else f"{self.label} {value:.4g}"


def coastlines(rows: Axis, columns: Axis) -> list[NDArray[np.float64]]:
    """Lines (n, 2) on a map of latitudes and longitudes: column and row of each point, nan where a line is broken.

    None on other maps, and none without cartopy or where it cannot get its data.
    """
    if (rows.place, columns.place) != ("latitude", "longitude") or min(len(rows.values), len(columns.values)) < 2:
        return []
    low, high = (np.array([end(columns.values), end(rows.values)]) for end in (min, max))
    first = (low + high)[0] / 2 - 180
    lines = []
    for line in _natural_earth():
        longitudes, latitudes = (line[:, 0] - first) % 360 + first, line[:, 1]
        near = (np.abs(2 * np.stack([longitudes, latitudes], 1) - low - high) < high - low + 2 * MARGIN).all(1)
        if near.any():
            points = np.stack([columns.points(longitudes), rows.points(latitudes)], 1)
            points[~near] = np.nan
            lines.append(np.insert(points, np.flatnonzero(np.abs(np.diff(longitudes)) > 180) + 1, np.nan, axis=0))
    return lines


@cache
def _natural_earth() -> list[NDArray[np.float64]]:
    """Longitudes and latitudes (n, 2) of each coastline of the whole Earth."""
    try:
        from cartopy.io import shapereader  # pyright: ignore[reportMissingImports]

        shapes = list(shapereader.Reader(shapereader.natural_earth(resolution="110m", name="coastline")).geometries())
    except (ImportError, OSError):  # among these all that downloading raises
        return []
    parts = [part for shape in shapes for part in getattr(shape, "geoms", [shape])]
    return [np.array(part.coords, np.float64)[:, :2] for part in parts]
