"""Starts within a file of one's own, scored against what comes after them there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from cli.command import call
from forecasts.made_globes import LATITUDES, saved, small_networks, untrained, waves

import dualrate as dr
from dualrate.forecasts.geometry import row_areas
from dualrate.forecasts.packing import unrounded


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks(monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> dr.Model:
    return untrained(saved(waves("ts"), tmp_path / "train.nc"), tmp_path / "run", past=2)


OWN = waves("ts", seed=1, frames=12)
HOW: dict[str, Any] = {"frames": 3, "members": 2, "choice": dr.Choice(1), "note": lambda text: None}


def frames_of(data: xarray.Dataset) -> np.ndarray:
    return np.stack([data.t.values, data.s.values], 1)


def test_starts_within_a_file_are_scored_against_what_follows_them(tmp_path: Path, model: dr.Model) -> None:
    file, whole = saved(OWN[["s", "t"]].isel(lat=slice(None, None, -1)), tmp_path / "own.nc"), frames_of(OWN)
    results = [dr.forecast(model, each, count=4, **HOW) for each in (file, OWN, whole)]
    for result in results:
        starts = result.written.starts
        assert starts.places is not None
        assert starts.places[:, 1].tolist() == [1, 3, 5, 8]  # evenly, from the first that has a past to the last truth
        for i, at in enumerate(starts.places[:, 1]):
            np.testing.assert_array_equal(starts.past[i], whole[at - 1 : at + 1])
            np.testing.assert_array_equal(result.truth[i], whole[at + 1 : at + 4])  # pyright: ignore[reportOptionalSubscript]
        assert result.scores is not None
        area, task = row_areas(LATITUDES), model.experiment.condition
        std: Any = np.array(task.statistics.std)[:, None, None]  # pyright: ignore[reportAttributeAccessIssue]
        errors = np.abs(result.truth[:, 0] - starts.past[:, -1]) / std  # pyright: ignore[reportOptionalSubscript]
        expected = (errors.mean((0, 1, 3)) * area).sum() / area.sum()
        np.testing.assert_allclose(result.scores.by_name["persistence"].crps.value[0], expected, rtol=1e-5)
        assert result.ensemble.tobytes() == results[0].ensemble.tobytes()
        assert str(result.scores) == str(results[0].scores).replace(str(file), "an array") or result is results[0]
    np.testing.assert_array_equal(results[0].dataset.init_time, OWN.time.values[[1, 3, 5, 8]])
    assert "starts: 4 of an array" in str(results[1])


def test_a_dataset_is_not_packed_anew_as_the_files_that_it_came_from(tmp_path: Path, model: dr.Model) -> None:
    """xarray keeps the packing of the first of several files."""
    packing = {name: {"dtype": "int16", "scale_factor": 1e-4, "add_offset": 0.5} for name in ("t", "s")}
    data = OWN.copy()
    for name, encoding in packing.items():
        data[name].encoding = encoding
    starts = dr.forecast(model, data, **HOW).written.starts
    np.testing.assert_allclose(starts.past[0], frames_of(OWN)[-2:], rtol=1e-6)


def test_latest_frames_have_nothing_to_be_scored_against(tmp_path: Path, model: dr.Model) -> None:
    result = dr.forecast(model, saved(OWN, tmp_path / "own.nc"), **HOW)
    assert result.scores is None
    assert result.dataset.init_time.values == OWN.time.values[-1:]
    assert "own.nc: nothing comes after them to score against; --starts (in Python count) takes" in str(result)


def test_files_that_end_early_score_what_they_have(tmp_path: Path, model: dr.Model) -> None:
    short = saved(OWN.isel(time=slice(4)), tmp_path / "short.nc")
    result = dr.forecast(model, short, count=1, **HOW)
    assert result.truth is not None
    assert result.truth.shape[:2] == (1, 2)
    assert result.ensemble.shape[2] == 3
    with pytest.raises(ValueError, match=r"2 of the 3 frame.*got 2 as --starts .in Python count.: so many allow"):
        dr.forecast(model, short, count=2, **HOW)
    with pytest.raises(ValueError, match=r"at most 2 time step\(s\) in a row.*give a longer file, or the latest"):
        dr.forecast(model, saved(OWN.isel(time=slice(2)), tmp_path / "two.nc"), count=1, **HOW)


def test_what_is_between_the_starts_is_checked(tmp_path: Path, model: dr.Model) -> None:
    holes = OWN.copy(deep=True)
    holes.s[3, 2, 5] = np.nan
    words = r"channel 1 \(s\) holds nan at 2020-01-01T18:00, lat 33.75, lon 112.5 .*: 1."
    with pytest.raises(ValueError, match=words):
        dr.forecast(model, saved(holes, tmp_path / "holes.nc"), count=2, **HOW)
    one = untrained(saved(waves("ts"), tmp_path / "a.nc"), tmp_path / "one")  # one frame has no step
    slow = OWN.assign_coords(time=OWN.time.values[0] + 2 * (OWN.time.values - OWN.time.values[0]))
    with pytest.raises(ValueError, match="12 hours between its time steps, and one was trained on 6 hours: give"):
        dr.forecast(one, slow, count=2, **HOW)
    gap = OWN.isel(time=[0, 1, 2, 3, 4, 8, 9, 10, 11])
    places = dr.forecast(model, gap, count=3, **HOW | {"frames": 2}).written.starts.places
    assert places is not None
    assert places[:, 1].tolist() == [1, 2, 6]


def test_without_the_training_data_a_line_says_that_nothing_is_scored(tmp_path: Path, model: dr.Model) -> None:
    notes: list[str] = []
    (tmp_path / "train.nc").unlink()
    result = dr.forecast(model, OWN, count=2, **HOW | {"note": notes.append})
    assert (result.scores, len(result.ensemble)) == (None, 2)
    assert any("not scored, since scores need the training data" in note for note in notes)


def test_a_number_of_starts_is_said_once(model: dr.Model) -> None:
    assert len(dr.forecast(model, count=1, **HOW).ensemble) == 1  # of held-out data
    with pytest.raises(ValueError, match="got 3 starts and count=2"):
        dr.forecast(model, 3, count=2, **HOW)


def test_observed_points_alone_have_no_truth(tmp_path: Path) -> None:
    model = untrained(saved(waves("ts"), tmp_path / "a.nc"), tmp_path / "some", every=2)
    some = OWN.isel(lat=slice(None, None, 2), lon=slice(None, None, 2))
    assert len(dr.forecast(model, some, **HOW).ensemble) == 1
    with pytest.raises(ValueError, match=r"the observed points alone, so that no truth is known: drop .* count"):
        dr.forecast(model, some, count=1, **HOW)


def test_the_command_scores_starts_of_a_file(
    tmp_path: Path, model: dr.Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(OWN, tmp_path / "own.nc")
    options = ("--frames", 2, "--members", 2, "--steps", 1, "--device", "cpu", "--from", file)
    run = tmp_path / "run"
    assert (
        call(monkeypatch, "forecast", run, *options, "--starts", 3, "--region", "tropics", "--out", tmp_path / "a") == 0
    )
    said = "".join(capsys.readouterr())
    assert "starts: 3 of" in said
    assert "own.nc; of each the truth of 2 frame(s) is known" in said
    assert "of persistence" in said
    assert "tropics" in said
    assert (tmp_path / "a" / "scores.json").exists()
    assert call(monkeypatch, "forecast", run, *options, "--out", tmp_path / "b") == 0
    assert "nothing comes after them to score against; --starts (in Python" in "".join(capsys.readouterr())


@pytest.mark.parametrize("name", ["t", None])
def test_a_field_alone_is_not_packed_anew_either(tmp_path: Path, name: str | None) -> None:
    field = OWN["t"].rename(name)
    field.encoding = {"dtype": "int16", "scale_factor": 0.5}
    field.to_netcdf(tmp_path / "a.nc", encoding=unrounded(field))
    np.testing.assert_allclose(xarray.open_dataarray(tmp_path / "a.nc").values, field.values, rtol=1e-6)
    assert unrounded(xarray.Dataset()) == {}
