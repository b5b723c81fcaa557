"""Work that is timed: images under a plan, the network calls in them, and training iterations."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import dualrate as dr
from dualrate.diffusion.context import Batch, shared_time
from dualrate.diffusion.random import Draws
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.model import Model
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import BatchTimes, TimeSource, to_device
from dualrate.system.device import Record, settle_products
from dualrate.training.config import FitResult
from dualrate.training.loop import compile_blocks

Work = Callable[[], None]


def in_cpu_seconds() -> AbstractContextManager[Any]:
    """Within it, trainings are limited in seconds that this process computes: others on its core take none of them."""
    return patch("dualrate.training.loop.time", SimpleNamespace(perf_counter=time.process_time))


def whole(result: FitResult) -> FitResult:
    """The result of a training; raises SystemExit if a signal ended it: what ended early is no measurement."""
    if result.stopped == "signal":
        raise SystemExit("interrupted: run it again, and it goes on")
    return result


def sampling(model: Model, plan: dr.StepPlan, batch: int, bfloat16: bool) -> Work:
    """Draws `batch` images by the ancestral sampler."""
    precision = "bfloat16" if bfloat16 else "float32"
    drawer = dr.Drawer(model, dr.Ancestral(model.gaussian), plan, batch_size=batch, precision=precision)

    def work() -> None:
        for _ in drawer.batches(range(batch)):
            pass

    return work


def network_calls(model: Model, work: Work, device: torch.device, bfloat16: bool) -> Work:
    """The very calls of the model's networks that `work` makes, on the same inputs, and nothing else."""
    calls: list[tuple[nn.Module, tuple[Any, ...]]] = []
    hooks = [
        network.register_forward_pre_hook(lambda network, inputs: calls.append((network, inputs)))
        for network in model.ready(bfloat16=bfloat16).networks.values()
    ]
    work()
    for hook in hooks:
        hook.remove()

    def replay() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            for network, inputs in calls:
                network(*inputs)

    return replay


def beside_frozen_encoder(experiment: Experiment) -> Experiment:
    """The training of its light network alone, whatever its encoder learns from. Of a model of two networks."""
    assert isinstance(experiment.method, DenoisingConfig)
    return replace(experiment, method=replace(experiment.method, encoder_from="any", freeze_encoder=True))


def a_call_each(model: Model, batch: int, bfloat16: bool) -> dict[str, Work]:
    """One heavy and one light call, of `batch` rows each."""
    device, denoiser = model.device, model.ready(bfloat16=bfloat16).denoiser
    z, t = torch.zeros(batch, *model.shape, device=device), shared_time(0.5)
    cond = dr.Cond(torch.zeros(batch, dtype=torch.int64, device=device) if model.num_classes else None)

    def called(call: Callable[[], Any]) -> Any:
        settle_products(device, bfloat16=bfloat16)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            return call()

    context = called(lambda: denoiser.encode(z, t, cond)).aged()
    return {
        "heavy": lambda: called(lambda: denoiser.encode(z, t, cond)),
        "light": lambda: called(lambda: denoiser.denoise(z, t, context, cond)),
    }


def macs(model: Model, plan: dr.StepPlan) -> int:
    """Multiply-adds of an image."""
    return dr.Drawer(model, dr.Ancestral(model.gaussian), plan).cost.macs


def noise_batch(experiment: dr.Experiment, device: torch.device) -> Batch:
    """A batch of an experiment's size, of noise for images."""
    sample = torch.arange(experiment.fit.batch_size)
    label = sample % experiment.num_classes if experiment.num_classes else None
    return Batch(torch.rand(len(sample), *experiment.shape) * 2 - 1, label, sample).to(device)


@dataclass(frozen=True)
class Fixed(TimeSource):
    """The same times at every call, on the device: nothing then waits for the host."""

    times: BatchTimes
    draws: int

    def __call__(self, draws: Draws) -> BatchTimes:
        return self.times


def training(
    experiment: dr.Experiment,
    device: torch.device,
    bfloat16: bool,
    *,
    compiled: bool = False,
    record: Record | None = None,
) -> Work:
    """One iteration of an experiment on a batch of its size, on noise for images.

    compiled: block by block, as `fit`
    record: makes one launch of the iteration, whose times are then always the same
    """
    assert isinstance(experiment.method, dr.DenoisingConfig)
    method = experiment.method.build(experiment)
    method.networks.to(device)
    if compiled:
        compile_blocks(method.networks.values())
    batch = noise_batch(experiment, device)
    draws = batch.draws(0)
    if record is not None:
        levels = method.times.draws
        times = method.times(draws.host.repeated(levels))
        method = replace(method, times=Fixed(BatchTimes(*to_device(device, *times)), levels))
    optimizer = torch.optim.AdamW(method.networks.parameters(), lr=1e-4, fused=True, capturable=record is not None)

    def iteration() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = method.loss(batch, 0, draws).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def settle() -> None:  # at every turn: samplings between them settle otherwise
        settle_products(device, bfloat16=bfloat16, trains=True)

    settle()
    launch = iteration if record is None else record(iteration, device)[0]

    def work() -> None:
        settle()
        launch()

    return work
