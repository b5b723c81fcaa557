"""Figures of curves: scores by lead time with their intervals, and spectra by wavenumber."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dualrate.report.figures import INK, mark
from dualrate.report.figures import panels as axes_of

CHARACTERS = 105  # of legends that stand beside each other
FAINTEST = 1e-8  # of the strongest power of a spectrum


class Curve(Protocol):
    """Numbers along an axis, (T,) each, and the ends of their intervals, such as scores by lead time."""

    @property
    def value(self) -> NDArray[np.float64]: ...
    @property
    def low(self) -> NDArray[np.float64]: ...
    @property
    def high(self) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class Panel:
    """Curves over one axis, with their intervals. levels: where a line across it stands, and what it says"""

    ylabel: str
    lines: Mapping[str, Curve]
    levels: Mapping[float, str] = field(default_factory=dict)
    bottom: float | None = None
    log: bool = False


def curves_figure(x: Sequence[float], panels: Sequence[Panel], xlabel: str) -> Figure:
    """Panels of curves over the same x, two in a row; a curve has one colour in all of them."""
    rows, across = -(-len(panels) // 2), min(2, len(panels))
    # of legends, whose lines take room above the axes
    columns = max(1, CHARACTERS // across // (6 + max(len(name) for panel in panels for name in panel.lines)))
    lines = -(-max(len(panel.lines) for panel in panels) // columns)
    figure, grid = axes_of(rows, across, (3.2 + 0.2 * lines) * rows)
    colors = {name: i for i, name in enumerate(dict.fromkeys(name for panel in panels for name in panel.lines))}
    for axes, panel in zip(grid, panels, strict=False):
        for name, score in panel.lines.items():
            color, marker = mark(colors[name])
            points = {"marker": marker, "markersize": 5} if len(x) <= 20 else {}
            axes.plot(x, score.value, color=color, linewidth=1.8, label=name, **points)
            axes.fill_between(x, score.low, score.high, color=color, alpha=0.18, linewidth=0)
        for level, says in panel.levels.items():
            axes.axhline(level, color=INK, linewidth=1.2, linestyle=(0, (5, 4)), alpha=0.75, zorder=1)
            axes.annotate(
                says, (0.995, level), (0, 3), axes.get_yaxis_transform(), "offset points", ha="right", color=INK
            )
        axes.set(xlabel=xlabel, ylabel=panel.ylabel)
        if panel.log:
            axes.set_yscale("log")
            axes.minorticks_off()
        if panel.bottom is not None:
            axes.set_ylim(bottom=panel.bottom)
        if len(panel.lines) > 1:
            at = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "columnspacing": 1.0, "handlelength": 1.4}
            axes.legend(frameon=False, labelcolor=INK, fontsize=10, ncols=columns, **at)
    return figure


def spectra_figure(columns: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Power by wavenumber 1, 2, ...: of each column (a lead time) the curves of members, truth or training data."""
    figure, grid = axes_of(1, len(columns), 3.4, sharey=True)
    dashes = ("-", "--", ":")
    for axes, (title, curves) in zip(grid, columns.items(), strict=True):
        for i, (name, power) in enumerate(curves.items()):
            axes.plot(range(1, len(power) + 1), power, dashes[i % 3], color=mark(i)[0], linewidth=1.8, label=name)
        strongest = max(max(power, default=1.0) for column in columns.values() for power in column.values())
        axes.set(xscale="log", yscale="log", ylim=(FAINTEST * strongest, 3 * strongest), xlabel="wavenumber")
        axes.minorticks_off()
        axes.set_title(title, color=INK, fontsize=12)
    grid[0].set_ylabel("power")
    grid[0].legend(frameon=False, labelcolor=INK, fontsize=10.5)
    return figure
