"""Which plans a student serves: the ones of its training, and a message for every other."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualrate.config.serial import from_plain, to_plain
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.schedule import Cosine
from dualrate.experiments.experiment import Experiment, OneNetwork, TwoNetworks
from dualrate.experiments.serves import Continuous, Grid
from dualrate.methods.times import SingleTime, TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.sampling.grids import karras, uniform
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), patch=2, embedding=16, head_dim=16)


@given(st.integers(1, 40), st.integers(1, 80))
def test_a_plain_student_serves_its_steps_and_more(own, asked):
    plan = StepPlan.uniform(asked)
    if asked >= own:
        Continuous(own).check(plan)
    else:
        with pytest.raises(ValueError, match=f"distilled to {own} steps and serves as many or more"):
            Continuous(own).check(plan)


def test_a_plain_student_refuses_a_step_longer_than_it_learned():
    plan = StepPlan.at(karras(Cosine(), 8), range(8))
    with pytest.raises(ValueError, match=r"longer than 1/8"):
        Continuous(8).check(plan)


@given(st.integers(1, 12), st.data())
def test_a_dual_rate_student_serves_its_own_plan_alone(steps, data):
    grid = Grid(steps, data.draw(st.integers(1, steps)))
    grid.check(StepPlan.at(uniform(steps), [i for i, r in enumerate(grid.plan.refresh) if r.value == "full"]))
    other = (data.draw(st.integers(1, 12)), data.draw(st.integers(0, 12)))
    if other[1] <= other[0] and other != (grid.steps, grid.heavy):
        with pytest.raises(ValueError, match=f"for {steps} steps equal in t with {grid.heavy} heavy calls"):
            grid.check(StepPlan.uniform(*other))


def test_a_dual_rate_student_refuses_heavy_calls_and_steps_elsewhere():
    for plan in (StepPlan.at(8, (0, 1, 2, 3)), StepPlan.at((1, *uniform(8)[1:-2], 0.1, 0), (0, 2, 4, 6))):
        with pytest.raises(ValueError, match="serves no other plan"):
            Grid(8, 4).check(plan)


def test_what_is_drawn_if_nothing_is_asked_for():
    for times, steps, heavy in (
        (Continuous(4), 4, 4),
        (Grid(8, 4), 8, 4),
        (SingleTime(), 64, 64),
        (TimeSampler(), 64, 16),
    ):
        assert (times.default_steps, times.default_heavy(times.default_steps)) == (steps, heavy)
        times.check(StepPlan.uniform(times.default_steps, times.default_heavy(times.default_steps)))
    SingleTime().check(StepPlan.uniform(1))
    TimeSampler().check(StepPlan.uniform(3, 1))


@pytest.mark.parametrize(("steps", "heavy"), [(8, 9), (8, 0), (0, 0)])
def test_impossible_grids_are_refused(steps, heavy):
    with pytest.raises(ValueError, match=r"got [09]$"):
        Grid(steps, heavy)
    with pytest.raises(ValueError, match="steps is a whole number from 1 to 100,000, got 0"):
        Continuous(0)


def test_students_are_written_and_read_and_have_no_loss_of_their_own():
    plain = Experiment("plain", OneNetwork(NET), FitConfig(iterations=1), times=Continuous(4))
    for student in (plain, replace(plain, networks=TwoNetworks(NET, NET), times=Grid(8, 4))):
        assert from_plain(Experiment, json.loads(json.dumps(to_plain(student)))) == student
        with pytest.raises(ValueError, match="dualrate distill"):
            student.method()
