"""Coastlines on maps, and plumes at a point."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from dualrate.forecasts import coastlines as coasts
from dualrate.forecasts import pictures
from dualrate.forecasts.coastlines import Axis, coastlines
from dualrate.forecasts.pictures import Shown, forecast_figure, plume_figure

LATITUDES = Axis("latitude", tuple(np.linspace(60.0, -60.0, 13)), -1, "latitude")
EAST, HALF, SHORT = np.arange(0.0, 360, 10), np.arange(-180.0, 180, 10), np.arange(60.0, 110, 10)


def longitudes(values) -> Axis:
    return Axis("longitude", tuple(values), int(np.sign(values[1] - values[0])), "longitude")


@pytest.fixture(autouse=True)
def cartopy(monkeypatch):
    """A reader of lines, to which tests append; none is left behind."""
    shapes = [SimpleNamespace(coords=[(-95.0, 55.0), (-95.0, -35.0)])]
    reader = ModuleType("cartopy.io.shapereader")
    reader.natural_earth = lambda *of, **by: "coastline.shp"
    reader.Reader = lambda path: SimpleNamespace(geometries=lambda: iter(shapes))
    parts = ModuleType("cartopy"), ModuleType("cartopy.io"), reader
    parts[0].io, parts[1].shapereader = parts[1:]
    for part in parts:
        monkeypatch.setitem(sys.modules, part.__name__, part)
    coasts._natural_earth.cache_clear()
    yield SimpleNamespace(shapes=shapes, reader=reader)
    coasts._natural_earth.cache_clear()


@pytest.mark.parametrize(
    ("values", "column"),
    [(EAST, 26.5), (EAST[::-1], 8.5), (HALF, 8.5), (HALF[::-1], 26.5), (EAST - 360, 26.5)],
)
def test_a_meridian_lies_at_its_column(values, column):
    (line,) = coastlines(LATITUDES, longitudes(values))
    np.testing.assert_allclose(line, [(column, 0.5), (column, 9.5)])
    south_first = Axis("latitude", LATITUDES.values[::-1], 1, "latitude")
    (line,) = coastlines(south_first, longitudes(values))
    np.testing.assert_allclose(line, [(column, 11.5), (column, 2.5)])


def test_lines_break_where_the_map_ends(cartopy):
    cartopy.shapes[:] = [SimpleNamespace(geoms=[SimpleNamespace(coords=[(-20.0, 0.0), (-6.0, 0.0), (4.0, 0.0)])])]
    (line,) = coastlines(LATITUDES, longitudes(EAST))
    np.testing.assert_allclose(line[:, 0], [34, 35.4, np.nan, 0.4])
    (line,) = coastlines(LATITUDES, longitudes(HALF))
    np.testing.assert_allclose(line[:, 0], [16, 17.4, 18.4])
    assert coastlines(LATITUDES, longitudes(SHORT)) == []
    cartopy.shapes[:] = [SimpleNamespace(coords=[(40.0, 0.0), (55.0, 0.0), (75.0, 0.0)])]
    coasts._natural_earth.cache_clear()
    (line,) = coastlines(LATITUDES, longitudes(SHORT))
    np.testing.assert_allclose(line[:, 0], [np.nan, -0.5, 1.5])


@pytest.mark.parametrize("lacking", ["cartopy", "network", "places", "values"])
def test_without_cartopy_its_data_or_places_there_are_no_coastlines(cartopy, monkeypatch, lacking):
    def offline(*of, **by):
        raise OSError("no network")

    if lacking == "cartopy":
        monkeypatch.setitem(sys.modules, "cartopy", None)
        monkeypatch.setitem(sys.modules, "cartopy.io", None)
    monkeypatch.setattr(cartopy.reader, "natural_earth", offline if lacking == "network" else lambda *of, **by: "")
    rows = {"places": Axis("y", LATITUDES.values, -1), "values": Axis("latitude", (), -1, "latitude")}
    assert coastlines(rows.get(lacking, LATITUDES), longitudes(EAST)) == []


def ensemble(members: int = 6, height: int = 13, **changed) -> Shown:
    """Members that differ most at row 3 (of one dimension 0) and column 12; another point is masked."""
    fields = np.random.default_rng(0).normal(size=(members, 5, height, 36))
    fields[:, :, height // 4, 12] *= 20
    fields[:, :, 0, 0] = np.nan
    how = {"rows": LATITUDES, "columns": longitudes(EAST)} | changed
    times, spread = np.arange(1.0, 6), fields.std(0, ddof=1)
    return Shown(fields, fields.mean(0), spread, fields[0], times, "vorticity [1/s]", "lead time in days", **how)


def test_coastlines_lie_on_every_map_and_leave_its_limits(monkeypatch):
    monkeypatch.setattr(pictures, "Figure", Figure)
    shown = ensemble()
    maps = [axes for axes in forecast_figure(shown).axes if axes.get_images()]
    assert maps
    for axes in maps:
        (line,) = axes.get_lines()
        assert set(np.asarray(line.get_xdata())[:2]) == {26.5}
        assert sorted(axes.get_xlim()) == [-0.5, 35.5]
        assert axes.get_ylim() == (12.5, -0.5)
    first, *_ = pictures._moving_maps(shown, shown.some(2))
    assert first.width > first.height


@pytest.mark.parametrize(
    ("changed", "title"),
    [
        ({}, "vorticity at 30 N, 120 E"),
        ({"columns": longitudes(HALF)}, "vorticity at 30 N, 60 W"),
        ({"rows": Axis("y [m]", tuple(np.arange(13.0)), 1)}, "vorticity at y [m] 3, 120 E"),
        ({"rows": Axis()}, "vorticity at point (3, 12)"),
        ({"height": 1, "rows": Axis()}, "vorticity at 120 E"),
        ({"height": 1, "rows": Axis(), "columns": Axis()}, "vorticity at point 12"),
    ],
)
def test_a_plume_is_of_the_point_where_members_differ_most(changed, title):
    shown = ensemble(**changed)
    (axes,) = plume_figure(shown).axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == (title, shown.lead, shown.variable)
    members = shown.members[:, :, shown.members.shape[2] // 4, 12]
    lines = np.array([line.get_ydata() for line in axes.get_lines()])
    np.testing.assert_array_equal(lines, [*members, members.mean(0), members[0]])
    bands = [band.get_paths()[0].vertices[:, 1] for band in axes.collections]
    for band, low, high in zip(bands, (0.05, 0.25), (0.95, 0.75), strict=True):
        ends = np.quantile(members, (low, high), axis=0)
        np.testing.assert_allclose([band.min(), band.max()], [ends[0].min(), ends[1].max()])


def test_a_plume_of_few_members_has_no_bands_and_one_may_burst():
    shown = ensemble(3)
    assert not plume_figure(shown).axes[0].collections
    shown.members[1, 3:], shown.spread[3:] = np.inf, np.nan
    assert shown.point == (3, 12)
    shown.spread[:] = np.nan
    assert shown.point == (0, 0)
    more = ensemble(3, plume=np.zeros((7, 5)))
    assert len(plume_figure(more).axes[0].get_lines()) == 9
