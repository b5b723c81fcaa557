"""Released weights: a run's averaged weights, its experiment and a card, in a directory that is written as a whole."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from dualrate.config.ranges import as_path
from dualrate.machine.device import own_defaults
from dualrate.machine.files import write_tensors
from dualrate.machine.folders import MANIFEST, Manifest, check_link, new_folder, some_of
from dualrate.runs.card import CARD, CURVE, write_card
from dualrate.runs.store import (
    CLASSES,
    COVARIANCE,
    EXPERIMENT,
    RELEASED,
    WEIGHTS,
    Note,
    read_stored,
    write_class_names,
    write_experiment,
)

FILES = {*RELEASED, MANIFEST, CLASSES, CARD, CURVE, COVARIANCE}  # all that a directory of released weights may hold


def export(run: str | Path, out: str | Path, note: Note | None = None) -> None:
    """Write a run's averaged weights as released weights: bfloat16 safetensors, no optimiser, no raw weights, a card.

    out:  new, empty, or released weights, which are then replaced as a whole
    note: as of `load`
    Raises ValueError for a run that is none, and for any other `out`; OSError if it cannot be written. Then `out` is
    what it was.
    """
    run, out = as_path(run), as_path(out)
    if (run / WEIGHTS).is_file():
        raise ValueError(f"{run} holds released weights: copy the directory, or export the run that they are from")
    check_target(out)
    stored = read_stored(run, note)
    if stored.state is None:
        raise ValueError(f"{run} is a model of diffusers, and no run: there is nothing to release; copy the folder")
    target = Path(os.path.realpath(out))  # a link stays one
    with new_folder(target, replace=True) as folder, own_defaults():
        write_experiment(folder, stored.experiment)
        rounded = {name: _rounded(tensor).contiguous() for name, tensor in stored.weights.items()}
        write_tensors(folder / WEIGHTS, rounded, {"iteration": str(stored.iteration)})
        write_class_names(folder, stored.class_names)
        write_card(stored, stored.state, target.name, folder)
        Manifest.write(folder, [*RELEASED, *(name for name in (CLASSES,) if (folder / name).exists())])


def _rounded(tensor: Tensor) -> Tensor:
    """Counters and the like stay as they are."""
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def check_target(
    out: Path, required: Collection[str] = RELEASED, own: Collection[str] = FILES, what: str = "released weights"
) -> None:
    """Raises ValueError unless released weights may be written to `out`, or something else that a folder is made of.

    required, own: names that it has in any case, and all that it may have; what: it is called
    """
    check_link(out)
    target = Path(os.path.realpath(out))
    if os.path.ismount(target):
        raise ValueError(f"{out} is the root of a file system, which nothing can replace: choose a directory in it")
    for place in (target, *target.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"{place} is a file, so no {what} can be in {out}: choose another directory")
        if (place / "checkpoints").is_dir() and (place / EXPERIMENT).is_file():
            raise ValueError(f"{out} is, or lies in, the run {place}: choose a directory outside of it")
    names = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if names and not set(required) <= set(names) <= set(own):
        foreign = [name for name in names if name not in own] or names
        raise ValueError(f"{out} holds {some_of(foreign)}: choose a new or empty directory, or {what} to replace")
