"""Which plans a student serves: the ones of its training, and a message for every other."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualrate.config.serial import from_plain, to_plain
from dualrate.diffusion.context import Refresh
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.experiment.plan_support import ONE_STEP, AnyPlan, AtLeast, OnePlan, steps_of_ddim
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.moment_matching import MomentMatchingConfig
from dualrate.methods.times import SingleTime, TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.ddim import DDIM, AdjustedDDIM
from dualrate.sampling.grids import karras, uniform
from dualrate.sampling.solvers import Heun
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), patch=2, embedding=16, head_dim=16)


@given(st.integers(1, 40), st.integers(1, 80))
def test_a_plain_student_serves_its_steps_and_more(own, asked):
    plan = StepPlan.uniform(asked)
    if asked >= own:
        AtLeast(own).check(plan)
    else:
        with pytest.raises(ValueError, match=f"distilled to {own} steps and takes as many or more"):
            AtLeast(own).check(plan)


def test_a_plain_student_refuses_a_step_longer_than_it_learned():
    plan = StepPlan.at(karras(Cosine(), 8), range(8))
    with pytest.raises(ValueError, match=r"longer than 1/8"):
        AtLeast(8).check(plan)


@given(st.integers(1, 12), st.data())
def test_a_dual_rate_student_serves_its_own_plan_alone(steps, data):
    grid = OnePlan(steps, data.draw(st.integers(1, steps)))
    grid.check(StepPlan.at(uniform(steps), [i for i, r in enumerate(grid.default_plan().refresh) if r.value == "full"]))
    other = (data.draw(st.integers(1, 12)), data.draw(st.integers(0, 12)))
    if other[1] <= other[0] and other != (grid.steps, grid.heavy):
        with pytest.raises(ValueError, match=rf"for {steps} steps? equal in t with {grid.heavy} heavy calls?"):
            grid.check(StepPlan.uniform(*other))


def test_a_dual_rate_student_refuses_heavy_calls_and_steps_elsewhere():
    for plan in (StepPlan.at(8, (0, 1, 2, 3)), StepPlan.at((1, *uniform(8)[1:-2], 0.1, 0), (0, 2, 4, 6))):
        with pytest.raises(ValueError, match="serves no other plan"):
            OnePlan(8, 4).check(plan)


def test_ends_that_fall_and_counts_for_a_list_of_steps_are_refused():
    for make, message in (
        (lambda: AnyPlan((32, 4)), r"heavy is the least number of heavy calls, then the largest, got \(32, 4\)"),
        (lambda: AnyPlan(times=(0.9, 0.1)), r"times are the least time of .*, then the largest, got \(0.9, 0.1\)"),
        (lambda: StepPlan.at(8, 3), "heavy calls are a list of steps, got 3: StepPlan.uniform"),
        (lambda: StepPlan.uniform("8", 2), "the number of steps is a whole number from 1 to 100,000, got '8'"),
        (lambda: StepPlan.uniform(10**9, 2), "the number of steps is a whole number from 1 to 100,000, got 1000000000"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    assert StepPlan.spread(8, 3) == StepPlan.uniform(8, 3)


def test_what_is_drawn_if_nothing_is_asked_for():
    for serves, steps, heavy in (
        (AtLeast(4), 4, 4),
        (OnePlan(8, 4), 8, 4),
        (DenoisingConfig(SingleTime()).serves, 32, 32),
        (DenoisingConfig(TimeSampler()).serves, 32, 8),
    ):
        plan = serves.default_plan()
        assert (plan.num_steps, plan.num_heavy) == (steps, heavy)
        serves.check(plan)
    AnyPlan().check(StepPlan.uniform(1))
    AnyPlan((4, 32)).check(StepPlan.uniform(3, 1))


def test_a_ladder_has_the_plans_that_are_served():
    def sizes(serves):
        return [(plan.num_steps, plan.num_heavy) for plan in serves.ladder([2, 8, 8, 300])]

    assert sizes(AnyPlan()) == [(2, 2), (8, 8), (300, 300)]
    assert sizes(AnyPlan((4, 32))) == [(2, 2), (8, 4), (300, 32)]
    assert sizes(AtLeast(4)) == [(4, 4), (8, 8), (300, 300)]
    assert sizes(OnePlan(8, 3)) == [(8, 3)]
    assert sizes(steps_of_ddim(4)) == [(4, 4)]
    assert [plan.num_steps for plan in AnyPlan().ladder([0])] == [1]


def test_a_default_plan_of_fewer_steps_than_a_student_has_is_refused_as_a_plan():
    plan = OnePlan(8, 4).default_plan(2)
    assert (plan.num_steps, plan.num_heavy) == (2, 2)
    with pytest.raises(ValueError, match="serves no other plan"):
        OnePlan(8, 4).check(plan)


def test_students_are_for_plain_ancestral_sampling():
    process = GaussianProcess(Cosine())
    for step in (DDIM(process), Ancestral(process, gamma=0.2), Ancestral(process, eta=0.5), Heun(process)):
        AnyPlan().check_step(step)
        for serves in (AtLeast(4), OnePlan(8, 4)):
            serves.check_step(Ancestral(process))
            with pytest.raises(ValueError, match="is a distilled student, for plain ancestral sampling"):
                serves.check_step(step)


def test_a_consistency_model_serves_its_own_steps_of_ddim():
    process, serves = GaussianProcess(Cosine()), steps_of_ddim(4)
    assert serves.default_plan() == StepPlan.uniform(4)
    serves.check(StepPlan.at(uniform(4), range(4)))
    for plan in (
        StepPlan.uniform(8),
        StepPlan.uniform(2),
        StepPlan.uniform(4, 2),
        StepPlan.at((1, 0.7, 0.5, 0.25, 0), range(4)),
    ):
        with pytest.raises(ValueError, match="has learned to make 4 steps, equal in t, and no others"):
            serves.check(plan)
    dual = steps_of_ddim(4, 2)
    dual.check(StepPlan.uniform(4, 2))
    assert (dual.default_plan(), dual.default_heavy(1)) == (StepPlan.uniform(4, 2), 1)
    with pytest.raises(ValueError, match="4 steps, equal in t with 2 heavy calls spread evenly, and no others"):
        dual.check(StepPlan.uniform(4))
    serves.check_step(DDIM(process))
    for step in (Ancestral(process), Heun(process), AdjustedDDIM(process)):
        with pytest.raises(ValueError, match="has learned to make steps of DDIM"):
            serves.check_step(step)


def test_a_student_of_one_step_serves_it():
    process, serves = GaussianProcess(Cosine()), ONE_STEP
    assert serves.default_plan() == StepPlan.uniform(1)
    assert serves.ladder([1, 8]) == [StepPlan.uniform(1)]
    serves.check_step(Ancestral(process))
    for plan in (StepPlan.uniform(2), StepPlan.at((0.9, 0), [0])):
        with pytest.raises(ValueError, match="this model has learned one step, and makes no more; got"):
            serves.check(plan)
    with pytest.raises(ValueError, match="for plain ancestral sampling"):
        serves.check_step(DDIM(process))


def test_a_student_says_which_sampler_it_was_made_for():
    students = AtLeast(4), OnePlan(8, 4), steps_of_ddim(4)
    assert [serves.sampler for serves in students] == ["ancestral", "ancestral", "ddim"]
    assert AnyPlan().sampler is None
    assert AnyPlan().any_plan
    assert not any(serves.any_plan for serves in students)


@pytest.mark.parametrize(("steps", "heavy"), [(8, 9), (8, 0), (0, 0)])
def test_impossible_grids_are_refused(steps, heavy):
    with pytest.raises(ValueError, match=r"got [09]$"):
        OnePlan(steps, heavy)
    with pytest.raises(ValueError, match="steps is a whole number from 1 to 100,000, got 0"):
        AtLeast(0)


def test_students_are_written_and_read():
    method = MomentMatchingConfig("teacher", AtLeast(4))
    plain = Experiment("plain", OneNetwork(NET), method, FitConfig(iterations=1))
    dual = replace(method, plans=OnePlan(8, 4), rollout="full")
    for student in (plain, replace(plain, networks=TwoNetworks(NET, NET), method=dual)):
        assert from_plain(Experiment, json.loads(json.dumps(to_plain(student)))) == student


@given(st.integers(1, 24), st.data())
def test_heavy_calls_are_where_the_encoder_was_trained(steps, data):
    heavy = data.draw(st.integers(0, steps))
    alone = data.draw(st.integers(0, steps - heavy))
    times = uniform(steps)
    assert AnyPlan((1, 8), drops=True).spread(times, heavy, alone) == StepPlan.late(times, heavy, alone)
    plan = AnyPlan((1, 8), drops=True, times=(0.25, 0.75)).spread(times, heavy, alone)
    where = [i for i, t in enumerate(times[:-1]) if 0.25 <= t <= 0.75 and i >= alone]
    called = [i for i, refresh in enumerate(plan.refresh) if refresh is Refresh.FULL]
    assert plan.t == times
    assert set(called) <= set(where)
    assert len(called) == min(heavy, len(where))
    assert called[:1] == where[: len(called[:1])]  # the first that may be


def test_an_encoder_that_trains_on_even_grids_is_not_called_below_the_finest():
    paper = DenoisingConfig(TimeSampler(phase=0))
    serves = paper.serves
    assert serves == AnyPlan((4, 32), drops=True, times=(1 / 32, 1), even=True)
    assert replace(paper, encoder_from="run", freeze_encoder=True).serves.times == (0, 1)
    for steps, heavy in ((32, 32), (64, 16), (64, 32), (60, 7)):
        assert serves.spread(uniform(steps), heavy) == StepPlan.uniform(steps, heavy)  # still even
    assert serves.untrained(StepPlan.uniform(64)) == 1
    plan = serves.spread(uniform(64), 64)
    assert (plan.num_heavy, serves.untrained(plan)) == (63, 0)


def test_an_encoder_that_trains_for_late_plans_is_called_where_it_was_trained():
    late = TimeSampler(heavy=(1, 8), first=(0.6, 0.9))
    assert DenoisingConfig(late).serves.times == (0.6 / 8, 0.9)
    assert DenoisingConfig(late, freeze_encoder=True).serves.times == (0, 1)
    assert DenoisingConfig(TimeSampler(heavy=(1, 8))).serves.times == (0, 1)
    plan = DenoisingConfig(late).serves.default_plan(16)
    assert (plan.num_heavy, plan.num_alone) == (4, 2)  # t = 1 and 0.9375
