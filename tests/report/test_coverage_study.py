"""The study of coverage, on comparisons made up here: what noise it gives, and what it counts."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dualrate.report.figures import Point
from dualrate.report.saving import cost_at, side

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "studies"))

import coverage

NETWORKS = {"plan": coverage.DUAL, "1": "single", "4": "single", "other": "else"}
DEVIATIONS = {"plan": 0.1, "1": 0.2, "4": 0.2, "other": 0.3}


def made() -> tuple[list[Point], list[Point]]:
    """A plan of cost 1 and rivals with scores of 8 / cost, so that they pay twice as much for its 4."""
    line = [Point(str(cost), cost, 8 / cost, np.empty(0), "single") for cost in (1, 4)]
    return [Point("plan", 1, 4.0, np.empty(0), None)], [*line, Point("other", 9, 7.0, np.empty(0), None)]


TRUTH = coverage.Truth(*made(), NETWORKS, DEVIATIONS, coverage.paid(*made()))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(coverage, "EXPERIMENTS", 30)


def drawn(setting, seed: int) -> list[float]:
    own, rivals = made()
    draw = np.random.default_rng(seed).standard_normal
    seen = coverage.seen([*own, *rivals], DEVIATIONS, setting, draw)
    return [math.log(one.score / true.score) for one, true in zip(seen, [*own, *rivals], strict=True)]


@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_noise_has_the_size_of_its_interval_and_is_shared_as_said(shared):
    noise = np.array([drawn(coverage.Setting(shared, 4), seed) for seed in range(2000)])
    assert noise.std(0) == pytest.approx(np.array([*DEVIATIONS.values()]) / 2, rel=0.06)
    apart = np.corrcoef(noise.T)[np.triu_indices(4, 1)]
    assert apart == pytest.approx(np.full(6, shared), abs=0.07)


def test_replicates_have_the_law_of_the_noise_around_what_was_seen():
    own, rivals = made()
    draw = np.random.default_rng(0).standard_normal
    for one in coverage.seen([*own, *rivals], DEVIATIONS, coverage.Setting(0.5, 1), draw):
        logs = np.log(one.replicates / one.score)
        assert logs.std() == pytest.approx(DEVIATIONS[one.name], rel=0.15)
        assert abs(logs.mean()) < 4 * DEVIATIONS[one.name] / math.sqrt(coverage.REPLICATES)


def test_a_training_moves_all_points_of_its_network_alike():
    own, rivals = made()
    moved = coverage.trained_again(
        [*own, *rivals], NETWORKS, np.random.default_rng(0).standard_normal, coverage.Setting(0, 1)
    )
    first, one, four, other = (one.score / true.score for one, true in zip(moved, [*own, *rivals], strict=True))
    assert one == pytest.approx(four)
    assert len({round(factor, 9) for factor in (first, one, other)}) == 3
    draw = np.random.default_rng(0).standard_normal
    noisier = coverage.trained_again([*own, *rivals], NETWORKS, draw, coverage.Setting(0, 1, (), 2.0))
    assert [again.score / true.score for again, true in zip(noisier, [*own, *rivals], strict=True)] == pytest.approx(
        [first**2, one, four, other]
    )


def test_trainings_share_the_noise_of_images_that_plans_share(monkeypatch):
    """All of it shared, and no noise of training: every training is seen alike."""
    monkeypatch.setattr(coverage, "OF_TRAINING", 0.0)
    seen = []
    monkeypatch.setattr(coverage, "pooled", lambda networks, seed: seen.append(networks) or {})
    with pytest.raises(KeyError):
        coverage.experiment(TRUTH, coverage.Setting(1.0, 1, (("single", 2), (coverage.DUAL, 3))), 0)
    (networks,) = seen
    assert [len(trainings) for trainings in networks.values()] == [3, 2, 1]
    for first, *others in networks.values():
        assert all(point.score == one.score for again in others for point, one in zip(again, first, strict=True))


@pytest.mark.parametrize(
    "trainings", [(), (("single", 3), (coverage.DUAL, 3)), (("single", 2), ("else", 2), (coverage.DUAL, 3))]
)
def test_the_truth_is_mostly_held(trainings):
    ((name, (below, above)),) = coverage.missed(TRUTH, coverage.Setting(0.5, 1, trainings)).items()
    assert (name, TRUTH.ratios[name]) == ("plan", pytest.approx(2))
    assert 0 <= below + above <= 0.2


@pytest.mark.parametrize(("factor", "expected"), [(0.5, (1, 0)), (1.9, (0, 1))])
def test_what_is_seen_too_good_or_too_bad_is_counted_on_its_side(monkeypatch, factor, expected):
    """A plan that seems better than it is seems to save more: the truth is below the interval."""
    _, rivals = made()

    def seen(*_) -> list[Point]:
        best = Point("plan", 1, factor * 4.0, np.full(5, factor * 4.0), None)
        return [best, *(Point(one.name, one.cost, one.score, np.full(5, one.score), one.curve) for one in rivals)]

    monkeypatch.setattr(coverage, "seen", seen)
    assert coverage.missed(TRUTH, coverage.Setting(0.0, 1))["plan"] == expected


def test_networks_that_are_trained_again_have_wider_intervals(monkeypatch):
    """The noise of training is there besides that of the images."""
    monkeypatch.setattr(coverage, "OF_TRAINING", 1.0)
    once = coverage.experiment(TRUTH, coverage.Setting(0.5, 100), 0)
    again = coverage.experiment(TRUTH, coverage.Setting(0.5, 100, (("single", 3), (coverage.DUAL, 3))), 0)
    spread = [[np.log(one.replicates).std() for one in points] for points in (once, again)]
    assert all(wide > 4 * narrow for narrow, wide in zip(*spread, strict=True))


def test_the_published_ratios_are_what_the_rivals_pay():
    truth = coverage.published()
    assert len(truth.ratios) == 6
    for point in truth.own:
        if point.name in truth.ratios:
            assert truth.ratios[point.name] == cost_at(truth.rivals, point.score) / point.cost


@pytest.mark.parametrize("metric", ["FD-fashion-mnist", "FD-EfficientNet"])
def test_level_pairs_are_as_good_as_the_best_single_network_at_their_cost(metric):
    """A hundredth worse or better is told where there is no noise."""
    truth = coverage.level(metric)
    rivals = [coverage._without_noise(rival) for rival in truth.rivals]
    for factor, expected in ((1.01, 1), (0.99, -1)):
        for one in truth.own:
            moved = coverage._without_noise(replace(one, score=factor * one.score))
            assert side(moved, rivals, 1.0) == expected
    assert set(truth.ratios.values()) == {1.0}
    assert all(0.005 < truth.deviations[point.name] < 0.2 for point in (*truth.own, *truth.rivals))


def test_every_sampler_has_the_noise_of_its_own_rows():
    deviations = coverage.level("FD-fashion-mnist").deviations
    kept = coverage.kept_deviations()["FD-fashion-mnist"]
    (alike,) = (
        cost for network, name, cost in kept if (network, name) == ("light-10", "DPM-Solver++ 2M") and cost > 3e8
    )
    for sampler, name in (("DPM-Solver++ 2M", "10/10, "), ("SDE-DPM-Solver++ 2M, gamma 0.1", "10/10, blend-0.5, ")):
        (own,) = (one for key, one in deviations.items() if key.startswith(f"{name}light-10, {sampler}"))
        assert own == pytest.approx(math.sqrt(10) * kept["light-10", sampler, alike], rel=1e-12)
