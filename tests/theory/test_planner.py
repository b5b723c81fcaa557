"""Plans found by dynamic programming, against trying all of them; measured errors, against closed forms."""

import contextlib
import itertools

import numpy as np
import pytest
import torch

from dualrate.diffusion.context import Cond, Refresh
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import NoisyEnd
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Sigmoid
from dualrate.sampling.planner import Bend, Errors, Planner, measure_errors
from tests.theory.common import PROCESS, gaussian, normals
from theory.exact import OracleDenoiser
from theory.held_context import Echo

FULL, KEEP, NONE = Refresh.FULL, Refresh.KEEP, Refresh.NONE


def random_errors(steps: int, seed: int) -> Errors:
    rng, t = np.random.default_rng(seed), tuple(1 - i / steps for i in range(steps + 1))
    errors = rng.uniform(0.1, 1, (steps, steps + 1))
    errors[:, :-1][np.triu_indices(steps, 1)] = np.inf
    log_snr = PROCESS.schedule.log_snr(torch.tensor(t[:-1], dtype=torch.float64)).numpy()
    bend = Bend(log_snr, *(rng.uniform(0, 0.1, steps - less) for less in (1, 2, 0))) if steps > 2 else None
    return Errors(t, errors, bend)


def all_plans(times: tuple[float, ...], heavy: int) -> list[StepPlan]:
    plans = []
    for refresh in itertools.product((FULL, KEEP, NONE), repeat=len(times) - 1):
        if sum(r is FULL for r in refresh) <= heavy:
            with contextlib.suppress(ValueError):  # it keeps what it does not hold
                plans.append(StepPlan(times, refresh))
    return plans


ORDERS = pytest.mark.parametrize("order", [1, 2])


@ORDERS
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("size", "steps", "heavy"), [(5, 5, 2), (6, 3, 1), (6, 6, 6), (4, 4, 0), (6, 2, 2)])
def test_the_best_plan_is_that_of_trying_all(size, steps, heavy, seed, order):
    errors = random_errors(size, seed)
    planner = Planner(errors, PROCESS, order=order)
    found = planner.best(steps, heavy)
    tried = all_plans(errors.t[:: size // steps], heavy)
    best = min(tried, key=planner.objective)
    assert found.objective == pytest.approx(planner.objective(best), rel=1e-12)
    assert found.plan == best


@ORDERS
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.2, 0.5, 1])
def test_steps_without_a_context_are_counted_where_they_have_a_price(share, seed, order):
    """By trying all plans of four steps whose numbers of heavy calls and of such steps a table allows."""
    errors = random_errors(4, seed)
    planner, allowed = Planner(errors, PROCESS, order=order), np.random.default_rng(seed).random((5, 5)) < share
    tried = [plan for plan in all_plans(errors.t, 4) if allowed[plan.num_heavy, plan.refresh.count(NONE)]]
    if not tried:
        with pytest.raises(ValueError, match="no plan of 4 steps"):
            planner.best(4, allowed)
        return
    best = min(tried, key=planner.objective)
    found = planner.best(4, allowed)
    assert found.plan == best
    assert found.objective == pytest.approx(planner.objective(best), rel=1e-12)


def test_terms_add_up_to_the_weighted_sum():
    errors = random_errors(3, 0)
    plan = StepPlan(errors.t, (FULL, KEEP, NONE))
    log_snr = PROCESS.schedule.log_snr(torch.tensor(errors.t, dtype=torch.float64))
    weight = [0.5 * Sigmoid().integral(log_snr[i], log_snr[i + 1]).item() for i in range(3)]
    used = errors.errors[0, 0], errors.errors[1, 0], errors.errors[2, -1]
    expected = sum(w * e for w, e in zip(weight, used, strict=True))
    assert Planner(errors, PROCESS).objective(plan) == pytest.approx(expected, rel=1e-12)
    assert Planner(errors, PROCESS, Sigmoid(-2.0)).objective(plan) != pytest.approx(expected, rel=0.1)


def test_of_second_order_a_plan_pays_for_what_contexts_lack_and_for_bends():
    """The first step is of first order, and the last, into t = 0, ends in its x_hat."""
    errors = random_errors(4, 0)
    plan, e = StepPlan(errors.t, (FULL, KEEP, NONE, FULL)), errors.errors
    log_snr = PROCESS.schedule.log_snr(torch.tensor(errors.t, dtype=torch.float64))
    weight = [0.5 * Sigmoid().integral(log_snr[i], log_snr[i + 1]).item() for i in range(4)]
    ends = log_snr.numpy()
    bends = [errors.bend.error(ends[i], ends[i + 1], first=i == 0) for i in range(3)]
    terms = [bends[0], e[1, 0] - e[1, 1] + bends[1], e[2, -1] - e[2, 2] + bends[2], errors.bend.last[3]]
    planner = Planner(errors, PROCESS, order=2)
    assert planner.objective(plan) == pytest.approx(sum(w * x for w, x in zip(weight, terms, strict=True)), rel=1e-12)
    with pytest.raises(ValueError, match="raise --grid, or plan for ancestral sampling"):
        Planner(random_errors(2, 0), PROCESS, order=2)


def test_where_the_end_has_noise_its_step_is_as_all_others():
    errors, process = random_errors(4, 0), NoisyEnd(PROCESS.schedule)
    planner = Planner(errors, process, order=2)
    ends = PROCESS.schedule.log_snr(torch.tensor(errors.t, dtype=torch.float64)).numpy()
    log_snr = torch.from_numpy(ends)
    weights = 0.5 * planner.weighting.integral(log_snr[:-1], log_snr[1:])
    off = [errors.bend.error(ends[i], ends[i + 1], first=i == 0) for i in range(4)]
    expected = sum(weight * one for weight, one in zip(weights.tolist(), off, strict=True))
    assert planner.objective(StepPlan(errors.t, (FULL,) * 4)) == pytest.approx(expected)


def test_measured_errors_are_the_posterior_variances():
    """Echo repeats E[x | z_tau], so its error at any later time is Var[x | z_tau]; an exact one's is Var[x | z_t]."""
    c, rows, t = 0.3, 40_000, (0.9, 0.7, 0.5, 0.3, 0.0)
    x = c**0.5 * normals(5, rows, 1)
    draws = Draws(2, torch.arange(rows))
    log_snr = PROCESS.schedule.log_snr(torch.tensor(t[:-1], dtype=torch.float64))
    variance = (c * torch.sigmoid(-log_snr) / (torch.sigmoid(log_snr) * c + torch.sigmoid(-log_snr))).numpy()

    class Forgetful(Echo):
        def denoise(self, z, t, context, cond):
            return super().denoise(z, t, context, cond) if context.features else torch.zeros_like(z)

    errors = measure_errors(Forgetful(gaussian(c), PROCESS), PROCESS, t, x, Cond(), draws).errors
    for i in range(4):
        assert errors[i, : i + 1] == pytest.approx(variance[: i + 1], rel=0.04)
        assert np.isinf(errors[i, i + 1 : -1]).all()
        assert errors[i, -1] == pytest.approx(c, rel=0.04)
    exact = measure_errors(OracleDenoiser(gaussian(c), PROCESS), PROCESS, t, x, Cond(), draws).errors
    for i in range(4):
        assert exact[i, [i, -1]] == pytest.approx(variance[i], rel=0.04)
        assert np.isinf(exact[i, :i]).all()  # what its heavy call leaves behind is no context


def test_a_useless_context_is_not_paid_for_and_a_needed_one_is_spread():
    steps = 8
    useless = random_errors(steps, 1)
    useless.errors[:, -1] = 0.01
    plan = Planner(useless, PROCESS).best(steps, 4).plan
    assert plan.refresh == (NONE,) * steps
    t = useless.t
    ageing = np.array([[1 + (i - j) if j <= i else np.inf for j in range(steps)] + [99.0] for i in range(steps)])
    plan = Planner(Errors(t, ageing), PROCESS, Flat()).best(steps, 4).plan
    assert plan == StepPlan.uniform(steps, 4)


class Flat(Sigmoid):
    """Equal weight for every step, however short."""

    def integral(self, log_snr_low, log_snr_high):
        return torch.ones_like(log_snr_high - log_snr_low)


@pytest.mark.parametrize(("steps", "heavy"), [(0, 0), (5, 1), (16, 1), (4, -1)])
def test_impossible_requests_are_refused(steps, heavy):
    with pytest.raises(ValueError):
        Planner(random_errors(8, 0), PROCESS).best(steps, heavy)


def test_times_off_the_grid_are_refused():
    with pytest.raises(ValueError, match=r"time 0\.33"):
        Planner(random_errors(4, 0), PROCESS).objective(StepPlan.at([1, 0.33, 0], [0]))
