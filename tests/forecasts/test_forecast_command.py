"""`dualrate forecast` goes on where it was, says what it did, and refuses in one line."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from cli.command import call
from forecasts.made_forecasts import CHANNELS, WIDTH, experiment_of
from forecasts.test_rollout import by_lead
from runs.made import ONE, saved_random

from dualrate.forecasts.condition import Forecast
from dualrate.runs.train import FORECAST, check_out

OPTIONS = ("--steps", 2, "--members", 2, "--frames", 3, "--precision", "float32")


@pytest.fixture
def run(tmp_path) -> Path:
    walk = np.random.default_rng(0).normal(size=(10, 8, CHANNELS, WIDTH)).cumsum(1).astype(np.float32)
    np.savez(tmp_path / "fields.npz", fields=walk)
    return saved_random(experiment_of(tmp_path / "fields.npz", Forecast(noise=0.1)), tmp_path / "run")


def without_page(monkeypatch) -> None:
    """Its figures take seconds."""
    monkeypatch.setattr("dualrate.forecasts.forecast.forecast_page", lambda *of: "a page")


def test_the_same_command_goes_on_and_reports(run, tmp_path, monkeypatch, capsys):
    reports = []
    without_page(monkeypatch)
    for _ in range(2):
        more = ("--pictures", "--format", "npz", "--json")
        assert call(monkeypatch, "forecast", run, "--out", tmp_path / "out", *OPTIONS, *more) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert [(one["starts"], one["members"], one["frames"], one["frames_drawn"]) for one in reports] == [
        (5, 2, 3, 30),
        (5, 2, 3, 0),
    ]
    assert reports[0]["macs_per_frame_at_first"] < reports[0]["macs_per_frame_later"]
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert reports[0]["scores"] == reports[1]["scores"] == scores
    assert [len(scores[name]["leads"]) for name in ("forecast", "persistence", "climatology")] == [3, 3, 3]
    assert set(scores["variables"]) == {"u0", "u1"}
    assert "stable" in reports[0]["stability"]
    names = ("forecast.npy", "truth.npy", "forecast.npz", "forecast.png", "forecast.webp", FORECAST, "index.html")
    assert all((tmp_path / "out" / name).is_file() for name in names)
    with pytest.raises(ValueError, match="holds a forecast: choose another --out"):
        check_out("run", tmp_path / "out")
    assert "--frames 3" in json.loads((tmp_path / "out" / FORECAST).read_text())["calls"][0]["command"]


def test_starts_of_a_file_and_what_is_refused(run, tmp_path, monkeypatch, capsys):
    without_page(monkeypatch)
    np.save(tmp_path / "mine.npy", np.zeros((2, CHANNELS, WIDTH), np.float32))
    mine = ("--from", tmp_path / "mine.npy")
    assert call(monkeypatch, "forecast", run, "--out", tmp_path / "out", *OPTIONS, *mine) == 0
    assert np.load(tmp_path / "out" / "forecast.npy").shape == (1, 2, 3, CHANNELS, 1, WIDTH)
    assert not (tmp_path / "out" / "truth.npy").exists()
    one, capsys_text = saved_random(ONE, tmp_path / "one"), capsys.readouterr
    assert call(monkeypatch, "sample", run, "--out", tmp_path / "pictures") == 2
    assert "a forecast makes fields, not pictures" in capsys_text().err
    for command, words in (
        ((run, "--out", tmp_path / "out", *OPTIONS, *mine, "--starts", 3), "got 3 as --starts"),
        ((run, "--out", tmp_path / "out", *OPTIONS), "holds other forecasts"),
        ((one, "--out", tmp_path / "new", *OPTIONS), "one is no forecast"),
    ):
        capsys_text()
        assert call(monkeypatch, "forecast", *command) == 2
        assert words in capsys_text().err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_forecast_that_is_stopped_has_the_exit_code_of_the_page(run, tmp_path, how):
    words = ["forecast", run, "--out", tmp_path / "out", *OPTIONS, "--frames", 50_000]
    command = [sys.executable, "-m", "dualrate_command", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "forecast.npy").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    page = (Path(__file__).parents[2] / "docs" / "faults.md").read_text()
    (row,) = (line for line in page.splitlines() if "`forecast`" in line and "is stopped" in line)
    assert row.endswith("| 130 after Ctrl-C, else 128 + signal |")
    assert process.returncode == (130 if how is signal.SIGINT else -how)  # a shell reports -signal as 128 + signal
    assert ("the same command goes on" in said.splitlines()[-1]) == (how is signal.SIGINT)


def test_a_stop_before_the_first_frame_says_that_the_command_goes_on(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dualrate.forecasts.folder.ForecastArray", Mock(side_effect=KeyboardInterrupt))
    assert call(monkeypatch, "forecast", run, "--out", tmp_path / "out", *OPTIONS) == 130
    assert "keeps what it has; the same command goes on" in capsys.readouterr().err


def test_scores_are_written_before_stability_is_judged(run, tmp_path, monkeypatch):
    without_page(monkeypatch)
    monkeypatch.setattr("dualrate.forecasts.forecast.judged", Mock(side_effect=MemoryError))
    assert call(monkeypatch, "forecast", run, "--out", tmp_path / "out", *OPTIONS) != 0
    assert (tmp_path / "out" / "scores.json").is_file()


def test_some_lead_times_alone(run, tmp_path, monkeypatch, capsys):
    without_page(monkeypatch)
    by_lead(tmp_path / "fields.npz", tmp_path / "leads", 4)
    told = []
    for stride, frames in ((1, 4), (2, 2), (4, 1)):
        words = ("--steps", 2, "--members", 2, "--precision", "float32", "--stride", stride, "--frames", frames)
        out = tmp_path / f"out{stride}"
        assert call(monkeypatch, "forecast", tmp_path / "leads", "--out", out, *words, "--starts", 2, "--json") == 0
        told.append(json.loads(capsys.readouterr().out) | {"x": np.load(out / "forecast.npy")})
    assert {one["last_lead_time"] for one in told} == {4.0}
    for one, stride in zip(told, (1, 2, 4), strict=True):
        np.testing.assert_allclose(one["x"], told[0]["x"][:, :, stride - 1 :: stride], rtol=1e-5, atol=1e-5)
    windows = [one["macs_per_frame_at_first"] * one["frames"] for one in told]
    assert windows[0] > windows[1] > windows[2]
    assert call(monkeypatch, "forecast", run, "--out", tmp_path / "none", "--stride", 2) == 2
    assert "--stride: only for forecasts trained with --window leads" in capsys.readouterr().err


def test_evaluate_and_compare_score_a_window(run, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "evaluate", run, "--steps", 2, "--members", 3, "--num", 6) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("lead time steps")
    assert any(line.startswith("u1 ") for line in lines)
    page = tmp_path / "report.html"
    requests = (f"first={run}:2", f"second={run}:3")
    assert call(monkeypatch, "compare", *requests, "--members", 2, "--out", page) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["first", "second"]
    made = json.loads(page.with_suffix(".json").read_text())
    rows, tied = made["front"], made["not_distinguishable_from_the_best"]
    assert (rows[0]["metric"], rows[0]["low"], tied) == ("CRPS", None, [])  # too few starts, so no intervals
    assert rows[0]["value"] == pytest.approx(rows[0]["scores"]["forecast"]["leads"][0]["crps"])
    assert "<svg" in page.read_text()
    assert call(monkeypatch, "compare", *requests, "--features", "inception", "--mixed", "--out", page) == 2
    assert "--features: only for runs that make images" in capsys.readouterr().err
    twin = saved_random(experiment_of(tmp_path / "fields.npz", Forecast()), tmp_path / "twin" / run.name)
    assert call(monkeypatch, "compare", f"{run}:2", f"{twin}:2", "--out", page) == 2
    assert f"two runs are called {run.name!r}: name them" in capsys.readouterr().err
    other = saved_random(experiment_of(tmp_path / "fields.npz", Forecast(lead=2)), tmp_path / "other")
    assert call(monkeypatch, "compare", run, other, "--out", page) == 2
    assert "they differ in lead" in capsys.readouterr().err
    assert call(monkeypatch, "evaluate", run, "--keep", tmp_path / "kept") == 2
    assert "--keep: only for runs that make images" in capsys.readouterr().err
