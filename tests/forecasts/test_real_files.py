"""Files that others wrote: those of iris-sample-data (pip install iris-sample-data; UK Open Government Licence)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from forecasts.made_globes import saved, small_networks, trained

import dualrate as dr
from dualrate.forecasts.evaluation import forecast_scores, window_members
from dualrate.forecasts.folder import write_forecast
from dualrate.forecasts.starts import held_out_starts

iris = pytest.importorskip("iris_sample_data")
FILES = Path(iris.path)
CASES: dict[str, dict[str, Any]] = {
    "A1B_north_america.nc": {"forcings": ("day",)},  # yearly means, with bounds, of a 360-day calendar
    "E1_north_america.nc": {},
    "ostia_monthly.nc": {"mask": "auto", "forcings": ("day", "sun")},  # packed, with land
    "GloSea4": {"past": 2},  # an ensemble of thirteen
}


def ensemble(folder: Path) -> xarray.Dataset:
    """The members of a folder of PP files, which nothing here reads: headers of 45 integers and 19 numbers."""
    members = []
    for path in sorted(folder.glob("*.pp")):
        words, at, fields = np.fromfile(path, ">i4"), 0, {}
        while at < len(words):
            whole, numbers = words[at + 1 : at + 46], words[at + 46 : at + 65].view(">f4")
            shape, (north, down, west, across) = whole[17:19], numbers[13:17]
            x = words[at + 67 : at + 67 + shape.prod()].view(">f4").reshape(shape)
            fields[f"{whole[0]:04}-{whole[1]:02}-{whole[2]:02}"] = x
            at += 68 + shape.prod()
        members.append(np.stack([*fields.values()]).astype(np.float32))
    lat, lon = (
        first + step * np.arange(1, 1 + size)
        for first, step, size in zip((north, west), (down, across), shape, strict=True)
    )
    axes = {
        "latitude": ("latitude", lat, {"units": "degrees_north"}),
        "longitude": ("longitude", lon, {"units": "degrees_east"}),
    }
    months = xarray.date_range(min(fields), periods=len(fields), freq="MS", calendar="360_day", use_cftime=True)
    kept = {"temperature": (("ensemble", "time", "latitude", "longitude"), np.stack(members), {"units": "K"})}
    return xarray.Dataset(kept, {"time": months, **axes})


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_real_file_is_forecast_and_read_back(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks(monkeypatch)
    file = FILES / name if "." in name else saved(ensemble(FILES / name), tmp_path / f"{name}.nc")
    model = trained(file, tmp_path / "run", **CASES[name])
    drawer = dr.Choice(steps=2).drawer(model, members=2, precision="float32")
    written = write_forecast(drawer, held_out_starts(model, 2, 2), 2, tmp_path / "out", format="netcdf")
    assert np.isfinite(written.x).all()
    scores = forecast_scores(drawer.model, *window_members(drawer, 2))
    assert np.isfinite(scores.by_name["forecast"].crps.value).all()
    time_coder = xarray.coders.CFDatetimeCoder(use_cftime=True)
    with (
        xarray.open_dataset(file, decode_times=time_coder) as source,
        xarray.open_dataset(tmp_path / "out" / "forecast.nc", decode_times=time_coder, decode_timedelta=True) as made,
    ):
        (variable,) = [each for each in made.data_vars if not str(each).endswith("_truth")]
        for place in ("latitude", "longitude"):
            np.testing.assert_allclose(made[place], source[place], rtol=1e-6)
        assert made[variable].attrs["units"] == source[variable].attrs["units"]
        of_start = source.isel(ensemble=-1) if "ensemble" in source.dims else source
        truth = of_start[variable].sel(time=made.valid_time[0].values[:2]) if "valid_time" in made.coords else None
        if truth is not None:
            np.testing.assert_allclose(made[f"{variable}_truth"][0], truth, rtol=1e-5)
