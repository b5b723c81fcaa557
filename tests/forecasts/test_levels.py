"""Levels of pressure: the same ones in Pa and in hPa, and said in what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray
from forecasts.made_globes import saved, small_networks, untrained, waves

import dualrate as dr
from dualrate.forecasts.sources import find_fields
from dualrate.forecasts.starts import read_starts


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks(monkeypatch)


def layers(units: str, values: tuple[float, ...] = (500, 850), frames: int = 40, name: str = "plev") -> xarray.Dataset:
    """One variable at levels in hPa, told in these units."""
    data, factor = waves(frames=frames), 100 if units == "Pa" else 1
    numbers = xarray.Variable(name, np.array(values) * factor, {"units": units} if units else {})
    whole = xarray.concat([data.t + level / 100 for level in values], numbers).transpose("time", name, ...)
    return data.assign(t=whole.astype("f4").assign_attrs(units="K"))


@pytest.mark.parametrize(
    ("mine", "theirs"), [("Pa", "hPa"), ("hPa", "Pa"), ("millibars", "Pa"), ("mb", "Pa"), ("Pa", "mbar")]
)
def test_levels_are_found_by_their_pressure(tmp_path: Path, mine: str, theirs: str) -> None:
    model = untrained(saved(layers(mine), tmp_path / "a.nc"), tmp_path / "run")
    other = layers(theirs, (1000, 850, 500), frames=3, name="level")
    starts = read_starts(saved(other, tmp_path / "start.nc"), model, pytest.fail)
    np.testing.assert_array_equal(starts.past[0, 0], other.t.isel(time=-1, level=[2, 1]))
    with pytest.raises(ValueError, match="missing: t_"):
        read_starts(saved(layers(theirs, (400, 850), frames=3), tmp_path / "wrong.nc"), model)


def test_heights_are_no_pressures(tmp_path: Path) -> None:
    model = untrained(saved(layers("m", (1000, 2000), name="depth"), tmp_path / "a.nc"), tmp_path / "run")
    with pytest.raises(ValueError, match="missing: t_1000, t_2000"):
        read_starts(saved(layers("m", (10, 20), frames=3, name="depth"), tmp_path / "b.nc"), model)


def test_one_level_is_known_too(tmp_path: Path) -> None:
    model = untrained(saved(layers("Pa", (850,)), tmp_path / "a.nc"), tmp_path / "run")
    assert len(read_starts(saved(layers("hPa", (850,), frames=2), tmp_path / "same.nc"), model, pytest.fail)) == 1
    with pytest.raises(ValueError, match="holds the variables t_500, and run was trained on t_85000"):
        read_starts(saved(layers("hPa", (500,), frames=2), tmp_path / "other.nc"), model)


def test_a_level_of_all_points_is_the_same_in_both_units(tmp_path: Path) -> None:
    def at(value: float, units: str) -> xarray.Dataset:
        return waves().assign_coords(plev=((), value, {"units": units}))

    model = untrained(saved(at(85000.0, "Pa"), tmp_path / "a.nc"), tmp_path / "run")
    assert len(read_starts(saved(at(850.0, "hPa"), tmp_path / "same.nc"), model, pytest.fail)) == 1
    with pytest.raises(ValueError, match="has plev from"):
        read_starts(saved(at(500.0, "hPa"), tmp_path / "other.nc"), model)


@pytest.mark.parametrize("format", ["netcdf", "zarr"])
def test_what_is_written_says_the_level_of_each_variable_and_is_a_start(tmp_path: Path, format: str) -> None:
    model = untrained(saved(layers("Pa"), tmp_path / "a.nc"), tmp_path / "run")
    result = dr.forecast(model, 1, frames=2, members=1, choice=dr.Choice(1))
    data = result.dataset
    out = tmp_path / f"out.{'nc' if format == 'netcdf' else 'zarr'}"
    data.to_netcdf(out, engine="h5netcdf") if format == "netcdf" else data.to_zarr(out, zarr_format=2)
    with xarray.open_dataset(out, engine="h5netcdf" if format == "netcdf" else "zarr") as back:
        for ending in ("", "_truth"):
            for level in (500, 850):
                attributes = back[f"t_{level * 100}{ending}"].attrs
                assert (attributes["level"], attributes["level_units"]) == (100 * level, "Pa")
                assert attributes["units"] == "K"


def test_channels_and_levels_may_be_named_in_hectopascals(tmp_path: Path) -> None:
    source = saved(layers("Pa"), tmp_path / "a.nc")
    for how in ({"names": ("t_850",)}, {"names": ("t",), "levels": (850.0,)}):
        fields = find_fields(source, **how)[1]
        assert fields.variables == ("t_850",)
        (about,) = fields.metadata.variables
        assert (about.level, about.level_units, about.height) == (850, "hPa", "850 hPa")
        np.testing.assert_array_equal(fields.trajectories[0][0:2][:, 0], layers("Pa").t[:2, 1])
    assert find_fields(source, names=("t_85000",))[1].variables == ("t_85000",)


def test_a_start_beside_variables_of_another_grid_is_the_file_of_the_training(tmp_path: Path) -> None:
    """An ocean's sea surface, and its velocities between the points, one more along an axis."""
    staggered = layers("m", (5, 15), name="z_l").rename(lon="xq").pad(xq=(0, 1), mode="edge")
    staggered = staggered.t.rename("uo").drop_vars("xq")
    sea = waves().rename(t="zos").assign(uo=staggered)
    sea.uo.attrs["formula_terms"] = "eta: zos"
    source = saved(sea, tmp_path / "a.nc")
    model = untrained(source, tmp_path / "run", variables=("zos",))
    notes: list[str] = []
    starts = read_starts(source, model, notes.append)
    np.testing.assert_array_equal(starts.past[0, 0, 0], sea.zos[-1])
    assert notes == [f"{source}: uo are left out, which run was not trained on"]
