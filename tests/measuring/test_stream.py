"""Measuring in blocks gives the row that measuring at once gives, and the same bits after a kill."""

from dataclasses import replace

import pytest
import torch

import dualrate as dr
from dualrate.data.images import ImageSet
from dualrate.diffusion.plan import StepPlan
from dualrate.experiments.denoising import DenoisingConfig
from dualrate.experiments.experiment import Experiment, Model
from dualrate.experiments.networks import TwoNetworks
from dualrate.measuring.measure import Guidance, balanced_strata, measure
from dualrate.measuring.origin import origin_of
from dualrate.measuring.stream import measure_in_blocks
from dualrate.methods.times import TimeSampler
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.features import Architecture, Card, Classifier, FeatureNet
from dualrate.metrics.origin import PIXELS
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs.store import load, write_experiment
from dualrate.sampling.ancestral import DDIM, Ancestral
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16)
EXPERIMENT = Experiment("two", TwoNetworks(NET, NET), DenoisingConfig(times=TimeSampler()), FitConfig(iterations=1))
PLAN = StepPlan.uniform(2, 1)
SEEDS = range(5, 45)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    path = tmp_path_factory.mktemp("run")
    networks, _ = EXPERIMENT.build()
    generator = torch.Generator().manual_seed(0)
    weights = {name: 0.2 * torch.randn(p.shape, generator=generator) for name, p in networks.state_dict().items()}
    write_experiment(path, EXPERIMENT)
    checkpoint.save(path / "checkpoints", 1, {"ema-model": weights, "model": weights}, {"iteration": 1})
    return load(path)


@pytest.fixture(scope="module")
def judge(model) -> Evaluator:
    channels, size, _ = model.shape
    arch = Architecture(channels, size, 2, features=4)
    module = Classifier(arch)
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    net = FeatureNet(Card("noise", "0" * 64, arch, "", None, 0, 1), module.eval().requires_grad_(False))
    images = torch.randint(256, (60, *model.shape), generator=generator, dtype=torch.uint8).numpy()
    return Evaluator(net, ImageSet(images, None, (), "noise/train"), None)


def measured(model, judge, directory, **options):
    step = Ancestral(model.process)
    return measure_in_blocks("two", model, step, PLAN, judge, SEEDS, directory, block_size=16, batch_size=8, **options)


def test_it_is_the_row_of_measuring_at_once(model, judge, tmp_path):
    ours = measured(model, judge, tmp_path / "blocks")
    theirs, _ = measure("two", model, Ancestral(model.process), PLAN, judge, SEEDS, batch_size=8)
    assert ours.score.value == pytest.approx(theirs.score.value, rel=1e-4)
    assert ours.seconds_per_image > 0
    same = replace(ours, score=theirs.score, seconds_per_image=theirs.seconds_per_image)
    assert same == theirs
    assert ours.score.fingerprint == theirs.score.fingerprint
    assert "each class keeping its share" in ours.score.note


def test_strata_are_the_classes_where_each_has_two_images(model):
    strata = balanced_strata(model, range(5, 11))
    assert strata is not None
    assert strata.tolist() == [2, 0, 1, 2, 0, 1]
    assert balanced_strata(model, range(5, 10)) is None
    assert balanced_strata(model, range(2)) is None
    net = replace(NET, num_classes=0)
    assert (
        balanced_strata(replace(model, experiment=replace(EXPERIMENT, networks=TwoNetworks(net, net))), SEEDS) is None
    )


def test_a_kill_changes_no_bit_and_nothing_is_drawn_twice(model, judge, tmp_path):
    def dies(done: int, total: int) -> None:
        if done > 10:
            raise Killed

    whole = measured(model, judge, tmp_path / "whole")
    with pytest.raises(Killed):
        measured(model, judge, tmp_path / "killed", progress=dies)
    told: list[int] = []
    resumed = measured(model, judge, tmp_path / "killed", progress=lambda done, total: told.append(done))
    assert told[0] > 10
    assert resumed.score == whole.score
    again = measured(model, judge, tmp_path / "killed", progress=lambda done, total: told.append(done))
    assert told[-1] == len(SEEDS)
    assert again == resumed


def test_whatever_changes_an_image_changes_the_origin(model, judge):
    step = Ancestral(model.process)
    net = judge.net.identity
    other = replace(model, experiment=replace(EXPERIMENT, fit=FitConfig(iterations=2)))
    origins = [
        origin_of(model, step, PLAN, Guidance(), net, bfloat16=False),
        origin_of(model, step, PLAN, Guidance(), net, bfloat16=True),
        origin_of(model, step, PLAN, Guidance(2.0), net, bfloat16=False),
        origin_of(model, step, PLAN, Guidance(2.0, (0.1, 1.0)), net, bfloat16=False),
        origin_of(model, Ancestral(model.process, 0.3), PLAN, Guidance(), net, bfloat16=False),
        origin_of(model, DDIM(model.process), PLAN, Guidance(), net, bfloat16=False),
        origin_of(model, step, StepPlan.at([1, 0.4, 0], [0]), Guidance(), net, bfloat16=False),
        origin_of(model, step, StepPlan.uniform(2, 2), Guidance(), net, bfloat16=False),
        origin_of(replace(model, weights_hash="0"), step, PLAN, Guidance(), net, bfloat16=False),
        origin_of(other, step, PLAN, Guidance(), net, bfloat16=False),
        origin_of(model, step, PLAN, Guidance(), PIXELS, bfloat16=False),
        origin_of(model, step, PLAN, Guidance(), net, label=0, bfloat16=False),
    ]
    assert len(set(origins)) == len(origins)
    assert origins[0] == origin_of(model, Ancestral(model.process), PLAN, Guidance(), net, bfloat16=False)


def test_a_directory_of_another_plan_is_refused(model, judge, tmp_path):
    measured(model, judge, tmp_path)
    with pytest.raises(ValueError, match="differ in plan"):
        measure_in_blocks("two", model, Ancestral(model.process), StepPlan.uniform(3, 1), judge, SEEDS, tmp_path)


def test_a_step_that_holds_tensors_or_functions_has_an_origin(model, judge):
    """A table by its content, a variance by its name."""
    bands = dr.Bands(model.shape, rings=2)

    def sampler(step):
        return origin_of(model, step, PLAN, Guidance(), judge.net.identity, bfloat16=False).sampler

    def tabulated(value):
        table = dr.TabulatedCovariance(model.process, bands, torch.zeros(2), torch.full((2, bands.count), value))
        return dr.ProbedCovariance(table, torch.ones(2, bands.count).bool(), torch.ones(bands.count))

    assert sampler(tabulated(1.0)) == sampler(tabulated(1.0))
    assert len({sampler(tabulated(1.0)), sampler(tabulated(2.0)), sampler(tabulated(1.0).table)}) == 3
    assert "analytic_variance" in sampler(dr.AdjustedDDIM(model.process))
