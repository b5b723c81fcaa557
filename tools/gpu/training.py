"""A training that a piece runs with the package's own trainer, and that goes on in a later call.

Between two calls a training travels as its newest checkpoint in bfloat16: weights, averages and the optimiser's two
moments, 8 bytes a parameter where a checkpoint has 16. A machine takes 64 MiB. Beside the checkout and CIFAR-10 that
leaves room for 4.5 million parameters.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dualrate as dr
from dualrate.experiment.experiment import Start
from dualrate.system.device import pays
from dualrate.system.files import write_whole
from dualrate.system.progress import Silent
from dualrate.training import checkpoint
from dualrate.training.config import FitResult
from dualrate.training.loop import fit
from tools.gpu.cifar10 import Batches, Images
from tools.gpu.piece import Job

PART = 15 * 2**20  # bytes of a file; a machine gives back files of at most 16 MiB


def train(
    job: Job, experiment: dr.Experiment, images: Images, look: Callable[[int, dr.Denoiser], None] = lambda *of: None
) -> FitResult:
    """Train, or go on, in a folder of the experiment's name.

    look: called with images seen and the denoiser, averaged weights in place, every `sample_every` and at the end
    """
    config, given = experiment.fit, experiment.networks.given is not None
    make = experiment.condition.build(job.device) if given else None
    batches = Batches(images, config.batch_size, labelled=experiment.num_classes > 0, make=make)
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


def averaged(job: Job, experiment: dr.Experiment) -> dr.Denoiser:
    """What a training came to: a denoiser with its averaged weights."""
    networks, denoiser = experiment.build()
    networks.load_state_dict(newest(job.work / experiment.name).weights())
    networks.to(job.device).eval().requires_grad_(False)
    return denoiser


def leave(job: Job, name: str) -> None:
    """Write the training of this name to files that come back from the machine."""
    saved, aside = newest(job.work / name), job.work / f".{name}"
    rounded = {stem: {key: half(value) for key, value in held.items()} for stem, held in saved.tensors.items()}
    record: dict[str, Any] = {key: value for key, value in saved.state.items() if key != "format"}
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.save(aside / "checkpoints", int(record["iteration"]), rounded, record)
    pack(aside, job.out, name)
    shutil.rmtree(aside)


def pack(folder: Path, out: Path, name: str) -> None:
    """Write a folder as OUT/NAME.00, NAME.01, ..., in place of those of before."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    for part in parts(out, name):
        part.unlink()
    for i, start in enumerate(range(0, len(made.getvalue()), PART)):
        write_whole(out / f"{name}.{i:02}", made.getvalue()[start : start + PART])


def unpack(out: Path, name: str, folder: Path) -> None:
    """Put back what `pack` wrote, if it did. Raises zipfile.BadZipFile for parts that are damaged or missing."""
    if found := parts(out, name):
        with zipfile.ZipFile(io.BytesIO(b"".join(part.read_bytes() for part in found))) as archive:
            archive.extractall(folder)


def parts(out: Path, name: str) -> list[Path]:
    return sorted(out.glob(f"{name}.[0-9][0-9]"))


def half(value: Tensor) -> Tensor:
    """In bfloat16, but for numbers that count steps."""
    return value.to(torch.bfloat16) if value.ndim and value.is_floating_point() else value
