"""The runs of a training in stages, one after the other; each goes on by itself, and so does what is made in between.

OUT/first    the run that trains the codec
OUT/latents  of its images by it, as it is when it is finished (`data/encode.py`)
OUT/base     the run that trains a model of these: what is sampled from
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from dualrate.codecs.config import CodecFolder
from dualrate.config.ranges import as_path
from dualrate.data.encode import encode
from dualrate.data.source import DataProgress
from dualrate.experiments.experiment import Experiment
from dualrate.experiments.stages import Stages
from dualrate.runs.store import EXPERIMENT

FIRST, LATENTS, BASE = "first", "latents", "base"
SHARD_BYTES = 2**22  # of latents: a kill loses no more


def in_turn(
    stages: Stages,
    out: str | Path,
    *,
    device: torch.device | str = "cpu",
    progress: DataProgress = lambda done, total, message: None,
) -> Iterator[tuple[Experiment, Path]]:
    """Each experiment and the directory to train it in, to its end before the next one is asked for.

    device, progress: of encoding the images, both splits, mirrored too where the base model's data are
    Raises ValueError for an `out` that is a run itself, and what `encode` raises: ValueError too for latents that an
    earlier state of the first stage made.
    """
    out = as_path(out)
    if (out / EXPERIMENT).exists():
        raise ValueError(f"{out} is a run of one stage: name another --out for the two")
    yield stages.first, out / FIRST
    codec = CodecFolder.at(out / FIRST, device)  # where it is now: the latents say where it was
    data = stages.first.data
    encode(
        data.source,
        out / LATENTS,
        codec,
        size=data.size,
        channels=data.channels,
        on_bad=data.on_bad,
        label=data.label,
        mirrored=stages.base.data.augment.flip,
        shard_bytes=SHARD_BYTES,
        device=device,
        batch_size=64,
        progress=progress,
    )
    yield replace(stages.on_latents(out / LATENTS), codec=codec), out / BASE
