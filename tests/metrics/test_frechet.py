"""The Frechet distance against closed formulas, scipy and torchmetrics; its bootstrap interval against the law."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dualrate.metrics.distances import (
    GaussianStats,
    Interval,
    frechet_distance,
    interval_of,
    resampled_distances,
    resampling_weights,
)


def bootstrap_interval(features: Tensor, reference, *, level: float, **how) -> Interval:
    return interval_of(resampled_distances(features, reference, **how).numpy(), level)


def random_features(count: int, size: int, seed: int, rank: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rank = rank or size
    mixing = torch.randn(rank, size, generator=generator, dtype=torch.float64)
    shift = torch.randn(size, generator=generator, dtype=torch.float64)
    return torch.randn(count, rank, generator=generator, dtype=torch.float64) @ mixing + shift


def random_rotation(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(random_features(size, size, seed)).Q


@given(st.tuples(*[st.floats(-5, 5)] * 2), st.tuples(*[st.floats(0, 5)] * 2))
@settings(max_examples=50, deadline=None)
def test_one_dimension_is_the_distance_of_means_and_deviations(means, deviations):
    a, b = (
        GaussianStats(torch.tensor([m], dtype=torch.float64), torch.tensor([[d * d]], dtype=torch.float64), 2)
        for m, d in zip(means, deviations, strict=True)
    )
    expected = (means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-12)


def test_weights_are_those_of_rows():
    features, weights = random_features(40, 3, 1), torch.rand(40, generator=torch.Generator().manual_seed(2)).double()
    found = GaussianStats.of(features, weights / weights.sum())
    rows = features.numpy()
    np.testing.assert_allclose(found.mean, np.average(rows, axis=0, weights=weights.numpy()))
    np.testing.assert_allclose(found.cov, np.cov(rows.T, aweights=weights.numpy()))
    alike, plain = (
        GaussianStats.of(features, torch.full((40,), 1 / 40, dtype=torch.float64)),
        GaussianStats.of(features),
    )
    torch.testing.assert_close((alike.mean, alike.cov), (plain.mean, plain.cov))


def test_commuting_covariances_split_into_axes():
    axes = random_rotation(7, 0)
    generator = torch.Generator().manual_seed(1)
    means, deviations = torch.rand(2, 2, 7, generator=generator, dtype=torch.float64)
    a, b = (
        GaussianStats(axes @ m, axes @ d.square().diag() @ axes.T, 9) for m, d in zip(means, deviations, strict=True)
    )
    expected = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("rank", [3, 12])
def test_agrees_with_scipy_sqrtm(rank):
    a, b = (GaussianStats.of(random_features(200, 12, seed, rank=rank)) for seed in (1, 2))
    root = np.real(scipy.linalg.sqrtm((a.cov @ b.cov).numpy()))
    expected = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * np.trace(root)
    # scipy's root of a singular product is good to about the square root of the precision only
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9 if rank == 12 else 1e-5)


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")

    class FirstPixels(nn.Module):
        num_features = 10

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :10].double()

    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randint(low, 256, (300, 3, 4, 4), generator=generator, dtype=torch.uint8) for low in (0, 60))
    theirs = fid.FrechetInceptionDistance(feature=FirstPixels(), input_img_size=(3, 4, 4), normalize=False)
    theirs.set_dtype(torch.float64)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = frechet_distance(*(GaussianStats.of(FirstPixels()(images)) for images in (real, fake)))
    assert ours == pytest.approx(theirs.compute().item(), rel=1e-6)


@pytest.mark.parametrize("rank", [5, 40])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_identical_sets_are_at_zero(rank, scale):
    stats = GaussianStats.of(scale * random_features(500, 40, 3, rank=rank))
    assert abs(frechet_distance(stats, stats)) < 1e-6


def test_shift_and_rotation_of_both_sets_change_nothing():
    a, b = random_features(300, 8, 1), random_features(300, 8, 2)
    rotation, shift = random_rotation(8, 3), torch.linspace(-3, 3, 8, dtype=torch.float64)
    before = frechet_distance(GaussianStats.of(a), GaussianStats.of(b))
    after = frechet_distance(GaussianStats.of(a @ rotation + shift), GaussianStats.of(b @ rotation + shift))
    assert after == pytest.approx(before, rel=1e-10)


def test_distance_is_symmetric_and_grows_with_a_shift_by_its_square():
    a, b = (GaussianStats.of(random_features(300, 8, seed)) for seed in (1, 2))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    shifted = GaussianStats(a.mean + 0.5, a.cov, a.count)
    assert frechet_distance(a, shifted) == pytest.approx(8 * 0.25, abs=1e-9)


def expected_distance(count: int, means_apart: Tensor) -> float:
    """E[FD] of `count` draws of N(m, I) against N(0, I) exactly, by simulation of many."""
    size = len(means_apart)
    standard = GaussianStats(torch.zeros(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64), 10**9)
    generator = torch.Generator().manual_seed(99)
    draws = torch.randn(300, count, size, generator=generator, dtype=torch.float64) + means_apart
    return float(np.mean([frechet_distance(GaussianStats.of(draw), standard) for draw in draws]))


@pytest.mark.parametrize("apart", [0.0, 0.3])
def test_bootstrap_interval_covers_the_expected_distance_at_this_count(apart):
    """Against N(0, I): a shift of `apart` per axis and a known bias of about (D + D (D + 1) / 4) / N."""
    count, size, trials = 150, 4, 50
    apart_by = torch.full((size,), apart, dtype=torch.float64)
    truth, true_distance = expected_distance(count, apart_by), size * apart**2
    assert truth - true_distance == pytest.approx((size + size * (size + 1) / 4) / count, rel=0.1)
    standard = GaussianStats(torch.zeros(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64), 10**9)
    generator = torch.Generator().manual_seed(5)
    hits, low_sum, value_sum, high_sum = 0, 0.0, 0.0, 0.0
    for trial in range(trials):
        features = torch.randn(count, size, generator=generator, dtype=torch.float64) + apart_by
        interval = bootstrap_interval(features, standard, resamples=40, level=0.9, seed=trial)
        hits += interval.low <= truth <= interval.high
        low_sum, high_sum = low_sum + interval.low, high_sum + interval.high
        value_sum += frechet_distance(GaussianStats.of(features), standard)
    assert hits / trials >= 0.8
    assert low_sum < value_sum < high_sum
    if apart:  # away from the floor the interval is not only safe but sharp
        assert hits / trials <= 0.97


def in_classes(per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features of 20 classes whose means lie far apart along the first axis, as many of each, and their classes."""
    labels = torch.arange(20).repeat(per_class)
    features = 0.5 * torch.randn(len(labels), 3, generator=generator, dtype=torch.float64)
    features[:, 0] += torch.linspace(-2, 2, 20, dtype=torch.float64)[labels]
    return features, labels


@pytest.mark.parametrize("per_class", [2, 6])
def test_stratified_interval_covers_what_other_noise_in_the_same_classes_gives(per_class):
    reference = GaussianStats(torch.tensor([0.5, 0.3, 0.3], dtype=torch.float64), torch.eye(3).double(), 10**9)
    generator = torch.Generator().manual_seed(0)
    drawn = [in_classes(per_class, generator)[0] for _ in range(400)]
    truth = float(np.mean([frechet_distance(GaussianStats.of(features), reference) for features in drawn]))
    trials, hits = 50, 0
    for trial in range(trials):
        features, strata = in_classes(per_class, generator)
        within = bootstrap_interval(features, reference, resamples=40, level=0.9, seed=trial, strata=strata)
        hits += within.low <= truth <= within.high
    assert 0.8 <= hits / trials <= 0.95
    of_all = bootstrap_interval(features, reference, level=0.9, seed=0)
    assert within.high - within.low < 0.75 * (of_all.high - of_all.low)


def test_one_stratum_is_none():
    features, reference = random_features(60, 5, 1), GaussianStats.of(random_features(80, 5, 2))
    plain = resampled_distances(features, reference, resamples=20, seed=3)
    one = resampled_distances(features, reference, resamples=20, seed=3, strata=torch.full((60,), 7))
    assert torch.equal(plain, one)


def test_vectors_of_one_group_are_no_independent_ones():
    """Four times the same have the spread of each once; taken as independent, half of it."""
    features, reference = random_features(60, 5, 1), GaussianStats.of(random_features(80, 5, 2))
    once = resampled_distances(features, reference, seed=3)
    again, groups = features.repeat_interleave(4, 0), torch.arange(60).repeat_interleave(4)
    together = resampled_distances(again, reference, seed=3, groups=groups)
    assert (together.std() / once.std()).item() == pytest.approx(1, abs=0.05)
    assert resampled_distances(again, reference, seed=3).std() < 0.6 * once.std()


def test_replicates_are_those_of_the_resampled_sets_about_the_value():
    features, reference = random_features(60, 5, 1), GaussianStats.of(random_features(80, 5, 2))
    strata = torch.arange(60) % 7
    found = resampled_distances(features, reference, resamples=20, seed=7, strata=strata)
    distances = []
    for weights in resampling_weights(strata, 20, 7):
        cov = torch.cov(features.T, aweights=weights, correction=0) * 60 / 59
        resampled = GaussianStats(weights @ features / 60, cov, 60)
        distances.append(frechet_distance(resampled, reference))
    value = frechet_distance(GaussianStats.of(features), reference)
    expected = torch.tensor(distances, dtype=torch.float64)
    torch.testing.assert_close(found, value + expected - expected.mean(), rtol=1e-9, atol=0)
    interval = bootstrap_interval(features, reference, resamples=20, level=0.5, seed=7, strata=strata)
    low, high = (found.quantile(q).item() for q in (0.25, 0.75))
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-12)


def test_resampling_keeps_each_stratum_and_spreads_its_mean_as_other_draws_would():
    strata = torch.tensor([4, 1, 1, 4, 1, 1, 1, 4, 9, 9])
    weights = torch.stack(list(resampling_weights(strata, 10_000, 0)))
    assert weights.min() == 0
    for label in (1, 4, 9):
        own = weights[:, strata == label]
        n = own.shape[1]
        assert torch.allclose(own.sum(1), torch.tensor(float(n), dtype=torch.float64))
        torch.testing.assert_close(own.mean(0), torch.ones(n, dtype=torch.float64), rtol=0, atol=0.05)
        values = torch.arange(n, dtype=torch.float64).square()
        assert (own @ values / n).var().item() == pytest.approx(values.var().item() / n, rel=0.05)


def test_the_same_seed_pairs_the_replicates_of_features_from_the_same_noise():
    features, reference = random_features(200, 4, 1), GaussianStats.of(random_features(300, 4, 2))
    nearly = features + 0.01 * random_features(200, 4, 3)
    one, two = (resampled_distances(f, reference, resamples=50, seed=0) for f in (features, nearly))
    assert (one - two).std() < 0.1 * one.std()


def test_partners_are_resampled_together():
    """A shift of every vector is the distance of every resample; of these alone chance would move it."""
    features, shift = random_features(100, 4, 1), torch.tensor([1.0, 0.0, -2.0, 0.5], dtype=torch.float64)
    paired = resampled_distances(features + shift, features, resamples=20, seed=0)
    torch.testing.assert_close(paired, torch.full((20,), 5.25, dtype=torch.float64), rtol=1e-9, atol=0)
    same = resampled_distances(features, features, resamples=20, seed=0)
    torch.testing.assert_close(same, torch.zeros(20, dtype=torch.float64), rtol=0, atol=1e-9)
    assert resampled_distances(features + shift, GaussianStats.of(features), resamples=20, seed=0).std() > 0.1


def test_partners_replicates_are_those_of_the_resampled_pairs_about_the_value():
    features, before = random_features(60, 5, 1), random_features(60, 5, 2)
    found = resampled_distances(features, before, resamples=20, seed=7)
    each = []
    for weights in resampling_weights(torch.zeros(60, dtype=torch.int64), 20, 7):
        covs = [torch.cov(one.T, aweights=weights, correction=0) * 60 / 59 for one in (features, before)]
        pair = [GaussianStats(weights @ one / 60, cov, 60) for one, cov in zip((features, before), covs, strict=True)]
        each.append(frechet_distance(*pair))
    value, expected = frechet_distance(GaussianStats.of(features), GaussianStats.of(before)), torch.tensor(each)
    torch.testing.assert_close(found, value + expected.double() - expected.double().mean(), rtol=1e-5, atol=0)


def test_the_interval_of_pairs_covers_the_expected_distance_at_this_count():
    count, trials, hits, width = 150, 50, 0, {"pairs": 0.0, "alone": 0.0}
    generator = torch.Generator().manual_seed(5)

    def pair() -> tuple[Tensor, Tensor]:
        before = torch.randn(count, 4, generator=generator, dtype=torch.float64)
        return before, 0.8 * before + 0.3 + 0.3 * torch.randn(count, 4, generator=generator, dtype=torch.float64)

    def distance(before: Tensor, after: Tensor) -> float:
        return frechet_distance(GaussianStats.of(after), GaussianStats.of(before))

    truth = float(np.mean([distance(*pair()) for _ in range(400)]))
    for trial in range(trials):
        before, after = pair()
        interval = bootstrap_interval(after, before, resamples=40, level=0.9, seed=trial)
        hits += interval.low <= truth <= interval.high
        if trial < 10:
            alone = bootstrap_interval(after, GaussianStats.of(before), resamples=40, level=0.9, seed=trial)
            width["alone"] += alone.high - alone.low
            width["pairs"] += interval.high - interval.low
    assert 0.8 <= hits / trials <= 0.97
    assert width["pairs"] < 0.6 * width["alone"]


@pytest.mark.parametrize(
    ("features", "message"),
    [(torch.zeros(1, 3), "N >= 2"), (torch.zeros(4), "shape"), (torch.tensor([[1.0], [float("nan")]]), "not finite")],
)
def test_bad_features_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        GaussianStats.of(features)


def test_bad_arguments_are_refused():
    three, four = (GaussianStats.of(random_features(9, size, 0)) for size in (3, 4))
    with pytest.raises(ValueError, match="same net"):
        frechet_distance(three, four)
    with pytest.raises(ValueError, match="stratum 3 has a single vector"):
        resampled_distances(random_features(9, 3, 0), three, seed=0, strata=torch.tensor([0] * 8 + [3]))
    with pytest.raises(ValueError, match=r"GaussianStats\.of"):
        frechet_distance(GaussianStats(three.mean, -three.cov, 9), three)
