"""Forecasts over latitudes and longitudes: starts of other places and units, what NetCDF keeps, maps with north up."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray
from cli.command import call
from forecasts.made_forecasts import written
from matplotlib.figure import Figure
from runs.made import saved_random

from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.model import Model
from dualrate.experiment.network_configs import OneConditional
from dualrate.forecasts import pictures as field_pictures
from dualrate.forecasts.comparison import check_same_starts
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.evaluation import forecast_scores
from dualrate.forecasts.fields import read_fields
from dualrate.forecasts.folder import shown
from dualrate.forecasts.geometry import Geometry
from dualrate.forecasts.metadata import Metadata
from dualrate.forecasts.netcdf import write_fields
from dualrate.forecasts.pictures import forecast_figure
from dualrate.forecasts.sources import find_fields
from dualrate.forecasts.start_checks import conversion
from dualrate.forecasts.starts import held_out_starts, read_starts
from dualrate.methods.denoising import DenoisingConfig
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs.store import load
from dualrate.training.config import FitConfig

LATITUDES, LONGITUDES, LOW = np.linspace(70, -70, 8), np.arange(8) * 45.0, np.linspace(20, 5, 8)


def grid(file: Path, frames: int = 60, step: int = 6, units: str = "K", **changed) -> Path:
    """A NetCDF file of a field that is warm in the north."""
    latitudes, longitudes = changed.pop("latitudes", LATITUDES), changed.pop("longitudes", LONGITUDES)
    values = np.random.default_rng(0).normal(size=(frames, 8, 8)) + 280 + latitudes[:, None] / 10
    data = xarray.Dataset(
        {"t2m": (("time", "latitude", "longitude"), values.astype("f4"), {"units": units, "long_name": "temperature"})},
        {
            "time": np.datetime64("2020-01-01", "ns") + np.arange(frames) * np.timedelta64(step, "h"),
            "latitude": ("latitude", latitudes, {"units": "degrees_north", "standard_name": "latitude"}),
            "longitude": ("longitude", longitudes, {"units": "degrees_east"}),
        },
    )
    data = data.transpose("time", *changed.pop("order", ("latitude", "longitude")))
    data.rename(changed).to_netcdf(file, engine="h5netcdf")
    return file


def trained(source: Path, folder: Path, **task) -> Model:
    made = Forecast(**task).of(read_fields(source, "train"))
    net = UViTConfig(8, 1, (Level("conv", 8, 1),), embedding=16, height=8)
    one, method = OneConditional(net, made.shape((1, 8, 8))), DenoisingConfig(label_dropout=0.0)
    experiment = Experiment("ahead", one, method, FitConfig(iterations=1), DataConfig(str(source)), condition=made)
    return load(saved_random(experiment, folder))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    folder = tmp_path_factory.mktemp("grid")
    return trained(grid(folder / "train.nc"), folder / "run", every=2)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"longitudes": LONGITUDES - 180}, r"has longitude from -180 to 135 degrees_east, and run .* from 0 to 315"),
        ({"latitudes": LOW}, r"has latitude from 20 to 5 degrees_north, and run .* latitude from 70 to -70"),
        ({"latitudes": LOW, "latitude": "lat", "longitude": "lon"}, r"has lat from 20 to 5 .* from 70"),
        ({"latitudes": LATITUDES[::-1]}, r"has the axes of space latitude \(rising\)"),
        ({"longitudes": LONGITUDES / 2}, r"has longitude from 0 to 157\.5 degrees_east, and run"),
        ({"units": "hPa"}, r"has t2m in hPa, and run was trained on t2m in K: bring"),
    ],
)
def test_starts_of_other_places_and_units_are_refused_with_both(model, tmp_path, changed, words):
    with pytest.raises(ValueError, match=words):
        read_starts(grid(tmp_path / "start.nc", 3, **changed), model)


@pytest.mark.parametrize(("units", "factor", "offset"), [("degC", 1, -273.15), ("degF", 1.8, -459.67), ("mK", 1000, 0)])
def test_starts_in_units_of_the_same_dimension_are_converted_with_a_line(model, tmp_path, units, factor, offset):
    expected = read_starts(grid(tmp_path / "kelvin.nc", 3), model).past
    with xarray.open_dataset(tmp_path / "kelvin.nc") as data:
        other = (data.t2m.astype(float) * factor + offset).assign_attrs(units=units)
        data.assign(t2m=other).to_netcdf(tmp_path / "other.nc")
    notes = []
    starts = read_starts(tmp_path / "other.nc", model, notes.append)
    np.testing.assert_allclose(starts.past, expected, rtol=1e-6)
    assert [note for note in notes if f"converted t2m from {units} to K" in note]
    assert starts.metadata.variables[0].units == "K"


def test_without_pint_other_units_are_refused(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pint", None)
    with pytest.raises(ValueError, match="has t2m in degC, and run was trained on t2m in K: bring"):
        read_starts(grid(tmp_path / "start.nc", 3, units="degC"), model)


@pytest.mark.parametrize(
    ("start", "end", "change"),
    [
        ("km/h", "m s-1", (1 / 3.6, 0)), ("hPa", "Pa", (100, 0)), ("%", "1", (0.01, 0)), ("m s**-1", "m/s", None),
        ("kg m-2", "K", None), ("nonsense", "K", None), ("(0 - 1)", "%", None), ("~", "1", None), ("-", "m", None),
        ("()", "m/s", None),
        ("dB", "1", None), ("m/s/", "K", None),
        ("mm", "kg m-2", (1, 0)), ("kg m**-2 s**-1", "mm/h", (3600, 0)), ("kg kg-1", "kg m-3", None),
    ],
)  # fmt: skip
def test_units_are_brought_together_where_that_can_be(start, end, change):
    assert conversion(start, end) == (change and pytest.approx(change))


def test_starts_of_the_same_place_are_taken_however_it_is_said(model, tmp_path):
    notes = []
    for changed in ({}, {"longitudes": LONGITUDES - 360}, {"units": "kelvin"}, {"latitude": "lat", "longitude": "lon"}):
        assert len(read_starts(grid(tmp_path / "start.nc", 3, **changed), model, notes.append)) == 1
        (tmp_path / "start.nc").unlink()
    with xarray.open_dataset(grid(tmp_path / "start.nc", 3)) as data:
        data.isel(latitude=slice(None, None, 2), longitude=slice(None, None, 2)).to_netcdf(tmp_path / "some.nc")
    assert len(read_starts(tmp_path / "some.nc", model, notes.append)) == 1  # the observed points
    assert notes == []
    old = replace(model.experiment.condition, metadata=Metadata())
    assert old.identity == model.experiment.condition.identity
    before = replace(model, experiment=replace(model.experiment, condition=old))
    assert len(read_starts(grid(tmp_path / "other.nc", 3, longitudes=LONGITUDES - 180), before, notes.append)) == 1
    assert "does not say in which units and at which points it was trained: those of" in notes[0]
    assert len(held_out_starts(before, 1, 1)) == 1


@pytest.mark.parametrize(
    ("unsaid", "words"),
    [
        ("both", "the units of t2m and coordinates of latitude, longitude"),
        ("units", "the units of t2m"),
        ("coordinates", "the coordinates of latitude, longitude"),
        ("latitude", "the coordinates of latitude"),
        ("array", "the units of t2m and coordinates of latitude, longitude"),
    ],
)
def test_a_start_that_does_not_say_what_its_run_says_is_noted_once(model, tmp_path, unsaid, words):
    notes, path = [], tmp_path / ("bare.npy" if unsaid == "array" else "bare.nc")
    with xarray.open_dataset(grid(tmp_path / "start.nc", 3)) as data:
        if unsaid in ("both", "units"):
            del data["t2m"].attrs["units"]
        points = [] if unsaid in ("units", "array") else [unsaid] if unsaid == "latitude" else ["latitude", "longitude"]
        data = data.drop_vars(points)
        np.save(path, data["t2m"].values[:, None]) if unsaid == "array" else data.to_netcdf(path, engine="h5netcdf")
    read_starts(path, model, notes.append)
    assert notes == [f"{path} does not say {words}: those that run was trained on are taken"]


@pytest.mark.parametrize("trained_on", ["noleap", "standard", ""])
def test_a_start_in_another_calendar_is_noted(model, tmp_path, trained_on):
    condition, notes = model.experiment.condition, []
    assert condition.metadata.calendar == "standard"
    condition = replace(condition, metadata=replace(condition.metadata, calendar=trained_on))
    other = replace(model, experiment=replace(model.experiment, condition=condition))
    read_starts(grid(path := tmp_path / "start.nc", 3), other, notes.append)
    words = f"{path} has the calendar standard, and run was trained on noleap: dates are in standard"
    assert notes == [words] * (trained_on == "noleap")


@pytest.mark.parametrize(("calendar", "name"), [("365_day", "noleap"), ("360_day", "360_day"), ("gregorian", "")])
def test_starts_in_calendars_that_cftime_reads(model, tmp_path, calendar, name):
    pytest.importorskip("cftime")
    notes, path = [], tmp_path / "other.nc"
    with xarray.open_dataset(grid(tmp_path / "start.nc", 3), decode_times=False) as data:
        data["time"].attrs["calendar"] = calendar
        data.to_netcdf(path, engine="h5netcdf")
    read_starts(path, model, notes.append)
    words = f"{path} has the calendar {name}, and run was trained on standard: dates are in {name}"
    assert notes == [words] * bool(name)


def test_a_start_of_one_frame_may_be_of_another_step(model, tmp_path):
    notes = []
    assert len(read_starts(grid(tmp_path / "start.nc", 2, 12), model, notes.append)) == 1
    assert (
        "has 12 hours between its time steps, and run was trained on 6 hours: it starts from one frame, the latest"
        in notes[0]
    )


def test_data_and_runs_of_other_places_are_not_evaluated_or_compared(tmp_path):
    here = trained(grid(tmp_path / "data.nc"), tmp_path / "run")
    (tmp_path / "data.nc").unlink()
    grid(tmp_path / "data.nc", longitudes=LONGITUDES - 180)
    with pytest.raises(ValueError, match=r"has longitude from -180 to 135 .* was trained on longitude from 0 to 315"):
        held_out_starts(here, 1)
    there = trained(tmp_path / "data.nc", tmp_path / "there")
    with pytest.raises(ValueError, match=r"there was trained on longitude from -180 .*, run on longitude from 0"):
        check_same_starts([here, there])


@pytest.mark.parametrize("kind", ["held out", "file", "array"])
def test_netcdf_keeps_coordinates_units_and_dates(model, tmp_path, kind):
    path = grid(tmp_path / "start.nc", 3)
    if kind == "array":
        path = tmp_path / "start.npy"
        np.save(path, np.random.default_rng(0).normal(280, 5, (3, 1, 8, 8)).astype(np.float32))
    starts = held_out_starts(model, 2, 2) if kind == "held out" else read_starts(path, model)
    written(model, tmp_path / "out", 2, starts=starts, members=1, format="netcdf")
    with xarray.open_dataset(tmp_path / "out" / "forecast.nc", engine="h5netcdf") as data:
        for name in ("t2m", *["t2m_truth"] * (kind == "held out")):
            assert data[name].dims[-2:] == ("latitude", "longitude")
            assert data[name].attrs == {"units": "K", "long_name": "temperature"}
        np.testing.assert_array_equal(data["latitude"], LATITUDES)
        np.testing.assert_array_equal(data["longitude"], LONGITUDES)
        assert data["latitude"].attrs == {"units": "degrees_north", "standard_name": "latitude"}
        assert data["longitude"].attrs == {"units": "degrees_east", "standard_name": "longitude"}
        assert data["lead_time"].attrs["standard_name"] == "forecast_period"
        if kind == "array":  # says nothing of dates
            assert "valid_time" not in data.variables
            return
        hours = np.timedelta64(6, "h")
        first = np.datetime64("2020-01-01") + hours * (
            starts.places[:, 1] + 54 if kind == "held out" else np.array([2])
        )
        np.testing.assert_array_equal(data["init_time"], first)
        np.testing.assert_array_equal(data["valid_time"], first[:, None] + hours * np.arange(1, 3))
        assert data["valid_time"].dims == ("init_time", "lead_time")


def test_netcdf_keeps_coordinates_over_two_axes_a_level_and_numbers_of_times(tmp_path):
    with xarray.open_dataset(grid(tmp_path / "data.nc")) as data:
        data = data.rename(latitude="row", longitude="column").drop_vars(["row", "column"])
        data["time"] = np.arange(60) * 0.5
        data["time"].attrs["units"] = "s"
        area = np.arange(64.0).reshape(8, 8)
        data.assign_coords(lat=(("row", "column"), area), level=850.0).to_netcdf(
            tmp_path / "rows.nc", engine="h5netcdf"
        )
    made = trained(tmp_path / "rows.nc", tmp_path / "run")
    starts = held_out_starts(made, 2, 1)
    written(made, tmp_path / "out", 2, starts=starts, members=1, format="netcdf")
    with xarray.open_dataset(tmp_path / "out" / "forecast.nc", engine="h5netcdf", decode_timedelta=False) as data:
        np.testing.assert_array_equal(data["lat"], area)
        assert (data["lat"].dims, float(data["level"])) == (("row", "column"), 850)
        assert {"lat", "level", "valid_time"} <= set(data["t2m"].coords)
        np.testing.assert_allclose(data["valid_time"][0], 0.5 * (54 + starts.places[0, 1] + np.arange(1, 3)))
        assert data["valid_time"].attrs["units"] == "s"


def test_fields_that_are_written_are_read_with_their_times(tmp_path):
    write_fields(tmp_path / "a.nc", np.zeros((2, 5, 1, 4, 3), np.float32), ("u",), 0.5)
    with xarray.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as data:
        np.testing.assert_array_equal(data["time"], np.arange(5) * 0.5)


@pytest.mark.parametrize("order", [("latitude", "longitude"), ("longitude", "latitude")])
@pytest.mark.parametrize("way", [1, -1])
def test_north_is_up_and_coordinates_are_told(tmp_path, monkeypatch, order, way):
    monkeypatch.setattr(field_pictures, "Figure", Figure)
    made = trained(grid(tmp_path / "data.nc", latitudes=LATITUDES[::way], order=order), tmp_path / "run")
    done = written(made, tmp_path / "out", 2, starts=held_out_starts(made, 2, 1), members=1)
    start = shown(done.x, done.truth, done.record, made.experiment.condition)
    np.testing.assert_array_equal(start.plume, start.members[:, :, start.point[0], start.point[1]])
    figure = forecast_figure(start)
    figure.draw_without_rendering()
    first = figure.axes[0]  # the truth
    (image,) = first.images
    low, high = first.transData.transform([(0, 0), (0, 7)])[:, 1]
    rows = np.asarray(image.get_array()).mean(1)
    assert rows[0 if low > high else 7] > rows[7 if low > high else 0] + 10  # what is drawn on top is warm
    ticks = {label.get_text(): label.get_position()[1] for label in first.get_yticklabels()}
    assert {"60", "0", "-60"} <= ticks.keys()
    heights = first.transData.transform([(0, ticks["60"]), (0, ticks["-60"])])[:, 1]
    assert heights[0] > heights[1]
    along = [label.get_text() for axes in figure.axes for label in axes.get_xticklabels()]
    assert {"0", "180"} <= set(along)


@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize("says", ["over both axes", "grid_latitude", "projection_y_coordinate"])
def test_north_is_up_where_rows_are_no_latitudes(tmp_path, monkeypatch, says, way):
    """As of curvilinear grids, of which a run keeps some points alone, rotated poles and projections."""
    monkeypatch.setattr("dualrate.forecasts.metadata.COMPARED", 32)
    with xarray.open_dataset(grid(tmp_path / "grid.nc", latitudes=LATITUDES[::way]), engine="h5netcdf") as data:
        named = ("time", "row", "column"), data.t2m.values, data.t2m.attrs
        latitudes = ("row", "column"), np.tile(LATITUDES[::way, None], 8), {"units": "degrees_north"}
        row = ("row", LATITUDES[::way], {"standard_name": says})
        places = {"lat": latitudes} if says == "over both axes" else {"row": row}
        xarray.Dataset({"t2m": named}, {"time": data.time} | places).to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    made = trained(tmp_path / "data.nc", tmp_path / "run")
    done = written(made, tmp_path / "out", 2, starts=held_out_starts(made, 2, 1), members=1)
    assert shown(done.x, done.truth, done.record, made.experiment.condition).southern == (way < 0)
    figure = forecast_figure(shown(done.x, done.truth, done.record, made.experiment.condition))
    low, high = figure.axes[0].transData.transform([(0, 0), (0, 7)])[:, 1]
    assert (low > high) == (way > 0)


def test_scores_over_latitudes_say_how_points_count(model, tmp_path, monkeypatch, capsys):
    """By their area where the run knows its geometry, with those of points that count alike beside; else alike."""
    folder = model.experiment.data.source.replace("train.nc", "run")
    assert call(monkeypatch, "forecast", folder, "--frames", 1, "--members", 2, "--steps", 1, "--starts", 2,
                "--out", tmp_path / "out", "--device", "cpu") == 0  # fmt: skip
    words = "all points count alike, near the poles too: scores are not weighted by area"
    assert words in capsys.readouterr().out
    assert words in (tmp_path / "out" / "index.html").read_text()
    assert "plain" not in json.loads((tmp_path / "out" / "scores.json").read_text())
    assert call(monkeypatch, "evaluate", folder, "--members", 2, "--steps", 1, "--num", 2, "--device", "cpu") == 0
    assert words in capsys.readouterr().out
    mask = np.zeros((1, 8, 8), bool)
    mask[0, 0] = True  # the northernmost row
    geometry = Geometry.of(find_fields(model.experiment.data.source)[1]).masked(mask, ("t2m",))
    starts = held_out_starts(model, 1, 3)
    x = np.stack([starts.truth(i) for i in range(3)])[:, None] + np.arange(8, dtype=np.float32)[:, None]
    found = forecast_scores(model, starts, x, geometry)  # row i is wrong by i
    area, rows = np.cos(np.deg2rad(LATITUDES))[1:], np.arange(1, 8)
    np.testing.assert_allclose(found.by_variable["t2m"].crps.value, np.average(rows, weights=area), rtol=1e-5)
    std = model.experiment.condition.statistics.std[0]
    np.testing.assert_allclose(found.plain_scores["forecast"].crps.value, rows.mean() / std, rtol=1e-5)
    assert "points count by their area" in str(found)
    assert "hidden points count in no score" in str(found)
    assert set(found.plain()["plain"]) == set(found.by_name)
