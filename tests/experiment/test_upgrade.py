"""Experiments as versions of before wrote them: read as today's, and their runs are continued."""

import json
from pathlib import Path

import pytest

from dualrate.config.serial import from_plain, to_plain
from dualrate.diffusion.prediction import Sigmoid
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.networks import OneNetwork, TwoNetworks
from dualrate.experiment.plan_support import AtLeast, OnePlan
from dualrate.experiment.upgrade import LATER, upgraded, upgraded_identity
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.moment_matching.config import MomentMatchingConfig
from dualrate.methods.times import SingleTime, TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), patch=2, embedding=16, head_dim=16)
ONE, TWO = OneNetwork(NET), TwoNetworks(NET, NET)
SCHEDULE = {"type": "Cosine", "log_snr_min": -15.0, "log_snr_max": 15.0, "shift": -1.5}
PROCESS = GaussianProcess(Cosine(shift=-1.5))
WEIGHTING = {"type": "Sigmoid", "bias": -0.5}


def written(networks, times: dict, **options) -> dict:
    """An experiment of then."""
    kept = to_plain(Experiment("run", networks, DenoisingConfig(TimeSampler()), FitConfig(iterations=9)))
    outer = {name: kept[name] for name in ("type", "name", "networks", "fit", "data")}
    return {**outer, "schedule": SCHEDULE, "weighting": WEIGHTING, "times": times, "label_dropout": 0.2, **options}


def read(plain: dict) -> Experiment:
    return from_plain(Experiment, json.loads(json.dumps(plain)))


@pytest.mark.parametrize(
    ("networks", "times", "options", "method"),
    [
        (ONE, {"type": "SingleTime"}, {}, DenoisingConfig(SingleTime(), Sigmoid(-0.5), 0.2)),
        (TWO, {"type": "TimeSampler", "heavy": [2, 8]}, {"encoder_from": "x", "freeze_encoder": True},
         DenoisingConfig(TimeSampler((2, 8)), Sigmoid(-0.5), 0.2, encoder_from="x", freeze_encoder=True)),
        (ONE, {"type": "Continuous", "steps": 4}, {},
         MomentMatchingConfig("unknown", AtLeast(4), weighting=Sigmoid(-0.5))),
        (TWO, {"type": "Grid", "steps": 8, "heavy": 4}, {"light_from": "y"},
         MomentMatchingConfig("unknown", OnePlan(8, 4), rollout="full", light_from="y", weighting=Sigmoid(-0.5))),
    ],
)  # fmt: skip
def test_an_experiment_of_before_is_the_same_today(networks, times, options, method):
    old = written(networks, times, **options)
    expected = Experiment("run", networks, method, FitConfig(iterations=9), process=PROCESS)
    assert read(upgraded(old)) == expected
    assert upgraded(to_plain(expected)) == to_plain(expected)


def test_what_was_written_beside_a_student_is_in_its_method():
    old = written(TWO, {"type": "Grid", "steps": 8, "heavy": 4})
    beside = {"type": "Distillation", "teacher": "heavy", "student": old, "rollout": "segment", "pairs": 3}
    method = MomentMatchingConfig("heavy", OnePlan(8, 4), rollout="segment", pairs=3, weighting=Sigmoid(-0.5))
    assert read(upgraded(old, beside)).method == method


def test_every_field_of_then_is_kept():
    options = {"encoder_weight": 0.25, "encoder_from": "x", "freeze_encoder": True, "light_from": "y"}
    old = written(TWO, {"type": "TimeSampler"}, **options)
    expected = DenoisingConfig(TimeSampler(), Sigmoid(-0.5), 0.2, **options)
    assert read(upgraded(old)).method == expected
    own = {"version": "instant", "rollout": "segment", "dropout": 0.5, "pretraining": 3, "pairs": 2}
    own |= {"student_rate": 0.3, "student_from": "z", "teacher": "heavy"}
    found = read(upgraded(written(TWO, {"type": "Grid", "steps": 8, "heavy": 4}), own)).method
    assert found == MomentMatchingConfig(plans=OnePlan(8, 4), weighting=Sigmoid(-0.5), **own)
    guided = upgraded(written(ONE, {"type": "Continuous", "steps": 4}), {"guidance": 1.5})
    assert guided["method"]["guidance"] == 1.5


def test_what_is_no_experiment_is_left_for_the_reader_to_refuse():
    assert upgraded({"weights": 3}) == {"weights": 3}


def test_the_run_of_a_checkpoint_of_before_is_the_same_today():
    old = written(ONE, {"type": "SingleTime"})
    today = to_plain(read(upgraded(old))) | {"images": "abc"}
    found = upgraded_identity(old | {"images": "abc"})
    assert from_plain(Experiment, {k: v for k, v in found.items() if k != "images"}) == read(upgraded(old))
    assert found["images"] == today["images"]
    student = written(ONE, {"type": "Continuous", "steps": 4})
    distilled = {"student": student, "teacher": "weights 012345", "pairs": 1, "images": "abc", "fit": student["fit"]}
    found = upgraded_identity(distilled | {"fit": {"iterations": 1}})
    assert found["method"]["teacher"] == "weights 012345"
    assert (found["images"], found["fit"]) == ("abc", {"iterations": 1})
    assert upgraded_identity(today) == today


def test_released_weights_of_before_are_read():
    """Those that the project keeps were all written then, or are as they are written now."""
    for file in sorted((Path(__file__).parents[2] / "weights").glob("*/experiment.json")):
        assert read(upgraded(json.loads(file.read_text()))).shape == (1, 28, 28), file


@pytest.mark.parametrize("kind", [DenoisingConfig, TimeSampler], ids=lambda kind: kind.__name__)
def test_fields_that_came_later_are_what_they_stand_for(kind):
    """In a run of before, at any depth, they are as if never thought of; what today says of them stays."""
    today = Experiment("run", TWO, DenoisingConfig(TimeSampler()), FitConfig(iterations=9))
    default, later = to_plain(kind()), LATER[kind.__name__]
    assert {name: default[name] for name in later} == later

    def without(plain):
        if isinstance(plain, dict):
            gone = LATER.get(plain.get("type"), {})
            return {name: without(value) for name, value in plain.items() if name not in gone}
        return [without(item) for item in plain] if isinstance(plain, list) else plain

    then = without(to_plain(today))
    assert then != to_plain(today)
    assert upgraded_identity(then) == upgraded(then) == to_plain(today)
    assert upgraded(then | {"method": then["method"] | {"targets_share": 0.5}})["method"]["targets_share"] == 0.5


def test_networks_with_the_usual_context_are_read_and_others_are_refused() -> None:
    plain = to_plain(Experiment("run", TWO, DenoisingConfig(TimeSampler()), FitConfig(iterations=9)))
    usual = {"type": "ContextConfig", "levels": None, "width": None}
    light = plain["networks"]["light"] | {"norm": "layer", "downsampling": "patch", "resample_kernel": 1}
    for context in (usual, usual | {"residual": False, "join": "add"}):
        assert upgraded(plain | {"networks": plain["networks"] | {"light": light, "context": context}}) == plain
    other = plain | {"networks": plain["networks"] | {"context": usual | {"width": 4}}}
    with pytest.raises(ValueError, match="TwoNetworks has no field 'context'"):
        from_plain(Experiment, upgraded(other))


def test_a_field_that_went_is_read_as_it_always_was_and_refused_as_anything_else() -> None:
    plain = to_plain(Experiment("run", ONE, DenoisingConfig(), FitConfig(iterations=9)))
    before = plain | {"method": plain["method"] | {"forecast": False}}
    assert upgraded(before) == upgraded_identity(before) == plain
    other = plain | {"method": plain["method"] | {"forecast": True}}
    with pytest.raises(ValueError, match="has no field 'forecast'"):
        from_plain(Experiment, upgraded(other))
