"""Pictures of a forecast of fields: an ensemble beside the truth, over lead times; still and in motion.

Fields of one dimension are shown over space and time, those of two as maps, with coastlines where cartopy is there; a
point of either as a plume. All but the spread share their colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from dualrate.forecasts.coastlines import Axis, coastlines
from dualrate.report.figures import INK, PALETTE, literal
from dualrate.report.figures import panels as axes_of
from dualrate.system.files import whole

MAPS, LINES, BANDED = 6, 3, 4  # lead times of a picture of maps, of one of lines; members of bands, at least
MOVING, MILLISECONDS = 100, 80  # frames of an animation, at most; each is shown so long
COLOURS, SPREAD_COLOURS, UNKNOWN = "RdBu_r", "viridis", "0.85"
Array = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Shown:
    """One variable of an ensemble from one start.

    members: (m, T, H, W), some of them; mean, spread: (T, H, W), of all; truth: the same, nan where it is not known
    times:   (T,); lead: what these are called
    rows, columns: axes of space, of a line columns alone; southern: whether the first row lies south of the last
    plume: (n, T), members at `point`, which may be more than those; None: those
    """

    members: Array
    mean: Array
    spread: Array
    truth: Array | None
    times: Array
    variable: str
    lead: str
    rows: Axis = Axis()
    columns: Axis = Axis()
    plume: Array | None = None
    southern: bool = False

    @property
    def point(self) -> tuple[int, int]:
        """The row and column where members differ most at the last lead time at which they are finite."""
        spread = np.where(np.isfinite(self.spread), self.spread, -1.0)
        last = np.flatnonzero((spread >= 0).any((1, 2)))[-1:].sum()
        return divmod(int(spread[last].argmax()), spread.shape[2])

    @property
    def coast(self) -> Array:
        """Coastlines (n, 2) one after the other, parted by nan."""
        lines = [np.append(line, [[np.nan, np.nan]], 0) for line in coastlines(self.rows, self.columns)]
        return np.concatenate([np.empty((0, 2)), *lines])

    @property
    def fields(self) -> dict[str, Array]:
        """Fields that share a scale, by their names, in the order in which they are shown."""
        truth = {} if self.truth is None else {"truth": self.truth}
        mean = {"mean": self.mean} if len(self.members) > 1 else {}
        return truth | mean | {f"member {i}": member for i, member in enumerate(self.members)}

    @property
    def scale(self) -> Normalize:
        """The range of truth and members without the outermost hundredth; symmetric where it contains 0."""
        return scale_of(field for name, field in self.fields.items() if name != "mean")

    def some(self, most: int) -> NDArray[np.int_]:
        """Indices of at most so many times, evenly spread."""
        return np.unique(np.linspace(0, len(self.times) - 1, min(most, len(self.times))).round().astype(int))


def scale_of(fields: Iterable[Array]) -> Normalize:
    """The range of fields without the outermost hundredth; symmetric where it contains 0."""
    parts = [field[np.isfinite(field)] for field in fields]
    low, high = np.percentile(np.concatenate(parts), (0.5, 99.5)) if any(map(len, parts)) else (0.0, 1.0)
    most = max(-low, high)
    return Normalize(-most, most) if low < 0 < high else Normalize(low, high)


def plain_maps(fields: Array) -> NDArray[np.uint8]:
    """(N, 3, T H, W): fields (N, T, H, W) in colours that they share, those of one below the other, without axes."""
    colours = colormaps[COLOURS].with_extremes(bad=UNKNOWN)
    pixels = colours(np.ma.masked_invalid(scale_of([fields])(fields)), bytes=True)[..., :3]
    return pixels.reshape(len(fields), -1, *pixels.shape[3:]).transpose(0, 3, 1, 2)


def forecast_figure(shown: Shown) -> Figure:
    """Truth if it is known, mean, spread and members, over space and lead times."""
    most = float(np.nanmax(shown.spread, initial=1e-12, where=shown.spread < np.inf))
    panels: Panels = {}
    for name, field in shown.fields.items():
        panels[name] = field, COLOURS, shown.scale
        if name == "mean":
            panels["spread"] = shown.spread, SPREAD_COLOURS, Normalize(0, most)
    return _maps(shown, panels) if shown.mean.shape[1] > 1 else _space_and_time(shown, panels)


def lines_figure(shown: Shown) -> Figure:
    """Members of a field of one dimension as lines over space, with their mean and the truth, at some lead times."""
    times = shown.some(LINES)
    figure = Figure(figsize=(3.6 * len(times) + 1, 3), layout="constrained")
    for axes, time in zip(figure.subplots(1, len(times), squeeze=False, sharey=True).flat, times, strict=True):
        axes.plot(shown.members[:, time, 0].T, color=PALETTE[0], alpha=0.35, linewidth=0.9)
        axes.plot(shown.mean[time, 0], color=PALETTE[0], linewidth=2, label="mean")
        if shown.truth is not None:
            axes.plot(shown.truth[time, 0], color="0.5", linewidth=2, linestyle=(0, (4, 2)), label="truth")
        axes.set_title(f"{shown.lead} {shown.times[time]:g}", fontsize=11)
        axes.set_xlabel("point")
    figure.axes[0].set_ylabel(shown.variable)
    figure.axes[0].legend(frameon=False)
    return figure


def plume_figure(shown: Shown) -> Figure:
    """Members over lead times at the point where they differ most at the end, with their mean and the truth."""
    figure, (axes,) = axes_of(1, 1, 3.4)
    row, column = shown.point
    plume = shown.members[:, :, row, column] if shown.plume is None else shown.plume
    plume = np.where(np.isfinite(plume), plume, np.nan)
    for low, high, alpha in ((0.05, 0.95, 0.15), (0.25, 0.75, 0.3)) if len(plume) >= BANDED else ():
        label = f"{100 * low:.0f}-{100 * high:.0f}% of members"
        ends = np.quantile(plume, (low, high), axis=0)
        axes.fill_between(shown.times, *ends, color=PALETTE[1], alpha=alpha, linewidth=0, label=label)
    axes.plot(shown.times, plume.T, color=PALETTE[1], alpha=0.35, linewidth=0.7)
    axes.plot(shown.times, shown.mean[:, row, column], color=PALETTE[0], linewidth=2, label="mean")
    if shown.truth is not None:
        axes.plot(shown.times, shown.truth[:, row, column], "--", color=INK, linewidth=2, label="truth")
    line = shown.mean.shape[1] == 1
    words = [axis.words(i) for axis, i in ((shown.rows, row), (shown.columns, column))[line:] if axis.values]
    place = ", ".join(words) if len(words) == 2 - line else f"point {column if line else (row, column)}"
    axes.set(xlabel=shown.lead, ylabel=shown.variable, title=f"{shown.variable.partition(' [')[0]} at {place}")
    axes.legend(frameon=False, labelcolor=INK, fontsize=10)
    return figure


Panels = dict[str, tuple[Array, str, Normalize]]


def _space_and_time(shown: Shown, panels: Panels) -> Figure:
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns + 1, 2.3 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    step = float(shown.times[0]) if len(shown.times) == 1 else float(shown.times[1] - shown.times[0])
    extent = (float(shown.times[0]) - step / 2, float(shown.times[-1]) + step / 2, 0, shown.mean.shape[2])
    images = {}
    for axes, (name, (field, colours, norm)) in zip(grid.flat, panels.items(), strict=False):
        images[colours] = axes.imshow(
            field[:, 0].T, cmap=colours, norm=norm, extent=extent, aspect="auto", origin="lower", interpolation="none"
        )
        axes.set_title(name, fontsize=11)
        axes.set_facecolor(UNKNOWN)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    if (shown.columns.place, shown.columns.way) == ("latitude", -1):
        grid[0, 0].invert_yaxis()  # north is up; all share it
    places, numbers = shown.columns.ticks(5)
    if places:
        grid[0, 0].set_yticks([place + 0.5 for place in places], numbers)
    figure.supxlabel(shown.lead, fontsize=11)
    figure.supylabel(shown.columns.label if places else "point", fontsize=11)
    _bars(figure, images, list(grid.flat), shown)
    return figure


def _maps(shown: Shown, panels: Panels) -> Figure:
    some = shown.some(MAPS)
    height, width = shown.mean.shape[1:]
    tall = 1.6 * min(2.0, max(0.5, height / width))
    figure = Figure(figsize=(1.6 * len(some) + 1.8, tall * len(panels) + 0.6), layout="constrained")
    grid = figure.subplots(len(panels), len(some), squeeze=False)
    images, coast = {}, shown.coast
    for row, (name, (field, colours, norm)) in zip(grid, panels.items(), strict=True):
        for axes, i in zip(row, some, strict=True):
            images[colours] = axes.imshow(field[i], cmap=colours, norm=norm, interpolation="none")
            _orient(axes, shown, coast, left=axes is row[0], bottom=name == list(panels)[-1])
        row[0].set_ylabel(name, fontsize=9)
    for axes, i in zip(grid[0], some, strict=True):
        axes.set_title(f"{shown.times[i]:.4g}", fontsize=11)
    figure.suptitle(shown.lead, fontsize=11)
    _bars(figure, images, list(grid.flat), shown)
    return figure


def _orient(axes: Axes, shown: Shown, coast: Array, *, left: bool, bottom: bool) -> None:
    """North is up and east on the right, coasts are lines; coordinates stand on the left and at the bottom."""
    axes.set_facecolor(UNKNOWN)
    if len(coast):
        (line,) = axes.plot(*coast.T, "k", linewidth=0.4, scalex=False, scaley=False)
        line.get_path().simplify_threshold = 0.5  # of a pixel, for small pages
    if shown.southern or (shown.rows.place, shown.rows.way) == ("latitude", 1):
        axes.invert_yaxis()
    if (shown.columns.place, shown.columns.way) == ("longitude", -1):
        axes.invert_xaxis()
    for axis, along, labelled in ((axes.yaxis, shown.rows, left), (axes.xaxis, shown.columns, bottom)):
        places, numbers = along.ticks(4) if labelled else ([], [])
        axis.set_ticks(places, numbers, fontsize=8)


def _bars(figure: Figure, images: dict, axes: list[Axes], shown: Shown) -> None:
    for colours, image in images.items():
        what = f"spread of {shown.variable}" if colours == SPREAD_COLOURS else shown.variable
        figure.colorbar(image, ax=axes, label=what, shrink=0.9, pad=0.015, aspect=40)


def write_animation(shown: Shown, path: Path) -> None:
    """Truth, mean and members over lead times as an animated WebP, written whole or not at all."""
    some = shown.some(MOVING)
    drawn = _moving_maps(shown, some) if shown.mean.shape[1] > 1 else _moving_lines(shown, some)
    first, *rest = drawn
    with whole(path) as file:
        first.save(file, "WEBP", save_all=True, append_images=rest, duration=MILLISECONDS, loop=0, quality=80, method=2)


def _moving_lines(shown: Shown, some: NDArray[np.int_]) -> Iterator[Image.Image]:
    figure = Figure(figsize=(7, 3.4), layout="constrained", facecolor="white", dpi=100)
    axes, point = figure.subplots(), np.arange(shown.mean.shape[2])
    lines = {}
    for i, name in enumerate(each for each in shown.fields if each.startswith("member")):
        label = "members" if i == 0 else None
        (lines[name],) = axes.plot(point, 0.0 * point, color=PALETTE[1], alpha=0.45, linewidth=1.2, label=label)
    for name, color, dashes in (("mean", PALETTE[0], "-"), ("truth", "black", "--")):
        if name in shown.fields:
            (lines[name],) = axes.plot(point, 0.0 * point, color=color, linestyle=dashes, linewidth=2, label=name)
    finite = np.concatenate([field[np.isfinite(field)] for field in shown.fields.values()])
    low, high = np.percentile(finite, (0.1, 99.9)) if len(finite) else (0.0, 1.0)
    axes.set_ylim(low - 0.1 * (high - low), high + 0.25 * (high - low) + 1e-12)
    places, numbers = shown.columns.ticks(7)
    axes.set(xlabel=shown.columns.label if places else "point", ylabel=shown.variable, xlim=(0, len(point) - 1))
    if places:
        axes.set_xticks(places, numbers)
    axes.legend(loc="upper right", ncols=3, frameon=False)
    for i in some:
        for name, line in lines.items():
            line.set_ydata(shown.fields[name][i, 0])
        axes.set_title(f"{shown.lead}: {shown.times[i]:.4g}", loc="left", fontsize=11)
        yield _picture(figure)


def _moving_maps(shown: Shown, some: NDArray[np.int_]) -> Iterator[Image.Image]:
    fields, scale = shown.fields, shown.scale
    figure = Figure(figsize=(2.0 * len(fields) + 0.9, 2.7), layout="constrained", facecolor="white", dpi=100)
    grid = figure.subplots(1, len(fields), squeeze=False)[0]
    images, coast = [], shown.coast
    for axes, (name, field) in zip(grid, fields.items(), strict=True):
        images.append(axes.imshow(field[0], cmap=COLOURS, norm=scale, interpolation="none"))
        _orient(axes, shown, coast, left=axes is grid[0], bottom=True)
        axes.set_title(name, fontsize=11)
    figure.colorbar(images[0], ax=list(grid), label=shown.variable, shrink=0.8, pad=0.01)
    title = figure.suptitle("", fontsize=11)
    for i in some:
        for image, field in zip(images, fields.values(), strict=True):
            image.set_data(field[i])
        title.set_text(f"{shown.lead}: {shown.times[i]:.4g}")
        yield _picture(figure)


def _picture(figure: Figure) -> Image.Image:
    """The next picture is laid out as this one."""
    canvas = FigureCanvasAgg(literal(figure))
    canvas.draw()
    figure.set_layout_engine("none")
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
