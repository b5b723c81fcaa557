"""Layouts of files that people have: ERA5, CMIP6, oceans, GRIB, climatologies, and what is picked of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray

from dualrate.experiment.data_config import DataConfig
from dualrate.forecasts.fields import read_fields, room_for
from dualrate.forecasts.recipe import Forecasting
from dualrate.forecasts.sources import find_fields
from dualrate.forecasts.trajectories import timing_of
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


def test_levels_of_grib_are_levels_of_any_kind(tmp_path: Path) -> None:
    data = era5("pressureFromGroundLayer", "time", "1")
    says = {"long_name": "original GRIB coordinate for key: level(pressureFromGroundLayer)"}
    data["pressureFromGroundLayer"].attrs = says
    assert find_fields(saved(data, tmp_path / "a.nc"))[1].variables == ("t_500", "t_850", "t_1000", "sp")


def test_variables_and_levels_are_picked_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    path = saved(era5().assign(co_2=era5().sp), tmp_path / "a.nc")
    for how, variables in (
        ({"levels": (1000, 500)}, ("t_1000", "t_500", "sp", "co_2")),
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
        ({"names": ("co_2",), "levels": (850,)}, r"co_2 have no levels: drop --data.levels"),
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


class Notes(Silent):
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines += text.splitlines()


def test_a_recipe_lists_its_channels_and_what_it_leaves_out(tmp_path: Path) -> None:
    data = era5().assign(u=("valid_time", np.arange(12.0)), w=(era5().t.dims, V))
    data.t.attrs["units"], data.sp.attrs["units"] = "K", "Pa"
    source, notes = saved(data, tmp_path / "a.nc"), Notes()
    _ = Forecasting(DataConfig(str(source), variables=("t_850", "sp")))(notes)
    rows = {line.split()[0]: line.split()[1:] for line in notes.lines if line}
    at = V[:10, 1].astype(np.float64)
    assert rows["channel"] == ["unit", "level", "mean", "deviation"]
    assert rows["t_850"] == ["K", "850", "hPa", f"{at.mean():.4g}", f"{at.std():.4g}"]
    assert rows["sp"][0] == "Pa"
    assert "left out: w" in notes.lines
    assert "over space alone, so left out (see --static, --mask): lsm" in notes.lines
    assert any(line.startswith("made: 1 frame, 1 step apart, 6 hours") for line in notes.lines)
    assert any("over time alone: u" in line for line in notes.lines)
    _ = Forecasting(DataConfig(str(source)), forcings=("sp",))(again := Notes())
    assert not any(line.startswith("left out") for line in again.lines)


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


def test_points_of_a_mesh_are_told_from_those_of_a_section(tmp_path: Path) -> None:
    rows, columns = np.repeat(LATITUDES, 6), np.tile(LONGITUDES, 4)
    mesh = {"latitude": ("values", rows), "longitude": ("values", columns)}
    radians = {
        f"c{name[:3]}": ("values", np.deg2rad(each[1]), {"units": "radian", "standard_name": name})
        for name, each in mesh.items()
    }
    crossing = {
        "latitude": ("values", np.linspace(-60, 60, 24)),
        "longitude": ("values", np.arange(340, 388)[::2] % 360),
    }
    along = {"latitude": ("values", np.full(24, 10.0)), "longitude": ("values", np.arange(340, 388)[::2] % 360)}
    tacking = {  # to the north, with one step back
        "latitude": ("values", np.arange(24) - 1.5 * (np.arange(24) > 12)),
        "longitude": ("values", np.arange(24) % 4 * 1.0),
    }
    lines = [(each, False) for each in (crossing, along, tacking)]
    for number, (place, is_mesh) in enumerate([(mesh, True), (radians, True), *lines]):
        data = xarray.Dataset({"t": (("time", "values"), V[:, 0].reshape(12, 24))}, {"time": HOURS, **place})
        source = find_fields(saved(data, tmp_path / f"{number}.nc"))[1]
        assert ("along values are no neighbours" in source.note) == is_mesh, number
    stairs = {"latitude": ("values", np.arange(24) // 2 * 1.0), "longitude": ("values", np.arange(1, 25) // 2 * 1.0)}
    for place, is_mesh in ((mesh, True), (stairs, False)):  # beside another axis
        values = V.transpose(0, 2, 1, 3).reshape(12, 12, 6)[..., :1].repeat(24, -1)
        data = xarray.Dataset({"t": (("time", "height", "values"), values)}, {"time": HOURS, **place})
        assert ("along values" in find_fields(saved(data, tmp_path / "sides.nc"))[1].note) == is_mesh
        os.remove(tmp_path / "sides.nc")


def test_levels_of_a_mesh_are_channels(tmp_path: Path) -> None:
    """So reads cfgrib a reduced Gaussian grid."""
    place = {"latitude": ("values", np.repeat(LATITUDES, 6)), "longitude": ("values", np.tile(LONGITUDES, 4))}
    values = ("time", "isobaricInhPa", "values"), V.reshape(12, 3, 24)
    data = xarray.Dataset({"t": values}, {"time": HOURS, "isobaricInhPa": LEVELS, **place})
    source = find_fields(saved(data, tmp_path / "a.nc"))[1]
    assert source.variables == ("t_500", "t_850", "t_1000")
    assert "along values" in source.note
    np.testing.assert_array_equal(source.trajectories[0][0:12], V.reshape(12, 3, 1, 24))


def test_spherical_harmonics_are_refused_with_a_way_out(tmp_path: Path) -> None:
    spectral = ("time", "values"), V[:, 0].reshape(12, 24), {"GRIB_gridType": "sh"}
    data = xarray.Dataset({"t": spectral, "z": spectral}, {"time": HOURS})
    with pytest.raises(ValueError, match=r"t, z are spherical harmonics: .*cdo sp2gp"):
        find_fields(saved(data, tmp_path / "a.nc"))


def test_times_of_a_climatology_are_numbers(tmp_path: Path) -> None:
    pytest.importorskip("cftime")
    time = ("time", 730.5 * np.arange(12), {"units": "hour since 0000-01-01 00:00:00"})
    data = xarray.Dataset({"sst": (("time", "y", "x"), V[:, 0])}, {"time": time})
    assert find_fields(saved(data, tmp_path / "a.nc"))[1].step == 730.5


@pytest.mark.parametrize("ending", [".nc", ".zarr"])
def test_times_that_are_no_dates_leave_others_dates(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("cftime")
    hours = ("time", 6.0 * np.arange(12), {"units": "hours since 2020-01-01", "calendar": "noleap"})
    tau = ("time", np.ones(12), {"units": "hours since analysis"})
    data = xarray.Dataset({"sst": (("time", "y", "x"), V[:, 0]), "tau": tau}, {"time": hours})
    path = tmp_path / f"a{ending}"
    data.to_netcdf(path, engine="h5netcdf") if ending == ".nc" else data.to_zarr(path, zarr_format=2)
    source = find_fields(path)[1]
    assert (source.variables, source.step, source.metadata.calendar) == (("sst",), 6, "noleap")
    assert str(timing_of(source.trajectories[0]).times[-1]) == "2020-01-03 18:00:00"


def test_what_describes_others_is_read_by_its_name(tmp_path: Path) -> None:
    data = era5("lev").assign_coords(lev=("lev", LEVELS, {"formula_terms": "a: hyam ps: sp"}))
    path = saved(data, tmp_path / "a.nc")
    assert "sp" in find_fields(path)[1].note
    assert find_fields(path, names=("sp", "t_500"))[1].variables == ("sp", "t_500")


def test_channels_along_a_dimension_are_read_by_their_names(tmp_path: Path) -> None:
    values = ("time", "variable", "y", "x"), V
    path = saved(xarray.Dataset({"data": values}, {"variable": ["t", "u", "v"]}), tmp_path / "a.nc")
    source = find_fields(path, names=("v", "t"))[1]
    assert (source.variables, source.varying) == (("v", "t"), ("t", "u", "v"))  # what is left out is named
    np.testing.assert_array_equal(source.trajectories[0][0:12], V[:, [2, 0]])
    with pytest.raises(ValueError, match="has no variable w: it has t, u, v"):
        find_fields(path, names=("w",))
    bands = xarray.Dataset({"data": (("time", "band", "y", "x"), V)})
    with pytest.raises(ValueError, match="names such as trajectory, member, channel"):
        find_fields(saved(bands, tmp_path / "bands.nc"))


def test_numbers_outside_a_valid_range_are_never_trained_on(tmp_path: Path) -> None:
    values = V[:, 0].copy()
    values[3, 1, 2] = 999
    for name, limits in (
        ("range", {"valid_range": [200.0, 400.0]}),
        ("max", {"valid_max": 400.0}),
        ("text", {"valid_max": "400"}),
        ("type", {"valid_max": "400.f", "valid_min": "a few"}),
        ("texts", {"valid_range": "200, 400"}),
        ("fill", {"missing_value": "999."}),
    ):
        data = xarray.Dataset({"t": (("time", "y", "x"), values, limits)})
        read = frames(saved(data, tmp_path / f"{name}.nc"))
        assert np.argwhere(np.isnan(read)).tolist() == [[3, 0, 1, 2]]
    packing = {"t": {"dtype": "int16", "scale_factor": 0.1, "add_offset": 280.0, "_FillValue": -32767}}
    packed = xarray.Dataset({"t": (("time", "y", "x"), values, {"valid_range": np.int16([-800, 1200])})})
    read = frames(saved(packed, tmp_path / "packed.nc", encoding=packing))
    assert np.argwhere(np.isnan(read)).tolist() == [[3, 0, 1, 2]]


@pytest.mark.parametrize("limits", [{"valid_min": 1e20, "valid_max": -1e20}, {"valid_range": [1e20, -1e20]}])
def test_a_valid_range_that_holds_no_number_is_none(tmp_path: Path, limits: dict[str, Any]) -> None:
    """NEMO writes such limits where it never set them."""
    data = xarray.Dataset({"t": (("time", "y", "x"), V[:, 0], limits)})
    np.testing.assert_array_equal(frames(saved(data, tmp_path / "a.nc"))[:, 0], V[:, 0])


def test_limits_of_whole_numbers_are_those_of_what_is_stored(tmp_path: Path) -> None:
    """Satellites write the upper end of 65530 as -6, of numbers without a sign, and flags as bytes."""
    values = np.arange(96).reshape(4, 4, 6)
    stored = (600 * values).astype("u2").astype("i2")
    packing = {"_Unsigned": "true", "scale_factor": 0.0025, "add_offset": 190.0, "_FillValue": np.int16(-1)}
    edges = {"scale_factor": np.float32(0.01), "add_offset": np.float32(273.15), "valid_range": np.int16([814, 3211])}
    variables = {
        "lst": (stored, packing | {"valid_range": np.int16([0, -6])}),
        "flag": ((values % 7).astype("u1"), {"valid_max": np.uint8(5)}),
        "level": ((values % 7 - 128).astype("i1"), {"valid_min": np.int8(-128)}),
        "edges": (np.linspace(814, 3211, 96).astype("i2").reshape(values.shape), edges),  # which float32 rounds outside
    }
    data = xarray.Dataset({name: (("time", "y", "x"), *each) for name, each in variables.items()})
    missing = np.isnan(frames(saved(data, tmp_path / "a.nc")))
    assert not missing[:, [0, 2, 3]].any()
    np.testing.assert_array_equal(missing[:, 1], values % 7 > 5)


@pytest.mark.parametrize("levels", [(), (850.0,)])
def test_versions_of_era5_are_one(tmp_path: Path, levels: tuple[float, ...]) -> None:
    """The last months are of ERA5T: each time in one of two numbers of `expver`, or named along the times."""
    data = era5(time="time").drop_vars("expver")[["t"]]
    final = (data.time < HOURS[8]).expand_dims(expver=np.int32([1, 5])).copy()
    final[1] = ~final[1]
    both = data.t.where(final).transpose("time", "expver", ...).to_dataset()
    read = frames(saved(both, tmp_path / "old.nc"), levels=levels)
    np.testing.assert_array_equal(read, V[:, [1]] if levels else V)
    assert np.isnan(frames(saved(both.isel(expver=[0]), tmp_path / "one.nc"))[8:]).all()
    named = data.assign_coords(expver=("time", ["0001"] * 8 + ["0005"] * 4))
    for path in (saved(named, tmp_path / "new.nc"), tmp_path / "new.zarr"):
        if path.suffix == ".zarr":
            named.to_zarr(path, zarr_format=2)
        np.testing.assert_array_equal(frames(path), V)


@pytest.mark.parametrize(("kind", "engine"), [("f4", "h5netcdf"), ("f8", "h5netcdf"), ("f4", "scipy")])
def test_what_was_never_written_is_missing_whether_it_is_said_or_not(tmp_path: Path, kind: str, engine: Any) -> None:
    """NetCDF puts 15 * 2^119 there."""
    values = np.full((4, 5, 6), 280, kind)
    values[1, 2, 3] = 15 * 2.0**119
    data = xarray.Dataset({"t": (("time", "y", "x"), values), "height": (("y", "x"), values[1])})
    data.to_netcdf(tmp_path / "a.nc", engine=engine, encoding={name: {"_FillValue": None} for name in data})
    source = find_fields(tmp_path / "a.nc")[1]
    assert np.argwhere(np.isnan(source.trajectories[0][0:4])).tolist() == [[1, 0, 2, 3]]
    assert np.argwhere(np.isnan(source.statics["height"]())).tolist() == [[2, 3]]
    with pytest.raises(ValueError, match=r"frame 1, channel 0 \(t\) holds nan"):
        read_fields(tmp_path / "a.nc", "train")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("kind", "fill"),
    [
        ("i2", -32767),
        ("u2", 65535),
        ("i4", -2147483647),
        ("u4", 4294967295),
        ("i8", -9223372036854775806),
        ("u8", 18446744073709551614),
    ],
)
def test_whole_numbers_that_were_never_written_are_missing(tmp_path: Path, kind: str, fill: int, packed: bool) -> None:
    """NetCDF puts these numbers there (NC_FILL_SHORT and so on), unless the file says another fill."""
    values = np.full((4, 5, 6), 80, kind)
    values[1, 2, 3] = fill
    packing = {"scale_factor": 0.01, "add_offset": 280.0} if packed else {}
    says = {"t": packing, "other": packing | {"_FillValue": values.dtype.type(0)}}
    data = xarray.Dataset({name: (("time", "y", "x"), values, more) for name, more in says.items()})
    read = frames(saved(data, tmp_path / "a.nc"))
    assert np.argwhere(np.isnan(read)).tolist() == [[1, 0, 2, 3]]
    assert np.nanmin(read[:, 0]) == np.nanmax(read[:, 0]) == pytest.approx(280.8 if packed else 80)
    data[["t"]].to_zarr(tmp_path / "a.zarr", zarr_format=2)  # which has no such numbers
    assert np.isfinite(frames(tmp_path / "a.zarr")).all()


def test_static_fields_of_which_pieces_are_missing_are_refused_when_they_are_read(tmp_path: Path) -> None:
    path, kept = tmp_path / "a.zarr", {"write_empty_chunks": True}
    data = era5()[["sp", "lsm"]].drop_vars("expver")
    data.to_zarr(path, zarr_format=2, encoding={"sp": kept, "lsm": kept | {"chunks": (2, 6)}})
    assert find_fields(path)[1].statics["lsm"]().all()
    (path / "lsm" / "1.0").unlink()
    source = find_fields(path)[1]
    with pytest.raises(ValueError, match=r"lsm: 1 of 2 piece\(s\).*are not there"):
        source.statics["lsm"]()


def test_a_file_of_one_time_is_a_frame(tmp_path: Path) -> None:
    data = era5("level", "time")[["t"]].isel(time=3)
    (trajectory,) = find_fields(saved(data, tmp_path / "a.nc"))[1].trajectories
    np.testing.assert_array_equal(trajectory[0:1], V[3:4])
    assert timing_of(trajectory).times.tolist() == HOURS[3:4].tolist()
    assert trajectory[1:1].shape == (0, 3, 4, 6)
    with pytest.raises(ValueError, match=r"none with a dimension called time or .*rename\(NAME='time'\).*expand_dims"):
        find_fields(saved(data.drop_vars("time"), tmp_path / "c.nc"))


def test_the_numbers_of_a_file_of_one_time_stay_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a folder of such files, of which each may be large, would be read whole before its first frame."""
    data, read, wrapper = era5("level", "time").isel(time=3), [], xarray.backends.h5netcdf_.H5NetCDFArrayWrapper
    original = wrapper._getitem  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(wrapper, "_getitem", lambda self, key: read.append(self.variable_name) or original(self, key))
    data = data.rename(latitude="y", longitude="x").assign(lat=(("y", "x"), V[0, 0]))
    (trajectory,) = find_fields(saved(data, tmp_path / "a.nc"), names=("t",))[1].trajectories
    assert not {"t", "sp", "lsm"} & {*read}
    np.testing.assert_array_equal(trajectory[0:1], V[3:4])
    assert "t" in read
    assert not {"sp", "lsm"} & {*read}
    source = find_fields(tmp_path / "a.nc")[1]
    assert source.variables == ("t_500", "t_850", "t_1000", "sp", "lsm")
    assert [each.name for each in source.metadata.coordinates if len(each.axes) == 2] == ["lat"]


def test_a_frame_has_the_date_of_its_step_rather_than_of_its_start(tmp_path: Path) -> None:
    data = of_cfgrib().isel(time=2, step=1)
    (trajectory,) = find_fields(saved(data, tmp_path / "a.nc"))[1].trajectories
    assert timing_of(trajectory).times.tolist() == (HOURS[2:3] + np.timedelta64(12, "h")).tolist()
    of_step, name = data.valid_time.values, "forecast_reference_time"
    plain = data.drop_vars([*data.coords])
    for at, moments in enumerate(({name: HOURS[0], "date": of_step}, {"begun": HOURS[0], "date": of_step})):
        dated = plain.assign_coords(moments)
        dated.date.attrs = {"standard_name": "time"} if at else {}
        (trajectory,) = find_fields(saved(dated, tmp_path / f"{at}.nc"))[1].trajectories
        assert timing_of(trajectory).times.tolist() == [of_step.astype("M8[ns]").item()]
    with pytest.raises(ValueError, match="none with a dimension called time"):
        find_fields(saved(plain.assign_coords({name: HOURS[0]}), tmp_path / "start.nc"))


def test_a_dimension_is_time_by_the_dates_along_it(tmp_path: Path) -> None:
    data = era5(time="time").rename_dims(time="time_counter").rename(time="time_instant")
    (trajectory,) = find_fields(saved(data, tmp_path / "a.nc"))[1].trajectories
    np.testing.assert_array_equal(timing_of(trajectory).times, HOURS)
    np.testing.assert_array_equal(trajectory[0:12], frames(saved(era5(), tmp_path / "b.nc")))
    scanned = era5().assign_coords(scanned=("latitude", HOURS[:4]))  # beside a dimension of time they are no times
    np.testing.assert_array_equal(frames(saved(scanned, tmp_path / "c.nc")), frames(tmp_path / "b.nc"))


def test_names_of_levels_have_the_digits_that_tell_them_apart(tmp_path: Path) -> None:
    data = era5("depth", "time")
    for levels, names in (
        (np.array([0.494025, 1.541375, 1000], np.float32), ("0.494025", "1.54138", "1000")),
        (np.array([850.0000001, 850.0000002, 1000]), ("850.0000001", "850.0000002", "1000")),
        (np.array([1e6, 1234567, 1000]), ("1000000", "1234567", "1000")),
    ):
        path = saved(data.assign_coords(depth=levels), tmp_path / f"{names[0]}.nc")
        assert find_fields(path)[1].variables[:3] == tuple(f"t_{name}" for name in names)
        assert find_fields(path, levels=[levels[2]], names=["t"])[1].variables == ("t_1000",)


def test_every_byte_is_a_number(tmp_path: Path) -> None:
    values = np.arange(-128, 128).astype(np.int8).reshape(4, 8, 8)
    data = xarray.Dataset({"t": (("time", "y", "x"), values)})
    np.testing.assert_array_equal(frames(saved(data, tmp_path / "a.nc"))[:, 0], values)


def test_variables_that_are_no_numbers_are_left_out_and_named(tmp_path: Path) -> None:
    spans = (V[:, 0] * 1000).astype("m8[s]").astype("m8[ns]")
    others = {"station": np.full((12, 4, 6), "ab"), "span": spans, "seen": HOURS[:, None, None] + spans}
    data = era5()[["sp"]].assign({name: (("valid_time", *PLACE), each) for name, each in others.items()})
    source = find_fields(saved(data, tmp_path / "a.nc"))[1]
    assert (source.variables, source.note) == (("sp",), "left out, as they are no numbers: station, span, seen")
    assert read_fields(tmp_path / "a.nc", "train").shape == (1, 4, 6)


NEAR = {"t2m": 2.0, "u10": 10.0}


def of_cfgrib(steps: int = 3) -> xarray.Dataset:
    """A forecast of so many steps from each time, as cfgrib reads GRIB."""
    step = (6 * (1 + np.arange(steps)) * np.timedelta64(1, "h")).astype("m8[ns]")
    values = np.stack([V[:, 0]] * steps, 1)
    return xarray.Dataset(
        {"t2m": (("time", "step", "latitude", "longitude"), values)},
        {
            "time": ("time", HOURS, {"standard_name": "forecast_reference_time"}),
            "step": ("step", step, {"standard_name": "forecast_period"}),
            "valid_time": (("time", "step"), HOURS[:, None] + step, {"standard_name": "time"}),
            **PLACE,
        },
    )


@pytest.mark.parametrize("form", ["along", "single"])
def test_frames_a_step_after_their_analyses_have_their_own_dates(tmp_path: Path, form: str) -> None:
    data = of_cfgrib(1) if form == "along" else of_cfgrib(1).isel(step=0)
    (trajectory,) = find_fields(saved(data, tmp_path / "a.nc"))[1].trajectories
    np.testing.assert_array_equal(timing_of(trajectory).times, HOURS + np.timedelta64(6, "h"))


@pytest.mark.parametrize("form", ["all", "one", "numbers"])
def test_steps_of_forecasts_have_dates_whether_these_are_written_or_not(tmp_path: Path, form: str) -> None:
    data = of_cfgrib().drop_vars("valid_time")
    if form == "numbers":  # as of WeatherBench 2
        data = data.assign_coords(step=("step", [6, 12, 18], {"units": "hours"})).rename(step="prediction_timedelta")
    data = data.isel(time=2) if form == "one" else data
    source = find_fields(saved(data, tmp_path / "a.nc"))[1]
    assert (source.step, source.metadata.time) == (6, "hours")
    times = [timing_of(trajectory).times.tolist() for trajectory in source.trajectories]
    starts = HOURS[2:3] if form == "one" else HOURS
    assert times == (starts[:, None] + np.arange(1, 4) * np.timedelta64(6, "h")).tolist()


@pytest.mark.parametrize("by", ["name", "attribute", "both"])
def test_steps_beside_two_names_of_their_start_have_dates(tmp_path: Path, by: str) -> None:
    data = of_cfgrib().drop_vars("valid_time").isel(time=2).assign_coords(issued=HOURS[0])
    if by != "attribute":
        data = data.assign_coords(forecast_reference_time=HOURS[2])
    if by == "name":
        data = data.drop_vars("time")
    (trajectory,) = find_fields(saved(data, tmp_path / "a.nc"))[1].trajectories
    np.testing.assert_array_equal(timing_of(trajectory).times, HOURS[2] + data.step.values)


def test_months_of_seasonal_forecasts_are_their_steps(tmp_path: Path) -> None:
    """As the Climate Data Store writes them."""
    values = np.stack([V[:, 0].reshape(4, 3, 4, 6)] * 2)
    starts = np.array(["2020-01", "2020-02", "2020-03", "2020-04"], "M8[ns]")
    names = ("number", "forecast_reference_time", "forecastMonth", "latitude", "longitude")
    data = xarray.Dataset(
        {"t2m": (names, values)},
        {"number": [0, 1], "forecast_reference_time": starts, "forecastMonth": [1, 2, 3], **PLACE},
    )
    source = find_fields(saved(data, tmp_path / "a.nc"))[1]
    assert (len(source.trajectories), source.step, source.variables) == (8, 1, ("t2m",))
    np.testing.assert_array_equal(source.trajectories[6][0:3][:, 0], V[6:9, 0])


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


@pytest.mark.parametrize(("fill", "missing"), [(0, False), (65535, True)])
def test_whole_numbers_in_hdf5_have_the_fill_that_it_says(tmp_path: Path, fill: int, missing: bool) -> None:
    """NetCDF says its own, and h5py that nothing but 0 was never written."""
    values = np.full((2, 5, 4, 6), 65535, np.uint16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("train/u", data=values, fillvalue=fill)
    assert np.isnan(find_fields(tmp_path / "a.h5")[1].trajectories[0][0:5].astype(float)).all() == missing


@pytest.mark.parametrize("text", [np.bytes_("-999."), np.array(["-999."], object)], ids=["bytes", "array"])
def test_fills_in_hdf5_may_be_texts_of_any_kind(tmp_path: Path, text: Any) -> None:
    values = np.random.default_rng(0).random((2, 5, 4, 6), np.float32)
    values[0, 1, 2, 3] = -999
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("train/u", data=values).attrs["missing_value"] = text
    read = find_fields(tmp_path / "a.h5")[1].trajectories[0][0:5]
    assert np.argwhere(np.isnan(read)).tolist() == [[1, 0, 2, 3]]


def test_the_largest_valid_number_is_valid_in_its_precision(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((5, 4, 6)).astype(np.float32) * 0.1
    values[0, 0, 0] = 0.1
    data = xarray.Dataset({"t": (("time", "y", "x"), values, {"valid_range": [0.0, 0.1]})})
    np.testing.assert_array_equal(frames(saved(data, tmp_path / "a.nc"))[:, 0], values)


def test_bounds_that_no_attribute_names_are_left_out(tmp_path: Path) -> None:
    spans = xarray.DataArray(np.zeros((12, 2)), dims=("valid_time", "nv"))
    data = era5()[["sp"]].assign(valid_time_bnds=spans, sp_bounds=era5().sp.expand_dims(nv=2, axis=-1))
    fields = find_fields(saved(data, tmp_path / "a.nc"))[1]
    assert fields.variables == ("sp",)
    assert "describe others: valid_time_bnds, sp_bounds" in fields.note


def test_bounds_of_time_are_named_once(tmp_path: Path) -> None:
    data = era5()[["sp"]].assign(spans=(("valid_time", "nv"), np.stack([HOURS, HOURS], 1)))
    data.valid_time.attrs["bounds"], data.valid_time.encoding["units"] = "spans", "hours since 2000-01-01"
    assert find_fields(saved(data, tmp_path / "a.nc"))[1].note == "left out, as they describe others: spans"


def test_grib_says_what_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.grib").write_bytes(b"GRIB")
    monkeypatch.setitem(__import__("sys").modules, "cfgrib", None)
    with pytest.raises(ModuleNotFoundError, match=r"a.grib is GRIB, .* `grib` .*pip install .*grib.* or turn"):
        find_fields(tmp_path / "a.grib")


class Grib:
    """A reader of GRIB, with one dataset of all messages or several."""

    def __init__(self, *kinds: xarray.Dataset) -> None:
        self.kinds = kinds

    def open_dataset(self, path: str, **how: Any) -> xarray.Dataset:
        assert how["backend_kwargs"]["errors"] == "raise"  # else what does not fit is left out
        if len(self.kinds) > 1:
            raise ValueError("multiple values for unique key")
        return self.kinds[0]

    def open_datasets(self, path: str, **how: Any) -> list[xarray.Dataset]:
        return [*self.kinds]


def test_kinds_of_levels_in_grib_are_channels_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.grib"
    path.write_bytes(b"GRIB")
    data = era5("isobaricInhPa", "time")
    of_surface = era5(time="time")[["sp"]]
    near = [of_surface.rename(sp=name).assign_coords(heightAboveGround=height) for name, height in NEAR.items()]

    def read(*kinds: xarray.Dataset, **how: Any) -> Any:
        monkeypatch.setitem(__import__("sys").modules, "cfgrib", Grib(*kinds))
        return find_fields(path, **how)[1]

    source = read(data[["t"]], *near)
    assert source.variables == ("t_500", "t_850", "t_1000", "t2m", "u10")
    alone = frames(saved(data, tmp_path / "a.nc"))
    np.testing.assert_array_equal(source.trajectories[0][0:12], alone[:, [0, 1, 2, 3, 3]])
    assert read(data[["t"]], *near, names=("u10", "t_500")).variables == ("u10", "t_500")
    assert read(data[["t"]], *near, names=("u10",)).varying == ("t", "t2m", "u10")  # what is left out is named
    assert read(data[["t"]]).variables == ("t_500", "t_850", "t_1000")
    heights = data[["t"]].isel(isobaricInhPa=slice(2)).rename(t="u", isobaricInhPa="heightAboveGround")
    heights = heights.assign_coords(heightAboveGround=("heightAboveGround", [10.0, 100.0], {"units": "m", "axis": "Z"}))
    assert read(data[["t"]], heights).variables == ("t_500", "t_850", "t_1000", "u_10", "u_100")
    of_pressures = read(data[["t"]], heights, levels=(850.0,))
    assert (of_pressures.variables, of_pressures.varying) == (("t_850",), ("t", "u"))
    with pytest.raises(ValueError, match=r"u has no level 850; expected some of 10\.0, 100"):
        read(heights, levels=(850.0,))
    with pytest.raises(ValueError, match=r"t has no level 10; expected some of 500\.0"):
        read(data[["t"]], heights, levels=(850.0, 10.0))
    assert not any(each.name == "heightAboveGround" for each in source.metadata.coordinates)
    with pytest.raises(ValueError, match=r"a.grib: t2m comes twice, .* several kinds of levels.*grib_copy"):
        read(*near, near[0].assign_coords(heightAboveGround=80.0))
    with pytest.raises(ValueError, match=r"t2m comes twice, .* members or grids: .*dataType=pf"):
        read(near[0], near[0].expand_dims(number=[1, 2]))
    with pytest.raises(ValueError, match=r"\(u10\) and .*\(t2m\) have other times"):
        read(near[0], near[1].isel(time=slice(3)))
    with pytest.raises(ValueError, match=r"a.grib has the variables .* none of them v"):
        read(*near, names=("v",))


def test_variables_of_several_kinds_are_refused_unless_some_are_named(tmp_path: Path) -> None:
    data = era5().assign(coarse=(("valid_time", "y"), V[:, 0, :, 0]))
    path = saved(data, tmp_path / "a.nc")
    with pytest.raises(ValueError, match=r"different dimensions, .*name those of one kind \(--data.variables\)"):
        find_fields(path)
    assert find_fields(path, names=("coarse",))[1].variables == ("coarse",)
    two = xarray.Dataset(dict.fromkeys("ab", (("time", "channel", "y", "x"), V)), {"channel": ["u", "v", "w"]})
    path = saved(two, tmp_path / "two.nc")
    with pytest.raises(ValueError, match=r"channels of their own.*--data.variables.*channels variables \(to_dataset"):
        find_fields(path, names=("u",))
    assert find_fields(path, names=("a",))[1].variables == ("u", "v", "w")


def test_a_series_over_time_alone_is_refused_with_a_way_out(tmp_path: Path) -> None:
    gauge = xarray.Dataset({"level": ("time", V[:, 0, 0, 0])}, {"time": HOURS})
    with pytest.raises(ValueError, match=r"level have no axes of space \(xarray's expand_dims\('x', 1\) adds one\)"):
        find_fields(saved(gauge, tmp_path / "gauge.nc"))
    assert frames(saved(gauge.expand_dims("x", 1), tmp_path / "line.nc")).shape == (12, 1, 1, 1)


@pytest.mark.parametrize("calendar", ["standard", "noleap"])
@pytest.mark.parametrize(("step", "since"), [(1 / 24, 400), (1 / 24, 20_000), (1 / 144, 400), (1.0, 60_000)])
def test_dates_in_single_precision_are_whole(tmp_path: Path, calendar: str, step: float, since: int) -> None:
    days = (since + step * np.arange(48)).astype(np.float32)
    data = xarray.Dataset({"u": (("time", "x"), np.zeros((48, 5)))})
    clock = ("time", days, {"units": "days since 1950-01-01", "calendar": calendar})
    fields = find_fields(saved(data.assign_coords(time=clock), tmp_path / "a.nc"))[1]
    times = timing_of(fields.trajectories[0]).times
    assert fields.step == pytest.approx(24 * step, rel=1e-12)
    assert all(each.endswith(":00") for each in np.datetime_as_string(times.astype("M8[s]")))


@pytest.mark.parametrize(
    ("units", "calendar", "step"),
    [("h", "standard", 1 / 3), ("months", "360_day", 720), ("common_years", "noleap", 8760)],
)
def test_dates_in_single_precision_may_have_any_units(tmp_path: Path, units: str, calendar: str, step: float) -> None:
    times = (600_000 + np.arange(12) / 3 if units == "h" else np.arange(12)).astype(np.float32)
    clock = ("time", times, {"units": f"{units} since 1950-01-01", "calendar": calendar})
    data = xarray.Dataset({"u": (("time", "x"), np.zeros((12, 5)))}, {"time": clock})
    assert find_fields(saved(data, tmp_path / "a.nc"))[1].step == pytest.approx(step)


def test_latitudes_without_units_may_be_in_radians(tmp_path: Path) -> None:
    rows, columns = np.array([67.5, 22.5, -22.5, -67.5]), np.arange(6) * 60.0
    for rate, units, place in ((1, "", "latitude"), (np.pi / 180, "radians", ""), (1 / 50, "", "latitude")):
        data = xarray.Dataset({"u": (("time", "lat", "lon"), V[:, 0])}, {"lat": rate * rows, "lon": columns * rate})
        data = data.assign_coords(lon=data.lon + 100) if rate == 1 / 50 else data  # of a small place in degrees
        fields = find_fields(saved(data, tmp_path / f"{rate}.nc"))[1]
        assert [each.description.units for each in fields.metadata.coordinates] == [units, units]
        assert fields.metadata.coordinates[0].place == place


def test_cells_by_their_name_are_no_line(tmp_path: Path) -> None:
    data = xarray.Dataset({"u": (("time", "nCells"), V[:, 0, 0])})
    assert "along nCells are no neighbours" in find_fields(saved(data, tmp_path / "mpas.nc"))[1].note


@pytest.mark.parametrize(
    "dims", [("nz1", "nod2"), ("lev", "n_face"), ("lev", "ncol"), ("height", "ncells"), ("nVertLevels", "nCells")]
)
@pytest.mark.parametrize("last", [False, True])
def test_levels_of_cells_are_channels(tmp_path: Path, dims: tuple[str, str], last: bool) -> None:
    data = xarray.Dataset({"t": (("time", *dims), V[:, :, 0]), "ps": (("time", dims[1]), V[:, 0, 0])})
    if dims[0] == "height":
        data = data.assign_coords(height=("height", [1, 2, 3], {"axis": "Z"}))
    path = saved(data.transpose("time", *dims[::-1]) if last else data, tmp_path / "mesh.nc")
    source = find_fields(path)[1]
    assert (len(source.variables), source.space) == (4, (6,))
    np.testing.assert_array_equal(frames(path)[:, :3, 0], V[:, :, 0])
    assert f"along {dims[1]} are no neighbours" in source.note


@pytest.mark.parametrize("dim", ["s_rho", "s_w", "depthu", "depthv", "depthw", "nav_lev", "olevel", "ilev", "siglay"])
def test_levels_of_oceans_are_channels(tmp_path: Path, dim: str) -> None:
    data = xarray.Dataset({"t": (("time", dim, "eta", "xi"), V)})
    assert find_fields(saved(data, tmp_path / "a.nc"))[1].variables == ("t_0", "t_1", "t_2")


@pytest.mark.parametrize(
    "says", [{"cartesian_axis": "Z"}, {"standard_name": "ocean_s_coordinate_g2"}, {"axis": "Z"}, {"positive": "up"}]
)
def test_levels_say_so_in_several_ways(tmp_path: Path, says: dict[str, str]) -> None:
    data = xarray.Dataset({"t": (("time", "st", "y", "x"), V)}, {"st": ("st", [-0.5, -0.25, 0.0], says)})
    assert find_fields(saved(data, tmp_path / "a.nc"))[1].variables == ("t_-0.5", "t_-0.25", "t_0")


@pytest.mark.parametrize("names", [("clat", "clon"), ("latCell", "lonCell"), ("lat", "lon"), None])
def test_where_cells_lie_is_read_of_variables_too(tmp_path: Path, names: tuple[str, str] | None) -> None:
    """Without the attribute `coordinates` of NetCDF they are variables; without them a note says what is missing."""
    places = dict.fromkeys(names or (), ("cells", np.linspace(-1, 1, 6), {"units": "radian"}))
    field = ("time", "cells"), V[:, 0, 0], {"CDI_grid_type": "unstructured"}
    data = xarray.Dataset({"t": field, **places})
    source = find_fields(saved(data, tmp_path / "a.nc"))[1]
    assert {each.name for each in source.metadata.coordinates} == {*source.statics} == {*places}
    assert "along cells are no neighbours" in source.note
    assert ("-setgrid,CELLS" in source.note) == (not names)


@pytest.mark.parametrize("unit", ["", "degrees"])
def test_degrees_that_may_be_radians_are_noted(tmp_path: Path, unit: str) -> None:
    says = {"units": unit} if unit else {}
    places = {"lat": ("lat", np.linspace(0.5, 1, 4), says), "lon": ("lon", np.linspace(0, 0.7, 6), says)}
    data = xarray.Dataset({"t": (("time", "lat", "lon"), V[:, 0])}, places)
    note = find_fields(saved(data, tmp_path / "a.nc"))[1].note
    assert ("lat and lon are taken as degrees: of radians say so" in note) == (not unit)


def at_times(times: Any, **attributes: Any) -> xarray.Dataset:
    data = era5(time="time").drop_vars("expver")
    return data.assign_coords(time=("time", np.asarray(times), attributes))


@pytest.mark.parametrize(
    ("times", "attributes"),
    [
        (20200101 + np.arange(12), {"units": "day as %Y%m%d.%f"}),
        ([*range(20200125, 20200132), *range(20200201, 20200206)], {}),
        (202001 + np.arange(12), {}),
        (20200101.0 + np.arange(12) / 4, {}),
    ],
)
def test_dates_that_are_written_as_numbers_are_refused(tmp_path: Path, times: Any, attributes: dict[str, Any]) -> None:
    """As numbers every month would end with a gap."""
    with pytest.raises(ValueError, match=r"a.nc: its times are .*, the first is '2020.*pandas.to_datetime"):
        find_fields(saved(at_times(times, **attributes), tmp_path / "a.nc"))


def test_numbers_that_are_no_dates_stay_numbers(tmp_path: Path) -> None:
    few = at_times(HOURS).isel(time=[0, 1]).assign_coords(time=[240006, 240012])
    assert find_fields(saved(few, tmp_path / "few.nc"))[1].step == 6
    for i, times in enumerate(
        (np.arange(12) * 6, 202010 + np.arange(12), 20201301 + np.arange(12), np.arange(12) * 86400)
    ):
        assert find_fields(saved(at_times(times), tmp_path / f"{i}.nc"))[1].step == times[1] - times[0]


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ([0, 1, 2, 2, *range(4, 12)], "after 2020-01-01T12:.* comes 2020-01-01T12:"),
        ([0, 2, 1, *range(3, 12)], "after 2020-01-01T12:.* comes 2020-01-01T06:"),
        ([*range(11, -1, -1)], "after 2020-01-03T18:.* comes 2020-01-03T12:"),
    ],
)
def test_times_that_do_not_rise_are_named(tmp_path: Path, order: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=f"a.nc: its times do not rise.*{words}.*sortby, data.drop_duplicates"):
        find_fields(saved(at_times(HOURS[order]), tmp_path / "a.nc"))


def test_files_of_wrf(tmp_path: Path) -> None:
    """Dates beside a counter of another name, and places that are written again at every time."""
    names = ("Time", "south_north", "west_east")
    north, east = (np.broadcast_to(each, (12, 4, 6)) for each in np.meshgrid(LATITUDES, LONGITUDES, indexing="ij"))
    data = xarray.Dataset(
        {"T2": (names, V[:, 0]), "Times": ("Time", np.array([f"2020-01-01_{i:02}:00:00" for i in range(12)], "S19"))},
        {
            "XLAT": (names, north, {"units": "degree_north"}),
            "XLONG": (names, east, {"units": "degree_east"}),
            "XTIME": ("Time", np.arange(12) * 60.0, {"units": "minutes since 2020-01-01"}),
        },
    )
    fields = find_fields(saved(data, tmp_path / "wrfout.nc"))[1]
    assert (fields.variables, fields.step, fields.axes) == (("T2",), 1, ("south_north", "west_east"))
    assert fields.metadata.time == "hours"
    assert [(each.name, each.axes, each.place) for each in fields.metadata.coordinates] == [
        ("XLAT", (0, 1), "latitude"),
        ("XLONG", (0, 1), "longitude"),
    ]
    later = names, north + np.arange(12)[:, None, None], {"units": "degree_north"}
    moving = data.assign_coords(XLAT=later)  # of a nest that follows a storm
    fields = find_fields(saved(moving, tmp_path / "nest.nc"))[1]
    assert [each.name for each in fields.metadata.coordinates] == ["XLONG"]
    assert "left out, as they change in time: XLAT" in fields.note
    (tmp_path / "nest").mkdir()
    for hour in range(2):  # a file each time
        _ = saved(moving.isel(Time=[hour]), tmp_path / "nest" / f"{hour}.nc")
    fields = find_fields(tmp_path / "nest")[1]
    assert [each.name for each in fields.metadata.coordinates] == ["XLONG"]
    deep = data.drop_vars("T2").assign(T=(("Time", "bottom_top", *names[1:]), V))
    assert find_fields(saved(deep, tmp_path / "deep.nc"))[1].variables == ("T_0", "T_1", "T_2")


@pytest.mark.parametrize("name", ["realization", "ens", "member_id", "number"])
def test_members_by_their_names_are_trajectories(tmp_path: Path, name: str) -> None:
    members = ["r1i1p1f1", "r2i1p1f1"] if name == "member_id" else [0, 1]
    data = at_times(HOURS).drop_vars("number")[["sp"]]
    both = xarray.concat([data, data + 1], xarray.Variable(name, members))
    trajectories = find_fields(saved(both, tmp_path / "a.nc"))[1].trajectories
    np.testing.assert_array_equal(trajectories[1][0:12] - 1, trajectories[0][0:12])


def test_frames_that_memory_has_room_for_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(era5()[["sp", "t"]], tmp_path / "a.nc")
    forcings: dict[str, Any] = {"forcings": ["sp"]}
    fields = read_fields(source, "train", **forcings)
    with monkeypatch.context() as little:
        little.setattr("dualrate.forecasts.fields.HELD", 4 * (int(np.prod(fields.trajectories[0].shape)) - 1))
        unheld = read_fields(source, "train", **forcings)
    windows = [each.frames(0, 2, 3) for each in (fields, unheld)]
    forced = [each.forced[0][2:5] for each in (fields, unheld)]
    np.testing.assert_array_equal(*windows)
    np.testing.assert_array_equal(*forced)
    assert (fields.hashed, fields.statistics) == (unheld.hashed, unheld.statistics)
    monkeypatch.setattr("dualrate.forecasts.datasets.Part.read", None)
    np.testing.assert_array_equal(fields.frames(0, 2, 3), windows[0])
    np.testing.assert_array_equal(fields.forced[0][2:5], forced[0])
    with pytest.raises(ValueError):
        unheld.frames(0, 2, 3)


def test_processes_of_a_machine_hold_an_eighth_of_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trajectories = find_fields(saved(era5()[["sp"]], tmp_path / "a.nc"))[1].trajectories
    size = 4 * int(np.prod(trajectories[0].shape))
    monkeypatch.setattr("dualrate.forecasts.fields.MEMORY", 16 * size)
    assert [each.nbytes for each in room_for(trajectories)] == [size]
    assert room_for([each[0:2] for each in trajectories]) == []  # arrays already
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(room_for(trajectories)) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert room_for(trajectories) == []
