"""What a training needs, from tensors without content: beside what torch's allocator gave out, and beside formulas."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from dualrate.data.loader import Augment
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Batch
from dualrate.experiment.experiment import DataConfig, Experiment
from dualrate.experiment.network_configs import NetworksConfig, OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import SingleTime, TimeSampler
from dualrate.networks import blocks
from dualrate.networks.blocks import as_on_gpu
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes import imagenet
from dualrate.recipes.students import DISTILLING, StudentRecipe, dual_student
from dualrate.runs.prediction import Cluster, Needs, needs, predict
from dualrate.runs.store import read_experiment, write_experiment
from dualrate.sampling.cost import call_cost
from dualrate.system.progress import Silent
from dualrate.training.accelerators import ACCELERATORS, Accelerator
from dualrate.training.config import FitConfig
from dualrate.training.loop import fit
from dualrate.training.memory import Counted, Widened, pass_cost, recompute, weightless

LEVELS = (Level("conv", 16, 1), Level("transformer", 64, 1, dropout=0.1))
HEAVY = UViTConfig(32, 3, LEVELS, num_classes=10, embedding=64, head_dim=16)
LIGHT = replace(HEAVY, levels=(Level("conv", 16, 1), Level("transformer", 32, 1)))
FEW_TOKENS = (Level("conv", 32, 1), Level("transformer", 64, 2, dropout=0.1))
DEEPER = replace(HEAVY, patch=2, levels=FEW_TOKENS)
TINY = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16)
FIT = FitConfig(2, batch_size=4, micro_batch=2, precision="float32", checkpoint_every=100, sample_every=100)
ONE = Cluster(Accelerator.of(1, 1, within=1, between=1, price=1))


def experiment(networks: NetworksConfig, config: FitConfig = FIT) -> Experiment:
    times = TimeSampler() if isinstance(networks, TwoNetworks) else SingleTime()
    data = DataConfig("none", 32, 3, augment=Augment())
    return Experiment("small", networks, DenoisingConfig(times=times), config, data)


def refused(run: str) -> Experiment:
    raise AssertionError(f"nothing is learned from {run}")


@cache
def needed(networks: NetworksConfig) -> Needs:
    return needs(experiment(networks), refused)


def peak(work: Callable[[], object]) -> int:
    """Bytes that torch's CPU allocator had given out at most at a time, during the work, of those it gave in it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    assert recorded.profiler is not None
    events = recorded.profiler.kineto_results.events()
    now = most = 0
    for _, size in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        now += size
        most = max(most, now)
    return most


class Noise:
    def batch(self, iteration: int) -> Batch:
        rows = torch.arange(4)
        return Batch(torch.zeros(4, 3, 32, 32), rows, rows + 4 * iteration)


@pytest.mark.parametrize("networks", [OneNetwork(HEAVY), TwoNetworks(HEAVY, LIGHT)], ids=["one", "two"])
def test_memory_of_a_training_is_what_the_allocator_gave_out(networks, tmp_path):
    """Weights, gradients, Adam, averages and activations of real iterations of the trainer, within 3%."""
    small = experiment(networks)
    predicted = predict(needed(networks), small.fit, ONE)

    def train() -> None:
        method = small.method.build(small)
        with as_on_gpu():
            fit(method, Noise(), small.fit, tmp_path / "run", identity={}, progress=Silent())

    assert predicted.used == pytest.approx(peak(train), rel=0.03)


@pytest.mark.parametrize("again", [False, True])
def test_activations_of_a_pass_are_what_the_allocator_gave_out(again):
    small = experiment(TwoNetworks(HEAVY, LIGHT))

    def made():
        method = small.method.build(small)
        if again:
            recompute([*method.networks.values()], 1)
        return method, method.phases(0)[0]

    with weightless():
        method = small.method.build(small)
    if again:
        recompute([*method.networks.values()], 1)
    cost = pass_cost(method, method.phases(0)[0], small.shape, 0, bfloat16=False)
    _, phase = made()
    batch = Batch(torch.zeros(24, 3, 32, 32), torch.zeros(24, dtype=torch.int64), torch.arange(24))
    for parameter in phase.parameters:
        parameter.grad = torch.zeros_like(parameter)

    def both_ways() -> None:
        with as_on_gpu(), Widened():
            phase.loss(batch, 0, Draws(0, batch.sample)).total.backward()

    assert cost.activations(24) == pytest.approx(peak(both_ways), rel=0.03)


def test_blocks_computed_again_keep_less_and_compute_more():
    small = experiment(OneNetwork(DEEPER))
    again = needs(replace(small, fit=replace(small.fit, recompute_from=1)), refused)
    kept = needed(small.networks)
    assert again.per_image < 0.6 * kept.per_image
    assert 1.15 < again.flops / kept.flops < 1.34


def test_blocks_that_leave_norms_to_autocast_are_computed_again_in_its_precision(monkeypatch):
    """As blocks of others do; torch compares what it keeps of both times."""
    config = replace(FIT, precision="bfloat16", recompute_from=1)
    own = needs(experiment(OneNetwork(TINY), config), refused)
    monkeypatch.setattr(blocks, "_not_widened", lambda h: nullcontext())
    assert needs(experiment(OneNetwork(TINY), config), refused).flops == own.flops


def test_flops_are_three_times_the_forward_pass():
    """And of attention a little more, whose fused kernel computes its weights again."""
    small = experiment(OneNetwork(DEEPER))
    forward = 2 * call_cost(small.build()[1], small.shape, 0).light
    assert 3 * forward < needed(small.networks).flops < 3.1 * forward


def test_half_of_the_images_reach_the_encoder():
    small = experiment(TwoNetworks(HEAVY, LIGHT))
    cost = call_cost(small.build()[1], small.shape, 0)
    assert needed(small.networks).flops == pytest.approx(6 * (cost.heavy / 2 + cost.light), rel=0.04)


def student_of(teacher: Path, **options: Any) -> Experiment:
    write_experiment(teacher, Experiment("teacher", OneNetwork(TINY), DenoisingConfig(), FIT))
    recipe = StudentRecipe("student", TINY, replace(DISTILLING, batch_size=16))
    return dual_student(recipe, str(teacher), 2, 1, **options)


@pytest.mark.slow
def test_a_student_needs_its_teacher_and_its_auxiliary_too(tmp_path: Path):
    student = student_of(tmp_path, pretraining=10)
    found = needs(student, lambda run: read_experiment(Path(run)))
    with torch.device("meta"):
        networks, _ = student.build()
        auxiliary, _ = OneNetwork(TINY).build(student.process)
    whole, other = (4 * sum(p.numel() for p in parts.parameters()) for parts in (networks, auxiliary))
    assert whole + 1.5 * other < found.weights < whole + 1.8 * other  # the teacher's products are in bfloat16
    assert found.ema >= whole  # of the pre-training too
    assert found.summed == pytest.approx((whole + other) / 2)  # in turn


def test_a_method_that_computes_before_it_begins_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"student-dual-2-1 computes on images before .* pass --version alternating"):
        needs(student_of(tmp_path, version="instant"), lambda run: read_experiment(Path(run)))


NEEDS = Needs(
    weights=8e9,
    trained=8e9,
    adam=16e9,
    ema=8e9,
    fixed=1e9,
    per_image=0.5e9,
    summed=8e9,
    flops=2e12,
    launches=1000,
    image=100,
)
H100 = ACCELERATORS["h100"]


def test_time_is_that_of_the_stated_model():
    config = FitConfig(3600, batch_size=512, micro_batch=128)
    found = predict(NEEDS, config, Cluster(H100, 64, utilisation=0.5))
    assert (found.images, found.passes) == (2, 4)
    assert found.compute == pytest.approx(512 * 2e12 / (64 * 989e12 * 0.5))
    assert found.exchange == pytest.approx(2 * 63 / 64 * 8e9 / (0.8 * 400e9))  # eight network cards of 50 GB/s
    assert found.compute / 4 * 2 / 3 < found.exchange  # the backward pass of the last of four passes
    assert found.iteration == pytest.approx(found.compute + found.exchange - found.compute / 4 * 2 / 3)
    assert found.hours == pytest.approx(found.iteration)
    assert found.gpu_hours == pytest.approx(64 * found.hours)
    assert found.bytes_per_second == pytest.approx(100 * found.images_per_second)


def test_where_nothing_is_compiled_a_host_has_to_launch_it_all():
    config = FitConfig(3600, batch_size=512, micro_batch=128)
    eager, compiled = (
        predict(replace(NEEDS, launches=10**6), replace(config, compile=compiled), Cluster(H100, 64))
        for compiled in (False, True)
    )
    assert eager.launching == compiled.launching == pytest.approx(4 * 10**6 * 5e-6)
    assert eager.iteration == eager.launching > compiled.iteration


def test_views_launch_nothing():
    with weightless():
        linear = nn.Linear(3, 3)
    weight = linear.weight
    with Counted([weight]) as counted:
        (weight.T @ weight.to(weight.device)).view(9).add(1)
    assert counted.launches == 2


@pytest.mark.parametrize(
    "work",
    [
        lambda h: F.layer_norm(h, h.shape[1:]),
        lambda h: F.rms_norm(h, h.shape[1:]),
        lambda h: F.group_norm(h, 1),
        lambda h: F.interpolate(h, scale_factor=2.0),
    ],
)
def test_what_autocast_of_a_gpu_widens_is_widened(work):
    h = torch.ones(1, 2, 4, 4, dtype=torch.bfloat16)
    with Widened():
        with torch.autocast("cpu", torch.bfloat16):
            assert work(h).dtype == torch.float32
        assert work(h).dtype == torch.bfloat16


def test_an_exchange_behind_the_backward_pass_takes_no_time():
    found = predict(NEEDS, FitConfig(1, batch_size=6400), Cluster(H100, 64, utilisation=0.5))
    assert 0 < found.exchange < 2 / 3 * found.compute
    assert found.iteration == pytest.approx(found.compute)


def test_memory_is_parted_where_weights_are_held_together():
    config = FitConfig(1, batch_size=512, micro_batch=128)
    whole, parted = (predict(NEEDS, config, Cluster(H100, 64, shard=shard)) for shard in (1, 8))
    assert whole.used == pytest.approx(40e9 + 1e9 + 2 * 0.5e9)
    assert parted.used == pytest.approx(40e9 / 8 + 1e9 + 2 * 0.5e9)
    assert whole.most_images == int((0.9 * 80e9 - 41e9) / 0.5e9)
    assert parted.most_images == int((0.9 * 80e9 - 6e9) / 0.5e9)
    assert whole.fits
    within, between = 3 * 7 / 8 * 8e9 / (0.8 * 450e9), 2 * (1 - 8 / 64) * 1e9 / (0.8 * 50e9)
    assert parted.exchange == pytest.approx(4 * (within + between))
    assert parted.iteration == pytest.approx(max(parted.compute, parted.exchange))


def test_what_does_not_fit_says_so():
    found = predict(NEEDS, FitConfig(1, batch_size=64), Cluster(ACCELERATORS["rtx4090"], 1))
    assert (found.fits, found.most_images) == (False, 0)


def test_fewer_images_than_gpus_and_odd_groups_are_refused():
    with pytest.raises(ValueError, match=r"64 images a pass are fewer than 128 GPUs: raise --fit\.micro-batch"):
        predict(NEEDS, FitConfig(1, batch_size=512, micro_batch=64), Cluster(H100, 128))
    with pytest.raises(ValueError, match="8 GPUs hold the weights together, of 12"):
        Cluster(H100, 12, shard=8)


@pytest.mark.slow
@pytest.mark.parametrize("size", imagenet.SIZES)
def test_imagenet_fits_eight_gpus_of_80_gigabytes(size):
    recipe = imagenet.dual(size)
    assert predict(needs(recipe, refused), recipe.fit, Cluster(H100, 8)).fits
