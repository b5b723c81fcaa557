"""Geometry of fields: the order of axes, edges that meet, areas of points, and points that a mask hides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from forecasts.made_globes import (
    LATITUDES,
    LONGITUDES,
    experiment,
    saved,
    small_networks,
    trained,
    untrained,
    waves,
)
from runs.made import saved_random
from scipy.special import sph_harm_y

import dualrate as dr
from dualrate.cli.distill import Student
from dualrate.config.serial import from_plain, to_plain
from dualrate.data.loader import Batches
from dualrate.diffusion.context import Cond
from dualrate.diffusion.random import Draws
from dualrate.experiment.experiment import Start
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.folder import shown, write_forecast
from dualrate.forecasts.geometry import Geometry, Order, circles, from_text, row_areas, to_text
from dualrate.forecasts.metadata import Coordinate, Description
from dualrate.forecasts.sources import find_fields
from dualrate.forecasts.starts import held_out_starts, read_starts
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes.auto import distilled
from dualrate.runs.store import load

LAND = np.zeros((8, 16), bool)
LAND[2:4, 3:6] = True


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks(monkeypatch)


# Order


@pytest.mark.parametrize("order", [Order(), Order(True), Order(False, (True, False), 3), Order(True, (True, True), 5)])
def test_an_order_is_restored(order: Order) -> None:
    frames = np.arange(2 * 6 * 8).reshape(2, 6, 8)
    np.testing.assert_array_equal(order.restored(order.usual(frames)), frames)


def turned(kind: str) -> xarray.Dataset:
    data = waves()
    if kind == "south first":
        return data.isel(lat=slice(None, None, -1))
    if kind == "from -180":
        return data.assign_coords(lon=("lon", (LONGITUDES + 180) % 360 - 180, data.lon.attrs)).sortby("lon")
    if kind == "from 20":  # to 380
        return data.assign_coords(lon=("lon", (LONGITUDES - 20) % 360 + 20, data.lon.attrs)).sortby("lon")
    if kind == "west last":
        return data.isel(lon=slice(None, None, -1))
    if kind == "longitude, latitude":
        return data.transpose("time", "lon", "lat")
    if kind == "longitude, latitude, time":
        return data.transpose("lon", "lat", "time")
    return data


KINDS = ("south first", "from -180", "from 20", "west last", "longitude, latitude", "longitude, latitude, time")


@pytest.mark.parametrize(
    "kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:5]), KINDS[5]]
)
def test_a_run_on_another_order_is_the_same_to_the_bit(tmp_path: Path, kind: str) -> None:
    plain = trained(saved(waves(), tmp_path / "plain.nc"), tmp_path / "plain")
    source = saved(turned(kind), tmp_path / "other.nc")
    other = trained(source, tmp_path / "other")
    assert other.weights_hash == plain.weights_hash
    results = [dr.forecast(run, 2, frames=2, members=2, seed=3) for run in (plain, other)]
    assert results[0].ensemble.tobytes() == results[1].ensemble.tobytes()
    for name in ("lat", "lon"):
        np.testing.assert_array_equal(results[1].dataset[name], turned(kind)[name])
    geometry = other.experiment.condition.geometry  # pyright: ignore[reportAttributeAccessIssue]
    in_file = np.asarray(turned(kind).t)[0] if "time" not in kind else np.asarray(turned(kind).t)[..., 0]
    np.testing.assert_array_equal(geometry.order.usual(in_file), waves().t[0])
    for axis, values in zip(geometry.axes, (LATITUDES, LONGITUDES), strict=True):
        np.testing.assert_allclose(axis.values, values)
    notes: list[str] = []
    starts = read_starts(source, plain, notes.append)
    assert ["in another order" in note for note in notes] == [True]
    np.testing.assert_array_equal(starts.past[0, 0, 0], waves().t[-1])


def test_a_run_on_a_packed_descending_and_shifted_file_is_the_same_to_the_bit(tmp_path: Path) -> None:
    data = waves()
    data.t.values = np.float32(280 + 0.01 * np.round(100 * (data.t.values - 280)))
    other = data.assign_coords(lon=("lon", (LONGITUDES + 180) % 360 - 180, data.lon.attrs))
    other = other.sortby("lon", ascending=False).isel(lat=slice(None, None, -1)).transpose("lon", "time", "lat")
    packing = {"t": {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32767}}
    sources = saved(data, tmp_path / "plain.nc"), saved(other, tmp_path / "other.nc", encoding=packing)
    how: dict[str, Any] = {"forcings": ("sun",), "frames": 2}
    plain, packed = (trained(source, tmp_path / source.stem, **how) for source in sources)
    assert packed.weights_hash == plain.weights_hash
    results = [dr.forecast(run, 1, frames=3, members=2) for run in (plain, packed)]
    assert results[0].ensemble.tobytes() == results[1].ensemble.tobytes()
    assert str(results[0].scores).replace("plain/", "other/") == str(results[1].scores)
    written = (
        results[1].dataset.t.transpose("init_time", "number", "lead_time", "lat", "lon").sortby("lat", ascending=False)
    )
    written = written.assign_coords(lon=written.lon % 360).sortby("lon")
    np.testing.assert_array_equal(written, results[0].dataset.t)


def test_packed_files_are_as_plain_ones(tmp_path: Path) -> None:
    data = waves()
    data.t.values = np.float32(280 + 0.01 * np.round(100 * (data.t.values - 280)))
    packing = {"t": {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32767}}
    a = find_fields(saved(data, tmp_path / "plain.nc"))[1].trajectories[0][0:40]
    b = find_fields(saved(data, tmp_path / "packed.nc", encoding=packing))[1].trajectories[0][0:40]
    np.testing.assert_array_equal(np.float32(a), np.float32(b))


def test_a_region_stays_where_it_is(tmp_path: Path) -> None:
    region = waves().isel(lon=[14, 15, 0, 1])  # over Greenwich
    geometry = Geometry.of(find_fields(saved(region, tmp_path / "region.nc"))[1])
    assert (geometry.order, geometry.periodic, geometry.spherical) == (Order(), (False, False), True)


def region(kind: str) -> xarray.Dataset:
    """Eight columns over Greenwich, in the order of some file."""
    data = waves().isel(lon=[12, 13, 14, 15, 0, 1, 2, 3])  # from 270 to 67.5
    if kind == "sorted":
        return data.sortby("lon")
    if kind == "from the east":
        return data.sortby("lon", ascending=False)
    if kind == "longitude, latitude":
        return data.sortby("lon").transpose("time", "lon", "lat")
    return data


@pytest.mark.parametrize(
    "kind", ["sorted", pytest.param("from the east", marks=pytest.mark.slow), "longitude, latitude"]
)
@pytest.mark.parametrize("date_line", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_region_that_a_file_cuts_in_two_is_joined_and_given_back_as_it_was(
    tmp_path: Path, kind: str, date_line: bool
) -> None:
    plain, other = region("plain"), region("plain" if date_line else kind)
    if date_line:
        plain, east = (
            data.assign_coords(lon=("lon", data.lon.values + 180, data.lon.attrs)) for data in (plain, other)
        )
        east = east.assign_coords(lon=("lon", (east.lon.values + 180) % 360 - 180, east.lon.attrs))
        other = east.sortby("lon", ascending=kind != "from the east")
        other = other.transpose("time", "lon", "lat") if "," in kind else other
    source = saved(other, tmp_path / "other.nc")
    runs = [trained(saved(plain, tmp_path / "plain.nc"), tmp_path / "plain"), trained(source, tmp_path / "other")]
    assert runs[0].weights_hash == runs[1].weights_hash
    results = [dr.forecast(run, 2, frames=2, members=2) for run in runs]
    assert results[0].ensemble.tobytes() == results[1].ensemble.tobytes()
    np.testing.assert_array_equal(results[1].dataset.lon, other.lon)
    truth = results[1].dataset.t_truth
    np.testing.assert_array_equal(truth[0, 0], other.t.sel(time=truth.valid_time.values[0, 0]))
    geometry: Any = runs[1].experiment.condition.geometry  # pyright: ignore[reportAttributeAccessIssue]
    assert (geometry.periodic, geometry.spherical) == ((False, False), True)
    steps = np.diff(geometry.axes[1].unwound)
    np.testing.assert_allclose(steps, 22.5)
    notes: list[str] = []
    starts = read_starts(source, runs[0], notes.append)
    assert all("in another order" in note for note in notes)
    np.testing.assert_array_equal(starts.past[0, 0, 0], plain.t[-1])
    picture = shown(results[1].ensemble, None, results[1].written.record, runs[1].experiment.condition)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(np.diff(picture.columns.values), 22.5)


@pytest.mark.parametrize(
    ("columns", "rows", "words"),
    [
        ([0, 1, 2, 8, 9], slice(None), r"longitudes lon have a hole, which going round .* from 45 to 180: sort or"),
        ([0, 1, 2, 4, 5], slice(None), r"longitudes lon have a hole, .* from 45 to 90"),
        ([0, 2, 1, 3, 4], slice(None), r"longitudes lon turn back or come round the circle again from 45 to 22.5"),
        ([0, 1, 1, 2, 3], slice(None), r"longitudes lon turn back or .* from 22.5 to 22.5: sort"),
        ([*range(16), 0], slice(None), r"longitudes lon turn back or come round the circle again from 337.5 to 0"),
        ([0, 1, 2, 3], [0, 1, 5, 6, 7], r"latitudes lat have a hole from 56.25 to -33.75"),
        ([0, 1, 2, 3], [0, 2, 1, 3], r"latitudes lat turn back"),
    ],
)
def test_a_hole_that_no_turn_closes_is_refused(tmp_path: Path, columns: list, rows: Any, words: str) -> None:
    source = saved(waves().isel(lon=columns, lat=rows), tmp_path / "holes.nc")
    with pytest.raises(ValueError, match=rf"holes.nc: its.*{words}.*--geometry plane"):
        experiment(source)
    plane: Any = experiment(source, geometry="plane").condition
    assert not plane.geometry.spherical


def test_longitudes_that_nearly_go_round_the_circle_come_round_once(tmp_path: Path) -> None:
    thinned = waves().isel(lon=range(5)).assign_coords(lon=("lon", 0.4 + 83.4 * np.arange(5), waves().lon.attrs))
    condition: Any = experiment(saved(thinned, tmp_path / "thinned.nc")).condition
    assert (condition.geometry.periodic, condition.geometry.spherical) == ((False, False), True)


def test_uneven_latitudes_and_longitudes_have_no_hole(tmp_path: Path) -> None:
    stretched, gauss = 3.0 * 1.4 ** np.arange(6), np.polynomial.legendre.leggauss(8)[0]
    for latitudes in (np.degrees(np.arcsin(gauss)), 90 - 20 * 1.2 ** np.arange(8)):
        data = (
            waves()
            .isel(lon=range(6))
            .assign_coords(
                lat=("lat", latitudes, {"units": "degrees_north"}), lon=("lon", stretched, {"units": "degrees_east"})
            )
        )
        condition: Any = experiment(saved(data, tmp_path / f"{latitudes[0]:.3}.nc")).condition
        assert (condition.geometry.order.rolled, condition.geometry.spherical) == (0, True)


def test_cells_without_rows_have_no_geometry(tmp_path: Path) -> None:
    data = waves().stack(cell=("lat", "lon")).reset_index("cell")
    for where in ("degrees", "radian"):
        data.lat.attrs, data.lon.attrs = {"units": f"{where}_north"}, {"units": f"{where}_east"}
        condition: Any = experiment(saved(data, tmp_path / f"{where}.nc")).condition
        assert (condition.geometry.spherical, condition.geometry.order) == (False, Order())


def test_radians_are_no_degrees(tmp_path: Path) -> None:
    data = waves().assign_coords(lat=("lat", np.deg2rad(LATITUDES), {"units": "radian"}))
    condition: Any = experiment(saved(data, tmp_path / "a.nc")).condition
    assert not condition.geometry.spherical


# Edges


@pytest.mark.parametrize(
    ("values", "circle"),
    [
        (LONGITUDES, True),
        (LONGITUDES - 180, True),
        (-LONGITUDES, True),
        (np.linspace(0, 360, 17), False),  # the last is the first again
        (LONGITUDES[:-1], False),
        (LONGITUDES**1.1, False),
    ],
)
def test_longitudes_that_go_round_the_circle(values: np.ndarray, circle: bool) -> None:
    axis = Coordinate("lon", (1,), tuple(values.tolist()), Description("degrees_east"))
    assert circles(axis) is circle
    assert not circles(replace(axis, name="lat", description=Description("degrees_north")))


def test_longitudes_meet_and_latitudes_never_do(tmp_path: Path) -> None:
    source = saved(waves(), tmp_path / "a.nc")
    for how, wrapped in (
        ({}, (False, True)),
        ({"periodic": True}, (False, True)),
        ({"geometry": "plane"}, (False, False)),
        ({"geometry": "plane", "periodic": True}, (True, True)),
    ):
        networks: Any = experiment(source, **how).networks
        assert networks.encoder.wrapped == networks.light.wrapped == wrapped


@pytest.mark.parametrize(
    ("latitudes", "columns", "poles"),
    [
        (LATITUDES, 16, True),
        (np.degrees(np.arcsin(np.polynomial.legendre.leggauss(8)[0])), 16, True),
        (np.linspace(90, -90, 8), 16, False),  # rows that are the poles
        (np.linspace(78.75, 0, 8), 16, False),  # half a sphere
        (LATITUDES, 15, False),
    ],
)
def test_rows_go_on_over_poles_of_a_whole_sphere(latitudes: np.ndarray, columns: int, poles: bool) -> None:
    longitudes = np.arange(columns) * 360 / columns
    axes = tuple(
        Coordinate(name, (i,), tuple(np.asarray(values).tolist()), Description(f"degrees_{side}"))
        for i, (name, values, side) in enumerate((("lat", latitudes, "north"), ("lon", longitudes, "east")))
    )
    assert Geometry(axes, spherical=True).poles is poles
    assert not Geometry(axes).poles


def test_a_new_run_on_a_whole_sphere_goes_over_the_poles(tmp_path: Path) -> None:
    source = saved(waves(), tmp_path / "a.nc")
    networks: Any = experiment(source).networks
    assert networks.encoder.poles
    assert networks.light.poles
    for how in ({"geometry": "plane"}, {"geometry": "plane", "periodic": True}):
        networks = experiment(source, **how).networks
        assert not networks.encoder.poles


def test_rotating_a_field_by_whole_longitudes_rotates_what_networks_make() -> None:
    levels = (Level("conv", 8, 1), Level("conv", 8, 1))
    torch.manual_seed(0)
    network = UViTConfig(16, 2, levels, embedding=16, height=8, across=True).network().double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    z, log_snr = torch.randn(2, 2, 8, 16, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    plain = network(z, log_snr, None)
    for columns in (2, 6):
        rotated = network(z.roll(columns, 3), log_snr, None)
        torch.testing.assert_close(rotated, plain.roll(columns, 3))
    assert not torch.allclose(network(z.roll(2, 2), log_snr, None), plain.roll(2, 2))


@pytest.mark.parametrize("geometry", ["sphere", "plane"])
def test_rotating_a_start_by_whole_longitudes_rotates_its_forecast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, geometry: str
) -> None:
    """To rounding, on a sphere alone; with noise that is the same at all longitudes."""
    normals = Draws.normals
    monkeypatch.setattr(Draws, "normals", lambda *of: (x := normals(*of))[..., :1].expand_as(x).clone())
    model = untrained(saved(waves("ts"), tmp_path / "a.nc"), tmp_path / "run", frames=2, geometry=geometry)
    start = waves("ts", seed=1).isel(time=[-1])
    how: dict[str, Any] = {"frames": 4, "members": 2, "precision": "float32", "note": lambda text: None}
    plain = dr.forecast(model, start, choice=dr.Choice(2), **how).ensemble
    zonal = plain.std(-1).mean()
    assert zonal > 1e-2
    for columns in (4, 8):
        rotated = dr.forecast(model, start.roll(lon=columns), choice=dr.Choice(2), **how).ensemble
        apart = np.abs(rotated - np.roll(plain, columns, -1)).max() / zonal
        assert apart < 2e-2 if geometry == "sphere" else apart > 0.2


# Areas


def test_latitudes_without_values_have_no_areas(tmp_path: Path) -> None:
    placeless = waves().drop_vars(["lat", "lon"])
    condition: Any = experiment(saved(placeless, tmp_path / "a.nc")).condition
    assert not condition.geometry.spherical
    assert condition.over_latitudes


def test_areas_integrate_spherical_harmonics() -> None:
    rows, columns = 180, 360
    latitudes = 90 - (np.arange(rows) + 0.5) * 180 / rows
    areas = row_areas(latitudes)
    np.testing.assert_allclose(areas.sum(), 2)
    polar, azimuth = np.deg2rad(90 - latitudes)[:, None], 2 * np.pi * np.arange(columns) / columns
    weights = areas[:, None] * np.full(columns, 2 * np.pi / columns)
    for degree in range(5):
        for order in range(degree + 1):
            integral = (weights * sph_harm_y(degree, order, polar, azimuth)).sum()
            expected = np.sqrt(4 * np.pi) if degree == 0 else 0
            np.testing.assert_allclose(integral, expected, atol=3e-4)


@pytest.mark.parametrize("latitudes", [np.linspace(90, -90, 19), np.linspace(-90, 90, 19), np.linspace(20, 60, 5)])
def test_areas_are_above_0_at_the_poles_too_and_have_mean_1(latitudes: np.ndarray) -> None:
    axis = Coordinate("lat", (0,), tuple(latitudes.tolist()), Description("degrees_north"))
    geometry = Geometry((axis, Coordinate("lon", (1,), ())), spherical=True)
    weights = geometry.weights((2, len(latitudes), 4))
    assert weights.min() > 0
    np.testing.assert_allclose(weights.mean((1, 2)), 1)
    cosines = np.cos(np.deg2rad(latitudes))[1:-1]
    np.testing.assert_allclose(weights[0, 1:-1, 0] / weights[0, 2, 0], cosines / cosines[1], rtol=1e-9)


def test_points_are_weighed_by_their_area(tmp_path: Path) -> None:
    source = saved(waves(), tmp_path / "a.nc")
    sphere, plane = (experiment(source, geometry=kind).condition for kind in ("sphere", "plane"))
    x = torch.ones(2, 1, 8, 16, dtype=torch.float64)
    area = row_areas(LATITUDES)
    expected = torch.from_numpy(area / area.mean())[:, None].expand_as(x)
    torch.testing.assert_close(sphere.weighed(x, 1.0), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(sphere.weighed(x).square(), expected, rtol=1e-6, atol=0)
    assert plane.weighed(x) is x


METHODS = ("diffusion", "crps", "energy", "regression", "residual", "corrdiff", "refiner", "rolling")


def test_variables_count_in_the_loss_as_is_said(tmp_path: Path) -> None:
    file = saved(waves("tuv"), tmp_path / "waves.nc")
    plain, weighted = (untrained(file, tmp_path / name, **how).experiment.condition
                       for name, how in (("plain", {}), ("weighted", {"weights": ("u:4", "v:0.5")})))  # fmt: skip
    assert isinstance(plain, Forecast)
    assert isinstance(weighted, Forecast)
    x = torch.randn(2, 3, 8, 16, dtype=torch.float64)
    mean = (1 + 4 + 0.5) / 3
    for power in (1.0, 0.5):
        expected = plain.weighed(x, power) * (torch.tensor([1, 4, 0.5]) / mean).double()[:, None, None] ** power
        torch.testing.assert_close(weighted.weighed(x, power), expected, rtol=1e-6, atol=0)
    assert weighted.identity != plain.identity
    assert "weights" not in plain.identity["condition"]
    for wrong in ("u", "w:1", "u:0", "u:nan", "u:x"):
        with pytest.raises(ValueError, match=f"weight '{wrong}' is none; expected VARIABLE:WEIGHT.* one of t, u, v"):
            experiment(file, weights=(wrong,))


@pytest.mark.parametrize(("trained_by", "rate"), [*((each, "dual") for each in METHODS), ("diffusion", "both")])
def test_every_part_of_a_loss_is_weighed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_by: str, rate: str
) -> None:
    made = experiment(saved(waves(), tmp_path / "a.nc"), trained_by=trained_by, rate=rate, frames=2)
    method: Any = made.method.prepare(made, Start(True, torch.device("cpu"), False, *[pytest.fail] * 3)).method
    batch = Batches(made.seen(made.load("train")), 4, 0).batch(0).to("cpu")
    assert method.loss(batch, 0, batch.draws(0)).total > 0
    monkeypatch.setattr(Forecast, "weighed", lambda self, x, power=0.5: 0 * x)
    assert method.loss(batch, 0, batch.draws(0)).total == 0


STUDENTS: dict[str, dict[str, Any]] = {  # of a single network, or of two
    "consistency of a pair": {"rate": "dual", "by": "consistency"},
    "moments of a pair": {"rate": "dual", "by": "moments"},
    "instant moments": {"rate": "single", "by": "moments", "version": "instant"},
}


@pytest.mark.parametrize("student", STUDENTS.values(), ids=STUDENTS)
def test_every_part_of_a_students_loss_is_weighed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: dict[str, Any]
) -> None:
    """The instant version weighs the teacher's gradient and the student's."""
    how = {"steps": 2, **student}
    teacher = untrained(saved(waves(), tmp_path / "a.nc"), tmp_path / "teacher", rate=how.pop("rate"))
    assert teacher.path is not None
    taught = Student(distilled(), **how).of(teacher.path)
    data = Batches(taught.seen(taught.load("train")), 4, 0)
    start = Start(True, torch.device("cpu"), False, load, lambda i: data.batch(i).to("cpu"), lambda note: None)
    method: Any = taught.method.prepare(taught, start).method
    batch = data.batch(0).to("cpu")
    with torch.no_grad():  # the auxiliary begins as the teacher, where there is nothing to learn
        for weight in () if student["by"] == "consistency" else method.auxiliaries.parameters():
            weight.mul_(1.1)

    def totals() -> list[float]:
        phases = [phase for iteration in (0, 1) for phase in method.phases(iteration)]
        return [phase.loss(batch, 0, batch.draws(0)).total.item() for phase in phases]

    before, weighed, times = totals(), Forecast.weighed, 9 if "version" in student else 3
    assert all(before)
    monkeypatch.setattr(Forecast, "weighed", lambda self, x, power=0.5: 3**power * weighed(self, x, power))
    assert totals() == pytest.approx([times * each for each in before], rel=1e-4)


# Masks


def test_a_mask_is_packed_in_a_short_text() -> None:
    hidden = np.random.default_rng(0).random((3, 5, 7)) < 0.3
    np.testing.assert_array_equal(from_text(to_text(hidden)), hidden)
    geometry = Geometry().masked(hidden, "abc")
    assert from_plain(Geometry, to_plain(geometry)) == geometry
    for text in ("", "3x5:AAAA", "3x5x7:AAAA", "3x5x7:!", "999999x999999x9:eJwDAAAAAAE="):
        with pytest.raises(ValueError, match="is no mask"):
            from_text(text)
    with pytest.raises(ValueError, match=r"hides all points of t_850: leave it out, by --data\.variables"):
        Geometry().masked(np.stack([hidden[0], np.ones((5, 7), bool)]), ("t_500", "t_850"))


def sea(fill: float) -> xarray.Dataset:
    data = waves("tu")
    for name in "tu":
        data[name].values[:, LAND] = fill
    return data.assign(wet=(("lat", "lon"), (~LAND).astype(np.int8)), land=(("lat", "lon"), LAND.astype(np.int8)))


@pytest.mark.parametrize(
    ("mask", "fill"),
    [
        ("auto", np.nan),
        ("not:land", -1e30),
        *(pytest.param("wet", fill, marks=pytest.mark.slow) for fill in (7.0, np.inf)),
    ],
)
def test_values_at_hidden_points_change_nothing(tmp_path: Path, mask: str, fill: float) -> None:
    plain = trained(saved(sea(0.0), tmp_path / "zeros.nc"), tmp_path / "zeros", mask="wet", difference=True)
    other = trained(saved(sea(fill), tmp_path / "other.nc"), tmp_path / "other", mask=mask, difference=True)
    assert plain.weights_hash == other.weights_hash
    results = [dr.forecast(model, 1, frames=3, members=2).ensemble for model in (plain, other)]
    assert results[0].tobytes() == results[1].tobytes()
    start = saved(sea(fill).isel(time=slice(0, 1)), tmp_path / "start.nc")
    assert np.isfinite(read_starts(start, other, lambda text: None).past).all()


@pytest.mark.parametrize("trained_by", ["diffusion", "crps", "regression", "residual", "refiner", "rolling"])
@pytest.mark.parametrize("rate", ["dual", pytest.param("single", marks=pytest.mark.slow)])
def test_hidden_points_are_the_mean_in_forecasts(tmp_path: Path, trained_by: str, rate: str) -> None:
    if trained_by == "residual" and rate == "single":
        pytest.skip("a regression and a light network are two")
    source = saved(sea(np.nan), tmp_path / "sea.nc")
    made = experiment(source, mask="auto", trained_by=trained_by, rate=rate, frames=2)
    model = load(saved_random(made, tmp_path / "run"))
    result = dr.forecast(model, 1, frames=3, members=2)
    task: Any = made.condition
    mean = np.float32(task.statistics.mean)
    np.testing.assert_array_equal(result.ensemble[..., LAND], np.broadcast_to(mean[:, None], (1, 2, 3, 2, 6)))
    assert np.isfinite(result.ensemble).all()
    assert (result.ensemble[..., ~LAND].std((-1,)) > 0).all()


def test_networks_are_told_where_points_are_hidden(tmp_path: Path) -> None:
    made = experiment(saved(sea(np.nan), tmp_path / "sea.nc"), mask="auto", every=2, noise=0.5)
    task: Any = made.condition
    assert task.shape((2, 8, 16)) == (3, 4, 8)  # both variables have one mask
    y = task.observe(torch.randn(4, 2, 8, 16), Draws(0, torch.arange(4)))
    observed = torch.from_numpy(~LAND[::2, ::2])
    torch.testing.assert_close(y[:, 2], observed.float().expand(4, 4, 8))
    assert (y[:, :2, ~observed] == 0).all()
    assert (y[:, :2, observed] != 0).all()


def test_x_hat_and_losses_are_0_at_hidden_points(tmp_path: Path) -> None:
    made = experiment(saved(sea(np.nan), tmp_path / "sea.nc"), mask="auto")
    _, denoiser = made.build()
    task: Any = made.condition
    z = torch.randn(2, 2, 8, 16)
    t, cond = torch.full((2,), 0.5), Cond(given=torch.randn(2, 3, 8, 16))
    x_hat = denoiser.denoise(z, t, denoiser.encode(z, t, cond), cond)
    land = torch.from_numpy(LAND)
    assert (x_hat[..., land] == 0).all()
    assert (x_hat[..., ~land] != 0).any()
    weighed = task.weighed(torch.ones(1, 2, 8, 16, dtype=torch.float64), 1.0)
    assert (weighed[..., land] == 0).all()
    torch.testing.assert_close(weighed.mean((2, 3)), torch.ones(1, 2, dtype=torch.float64), rtol=1e-6, atol=0)


def test_statistics_are_those_of_points_that_are_observed(tmp_path: Path) -> None:
    made = experiment(saved(sea(np.nan), tmp_path / "sea.nc"), mask="auto")
    task: Any = made.condition
    for i, name in enumerate("tu"):
        observed = waves("tu")[name].values[:36][:, ~LAND].astype(np.float64)
        np.testing.assert_allclose(task.statistics.mean[i], observed.mean(), rtol=1e-12)
        np.testing.assert_allclose(task.statistics.std[i], observed.std(), rtol=1e-9)
        np.testing.assert_allclose(task.statistics.difference[i], np.diff(observed, axis=0).std(), rtol=1e-9)


def test_masks_that_cannot_be(tmp_path: Path) -> None:
    source = saved(sea(np.nan), tmp_path / "sea.nc")
    with pytest.raises(
        ValueError, match=r"no variable dry over space alone; it has wet, land: give auto or any or one of"
    ):
        experiment(source, mask="dry")
    with pytest.raises(ValueError, match=r"not finite.*--mask auto"):
        experiment(source)
    alone = saved(sea(np.nan).drop_vars(["wet", "land"]), tmp_path / "alone.nc")
    with pytest.raises(ValueError, match=r"it has none: give auto or any or FILE:VARIABLE"):
        experiment(alone, mask="dry")
    holes = sea(np.nan)
    holes.t.values[[5, 38], 0, 0] = np.nan  # observed at other times
    source = saved(holes, tmp_path / "holes.nc")
    with pytest.raises(ValueError, match=r"frame 5, channel 0 \(t\) holds nan.*or not always \(--mask any\)"):
        experiment(source, mask="auto")
    task: Any = experiment(source, mask="any").condition
    assert task.geometry.hidden.sum((1, 2)).tolist() == [7, 6]
    assert task.shape((2, 8, 16)) == (4, 8, 16)  # a plane of each variable's mask


def test_a_start_in_another_file_needs_no_mask_and_no_order(tmp_path: Path) -> None:
    model = load(saved_random(experiment(saved(sea(np.nan), tmp_path / "a.nc"), mask="auto"), tmp_path / "run"))
    more = sea(np.nan).isel(lat=slice(None, None, -1), time=[0, 1]).assign(extra=waves().t.isel(time=[0, 1]))
    notes: list[str] = []
    starts = read_starts(saved(more, tmp_path / "start.nc"), model, notes.append)
    assert any("extra are left out" in note for note in notes)
    np.testing.assert_array_equal(starts.past[0, 0][:, ~LAND], [waves("tu")[name].values[1][~LAND] for name in "tu"])
    assert np.isfinite(held_out_starts(model, 1).past).all()


def test_what_a_file_says_of_order_is_no_part_of_a_run_and_a_mask_is() -> None:
    mask = to_text(np.eye(4, dtype=bool)[None])
    plain = Forecast()
    assert replace(plain, geometry=Geometry(order=Order(True))).identity == plain.identity
    assert replace(plain, geometry=Geometry(mask=mask)).identity["condition"]["mask"] == mask


def test_pictures_have_hidden_points_grey_and_lead_times_in_days(tmp_path: Path) -> None:
    source = saved(sea(np.nan).isel(lat=slice(None, None, -1)), tmp_path / "sea.nc")
    model = load(saved_random(experiment(source, mask="auto", lead=2, variables=("t", "u")), tmp_path / "run"))
    for frames, words, last in ((7, "lead time in hours", 84), (8, "lead time in days", 4)):
        start = saved(sea(np.nan).isel(time=[0]), tmp_path / f"{frames}.nc")
        starts = read_starts(start, model)
        done = write_forecast(dr.Choice(1).drawer(model, members=2), starts, frames, tmp_path / f"{frames}")
        picture = shown(done.x, None, done.record, done.forecast)
        for field in (picture.mean, picture.spread, *picture.members):
            np.testing.assert_array_equal(np.isnan(field), np.broadcast_to(LAND, field.shape))
        assert (picture.lead, picture.times[-1], picture.variable) == (words, last, "t [K]")
        np.testing.assert_allclose(picture.rows.values, LATITUDES)
