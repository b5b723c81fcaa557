"""Units and coordinates that sources name, read from every kind of file; and whether two of them say the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray

from dualrate.forecasts.metadata import Coordinate, Description, Metadata, plain_units
from dualrate.forecasts.sources import find_fields

LATITUDES, LONGITUDES = np.linspace(60, -60, 4), np.arange(6) * 60.0


def grid(**more: object) -> xarray.Dataset:
    values = np.random.default_rng(0).normal(size=(5, 4, 6)).astype("f4")
    return xarray.Dataset(
        {"t2m": (("time", "lat", "lon"), values, {"units": "K", "long_name": "temperature"})},
        {
            "time": np.datetime64("2020-01-01", "ns") + np.arange(5) * np.timedelta64(6, "h"),
            "lat": ("lat", LATITUDES, {"units": "degrees_north", "standard_name": "latitude"}),
            "lon": ("lon", LONGITUDES),
            "level": 850.0,
            **more,
        },
    )


def test_attributes_that_say_nothing_are_none() -> None:
    """A name by which GRIB says that it has none, and the unit of a number of a level."""
    about = Description.of({"units": "K", "standard_name": "unknown", "level": 3, "level_units": "1"})
    assert about.attributes == {"units": "K", "level": 3.0, "level_units": "1"}
    assert (about.height, Description(level=11.0, level_units="m").height) == ("3", "11 m")


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_netcdf_and_zarr_say_units_and_coordinates(tmp_path: Path, kind: str) -> None:
    path, area = tmp_path / f"grid.{kind}", np.arange(24.0).reshape(4, 6)
    data = grid(area=(("lat", "lon"), area))
    data.to_netcdf(path, engine="h5netcdf") if kind == "nc" else data.to_zarr(path, consolidated=False)
    metadata = find_fields(path)[1].metadata
    assert metadata.variables == (Description("K", "", "temperature"),)
    assert metadata.time == "hours"
    points = {each.name: each for each in metadata.coordinates}
    assert set(points) == {"lat", "lon", "level", "area"}
    assert points["lat"] == Coordinate("lat", (0,), tuple(LATITUDES), Description("degrees_north", "latitude"))
    assert (points["lon"].axes, points["lon"].values) == ((1,), tuple(LONGITUDES))
    assert (points["area"].axes, points["area"].values) == ((0, 1), tuple(area.ravel()))
    assert (points["level"].axes, points["level"].values) == ((), (850.0,))
    assert [points[name].place for name in ("lat", "lon", "area")] == ["latitude", "longitude", ""]


def test_hdf5_says_units_and_coordinates(tmp_path: Path) -> None:
    x, y = np.linspace(0, 1, 6), np.linspace(0, 2, 4)
    with h5py.File(tmp_path / "well.h5", "w") as file:
        file.create_group("dimensions").attrs["spatial_dims"] = ["y", "x"]
        file["dimensions/y"], file["dimensions/x"], file["t0_fields/u"] = y, x, np.zeros((3, 5, 4, 6))
        file["dimensions/time"] = np.arange(5.0)
        file["dimensions/time"].attrs["units"] = "s"
        file["t0_fields/u"].attrs["units"], file["dimensions/x"].attrs["units"] = np.bytes_("m/s"), "m"
    expected = Coordinate("y", (0,), tuple(y)), Coordinate("x", (1,), tuple(x), Description("m"))
    assert find_fields(tmp_path / "well.h5")[1].metadata == Metadata((Description("m/s"),), expected, "s")
    for each in (False, True):
        with h5py.File(tmp_path / f"arena-{each}.h5", "w") as file:
            file["train/pde_a"], file["train/x"] = np.zeros((3, 5, 6)), np.tile(x, (3, 1)) if each else x
            file["train/pde_a"].attrs["units"] = "m"
        source = find_fields(tmp_path / f"arena-{each}.h5")[1]
        assert (source.axes, source.metadata.variables) == (("x",), (Description("m"),))
        assert source.metadata.coordinates == (Coordinate("x", (0,), tuple(x)),)
    with h5py.File(tmp_path / "arena.h5", "w") as file:  # each trajectory has points of its own
        file["train/pde_a"], file["train/x"] = np.zeros((3, 5, 6)), x * np.arange(1, 4)[:, None]
    assert find_fields(tmp_path / "arena.h5")[1].metadata.coordinates == ()
    with h5py.File(tmp_path / "splits.h5", "w") as file:
        for split, length in (("train", 1), ("test", 2)):
            file[f"{split}/pde_a"], file[f"{split}/x"] = np.zeros((3, 5, 6)), length * x
    with pytest.raises(ValueError, match=r"its splits have x from 0 to [12] and x from 0 to [12]: bring them to one"):
        find_fields(tmp_path / "splits.h5")
    with h5py.File(tmp_path / "units.h5", "w") as file:
        for split, units in (("test", ""), ("train", "m"), ("valid", "")):
            file[f"{split}/pde_a"] = np.zeros((3, 5, 6))
            file[f"{split}/pde_a"].attrs["units"] = units
    assert find_fields(tmp_path / "units.h5")[1].metadata.variables == (Description("m"),)


def test_files_of_one_folder_say_the_same(tmp_path: Path) -> None:
    for name, units in (("a_train.h5", "K"), ("b_test.h5", "degC")):
        with h5py.File(tmp_path / name, "w") as file:
            file.create_group("dimensions").attrs["spatial_dims"] = ["y", "x"]
            file["t0_fields/u"] = np.zeros((3, 5, 4, 6))
            file["t0_fields/u"].attrs["units"] = units
    with pytest.raises(ValueError, match=r"a_train.h5 has u in K, and .*b_test.h5 has u in degC"):
        find_fields(tmp_path)


def test_units_are_those_of_the_files_of_a_folder_that_say_them(tmp_path: Path) -> None:
    for name, units in (("a_train.h5", ""), ("b_test.h5", "degC"), ("c_val.h5", "")):
        with h5py.File(tmp_path / name, "w") as file:
            file["train/u"] = np.zeros((3, 5, 4, 6))
            file["train/u"].attrs["units"] = units
            file.move("train", name[2:-3])
    source = find_fields(tmp_path)[1]
    assert source.metadata.variables == (Description("degC"),)
    assert source.note.startswith(f"{tmp_path.name}/a_train.h5, {tmp_path.name}/c_val.h5 without units")
    (tmp_path / "c_val.h5").unlink()  # which is open
    with h5py.File(tmp_path / "c_val.h5", "w") as file:
        file["val/u"] = np.zeros((3, 5, 4, 6))
        file["val/u"].attrs["units"] = "K"
    with pytest.raises(ValueError, match=r"b_test.h5 has u in degC, and .*c_val.h5 has u in K"):
        find_fields(tmp_path)


def said(units: str = "K", **coordinates: np.ndarray) -> Metadata:
    axes = {"lat": (0,), "latitude": (0,), "lon": (1,), "longitude": (1,), "level": (), "y": (0,)}
    points = [Coordinate(name, axes[name], tuple(np.ravel(values))) for name, values in coordinates.items()]
    return Metadata((Description(units),), tuple(points))


HERE = said(lat=LATITUDES, lon=LONGITUDES)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (said("degC"), ("t2m in degC", "t2m in K")),
        (said(lon=LONGITUDES - 180), ("lon from -180 to 120", "lon from 0 to 300")),
        (said(longitude=LONGITUDES / 2), ("longitude from 0 to 150", "lon from 0 to 300")),
        (said(lat=LATITUDES[::-1]), ("lat from -60 to 60", "lat from 60 to -60")),
        (said(y=LATITUDES / 4), ("y from 15 to -15", "lat from 60 to -60")),
        (
            said(lat=LATITUDES + np.array([0, 3, 0, 0])),
            ("lat from 60 to -60, at point 1 23", "lat from 60 to -60, at point 1 20"),
        ),
        (said(lat=LATITUDES.astype("f4"), lon=LONGITUDES - 360), None),  # the same places
        (said("kelvin"), None),
        (said("", level=np.array(500)), None),  # of what the other says nothing
        (Metadata(), None),
    ],
)
def test_other_units_and_coordinates_are_told_apart(other: Metadata, words: tuple[str, str] | None) -> None:
    assert next(other.differences(HERE, ["t2m"]), None) == words


def test_latitudes_of_a_rotated_pole_are_none() -> None:
    rows = Coordinate("rlat", (0,), (60.0, 20.0), Description("degrees_north", "grid_latitude"))
    assert (rows.place, Coordinate("rlat", (0,), (60.0,), Description("degrees_north")).place) == ("", "latitude")


@pytest.mark.parametrize("units", ["m", "km", "meters", "Kilometres", "radians"])
def test_latitudes_in_lengths_or_radians_are_no_places(units: str) -> None:
    assert Coordinate("lat", (0,), (0.0, 49.0), Description(units)).place == ""


def test_points_of_which_some_are_observed_and_many_points() -> None:
    some = said(lat=LATITUDES[::2], lon=LONGITUDES[::2])
    assert not list(some.differences(HERE, ["t2m"], 2))
    assert list(said(lat=LATITUDES[:2]).differences(HERE, ["t2m"], 2))
    many = Metadata((), (Coordinate("area", (0, 1), tuple(np.arange(10_000.0))),))
    (thinned,) = many.thinned.coordinates
    assert len(thinned.values) == 4096
    assert not list(many.differences(many.thinned, []))
    assert list(many.differences(replace(many, coordinates=(replace(thinned, values=thinned.values[::-1]),)), []))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("m/s", "m s**-1", True),
        ("m s-1", "m s^-1", True),
        ("W/m2", "W m-2", True),
        ("degrees_north", "degree_N", True),
        ("Kelvin", "degK", True),
        ("K", "degC", False),
        ("hPa", "Pa", False),
        ("mm", "m", False),
        ("degrees", "radians", False),
        ("m.s-1", "m s-1", True),
        ("m·s⁻¹", "m/s", True),
        ("m⋅s\u22121", "m s-1", True),
        ("m*s**-1", "m s-1", True),
        ("m/s^2", "m s⁻²", True),
        ("J.kg-1.K-1", "J/kg/k", True),
        ("1/s", "s^{-1}", True),
        ("k", "kelvin", True),
        ("°C", "degree_Celsius", True),
        ("celsius", "degC", True),
        ("metres second-1", "m s-1", True),
        ("millibar", "hPa", True),
        ("0.1 m", "1 m", False),
        ("S", "s", False),
        ("m.s-1", "m.s-2", False),
        ("ms-1", "m s-1", False),
        ("k", "degC", False),
    ],
)
def test_spellings_of_units(one: str, other: str, same: bool) -> None:
    assert (plain_units(one) == plain_units(other)) == same
