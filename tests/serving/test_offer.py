"""Requests of a page are those that the model serves, whatever its kind."""

from dataclasses import replace

import pytest
from runs.made import NET, ONE, TWO
from serving.made import model, student

from dualrate.experiment.network_configs import OneNetwork
from dualrate.experiment.plan_support import AtLeast, OnePlan
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.sampling.catalogue import SAMPLERS
from dualrate.serving.offer import Limits, Offer, Request

LIMITS = Limits(steps=12, images=4, waiting=1)


@pytest.fixture(scope="module")
def dual() -> Offer:
    return Offer(model(), limits=LIMITS)


def test_a_dual_rate_model_leaves_all_choices(dual):
    told = dual.described()
    assert (told["steps"], told["least_heavy"], told["beside"]) == ([1, 12], 0, ("steps", "cost", "nothing"))
    assert told["usual_heavy"][12] == dual.sides(Request(steps=12))[0].plan.num_heavy
    may_reuse = {name for name, sampler in SAMPLERS.items() if sampler.markovian}
    assert {name for name, reuses in told["samplers"].items() if reuses} == may_reuse
    assert SAMPLERS.keys() == set(told["samplers"])


def test_its_baseline_is_itself_with_a_heavy_call_at_every_step(dual):
    own, baseline = dual.sides(Request(steps=8, heavy=2))
    assert (own.plan.num_steps, own.plan.num_heavy) == (8, 2)
    assert (baseline.plan.num_steps, baseline.plan.num_heavy, baseline.name) == (8, 8, "two, all heavy")


def test_a_model_that_makes_fewer_heavy_calls_than_asked_for_says_how_many_and_why():
    late = model(replace(TWO, method=DenoisingConfig(times=TimeSampler(first=(0.5, 0.75)))))
    for side in (one.described for one in Offer(late, limits=LIMITS).sides(Request(steps=8, heavy=8))):
        assert (side["heavy"], side["refresh"].count("full"), side["name"]) == (5, 5, "two, 5 of 8 heavy")
        assert "5 heavy calls, not 8" in side["note"]
    own = Offer(late, limits=LIMITS).sides(Request(steps=8, heavy=2))[0]
    assert (own.plan.num_heavy, own.note, own.name) == (2, "", "two")


def test_no_call_of_a_single_network_is_called_heavy():
    (side,) = Offer(model(ONE), limits=LIMITS).sides(Request(steps=8))
    assert (side.described["heavy"], side.name) == (None, "one")


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_baseline_of_the_same_cost_has_the_most_steps_that_its_macs_allow(dual, guidance):
    own, baseline = dual.sides(Request(steps=12, heavy=3, guidance=guidance, beside="cost"))
    each = baseline.macs_by_step[0]
    assert own.macs_by_step[-1] - each < baseline.macs_by_step[-1] <= own.macs_by_step[-1]


def test_a_baseline_of_the_same_cost_under_a_sampler_of_two_calls_a_step_has_no_more_of_them(dual):
    own, baseline = dual.sides(Request(steps=6, heavy=6, sampler="heun", beside="cost"))
    assert baseline.plan.num_steps == own.plan.num_steps == 6


def test_a_baseline_of_the_same_cost_decodes_once_an_image_and_not_at_every_step(dual):
    request, made = Request(steps=12, heavy=3, beside="cost"), model()
    made.__dict__["call_cost"] = replace(made.call_cost, decode=10**9)
    steps = [offer.sides(request)[1].plan.num_steps for offer in (dual, Offer(made, limits=LIMITS))]
    assert steps[0] == steps[1] > 1


def test_one_network_has_no_heavy_calls_to_choose_and_no_baseline():
    offer = Offer(model(ONE), limits=LIMITS)
    told = offer.described()
    assert (told["least_heavy"], told["beside"], told["usual_heavy"][5]) == (None, ("nothing",), 5)
    assert len(offer.sides(Request())) == 1
    with pytest.raises(ValueError, match="beside is one of nothing for this model, got steps"):
        offer.sides(Request(beside="steps"))


def test_the_page_is_told_the_names_of_classes():
    assert Offer(replace(model(), class_names=("a", "b", "c"))).described()["class_names"] == ("a", "b", "c")


def test_a_student_of_one_plan_leaves_none_to_choose():
    offer = Offer(student(OnePlan(4, 2)), limits=LIMITS)
    told = offer.described()
    assert (told["steps"], told["usual_heavy"], told["least_heavy"]) == ([4, 4], {4: 2}, None)
    assert (told["samplers"], told["beside"]) == ({"ancestral": True}, ("nothing",))
    for request in (Request(), Request(steps=4, heavy=2, sampler="ancestral")):
        (side,) = offer.sides(request)
        assert (side.plan.num_steps, side.plan.num_heavy) == (4, 2)
    with pytest.raises(ValueError, match="serves no other plan"):
        offer.sides(Request(heavy=3))


def test_a_single_rate_student_may_have_more_steps():
    told = Offer(student(AtLeast(4)), limits=LIMITS).described()
    assert (told["steps"], told["least_heavy"], set(told["samplers"])) == ([4, 12], None, {"ancestral"})


def test_a_model_that_serves_nothing_so_short_is_refused():
    with pytest.raises(ValueError, match="student serves no plan of 3 steps or fewer: use dualrate sample"):
        Offer(student(OnePlan(4, 2)), limits=Limits(steps=3))


def test_another_model_is_drawn_beside_as_near_as_it_serves():
    own, baseline = Offer(model(), student(AtLeast(4)), LIMITS).sides(Request(steps=3, sampler="sde-dpm++2m"))
    assert (own.plan.num_steps, baseline.plan.num_steps, baseline.plan.num_heavy) == (3, 4, 4)
    assert (own.drawer.sampler, baseline.drawer.sampler) == ("SDE-DPM-Solver++ 2M", "ancestral")


def test_a_model_of_other_images_is_no_baseline():
    wide = model(replace(ONE, name="wide", networks=OneNetwork(replace(NET, image_size=16))))
    with pytest.raises(ValueError, match=r"two has images of \(1, 8, 8\) and 3 classes, wide of \(1, 16, 16\)"):
        Offer(model(), wide, LIMITS)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(steps=13), "steps is from 1 to 12 on this page, got 13"),
        (Request(images=5), "images is at most 4 on this page, got 5"),
        (Request(steps=4, heavy=5), "heavy calls lies between 0 and the number of steps, 4, got 5"),
        (Request(label=3), "two knows the classes 0 to 2, got label 3"),
        (Request(sampler="ddim"), "changes the joint law .* a heavy call at every step"),
        (Request(sampler="os:getcwd"), "sampler is one of ancestral, .*, got 'os:getcwd'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_it_is(dual, request_, message):
    with pytest.raises(ValueError, match=message):
        dual.sides(request_)
