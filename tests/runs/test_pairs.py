"""Two runs as one model: what it draws, what it is called, where it may go, and what makes no pair."""

import pickle
from dataclasses import replace

import pytest
import torch
from runs.made import NET, ONE, TWO, saved

import dualrate as dr
from dualrate.denoisers.duodiff import Switched
from dualrate.diffusion.schedule import shifted
from dualrate.experiment.network_configs import OneNetwork
from dualrate.experiment.plan_support import AtLeast
from dualrate.experiment.switching import switched
from dualrate.methods.moment_matching import MomentMatchingConfig
from dualrate.runs.store import called_by

PLAN = dr.StepPlan.late(4, 2, 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    at = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    return {"one": saved(ONE, at / "one"), "other": saved(ONE, at / "other"), "two": saved(TWO, at / "two")}


def drawn(model: dr.Model, plan: dr.StepPlan = PLAN):
    return dr.Drawer(model, dr.DDIM(model.process), plan).draw(range(3)).images


def test_a_pair_is_one_model_of_both_which_a_worker_finds_again(runs):
    heavy, light = dr.load(runs["one"]), dr.load(runs["other"])
    pair = called_by(heavy, str(runs["other"]))
    assert pair.name == "one after other"
    assert pair.weights_hash == f"{heavy.weights_hash} after {light.weights_hash}"
    assert sum(pair.parameters.values()) == sum(heavy.parameters.values()) + sum(light.parameters.values())
    every, none = dr.StepPlan.uniform(4), dr.StepPlan.uniform(4, 0)
    assert (drawn(pair, every) == drawn(heavy, every)).all()
    assert (drawn(pair, none) == drawn(light, every)).all()
    assert (drawn(pair) != drawn(heavy, every)).any()
    how = {"compiled": True, "graphs": True}
    there = pickle.loads(pickle.dumps(replace(pair, **how)))
    assert {name: getattr(there, name) for name in how} == how
    again = pickle.loads(pickle.dumps(pair))
    assert not again.compiled
    assert not again.graphs
    assert again.weights_hash == pair.weights_hash
    assert (drawn(again) == drawn(pair)).all()
    held = pair.ready(bfloat16=True)
    assert {weight.dtype for weight in held.networks["light model"].parameters()} >= {torch.bfloat16}
    assert isinstance(held.denoiser, Switched)
    assert held.denoiser.light.network is held.networks["light model"]


def test_a_dual_rate_run_makes_steps_by_its_light_network_alone_and_leaves_another_those_without_a_context(runs):
    two, one = dr.load(runs["two"]), dr.load(runs["one"])
    assert (drawn(switched(one, two), dr.StepPlan.uniform(4, 0)) == drawn(two, dr.StepPlan.uniform(4, 0))).all()
    beside, step = switched(two, one), dr.Ancestral(two.process)
    images = [dr.Drawer(model, step, plan).draw(range(3)).images for model, plan in (
        (beside, dr.StepPlan.uniform(4, 2)), (two, dr.StepPlan.uniform(4, 2)),
        (beside, dr.StepPlan.uniform(4, 0)), (one, dr.StepPlan.uniform(4)),
    )]  # fmt: skip
    assert (images[0] == images[1]).all()
    assert (images[2] == images[3]).all()


def test_runs_that_make_no_pair_are_refused(runs, tmp_path):
    heavy = dr.load(runs["one"])
    wide = OneNetwork(replace(NET, image_size=16))
    unlike = {
        "images": replace(ONE, networks=wide),
        "classes": replace(ONE, networks=OneNetwork(replace(NET, num_classes=2))),
        "process": replace(ONE, process=dr.GaussianProcess(shifted(32, 64))),
    }
    for what, experiment in unlike.items():
        light = dr.load(saved(experiment, tmp_path / what))
        with pytest.raises(ValueError, match=f"they differ in {what}; name two models"):
            switched(heavy, light)
    student = replace(heavy, experiment=replace(ONE, method=MomentMatchingConfig("one", AtLeast(4))))
    with pytest.raises(ValueError, match="is a distilled student"):
        switched(heavy, student)


def test_other_names_are_denoisers_as_ever(runs):
    heavy = dr.load(runs["one"])
    assert called_by(heavy, None) is heavy
    with pytest.raises(ValueError, match="there is no denoiser"):
        called_by(heavy, "nothing")
