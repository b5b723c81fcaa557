"""Anomalies to a climatology by the time of the year: its fit, its exact cases, and what wants dates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from forecasts.made_forecasts import rolled
from forecasts.made_globes import experiment, saved, small_networks, trained, untrained, waves

import dualrate as dr
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.evaluation import forecast_scores, window_members
from dualrate.forecasts.externals import year_parts
from dualrate.forecasts.fields import read_fields
from dualrate.forecasts.model import forecast_of
from dualrate.forecasts.prognostic import Prognostic
from dualrate.forecasts.recipe import Forecasting
from dualrate.forecasts.seasons import curves
from dualrate.forecasts.service import ForecastService
from dualrate.forecasts.starts import held_out_starts, read_starts

DAYS, YEARS = 5, 3


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks(monkeypatch)


def of_years(calendar: str = "proleptic_gregorian", days: int = DAYS, noise: float = 1.0) -> xarray.Dataset:
    """Three years without a cycle, around a mean of each point."""
    count = YEARS * 365 // days
    data = waves(frames=count).assign_coords(
        time=xarray.date_range("2001-01-01", periods=count, freq=f"{days}D", calendar=calendar, use_cftime=True)
    )
    mean = np.random.default_rng(1).normal(280, 5, (8, 16))
    return data.assign(t=((noise * (data.t - 280) + mean).astype(np.float32)).assign_attrs(units="K"))


def cycle(data: xarray.Dataset) -> np.ndarray:
    """Two harmonics, other ones at each point."""
    angle = 2 * np.pi * year_parts(data.time.values)[:, 0]
    terms = np.stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)])
    return np.einsum("kt,kyx->tyx", terms, np.random.default_rng(2).normal(0, 8, (4, 8, 16)))


def with_cycle(data: xarray.Dataset) -> xarray.Dataset:
    return data.assign(t=(data.t + cycle(data)).astype(np.float32).assign_attrs(units="K"))


def drawn(model: dr.Model, starts: Any, frames: int = 3) -> np.ndarray:
    drawer = dr.Choice(steps=2).drawer(model, members=2, precision="float32")
    return rolled(drawer, starts, frames)


def test_the_fit_is_that_of_least_squares(tmp_path: Path) -> None:
    fields = read_fields(saved(with_cycle(of_years()), tmp_path / "a.nc"), "train")
    parts = year_parts(fields.trajectories[0].timing.times)[:, 0]  # pyright: ignore[reportAttributeAccessIssue]
    columns = [np.ones(len(parts))]
    for k in (1, 2, 3):
        columns += [np.cos(2 * np.pi * k * parts), np.sin(2 * np.pi * k * parts)]
    x = fields.frames(0, 0, len(parts)).astype(np.float64).reshape(len(parts), -1)
    expected = np.linalg.lstsq(np.stack(columns, 1), x)[0]
    np.testing.assert_allclose(curves(fields, [parts], 3).reshape(7, -1), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("trained_by", ["diffusion", "rolling"])
def test_a_field_that_is_its_climatology_is_forecast_exactly(tmp_path: Path, trained_by: str) -> None:
    data = with_cycle(of_years(noise=0))
    frames = 2 if trained_by == "rolling" else 1
    model = untrained(
        saved(data, tmp_path / "a.nc"),
        tmp_path / "run",
        anomalies=2,
        past=2,
        lead=2,
        trained_by=trained_by,
        frames=frames,
    )
    starts = held_out_starts(model, 3, 4)
    assert starts.truth is not None
    truth = np.stack([starts.truth(i) for i in range(4)])[:, None]
    assert np.ptp(truth, 2).max() > 5
    np.testing.assert_allclose(drawn(model, starts), np.broadcast_to(truth, (4, 2, *truth.shape[2:])), atol=2e-3)


@pytest.mark.parametrize("how", [{}, {"frames": 2, "difference": True}, {"past": 2, "every": 2, "noise": 0.1}])
@pytest.mark.parametrize("calendar", ["proleptic_gregorian", "360_day"])
def test_a_cycle_changes_nothing_but_what_it_adds(tmp_path: Path, how: dict[str, Any], calendar: str) -> None:
    data = of_years(calendar)
    added, made = cycle(data), []
    for name, part in {"plain": data, "cycle": with_cycle(data)}.items():
        model = trained(saved(part, tmp_path / f"{name}.nc"), tmp_path / name, anomalies=3, **how)
        starts = held_out_starts(model, 3, 4)
        made.append(drawn(model, starts))
    assert starts.places is not None
    first = len(data.time) - len(data.time) // 10  # of what is held out
    at = first + starts.places[:, 1, None] + 1 + np.arange(3)
    np.testing.assert_allclose(made[1], made[0] + added[at][:, None, :, None], rtol=0, atol=2e-2)
    assert np.abs(made[1] - made[0]).max() > 5


def test_scores_are_in_the_units_of_the_field(tmp_path: Path) -> None:
    """So that runs with anomalies and without are compared, and the season's baseline is there."""
    source = saved(with_cycle(of_years()), tmp_path / "a.nc")
    models = {
        name: untrained(source, tmp_path / name, anomalies=k) for name, k in {"fields": 0, "anomalies": 2}.items()
    }
    drawers = {name: dr.Choice(steps=2).drawer(model, members=2) for name, model in models.items()}
    scores = {
        name: forecast_scores(drawer.model, *window_members(drawer, 4)).by_name for name, drawer in drawers.items()
    }
    for name in ("persistence", "climatology", "season"):
        np.testing.assert_array_equal(scores["fields"][name].crps.value, scores["anomalies"][name].crps.value)
    assert scores["anomalies"]["forecast"].rmse.value[0] < scores["fields"]["forecast"].rmse.value[0]
    both = dr.compare([f"{tmp_path}/fields:1", f"{tmp_path}/anomalies:1"], members=2, count=2)
    assert "anomalies" in str(both)


def test_a_folder_is_written_and_gone_on_with_and_other_dates_are_other_starts(tmp_path: Path) -> None:
    data = with_cycle(of_years())
    model = untrained(saved(data, tmp_path / "a.nc"), tmp_path / "run", anomalies=2)
    file = saved(data.isel(time=slice(-8, None)), tmp_path / "start.nc")
    how: dict[str, Any] = {"frames": 3, "members": 2, "choice": dr.Choice(steps=1), "precision": "float32"}
    expected = np.array(dr.forecast(model, file, out=tmp_path / "out", **how).ensemble)
    assert np.abs(expected.mean((0, 1, 2)) - data.t.mean("time").values).max() < 60
    record = json.loads((tmp_path / "out" / "forecast.journal").read_text().splitlines()[-1])
    (tmp_path / "out" / "forecast.journal").write_text(json.dumps(record | {"frames": 1, "hashes": ""}) + "\n")
    again = dr.forecast(model, file, out=tmp_path / "out", **how)
    assert again.written.drawn == 4
    np.testing.assert_array_equal(again.ensemble, expected)
    later = data.isel(time=slice(-8, None))
    later = later.assign_coords(time=later.time + np.array([np.timedelta64(90, "D").astype(object)] * 8))
    moved = read_starts(saved(later, tmp_path / "later.nc"), model)
    assert not np.allclose(drawn(model, moved), expected, atol=1)
    with pytest.raises(ValueError, match=r"holds forecasts .*starts|differ"):
        dr.forecast(model, tmp_path / "later.nc", out=tmp_path / "out", **how)


def test_hidden_points_are_the_mean(tmp_path: Path) -> None:
    data = with_cycle(of_years())
    hidden = np.random.default_rng(0).random((8, 16)) < 0.3
    model = untrained(
        saved(data.where(~xarray.DataArray(hidden, dims=("lat", "lon"))), tmp_path / "a.nc"), tmp_path / "run",
        anomalies=2, mask="auto",
    )  # fmt: skip
    x = drawn(model, held_out_starts(model, 3, 2))
    mean = forecast_of(model).statistics.mean[0]
    np.testing.assert_allclose(x[..., hidden], mean, rtol=1e-6)
    assert np.abs(x[..., ~hidden] - mean).max() > 5


def test_fields_without_dates_or_of_a_part_of_the_year_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", fields=np.random.default_rng(0).normal(size=(20, 12, 1, 8, 16)).astype(np.float32))
    with pytest.raises(ValueError, match="a/train has no dates, of which a climatology is computed: drop --anomalies"):
        experiment(tmp_path / "a.npz", anomalies=2)
    data = of_years()
    summers = data.isel(time=data.time.dt.month.isin([6, 7, 8]))
    with pytest.raises(
        ValueError, match=r"no frame in 7.% of the year, .* 1 harmonic.*one in every 33%: train on whole"
    ):
        experiment(saved(summers, tmp_path / "summers.nc"), anomalies=1)
    with pytest.raises(ValueError, match="anomalies"):
        Forecasting(anomalies=-1)
    model = untrained(saved(data, tmp_path / "b.nc"), tmp_path / "run", anomalies=2)
    with pytest.raises(ValueError, match="starts have no dates, of which the climatology of the run is computed"):
        dr.forecast(model, np.random.default_rng(0).normal(280, 5, (2, 1, 8, 16)).astype(np.float32), frames=1)
    ready = Prognostic(model)
    coords = ready.input_coords()
    del coords["batch"]
    with pytest.raises(ValueError, match="starts have no dates"):
        ready(torch.full([len(values) for values in coords.values()], 280.0), coords)


def test_runs_without_anomalies_are_what_they_were(tmp_path: Path) -> None:
    """Their identity does not name them; that of a run with some has the number of harmonics alone."""
    source = saved(of_years(), tmp_path / "a.nc")
    plain, one, two = (experiment(source, anomalies=k).condition for k in (0, 1, 2))
    assert isinstance(plain, Forecast)
    assert isinstance(one, Forecast)
    assert isinstance(two, Forecast)
    assert "anomalies" not in plain.identity["condition"]
    assert one.identity["condition"]["anomalies"] == 1
    assert replace(two, anomalies=one.anomalies).identity == one.identity
    assert {**two.identity["condition"], "anomalies": 1} == one.identity["condition"]


def test_the_window_of_a_server_is_that_of_a_roll_out(tmp_path: Path) -> None:
    model = untrained(saved(with_cycle(of_years()), tmp_path / "a.nc"), tmp_path / "run", anomalies=2)
    drawer = dr.Choice(steps=2).drawer(model, members=2, precision="float32")
    service = ForecastService(model)
    work = service.work(1, seed=0, count=1, members=2, most=8)
    expected = drawn(model, held_out_starts(model, service.frames), service.frames)[1:2]
    shown = work.draw(drawer, drawer.denoiser, lambda state: None)
    np.testing.assert_allclose(shown, expected, rtol=1e-5)
