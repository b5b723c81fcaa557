"""The kernel distance against torchmetrics, scikit-learn, a closed form, and its law over many draws."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dualrate.metrics import distances as kernel
from dualrate.metrics.distances import kernel_distance, kernel_metric, squared_mmd
from dualrate.metrics.features import Architecture, Card, FeatureNet
from dualrate.metrics.pretrained import PhotoNet


def draws(count: int, size: int = 6, *, seed: int, shift: float = 0.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=dtype) + shift


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = draws(40, seed=0), draws(40, seed=1, shift=0.5)
    assert squared_mmd(x, y).item() == pytest.approx(kid.poly_mmd(y, x).item(), rel=1e-12)


def test_agrees_with_the_kernel_of_scikit_learn():
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    x, y = draws(30, seed=0), draws(50, seed=1, shift=0.3)

    def mean(a: Tensor, b: Tensor) -> float:
        kernel = pairwise.polynomial_kernel(a.numpy(), b.numpy(), degree=3, gamma=None, coef0=1)
        return kernel[~np.eye(len(a), dtype=bool)].mean() if a is b else kernel.mean()

    assert squared_mmd(x, y).item() == pytest.approx(mean(x, x) + mean(y, y) - 2 * mean(x, y), rel=1e-12)


def test_two_points_have_a_closed_form():
    """All of one set at 0 and all of the other at c: k(0, .) = 1, k(c, c) = (c^2 + 1)^3."""
    value = squared_mmd(torch.zeros(5, 1, dtype=torch.float64), torch.full((4, 1), 2.0, dtype=torch.float64))
    assert value.item() == pytest.approx(1 + 5**3 - 2)


def test_equal_distributions_are_at_zero_within_the_standard_error():
    results = [kernel_distance(draws(120, seed=2 * i), draws(120, seed=2 * i + 1)) for i in range(200)]
    values = np.array([result.value for result in results])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    assert (values < 0).any()
    claimed = math.sqrt(np.mean([result.standard_error**2 for result in results]))
    assert claimed == pytest.approx(values.std(), rel=0.2)


def test_the_expectation_does_not_depend_on_the_count():
    """E[k] over N(m, I) pairs is a polynomial; here by one large draw, with few vectors many times over."""
    large = squared_mmd(draws(1500, 3, seed=1), draws(1500, 3, seed=2, shift=0.5)).item()
    x, y = draws(1500, 3, seed=3), draws(1500, 3, seed=4, shift=0.5)
    small = torch.stack([squared_mmd(a, b) for a, b in zip(x.split(10), y.split(10), strict=True)])
    assert large == pytest.approx(small.mean().item(), abs=4 * small.std().item() / math.sqrt(len(small)))
    assert large > 20 * small.std().item() / len(small)


def test_a_shift_is_found_and_a_larger_one_is_larger():
    near, far = (kernel_distance(draws(400, seed=0), draws(400, seed=1, shift=s)) for s in (0.3, 1.0))
    assert near.value - 3 * near.standard_error > 0
    assert near.value + 3 * near.standard_error < far.value


def test_the_order_of_the_sets_and_a_rotation_of_both_change_nothing():
    x, y = draws(60, seed=0), draws(60, seed=1, shift=0.4)
    rotation = torch.linalg.qr(draws(6, seed=2)).Q
    assert squared_mmd(x, y).item() == pytest.approx(squared_mmd(y, x).item(), rel=1e-12)
    assert squared_mmd(x @ rotation, y @ rotation).item() == pytest.approx(squared_mmd(x, y).item(), rel=1e-12)


def test_subsets_are_of_equal_size_and_drawn_by_the_seed():
    x, y = draws(103, seed=0, dtype=torch.float32), draws(250, seed=1, dtype=torch.float32)
    one, same, other = (kernel_distance(x, y, seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    assert (one.subsets, one.size) == (20, 5)


def test_no_vector_is_in_two_subsets(monkeypatch):
    seen: list[Tensor] = []

    def spy(x: Tensor, y: Tensor) -> Tensor:
        seen.extend((x[:, 0], y[:, 0]))
        return x.sum()

    monkeypatch.setattr(kernel, "squared_mmd", spy)
    kernel_distance(torch.arange(23.0)[:, None], torch.arange(100.0, 130.0)[:, None])
    assert [len(part) for part in seen] == [2] * 22
    assert len(torch.cat(seen).unique()) == 44


def test_features_that_are_not_finite_are_refused():
    broken = draws(40, 3, seed=0)
    broken[3, 1] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        kernel_distance(broken, draws(40, 3, seed=1))


def test_it_is_called_kid_in_inception_features_alone():
    arch = Architecture(1, 8, 2)
    own = FeatureNet(Card("squares", "", arch, "", None, 0, 1), arch.build())
    assert kernel_metric(own) == "KD-squares"
    assert kernel_metric(PhotoNet("inception", torch.nn.Identity(), "", 8, torch.device("cpu"), 10)) == "KID"


def test_few_vectors_make_fewer_subsets_of_two():
    few, many = draws(22, seed=0), draws(192, seed=1)
    found = kernel_distance(few, many)
    assert (found.subsets, found.size) == (11, 2)
    assert kernel_distance(many, many).subsets == 20
