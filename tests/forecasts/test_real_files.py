"""Files that others wrote: those of iris-sample-data (pip install iris-sample-data; UK Open Government Licence), and
the monthly winds of Debian's package ferret-datasets, which is fetched where it is not installed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import xarray
from forecasts.made_globes import saved, small_networks, trained

import dualrate as dr
from dualrate.forecasts.evaluation import forecast_scores, window_members
from dualrate.forecasts.folder import write_forecast
from dualrate.forecasts.metadata import Coordinate, Description
from dualrate.forecasts.starts import held_out_starts

CASES: dict[str, dict[str, Any]] = {
    "A1B_north_america.nc": {"forcings": ("day",)},  # yearly means, with bounds, of a 360-day calendar
    "E1_north_america.nc": {},
    "ostia_monthly.nc": {"mask": "auto", "forcings": ("day", "sun")},  # packed, with land
    "GloSea4": {"past": 2},  # an ensemble of thirteen
    "monthly_navy_winds.cdf": {"forcings": ("day",), "frames": 2},  # NetCDF 3, from 20 degrees east once round
}
STEPS = {"A1B_north_america.nc": "1 year", "E1_north_america.nc": "1 year"}  # of the others a month
FERRET = "usr/share/ferret-vis/data"
PACKAGE = "https://deb.debian.org/debian/pool/main/f/ferret-vis/ferret-datasets_7.6.0-5_all.deb"


def place_of(name: str, folder: Path) -> Path:
    """A file of these packages."""
    if name not in CASES or not name.endswith(".cdf"):
        return Path(pytest.importorskip("iris_sample_data").path) / name
    if (installed := Path("/", FERRET, name)).is_file():
        return installed
    try:
        with urlopen(PACKAGE, timeout=60) as answer:
            content = answer.read()
    except OSError as error:
        pytest.skip(f"{PACKAGE}: {error}")
    at = 8  # after the magic of ar: a header of 60 bytes for each member, at even places
    while at < len(content):
        member, size = content[at : at + 16].decode().strip(" /"), int(content[at + 48 : at + 58])
        if member.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(content[at + 60 : at + 60 + size])) as packed:
                (folder / name).write_bytes(packed.extractfile(f"./{FERRET}/{name}").read())  # pyright: ignore[reportOptionalMemberAccess]
        at += 60 + size + size % 2
    return folder / name


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
    file = place_of(name, tmp_path)
    if "." not in name:
        file = saved(ensemble(file), tmp_path / f"{name}.nc")
    model = trained(file, tmp_path / "run", **CASES[name])
    task: Any = model.experiment.condition
    assert task.plain_time(task.lead_times(1)[0]) == STEPS.get(name, "1 month")
    drawer = dr.Choice(steps=2).drawer(model, members=2, precision="float32")
    written = write_forecast(drawer, held_out_starts(model, 2, 2), 2, tmp_path / "out", format="netcdf")
    assert np.isfinite(written.x).all()
    scores = forecast_scores(drawer.model, *window_members(drawer, 2))
    assert np.isfinite(scores.by_name["forecast"].crps.value).all()
    with (
        xarray.open_dataset(file) as source,
        xarray.open_dataset(tmp_path / "out" / "forecast.nc", decode_timedelta=True) as made,
    ):
        variables = [str(each) for each in made.data_vars if not str(each).endswith("_truth")]
        assert variables == list(task.variables)
        places = [str(each) for each in source.coords if source[each].dims == (each,) and is_place(source[each])]
        assert len(places) == 2
        for place in places:
            np.testing.assert_array_equal(made[place], source[place])
        of_start = source.isel(ensemble=-1) if "ensemble" in source.dims else source
        clock = next(str(each) for each in source[variables[0]].dims if str(each).lower() == "time")
        for variable in variables if "valid_time" in made.coords else []:
            assert made[variable].attrs["units"] == source[variable].attrs["units"]
            truth = of_start[variable].sel({clock: made.valid_time[0].values[:2]}, method="nearest")
            np.testing.assert_allclose(made[f"{variable}_truth"][0], truth, rtol=1e-5)


def is_place(coordinate: xarray.DataArray) -> bool:
    return bool(Coordinate(str(coordinate.name), (0,), (), Description.of(coordinate.attrs)).place)
