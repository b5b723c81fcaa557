"""A model's networks as programs of torch.export, which torch alone loads and runs, for any number of images.

    FOLDER/encoder.pt2, light.pt2   a program each; of a model of one network, model.pt2
    FOLDER/programs.json            what they are called with, and the plan with its log-SNRs
    FOLDER/MANIFEST.json            sha256 of all files

A light network's program takes a context in any case: without one its features are zeros and `present` is False, which
is the same (networks/dual.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from dualrate.config.ranges import as_path
from dualrate.diffusion.values import Cond, shared_time
from dualrate.drawing.choice import Choice
from dualrate.experiment.experiment import Model
from dualrate.runs.release import check_target
from dualrate.runs.store import Note, load
from dualrate.runs.train import check_export
from dualrate.system.folders import MANIFEST, Manifest, new_folder

INDEX = "programs.json"
ROWS = 2  # of a batch that is traced
MOST_ROWS = (2**16, 63)  # that a program takes; where a network does otherwise with more, as diffusers' up blocks do


def calls_of(model: Model) -> dict[str, tuple[Any, ...]]:
    """What each network is called with, by its role: those of a heavy call and of a step that reuses its context."""
    calls: dict[str, tuple[Any, ...]] = {}

    def note(role: str, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        held = tree_map(lambda part: part.contiguous() if isinstance(part, Tensor) else part, inputs)
        calls.setdefault(role, held)

    hooks = [network.register_forward_pre_hook(partial(note, role)) for role, network in model.networks.items()]
    try:
        z = torch.zeros(ROWS, *model.process.state_shape(model.shape), device=model.device)
        cond = Cond(torch.zeros(ROWS, dtype=torch.int64, device=model.device) if model.num_classes else None)
        with torch.no_grad():
            context = model.denoiser.encode(z, shared_time(0.9), cond).aged()
            present = torch.ones(ROWS, dtype=torch.bool, device=model.device)
            model.denoiser.denoise(z, shared_time(0.5), dataclasses.replace(context, present=present), cond)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def programs_of(model: Model) -> dict[str, tuple[ExportedProgram, int]]:
    """The networks by their roles, each with how many rows it takes at most, one of MOST_ROWS."""
    return {role: _program(model.networks[role], inputs) for role, inputs in calls_of(model).items()}


def _program(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[ExportedProgram, int]:
    def exported(most: int) -> tuple[ExportedProgram, int]:
        batch = Dim("batch", max=most)
        shapes = tree_map(lambda part: {0: batch} if isinstance(part, Tensor) else None, inputs)
        return torch.export.export(network, inputs, dynamic_shapes=shapes), most

    try:
        return exported(MOST_ROWS[0])
    except RuntimeError:  # of torch.export, such as of a batch that the network does not treat alike
        return exported(MOST_ROWS[1])


def export_programs(
    run: str | Path,
    out: str | Path,
    choice: Choice = Choice(),  # noqa: B008  # a frozen value
    note: Note | None = None,
) -> None:
    """Write the networks of a run, or of released weights, as programs, in float32, for the CPU.

    out:    new, empty, or such programs, which are then replaced as a whole
    choice: of the plan that is written beside them; note: as of `load` and of `Choice.step_plan`
    Raises what `load` and `Choice.step_plan` raise, and ValueError for any other `out`.
    """
    out, model = as_path(out), load(run, note=note)
    check_export(model)
    files = {role: f"{role}.pt2" for role in model.networks}
    check_target(out, {INDEX}, {INDEX, MANIFEST, *files.values()}, "programs")
    plan, calls, programs = choice.step_plan(model, note or warnings.warn), calls_of(model), programs_of(model)
    index = {
        "shape": model.shape,
        "num_classes": model.num_classes,
        "plan": json.loads(plan.to_json()),
        "log_snr": [float(model.process.log_snr(torch.tensor(t, dtype=torch.float64))) for t in plan.t],
        "inputs": {role: tree_map(_described, inputs) for role, inputs in calls.items()},
        "most_rows": {role: most for role, (_, most) in programs.items()},
    }
    target = Path(os.path.realpath(out))  # a link stays one
    with new_folder(target, replace=True) as folder:
        for role, (program, _) in programs.items():
            torch.export.save(program, folder / files[role])
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        Manifest.write(folder, [INDEX, *files.values()])


def _described(part: object) -> str | None:
    if not isinstance(part, Tensor):
        return None
    return f"{str(part.dtype).removeprefix('torch.')} ({', '.join(['B', *map(str, part.shape[1:])])})"
