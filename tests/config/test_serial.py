"""Experiments survive JSON, and a wrong file is told what is wrong."""

import json
from dataclasses import dataclass, replace
from functools import partial

import pytest

from dualrate.config.serial import from_plain, to_plain, type_name
from dualrate.diffusion.weighting import Elbo
from dualrate.experiment.experiment import Experiment, MethodConfig
from dualrate.methods.denoising import DenoisingConfig
from dualrate.recipes import fashion_mnist, imagenet

RECIPES = [partial(fashion_mnist.single, name) for name in ("heavy", "light")]
RECIPES += [fashion_mnist.dual, fashion_mnist.small, imagenet.heavy, imagenet.dual]


@pytest.mark.parametrize("recipe", RECIPES)
def test_round_trip(recipe):
    experiment = recipe()
    assert from_plain(Experiment, json.loads(json.dumps(to_plain(experiment)))) == experiment


def test_a_run_may_have_either_loss_weight():
    experiment = fashion_mnist.dual()
    plain = replace(experiment, method=replace(experiment.method, weighting=Elbo()))
    assert from_plain(Experiment, json.loads(json.dumps(to_plain(plain)))) == plain
    assert plain.method.build(plain).weighting == Elbo()


def changed(path: list, value) -> dict:
    plain = json.loads(json.dumps(to_plain(fashion_mnist.dual())))
    place = plain
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return plain


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["fit", "itterations"], 3, "did you mean iterations"),
        (["fit", "iterations"], "many", r"fit\.iterations: expected an integer"),
        (["fit", "iterations"], True, "expected an integer"),
        (
            ["networks", "type"],
            "os.system",
            "there is no NetworksConfig 'os.system', it is one of .*LatentNetworks, OneClipDecoder, "
            "OneConditional, OneForeign, OneNetwork, OneTransformer, OwnBlocks, ResidualNetworks, Retrofitted, "
            "ThreeConditional, TwoClipDecoders, TwoClipPriors, TwoConditional, TwoNetworks, TwoTransformers",
        ),
        (["fit", "precision"], "float8", "expected one of"),
        (["networks", "light", "levels"], 3, "expected a list"),
        (["networks", "type"], "os:system", r"os:system is of another package, .* dualrate --import os COMMAND"),
        (["networks"], 3, r"networks: expected a NetworksConfig"),
        (["method", "times", "heavy"], [1], "expected 2 items"),
        (["process", "schedule", "log_snr_min"], 16, r"configuration\.process\.schedule: log_snr_min must be below"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(path, value, message):
    with pytest.raises(ValueError, match=message):
        from_plain(Experiment, changed(path, value))


def test_a_class_of_another_package_is_named_with_its_module():
    """And read, where it is there; classes derived from classes that may themselves be built are, too."""

    @dataclass(frozen=True)
    class Weighted(DenoisingConfig):
        share: float = 0.5

    name = f"{__name__}:test_a_class_of_another_package_is_named_with_its_module.<locals>.Weighted"
    assert type_name(Weighted) == name
    assert type_name(DenoisingConfig) == "DenoisingConfig"
    plain = json.loads(json.dumps(to_plain(Weighted(share=0.25))))
    assert plain["type"] == name
    assert from_plain(MethodConfig, plain) == Weighted(share=0.25)


def test_a_class_without_fields_to_read_is_none_of_those_there_are():
    class Bare(DenoisingConfig.__base__): ...

    Bare.__abstractmethods__ = frozenset()
    with pytest.raises(ValueError, match="Bare is of another package"):
        from_plain(MethodConfig, {"type": type_name(Bare)})


def test_a_missing_field_is_named():
    plain = to_plain(fashion_mnist.dual())
    del plain["networks"]
    with pytest.raises(ValueError, match="networks"):
        from_plain(Experiment, plain)
