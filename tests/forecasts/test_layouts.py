"""Layouts of files that people have, end to end: trained, forecast, scored, written, and read back by xarray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from forecasts.made_globes import saved, small_networks, trained, untrained, waves

import dualrate as dr
from dualrate.forecasts.forecast import forecast_by
from dualrate.forecasts.starts import held_out_starts

LAND = np.random.default_rng(3).random((8, 16)) < 0.3
PLACES = {"lat": "latitude", "lon": "longitude"}


def in_levels(data: xarray.Dataset, time: str, level: str, units: str) -> xarray.Dataset:
    """Two levels of one variable beside one without, in the names of the Climate Data Store."""
    data = data.rename(PLACES | {"time": time, "s": "sp"})
    levels = xarray.concat([data.t, data.t - 20], xarray.Variable(level, np.array([500, 850]), {"units": units}))
    return data.assign(t=levels.transpose(time, level, ...).assign_attrs(units="K"))


def era5_new(data: xarray.Dataset) -> xarray.Dataset:
    data = in_levels(data, "valid_time", "pressure_level", "hPa")
    return data.assign_coords(number=0, expver=("valid_time", np.full(len(data.valid_time), "0001")))


def era5_old(data: xarray.Dataset) -> xarray.Dataset:
    """From the north, packed, with missing values named."""
    data = in_levels(data, "time", "level", "millibars")
    for name in data.data_vars:
        data[name].encoding = {"dtype": "i2", "scale_factor": 0.01, "add_offset": 270.0, "_FillValue": -32767}
    return data


def cmip6(data: xarray.Dataset) -> xarray.Dataset:
    """From the south, with bounds, without leap years."""
    times = xarray.date_range("1850-02-25", periods=len(data.time), freq="D", calendar="noleap", use_cftime=True)
    data = data.isel(lat=slice(None, None, -1)).assign_coords(time=times).rename(t="tas").drop_vars("s")
    data.time.attrs["bounds"], data.time.encoding["units"] = "time_bnds", "days since 1850-01-01"
    ends = np.stack([times, times.shift(1, "D")], 1)
    return data.assign(time_bnds=(("time", "bnds"), ends), areacella=(("lat", "lon"), np.ones((8, 16))))


def ocean(data: xarray.Dataset) -> xarray.Dataset:
    return data.where(~xarray.DataArray(LAND, dims=("lat", "lon"))).assign_attrs(title="sea")


def days_of_360(data: xarray.Dataset) -> xarray.Dataset:
    times = xarray.date_range("2001-02-20", periods=len(data.time), freq="D", calendar="360_day", use_cftime=True)
    return data.assign_coords(time=times)


CASES: dict[str, tuple[Callable[[xarray.Dataset], xarray.Dataset], dict[str, Any]]] = {
    "ERA5 since 2024": (era5_new, {"past": 2}),
    "ERA5 before": (era5_old, {"levels": (850.0,)}),
    "CMIP6, noleap": (cmip6, {"frames": 2}),
    "an ocean": (ocean, {"mask": "auto"}),
    "360 days": (days_of_360, {"every": 2, "noise": 0.1}),
}


@pytest.mark.parametrize("layout", CASES)
def test_a_layout_is_forecast_and_read_back(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks(monkeypatch)
    of, how = CASES[layout]
    data = of(waves("ts", frames=60))
    file, format = saved(data, tmp_path / "source.nc"), "zarr" if "ERA5" in layout else "netcdf"
    model = trained(file, tmp_path / "run", **how)
    drawer = dr.Choice(steps=1).drawer(model, members=2, precision="float32")
    result = forecast_by(drawer, held_out_starts(model, 2, 2), 2, tmp_path / "out", format=format)
    assert result.scores is not None
    assert np.isfinite(result.scores.by_name["forecast"].crps.value).all()
    coder = xarray.coders.CFDatetimeCoder(use_cftime="days" in layout or "noleap" in layout)
    how = {"engine": "zarr"} if format == "zarr" else {"engine": "h5netcdf"}
    out = tmp_path / "out" / f"forecast.{'zarr' if format == 'zarr' else 'nc'}"
    with (
        xarray.open_dataset(file, engine="h5netcdf", decode_times=coder) as source,
        xarray.open_dataset(out, decode_times=coder, **how) as made,
    ):
        for short, name in PLACES.items():
            name = name if name in source.coords else short
            np.testing.assert_array_equal(made[name], source[name])
        assert made.sizes["number"] == 2
        times = source["valid_time" if "valid_time" in source.coords else "time"].values
        variables = [str(name) for name in made.data_vars if not str(name).endswith("_truth")]
        assert sorted(variables) == {
            "CMIP6, noleap": ["tas"],
            "ERA5 before": ["sp", "t_850"],
            "ERA5 since 2024": ["sp", "t_500", "t_850"],
        }.get(layout, ["s", "t"])
        for start in range(2):
            (at,) = np.flatnonzero(times == made.init_time.values[start])
            np.testing.assert_array_equal(made.valid_time[start], times[at + 1 : at + 3])
            for name in variables:
                truth = source[name.partition("_")[0]]
                truth = truth.isel({truth.dims[0]: slice(at + 1, at + 3)})
                if "_" in name:
                    assert made[name].attrs["level"] == int(name.partition("_")[2])
                    assert made[name].attrs["level_units"] in ("hPa", "millibars")
                    truth = truth.sel({truth.dims[1]: int(name.partition("_")[2])})
                np.testing.assert_allclose(made[f"{name}_truth"][start], truth, rtol=1e-6)
                assert made[name].attrs["units"] == "K"
                assert (np.isnan(made[name].values) == np.isnan(truth.values)[:1]).all()


def test_a_start_may_be_a_dataset_as_its_file_would_be(tmp_path: Path) -> None:
    data = waves("ts")
    model = untrained(saved(data, tmp_path / "a.nc"), tmp_path / "run")
    start = data.isel(time=[-1]).isel(lat=slice(None, None, -1))[["s", "t"]]  # in another order
    how: Any = {"frames": 2, "members": 2, "choice": dr.Choice(2), "note": lambda text: None}
    expected = dr.forecast(model, saved(start, tmp_path / "start.nc"), **how)
    result = dr.forecast(model, start, **how)
    np.testing.assert_array_equal(result.ensemble, expected.ensemble)
    assert result.dataset.init_time.values == data.time.values[-1]
    with pytest.raises(ValueError, match="s"):
        dr.forecast(model, start.t, **how)


def test_a_start_may_count_longitudes_past_greenwich(tmp_path: Path) -> None:
    east = {"units": "degrees_east"}
    longitudes = np.arange(16) * 5.0 - 20
    data = waves().assign_coords(lon=("lon", longitudes, east))
    model = untrained(saved(data, tmp_path / "a.nc"), tmp_path / "run")
    start = data.isel(time=[-1])
    how: Any = {"frames": 1, "members": 1, "choice": dr.Choice(1), "note": lambda text: None}
    expected = dr.forecast(model, start, **how)
    result = dr.forecast(model, start.assign_coords(lon=("lon", longitudes % 360, east)), **how)
    np.testing.assert_array_equal(result.ensemble, expected.ensemble)
