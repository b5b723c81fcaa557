"""Scores: real images lie at the floor, damaged ones above it, and everything needed to read a score is in it."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from dualrate.data.images import ImageSet
from dualrate.metrics.distances import GaussianStats, frechet_distance, kernel_distance, precision_recall
from dualrate.metrics.evaluate import Evaluator, by_turns, class_weights
from dualrate.metrics.features import FeatureNet, train_feature_net
from dualrate.metrics.references import Reference
from dualrate.metrics.store import require_same
from metrics.scored import score_of
from metrics.squares import two_classes

REAL = two_classes(count=1200, seed=2).images


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    reference = two_classes(count=1500)
    net = train_feature_net(two_classes(), None, seed=0, epochs=15)
    return Evaluator(net, reference, two_classes(count=600, seed=1, split="test"))


def test_real_images_lie_at_the_floor_and_damaged_ones_above(evaluator):
    damage = np.random.default_rng(0).integers(0, 60, REAL[:600].shape, dtype=np.uint8)
    real = score_of(evaluator, REAL[:600], seeds="0-599", labels="none", resamples=20)
    damaged = score_of(evaluator, np.maximum(REAL[:600], damage), seeds="0-599", labels="none", resamples=20)
    assert real.metric == "FD-squares"
    assert real.low < real.value < real.high
    assert real.value < 3 * real.floor < damaged.low  # whose classes are as chance has them
    assert real.floor == damaged.floor


def test_a_score_is_the_distance_from_all_of_the_reference(evaluator):
    score = score_of(evaluator, torch.from_numpy(REAL), seeds="0-1199", labels="none", resamples=2)
    ours, reference = (GaussianStats.of(evaluator.net.features(x)) for x in (REAL, evaluator.reference.images))
    assert score.value == pytest.approx(frechet_distance(ours, reference), rel=1e-9)


def test_the_floor_is_taken_at_the_same_count(evaluator):
    few, many = evaluator.floor(200), evaluator.floor(600)
    assert (few[1], many[1]) == (200, 600)
    assert few[0] > many[0] > 0
    assert evaluator.floor(5000) == many


def test_the_floor_has_the_shares_of_the_reference(evaluator):
    """Held-out images of equal classes, against a reference of which one class is a tenth."""
    images = two_classes(count=3000, seed=6)
    rows = np.concatenate([np.flatnonzero(images.labels == label)[:count] for label, count in ((0, 900), (1, 100))])
    rare = replace(images, images=images.images[rows], labels=images.labels[rows])
    held_out = two_classes(count=600, seed=7, split="test")
    alike = Evaluator(evaluator.net, rare, held_out)
    apart = Evaluator(evaluator.net, rare, replace(held_out, labels=None, class_names=()))
    assert alike.floor(600)[0] < 0.1 * apart.floor(600)[0]
    score = score_of(alike, REAL, seeds="0-1199", labels="none", resamples=2)
    assert "the floor's classes weigh as in the reference: " in score.note
    same = Evaluator(evaluator.net, held_out, held_out)
    assert same.floor(600)[0] == pytest.approx(0, abs=1e-9)
    assert "weigh" not in score_of(same, REAL, seeds="0-1199", labels="none", resamples=2).note


def test_weights_give_each_class_its_share():
    images, like = two_classes(count=40, seed=1), two_classes(count=30, seed=2)
    rows = torch.arange(25)
    weights = class_weights(images, rows, like)
    for label in (0, 1):
        assert weights[torch.from_numpy(images.labels[:25] == label)].sum() == pytest.approx(
            (like.labels == label).mean()
        )
    twice = replace(like, images=np.tile(like.images, (2, 1, 1, 1)), labels=np.tile(like.labels, 2))
    assert class_weights(twice, rows, like) is None
    assert class_weights(replace(images, labels=None, class_names=()), rows, like) is None
    lonely = replace(images, labels=np.array([1] + [0] * 39))
    other = replace(like, labels=np.ones(30, np.int64))
    assert class_weights(lonely, rows, other) is None  # one image alone would count


def test_what_to_keep_in_mind_is_noted(evaluator):
    score = score_of(evaluator, REAL, seeds="0-1199", labels="none", resamples=2)
    assert (score.fingerprint.count, score.floor_count) == (1200, 600)
    assert "1200 images is biased upward" in score.note
    assert "only 600 held-out" in score.note
    without = Evaluator(evaluator.net, evaluator.reference, None)
    alone = score_of(without, REAL, seeds="0-1199", labels="none", resamples=2)
    assert math.isnan(alone.floor)
    assert "no floor" in alone.note
    one = replace(evaluator.held_out, images=evaluator.held_out.images[:1], labels=evaluator.held_out.labels[:1])
    assert math.isnan(replace(evaluator, held_out=one).floor(100)[0])
    with pytest.raises(ValueError, match=r"has one training image: .* --reference"):
        score_of(replace(evaluator, reference=one), REAL, seeds="0-1199", labels="none", resamples=2)


def test_the_fingerprint_tells_count_seeds_net_and_reference_apart(evaluator):
    one = score_of(evaluator, REAL[:400], seeds="0-399", labels="i mod classes", resamples=2).fingerprint
    assert one.features == f"squares:{evaluator.net.card.identity[:12]}"
    assert one.reference == f"squares/train:{evaluator.reference.fingerprint[:12]}"
    assert (one.reference_count, one.count, one.seeds, one.labels) == (1500, 400, "0-399", "i mod classes")
    other = score_of(evaluator, REAL[:500], seeds="0-499", labels="i mod classes", resamples=2).fingerprint
    with pytest.raises(ValueError, match=r"count \(400 / 500\), seeds"):
        require_same([one, other])


def test_strata_narrow_the_interval_alone_and_say_so(evaluator):
    labels = two_classes(count=1200, seed=2).labels
    features, strata = evaluator.net.features(REAL), torch.from_numpy(labels)
    of = {"seeds": "0-1199", "labels": "i mod classes"}
    plain, within = evaluator.score_features(features, **of), score_of(evaluator, REAL, **of, strata=strata)
    assert (within.value, within.fingerprint) == (plain.value, plain.fingerprint)
    assert within.high - within.low < 0.9 * (plain.high - plain.low)
    assert "with as many images of each class" in within.note
    assert "share" not in plain.note


def test_replicates_are_what_the_interval_is_of(evaluator):
    features = evaluator.net.features(REAL)
    strata = torch.arange(len(REAL)) % 10
    for given in (None, strata):
        score = evaluator.score_features(features, seeds="", labels="", resamples=50, strata=given)
        replicates = evaluator.replicates(features, given, resamples=50)
        assert replicates.shape == (50,)
        assert replicates.mean() == pytest.approx(score.value, rel=1e-9)
        assert np.quantile(replicates, [0.025, 0.975]) == pytest.approx([score.low, score.high], rel=1e-9)


def test_reconstructions_are_scored_from_the_held_out_images_that_they_are_of(evaluator):
    rows = torch.arange(500).flip(0)
    before = evaluator.held_out.images[rows.numpy()]
    same, dark = (evaluator.net.features(images) for images in (before, before // 2))
    how = {"seeds": "0-499", "labels": "none", "of": rows, "resamples": 20}
    score = evaluator.score_features(dark, **how)
    assert score.value == frechet_distance(GaussianStats.of(dark), GaussianStats.of(same))
    assert (score.floor, score.floor_count, score.fingerprint.reference_count) == (0, 500, 500)
    assert score.fingerprint.reference.startswith("squares/test:")
    assert "rFD" in score.note
    replicates = evaluator.replicates(dark, of=rows, resamples=20)
    assert np.quantile(replicates, [0.025, 0.975]) == pytest.approx([score.low, score.high], rel=1e-9)
    assert evaluator.score_features(same, **how).value == pytest.approx(0, abs=1e-9)
    assert evaluator.score_features(same, seeds="0-499", labels="none", resamples=2).value > 0.001


def test_reconstructions_of_the_same_images_are_counted_together(evaluator):
    """Their details are those of each once, and the interval is over the images that they are of."""
    rows = torch.arange(250)
    one = evaluator.net.features(evaluator.held_out.images[:250] // 2)
    how = {"seeds": "", "labels": "none"}
    once = evaluator.score_features(one, **how, of=rows, details=True)
    thrice = evaluator.score_features(one.repeat(3, 1), **how, of=rows.repeat(3), details=True)
    assert thrice.details == once.details
    assert (thrice.floor_count, thrice.fingerprint.count) == (250, 750)
    others = evaluator.score_features(one.repeat(3, 1), **how, of=rows.repeat(3), reconstructs=False)
    assert (math.isnan(others.floor), others.floor_count, others.value) == (True, 0, thrice.value)
    assert others.note == "from the held-out images that their conditions are of; 750 images of 250 of them"
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.15)


def test_kept_real_images_are_seen_in_parts_by_other_processes(evaluator, tmp_path, monkeypatch):
    """In whatever order these are done, by processes that get what can be pickled."""
    alone = score_of(evaluator, REAL, seeds="0-1199", labels="none", resamples=2)
    told, asked = [], []

    def backwards(job, blocks):
        for block in reversed(blocks):
            sent = pickle.loads(pickle.dumps(block))
            asked.append(len(sent))
            yield block, pickle.loads(pickle.dumps(job))(sent)

    fresh = replace(evaluator, keep=tmp_path, progress=lambda done, total: told.append((done, total)))
    fresh.prepare(backwards, held_out_alone=True)
    assert asked == [100, 500]
    fresh.prepare(backwards)
    assert asked == [100, 500, 500, 500, 500]
    assert told == [(0, 600), (100, 600), (600, 600), (0, 1500), (500, 1500), (1000, 1500), (1500, 1500)]
    monkeypatch.setattr(FeatureNet, "features", None)  # not asked again
    assert fresh.floor(1200) == (alone.floor, 600)
    assert torch.equal(fresh.reference_features, evaluator.reference_features)
    fresh.prepare(backwards)


def test_details_are_of_the_reference_at_the_same_count(evaluator):
    features = evaluator.net.features(REAL[:600])
    found = evaluator.score_features(features, seeds="", labels="", resamples=2, details=True).details
    reference = evaluator.reference_features
    assert torch.equal(reference, evaluator.net.features(evaluator.reference.images))
    assert found.kernel_metric == "KD-squares"
    assert found.kernel == kernel_distance(features, reference)
    assert found.reference_count == 600
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    chosen = order[by_turns(evaluator.reference.labels[order.numpy()])][:600]
    assert found.precision_recall == precision_recall(features, reference[chosen])
    assert found == evaluator.details(features)
    assert evaluator.score_features(features, seeds="", labels="", resamples=2).details is None


def test_details_tell_lost_variety_from_lost_fidelity(evaluator):
    left = REAL[two_classes(count=1200, seed=2).labels == 0][:400]
    noise = np.random.default_rng(0).integers(0, 256, left.shape, dtype=np.uint8)
    one_class, noisy = (evaluator.details(evaluator.net.features(images)) for images in (left, noise))
    assert one_class.precision_recall.precision > 0.8
    assert 0.2 < one_class.precision_recall.recall < 0.7
    assert noisy.precision_recall.precision < 0.1
    assert noisy.kernel.value > 3 * noisy.kernel.standard_error
    text = str(one_class)
    assert f"precision {one_class.precision_recall.precision:.3f}" in text
    assert "KD-squares" in text


def test_statistics_from_a_file_have_no_details(evaluator):
    stats = GaussianStats.of(evaluator.reference_features)
    other = Evaluator(evaluator.net, Reference(stats, "ref.npz", "0" * 64), None)
    with pytest.raises(ValueError, match=r"ref\.npz .*training images"):
        other.details(evaluator.reference_features)


def test_too_few_images_are_refused(evaluator):
    with pytest.raises(ValueError, match="needs at least 192"):
        score_of(evaluator, REAL[:191], seeds="0-190", labels="none")


def test_images_of_another_shape_are_refused(evaluator):
    with pytest.raises(ValueError, match="uint8"):
        score_of(evaluator, REAL.astype(np.float32), seeds="0-1199", labels="none")


def test_features_that_are_not_finite_are_refused(evaluator):
    module = evaluator.net.card.architecture.build().eval()
    torch.nn.init.constant_(module.project.bias, math.nan)
    broken = Evaluator(FeatureNet(evaluator.net.card, module), evaluator.reference, None)
    with pytest.raises(ValueError, match="not finite"):
        score_of(broken, REAL, seeds="0-1199", labels="none")


@pytest.mark.parametrize("counts", [(40, 40, 40), (90, 30)])
def test_by_turns_every_beginning_has_the_shares_of_the_whole(counts):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    order = by_turns(labels)
    assert sorted(order.tolist()) == list(range(sum(counts)))
    for count in (12, 60, 100):
        held = np.bincount(labels[order[:count]], minlength=len(counts))
        assert np.abs(held - count * np.array(counts) / sum(counts)).max() < 1.01


class Labels:
    """Features that are the images' first pixel, where these tests write the label."""

    metric, identity, dim, usual_count = "FD-labels", "labels:0", 1, 1

    def features(self, images):
        return torch.as_tensor(np.asarray(images))[:, 0, 0, :1].float()


def test_the_floor_is_of_balanced_classes():
    """With features that tell nothing but the class, balanced images are at distance 0, a random mix is not."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(2), 500))
    images = ImageSet(labels.astype(np.uint8)[:, None, None, None].repeat(4, 3), labels, ("a", "b"), "labels")
    evaluator = Evaluator(Labels(), images, images)
    for count in (10, 50, 200):
        assert evaluator.floor(count)[0] == pytest.approx(0, abs=2e-3)  # not 0: variances divide by count - 1
    assert Evaluator(Labels(), images, replace(images, labels=None, class_names=())).floor(50)[0] > 4e-3
