"""Figures, as inline SVG for pages (in the colour of the text around them: light and dark) or as PNG.

Colours are those of Okabe and Ito, which colour-blind readers can distinguish; markers and dashes differ as well.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, StrMethodFormatter

from dualrate.diffusion.context import Refresh
from dualrate.diffusion.plan import StepPlan
from dualrate.metrics.store import require_same
from dualrate.report.table import Row, compute_unit, significant

Item = TypeVar("Item")

PALETTE = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#24262b"  # becomes currentColor in SVG
WIDE = 5.0  # scores that span a larger factor get a log axis


def pareto_front(items: Iterable[Item], place: Callable[[Item], tuple[float, float]]) -> list[Item]:
    """The items that no other beats, in order of cost. place: an item's (cost, score); lower is better in both."""
    front: list[Item] = []
    for item in sorted(items, key=place):
        if not front or place(item)[1] < place(front[-1])[1]:
            front.append(item)
    return front


def pareto_figure(rows: Sequence[Row], cost: str, noun: str = "image") -> Figure:
    """Score against "flops", or else measured seconds, per sample: a network's rows in one colour, a line through its
    front.

    Raises ValueError for no rows, and for scores that were taken under different conditions.
    """
    if not rows:
        raise ValueError("no rows, so there is nothing to draw: measure something first")
    require_same([row.score.fingerprint for row in rows])
    prefix, unit = compute_unit([row.flops for row in rows])
    floor, values = rows[0].score.floor, [row.score.value for row in rows]

    def place(row: Row) -> tuple[float, float]:
        return row.flops / unit if cost == "flops" else 1000 * row.seconds_per_image, row.score.value

    figure, axes = _blank(height=5.6)
    for i, network in enumerate(dict.fromkeys(row.network for row in rows)):
        color, marker = mark(i)
        of_network = [row for row in rows if row.network == network]
        front = pareto_front(of_network, place)
        x, y = zip(*map(place, front), strict=True)
        below = [max(0.0, row.score.value - row.score.low) for row in front]
        above = [max(0.0, row.score.high - row.score.value) for row in front]
        axes.errorbar(
            x, y, (below, above), fmt=f"-{marker}", color=color, markersize=8, capsize=4, label=network, zorder=3
        )
        offset = ((8, 6), (8, -14), (-22, 6))[i % 3]  # neighbouring points of two networks are labelled apart
        for row in front:
            axes.annotate(row.plan, place(row), offset, textcoords="offset points", color=color, fontsize=11)
        for row in of_network:
            if row not in front:
                axes.plot(*place(row), marker, color=color, alpha=0.35)
    if not math.isnan(floor):
        axes.axhline(floor, color=INK, linewidth=1.2, linestyle=(0, (5, 4)), alpha=0.75, zorder=1)
        at, label = axes.get_yaxis_transform(), f"floor {significant(floor)}: real images"
        axes.annotate(label, (0.995, floor), (0, 4), at, "offset points", ha="right", color=INK, alpha=0.85)
    log_axis(axes, "x")
    axes.margins(x=0.1, y=0.12)
    if min(values) > 0 and max(values) > WIDE * min(values):
        log_axis(axes, "y")
    elif min(values) > 0:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{prefix}FLOPs per {noun}" if cost == "flops" else f"measured milliseconds per {noun}")
    axes.set_ylabel(f"{rows[0].score.metric} (lower is better)")
    figure.legend(frameon=False, loc="outside upper center", ncols=2, labelcolor=INK)
    return figure


def loss_figure(points: Sequence[tuple[float, float]], xlabel: str, ylabel: str = "training loss") -> Figure:
    """A training curve. points: (x, loss), loss > 0, on a log axis."""
    figure, axes = _blank(height=3.2)
    axes.plot([x for x, _ in points], [loss for _, loss in points], color=PALETTE[0], linewidth=2)
    log_axis(axes, "y")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure


def ranks_figure(ranks: Mapping[str, Sequence[float]]) -> Figure:
    """Rank histograms of ensembles, a line each: shares of ranks 0 to M, over 1 / (M + 1)."""
    figure, axes = _blank(height=3.2)
    for i, (name, shares) in enumerate(ranks.items()):
        color, marker = mark(i)
        below = [rank / (len(shares) - 1) for rank in range(len(shares))]
        axes.plot(below, [share * len(shares) for share in shares], f"-{marker}", color=color, label=name)
    axes.axhline(1, color=INK, linewidth=1.2, linestyle=(0, (5, 4)), alpha=0.75, zorder=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("share of the members below the truth")
    axes.set_ylabel("share of the numbers, times M + 1")
    figure.legend(frameon=False, loc="outside upper center", ncols=2, labelcolor=INK)
    return figure


def plan_figure(plans: Sequence[tuple[str, StepPlan]]) -> Figure:
    """Draws the steps and the heavy calls of some plans, a line each: time runs from noise to data."""
    figure, axes = _blank(height=1.2 + 0.45 * len(plans))
    for line, (_, plan) in enumerate(plans):
        color = PALETTE[line % len(PALETTE)]
        heavy = [t for t, refresh in zip(plan.t, plan.refresh, strict=False) if refresh is Refresh.FULL]
        light = [t for t, refresh in zip(plan.t, plan.refresh, strict=False) if refresh is not Refresh.FULL]
        axes.plot(light, [line] * len(light), "|", color=color, markersize=8, markeredgewidth=1.2, alpha=0.7)
        axes.plot(heavy, [line] * len(heavy), "o", color=color, markersize=9)
    axes.set_yticks(range(len(plans)), [name for name, _ in plans])
    axes.set_ylim(len(plans) - 0.5, -0.5)
    axes.set_xlim(1.03, -0.03)
    axes.set_xlabel("t, from noise (1) to data (0); dots: heavy calls, ticks: light steps")
    axes.grid(visible=False, axis="y")
    return figure


def mark(i: int) -> tuple[str, str]:
    """Colour and marker of the i-th network: no two of the first 54 have both in common."""
    again, color = divmod(i, len(PALETTE))
    return PALETTE[color], MARKERS[(color + again) % len(MARKERS)]


def literal(figure: Figure) -> Figure:
    """The same figure, in which a name with $ is no mathematics: of all texts only numbers along axes may be."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if not isinstance(axis.get_major_locator(), FixedLocator):  # names
            for label in axis.get_ticklabels(which="both"):
                label.set_parse_math(True)
    return figure


def svg(figure: Figure) -> str:
    """An <svg> element to put into a page: no fonts, no scripts, nothing fetched; as wide as its place."""
    target = io.StringIO()
    without = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": "dualrate"}):
        FigureCanvasSVG(literal(figure)).print_svg(target, metadata=without)
    drawn = target.getvalue().replace(INK, "currentColor")
    return drawn[drawn.index("<svg") :].strip()


def png(figure: Figure, dpi: int = 150) -> bytes:
    """PNG on white."""
    target = io.BytesIO()
    figure.set_facecolor("white")
    figure.set_dpi(dpi)
    FigureCanvasAgg(literal(figure)).print_png(target)
    return target.getvalue()


def _blank(height: float) -> tuple[Figure, Axes]:
    """A figure of 8 inches width without a background, in INK."""
    figure, (axes,) = panels(1, 1, height, layout="constrained")
    return figure, axes


def panels(
    rows: int, columns: int, height: float, *, sharey: bool = False, layout: Literal["constrained", "tight"] = "tight"
) -> tuple[Figure, list[Axes]]:
    """A figure as of `_blank`, and its axes row by row. layout: tight takes half the time, without room for legends"""
    figure = Figure(figsize=(8, height), facecolor="none", layout=layout)
    with mpl.rc_context({"font.size": 12, "text.color": INK}):
        grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey, subplot_kw={"facecolor": "none"})
    for axes in grid.flat:
        axes.tick_params(which="both", colors=INK)
        for side, spine in axes.spines.items():
            spine.set(color=INK, alpha=0.5, visible=side in ("left", "bottom"))
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(INK)
        axes.grid(which="major", color=INK, alpha=0.12)
    return figure, list(grid.flat)


def log_axis(axes: Axes, axis: Literal["x", "y"]) -> None:
    """A log axis with plain numbers at 1, 2, 5 of every decade; more if what is drawn so far spans less than WIDE."""
    low, high = sorted(axes.dataLim.intervalx if axis == "x" else axes.dataLim.intervaly)
    numbers = (1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0) if 0 < high < WIDE * low else (1.0, 2.0, 5.0)
    (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
    lines = axes.xaxis if axis == "x" else axes.yaxis
    lines.set_major_locator(LogLocator(subs=numbers))
    lines.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    lines.set_minor_formatter(NullFormatter())
