"""Scores of a forecast, of the last frame again, and of random frames, where all are known in closed form."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forecasts.made_forecasts import CHANNELS, WIDTH, experiment_of
from runs.made import saved_random

import dualrate as dr
from dualrate.drawing.choice import Choice
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.evaluation import WITHOUT_MODEL, bad_news, forecast_scores, judged
from dualrate.forecasts.fields import Fields
from dualrate.forecasts.folder import write_forecast
from dualrate.forecasts.model import forecast_of
from dualrate.forecasts.page import _spectra, _steady_panel, forecast_page
from dualrate.forecasts.scores import Score
from dualrate.forecasts.stability import Stability
from dualrate.forecasts.starts import Starts, held_out_starts
from dualrate.report.figures import svg
from dualrate.runs.store import load

MEMBERS, FRAMES, RHO = 24, 4, 0.8


LEADS = tuple(map(float, range(1, FRAMES + 1)))


@pytest.fixture(scope="module")
def autoregression(tmp_path_factory):
    """x_{t+1} = rho x_t + sqrt(1 - rho^2) n, of mean 5 and deviations 1 and 3: a model, starts, a true forecast."""
    path, random = tmp_path_factory.mktemp("data") / "fields.npz", np.random.default_rng(0)
    x = random.normal(size=(120, 40, CHANNELS, WIDTH))
    for t in range(1, x.shape[1]):
        x[:, t] = RHO * x[:, t - 1] + math.sqrt(1 - RHO**2) * x[:, t]
    scale = np.array([1.0, 3.0])[:, None]
    np.savez(path, fields=(5 + scale * x).astype(np.float32))
    model = load(saved_random(experiment_of(path, Forecast()), path.parent / "run"))
    starts = held_out_starts(model, FRAMES, 200)
    last = (starts.past[:, -1] - 5) / scale[:, None]
    drawn = np.empty((200, MEMBERS, FRAMES, *last.shape[1:]), np.float32)
    before = np.broadcast_to(last[:, None], (200, MEMBERS, *last.shape[1:]))
    for t in range(FRAMES):
        before = RHO * before + math.sqrt(1 - RHO**2) * random.normal(size=before.shape)
        drawn[:, :, t] = 5 + scale[:, None] * before
    return model, starts, drawn


@pytest.fixture(scope="module")
def found(autoregression):
    return forecast_scores(*autoregression)


def test_scores_are_those_of_the_process(autoregression, found):
    """CRPS s / sqrt(pi) of a law with deviation s; of the last frame mean |x_0 - x_t|, and correlation rho^t."""
    starts = autoregression[1]
    left = np.array([math.sqrt(1 - RHO ** (2 * t)) for t in LEADS])
    apart = np.array([math.sqrt(2 - 2 * RHO**t) for t in LEADS])
    np.testing.assert_allclose(found.by_name["forecast"].crps.value, left / math.sqrt(math.pi), rtol=0.03)
    np.testing.assert_allclose(found.by_name["persistence"].crps.value, apart * math.sqrt(2 / math.pi), rtol=0.03)
    np.testing.assert_allclose(found.by_name["climatology"].crps.value, 1 / math.sqrt(math.pi), rtol=0.03)
    np.testing.assert_allclose(found.by_name["regression"].crps.value, left / math.sqrt(math.pi), rtol=0.1)
    np.testing.assert_allclose(found.skill["climatology"].value, 1 - left, atol=0.03)
    assert (found.skill["regression"].low < 0.1).all()
    shares = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(found.by_name["climatology"].brier.value, [shares * (1 - shares)] * FRAMES, rtol=0.2)
    np.testing.assert_allclose(found.by_name["persistence"].correlation.value, [RHO**t for t in LEADS], atol=0.03)
    np.testing.assert_allclose(found.by_name["climatology"].correlation.value, 0, atol=0.03)
    np.testing.assert_allclose(found.by_name["forecast"].spread_skill.value, 1, atol=0.05)
    np.testing.assert_allclose(found.by_name["forecast"].edges.value, 1, atol=0.2)
    assert set(starts.groups.bincount().tolist()) == {16, 17}  # 200 starts of 12 trajectories


def test_chunks_of_starts_change_nothing(autoregression, monkeypatch):
    model, starts, drawn = autoregression
    starts, drawn = replace(starts, past=starts.past[:30], places=starts.places[:30]), drawn[:30]
    whole = forecast_scores(model, starts, drawn).by_name["forecast"]
    monkeypatch.setattr("dualrate.forecasts.evaluation.AT_A_TIME", 7 * drawn[0].size)
    parts = forecast_scores(model, starts, drawn).by_name["forecast"]
    assert np.array_equal(whole.crps.value, parts.crps.value)
    assert np.array_equal(whole.ranks, parts.ranks)
    at_once = judged(model, starts, drawn).stability.ratios
    monkeypatch.setattr("dualrate.forecasts.evaluation.JUDGED", 3 * drawn[0, :, 0].size)  # pieces of a start
    np.testing.assert_allclose(judged(model, starts, drawn).stability.ratios, at_once)


def test_a_forecast_without_a_model_has_some_members_however_many_are_scored(autoregression, monkeypatch):
    """Its fair score is the same in the mean, and is not paid for."""
    model, starts, drawn = autoregression
    monkeypatch.setattr("dualrate.forecasts.evaluation.RANDOM", 3)
    found = forecast_scores(model, starts, drawn).by_name
    assert {name: found[name].members for name in ("forecast", "climatology", "regression")} == {
        "forecast": drawn.shape[1],
        "climatology": 3,
        "regression": 3,
    }
    np.testing.assert_allclose(found["climatology"].crps.value, 1 / math.sqrt(math.pi), rtol=0.05)


def test_tables_and_plain_values(found):
    """By variable in its own units: the second is three times the first."""
    lines = str(found).splitlines()
    assert lines[0].split()[:3] == ["lead", "time", "steps"]
    assert [line.split()[0] for line in lines[1 : FRAMES + 1]] == ["1", "2", "3", "4"]
    assert [line.split()[0] for line in lines[-5:-2]] == ["variable", "u0", "u1"]
    table, mine = found.tables[0], found.by_name["forecast"]
    shown = {"RMSE of mean": mine.rmse, "spread / skill": mine.spread_skill, "correlation": mine.correlation}
    for name, score in {**shown, "of regression": found.by_name["regression"].crps}.items():
        assert [row[table.header.index(name)] for row in table.cells] == [f"{value:.3f}" for value in score.value]
    beside = {"forecast", "skill", "variables", "left_out", "starts"}
    assert {"season", *found.plain()} == {*WITHOUT_MODEL} | beside
    assert set(found.plain()["skill"][0]) >= {"lead", "persistence", "climatology_low", "regression_high"}
    assert {"brier_10", "brier_50_low", "brier_90_high"} <= set(found.plain()["variables"]["u1"]["leads"][0])
    left = np.array([math.sqrt(1 - RHO ** (2 * t)) for t in LEADS]) / math.sqrt(math.pi)
    np.testing.assert_allclose(found.by_variable["u0"].crps.value, left, rtol=0.04)
    np.testing.assert_allclose(found.by_variable["u1"].crps.value, 3 * left, rtol=0.04)


@pytest.mark.filterwarnings("error")
def test_beside_a_baseline_that_is_perfect_there_is_no_skill_and_no_warning(found):
    mine, base = found.by_name["forecast"], found.by_name["persistence"]
    exact = replace(base, crps=Score(0 * base.crps.value, 0 * base.crps.replicates, base.crps.groups))
    scores = replace(found, by_name={"forecast": mine, "persistence": exact})
    assert np.isneginf(scores.skill["persistence"].value).all()
    json.loads(json.dumps(scores.plain()), parse_constant=pytest.fail)


def test_a_constant_channel_counts_in_no_score(autoregression, found, tmp_path):
    """Its deviation of 0 is replaced by 1, so its errors would be in units of their own."""
    model, _, drawn = autoregression
    alone = found.by_variable["u0"].crps.value / model.experiment.condition.statistics.std[0]
    fields = np.load(model.experiment.data.source)["fields"]
    fields[:, :, 1] = 7
    np.savez(tmp_path / "fields.npz", fields=fields)
    other = load(saved_random(experiment_of(tmp_path / "fields.npz", Forecast()), tmp_path / "run"))
    held = held_out_starts(other, FRAMES, 200)
    wrong = drawn.copy()
    wrong[:, :, :, 1] = 1e3
    found = forecast_scores(other, held, wrong)
    np.testing.assert_allclose(found.by_name["forecast"].crps.value, alone, rtol=1e-5)
    assert (found.left_out, list(found.by_variable)) == (("u1",), ["u0"])
    assert "constant in the training data, so in no score: u1" in str(found)


def test_brackets_are_explained_where_there_are_some(found):
    few = replace(found.by_name["forecast"], crps=replace(found.by_name["forecast"].crps, replicates=np.empty(0)))
    for report, says in (
        (found, "brackets: 95%"),
        (replace(found, by_name={**found.by_name, "forecast": few}), "no intervals"),
    ):
        text = str(report)
        assert says in text
        assert ("[" in text.splitlines()[1]) == (says == "brackets: 95%")


def test_members_of_the_law_are_stable_and_others_fail_where_they_leave_it(autoregression):
    """The process stays within; twice the deviation from frame 3 on fails there, what stands still at once."""
    model, starts, drawn = autoregression
    found = judged(model, starts, drawn)
    assert found.stability.first is None
    assert found.says.startswith("stable: from frame 1 to 4")
    np.testing.assert_allclose(found.stability.ratios[:, :, :2], 1, rtol=0.1)
    louder = drawn.copy()
    louder[:, :, 2:, 1] = 5 + 2 * (louder[:, :, 2:, 1] - 5)
    failed = judged(model, starts, louder)
    assert failed.stability.first == 2
    assert "stable from frame 1 to 2: at frame 3 the" in failed.says
    assert "of u1 is" in failed.says
    still = np.broadcast_to(starts.past[:, None], (200, 3, FRAMES, *starts.past.shape[2:]))
    assert "not stable: at frame 1 the rate of change of u0 is 0 times" in judged(model, starts, still).says
    far = replace(starts, past=starts.past + 100)  # no frame before the first
    assert judged(model, far, drawn).stability.first == 0
    noisy = replace(model.experiment, condition=replace(forecast_of(model), noise=0.1))
    for other, first in ((model, 0), (replace(model, experiment=noisy), None)):  # observed in full, or with noise
        found = judged(other, replace(far, observed=True), drawn).stability
        assert found.first == first
        assert np.isnan(found.ratios[0, :, 0]).all() == (first is None)
    burst = drawn.copy()
    burst[0, 0, 3] = np.nan
    assert judged(model, starts, burst).stability.first == 3


def test_of_a_long_lead_only_the_frames_that_are_compared_are_read(autoregression, tmp_path, monkeypatch):
    model, starts, _ = autoregression
    far = load(saved_random(experiment_of(Path(model.experiment.data.source), Forecast(lead=30)), tmp_path / "run"))
    read, whole = [], Fields.frames
    monkeypatch.setattr(Fields, "frames", lambda *of: read.append(of[1:]) or whole(*of))
    x = np.repeat(starts.past[:, None], 2, 1)
    judged(far, starts, x)
    assert {count for _, _, count in read} == {1}
    assert all(later == (i, first + 30, 1) for (i, first, _), later in zip(read[::2], read[1::2], strict=True))


def test_more_members_than_training_frames(autoregression, monkeypatch):
    """A climatology of fewer members: its fair CRPS has the same mean."""
    monkeypatch.setattr("dualrate.forecasts.seasons.LOOKED_AT", MEMBERS // 2)
    model, starts, drawn = autoregression
    found = forecast_scores(model, starts, drawn)
    assert found.by_name["climatology"].members == MEMBERS // 2
    np.testing.assert_allclose(found.by_name["climatology"].crps.value, 1 / math.sqrt(math.pi), rtol=0.1)


def test_starts_without_truth_have_no_scores(autoregression):
    model, starts, drawn = autoregression
    unknown = Starts(starts.past, "mine")
    with pytest.raises(ValueError, match="truth of these starts is unknown"):
        forecast_scores(model, unknown, drawn)


def test_spectra_are_those_of_their_lead_times(autoregression, tmp_path):
    model, starts, drawn = autoregression
    done = write_forecast(Choice(steps=2).drawer(model, members=2), replace(starts, truth=None, known=0), 3, tmp_path)
    center = np.array(model.experiment.condition.statistics.mean, np.float32)[:, None, None]
    grown = (drawn[:, :, :3] - center) * np.array([1, 2, 4], np.float32)[:, None, None, None] + center
    found = _spectra(forecast_of(model), replace(done, x=grown, truth=None), None, None)
    first, *others = (sum(curves["members"]) for curves in found.values())
    np.testing.assert_allclose(others, [4 * first, 16 * first], rtol=0.2)


def test_a_channel_that_never_changes_leaves_the_others_their_line():
    """Its change is 0 over 0, which no bound judges."""
    members, training = torch.ones(3, 2, 5), torch.ones(8, 2, 5)
    members[:, 1, 0] = training[:, 1, 0] = 0
    found = Stability.of((1, 2, 3), ("a", "mask"), members, training, 4)
    assert found.first is None
    np.testing.assert_allclose(_steady_panel(found).lines["rate of change"].value, 1)


def test_the_worst_news_comes_first_in_plain_words(autoregression):
    """The law itself has none; the last frame again, members half as far apart, and a burst, have theirs."""
    model, starts, drawn = autoregression

    def news(x: np.ndarray, burst: int = 0) -> list[str]:
        return bad_news(forecast_scores(model, starts, x), judged(model, starts, x), burst)

    assert [line for line in news(drawn) if "a linear regression" not in line] == []
    still = np.repeat(np.repeat(starts.past[:, None], 2, 1), FRAMES, 2)
    lines = news(still, 3)
    assert lines[0] == "3 member(s) end in numbers that are not finite."
    assert "No better than the last known frame again at 4 of 4 lead times, from 1 time steps." in lines
    assert "Not stable: at frame 1 members no longer look like the training data." in lines
    mean = drawn.mean(1, keepdims=True)
    assert any("the last" not in line and "their spread is 0.00 times" in line for line in lines)
    for factor, words in ((0.5, "too much alike: their spread is"), (2, "too far apart: their spread is")):
        (line,) = (line for line in news(mean + factor * (drawn - mean)) if words in line)
        assert float(line.partition(" spread is ")[2].split()[0]) == pytest.approx(factor, abs=0.1 * factor)
    unscored = replace(starts, truth=None, known=0)
    assert bad_news(None, judged(model, unscored, drawn), 0) == []


def test_a_run_that_stopped_before_its_end_is_the_first_bad_news(autoregression, tmp_path):
    model, _, _ = autoregression
    early = model.with_experiment(
        replace(model.experiment, fit=replace(model.experiment.fit, iterations=12_000, max_seconds=5))
    )
    says = f"This run stopped at iteration {model.iteration} of 12,000."
    done = dr.forecast(early, 2, frames=2, members=2, choice=Choice(steps=2), out=tmp_path / "out")
    assert done.plain()["bad_news"].startswith(says)
    assert says in done.page
    whole = dr.forecast(model, 2, frames=2, members=2, choice=Choice(steps=2))
    assert "stopped" not in whole.page + whole.plain()["bad_news"]


def test_a_page_shows_scores_pictures_and_stability(autoregression, tmp_path, monkeypatch):
    """Starts have no known truth: members beside the training data: its figures are as those before."""
    model, _, _ = autoregression
    drawer = Choice(steps=2).drawer(model, members=2)
    held = held_out_starts(model, 2, 2)
    monkeypatch.setattr("dualrate.forecasts.page.svg", svg)
    for known, svgs in ((held, 6), (Starts(held.past, "mine.npy"), 4)):
        done = write_forecast(drawer, known, 2, tmp_path / f"{svgs}")
        scored = forecast_scores(model, known, done.x) if known.truth else None
        page = forecast_page(forecast_of(model), done, scored, judged(model, known, done.x))
        assert page.count("<svg") == svgs
        monkeypatch.setattr("dualrate.forecasts.page.svg", lambda figure: "<svg></svg>")
        words = ("Scores by lead time", "Ranks of the truth") if known.truth else ("The truth is not known",)
        assert all(one in page for one in (*words, "the training data&#39;s", "Variable u0"))
        first = page.index('<p class="lead">')
        assert page.index("Not stable: at frame 1") < page.index("2 members of 2 starts")
        assert "<p" not in page[page.index("<h1>") : first]
