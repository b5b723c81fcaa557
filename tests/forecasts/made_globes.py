"""Files of small fields all round the globe, and runs on them, for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from runs.made import saved_random

import dualrate as dr
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.forecasts.recipe import TIERS, Forecasting, ForecastTier
from dualrate.runs.store import load
from dualrate.system.progress import Silent

LATITUDES, LONGITUDES = np.linspace(78.75, -78.75, 8), np.arange(16) * 22.5


def waves(variables: str = "t", seed: int = 0, frames: int = 40) -> xarray.Dataset:
    random = np.random.default_rng(seed)
    fields = {
        name: (("time", "lat", "lon"), random.normal(280, 3, (frames, 8, 16)).astype(np.float32), {"units": "K"})
        for name in variables
    }
    rows, columns = ("lat", LATITUDES, {"units": "degrees_north"}), ("lon", LONGITUDES, {"units": "degrees_east"})
    hours = np.datetime64("2020-01-01", "ns") + np.arange(frames) * np.timedelta64(6, "h")
    return xarray.Dataset(fields, {"time": hours, "lat": rows, "lon": columns})


def saved(data: xarray.Dataset, path: Path, **how: Any) -> Path:
    data.to_netcdf(path, engine="h5netcdf", **how)
    return path


def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make networks of the recipe train in no time."""
    tier = TIERS["tiny"]
    monkeypatch.setitem(TIERS, "mini", ForecastTier((8, 8), (1, 1), replace(tier.fit, iterations=2, batch_size=4)))


def experiment(source: Path, **how: Any) -> Experiment:
    data = {name: how.pop(name) for name in ("variables", "levels") if name in how}
    return Forecasting(DataConfig(str(source), **data), **how)(Silent())


def untrained(source: Path, out: Path, **how: Any) -> dr.Model:
    """A run of random weights."""
    return load(saved_random(experiment(source, **how), out))


def trained(source: Path, out: Path, **how: Any) -> dr.Model:
    dr.train(experiment(source, **how), out, progress=Silent())
    return load(out)
