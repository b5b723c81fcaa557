"""A sampling process that dies on cue, for test_samples.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.samples import write_samples
from dualrate.runs.store import load
from dualrate.sampling.ancestral import Ancestral

PLAN = StepPlan.uniform(2, 1)


def write(run: Path, out: Path, num: int, *, kill_at: int = 0) -> None:
    """Draw the seeds from 5 on, in batches of 3. Dies at the `kill_at`-th moment right before or after a renaming."""
    torch.set_num_threads(1)
    moments, replace = 0, os.replace

    def reached() -> None:
        nonlocal moments
        moments += 1
        if moments == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(source: Path, target: Path) -> None:
        reached()
        replace(source, target)
        reached()

    os.replace = watched
    model = load(run)
    try:
        drawer = Drawer(model, Ancestral(model.process), PLAN, batch_size=3, precision="float32")
        write_samples(drawer, range(5, 5 + num), out, npz=True)
    finally:
        os.replace = replace
