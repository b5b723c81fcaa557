"""Scores by region, at thresholds, and beside a climatology of the time of the year."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scoringrules
import torch
import xarray
from forecasts.made_globes import LATITUDES, LONGITUDES, saved, small_networks, untrained, waves

import dualrate as dr
from dualrate.cli.main import parsed
from dualrate.forecasts.evaluation import forecast_scores
from dualrate.forecasts.geometry import Geometry, row_areas
from dualrate.forecasts.metadata import Coordinate, Description
from dualrate.forecasts.seasons import Seasons
from dualrate.forecasts.starts import held_out_starts
from dualrate.forecasts.views import Reliability, Views

AXES = tuple(
    Coordinate(name, (i,), tuple(values.tolist()), Description(f"degrees_{side}"))
    for i, (name, values, side) in enumerate((("lat", LATITUDES, "north"), ("lon", LONGITUDES, "east")))
)
AREAS = np.broadcast_to(row_areas(LATITUDES)[:, None], (8, 16))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks(monkeypatch)


@pytest.mark.parametrize(
    ("region", "rows", "columns"),
    [
        ("-90:90", range(8), range(16)),
        ("tropics", (3, 4), range(16)),
        ("20:90,-30:50", (0, 1, 2), (15, 0, 1, 2)),
        ("-60:-30,170:200", (5, 6), (8,)),
        ("-60:-30,180:-160", (5, 6), (8,)),
        ("0:90,0:360", range(4), range(16)),
    ],
)
def test_regions_hold_the_points_within_their_bounds(region: str, rows, columns) -> None:
    inside = Views((region,)).inside(Geometry(AXES))[region]
    expected = np.zeros((8, 16), bool)
    expected[np.ix_([*rows], [*columns])] = True
    np.testing.assert_array_equal(inside, expected)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (Views(("mars",)), "region 'mars' is none; expected SOUTH:NORTH"),
        (Views(("1:2:3",)), "region '1:2:3' is none"),
        (Views(("1:2",)), "region 1:2 holds no point of the data, latitude -78.75 to 78.75"),
        (Views((), ("u:3",)), "threshold 'u:3' is none; expected VARIABLE:VALUE, with one of t, s"),
        (Views((), ("t:warm",)), "threshold 't:warm' is none"),
        (Views((), ("t:nan",)), "threshold 't:nan' is none"),
        (Views((), ("t:inf",)), "threshold 't:inf' is none"),
        (Views((), ("3",)), "threshold '3' is none"),
    ],
)
def test_what_is_no_region_or_threshold_is_refused(views: Views, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = views.inside(Geometry(AXES)), views.thresholds(("t", "s"))
    with pytest.raises(ValueError, match="does not know its latitudes and longitudes: drop --region"):
        Views(("tropics",)).inside(Geometry())


def test_reliability_and_brier_scores_are_those_of_scoringrules() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(30, 5, 2, 4, 6)), random.normal(size=(30, 2, 4, 6))
    weights = random.uniform(0.5, 1.5, (2, 4, 6))
    event = Reliability(1, 0.3, torch.from_numpy(weights))
    for part in (slice(0, 11), slice(11, 30)):
        event.add([(torch.from_numpy(x[part]), torch.from_numpy(y[part]))])
    (row,) = event.rows([6.0])
    share, above = (x[:, :, 1] > 0.3).mean(1), (y[:, 1] > 0.3).astype(float)
    mean = np.average(np.asarray(scoringrules.brier_score(above, share)).mean(0), weights=weights[1])
    assert row["brier"] == pytest.approx(mean)
    fair = np.average((np.square(share - above) - share * (1 - share) / 4).mean(0), weights=weights[1])
    assert row["brier_fair"] == pytest.approx(fair)
    assert row["probability"] == [0, 0.2, 0.4, 0.6, 0.8, 1]
    for p, w, observed in zip(row["probability"], row["share"], row["observed"], strict=True):
        here = weights[1] * np.isclose(share, p)
        assert w == pytest.approx(here.sum() / (30 * weights[1].sum()))
        assert observed == pytest.approx((here * above).sum() / here.sum())
    assert row["frequency"] == pytest.approx(np.average(above.mean(0), weights=weights[1]))
    json.dumps(row, allow_nan=False)


def years(calendar: str = "standard") -> xarray.Dataset:
    """Three years of every fifth day of 360, whose field is the time of the year."""
    frames = 3 * 73
    data = waves(frames=frames)
    part = (np.arange(frames) % 73) / 73
    data["t"] = data.t * 0 + xarray.DataArray(part.astype(np.float32), dims="time") + 1e-4 * (data.t - 280)
    times = np.datetime64("2001-01-01", "ns") + np.arange(frames) * np.timedelta64(5, "D")
    if calendar != "standard":
        times = xarray.date_range("2001-01-01", periods=frames, freq="5D", calendar=calendar, use_cftime=True)
    return data.assign_coords(time=("time", times))


@pytest.mark.parametrize("calendar", ["standard", "noleap"])
def test_the_climatology_of_a_season_is_of_the_same_time_of_the_year(tmp_path: Path, calendar: str) -> None:
    model = untrained(saved(years(calendar), tmp_path / "a.nc"), tmp_path / "run")
    starts = held_out_starts(model, 4, 5)
    truth, training = starts.truth, starts.training
    assert truth is not None
    assert training is not None
    seasons, lacking = Seasons.of(training, starts.dates, 4, 1)
    assert seasons is not None
    assert not lacking
    frames = torch.from_numpy(training.frames(0, 0, len(training)))[: seasons.near.shape[2]]
    for lead, members in enumerate(seasons.drawn(frames, range(5), 6, 4)):
        came = np.stack([truth(i)[lead] for i in range(5)])
        apart = (members.numpy() - came[:, None] + 0.5) % 1 - 0.5
        assert np.abs(apart).max() < 1 / 24 + 0.02
        assert (np.ptp(members.numpy().mean((2, 3, 4)), axis=1) > 0.02).all()
    scores = forecast_scores(model, starts, np.zeros((5, 3, 4, 1, 8, 16), np.float32))
    assert scores.by_name["season"].crps.value.mean() < scores.by_name["climatology"].crps.value.mean() / 4
    assert "season" in scores.skill
    assert (
        "season" not in forecast_scores(model, replace(starts, dates=None), starts.past[:, None].repeat(4, 2)).by_name
    )


def test_a_season_wants_a_year(tmp_path: Path) -> None:
    model = untrained(saved(waves(), tmp_path / "a.nc"), tmp_path / "run")
    starts = held_out_starts(model, 1, 1)
    assert starts.training is not None
    assert Seasons.of(starts.training, starts.dates, 1, 1) == (None, "")


def monthly(frequency: str, frames: int) -> xarray.Dataset:
    times = xarray.date_range("2001-01-01", periods=frames, freq=frequency, calendar="noleap", use_cftime=True)
    data = waves(frames=frames).assign_coords(time=("time", times))
    data["t"].values += np.arange(frames, dtype=np.float32)[:, None, None]  # which tells frames apart
    return data


def test_a_season_of_few_dates_is_all_of_them_and_none_other(tmp_path: Path) -> None:
    """Six years of months: the same month of the five that are trained on, whatever the number of members."""
    model = untrained(saved(monthly("MS", 72), tmp_path / "a.nc"), tmp_path / "run")
    starts = held_out_starts(model, 2, 3)
    assert starts.training is not None
    assert starts.places is not None
    seasons, _ = Seasons.of(starts.training, starts.dates, 2, 1)
    assert seasons is not None
    frames = torch.arange(len(starts.training), dtype=torch.float32)[:, None, None, None]
    for lead, members in enumerate(seasons.drawn(frames, range(3), 20, 2)):
        assert members.shape[1] == 5
        for start, months in enumerate(members[:, :, 0, 0, 0].numpy().astype(int)):
            latest = len(starts.training) + starts.places[start, 1]
            assert (
                sorted(months) == [at for at in range(len(starts.training)) if (at - latest - lead - 1) % 12 == 0][:5]
            )
    few = next(iter(seasons.drawn(frames, range(3), 2, 2)))
    assert few.shape[1] == 2
    x = np.repeat(starts.past[:, None], 20, 1).repeat(2, 2)
    scores = forecast_scores(model, starts, x)
    assert (scores.by_name["season"].members, scores.by_name["climatology"].members) == (5, 20)


@pytest.mark.parametrize(
    ("frequency", "frames", "words"),
    [
        ("YS", 40, "no score of the season: all training frames are of the same time of the year, so see climatology"),
        ("MS", 20, "no score of the season: fewer than two training frames are, for some lead time, of the same time"),
    ],
)
def test_a_season_that_says_no_more_than_any_frames_is_left_out(
    tmp_path: Path, frequency: str, frames: int, words: str
) -> None:
    model = untrained(saved(monthly(frequency, frames), tmp_path / "a.nc"), tmp_path / "run")
    result = dr.forecast(model, 1, frames=1, members=2, choice=dr.Choice(1))
    assert result.scores is not None
    assert "season" not in result.scores.by_name
    assert words in str(result)
    assert words in result.page


def test_regions_and_thresholds_are_scored_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a region as if the rest were not there."""
    model = untrained(saved(waves("ts", frames=100), tmp_path / "a.nc"), tmp_path / "run")
    out, how = tmp_path / "out", ["--frames", "2", "--members", "3", "--starts", "6", "--seed", "1"]
    views = ["--region", "tropics", "20:90,-30:50", "--threshold", "t:280", "s:285.5"]
    parsed(["forecast", str(tmp_path / "run"), "--out", str(out), *how, *views]).run()
    said = capsys.readouterr().out
    assert "region" in said
    assert "Brier at 6" in said
    scores = json.loads((out / "scores.json").read_text())
    x, y = np.load(out / "forecast.npy").astype(np.float64), np.load(out / "truth.npy").astype(np.float64)
    assert [*scores["regions"]] == ["tropics", "20:90,-30:50"]
    inside = np.zeros((8, 16), bool)
    inside[:3, [15, 0, 1, 2]] = True
    std = np.array(dr.load(tmp_path / "run").experiment.condition.statistics.std)  # pyright: ignore[reportAttributeAccessIssue]
    for k, row in enumerate(scores["regions"]["20:90,-30:50"]["leads"]):
        crps = np.asarray(scoringrules.crps_ensemble(y[:, k], x[:, :, k], m_axis=1, estimator="fair"))
        each = (crps.mean(0) / std[:, None, None])[:, inside].mean(0)
        assert row["crps"] == pytest.approx(np.average(each, weights=AREAS[inside]), rel=1e-5)
    assert [len(rows) for rows in scores["thresholds"].values()] == [2, 2]
    for k, row in enumerate(scores["thresholds"]["s:285.5"]):
        above, share = y[:, k, 1] > 285.5, (x[:, :, k, 1] > 285.5).mean(1)
        mean = np.asarray(scoringrules.brier_score(above.astype(float), share)).mean(0)
        assert row["brier"] == pytest.approx(np.average(mean, weights=AREAS), rel=1e-5)
    with pytest.raises(ValueError, match="holds no point"):
        dr.forecast(model, 1, frames=1, views=Views(("1:2",)))
    with pytest.raises(ValueError, match="the truth of these starts is not known"):
        dr.forecast(model, tmp_path / "a.nc", frames=1, views=Views(("tropics",)))
