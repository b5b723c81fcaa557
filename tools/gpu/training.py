"""A training that a piece runs with the package's own trainer, and that goes on in a later call.

Between two calls a training travels as a checkpoint in bfloat16 without the optimiser's first moment, which begins anew
at 0 and is itself again after some ten updates: 6 bytes a parameter, where a checkpoint has 16. A machine takes 64 MiB.
Beside the checkout and CIFAR-10 that leaves room for 7 million parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import dualrate as dr
from dualrate.data.conditions import Condition
from dualrate.experiment.experiment import Start
from dualrate.system.device import pays
from dualrate.system.progress import Silent
from dualrate.training import checkpoint
from dualrate.training.config import FitResult
from dualrate.training.loop import fit
from tools.gpu.cifar10 import Batches, Images
from tools.gpu.piece import Job

FIRST, SECOND = ".exp_avg", ".exp_avg_sq"  # how the names of the optimiser's moments end


def train(
    job: Job, experiment: dr.Experiment, images: Images, look: Callable[[int, dr.Denoiser], None] = lambda *of: None
) -> FitResult:
    """Train, or go on, in a folder of the experiment's name.

    look: called with images seen and the denoiser, averaged weights in place, every `sample_every` and at the end
    """
    config, condition = experiment.fit, experiment.condition
    make = condition.build(job.device) if isinstance(condition, Condition) else None
    batches = Batches(images, config.batch_size, experiment.num_classes > 0, make, config.seed)
    start = Start(True, job.device, pays(job.device), dr.load, batches.batch, print)
    method = experiment.method.prepare(experiment, start).method
    return fit(
        method,
        batches,
        config,
        job.work / experiment.name,
        identity={"name": experiment.name},
        progress=Silent(),
        on_sample=lambda iteration: look(iteration * config.batch_size, method.denoiser()),
        device=job.device,
    )


def newest(folder: Path) -> checkpoint.Checkpoint:
    """The last checkpoint of a training."""
    return checkpoint.load(checkpoint.saved_paths(folder / "checkpoints")[-1])


def averaged(job: Job, experiment: dr.Experiment) -> tuple[nn.ModuleDict, dr.Denoiser]:
    """Networks of a training with their averaged weights, and their denoiser."""
    networks, denoiser = experiment.build()
    networks.load_state_dict(newest(job.work / experiment.name).weights())
    networks.to(job.device).eval().requires_grad_(False)
    return networks, denoiser


def state_of(job: Job, name: str) -> Path:
    """The folder in OUT that `leave` writes."""
    return job.out / f"{name}.state"


def leave(job: Job, name: str) -> None:
    """Write the newest checkpoint of this training, if any, to OUT, in place of the one of before.

    A kill leaves the old one, or both.
    """
    if not checkpoint.saved_paths(job.work / name / "checkpoints"):
        return
    saved, state = newest(job.work / name), state_of(job, name)
    if not checkpoint.path_of(state, saved.state["iteration"]).is_dir():
        parts = {
            stem: {key: half(value) for key, value in named.items() if not key.endswith(FIRST)}
            for stem, named in saved.tensors.items()
        }
        write(state, parts, saved)
        checkpoint.prune(state, 1)


def take_up(job: Job, name: str) -> None:
    """Put what `leave` wrote into the folder of its training, unless that is there."""
    folder, state = job.work / name / "checkpoints", state_of(job, name)
    if folder.is_dir() or not state.is_dir() or (saved := checkpoint.recover(state, print)) is None:
        return
    for named in saved.tensors.values():
        second = [key for key in named if key.endswith(SECOND)]
        named.update({key.removesuffix(SECOND) + FIRST: torch.zeros_like(named[key]) for key in second})
    write(folder, saved.tensors, saved)


def write(folder: Path, tensors: dict[str, dict[str, Tensor]], saved: checkpoint.Checkpoint) -> None:
    record = {key: value for key, value in saved.state.items() if key != "format"}
    checkpoint.save(folder, saved.state["iteration"], tensors, record)


def half(value: Tensor) -> Tensor:
    """A value in bfloat16, but for numbers that count steps."""
    return value.to(torch.bfloat16) if value.ndim and value.is_floating_point() else value
