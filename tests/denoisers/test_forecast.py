"""Forecasts: the polynomial through what was kept, at any spacing."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import dualrate as dr
from dualrate.denoisers.feature_cache import forecast_features, forecast_weights, taylor_weights
from dualrate.diffusion.context import shared_time
from dualrate.diffusion.schedule import Cosine

EQUAL, UNEQUAL = [0.3, 0.5, 0.7, 0.9], [0.31, 0.42, 0.78, 0.9]


@dataclass(frozen=True)
class Itself:
    """A schedule whose log-SNR is the time, so that u = t."""

    def log_snr(self, t: Tensor) -> Tensor:
        return t


def at(t: float) -> Tensor:
    return torch.tensor([t], dtype=torch.float64)


def forecast_of(function, nodes: list[float], t: float) -> float:
    weights = forecast_weights(Itself(), at(t), *map(at, nodes))
    return sum(weight.item() * function(node) for weight, node in zip(weights, nodes, strict=True))


@pytest.mark.parametrize("nodes", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_it_is_exact_for_polynomials_of_its_order_and_no_more(nodes, order):
    def polynomial(u, degree):
        return sum((-1.3) ** k * (k + 1) * u**k for k in range(degree + 1))

    held = nodes[: order + 1]
    for t in (0.1, 0.27):
        for degree in range(order + 1):
            found = forecast_of(lambda u, degree=degree: polynomial(u, degree), held, t)
            assert found == pytest.approx(polynomial(t, degree), abs=1e-10)
        beyond = forecast_of(lambda u: polynomial(u, order + 1), held, t)
        assert abs(beyond - polynomial(t, order + 1)) > 1e-3


def test_a_plan_s_times_have_their_weights_once_on_the_host_and_rows_their_own():
    shared = forecast_weights(Cosine(), *(shared_time(t) for t in (0.2, 0.4, 0.7)))
    own = forecast_weights(Cosine(), *(torch.tensor([t, 0.9 * t]).double() for t in (0.2, 0.4, 0.7)))
    assert all(weight.ndim == 0 for weight in shared)
    assert [weight.shape for weight in own] == [(2,), (2,)]
    for one, rows in zip(shared, own, strict=True):
        torch.testing.assert_close(rows[0], one)
        assert abs(rows[1] - one) > 1e-3


def by_differences(function, gap: int, order: int, k: int) -> float:
    """TaylorSeer: F(t) + sum_i D_i(t) (-k)^i / (i! N^i), D_i(t) = D_(i-1)(t + N) - D_(i-1)(t), time going down."""

    def difference(i: int, t: int) -> float:
        return function(t) if i == 0 else difference(i - 1, t + gap) - difference(i - 1, t)

    terms = (difference(i, 0) * (-k) ** i / (math.factorial(i) * gap**i) for i in range(1, order + 1))
    return function(0) + sum(terms) if order else function(0)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("gap", [1, 3])
def test_taylor_is_the_published_series_where_refreshes_are_equally_far_apart(order, gap):
    def function(t):
        return math.exp(0.2 * t) + t**3

    for k in (1, 2, 5):
        weights = taylor_weights(k, *[gap] * order)
        found = sum(weight.item() * function(gap * j) for j, weight in enumerate(weights))
        assert found == pytest.approx(by_differences(function, gap, order, k), rel=1e-12)


def test_taylor_is_exact_for_straight_lines_alone_at_any_spacing():
    gaps = (2, 5, 1)
    nodes = [0, -2, -7, -8]
    weights = [weight.item() for weight in taylor_weights(3, *gaps)]
    assert sum(weights) == pytest.approx(1)
    assert sum(weight * (4 - 7 * node) for weight, node in zip(weights, nodes, strict=True)) == pytest.approx(-17)
    assert abs(sum(weight * node**2 for weight, node in zip(weights, nodes, strict=True)) - 9) > 0.1
    first = 1 / 2  # by hand: (F_0 - F_1) / 2, then ((F_0 - F_1) / 2 - (F_1 - F_2) / 5) / 2
    third = [weight.item() for weight in taylor_weights(3, 2, 5)]
    assert third == pytest.approx([1 + 3 * first + 4.5 / 4, -3 * first - 4.5 * (1 / 4 + 1 / 10), 4.5 / 10])


def context(value: float, tau: float, earlier: tuple[dr.Context, ...] = ()) -> dr.Context:
    return dr.Context((torch.full((1, 2), value, dtype=torch.bfloat16),), at(tau), earlier=earlier)


def test_features_in_bfloat16_are_added_up_in_float32():
    """9 times 101 less 8 times 100.5: in bfloat16 the first is 908."""
    held = context(101.0, 1.0, (context(100.5, 2.0),))
    (found,) = forecast_features(held, at(-7.0), Itself())
    assert found.dtype == torch.bfloat16
    assert found.float().tolist() == [[105.0, 105.0]]


def test_features_without_a_time_are_refused():
    held = dr.Context((torch.zeros(1, 2),), at(0.5), earlier=(dr.Context((torch.zeros(1, 2),)),))
    with pytest.raises(ValueError, match="has none"):
        forecast_features(held, at(0.2), Itself())
