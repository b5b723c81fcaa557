"""Precision and recall against scikit-learn's neighbours, hand-made sets, and what must not change them."""

import math

import pytest
import torch
from torch import Tensor

from dualrate.metrics import distances as module
from dualrate.metrics.distances import PrecisionRecall, precision_recall


def draws(count: int, size: int = 5, *, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, size, generator=generator) + shift


def line(*points: float) -> Tensor:
    return torch.tensor(points)[:, None]


@pytest.mark.parametrize("k", [1, 3])
def test_agrees_with_the_neighbours_of_scikit_learn(k):
    neighbors = pytest.importorskip("sklearn.neighbors")
    fake, real = draws(150, seed=0, scale=0.8, shift=0.4).double(), draws(220, seed=1).double()

    def share_inside(points: Tensor, region: Tensor) -> float:
        found = neighbors.NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(region.numpy())
        radii = found.kneighbors()[0][:, -1]  # without arguments: a point is not its own neighbour
        return float(
            (torch.cdist(points, region, compute_mode="donot_use_mm_for_euclid_dist").numpy() <= radii).any(1).mean()
        )

    ours = precision_recall(fake, real, k=k, block=64)
    assert 0 < ours.recall < ours.precision < 1
    assert ours == PrecisionRecall(share_inside(fake, real), share_inside(real, fake), k)


def test_points_on_a_line():
    """k = 1: the real balls are [-1, 1], [0, 2], [8, 12], [10, 14], the generated [1, 3], [2, 4], [3, 7], [5, 13]."""
    real, fake = line(0, 1, 10, 12), line(2, 3, 5, 9)
    assert precision_recall(fake, real, k=1) == PrecisionRecall(precision=2 / 4, recall=3 / 4, k=1)


def test_identical_sets_have_both_even_where_vectors_repeat():
    x = draws(90, 32, seed=0, scale=100, shift=40)
    assert precision_recall(x, x, block=32) == PrecisionRecall(1.0, 1.0, 3)
    repeated = x[:9].repeat(10, 1)  # all radii are 0
    assert precision_recall(repeated, repeated.flip(0), block=32) == PrecisionRecall(1.0, 1.0, 3)


def test_equal_vectors_are_at_distance_zero_whatever_rounding_makes_of_it():
    x = draws(37, 96, seed=0, scale=100, shift=40)
    for block in (16, 50):
        assert precision_recall(x.repeat(5, 1)[:170], x.repeat(4, 1), block=block) == PrecisionRecall(1.0, 1.0, 3)


def test_disjoint_sets_have_neither():
    assert precision_recall(draws(80, seed=0), draws(80, seed=1, shift=50)) == PrecisionRecall(0.0, 0.0, 3)


def test_a_model_that_draws_one_mode_is_precise_and_recalls_half():
    modes = torch.cat((draws(200, seed=0), draws(200, seed=1, shift=50)))
    one = precision_recall(draws(400, seed=2), modes)
    both = precision_recall(modes, draws(400, seed=2))
    assert one.precision > 0.9
    assert one.recall == pytest.approx(0.5, abs=0.05)
    assert (both.precision, both.recall) == (one.recall, one.precision)


def test_shift_scale_and_rotation_of_both_sets_change_nothing():
    fake, real = draws(120, seed=0, scale=0.7).double(), draws(100, seed=1).double()
    rotation = torch.linalg.qr(draws(5, seed=2).double()).Q
    before = precision_recall(fake, real)
    assert 0 < before.recall < 1
    assert precision_recall(fake @ rotation * 3 + 1000, real @ rotation * 3 + 1000) == before


@pytest.mark.parametrize("block", [3, 7, 64, 500])
def test_the_block_bounds_the_rows_in_memory_and_the_result_does_not_depend_on_it(block, monkeypatch):
    distances, sizes = module._squared_distances, set()

    def spy(a, b):
        found = distances(a, b)
        sizes.add(len(found))
        return found

    fake, real = draws(70, seed=0, scale=0.7), draws(50, seed=1)
    whole = precision_recall(fake, real)
    monkeypatch.setattr(module, "_squared_distances", spy)
    assert precision_recall(fake, real, block=block) == whole
    assert max(sizes) == min(block, 70)


def test_what_has_no_answer_is_refused():
    x = draws(10, seed=0)
    x[2, 2] = math.nan
    with pytest.raises(ValueError, match="finite"):
        precision_recall(draws(10, seed=1), x)
