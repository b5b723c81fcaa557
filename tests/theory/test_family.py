"""The family of plans that a search goes through: what is in it, its short list, the objective between grid times."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.values import Refresh
from dualrate.planning.planner import Errors, Planner
from dualrate.planning.search import BLENDS, Member, interpolated_objective, members, shortlist
from dualrate.sampling import grids
from theory.common import PROCESS
from theory.test_planner import FULL, KEEP, NONE, random_errors

COSINE = PROCESS.schedule


def test_the_family_holds_the_usual_plans():
    plans = {member.plan(COSINE, 16, 4) for member in members(16, 4, late=True)}
    assert len(plans) == len(BLENDS) * 6
    assert {StepPlan.uniform(16, 4), StepPlan.late(16, 4)} <= plans
    assert StepPlan.late(grids.uniform_log_snr(COSINE, 16), 4) in plans
    single = {member.plan(COSINE, 16, 16) for member in members(16, 16, late=True)}
    assert len(single) == len(BLENDS)
    assert {StepPlan.uniform(16), StepPlan.spread(grids.uniform_log_snr(COSINE, 16))} <= single


@given(steps=st.integers(1, 64), data=st.data())
@settings(max_examples=25)
def test_every_member_is_a_plan_of_its_counts(steps, data):
    heavy = data.draw(st.integers(0, steps))
    for late in (False, True):
        family = members(steps, heavy, late=late)
        assert len({(member.blend, member.alone) for member in family}) == len(family)
        for member in family:
            plan = member.plan(COSINE, steps, heavy)
            assert (plan.num_steps, plan.num_heavy) == (steps, heavy)
            if heavy:
                assert plan.refresh.index(Refresh.FULL) == member.alone
                assert late or member.alone == 0


@pytest.mark.parametrize("most", [1, 16, 24, 100])
def test_a_short_list_holds_every_value_with_the_usual_other_one(most):
    """Then the best by the objective, which alone may not leave a value out."""
    family, usual = members(16, 4, late=True), Member(0.0, 2)
    scores = dict(zip(family, np.random.default_rng(0).permutation(len(family)).tolist(), strict=True))
    listed = shortlist(family, usual, scores.__getitem__, most)
    assert len(listed) == len(set(listed)) == min(most, len(family))
    if most >= 16:
        assert {Member(blend, 2) for blend in BLENDS} | {Member(0.0, alone) for alone in (0, 2, 4, 6, 8, 10)} == set(
            listed[:16]
        )
    left = sorted(set(family) - set(listed), key=scores.__getitem__)
    assert all(scores[one] < scores[left[0]] for one in listed[16:] if left)
    assert shortlist(family, None, scores.__getitem__, 5) == sorted(family, key=scores.__getitem__)[:5]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_on_the_grid_the_objective_is_the_planners(seed, order):
    planner = Planner(random_errors(8, seed), PROCESS, order=order)
    for plan in (
        StepPlan.uniform(8, 3),
        StepPlan.late(8, 2, 3),
        StepPlan.at(4, ()),
        StepPlan.uniform(8),
        StepPlan.at(planner.errors.t[::4], [1]),
    ):
        assert interpolated_objective(planner, plan) == pytest.approx(planner.objective(plan), rel=1e-12)


def test_errors_that_are_linear_in_both_times_are_met_between_them():
    """e(t, tau) = 2 t + tau with a context, 5 t without; above the grid's last time but 0, where e is taken as 0."""
    t = (1.0, 0.8, 0.55, 0.3, 0.1, 0.0)
    inner = np.array(t[:-1])
    errors = np.hstack((2 * inner[:, None] + inner[None], 5 * inner[:, None]))
    errors[:, :-1][np.triu_indices(5, 1)] = np.inf
    planner = Planner(Errors(t, errors), PROCESS)
    refresh = (NONE, FULL, KEEP, FULL, KEEP, KEEP, KEEP)
    plan = StepPlan((1.0, 0.9, 0.82, 0.7, 0.41, 0.4, 0.15, 0.12), refresh)
    log_snr = PROCESS.schedule.log_snr(torch.tensor(plan.t, dtype=torch.float64))
    weights = 0.5 * planner.weighting.integral(log_snr[:-1], log_snr[1:])
    held = [None, 0.9, 0.9, 0.7, 0.7, 0.7, 0.7]
    terms = [5 * t if tau is None else 2 * t + tau for t, tau in zip(plan.t, held, strict=False)]
    expected = sum(w * e for w, e in zip(weights.tolist(), terms, strict=True))
    assert interpolated_objective(planner, plan) == pytest.approx(expected, rel=1e-12)


def test_below_the_grid_the_error_falls_to_zero():
    planner = Planner(random_errors(4, 0), PROCESS)

    def last_term(t: float) -> float:
        whole, weight = StepPlan.at((t, 0), [0]), planner.weighting
        ends = PROCESS.schedule.log_snr(torch.tensor([t, 0], dtype=torch.float64))
        return interpolated_objective(planner, whole) / (0.5 * weight.integral(ends[0], ends[1]).item())

    assert last_term(0.25) == pytest.approx(planner.errors.errors[3, 3])
    assert last_term(0.125) == pytest.approx(planner.errors.errors[3, 3] / 2)


def test_a_member_says_what_it_is():
    assert (str(Member(0.3)), str(Member(1.0, 4))) == ("blend:0.3", "blend:1, 4 alone")
    with pytest.raises(ValueError, match="blend"):
        Member(1.2)
