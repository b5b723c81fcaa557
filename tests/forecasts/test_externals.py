"""Static fields and forcings: what is known beside the past."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import pytest
import torch
import xarray
from forecasts.made_forecasts import rolled
from forecasts.made_globes import LATITUDES, LONGITUDES, experiment, saved, small_networks, trained, untrained, waves

import dualrate as dr
from dualrate.cli.main import parsed
from dualrate.config.serial import from_plain, to_plain
from dualrate.diffusion.random import Draws
from dualrate.experiment.data_config import DataConfig
from dualrate.forecasts.condition import Forecast, Windows
from dualrate.forecasts.externals import EQUINOX, TILT, Externals, Forcings, beside, zenith
from dualrate.forecasts.folder import write_forecast
from dualrate.forecasts.geometry import from_text, to_text
from dualrate.forecasts.model import begins, with_stride
from dualrate.forecasts.recipe import Forecasting
from dualrate.forecasts.rollout import roll_out
from dualrate.forecasts.starts import Starts, held_out_starts, read_starts
from dualrate.system.progress import Silent

ALL = ("day", "hour", "sun", "s")
HEIGHT = np.random.default_rng(3).normal(500, 200, (8, 16))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks(monkeypatch)


def world(frames: int = 60) -> xarray.Dataset:
    """A variable t that is forecast, s that is known ahead, and the height z."""
    data = waves("ts", frames=frames)
    data["z"] = ("lat", "lon"), HEIGHT
    return data


# Channels


def test_the_sun_stands_where_it_does() -> None:
    """At noon above the equator at an equinox, above a tropic at a solstice; half the day up at any latitude then."""
    latitudes, longitudes = np.array([66.0, 23.44, 0.0, -23.44, -80.0]), np.array([0.0, 90.0, 180.0, 270.0])
    noon = zenith(np.array([[EQUINOX, 0.5], [EQUINOX + 0.25, 0.5], [EQUINOX, 0.25]]), latitudes, longitudes)
    np.testing.assert_allclose(noon[0, :, 0], np.cos(np.deg2rad(latitudes)), atol=1e-12)
    assert noon[1, 1, 0] == pytest.approx(1)
    assert noon[1, 4].max() == 0
    assert noon[2, 2, 1] == pytest.approx(1)
    assert noon[2, 2, 3] == 0


def test_the_mean_sun_of_a_day_is_its_closed_form() -> None:
    """(H sin a sin d + cos a cos d sin H) / pi, cos H = -tan a tan d, of latitude a and declination d."""
    year, day = 0.4, (np.arange(4000) + 0.5) / 4000
    latitudes = np.array([50.0, 10.0, -30.0])
    mean = zenith(np.stack((np.full(4000, year), day), -1), latitudes, np.zeros(1)).mean(0)[:, 0]
    d, a = np.arcsin(np.sin(TILT) * np.sin(2 * np.pi * (year - EQUINOX))), np.deg2rad(latitudes)
    half = np.arccos(-np.tan(a) * np.tan(d))
    expected = (half * np.sin(a) * np.sin(d) + np.cos(a) * np.cos(d) * np.sin(half)) / np.pi
    np.testing.assert_allclose(mean, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("date", "year", "day"),
    [
        (np.datetime64("2021-07-02T12", "ns"), 182.5 / 365, 0.5),
        (np.datetime64("2020-03-01T06", "ns"), 60.25 / 366, 0.25),
        (cftime.DatetimeNoLeap(2020, 3, 1, 18), 59.75 / 365, 0.75),
        (cftime.Datetime360Day(1900, 12, 30), 359 / 360, 0),
    ],
)
def test_dates_of_all_calendars_have_a_place_in_the_year_and_day(date: Any, year: float, day: float) -> None:
    dates = np.array([date]) if isinstance(date, np.datetime64) else np.array([date], object)
    forcings = Forcings(Externals(forcings=("hour", "day"), hours=6), Forecast().geometry, (2, 3), dates, None)  # type: ignore[arg-type]
    y = forcings([0, 0, 0])
    assert y.shape == (3, 4, 2, 3)
    assert (y == y[:1, :, :1, :1]).all()
    angles = 2 * np.pi * np.array([day, day, year, year])
    np.testing.assert_allclose(
        y[0, :, 0, 0], [np.sin(angles[0]), np.cos(angles[0]), np.sin(angles[2]), np.cos(angles[2])], atol=1e-6
    )
    later = Forcings(forcings.externals, Forecast().geometry, (2, 3), dates, None)([0], 4)  # type: ignore[arg-type]
    np.testing.assert_allclose(later[0, :2], y[0, :2], atol=1e-6)  # 24 hours later


def test_the_recipe_names_what_it_observes_besides_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = DataConfig(str(saved(world(40), tmp_path / "a.nc")))
    _ = Forecasting(data, past=2, frames=2, static=("z",), forcings=("day", "sun"))()
    says = "observed as (9, 8, 16) (C, H, W), of these 1 static (z), 4 of forcings (day, sun), with noise of 0"
    assert says in capsys.readouterr().err
    _ = Forecasting(data, past=2)()
    assert "observed as (4, 8, 16) (C, H, W) with noise" in capsys.readouterr().err


def test_windows_have_the_forcings_of_their_own_dates(tmp_path: Path) -> None:
    data = world(120)
    task = Forecasting(
        DataConfig(str(saved(data, tmp_path / "a.nc"))), past=2, frames=2, lead=3, every=2, static=("z",), forcings=ALL
    )(Silent()).condition
    assert isinstance(task, Forecast)
    assert (task.variables, task.externals.hours, task.externals.channels) == (("t",), 6.0, 8)
    fields = task.read_fields(DataConfig(str(tmp_path / "a.nc")), "train")
    assert fields.fingerprint == task.fingerprint
    numbers = np.array([0, 5, 20])
    draws = Draws(0, torch.from_numpy(numbers))
    y = task.observe(Windows(fields, task).pasts().rows(numbers, draws, Forecasting().data.augment), draws)
    assert tuple(y.shape[1:]) == task.shape((2, 8, 16)) == (2 + 8 + 1, 4, 8)
    for row, first in zip(y.double().numpy(), numbers, strict=True):
        now = data.isel(time=first + 3)
        year, hour = (
            (float(now.time.dt.dayofyear) - 1 + float(now.time.dt.hour) / 24) / 366,
            float(now.time.dt.hour) / 24,
        )
        angles = 2 * np.pi * np.array([year, hour])
        expected = [np.sin(angles[0]), np.cos(angles[0]), np.sin(angles[1]), np.cos(angles[1])]
        np.testing.assert_allclose(row[2:6, 0, 0], expected, atol=1e-6)
        for k in (0, 1):
            at = data.isel(time=first + 3 + 3 * (k + 1))
            part = (float(at.time.dt.dayofyear) - 1 + float(at.time.dt.hour) / 24) / 366, float(at.time.dt.hour) / 24
            np.testing.assert_allclose(row[6 + k], zenith(np.array(part), LATITUDES, LONGITUDES)[::2, ::2], atol=1e-6)
            train = data.s[:108].values.astype(np.float64)
            expected = (at.s.values[::2, ::2] - train.mean()) / train.std()
            np.testing.assert_allclose(row[8 + k], expected, atol=1e-5)
        np.testing.assert_allclose(row[10], ((HEIGHT - HEIGHT.mean()) / HEIGHT.std())[::2, ::2], atol=1e-6)


def test_members_share_what_is_known_of_their_start() -> None:
    past, forcings = torch.arange(6.0).reshape(6, 1, 1, 1), torch.arange(3.0).reshape(3, 1, 1, 1)
    assert beside(past, forcings).flatten(1).tolist() == [[0, 0], [1, 0], [2, 1], [3, 1], [4, 2], [5, 2]]
    assert beside(past, None) is past


def test_packed_fields_are_restored() -> None:
    fields = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    np.testing.assert_array_equal(from_text(to_text(fields), np.float32), fields)
    with pytest.raises(ValueError, match="is no static field"):
        from_text(to_text(fields)[:-8], np.float32)
    with pytest.raises(ValueError, match=r"\(1 of 0 bytes\)"):  # however many it holds
        from_text("0x0x0:" + to_text(fields).partition(":")[2])


# Runs


def frames_of(model: dr.Model, starts: Starts, frames: int = 3, seed: int = 0) -> np.ndarray:
    drawer = dr.Choice(steps=2).drawer(model, members=2, batch_size=8, precision="float32")
    return rolled(drawer, starts, frames, seed=seed)


@pytest.mark.parametrize("how", [{}, {"trained_by": "rolling", "frames": 3}], ids=str)
def test_a_forecast_knows_what_is_ahead(tmp_path: Path, how: dict[str, Any]) -> None:
    """As from held-out data from a file whose last frames have forcings alone; others, or other dates, change it."""
    data = world(100)
    model = untrained(saved(data, tmp_path / "a.nc"), tmp_path / "run", static=("z",), forcings=ALL, **how)
    held = held_out_starts(model, 3, 1)
    expected, places, dates = frames_of(model, held), held.places, held.dates
    assert places is not None
    assert dates is not None
    last = int(places[0, 1]) + 90
    assert data.time.values[last] == dates[0]
    later = data.isel(time=slice(last - 2, None))
    own = later.assign(t=later.t.where(later.time <= dates[0])).drop_vars("z")
    mine = read_starts(saved(own, tmp_path / "own.nc"), model, pytest.fail)
    np.testing.assert_array_equal(frames_of(model, mine), expected)
    for i, other in enumerate((own.assign(s=own.s + 3), own.assign_coords(time=own.time + np.timedelta64(9, "h")))):
        changed = read_starts(saved(other, tmp_path / f"{i}.nc"), model, pytest.fail)
        assert changed.digest() != mine.digest()
        assert (frames_of(model, changed) != expected).any()
    with pytest.raises(ValueError, match="the forcings s are known for"):
        frames_of(model, mine, 60)
    np.save(tmp_path / "array.npy", own.t.values[:3, None])
    with pytest.raises(ValueError, match="no variable s, a forcing"):
        read_starts(tmp_path / "array.npy", model)
    with pytest.raises(ValueError, match="no variable s among t"):
        read_starts(saved(own.drop_vars("s"), tmp_path / "without.nc"), model)


@pytest.mark.parametrize("how", [{"frames": 2}, {"trained_by": "rolling", "frames": 3}], ids=str)
def test_what_is_known_ahead_is_looked_at_before_anything_is_written(tmp_path: Path, how: dict[str, Any]) -> None:
    """All of it, not that of the first window alone: a folder goes on with no others, of too few nothing is made."""
    data = world(60)
    model = untrained(saved(data, tmp_path / "a.nc"), tmp_path / "run", forcings=("s",), **how)
    drawer = dr.Choice(steps=2).drawer(model, precision="float32")
    now = data.isel(time=slice(40, None)).drop_vars("z")
    now["t"] = now.t.where(now.time <= now.time[2])

    def starts(data: xarray.Dataset, name: str) -> Starts:
        return read_starts(saved(data, tmp_path / f"{name}.nc"), model, lambda text: None)

    write_forecast(drawer, starts(now, "mine"), 6, tmp_path / "out")
    others = now.assign(s=now.s.where(now.time < now.time[7], 300))
    with pytest.raises(ValueError, match="holds other forecasts"):
        write_forecast(drawer, starts(others, "others"), 6, tmp_path / "out")
    for other, message in (
        (now.isel(time=slice(7)), "the forcings s are known for"),
        (now.assign(s=now.s.where(now.time != now.time[7])), "the forcing s has numbers that are not finite: fill"),
    ):
        with pytest.raises(ValueError, match=message):
            write_forecast(drawer, starts(other, message[:12]), 6, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_held_out_starts_have_what_is_known_ahead_of_whole_windows(tmp_path: Path) -> None:
    """Also where the last window is not used to its end."""
    model = untrained(saved(world(100), tmp_path / "a.nc"), tmp_path / "run", forcings=("s",), frames=2)
    starts = held_out_starts(model, 3)
    assert starts.digest(begins(model, 3)) != starts.digest()


def test_a_start_is_the_last_frame_of_what_is_forecast(tmp_path: Path) -> None:
    """Whatever else the file has numbers of after it."""
    data = world(60)
    model = untrained(saved(data, tmp_path / "a.nc"), tmp_path / "run", forcings=("s",))
    own = data.isel(time=slice(40, None)).drop_vars("z")
    own = own.assign(t=own.t.where(own.time <= own.time[2]), u=own.s + 1)
    assert read_starts(saved(own, tmp_path / "own.nc"), model, lambda text: None).dates == own.time.values[2]


def test_a_forecast_goes_on_with_its_forcings_and_none_of_other_dates(tmp_path: Path) -> None:
    model = untrained(saved(world(), tmp_path / "a.nc"), tmp_path / "run", forcings=("day", "sun"))
    drawer = dr.Choice(steps=2).drawer(model, members=2, precision="float32")
    starts = held_out_starts(model, 4, 2)
    whole = frames_of(model, starts, 4)
    earlier = [*roll_out(drawer, starts, 4, earlier=lambda some, members: whole[:, :, :2])]
    assert [block.frames for block in earlier] == [range(2, 3), range(3, 4)]
    np.testing.assert_array_equal(np.concatenate([block.x for block in earlier], 2), whole[:, :, 2:])
    forcings = starts.forcings
    assert forcings is not None
    assert forcings.dates is not None
    other = replace(starts, forcings=replace(forcings, dates=forcings.dates + np.timedelta64(8, "D")))
    assert other.digest() != starts.digest()


def test_frames_may_be_left_out(tmp_path: Path) -> None:
    how = {"frames": 4, "window": "leads", "forcings": ("sun", "s")}
    model = untrained(saved(world(100), tmp_path / "a.nc"), tmp_path / "run", **how)
    starts = held_out_starts(model, 4, 1)
    every = frames_of(model, starts, 4)
    np.testing.assert_allclose(frames_of(with_stride(model, 2), starts, 2), every[:, :, 1::2], rtol=1e-5)


def test_a_run_that_was_trained_so_forecasts_by_the_command(tmp_path: Path) -> None:
    source = saved(world(), tmp_path / "a.nc")
    model = trained(source, tmp_path / "run", static=("z",), forcings=("day", "s"), rate="single")
    parsed(["forecast", str(tmp_path / "run"), "--frames", "2", "--starts", "1", "--out", str(tmp_path / "out")]).run()
    assert np.load(tmp_path / "out" / "forecast.npy").shape == (1, 1, 2, 1, 8, 16)
    assert model.experiment.condition.externals.statics == ("z",)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_static_field_of_another_file_is_found_by_its_points(tmp_path: Path) -> None:
    source = saved(waves(), tmp_path / "a.nc")
    height = world(2)[["z"]].expand_dims("time").isel(lat=slice(None, None, -1))
    file = saved(height, tmp_path / "height.nc")
    one = experiment(source, static=(f"{file}:z",)).condition
    beside = saved(world(40).drop_vars("s"), tmp_path / "b.nc")
    other = experiment(beside, static=("z",)).condition
    assert one.externals.fields == other.externals.fields  # pyright: ignore[reportAttributeAccessIssue]
    moved = saved(height.assign_coords(lon=height.lon + 5), tmp_path / "moved.nc")
    with pytest.raises(ValueError, match=r"moved.nc has lon from 5 to .*bring it to the points"):
        experiment(source, static=(f"{moved}:z",))
    with pytest.raises(ValueError, match="has no variable orog: it has z"):
        experiment(source, static=(f"{file}:orog",))


@pytest.mark.parametrize("option", ["static", "mask"])
@pytest.mark.parametrize("chosen", [(), ("t",)])
def test_what_varies_in_time_is_no_static_field_and_no_mask(
    tmp_path: Path, option: str, chosen: tuple[str, ...]
) -> None:
    data = world()
    data["snow"] = data.t
    source, beside = saved(data, tmp_path / "a.nc"), saved(data.rename(time="valid_time"), tmp_path / "b.nc")
    for name in ("snow", f"{beside}:snow"):
        with pytest.raises(
            ValueError, match=r"snow of .* varies in time, .* --forcings snow takes it.*or write one time"
        ):
            experiment(source, variables=chosen, **{option: (name,) if option == "static" else name})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"static": ("orog",)}, "has no variable orog over space alone; it has z: give one of these or FILE:VARIABLE"),
        ({"static": ("flat",)}, "flat is the same at all points"),
        ({"forcings": ("moon",)}, "there is no variable moon among t, s"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    data = world()
    if how == {"static": ("flat",)}:
        data["flat"] = ("lat", "lon"), np.ones((8, 16))
    with pytest.raises(ValueError, match=message):
        experiment(saved(data, tmp_path / "a.nc"), **how)


def test_forcings_need_dates_and_places(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", fields=np.random.default_rng(0).normal(size=(20, 6, 1, 8, 16)))
    with pytest.raises(ValueError, match="has no dates, of which day is computed"):
        experiment(tmp_path / "a.npz", forcings=("day",))
    placeless = world().drop_vars(["lat", "lon"])
    with pytest.raises(ValueError, match="does not say its latitudes and longitudes"):
        experiment(saved(placeless, tmp_path / "b.nc"), forcings=("sun",))
    model = untrained(saved(world(), tmp_path / "a.nc"), tmp_path / "dated", forcings=("day",))
    np.save(tmp_path / "array.npy", np.stack([world()[name].values[:1] for name in "ts"], 1))
    with pytest.raises(ValueError, match="the starts have no dates, of which day is computed"):
        read_starts(tmp_path / "array.npy", model)


def test_a_run_of_before_has_the_same_identity() -> None:
    task = Forecast(variables=("t",))
    plain = to_plain(task)
    externals = plain.pop("externals")
    assert from_plain(Forecast, plain) == task
    assert from_plain(Externals, externals) == Externals()
    assert "externals" not in task.identity["condition"]
    assert "externals" in replace(task, externals=Externals(forcings=("day",))).identity["condition"]


def test_runs_without_known_channels_go_on_as_those_of_before_there_were_any():
    without = Forecast(1, 3, 2, externals=Externals(lead=2, frames=3))
    assert "externals" not in without.identity["condition"]
    assert without.identity == Forecast(1, 3, 2).identity
    for some in (Externals(forcings=("day",)), Externals(statics=("land",))):
        assert "externals" in replace(without, externals=some).identity["condition"]
