"""Figures: every family, point, interval and the floor are drawn; SVG fetches nothing and follows the text's colour."""

import io
import math
import re
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from dualrate.diffusion.plan import StepPlan
from dualrate.forecasts import pictures as field_pictures
from dualrate.forecasts.curves import Panel, curves_figure, spectra_figure
from dualrate.forecasts.pictures import Shown, forecast_figure, write_animation
from dualrate.forecasts.scores import Score
from dualrate.report import figures
from dualrate.report.figures import (
    INK,
    PALETTE,
    loss_figure,
    mark,
    pareto_figure,
    plan_figure,
    png,
    ranks_figure,
    svg,
)
from report.made import DUAL, HEAVY, LIGHT, row

LINE = Score(np.array([1.0, 2.0]))
ROWS = [HEAVY, row("heavy", steps=32, heavy=32, macs=5_340_000_000, seconds=0.08, value=11.8), LIGHT, DUAL]
MORE = row(steps=64, heavy=16, macs=4_200_000_000, seconds=0.03, value=9.7)


@pytest.fixture(autouse=True)
def laid_out(monkeypatch):
    """As in use (tests/conftest.py)."""
    for module in (figures, field_pictures):
        monkeypatch.setattr(module, "Figure", Figure)


def shown_of(variable: str, height: int) -> Shown:
    """A forecast of three frames, over a line or a map."""
    members = np.random.default_rng(0).normal(size=(2, 3, height, 6))
    return Shown(members, members.mean(0), members.std(0), members[0], np.arange(1.0, 4.0), variable, variable)


def families(figure) -> dict[str, ErrorbarContainer]:
    (axes,) = figure.axes
    return {str(drawn.get_label()): drawn for drawn in axes.containers if isinstance(drawn, ErrorbarContainer)}


def test_every_network_is_drawn_and_in_the_legend():
    figure = pareto_figure(ROWS, "flops")
    names = {"heavy", "light alone", "dual-rate"}
    (legend,) = figure.legends
    assert families(figure).keys() == names
    assert {entry.get_text() for entry in legend.get_texts()} == names


@pytest.mark.parametrize(("cost", "x"), [("flops", [4.2, 8.4]), ("seconds", [30.0])])
def test_points_stand_at_their_cost_and_score_joined_in_order_of_cost(cost, x):
    line, _, (bars,) = families(pareto_figure([*ROWS, MORE], cost))["dual-rate"].lines
    values = [13.0, 9.7] if cost == "flops" else [9.7]  # the other takes longer, and is worse
    np.testing.assert_allclose(line.get_xydata(), np.stack([x, values], 1))
    ends = [segment[:, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [[value - 1, value + 1] for value in values])


def test_points_say_their_plan_and_the_floor_is_a_dashed_line():
    (axes,) = pareto_figure([*ROWS, MORE], "seconds").axes
    written = [text.get_text() for text in axes.texts]
    assert {"64/16", "16", "32"} < set(written)
    assert any("floor 2.61" in text for text in written)
    dashed = [line for line in axes.lines if line.get_ydata()[0] == 2.613]
    assert len(dashed) == 1
    assert dashed[0].get_linestyle() == "--"
    (without,) = pareto_figure([row(floor=math.nan)], "flops").axes
    assert not any("floor" in text.get_text() for text in without.texts)


def test_ranks_are_drawn_over_their_share():
    """Two members, and three that are calibrated."""
    figure = ranks_figure({"two": (0.5, 0.3, 0.2), "three": (0.25, 0.25, 0.25, 0.25)})
    first, second, _ = figure.axes[0].lines
    np.testing.assert_allclose(np.asarray(first.get_xydata()), [[0, 1.5], [0.5, 0.9], [1, 0.6]])
    np.testing.assert_allclose(np.asarray(second.get_ydata()), [1, 1, 1, 1])


def test_networks_differ_in_colour_and_marker():
    lines = [family.lines[0] for family in families(pareto_figure([HEAVY, LIGHT, DUAL], "flops")).values()]
    assert len({line.get_color() for line in lines}) == 3
    assert len({line.get_marker() for line in lines}) == 3
    assert len(set(PALETTE)) == len(PALETTE)
    assert len({mark(i) for i in range(54)}) == 54


def test_axes_are_logarithmic_where_it_helps():
    near, far = pareto_figure([DUAL, HEAVY], "flops").axes[0], pareto_figure([DUAL, row(value=130)], "flops").axes[0]
    assert (near.get_xscale(), near.get_yscale(), far.get_yscale()) == ("log", "linear", "log")


def test_an_axis_of_few_numbers_still_has_some():
    def written(*costs: int) -> list[str]:
        figure = pareto_figure([row(macs=int(5e8 * cost)) for cost in costs], "flops")
        png(figure)
        (axes,) = figure.axes
        low, high = axes.get_xlim()
        shown = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        return [label.get_text() for at, label in shown if low <= at <= high]

    assert written(8, 15) == ["8", "10", "12", "15"]
    assert written(2, 50) == ["2", "5", "10", "20", "50"]


def test_svg_is_one_element_that_fetches_nothing():
    before = dict(mpl.rcParams)
    drawn = svg(pareto_figure(ROWS, "flops"))
    assert drawn.startswith("<svg")
    assert drawn.endswith("</svg>")
    assert "currentColor" in drawn
    assert INK not in drawn
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', drawn))
    assert "<script" not in drawn
    assert svg(pareto_figure(ROWS, "flops")) == drawn
    assert dict(mpl.rcParams) == before


def test_png_is_a_picture_on_white():
    picture = Image.open(io.BytesIO(png(pareto_figure(ROWS, "seconds"), dpi=60)))
    assert picture.size == (480, 336)
    assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


BROKEN = r"a$\frac$_b"  # no mathematics


@pytest.mark.parametrize(
    "drawn",
    [
        lambda: pareto_figure([row(BROKEN), HEAVY], "flops"),
        lambda: plan_figure([(BROKEN, StepPlan.uniform(4, 2)), ("plain", StepPlan.uniform(4, 1))]),
        lambda: curves_figure([1, 2], [Panel(BROKEN, {BROKEN: LINE, "x": LINE}, {1.5: BROKEN})], BROKEN),
        lambda: spectra_figure({BROKEN: {BROKEN: [1.0, 0.01]}}),
        lambda: ranks_figure({BROKEN: (0.5, 0.5)}),
        lambda: loss_figure([(1, 2), (2, 1)], BROKEN, BROKEN),
        lambda: forecast_figure(shown_of(BROKEN, 1)),
        lambda: forecast_figure(shown_of(BROKEN, 4)),
    ],
)
def test_names_with_signs_of_mathematics_are_drawn_as_they_are(drawn):
    assert f"<!-- {BROKEN}" in svg(drawn()).replace("spread of ", "")
    Image.open(io.BytesIO(png(drawn(), dpi=40))).verify()


@pytest.mark.parametrize(("count", "length", "panels"), [(9, 36, 1), (5, 11, 4)])
def test_a_legend_of_many_curves_stays_in_its_picture(count, length, panels):
    lines = {f"{i} climatology of large".ljust(length)[:length]: LINE for i in range(count)} | {"x": LINE}
    figure = curves_figure([1, 2], [Panel("y", lines)] * panels, "lead")
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        box, whole = axes.get_legend().get_window_extent(), figure.bbox
        assert box.y1 <= whole.y1
        assert box.x1 <= whole.x1
        assert axes.get_window_extent().height > 100
        assert box.x0 >= whole.x0


def test_names_with_signs_of_mathematics_move(tmp_path):
    for height in (1, 4):
        write_animation(shown_of(BROKEN, height), tmp_path / "moving.webp")
        assert Image.open(tmp_path / "moving.webp").n_frames == 3


def test_powers_of_ten_along_axes_are_mathematics():
    figure = spectra_figure({"lead": {"members": [1.0, 1e-3, 1e-7]}})
    plain = svg(figure)
    assert "10^{-2}" in plain
    assert any(label.get_parse_math() for label in figure.axes[0].get_yticklabels())


def test_losses_are_drawn_as_given():
    points = [(128.0, 0.4), (256.0, 0.3), (384.0, 0.2)]
    (line,) = loss_figure(points, "images seen").axes[0].lines
    np.testing.assert_array_equal(line.get_xydata(), points)


def test_nothing_is_drawn_of_scores_that_cannot_be_compared():
    with pytest.raises(ValueError, match="count"):
        pareto_figure([DUAL, row(count=5000)], "flops")
    with pytest.raises(ValueError, match="no rows"):
        pareto_figure([], "flops")


def test_a_pareto_line_passes_no_beaten_point():
    rows = [replace(row(), score=replace(row().score, value=value)) for value in (3.0, 2.0)]
    figure = pareto_figure(rows, "flops")
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() == "-"]
    assert [list(line.get_ydata()) for line in lines] == [[2.0]]
