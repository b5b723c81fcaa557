"""Parts that commands share: a loaded model, progress on standard error, reports on standard output."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dualrate.data.cache import cache_dir
from dualrate.data.source import NOTED, DataProgress
from dualrate.experiment.modality import conditions_named
from dualrate.experiment.model import COMPILED, Model
from dualrate.report.table import aligned
from dualrate.runs.store import load
from dualrate.system.device import compiles, keep_compiled, pick_device
from dualrate.system.progress import PlainReporter, Reporter


def command_line() -> str:
    """The command line, quoted for a shell."""
    return shlex.join(["dualrate", *sys.argv[1:]])


def reporter() -> Reporter:
    """A line on standard error every ten seconds."""
    return PlainReporter(seconds=10)


@dataclass(frozen=True)
class Machine:
    """The device on which a command's networks run, and how their calls are made there."""

    compile: bool = False
    """Compile the networks. This takes minutes the first time, and makes small batches faster."""
    graphs: bool = False
    """Record the networks' calls as CUDA graphs, for small batches on a GPU."""
    device: str | None = None
    """cpu, cuda, ...; a GPU if there is one."""

    def loaded(self, run: Path, prompt: str | None = None) -> tuple[Model, Reporter]:
        """The model of a run, or of released weights; and the reporter of what follows.

        prompt: that it makes images of, as of `conditions_named`, of a text-to-image model
        """
        device, progress = pick_device(self.device), reporter()
        model = load(run, device=device, note=progress.note)
        if prompt is not None:
            model = model.with_given(conditions_named(model.experiment, prompt, device))
        return replace(model, **self.calls(device, progress)), progress

    def calls(self, device: torch.device, progress: Reporter) -> dict[str, bool]:
        """Options of `Model` for how calls are made, as far as they work on a device. Notes what does not."""
        problem = ""
        if self.compile:
            cache = keep_compiled(cache_dir() / COMPILED)
            progress.note(
                f"compiling networks at their first calls: minutes the first time, seconds from {cache} later"
            )
            if problem := compiles(device):
                progress.note(f"warning: there is no compiler that works here ({problem}): the networks run uncompiled")
        if self.graphs and device.type != "cuda":
            progress.note(f"warning: CUDA graphs need a GPU, and this is the {device}: calls are not recorded")
        return {"compiled": self.compile and not problem, "graphs": self.graphs and device.type == "cuda"}


def data_progress(progress: Reporter, work: str | None = None) -> DataProgress:
    """Shows `work`, or all work if None, as images done, and notes other messages once."""
    noted = set[str]()

    def update(done: int, total: int, what: str) -> None:
        left_out = what.startswith(NOTED)
        if (left_out or work not in (None, what)) and what not in noted:
            noted.add(what)
            progress.note(what if left_out else f"{what}: {total}")
        if work in (None, what):
            progress.update(done, total, {"images": done})
            if done == total:
                progress.close()

    return update


def print_json(values: object) -> None:
    """Print values as JSON, with null in place of numbers that are not finite."""

    def plain(value: object) -> object:
        if isinstance(value, Mapping):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    print(json.dumps(plain(values), allow_nan=False))


def print_report(as_json: bool, values: Mapping[str, object]) -> None:
    """Values as one JSON object, or one `name  value` line each."""
    if as_json:
        print_json(values)
        return
    print(aligned(values))
