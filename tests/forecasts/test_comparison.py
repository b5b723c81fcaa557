"""A comparison of forecasts: it resumes to the same bits, says what it measured, and is a call of Python."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forecasts.made_forecasts import CHANNELS, WIDTH, experiment_of
from runs.made import saved_random
from trouble import forked

import dualrate as dr
from dualrate.comparison import compare as comparison
from dualrate.forecasts.comparison import ForecastYardstick
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.evaluation import forecast_scores, window_members
from dualrate.forecasts.folder import JOURNAL, ForecastArray
from dualrate.runs.store import load
from dualrate.system.progress import Silent

REQUESTS = ("first=ahead:2", "second=ahead:3")
TIMES = ("seconds_per_image", "seconds_alone", "ran_on")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working directory, with a run `ahead` of 70 trajectories; little is timed, few members are drawn at once."""
    walk = np.random.default_rng(0).normal(size=(70, 6, CHANNELS, WIDTH)).cumsum(1).astype(np.float32)
    np.savez(tmp_path / "fields.npz", fields=walk)
    saved_random(experiment_of(tmp_path / "fields.npz", Forecast(noise=0.1)), tmp_path / "ahead")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparison, "BATCH", 2)
    as_measured = ForecastYardstick.as_measured
    monkeypatch.setattr(ForecastYardstick, "as_measured", lambda *of: replace(as_measured(*of), batch_size=6))
    return tmp_path


def run(out: str | None = "report.html", *requests: str, **options: Any):
    how = {"members": 2, "progress": Silent(), "device": "cpu"}
    return dr.compare(requests or REQUESTS, out, **(how | options))


def figures() -> list[dict[str, Any]]:
    """All numbers but times."""
    front = json.loads(Path("report.json").read_text())["front"]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in front]


def killed(place: type, name: str, at: int) -> Callable[[], None]:
    """A comparison that dies right before the call number `at` of a method."""

    def dies() -> None:
        calls, method = count(1), getattr(place, name)

        def called(*of: Any, **how: Any) -> Any:
            if next(calls) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return method(*of, **how)

        setattr(place, name, called)
        run()

    return dies


def test_a_killed_comparison_continues_to_the_same_bits(here, monkeypatch):
    """Killed between two candidates; within the second one; and right before its row is kept."""
    run()
    expected, rows = figures(), kept_rows()
    assert len(expected) == len(rows) == 2
    drawn: list[int] = []
    write = ForecastArray.write
    monkeypatch.setattr(ForecastArray, "write", lambda array, part: drawn.append(part.x.size) or write(array, part))
    run()
    assert (figures(), drawn) == (expected, [])  # nothing is drawn again
    pieces = run_anew(expected, drawn)
    for moment, left in ((pieces // 2 + 1, pieces // 2), (pieces // 2 + 2, pieces // 2 - 1)):
        forget()
        assert forked(killed(ForecastArray, "write", moment)) == -signal.SIGKILL
        assert len(kept_rows()) == 1  # that of the first candidate
        assert bool([*Path("report.cells").glob(f"*/{JOURNAL}")]) == (left < pieces // 2)
        drawn.clear()
        run()
        assert (figures(), len(drawn)) == (expected, left)
        assert not [*Path("report.cells").glob(f"*/{JOURNAL}")]  # of no more use


def run_anew(expected: list[dict[str, Any]], drawn: list[int]) -> int:
    """The number of batches of both candidates."""
    forget()
    run()
    assert figures() == expected
    return len(drawn)


def kept_rows() -> list[Path]:
    """The files of rows, without those of times."""
    return [file for file in Path("report.cells").glob("*.json") if "-times-" not in file.name]


def forget() -> None:
    for file in Path("report.cells").glob("*.json"):
        file.unlink()


def test_a_row_has_the_scores_of_a_window_and_what_its_forecast_costs(here):
    results = run(None)
    model = load("ahead")
    drawer = replace(dr.Choice(2).drawer(model), members=2, batch_size=6)
    report, row = forecast_scores(drawer.model, *window_members(drawer)), results.finished[0].row
    crps = report.by_name["forecast"].crps
    assert row.score.value == crps.value.mean()
    assert row.score.low < row.score.value < row.score.high
    assert np.array_equal(results.finished[0].replicates["CRPS"], crps.replicates.mean(1))
    assert results.finished[0].more["scores"] == report.plain()
    assert row.macs == drawer.cost.macs
    assert row.seconds_per_image > 0 < results.finished[0].seconds_alone
    columns, frames = ForecastYardstick.columns(results.finished[0]), len(crps.value)
    assert columns["MFLOPs a frame"] == f"{2 * row.macs / frames / 1e6:.3g}"
    assert columns["ms a frame"] == f"{1000 * row.seconds_per_image / frames:.3g}"
    scored = dr.evaluate(drawer)
    assert scored.plain["macs_per_frame"] == row.macs / frames
    assert f"{row.macs / frames / 1e6:.4g} million multiply-adds a frame" in repr(scored)
    assert "clips" not in scored.plain


def test_results_print_and_show(here):
    results = run(None, "ahead:2", "ahead:3", count=6)
    shown = str(results)
    assert "6 forecasts per row" in shown
    assert "a forecast: one window from a start, of 2 members; FLOPs and ms are a member's" in shown
    assert "of persistence and" in shown
    assert "spread / skill" in shown
    assert "ms a forecast." in shown
    assert repr(results) == shown  # as the last line of an interactive session
    assert "<table>" in results._repr_html_()
    assert "By lead time." in results.page
    assert not Path("report.html").exists()


def test_progress_names_an_interval_where_there_is_one(here, capsys):
    for starts, interval in ((4, False), (6, True)):
        run(None, "ahead:2", count=starts, progress=None)
        measured = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("1/1 ahead"))
        assert ("[" in measured) is interval
        assert "nan" not in measured


def test_a_candidate_that_bursts_is_not_the_best(here, monkeypatch):
    measure = ForecastYardstick.measure

    def burst(yardstick: ForecastYardstick, drawer: dr.Drawer, *of: Any) -> Any:
        measured = measure(yardstick, drawer, *of)
        if drawer.plan.num_steps == 3:
            score = replace(measured.row.score, value=math.nan, low=math.nan, high=math.nan)
            measured = replace(measured, row=replace(measured.row, score=score))
        return measured

    monkeypatch.setattr(ForecastYardstick, "measure", burst)
    results = run()
    assert "is first in 2 steps" in str(results)
    assert [row["value"] for row in figures()][1] is None
    assert results.ties == []


def test_forecasts_and_images_do_not_compare(here):
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.savez("images.npz", images=images)
    net = dr.UViTConfig(image_size=8, image_channels=1, levels=(dr.Level("conv", 8, 1),), embedding=16, head_dim=8)
    experiment = dr.Experiment(
        "pictures", dr.OneNetwork(net), dr.DenoisingConfig(), dr.FitConfig(1), dr.DataConfig("images.npz")
    )
    saved_random(experiment, here / "pictures")
    for requests in (("ahead:2", "pictures:2"), ("pictures:2", "ahead:2")):
        with pytest.raises(ValueError, match=r"makes (images|forecasts) and .* (images|forecasts): compare what makes"):
            run(None, *requests)


def test_time_that_is_over_leaves_the_rest_to_the_same_call(here):
    few = run("report.html", *REQUESTS, "third=ahead:4", minutes=1e-9)
    assert few.unfinished == ["1 of 3 candidates were not measured in time."]
    assert len(run("report.html", *REQUESTS, "third=ahead:4").finished) == 3
