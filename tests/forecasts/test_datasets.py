"""Layouts of files that people have: ERA5, CMIP6, oceans, GRIB, climatologies, and what is picked of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray

from dualrate.experiment.data_config import DataConfig
from dualrate.forecasts.recipe import Forecasting
from dualrate.forecasts.sources import find_fields
from dualrate.system.progress import Silent

LATITUDES, LONGITUDES, LEVELS = np.linspace(60, -60, 4), np.arange(6) * 60.0, np.array([500.0, 850.0, 1000.0])
V = np.random.default_rng(0).normal(280, 3, (12, 3, 4, 6)).astype(np.float32)  # time, level, latitude, longitude
HOURS = np.datetime64("2020-01-01", "ns") + np.arange(12) * np.timedelta64(6, "h")
PLACE = {"latitude": LATITUDES, "longitude": LONGITUDES}


def saved(data: xarray.Dataset, path: Path, **how: Any) -> Path:
    data.to_netcdf(path, engine="h5netcdf", **how)
    return path


def frames(path: Path | str, **how: Any) -> np.ndarray:
    trajectory = find_fields(path, **how)[1].trajectories[0]
    return trajectory[0 : trajectory.shape[0]]


def era5(levels: str = "pressure_level", time: str = "valid_time", units: str = "hPa") -> xarray.Dataset:
    return xarray.Dataset(
        {
            "t": ((time, levels, "latitude", "longitude"), V),
            "sp": ((time, "latitude", "longitude"), V[:, 0] * 300),
            "lsm": (("latitude", "longitude"), np.ones((4, 6))),
        },
        {
            time: HOURS,
            levels: (levels, LEVELS, {"units": units}),
            "number": 0,
            "expver": (time, np.full(12, "0001")),
            **PLACE,
        },
    )


@pytest.mark.parametrize(
    "data", [era5(), era5("level", "time", "millibars"), era5("isobaricInhPa", "time"), era5("height_above", "time")]
)
def test_levels_are_channels(tmp_path: Path, data: xarray.Dataset) -> None:
    path = saved(data, tmp_path / "a.nc")
    name, source = find_fields(path)
    assert (name, source.variables, source.step) == ("a", ("t_500", "t_850", "t_1000", "sp"), 6)
    np.testing.assert_array_equal(frames(path)[:, :3], V)
    assert list(source.statics) == ["lsm"]


def test_variables_and_levels_are_picked_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    path = saved(era5(), tmp_path / "a.nc")
    for how, variables in (
        ({"levels": (1000, 500)}, ("t_1000", "t_500", "sp")),
        ({"names": ("sp", "t"), "levels": (850.0,)}, ("sp", "t_850")),
        ({"names": ("t_850",)}, ("t_850",)),
        ({"names": ("t",)}, ("t_500", "t_850", "t_1000")),
    ):
        assert find_fields(path, **how)[1].variables == variables
    np.testing.assert_array_equal(frames(path, names=("t",), levels=(1000, 500)), V[:, [2, 0]])
    for how, words in (
        ({"names": ("q",)}, "none of them q over time and space"),
        ({"names": ("t_700",)}, r"no variable t_700: it has t_500, t_850, t_1000"),
        ({"levels": (700,)}, r"t has no level 700; expected some of 500.0, 850.0, 1000.0"),
        ({"names": ("sp",), "levels": (850,)}, r"sp have no levels: drop --data.levels"),
    ):
        with pytest.raises(ValueError, match=words):
            find_fields(path, **how)


def test_a_recipe_reads_the_variables_and_levels_of_its_data(tmp_path: Path) -> None:
    path = saved(era5(), tmp_path / "a.nc")
    experiment = Forecasting(DataConfig(str(path), variables=("t", "sp"), levels=(850.0,)))(Silent())
    assert experiment.condition.variables == ("t_850", "sp")  # pyright: ignore[reportAttributeAccessIssue]
    assert experiment.load("test").shape == (2, 4, 6)
    np.savez(tmp_path / "b.npz", fields=V[None], variables=["a", "b", "c"])
    assert find_fields(tmp_path / "b.npz", names=("c", "a"))[1].variables == ("c", "a")
    with pytest.raises(ValueError, match="there is no variable d among a, b, c"):
        find_fields(tmp_path / "b.npz", names=("d",))


def test_only_fields_have_variables_and_levels(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text of a few words " * 200)
    for source in (str(tmp_path / "a.txt"), "fashion-mnist"):
        with pytest.raises(ValueError, match=r"drop --data.variables and --data.levels"):
            DataConfig(source, variables=("t",), levels=(1.0,)).load("train")


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day", "julian", "all_leap"])
def test_files_of_climate_models(tmp_path: Path, calendar: str) -> None:
    if calendar != "standard":
        pytest.importorskip("cftime")
    days = np.arange(12.0)
    time = ("time", days, {"units": "days since 1850-02-25", "calendar": calendar, "bounds": "time_bnds"})
    data = xarray.Dataset(
        {
            "tas": (("time", "lat", "lon"), V[:, 0], {"cell_measures": "area: areacella", "grid_mapping": "crs"}),
            "areacella": (("lat", "lon"), np.ones((4, 6))),
            "time_bnds": (("time", "bnds"), np.stack([days, days + 1], 1)),
            "lat_bnds": (("lat", "bnds"), np.stack([LATITUDES - 20, LATITUDES + 20], 1)),
            "crs": ((), 0, {"grid_mapping_name": "latitude_longitude"}),
            "co2": (("time",), days),
        },
        {"time": time, "lat": ("lat", LATITUDES, {"bounds": "lat_bnds"}), "lon": LONGITUDES, "height": 2.0},
    )
    source = find_fields(saved(data, tmp_path / "a.nc"))[1]
    assert (source.variables, source.step, source.metadata.calendar) == (("tas",), 24, calendar)
    for words in ("describe others", "areacella", "time_bnds", "lat_bnds", "crs", "over time alone: co2"):
        assert words in source.note


def test_the_steps_of_forecasts_are_trajectories_of_their_starts(tmp_path: Path) -> None:
    steps = (np.arange(4) * np.timedelta64(6, "h")).astype("m8[ns]")
    values = V[:, 0].reshape(3, 4, 4, 6)
    both = np.stack([values, values + 1])
    data = xarray.Dataset(
        {"t2m": (("number", "time", "step", "latitude", "longitude"), both)},
        {"number": [0, 1], "time": HOURS[::4], "step": steps, **PLACE},
    )
    data = data.assign_coords(valid_time=(("time", "step"), HOURS[::4, None] + steps))
    source = find_fields(saved(data, tmp_path / "a.nc"))[1]
    assert (len(source.trajectories), source.step) == (6, 6)
    np.testing.assert_array_equal(source.trajectories[4][0:4][:, 0], both[1, 1])
    single = saved(data.isel(step=[0]), tmp_path / "b.nc")  # an analysis: its times follow one another
    assert [each.shape[0] for each in find_fields(single)[1].trajectories] == [3, 3]


def test_dates_beside_a_counter_and_names_in_capitals(tmp_path: Path) -> None:
    counted = xarray.Dataset(
        {"tos": (("time_counter", "y", "x"), V[:, 0])},
        {
            "time_counter": ("time_counter", np.arange(12.0), {"axis": "T"}),
            "time_centered": ("time_counter", HOURS, {"standard_name": "time"}),
        },
    )
    assert find_fields(saved(counted, tmp_path / "nemo.nc"))[1].step == 6
    capitals = xarray.Dataset({"U": (("TIME", "Y", "X"), V[:, 0])}, {"TIME": HOURS})
    assert find_fields(saved(capitals, tmp_path / "ferret.nc"))[1].step == 6


def test_times_of_a_climatology_are_numbers(tmp_path: Path) -> None:
    pytest.importorskip("cftime")
    time = ("time", 730.5 * np.arange(12), {"units": "hour since 0000-01-01 00:00:00"})
    data = xarray.Dataset({"sst": (("time", "y", "x"), V[:, 0])}, {"time": time})
    assert find_fields(saved(data, tmp_path / "a.nc"))[1].step == 730.5


def test_numbers_outside_a_valid_range_are_never_trained_on(tmp_path: Path) -> None:
    values = V[:, 0].copy()
    values[3, 1, 2] = 999
    for name, limits in (("range", {"valid_range": [200.0, 400.0]}), ("max", {"valid_max": 400.0})):
        data = xarray.Dataset({"t": (("time", "y", "x"), values, limits)})
        read = frames(saved(data, tmp_path / f"{name}.nc"))
        assert np.argwhere(np.isnan(read)).tolist() == [[3, 0, 1, 2]]
    packing = {"t": {"dtype": "int16", "scale_factor": 0.1, "add_offset": 280.0, "_FillValue": -32767}}
    packed = xarray.Dataset({"t": (("time", "y", "x"), values, {"valid_range": np.int16([-800, 1200])})})
    read = frames(saved(packed, tmp_path / "packed.nc", encoding=packing))
    assert np.argwhere(np.isnan(read)).tolist() == [[3, 0, 1, 2]]


@pytest.mark.parametrize("layout", ["pdearena", "well"])
def test_hdf5_is_unpacked_as_its_attributes_say(tmp_path: Path, layout: str) -> None:
    raw = np.random.default_rng(0).integers(-100, 100, (3, 5, 4, 6)).astype(np.int16)
    raw[0, 1, 2, 3] = -999
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if layout == "pdearena":
            data = file.create_dataset("train/u", data=raw)
        else:
            file.create_group("dimensions").attrs["spatial_dims"] = ["x", "y"]
            file.create_group("t0_fields").attrs["field_names"] = ["u"]
            data = file["t0_fields"].create_dataset("u", data=raw)
        data.attrs.update({"scale_factor": 0.5, "add_offset": 10.0, "_FillValue": np.int16(-999)})
    read = find_fields(tmp_path / "a.h5")[1].trajectories[0][0:5][:, 0]
    expected = np.where(raw[0] == -999, np.nan, raw[0] * 0.5 + 10)
    np.testing.assert_allclose(read, expected)


def test_grib_says_what_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.grib").write_bytes(b"GRIB")
    monkeypatch.setitem(__import__("sys").modules, "cfgrib", None)
    with pytest.raises(ModuleNotFoundError, match=r"a.grib is GRIB, .* `grib` .*pip install .*grib.* or turn"):
        find_fields(tmp_path / "a.grib")


def test_variables_of_several_kinds_are_refused_unless_some_are_named(tmp_path: Path) -> None:
    data = era5().assign(coarse=(("valid_time", "y"), V[:, 0, :, 0]))
    path = saved(data, tmp_path / "a.nc")
    with pytest.raises(ValueError, match=r"different dimensions, .*name those of one kind \(--data.variables\)"):
        find_fields(path)
    assert find_fields(path, names=("coarse",))[1].variables == ("coarse",)
