"""Training a run: data, networks and trainer brought together in a directory that the same call resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dualrate.config.serial import to_plain
from dualrate.data.images import ImageSet, load_images, to_uint8
from dualrate.data.loader import Batches
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.plan import StepPlan
from dualrate.experiments.experiment import Experiment
from dualrate.machine.progress import PlainReporter, Progress
from dualrate.methods.method import Method
from dualrate.networks.uvit import UViTConfig
from dualrate.report.grid import save_grid
from dualrate.runs.checks import check_out, data_notes
from dualrate.runs.store import note_start, start_from, write_experiment
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.cost import call_cost
from dualrate.sampling.trajectory import sample
from dualrate.training import checkpoint
from dualrate.training.config import FitResult
from dualrate.training.loop import fit


def train(
    experiment: Experiment,
    out: Path,
    *,
    progress: Progress | None = None,
    decoding: Callable[[int, int, str], None] | None = None,
    device: torch.device | str = "cpu",
    command: str = "dualrate.train",
) -> FitResult:
    """Train, or continue, the run in `out`.

    Writes experiment.json, history.jsonl (`command` and its surroundings, a line per start), checkpoints/,
    metrics.jsonl, and now and then a grid of samples under the averaged weights.
    Raises ValueError if the data does not fit the networks, or `out` holds another experiment or no run; OSError if
    it cannot be written to.
    """
    check_out(experiment.name, out)
    images, progress = training_images(experiment, decoding), progress or PlainReporter()
    method = experiment.method()
    started_from = {}
    if not checkpoint.steps(out / "checkpoints"):
        started_from = start_from(method.networks, experiment.encoder_from, experiment.light_from, progress.note)
    costs = costs_of(experiment, method)

    def on_start() -> None:
        announce(experiment, images, costs, out, progress)
        write_experiment(out, experiment)
        note_start(out, command, started_from)

    def on_sample(iteration: int) -> None:
        save_samples(experiment, method.denoiser(), StepPlan.uniform(32, 8), samples_file(out, iteration), device)

    return fit(
        method,
        batches_of(experiment, images),
        experiment.fit,
        out,
        identity=to_plain(experiment) | {"images": images.fingerprint},
        progress=progress,
        on_start=on_start,
        on_sample=on_sample,
        device=device,
    )


def training_images(experiment: Experiment, decoding: Callable[[int, int, str], None] | None) -> ImageSet:
    """What the experiment trains on. Raises ValueError if that does not fit its networks."""
    data = experiment.data
    images = load_images(
        data.source, split="train", size=data.size, channels=data.channels, on_bad=data.on_bad, progress=decoding
    )
    check_fit(experiment, images)
    return images


def batches_of(experiment: Experiment, images: ImageSet) -> Batches:
    return Batches(images, experiment.fit.batch_size, experiment.fit.seed, experiment.data.augment)


def costs_of(experiment: Experiment, method: Method) -> list[str]:
    """A line for each network: its layout, its parameters, and what a call costs."""
    label = 0 if experiment.num_classes else None
    with torch.random.fork_rng([]):  # dropout draws numbers
        cost = call_cost(method.denoiser(), experiment.shape, label, next(method.networks.parameters()).device)
    calls = [macs for macs in (cost.heavy, cost.light) if macs]
    lines = []
    for (name, network), macs in zip(method.networks.items(), calls, strict=True):
        config: UViTConfig = getattr(experiment.networks, name)
        sides = (config.side(i) for i in range(len(config.levels)))
        levels = (f"{b.kind} {b.channels} x {b.blocks} at {s} x {s}" for b, s in zip(config.levels, sides, strict=True))
        count = sum(parameter.numel() for parameter in network.parameters())
        lines.append(
            f"{name}: {', '.join(levels)}, patches of {config.patch}; {_rounded(count)} parameters, "
            f"{_rounded(macs)} multiply-adds a call"
        )
    return lines


def _rounded(count: int) -> str:
    return f"{count / 1e9:.3g} G" if count >= 1e9 else f"{count / 1e6:.3g} M"


def announce(experiment: Experiment, images: ImageSet, costs: list[str], out: Path, progress: Progress) -> None:
    """Says what will be trained, what it costs, and what is odd about its images."""
    config = experiment.fit
    progress.note(f"{experiment.name}: {config.iterations} iterations of {config.batch_size} images, in {out}")
    for line in costs:
        progress.note(line)
    for note in data_notes(images, experiment.num_classes, config.batch_size):
        progress.note(note)


def samples_file(out: Path, iteration: int) -> Path:
    return out / "samples" / f"{iteration:07d}.png"


def save_samples(
    experiment: Experiment, denoiser: Denoiser, plan: StepPlan, file: Path, device: torch.device | str
) -> None:
    """A grid of 40 images, from the same noise every time."""
    labels = [i % experiment.num_classes for i in range(40)] if experiment.num_classes else None
    drawn = sample(denoiser, Ancestral(experiment.process), plan, experiment.shape, range(40), labels, device=device)
    pictures = np.concatenate([to_uint8(batch).cpu().numpy() for batch in drawn])
    file.parent.mkdir(exist_ok=True)
    save_grid(pictures, file, columns=10, scale=2)


def check_fit(experiment: Experiment, images: ImageSet) -> None:
    """Raises ValueError unless the images have the networks' shape and their labels exist for the networks."""
    shape = images.images.shape[1:]
    if shape != experiment.shape:
        raise ValueError(
            f"{images.name} has images of {shape} (C, H, W), the networks of {experiment.name} take "
            f"{experiment.shape}: pass --data.size {experiment.shape[1]} --data.channels "
            f"{experiment.shape[0]}, or change the networks"
        )
    if experiment.num_classes and images.labels is None:
        raise ValueError(
            f"{images.name} has no labels, but the networks of {experiment.name} are conditioned on "
            f"{experiment.num_classes} classes: set num_classes of every network to 0 for an unconditional model "
            "(--networks.model.num-classes 0, or --networks.encoder.num-classes 0 --networks.light.num-classes 0)"
        )
    if images.num_classes > experiment.num_classes > 0:
        raise ValueError(
            f"{images.name} has {images.num_classes} classes, the networks of {experiment.name} know only "
            f"{experiment.num_classes}: raise num_classes"
        )
