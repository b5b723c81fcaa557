"""Forecasts: Newton's is the polynomial through what was kept, at any spacing; the published one is a line's alone."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import dualrate as dr
from dualrate.denoisers.feature_cache import forecast, forecast_weights
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.values import shared_time

EQUAL, UNEQUAL = [0.3, 0.5, 0.7, 0.9], [0.31, 0.42, 0.78, 0.9]


@dataclass(frozen=True)
class Itself:
    """A schedule whose log-SNR is the time, so that u = t."""

    def log_snr(self, t: Tensor) -> Tensor:
        return t


def at(t: float) -> Tensor:
    return torch.tensor([t], dtype=torch.float64)


def forecast_of(function, form: str, nodes: list[float], t: float) -> float:
    weights = forecast_weights(form, Itself(), at(t), *map(at, nodes))
    return sum(weight.item() * function(node) for weight, node in zip(weights, nodes, strict=True))


@pytest.mark.parametrize("nodes", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_newton_is_exact_for_polynomials_of_its_order_and_no_more(nodes, order):
    def polynomial(u, degree):
        return sum((-1.3) ** k * (k + 1) * u**k for k in range(degree + 1))

    held = nodes[: order + 1]
    for t in (0.1, 0.27):
        for degree in range(order + 1):
            found = forecast_of(lambda u, degree=degree: polynomial(u, degree), "newton", held, t)
            assert found == pytest.approx(polynomial(t, degree), abs=1e-10)
        beyond = forecast_of(lambda u: polynomial(u, order + 1), "newton", held, t)
        assert abs(beyond - polynomial(t, order + 1)) > 1e-3


@pytest.mark.parametrize("nodes", [EQUAL, UNEQUAL])
def test_the_published_form_is_exact_for_lines_at_any_spacing(nodes):
    for order in (1, 2, 3):
        found = forecast_of(lambda u: 2 - 3 * u, "published", nodes[: order + 1], 0.1)
        assert found == pytest.approx(2 - 0.3, abs=1e-10)


def test_the_published_form_misses_a_parabola_at_equal_spacing_too():
    """2 + 3u - u^2, kept at 0, -3, -6: 4 at u = 1, where backward differences in the place of derivatives say 7."""

    def parabola(u):
        return 2 + 3 * u - u**2

    nodes = [0.0, -3.0, -6.0]
    found = [forecast_of(parabola, form, nodes[:size], 1.0) for form, size in (("published", 2), ("published", 3))]
    assert found == pytest.approx([8, 7])
    assert forecast_of(parabola, "newton", nodes, 1.0) == pytest.approx(4)


def test_the_published_form_divides_by_the_latest_distance_at_unequal_spacing():
    """Kept at 0, -1, -3, forecast at 1: D_1 = F_0 - F_1, D_2 = (F_0 - F_1) - (F_1 - F_2) / 2, over distance 1."""
    weights = forecast_weights("published", Itself(), at(1.0), at(0.0), at(-1.0), at(-3.0))
    assert [weight.item() for weight in weights] == pytest.approx([1 + 1 + 0.5, -1 - 0.75, 0.25])


@pytest.mark.parametrize("form", ["newton", "published"])
def test_a_plan_s_times_have_their_weights_once_on_the_host_and_rows_their_own(form):
    shared = forecast_weights(form, Cosine(), *(shared_time(t) for t in (0.2, 0.4, 0.7)))
    own = forecast_weights(form, Cosine(), *(torch.tensor([t, 0.9 * t]).double() for t in (0.2, 0.4, 0.7)))
    assert all(weight.ndim == 0 for weight in shared)
    assert [weight.shape for weight in own] == [(2,), (2,)]
    for one, rows in zip(shared, own, strict=True):
        torch.testing.assert_close(rows[0], one)
        assert abs(rows[1] - one) > 1e-3


def context(value: float, tau: float, earlier: tuple[dr.Context, ...] = ()) -> dr.Context:
    return dr.Context((torch.full((1, 2), value, dtype=torch.bfloat16),), at(tau), earlier=earlier)


def test_features_in_bfloat16_are_added_up_in_float32():
    """9 times 101 less 8 times 100.5: in bfloat16 the first is 908."""
    held = context(101.0, 1.0, (context(100.5, 2.0),))
    (found,) = forecast(held, at(-7.0), Itself(), "newton")
    assert found.dtype == torch.bfloat16
    assert found.float().tolist() == [[105.0, 105.0]]


def test_features_without_a_time_are_refused():
    held = dr.Context((torch.zeros(1, 2),), at(0.5), earlier=(dr.Context((torch.zeros(1, 2),)),))
    with pytest.raises(ValueError, match="has none"):
        forecast(held, at(0.2), Itself(), "newton")
