"""Fields in NetCDF and zarr: dimensions, times, the order of variables, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from forecasts.made_fields import ARRAY, STRINGS, all_of

from dualrate.forecasts.fields import read_fields
from dualrate.forecasts.sources import find_fields
from dualrate.forecasts.trajectories import timing_of


def test_a_dimension_that_nobody_knows_is_no_space(tmp_path: Path) -> None:
    def saved(name: str, *dims: str) -> Path:
        made = xarray.Dataset({"u": (dims, ARRAY[:, :, 0, 0] if len(dims) == 3 else ARRAY[:, :, 0])})
        made.to_netcdf(tmp_path / name, engine="h5netcdf")
        return tmp_path / name

    np.testing.assert_array_equal(
        all_of(read_fields(saved("a.nc", "ensemble", "time", "x"), "train"))[:, :, 0, 0], ARRAY[:18, :, 0, 0]
    )
    for dims in (("ic", "time", "x"), ("x", "y", "time"), ("ic", "time", "y", "x")):
        with pytest.raises(ValueError, match=r"with one or two of space, after time; names such as trajectory"):
            read_fields(saved(f"{''.join(dims)}.nc", *dims), "train")
    with pytest.raises(ValueError, match=r"several dimensions of time \(time, frame\), expected one"):
        read_fields(saved("b.nc", "time", "frame", "x"), "train")


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (("time", STRINGS), "expected numbers or dates"),
        (("time", np.array(list(STRINGS), object)), "expected numbers or dates"),
        (("time", np.arange(6) > 2), "expected numbers or dates"),
        ((("time", "x"), np.zeros((6, 5))), r"valid_time is over \('time', 'x'\); expected times over time alone"),
    ],
)
def test_times_of_netcdf_that_are_not_understood_are_refused(tmp_path: Path, times: Any, words: str) -> None:
    name = "valid_time" if len(times[1].shape) == 2 else "time"
    data = xarray.Dataset({"u": (("time", "y", "x"), ARRAY[0, :, 0])}, {name: times})
    data.to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=words):
        find_fields(tmp_path / "data.nc")


def test_a_file_of_groups_alone_says_that_they_are_not_read(tmp_path: Path) -> None:
    data = xarray.Dataset({"u": (("time", "x"), np.zeros((4, 8), np.float32))})
    data.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", group="fields")
    with pytest.raises(ValueError, match=r"a.nc has no variables at its top, .* group"):
        find_fields(tmp_path / "a.nc")


@pytest.mark.filterwarnings("error")
def test_dates_of_old_and_several_fill_values_are_read_without_a_warning(tmp_path: Path) -> None:
    values = np.zeros((4, 8), np.float32)
    values[1, 2], values[2, 3] = -9999, 1e20
    fills = {"_FillValue": np.float32(1e20), "missing_value": np.float32(-9999)}
    time = ("time", np.arange(4), {"units": "days since 0001-01-01"})
    xarray.Dataset({"u": (("time", "x"), values, fills)}, {"time": time}).to_netcdf(tmp_path / "a.nc", engine="scipy")
    (trajectory,) = find_fields(tmp_path / "a.nc")[1].trajectories
    assert np.argwhere(np.isnan(trajectory[0:4])).tolist() == [[1, 0, 0, 2], [2, 0, 0, 3]]
    assert timing_of(trajectory).step == 24


def test_times_of_netcdf_under_other_names(tmp_path: Path) -> None:
    hours = np.datetime64("2020-01-01", "ns") + np.array([0, 6, 12, 18, 48, 54]) * np.timedelta64(1, "h")
    frames = ARRAY[0, :, 0]
    each = np.stack([hours, hours + np.timedelta64(1, "h")])
    for name, data in {
        "era5": xarray.Dataset({"u": (("valid_time", "y", "x"), frames)}, {"valid_time": hours}),
        "dates": xarray.Dataset({"u": (("date", "y", "x"), frames)}, {"date": hours}),
        "named": xarray.Dataset(
            {"u": (("when", "y", "x"), frames)}, {"when": ("when", [0, 6, 12, 18, 48, 54], {"standard_name": "time"})}
        ),
        "beside": xarray.Dataset({"u": (("frame", "y", "x"), frames)}, {"valid_time": ("frame", hours)}),
        "each": xarray.Dataset(
            {"u": (("sample", "time", "y", "x"), ARRAY[:2, :, 0])}, {"valid_time": (("sample", "time"), each)}
        ),
    }.items():  # fmt: skip
        data.to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
        source = find_fields(tmp_path / f"{name}.nc")[1]
        assert (source.step, source.variables) == (6, ("u",))
        assert [timing_of(one).breaks for one in source.trajectories] == [(4,)] * len(source.trajectories)


@pytest.mark.parametrize("format", [2, 3])
@pytest.mark.parametrize("listed", ["abcd", "dcba"])
def test_variables_of_a_store_have_one_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: int, listed: str
) -> None:
    """zarr lists the arrays of a store as its tasks end."""
    coordinates = {"x": np.arange(5.0), "q": ("y", np.arange(3.0)), "p": ("y", np.arange(3.0))}
    arrays = {name: (("time", "y", "x"), np.full((6, 3, 5), i, np.float32)) for i, name in enumerate(listed)}
    data = xarray.Dataset(arrays, coordinates)
    data.to_zarr(tmp_path / "data.zarr", zarr_format=format, consolidated=False)
    monkeypatch.setattr(xarray, "open_dataset", lambda *place, **how: data)
    source = find_fields(tmp_path / "data.zarr")[1]
    assert source.variables == ("a", "b", "c", "d")
    assert source.trajectories[0][0:1][0, :, 0, 0].tolist() == [listed.index(name) for name in "abcd"]
    assert [each.name for each in source.metadata.coordinates] == ["p", "q", "x"]


@pytest.mark.parametrize("kind", ["bounds", "climatology"])
def test_bounds_of_coordinates_are_left_out(tmp_path: Path, kind: str) -> None:
    data = xarray.Dataset({"u": (("time", "y", "x"), ARRAY[0, :, 0])}, {"time": np.arange(6.0)})
    data["cells"] = ("time", "nv"), np.zeros((6, 2))
    data["time"].attrs[kind] = "cells"
    data.to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    source = find_fields(tmp_path / "data.nc")[1]
    assert (source.variables, source.note) == (("u",), "left out, as they describe others: cells")
    del data["time"].attrs[kind]
    data.to_netcdf(tmp_path / "unnamed.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"u \{'time': 6, 'y': 3, 'x': 5\}; cells .*name those of one kind"):
        find_fields(tmp_path / "unnamed.nc")


def test_a_calendar_that_cannot_be_read_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = {"units": "days since 0001-01-01", "calendar": "noleap"}
    data = xarray.Dataset({"u": (("time", "y", "x"), ARRAY[0, :, 0])}, {"time": ("time", np.arange(6.0), units)})
    data.to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    monkeypatch.setitem(sys.modules, "cftime", None)
    with pytest.raises(
        ValueError, match=r"data.nc: its times cannot be read .*noleap.*: .*pip install cftime"
    ) as error:
        find_fields(tmp_path / "data.nc")
    assert "decode_times" not in str(error.value)


def test_dates_are_in_hours_and_three_dimensions_are_refused(tmp_path: Path) -> None:
    times = np.datetime64("2020-01-01", "ns") + np.arange(6) * np.timedelta64(12, "h")
    data = xarray.Dataset({"t2m": (("time", "lat", "lon"), ARRAY[0, :, 0])}, coords={"time": times})
    data.to_netcdf(tmp_path / "era.nc", engine="h5netcdf")
    assert read_fields(tmp_path / "era.nc", "train").step == 12
    xarray.Dataset({"w": (("time", "z", "y", "x"), ARRAY[0])}).to_netcdf(tmp_path / "deep.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"has the dimensions \{'time': 6, 'z': 2.*names such as trajectory"):
        read_fields(tmp_path / "deep.nc", "train")
    xarray.Dataset({"w": (("when", "x"), ARRAY[0, :, 0, 0])}).to_netcdf(tmp_path / "no.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="none with a dimension called time"):
        read_fields(tmp_path / "no.nc", "train")
