"""Three steps of training a tiny dual-rate model with save and resume, in a temporary folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualrate.data.images import ImageSet
from dualrate.data.loader import Augment, Batches
from dualrate.doctor.finding import Finding, ok, problem
from dualrate.experiments.denoising import DenoisingConfig
from dualrate.experiments.experiment import Experiment, Model, Start
from dualrate.experiments.networks import TwoNetworks
from dualrate.machine.device import pays
from dualrate.machine.progress import Silent
from dualrate.methods.times import TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig
from dualrate.training.loop import fit
from dualrate.training.optim import OptimConfig

STEPS, BATCH, SIDE = 3, 4, 8
NETWORK = UViTConfig(SIDE, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), patch=2, embedding=16, head_dim=16)


def check_trial(device: torch.device) -> Iterator[Finding]:
    """Three steps at once, and two with one more after a resume: the weights must be the same."""
    with tempfile.TemporaryDirectory(prefix="dualrate-doctor-") as name:
        straight = trained(Path(name, "straight"), STEPS, device)
        trained(Path(name, "resumed"), STEPS - 1, device)
        resumed = trained(Path(name, "resumed"), STEPS, device)
    gap = max(float((straight[key] - resumed[key]).abs().max()) for key in straight)
    about = f"{STEPS} steps of training on {device}, saved and resumed"
    if gap == 0:
        yield ok(f"{about}: the same bits as without a break")
    elif device.type != "cpu" and gap < OptimConfig().lr:  # less than one update moves a weight
        yield ok(f"{about}: the same weights within {gap:.1g}")
    else:
        yield problem(
            f"{about}: weights differ by {gap:.3g}", "run it again; if it stays, this machine computes wrongly"
        )


def trained(folder: Path, iterations: int, device: torch.device) -> dict[str, Tensor]:
    """The weights of the run in `folder`, trained up to so many iterations, as they are read from its checkpoint."""
    config = FitConfig(iterations, BATCH, optim=OptimConfig(warmup=0), checkpoint_every=1)
    experiment = Experiment("doctor", TwoNetworks(NETWORK, NETWORK), DenoisingConfig(TimeSampler()), config)
    pixels = np.random.default_rng(0).integers(0, 256, (2 * BATCH, 1, SIDE, SIDE), dtype=np.uint8)
    batches = Batches(ImageSet(pixels, None, (), "noise"), BATCH, config.seed, Augment())
    start = Start(
        fresh=not checkpoint.saved_paths(folder / "checkpoints"),
        device=device,
        bfloat16=pays(device),
        load=_none,
        batch=lambda iteration: batches.batch(iteration).to(device),
        note=lambda text: None,
    )
    method = experiment.method.prepare(experiment, start).method
    how = {"identity": {"trial": 1}, "progress": Silent(), "device": device}
    if fit(method, batches, config, folder, **how).stopped == "signal":
        raise KeyboardInterrupt
    saved = checkpoint.latest(folder / "checkpoints")
    if saved is None or saved.state["iteration"] != iterations:
        raise OSError(f"the checkpoint of iteration {iterations} is not in {folder}")
    return saved.weights(average=False)


def _none(run: str) -> Model:
    raise ValueError(f"the trial starts from no run, and {run} was asked for")
