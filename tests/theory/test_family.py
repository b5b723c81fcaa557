"""The family of plans that a search goes through: what is in it, its short list, the objective between grid times."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.values import Refresh
from dualrate.planning.search import BLENDS, Member, members, shortlist
from dualrate.sampling import grids
from theory.common import PROCESS

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


def test_a_short_list_holds_every_value_with_the_usual_other_one():
    family, usual = members(16, 4, late=True), Member(0.0, 2)
    cross = {Member(blend, 2) for blend in BLENDS} | {Member(0.0, alone) for alone in (0, 2, 4, 6, 8, 10)}
    assert set(shortlist(family, usual, 24)) == cross
    assert set(shortlist(family, usual, 5)) < cross
    assert len(shortlist(family, None, 24)) == 22


def test_a_member_says_what_it_is():
    assert (str(Member(0.3)), str(Member(1.0, 4))) == ("blend:0.3", "blend:1, 4 alone")
    with pytest.raises(ValueError, match="blend"):
        Member(1.2)
