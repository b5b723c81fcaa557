"""`dr.forecast`: the command's numbers in one call, of starts in any form, in memory or in a folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.command import call

import dualrate as dr
from dualrate.forecasts.forecast import ForecastResult
from dualrate.forecasts.page import forecast_headline
from dualrate.forecasts.starts import held_out_starts

HOW = {"frames": 4, "members": 2, "choice": dr.Choice(2), "precision": "float32"}


@pytest.fixture(autouse=True)
def without_figures(monkeypatch) -> None:
    """They take seconds."""
    monkeypatch.setattr("dualrate.forecasts.forecast.forecast_page", lambda *of: "<p>a page</p>")


@pytest.fixture(scope="module")
def result(model) -> ForecastResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dualrate.forecasts.forecast.forecast_page", lambda *of: "<p>a page</p>")
        return dr.forecast(model, 2, **HOW)


def test_the_command_prints_what_the_call_returns(model, result, tmp_path, monkeypatch, capsys):
    words = ("--frames", 4, "--members", 2, "--steps", 2, "--starts", 2, "--precision", "float32", "--json")
    assert call(monkeypatch, "forecast", model.path, "--out", tmp_path / "out", *words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report.pop("scores") == json.loads(json.dumps(result.scores.plain()))
    assert report.pop("seconds_per_frame") > 0
    mine = {name: value for name, value in result.plain().items() if name != "seconds_per_frame"}
    assert {name: report[name] for name in mine} == json.loads(json.dumps(mine))
    assert np.array_equal(np.load(tmp_path / "out" / "forecast.npy"), result.ensemble)


def test_the_result_is_whole_and_prints_its_scores(result):
    assert result.ensemble.shape[:3] == (2, 2, 4)
    assert type(result.ensemble) is np.ndarray  # nothing of a folder that is gone
    assert result.truth is not None
    assert result.truth.shape[2:] == result.ensemble.shape[3:]
    assert result.page == "<p>a page</p>"
    text = str(result)
    assert text.startswith("2 members from 2 starts, 4 frames; ")
    assert str(result.scores) in text


def test_a_folder_holds_it_and_the_same_call_goes_on(model, result, tmp_path):
    first = dr.forecast(model, 2, out=tmp_path / "out", **HOW)
    again = dr.forecast(model, 2, out=tmp_path / "out", **HOW)
    assert (first.written.drawn, again.written.drawn) == (16, 0)
    assert np.array_equal(again.ensemble, result.ensemble)
    assert {"scores.json", "index.html"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_starts_are_an_array_a_file_or_those_of_the_data(model, result, tmp_path):
    starts = held_out_starts(model, 4, 2)
    assert np.array_equal(dr.forecast(model, starts, **HOW).ensemble, result.ensemble)
    frames = np.random.default_rng(0).normal(100, 3, (2, 3, *starts.past.shape[2:])).astype(np.float32)
    np.save(tmp_path / "mine.npy", frames)
    of_file = dr.forecast(model, str(tmp_path / "mine.npy"), **HOW)
    of_array = dr.forecast(model, frames, **HOW)
    assert np.array_equal(of_file.ensemble, of_array.ensemble)
    assert of_array.scores is None
    assert of_array.truth is None
    assert of_array.written.record.source == "an array"
    with pytest.raises(ValueError, match="time step"):
        dr.forecast(model, frames[:, :0], **HOW)
    with pytest.raises(ValueError, match=r"^starts holds an array of "):
        dr.forecast(model, frames[..., :-1], **HOW)


def test_a_notebook_shows_the_scores_as_tables_and_numpy_counts_starts(model: dr.Model) -> None:
    result = dr.forecast(model, np.int64(2), **HOW)
    assert result.written.record.starts == 2
    assert result._repr_html_().count("<table") == len(result.scores.tables) > 0
    alone = dr.forecast(model, np.repeat(result.written.starts.past[:, :, :, 0], 2, 1)[:, :3], **HOW)
    assert "<table" not in alone._repr_html_()


def test_a_correlation_that_is_low_at_once_is_said_so(model: dr.Model) -> None:
    """Not as a time before the first frame, which nobody can see."""
    result = dr.forecast(model, 2, **HOW)  # of random weights
    scores = result.scores.by_name["forecast"]
    assert scores.until.value[0] < scores.leads[0]
    assert "stays above 0.9 not even to the first frame and 0.8 until" in forecast_headline(result.written, scores)


def test_a_long_forecast_shows_how_far_it_is(model: dr.Model, monkeypatch, capsys) -> None:
    monkeypatch.setattr("dualrate.system.progress.QUIET", 1e9)
    dr.forecast(model, 2, **HOW)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("dualrate.system.progress.QUIET", -1.0)
    dr.forecast(model, 2, **HOW)
    assert re.search(r"^\d+/\d+ .* frames/s", capsys.readouterr().err, re.MULTILINE)


def test_the_name_of_a_model_is_refused_with_the_way_to_load_it(model: dr.Model) -> None:
    name = str(model.path)
    for use in (dr.forecast, dr.evaluate, dr.sample, lambda name, _: dr.Choice(steps=2).drawer(name)):
        with pytest.raises(TypeError, match=r"expected a model, got .* dr\.load"):
            use(name, 2)


def test_the_call_of_the_readme_runs(model, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "ahead").symlink_to(model.path)
    monkeypatch.chdir(tmp_path)
    page = Path(dr.__file__).with_name("forecasts") / "README.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block.replace("members=16", "members=2").replace("), 4,", "), 2,"), "README.md", "exec"), names)
    assert names["result"].ensemble.shape[:3] == (2, 2, 6)


def test_a_forecast_prints_in_a_screen_and_fields_are_no_pictures(model: dr.Model) -> None:
    assert len(repr(dr.forecast(model, 2, **HOW)).splitlines()) < 40
    with pytest.raises(ValueError, match="makes fields, not pictures: draw it by dualrate forecast"):
        dr.sample(model, 2)
