"""Scores of a forecast, of the last frame again, and of random frames, where all are known in closed form."""

import math

import numpy as np
import pytest
from drawing.test_rollout import CHANNELS, WIDTH, experiment_of
from runs.made import saved_random

from dualrate.data.forecast import Forecast
from dualrate.drawing.forecast import Starts, held_out_starts
from dualrate.drawing.forecast_folder import Written
from dualrate.drawing.forecast_scores import forecast_scores, plain_scores, scores_table
from dualrate.runs.store import load

MEMBERS, FRAMES, RHO = 24, 4, 0.8


class Leads:
    """Of a record, what scores read."""

    lead_times = tuple(map(float, range(1, FRAMES + 1)))


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


def written(starts: Starts, drawn: np.ndarray) -> Written:
    truth = np.stack([starts.truth(i) for i in range(len(starts))])
    return Written(drawn, truth, 0, 0.0, 0, Leads)  # pyright: ignore[reportArgumentType]


def test_scores_are_those_of_the_process(autoregression):
    """CRPS s / sqrt(pi) of a law with deviation s; of the last frame mean |x_0 - x_t|, and correlation rho^t."""
    model, starts, drawn = autoregression
    found = forecast_scores(model, starts, written(starts, drawn))
    left = np.array([math.sqrt(1 - RHO ** (2 * t)) for t in Leads.lead_times])
    apart = np.array([math.sqrt(2 - 2 * RHO**t) for t in Leads.lead_times])
    np.testing.assert_allclose(found["forecast"].crps.value, left / math.sqrt(math.pi), rtol=0.03)
    np.testing.assert_allclose(found["persistence"].crps.value, apart * math.sqrt(2 / math.pi), rtol=0.03)
    np.testing.assert_allclose(found["climatology"].crps.value, 1 / math.sqrt(math.pi), rtol=0.03)
    np.testing.assert_allclose(found["persistence"].correlation.value, [RHO**t for t in Leads.lead_times], atol=0.03)
    np.testing.assert_allclose(found["climatology"].correlation.value, 0, atol=0.03)
    np.testing.assert_allclose(found["forecast"].spread_skill.value, 1, atol=0.05)
    np.testing.assert_allclose(found["forecast"].edges.value, 1, atol=0.2)
    assert starts.block == math.ceil(200 / 12)  # of a trajectory


def test_chunks_of_starts_change_nothing(autoregression, monkeypatch):
    model, starts, drawn = autoregression
    whole = forecast_scores(model, starts, written(starts, drawn))["forecast"]
    monkeypatch.setattr("dualrate.drawing.forecast_scores.AT_A_TIME", 7 * drawn[0].size)
    parts = forecast_scores(model, starts, written(starts, drawn))["forecast"]
    assert np.array_equal(whole.crps.value, parts.crps.value)
    assert np.array_equal(whole.ranks, parts.ranks)


def test_a_table_and_plain_values(autoregression):
    model, starts, drawn = autoregression
    found = forecast_scores(model, starts, written(starts, drawn))
    lines = scores_table(found, "time").splitlines()
    assert lines[0].split()[:2] == ["lead", "time"]
    assert [line.split()[0] for line in lines[1 : FRAMES + 1]] == ["1", "2", "3", "4"]
    assert set(plain_scores(found)) == {"forecast", "persistence", "climatology"}


def test_more_members_than_training_frames(autoregression, monkeypatch):
    """A climatology of fewer members: its fair CRPS has the same mean."""
    monkeypatch.setattr("dualrate.drawing.forecast_scores.LOOKED_AT", MEMBERS // 2)
    model, starts, drawn = autoregression
    found = forecast_scores(model, starts, written(starts, drawn))
    assert found["climatology"].members == MEMBERS // 2
    np.testing.assert_allclose(found["climatology"].crps.value, 1 / math.sqrt(math.pi), rtol=0.1)


def test_starts_without_truth_have_no_scores(autoregression):
    model, starts, drawn = autoregression
    unknown = Starts(starts.past, "mine")
    with pytest.raises(ValueError, match="truth of these starts is not known"):
        forecast_scores(model, unknown, Written(drawn, None, 0, 0.0, 0, Leads))  # pyright: ignore[reportArgumentType]
