"""Scores of forecasts by lead time: closed forms of Gaussians, autoregressions and waves, and another package."""

import json
import math

import numpy as np
import pytest
import scoringrules
import torch
from scipy import stats
from torch import Tensor

from dualrate.forecasts import sums as sums_module
from dualrate.forecasts.baselines import climatology, persistence
from dualrate.forecasts.scores import ForecastScorer, ForecastScores, students_t, time_until
from dualrate.forecasts.spectra import power_spectrum, spectrum_distance
from dualrate.forecasts.stability import Stability, steady_numbers

GENERATOR = torch.Generator()


@pytest.fixture(autouse=True)
def of_one_seed() -> None:
    """Give each test the same numbers, whichever ran before it."""
    GENERATOR.manual_seed(0)


def normals(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def scored(
    members: Tensor, truth: Tensor, *, leads=None, start=None, groups=None, resamples=100, chunk=1000, **how
) -> ForecastScores:
    """Score members (N, M, T, C, H, W) by the truth (N, T, C, H, W)."""
    scorer = ForecastScorer(leads or range(1, truth.shape[1] + 1), **how)
    for i in range(0, len(truth), chunk):
        frames = zip(members[i : i + chunk].unbind(2), truth[i : i + chunk].unbind(1), strict=True)
        scorer.add(frames, start=None if start is None else start[i : i + chunk])
    return scorer.scores(groups, resamples=resamples)


def wave(k_y: int, k_x: int, height: int, width: int, phase: float = 0.3) -> Tensor:
    y, x = torch.arange(height).double()[:, None] / height, torch.arange(width).double() / width
    return torch.cos(2 * math.pi * (k_y * y + k_x * x) + phase)


def test_a_calibrated_gaussian_ensemble_has_its_closed_forms() -> None:
    """X_i, y ~ N(mean, s^2) alike: CRPS s / sqrt(pi), errors s sqrt(1 + 1 / M) and s sqrt(2), even ranks."""
    count, std = 4, torch.tensor([0.5, 2.0], dtype=torch.float64)[:, None, None, None]
    mean = normals(300, 2, 1, 8, 8)
    truth = mean + std * normals(300, 2, 1, 8, 8)
    members = mean[:, None] + std * normals(300, count, 2, 1, 8, 8)
    found, s = scored(members, truth), std.flatten().numpy()
    np.testing.assert_allclose(found.crps.value, s / math.sqrt(math.pi), rtol=0.015)
    np.testing.assert_allclose(found.rmse.value, s * math.sqrt(1 + 1 / count), rtol=0.015)
    np.testing.assert_allclose(found.rmse_member.value, s * math.sqrt(2), rtol=0.015)
    np.testing.assert_allclose(found.spread.value, s * math.sqrt(1 + 1 / count), rtol=0.015)
    np.testing.assert_allclose(found.spread_skill.value, 1, atol=0.015)
    np.testing.assert_allclose(found.ranks, 1 / (count + 1), atol=0.01)
    np.testing.assert_allclose(found.edges.value, 1, atol=0.03)
    half = scored(mean[:, None] + 0.5 * (members - mean[:, None]), truth)  # s / 2: errors s sqrt(1 + 1 / (4 M))
    np.testing.assert_allclose(
        half.spread_skill.value, 0.5 * math.sqrt((1 + 1 / count) / (1 + 0.25 / count)), rtol=0.02
    )
    assert (half.edges.value > 1.3).all()


def test_crps_is_that_of_scoringrules_and_ranks_are_counts() -> None:
    members, truth = normals(3, 5, 2, 2, 1, 7), normals(3, 2, 2, 1, 7)
    found = scored(members, truth)
    theirs = np.asarray(scoringrules.crps_ensemble(truth.numpy(), members.numpy(), m_axis=1, estimator="fair"))
    np.testing.assert_allclose(found.crps.value, theirs.mean((0, 2, 3, 4)), rtol=1e-12)
    below = (members < truth[:, None]).sum(1)
    counts = [np.bincount(below[:, lead].flatten(), minlength=6) for lead in range(2)]
    np.testing.assert_allclose(found.ranks, np.array(counts) / 42, rtol=1e-12)


def test_weighted_scores_are_weighted_means_of_their_formulas() -> None:
    """By numpy and scoringrules, point by point: as xskillscore's with weights; points of no weight count nowhere."""
    members, truth, mean = normals(4, 5, 2, 2, 6, 8), normals(4, 2, 2, 6, 8), normals(2, 6, 8)
    weights = torch.rand(2, 6, 8, generator=GENERATOR, dtype=torch.float64)
    weights[:, 2:4, 3:5] = 0
    weights /= weights.mean((1, 2), keepdim=True)
    thresholds = torch.stack([0.0 * mean, mean])
    found = scored(members, truth, climatology=mean, weights=weights, thresholds=thresholds)
    x, y, w = members.numpy(), truth.numpy(), np.broadcast_to(weights.numpy(), (4, 2, 2, 6, 8))

    def average(points: np.ndarray) -> np.ndarray:
        return np.average(points, (0, 2, 3, 4), w)

    theirs = np.asarray(scoringrules.crps_ensemble(y, x, m_axis=1, estimator="fair"))
    error, variance = average((x.mean(1) - y) ** 2), average(x.var(1, ddof=1))
    np.testing.assert_allclose(found.crps.value, average(theirs), rtol=1e-12)
    np.testing.assert_allclose(found.rmse.value, np.sqrt(error), rtol=1e-12)
    np.testing.assert_allclose(found.spread.value, np.sqrt(6 / 5 * variance), rtol=1e-12)
    np.testing.assert_allclose(found.spread_skill.value, np.sqrt(6 / 5 * variance / error), rtol=1e-12)
    a, b = x.mean(1) - mean.numpy(), y - mean.numpy()
    products = [(w * p * q).sum((2, 3, 4)) for p, q in ((a, b), (a, a), (b, b))]
    np.testing.assert_allclose(
        found.correlation.value, (products[0] / np.sqrt(products[1] * products[2])).mean(0), rtol=1e-12
    )
    for k, threshold in enumerate(thresholds.numpy()):
        share, above = (x > threshold).mean(1), y > threshold
        fair = (share - above) ** 2 - share * (1 - share) / 4
        np.testing.assert_allclose(found.brier.value[:, k], average(fair), rtol=1e-12)
    below = (members < truth[:, None]).sum(1).numpy()
    ranks = [np.bincount(below[:, lead].ravel(), w[:, lead].ravel(), 6) for lead in range(2)]
    np.testing.assert_allclose(found.ranks, np.array(ranks) / w[:, 0].sum(), rtol=1e-12)
    np.testing.assert_allclose(found.edges.value, found.ranks[:, [0, 5]].sum(1) * 3, rtol=1e-12)
    members[..., 2:4, 3:5], truth[..., 2:4, 3:5] = 100, -100
    other = scored(members, truth, climatology=mean, weights=weights, thresholds=thresholds)
    names = ("crps", "rmse", "rmse_member", "spread_skill", "correlation", "correlation_member", "rate", "brier")
    for name in names:
        np.testing.assert_array_equal(getattr(other, name).value, getattr(found, name).value)
    np.testing.assert_array_equal(other.ranks, found.ranks)


def test_brier_scores_over_all_thresholds_add_up_to_the_crps() -> None:
    members, truth = normals(6, 4, 1, 1, 1, 5), normals(6, 1, 1, 1, 5)
    thresholds = torch.linspace(-6, 6, 6001, dtype=torch.float64)[:, None, None, None]
    found = scored(members, truth, thresholds=thresholds)
    np.testing.assert_allclose(found.brier.value.sum(1) * 12 / 6000, found.crps.value, rtol=2e-3)


def test_correlation_of_an_autoregression_falls_as_it_must() -> None:
    """y_t = a^t y_0 + sqrt(1 - a^2t) e: of the mean forecast a^t, of a member of the exact law a^2t, at any lead."""
    decay = 0.9 ** (1 / 3)
    kept = decay ** torch.arange(1, 13).double()[:, None, None, None]
    first = normals(40, 1, 1, 1, 512)

    def later(*shape: int) -> Tensor:
        return (1 - kept**2).sqrt() * normals(*shape, 12, 1, 1, 512)

    truth, zero = kept * first + later(40), torch.zeros(1, 1, 1)
    found = scored(kept * first[:, None] + later(40, 2), truth, climatology=zero)
    np.testing.assert_allclose(found.correlation_member.value, kept.flatten().numpy() ** 2, atol=0.02)
    mean = scored((kept * first)[:, None], truth, climatology=zero)
    np.testing.assert_allclose(mean.correlation.value, kept.flatten().numpy(), atol=0.01)
    assert mean.until.value == pytest.approx([3, math.log(0.8) / math.log(decay)], abs=0.25)
    assert found.until_member.value == pytest.approx([1.5, math.log(0.8) / math.log(decay) / 2], abs=0.25)
    assert (mean.until.low <= mean.until.value).all()
    assert (mean.until.value <= mean.until.high).all()


def test_correlation_of_orthogonal_waves_is_exact_and_is_about_the_climatology() -> None:
    """Persistence of one wave, while the truth turns into another one: a^t, 0.9 at t = 3 and 0.8 between 6 and 7."""
    curve = (0.9 ** (1 / 3)) ** torch.arange(1, 9).double()
    first, other = wave(0, 2, 1, 32), wave(0, 5, 1, 32)
    truth = 7 + curve[:, None, None] * first + (1 - curve**2).sqrt()[:, None, None] * other
    past, truth = (3 + first)[None, None, None], truth[None, :, None]
    found = scored(persistence(past, 8), truth)
    np.testing.assert_allclose(found.correlation.value, curve, rtol=1e-12)
    exact = 6 + ((curve[5] - 0.8) / (curve[5] - curve[6])).item()
    assert found.until.value == pytest.approx([3, exact], rel=1e-12)
    assert found.times()[1]["until"] == found.times()[1]["until_member"] == pytest.approx(exact)
    about = scored(persistence(past, 8), truth, climatology=torch.full((1, 1, 1), 3.0), leads=range(2, 18, 2))
    np.testing.assert_allclose(about.correlation.value, curve / math.sqrt(1 + 2 * 4**2), rtol=1e-12)
    low = curve[0].item() / math.sqrt(33)
    assert about.until.value == pytest.approx([2 * (1 - 0.9) / (1 - low), 2 * (1 - 0.8) / (1 - low)])


def test_a_correlation_that_stays_has_no_time() -> None:
    curves = torch.tensor([[0.95, 0.91], [0.95, 0.85], [0.5, 0.95]], dtype=torch.float64)
    found = time_until(curves, torch.tensor([2.0, 3.0], dtype=torch.float64), 0.9)
    assert found.tolist() == pytest.approx([math.inf, 2.5, 2 * 0.1 / 0.5])
    same = normals(4, 3, 1, 1, 8)
    assert scored(same[:, None], same).times()[0] == {
        "threshold": 0.9,
        **dict.fromkeys(("until", "until_low", "until_high", "until_member", "until_member_low", "until_member_high")),
    }


@pytest.mark.parametrize(("height", "width"), [(1, 64), (1, 33), (16, 16), (15, 9), (8, 32), (32, 2), (1, 1)])
def test_power_adds_up_to_the_mean_square(height: int, width: int) -> None:
    fields = normals(3, 2, height, width)
    np.testing.assert_allclose(power_spectrum(fields).sum(-1), fields.square().mean((-2, -1)), rtol=1e-12)


@pytest.mark.parametrize(
    ("height", "width", "k_y", "k_x", "ring"),
    [(1, 64, 0, 7, 7), (1, 64, 0, 1, 1), (32, 32, 3, 4, 5), (32, 32, -4, 3, 5), (16, 64, 2, 6, 10), (32, 32, 0, 0, 0)],
)
def test_a_wave_has_its_power_in_one_ring(height: int, width: int, k_y: int, k_x: int, ring: int) -> None:
    found = power_spectrum(3 * wave(k_y, k_x, height, width, 0.0))
    expected = torch.zeros_like(found)
    expected[ring] = 9 / (1 if ring == 0 else 2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_spectrum_differs_in_the_band_where_it_does() -> None:
    """64 points: the bands are 1 to 3, 4 to 10 and 11 to 32; amplitudes times f add 2 log f."""
    truth = normals(5, 2, 1, 1, 64)
    found = scored(truth[:, None] * 1.5, truth)
    np.testing.assert_allclose(found.spectrum.value, 2 * math.log(1.5), rtol=1e-12)
    waves = torch.fft.rfft(truth)
    waves[..., 4:11] *= 0.5
    waves[..., 0] = 99  # the mean is in no band
    found = scored(torch.fft.irfft(waves)[:, None], truth)
    np.testing.assert_allclose(found.spectrum.value, [[0, 2 * math.log(2), 0]] * 2, atol=1e-12)
    np.testing.assert_allclose(found.power_truth[0, 0], power_spectrum(truth[:, 0, 0]).mean(0), rtol=1e-12)
    one = power_spectrum(wave(0, 2, 1, 64))[None]
    weak = one + 1e-12 * power_spectrum(normals(1, 1, 64))  # below the floor
    np.testing.assert_allclose(spectrum_distance(weak, one, 64), 0, atol=1e-9)


def test_a_spectrum_of_the_same_law_is_near_and_its_interval_about_it() -> None:
    found = scored(normals(1000, 4, 1, 1, 1, 32), normals(1000, 1, 1, 1, 32))
    assert (found.spectrum.value < 0.1).all()
    assert (found.spectrum.low <= found.spectrum.value).all()
    assert (found.spectrum.value <= found.spectrum.high).all()


def test_the_interval_of_a_spectrum_is_about_what_was_measured_and_not_about_what_chance_adds_again() -> None:
    """A resample of few starts is as far again from the sample as that is from the law."""
    spectrum = scored(normals(20, 1, 1, 1, 1, 64), normals(20, 1, 1, 1, 64), resamples=400).spectrum
    high, resampled = spectrum.value[0, 2], spectrum.replicates[:, 0, 2]
    assert 0 < resampled.min() < 0.9 * high
    assert resampled.mean() == pytest.approx(high, rel=1e-12)


def test_the_interval_of_a_spectrum_has_no_distance_below_0() -> None:
    """Chance adds a distance to a resample of fields that are waves of the right power, and takes none away."""
    truth = normals(6, 1, 1, 1, 64)
    members = truth[:, None].roll(1, 0)  # of the same mean power, start by start of another
    spectrum = scored(members, truth, resamples=100).spectrum
    np.testing.assert_allclose(spectrum.value, 0, atol=1e-12)
    assert spectrum.replicates.min() == 0 < spectrum.replicates.max()


@pytest.mark.parametrize(("share", "counts"), [(2e-8, True), (4e-9, False)])
def test_waves_a_ten_thousandth_as_high_as_the_strongest_count_in_the_spectrum(share: float, counts: bool) -> None:
    """Whatever the mean of the field is, whose power is at 0."""
    truth = torch.full((1, 33), share, dtype=torch.float64)
    truth[0, 0], truth[0, 2] = 100, 1
    power = 2 * truth
    power[0, 2] = 1  # one of the three wavenumbers of the low band
    expected = math.log(2) * torch.tensor([2 / 3, 1, 1]) if counts else torch.zeros(3)
    torch.testing.assert_close(spectrum_distance(power, truth, 64), expected.double())


def test_changes_are_counted_from_the_last_known_frame() -> None:
    start, steps = normals(4, 1, 4, 4), normals(4, 3, 1, 4, 4)
    truth = start[:, None] + steps.cumsum(1)
    members = torch.stack([start[:, None] + factor * steps.cumsum(1) for factor in (1.0, 2.0)], 1)
    np.testing.assert_allclose(scored(members, truth, start=start).rate.value, 1.5, rtol=1e-12)
    rate = scored(members, truth).rate
    np.testing.assert_allclose(rate.value, [math.nan, 1.5, 1.5], rtol=1e-12)
    assert scored(persistence(start[:, None], 3), truth, start=start).rate.value.tolist() == [0, 0, 0]


def test_channels_of_different_units_add_up_by_their_scales() -> None:
    members, truth = normals(6, 3, 2, 2, 1, 8), normals(6, 2, 2, 1, 8)
    units = torch.tensor([1.0, 1000.0])
    expected = scored(members, truth)
    found = scored(members * units[:, None, None], truth * units[:, None, None], scale=units)
    for name in ("crps", "rmse", "spread_skill", "correlation", "spectrum"):
        np.testing.assert_allclose(getattr(found, name).value, getattr(expected, name).value, rtol=1e-12)


def test_a_scorer_beside_another_scores_as_one_of_its_own() -> None:
    """Some channels, other scales, other weights: members are put in order once for all."""
    x, y, start = normals(6, 5, 2, 3, 4, 6), normals(6, 2, 3, 4, 6), normals(6, 3, 4, 6)
    weights, thresholds = torch.rand(3, 4, 6, generator=GENERATOR), normals(2, 3, 4, 6)
    how = {"climatology": normals(3, 4, 6), "thresholds": thresholds}
    scorer = ForecastScorer([1, 2], scale=torch.tensor([1.0, 2.0, 3.0]), **how)
    weighted = scorer.beside(scale=torch.tensor([2.0, 1.0, 5.0]), weights=weights)
    single = scorer.beside([1])
    for part in (slice(0, 4), slice(4, 6)):
        scorer.add(zip(x[part].unbind(2), y[part].unbind(1), strict=True), start=start[part])
    one = {"climatology": how["climatology"][1:2], "thresholds": thresholds[:, 1:2]}
    pairs = (
        (weighted, scored(x, y, start=start, scale=torch.tensor([2.0, 1.0, 5.0]), weights=weights, **how)),
        (single, scored(x[:, :, :, 1:2], y[:, :, 1:2], start=start[:, 1:2], **one)),
    )
    for found, expected in pairs:
        for name, value in vars(found.scores(resamples=100)).items():
            theirs = getattr(expected, name)
            pair = (value.value, theirs.value) if hasattr(value, "value") else (value, theirs)
            np.testing.assert_allclose(*pair, rtol=1e-12, atol=1e-12)


def test_chunks_change_nothing() -> None:
    members, truth = normals(7, 3, 2, 1, 4, 4).round(), normals(7, 2, 1, 4, 4).round()  # many are equal
    whole = scored(members, truth)
    parts = scored(members, truth, chunk=2)
    np.testing.assert_array_equal(whole.ranks, parts.ranks)
    assert whole.table() == parts.table()


@pytest.mark.parametrize("members", [1, 7])
def test_what_is_held_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch, members: int) -> None:
    """Parts of points and of members, weighted, about a climatology, above thresholds, from a start."""
    x, y, start = normals(2, members, 3, 2, 5, 6), normals(2, 3, 2, 5, 6), normals(2, 2, 5, 6)
    how = {"weights": torch.rand(2, 5, 6), "climatology": normals(2, 5, 6), "thresholds": normals(3, 2, 5, 6)}

    def scores(at_a_time: int) -> ForecastScores:
        monkeypatch.setattr(sums_module, "AT_A_TIME", at_a_time)
        scorer = ForecastScorer([1, 2, 3], scale=torch.tensor([1.0, 3.0]), **how)
        scorer.add(zip(x.unbind(2), y.unbind(1), strict=True), start=start)
        return scorer.scores()

    whole = vars(scores(2**22))
    for name, value in vars(scores(2)).items():
        pair = (value.value, whole[name].value) if hasattr(value, "value") else (value, whole[name])
        np.testing.assert_allclose(*pair, rtol=1e-12, atol=1e-12)


def test_equal_numbers_have_ranks_by_chance() -> None:
    found = scored(torch.zeros(20, 2, 2, 1, 32, 32), torch.zeros(20, 2, 1, 32, 32))
    np.testing.assert_allclose(found.ranks, 1 / 3, atol=0.015)
    assert (found.ranks[0] != found.ranks[1]).any()


def test_an_interval_resamples_groups_of_starts() -> None:
    """Starts that come in threes alike: the deviation of the mean is that of a third as many."""
    values = normals(30).abs().repeat_interleave(3)
    truth = values[:, None, None, None, None]
    threes = torch.randperm(30, generator=GENERATOR).repeat_interleave(3)
    alike, apart = (scored(0 * truth[:, None], truth, groups=each, resamples=4000).crps for each in (threes, None))
    assert alike.replicates.std() == pytest.approx(values[::3].std().item() / math.sqrt(30), rel=0.05)
    assert apart.replicates.std() == pytest.approx(values.std().item() / math.sqrt(90), rel=0.05)
    assert alike.value == pytest.approx(values.mean().item())
    out = stats.norm.cdf(stats.t.ppf([0.025, 0.975], 29))
    low, high = np.quantile(alike.replicates, out)
    assert (alike.low.item(), alike.high.item()) == pytest.approx((low, high), abs=1e-3)


def test_students_t_is_scipys() -> None:
    for freedom in (4, 5, 10, 100):
        assert students_t(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=3e-3)


@pytest.mark.parametrize(("trajectories", "each"), [(5, 10), (6, 8), (20, 3)])
def test_intervals_hold_the_truth_as_often_as_they_say_where_starts_of_a_trajectory_are_alike(
    trajectories: int, each: int
) -> None:
    """Absolute errors of normals, one a trajectory: the mean is sqrt(2 / pi)."""
    groups, held, tries = torch.arange(trajectories).repeat_interleave(each), 0, 300
    for _ in range(tries):
        truth = normals(trajectories).repeat_interleave(each)[:, None, None, None, None]
        found = scored(0 * truth[:, None], truth, groups=groups, resamples=300).crps
        held += found.low.item() <= math.sqrt(2 / math.pi) <= found.high.item()
    assert held / tries > 0.89


def test_one_member_has_the_scores_that_are_defined() -> None:
    past, truth = normals(5, 2, 1, 1, 8), normals(5, 3, 1, 1, 8)
    found = scored(persistence(past, 3), truth, groups=torch.zeros(5, dtype=torch.int64))
    np.testing.assert_allclose(found.crps.value, (past[:, -1:] - truth).abs().mean((0, 2, 3, 4)), rtol=1e-12)
    np.testing.assert_array_equal(found.rmse.value, found.rmse_member.value)
    rows = found.table()
    assert [row["lead"] for row in rows] == [1, 2, 3]
    assert rows[0]["spread"] is rows[0]["spread_skill"] is rows[0]["rate"] is None
    assert rows[0]["crps_low"] is None  # one group tells nothing about others
    json.dumps(rows + found.times(), allow_nan=False)


def test_a_forecast_that_breaks_down_is_uncorrelated_from_there_on() -> None:
    truth = normals(3, 4, 1, 1, 16)
    members = truth[:, None].clone()
    members[:, :, 2:] = torch.tensor([torch.inf, torch.nan]).double()[:, None, None, None]
    found = scored(members, truth)
    np.testing.assert_allclose(found.correlation.value, [1, 1, 0, 0])
    assert found.until.value == pytest.approx([2.1, 2.2])
    assert found.table()[2]["crps"] is None


def test_a_climatology_draws_other_frames_at_each_lead_time() -> None:
    frames = torch.arange(12.0)[:, None, None, None].expand(-1, 2, 1, 3)
    found, again, other = (torch.stack([*climatology(frames, 5, 4, 3, seed)], 2) for seed in (1, 1, 2))
    assert found.shape == (5, 4, 3, 2, 1, 3)
    assert all(len(set(start.flatten().tolist())) == 12 for start in found[..., 0, 0, 0])
    assert torch.equal(found, again)
    assert not torch.equal(found, other)
    with pytest.raises(ValueError, match="got 13 members from 12 frames"):
        climatology(frames, 1, 13, 1, seed=0)
    data = normals(600, 1, 1, 4)
    (drawn,) = climatology(data[300:], 300, 8, 1, 0)
    assert scored(drawn[:, :, None], data[:300, None]).spread_skill.value == pytest.approx(1, abs=0.05)


def test_other_shapes_are_refused_with_both() -> None:
    members, truth = torch.zeros(2, 3, 1, 1, 4), torch.zeros(2, 1, 1, 4)
    scorer = ForecastScorer([1, 2])
    with pytest.raises(ValueError, match="one start"):
        scorer.scores()
    with pytest.raises(ValueError, match=r"got members \(2, 3, 1, 1, 4\) and truth \(2, 1, 1, 5\)"):
        scorer.add([(members, torch.zeros(2, 1, 1, 5))] * 2)
    with pytest.raises(ValueError, match="got 1 lead times of the 2"):
        scorer.add([(members, truth)])
    with pytest.raises(ValueError, match="more lead times than the 2"):
        scorer.add([(members, truth)] * 3)
    scorer.add([(members, truth)] * 2)
    with pytest.raises(ValueError, match=r"got members \(2, 2, 1, 1, 4\); all before were \(n, 3, 1, 1, 4\)"):
        scorer.add([(members[:, :2], truth)] * 2)
    with pytest.raises(ValueError, match="one n for a chunk"):
        scorer.add([(members, truth), (members[:1], truth[:1])])
    with pytest.raises(ValueError, match="not finite"):
        scorer.add([(members, truth / 0)] * 2)
    with pytest.raises(ValueError, match="1 channels and 2 scales"):
        ForecastScorer([1], scale=torch.ones(2)).add([(members, truth)])
    with pytest.raises(ValueError, match="above the one before"):
        ForecastScorer([1, 1])
    with pytest.raises(ValueError, match="one positive number"):
        ForecastScorer([1], scale=torch.zeros(1))
    with pytest.raises(ValueError, match=r"got groups \(3,\) of 2 starts"):
        scorer.scores(torch.zeros(3))
    assert scorer.scores().starts == 2


def test_numbers_of_a_stable_ensemble_are_those_of_a_wave():
    """a cos(kx + b): variance a^2 / 2, all of it in the band of k; moved by d it changes by 2 a sin(d/2) / sqrt(2)."""
    x = 2 * math.pi * torch.arange(64, dtype=torch.float64) / 64
    for k, band in ((2, 0), (5, 1), (20, 2)):
        before, now = (3 * torch.cos(k * x + shift)[None, None] for shift in (0.3, 0.3 + 0.4))
        rate, variance, *power = steady_numbers(now, before)[0].tolist()
        assert rate == pytest.approx(2 * 3 * math.sin(0.2) / math.sqrt(2))
        assert variance == pytest.approx(4.5)
        assert power == pytest.approx([4.5 if i == band else 0 for i in range(3)])


def test_the_bounds_of_stability_allow_for_chance_and_for_faint_bands():
    """c = 3 s / (m sqrt(n)); power below a ten-thousandth of the variance counts as equal."""
    training = torch.tensor([[[1.0, 2.0, 1.0, 1.0, 1e-6]], [[3.0, 2.0, 1.0, 1.0, 1e-6]]]).double()
    members = torch.tensor([[[2.0, 2.0, 1.0, 1.0, 1e-4]], [[2.0, 1.5, 1.0, 1.0, 1e-6]]]).double()
    found = Stability.of([1, 2], ["u"], members, training, 8)
    c = 3 * math.sqrt(2) / (2 * math.sqrt(8))
    np.testing.assert_allclose(found.bounds[:, 0], [[0.8 / (1 + c), *[0.8] * 4], [1.25 * (1 + c), *[1.25] * 4]])
    np.testing.assert_allclose(found.ratios[:, 0], [[1, 1, 1, 1, 1], [1, 0.75, 1, 1, 1]])
    assert found.first == 1
    assert str(found).startswith("stable from frame 1 to 1: at frame 2 the variance of u is 0.75 times")


@pytest.mark.parametrize(("share", "judged"), [(1.5e-4, True), (5e-5, False)])
def test_a_band_of_more_than_a_ten_thousandth_of_the_variance_is_judged(share: float, judged: bool) -> None:
    training = torch.tensor([1.0, 3.0, 2.0, 1.0, 3 * share]).double().expand(2, 1, 5)
    members = training[:1] * torch.tensor([1, 1, 1, 1, 1.9])
    assert Stability.of([1], ["u"], members, training, 8).first == (0 if judged else None)
