"""forecast.nc and forecast.zarr, read back by xarray: places in the file's order, dates, masked points, names."""

from __future__ import annotations

import errno
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import pytest
import xarray
from cli.command import call
from forecasts.made_forecasts import drawer_of, model_of
from forecasts.test_geometry import KINDS, LAND, LONGITUDES, experiment, saved, sea, turned, waves
from runs.made import saved_random

import dualrate as dr
from dualrate.forecasts.fields import read_fields
from dualrate.forecasts.folder import ForecastWritten, write_forecast
from dualrate.forecasts.netcdf import write_dataset
from dualrate.forecasts.starts import held_out_starts, read_starts
from dualrate.runs.store import load

HOW = {"frames": 3, "members": 2, "choice": dr.Choice(1)}
FORMATS = ("netcdf", "zarr")


@pytest.fixture(autouse=True)
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualrate.forecasts.forecast.forecast_page", lambda *of: "<p>a page</p>")


def written(made: dr.Model, out: Path, frames: int, count: int = 1, members: int = 2, **how: Any) -> ForecastWritten:
    """A forecast from so many held-out starts."""
    return write_forecast(drawer_of(made, members, steps=1), held_out_starts(made, frames, count), frames, out, **how)


def opened(folder: Path, format: str) -> xarray.Dataset:
    """The forecast of a folder, as a user opens it."""
    if format == "zarr":
        return xarray.open_zarr(folder / "forecast.zarr")
    return xarray.open_dataset(folder / "forecast.nc", engine="h5netcdf")


def run_of(data: xarray.Dataset, folder: Path, **how: Any) -> dr.Model:
    """A run with random weights on a file of this data, `folder/source.nc`."""
    return load(saved_random(experiment(saved(data, folder / "source.nc"), **how), folder / "run"))


def shifted(first: float) -> xarray.Dataset:
    """Waves whose longitudes begin elsewhere."""
    return waves().assign_coords(lon=("lon", (LONGITUDES + first).round(1), {"units": "degrees_east"}))


@pytest.mark.parametrize("kind", ["", *KINDS, "from 22.5 to 360", "from -179.9", "float32"])
def test_points_are_those_of_the_source_in_its_own_order(tmp_path: Path, kind: str) -> None:
    format = "zarr" if kind == "from -180" else "netcdf"
    first = {"from 22.5 to 360": 22.5, "from -179.9": -179.9}
    data = shifted(first[kind]) if kind in first else turned(kind)
    if kind == "float32":
        data = data.assign_coords(lon=("lon", np.float32(LONGITUDES - 179.3), data.lon.attrs))
    made = run_of(data, tmp_path)
    done = written(made, tmp_path / "out", 2, format=format)
    starts = done.starts
    assert done.truth is not None
    with opened(tmp_path / "out", format) as found:
        for name in ("lat", "lon"):
            np.testing.assert_array_equal(found[name], data[name])
            assert found[name].attrs["units"] == data[name].attrs["units"]
            assert found[name].attrs["standard_name"] == {"lat": "latitude", "lon": "longitude"}[name]
        assert starts.places is not None
        truth = data.t.isel(time=36 + starts.places[0, 1] + np.arange(1, 3)).transpose("time", ...)
        np.testing.assert_array_equal(found.t_truth[0], truth)
        assert found.t_truth.dims[2:] == truth.dims[1:]
        assert found.t.dims == ("init_time", "number", "lead_time", *truth.dims[1:])
        order = made.experiment.condition.geometry.order  # pyright: ignore[reportAttributeAccessIssue]
        np.testing.assert_array_equal(order.usual(found.t.values), done.x[:, :, :, 0])
        xarray.testing.assert_identical(found.load(), done.dataset.load())
        np.testing.assert_array_equal(found.valid_time[0], truth.time)


def test_a_start_in_another_order_comes_back_in_its_own(tmp_path: Path) -> None:
    made = run_of(waves(), tmp_path)
    other = turned("from -180").transpose("time", "lon", "lat")
    starts = read_starts(saved(other, tmp_path / "start.nc"), made)
    result = dr.forecast(made, starts, **HOW)
    assert result.dataset.t.dims[3:] == ("lon", "lat")
    np.testing.assert_array_equal(result.dataset.lon, other.lon)
    assert (result.plain()["last_lead_time"], result.plain()["unit"]) == (result.dataset.lead_time[-1], "hours")
    plain = dr.forecast(made, saved(waves(), tmp_path / "plain.nc"), **HOW).dataset
    east = plain.t.assign_coords(lon=(plain.lon + 180) % 360 - 180).sortby("lon")
    np.testing.assert_array_equal(result.dataset.t.transpose(*east.dims), east)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day"])
def test_dates_are_those_of_the_calendar(tmp_path: Path, calendar: str, format: str) -> None:
    times = xarray.date_range("2020-02-27", periods=40, freq="6h", calendar=calendar, use_cftime=calendar != "standard")
    data = waves().assign_coords(time=times)
    made = run_of(data, tmp_path)
    written(made, tmp_path / "out", 2, 2, format=format)
    with opened(tmp_path / "out", format) as found:
        steps = [36, 37] + found.start_time_step.values * 0
        np.testing.assert_array_equal(found.init_time, times[steps])
        np.testing.assert_array_equal(found.valid_time, [times[step + np.arange(1, 3)] for step in steps])
        np.testing.assert_array_equal(found.lead_time, [6, 12])
        assert found.lead_time.attrs["units"] == "hours"
    with (
        xarray.open_dataset(tmp_path / "out" / "forecast.nc", decode_timedelta=True)
        if format == "netcdf"
        else (xarray.open_zarr(tmp_path / "out" / "forecast.zarr", decode_timedelta=True)) as found
    ):
        if calendar == "standard":
            np.testing.assert_array_equal(found.init_time + found.lead_time, found.valid_time)


@pytest.mark.parametrize("format", FORMATS)
def test_masked_points_are_nan_and_attributes_say_what_it_is(tmp_path: Path, format: str) -> None:
    data = sea(np.nan)
    data.t.attrs |= {"long_name": "Temperature", "standard_name": "sea_water_temperature"}
    made = run_of(data, tmp_path, mask="wet", variables=("t", "u"))
    folder = str(made.path)
    monkeypatch = pytest.MonkeyPatch()
    words = ("--frames", 2, "--members", 2, "--steps", 1, "--starts", 1, "--device", "cpu", "--format", format)
    assert call(monkeypatch, "forecast", folder, "--out", tmp_path / "out", *words) == 0
    with opened(tmp_path / "out", format) as found:
        for name in ("t", "t_truth", "u", "u_truth"):
            unknown = np.isnan(found[name].values)
            np.testing.assert_array_equal(unknown, np.broadcast_to(LAND, unknown.shape))
        assert found.t.attrs == data.t.attrs
        assert found.attrs["Conventions"].startswith("CF-")
        assert "dualrate forecast" in found.attrs["history"]
        assert found.number.attrs["standard_name"] == "realization"
        assert found.init_time.attrs["standard_name"] == "forecast_reference_time"
        assert found.lead_time.attrs["standard_name"] == "forecast_period"
        assert found.valid_time.attrs["standard_name"] == "time"
        assert {"valid_time", "start_trajectory"} <= {*found.t.coords}


@pytest.mark.parametrize("format", FORMATS)
def test_a_projection_is_that_of_the_source(tmp_path: Path, format: str) -> None:
    lambert = {"grid_mapping_name": "lambert_conformal_conic", "standard_parallel": [30.0, 60.0], "earth_radius": 6.4e6}
    axes = {
        name: (name, 1000.0 * np.arange(count), {"units": "m", "standard_name": f"projection_{name}_coordinate"})
        for name, count in (("y", 8), ("x", 16))
    }
    data = waves().drop_vars(("lat", "lon")).rename(lat="y", lon="x").assign_coords(axes)
    data["t"].attrs["grid_mapping"] = "mercator: x y"
    made = run_of(data.assign(mercator=((), np.int32(0), lambert)), tmp_path)
    assert "mercator" not in made.experiment.condition.names
    starts = read_starts(saved(data.drop_attrs(deep=False), tmp_path / "start.nc"), made)  # which says no projection
    write_forecast(drawer_of(made, 2, steps=1), starts, 2, tmp_path / "out", format=format)
    with opened(tmp_path / "out", format) as forecast:
        assert forecast.t.attrs["grid_mapping"] == "crs"
        attributes = forecast.crs.attrs
        assert {name: np.asarray(attributes[name]).tolist() for name in lambert} == lambert
        assert forecast.x.attrs["standard_name"] == "projection_x_coordinate"


def test_attributes_of_a_projection_that_zarr_alone_can_hold_are_left_out(tmp_path: Path) -> None:
    mapping = {"grid_mapping_name": "mercator", "area": None, "exact": True, "base": {"id": 1}}
    data = waves().assign(mercator=((), np.int32(0), mapping))
    data["t"].attrs["grid_mapping"] = "mercator"
    data.to_zarr(tmp_path / "source.zarr", zarr_format=2)
    made = load(saved_random(experiment(tmp_path / "source.zarr"), tmp_path / "run"))
    written(made, tmp_path / "out", 2, format="netcdf")
    with opened(tmp_path / "out", "netcdf") as forecast:
        assert forecast.crs.attrs == {"grid_mapping_name": "mercator"}


def test_a_start_of_another_projection_is_refused(tmp_path: Path) -> None:
    def mapped(name: str) -> xarray.Dataset:
        data = waves().assign(mapping=((), np.int32(0), {"grid_mapping_name": name}))
        data["t"].attrs["grid_mapping"] = "mapping"
        return data

    made = run_of(mapped("mercator"), tmp_path)
    read_starts(saved(mapped("mercator"), tmp_path / "same.nc"), made)
    with pytest.raises(ValueError, match=r"has points in stereographic, and .* on points in mercator"):
        read_starts(saved(mapped("stereographic"), tmp_path / "other.nc"), made)


def test_the_value_of_a_call_has_the_same_dataset_and_reads_what_is_asked_for(tmp_path: Path) -> None:
    made = run_of(sea(np.nan), tmp_path, mask="auto", variables=("t", "u"))
    result = dr.forecast(made, 1, **HOW)
    whole = result.dataset.load()
    np.testing.assert_array_equal(np.where(LAND, np.nan, result.ensemble[:, :, :, 1]), whole.u)
    lazy = result.dataset.u
    for place in (np.s_[0, 1, 2, 3, 4], np.s_[:, ::-1, 1:, 2:4, ::3], np.s_[0, :, [2, 0], 5]):
        np.testing.assert_array_equal(lazy[place], whole.u[place])
    truth = replace(result.written, truth=result.written.truth[:, :1]).dataset.t_truth  # pyright: ignore[reportOptionalSubscript]
    assert np.isnan(truth[:, 1:]).all()
    np.testing.assert_array_equal(truth[:, 0], whole.t_truth[:, 0])
    assert np.isnan(truth[0, 2, 7, 7])


@pytest.mark.parametrize(("names", "format"), [((), "zarr"), (("speed", "depth"), "netcdf")])
def test_without_places_and_dates_there_are_starts_members_and_lead_times(source, tmp_path, names, format) -> None:
    fields = np.load(source)["fields"]
    np.savez(tmp_path / "fields.npz", fields=fields, step=0.5, **({"variables": names} if names else {}))
    model = model_of(tmp_path / "fields.npz", tmp_path / "run", lead=2, past=2)
    done = written(model, tmp_path / "out", 6, 3, format=format)
    starts = done.starts
    assert done.truth is not None
    with opened(tmp_path / "out", format) as found:
        whole = ("init_time", "number", "lead_time", *([] if names else ["channel"]), "x")
        for i, name in enumerate(names or ["forecast"]):
            assert found[name].dims == whole
            own = done.x[:, :, :, i, 0] if names else done.x[:, :, :, :, 0]
            np.testing.assert_array_equal(found[name], own)
            truth = done.truth[:, :, i, 0] if names else done.truth[:, :, :, 0]
            np.testing.assert_array_equal(found[f"{name}_truth"][:, :4], truth)
            assert np.isnan(found[f"{name}_truth"][:, 4:]).all()
            np.testing.assert_array_equal(done.dataset[name][1, 1, 3], own[1, 1, 3])
        np.testing.assert_array_equal(found["lead_time"], np.arange(1, 7) * 2 * 0.5)
        np.testing.assert_array_equal(found["init_time"], range(3))
        for n in range(3):
            i, k = int(found["start_trajectory"][n]), int(found["start_time_step"][n])
            np.testing.assert_array_equal(fields[18 + i, k], starts.past[n, -1, :, 0])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("units", ["months since 1958-1-1", "hours since 0000-01-01 00:00:00"])
def test_times_that_xarray_reads_as_no_dates_are_numbers(tmp_path: Path, units: str, format: str) -> None:
    data = waves()
    times = np.arange(data.sizes["time"]) * 12.0
    made = run_of(data.assign_coords(time=("time", times, {"units": units})), tmp_path)
    done = written(made, tmp_path / "out", 2, format=format)
    assert done.starts.places is not None
    with opened(tmp_path / "out", format) as found:
        start = 12.0 * (36 + done.starts.places[0, 1])
        np.testing.assert_array_equal(found.init_time, [start])
        np.testing.assert_array_equal(found.valid_time, [[start + 12, start + 24]])
        assert found.init_time.attrs["comment"] == found.valid_time.attrs["comment"] == units


@pytest.mark.parametrize("names", [("a", "a_truth"), ("start_time_step", "b"), ("", "b"), ("x", "b"), ("a/b", "c")])
def test_names_that_a_dataset_would_confuse_become_channels(source, tmp_path, names) -> None:
    np.savez(tmp_path / "fields.npz", fields=np.load(source)["fields"], variables=names)
    done = written(model_of(tmp_path / "fields.npz", tmp_path / "run"), tmp_path / "out", 2, format="netcdf")
    assert done.truth is not None
    with opened(tmp_path / "out", "netcdf") as found:
        assert set(found.data_vars) == {"forecast", "forecast_truth"}
        np.testing.assert_array_equal(found["forecast"], done.x[:, :, :, :, 0])
        np.testing.assert_array_equal(found["forecast_truth"], done.truth[:, :, :, 0])


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_memory_does_not_grow_with_members_or_frames(tmp_path: Path, ending: str) -> None:
    made = run_of(waves(), tmp_path)
    done = written(made, tmp_path / "out", 2)
    write_dataset(tmp_path / f"first.{ending}", done.dataset, "lead_time")  # what is imported stays

    def peak(members: int, frames: int) -> int:
        x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (1, members, frames, 1, 8, 16))
        record = replace(done.record, lead_times=tuple(6.0 * (k + 1) for k in range(frames)))
        data = replace(done, x=x, record=record).dataset
        tracemalloc.start()
        write_dataset(tmp_path / f"{members}-{frames}.{ending}", data, "lead_time")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few = peak(2, 10_000)
    assert few > 2**22  # one piece
    assert peak(6, 30_000) < 1.3 * few
    if ending == "zarr":
        with xarray.open_zarr(tmp_path / "6-30000.zarr") as found:
            assert found.t.encoding["chunks"] == (1, 1, 2**20 // 128, 8, 16)
            assert (found.t == 0).all()


def test_a_store_replaces_one_that_is_there_and_is_whole(tmp_path: Path) -> None:
    made = run_of(waves(), tmp_path)
    for _ in range(2):
        written(made, tmp_path / "out", 2, members=1, format="zarr")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not [name for name in names if "tmp" in name or "partial" in name]
    chunks = [path for path in (tmp_path / "out" / "forecast.zarr" / "t").iterdir() if path.name[0] != "."]
    assert [path.name for path in chunks] == ["0.0.0.0.0"]
    with pytest.raises(ValueError, match=r"different dimensions|several dimensions"):
        read_fields(tmp_path / "out" / "forecast.zarr", "train")


def test_a_disk_without_room_is_said_before_netcdf_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = xarray.Dataset({"u": (("time", "x"), np.zeros((50, 20), np.float32))})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=3999))
    with pytest.raises(OSError, match=r"is to hold 4,000 bytes more, and 3,999 are free there: make room for 1, or"):
        write_dataset(tmp_path / "a.nc", data, "time")
    write_dataset(tmp_path / "a.zarr", data, "time")
    assert [each.name for each in tmp_path.iterdir()] == ["a.zarr"]


def test_an_error_of_writing_netcdf_is_none_of_closing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that others fill meanwhile."""
    data = xarray.Dataset({"u": (("time", "x"), np.zeros((50, 20), np.float32))})
    close = h5netcdf.File.close

    def failing(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def unflushed(file: Any) -> None:
        close(file)
        raise RuntimeError("file write failed")

    monkeypatch.setattr(h5netcdf.Variable, "__setitem__", failing)
    monkeypatch.setattr(h5netcdf.File, "close", unflushed)
    with pytest.raises(OSError, match=r"No space left on device: '.*a.nc'"):
        write_dataset(tmp_path / "a.nc", data, "time")
    assert not [*tmp_path.iterdir()]
