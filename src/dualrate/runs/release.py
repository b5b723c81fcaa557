"""Released weights: a run's averaged weights, its experiment and a model card, in a directory written as a whole.

The card describes the run, how it was made and how its training went. Every figure is read from the run.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dualrate.config.ranges import as_path, many
from dualrate.data.source import printable
from dualrate.experiment.model import Model
from dualrate.runs import store
from dualrate.runs.store import CLASSES, EXPERIMENT, RELEASED, WEIGHTS, Note, StoredModel
from dualrate.system.device import own_defaults
from dualrate.system.files import naming, read_records, write_tensors
from dualrate.system.folders import MANIFEST, Manifest, check_link, new_folder, some_of

CARD, CURVE = "README.md", "loss.svg"
SHOWN = 100  # names of classes


def write_card(stored: StoredModel, state: Mapping[str, Any], name: str, out: Path) -> None:
    """Writes README.md and the loss curve of a run. state: of the checkpoint; name: what the weights are called.

    Raises ValueError, naming file and line, for a history or a log with a damaged line.
    """
    from dualrate.report.figures import loss_figure, svg  # only here: it imports matplotlib

    run = stored.path
    fit = stored.experiment.fit
    about = facts(stored.model()) | {
        "training": f"{many(state['iteration'], 'iteration')} of {fit.batch_size} images, {state['seconds']:.0f} s",
        "precision": f"{state['precision']} in training, bfloat16 in this file",
        "seed": fit.seed,
        "optimiser": ", ".join(f"{name} {value}" for name, value in asdict(fit.optim).items()),
        "weights": f"averaged, half-life {fit.ema_halflife} images",
        "skipped updates": state["skipped"],
    }
    lines = [f"# {name}", "", "Averaged weights of a training run; `dualrate.load` reads this directory.", ""]
    lines += [*rows(about), ""]
    lines += ["Made by, in order:", "", *history(run), ""]
    gaps = store.read_logged(run, "student/moment_gap")  # of a student, whose loss says nothing
    logged, what = gaps or store.read_logged(run, "/loss"), "moment gap" if gaps else "training loss"
    windows = [logged[i : i + 10] for i in range(0, len(logged) - len(logged) % 10, 10)]  # so that it can be read
    if points := [(window[-1][0] / 1000, sum(value for _, value in window) / 10) for window in windows]:
        with naming(out / CURVE):
            (out / CURVE).write_text(svg(loss_figure(points, "images seen (thousands)", what)))
        lines += [f"{what.capitalize()}, last value {points[-1][1]:.4g}:", "", f"![{what}]({CURVE})", ""]
    lines += ["Everything else is in `experiment.json`. Quality: docs/results.md.", ""]
    with naming(out / CARD):
        (out / CARD).write_text(printable("\n".join(lines)))  # commands and sources are file names


def facts(model: Model) -> dict[str, object]:
    """Facts by name: networks, images, data, and the cost of a call."""
    cost, (channels, height, width) = model.call_cost, model.image_shape
    calls = {"heavy call": cost.heavy, "light call": cost.light} if cost.heavy else {"call": cost.light}
    calls |= {"reading of a condition": cost.read} if cost.read else {}
    names = [f"{i} {' '.join(name.split())}".replace("|", r"\|") for i, name in enumerate(model.class_names)]
    return {
        "networks": ", ".join(f"{name} {count / 1e6:.2f} M parameters" for name, count in model.parameters.items()),
        "cost": ", ".join(f"{macs / 1e6:.1f} million MACs a {name}" for name, macs in calls.items()),
        "images": f"{height} x {width}, {many(channels, 'channel')}, {many(model.num_classes, 'class')}",
        **({"classes": some_of(names, SHOWN)} if names else {}),
        "data": model.experiment.data.source or "not known",
    }


def rows(values: Mapping[str, object]) -> list[str]:
    """A Markdown table of names and values."""
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())]


def history(path: Path) -> list[str]:
    """A Markdown item per start of a run; of released weights those of their card."""
    file = path / store.HISTORY
    if not file.exists():
        with naming(path / CARD):
            card = (path / CARD).read_text() if (path / CARD).is_file() else ""
        items = [line for line in card.splitlines() if line.startswith("- `")]
        return items or ["- unknown: this run kept no history"]
    items, shown = [], ("teacher", "student", "encoder", "light", "date", "commit", "processor", "threads", "torch")
    for where, start in read_records(file):
        if "command" not in start:
            raise ValueError(f"{where} says no command; remove that line")
        how = ", ".join(f"{key} {start[key]}" for key in shown if key in start)
        items.append(f"- `{start['command']}` ({how})")
    return items


FILES = {
    *RELEASED,
    MANIFEST,
    CLASSES,
    CARD,
    CURVE,
    "covariance.safetensors",  # a table that version 0.2 measured
}  # all that a directory of released weights may hold


def export(run: str | Path, out: str | Path, note: Note | None = None) -> None:
    """Write a run's averaged weights as released weights: bfloat16 safetensors, no optimiser, no raw weights, a card.

    out:  new, empty, or released weights, which are then replaced as a whole
    note: as of `load`
    Raises ValueError if `run` is no run, and for any other `out`; OSError if it cannot be written. Then `out` is
    what it was.
    """
    run, out = as_path(run), as_path(out)
    if (run / WEIGHTS).is_file():
        raise ValueError(f"{run} holds released weights: copy the directory, or export the run that they are from")
    target = check_target(out)
    stored = store.read_stored(run, note)
    if stored.state is None:
        raise ValueError(f"{run} is a model of diffusers, and no run: there is nothing to release; copy the folder")
    with new_folder(target, replace=True) as folder, own_defaults():
        store.write_experiment(folder, stored.experiment)
        rounded = {  # counters and the like stay as they are
            name: (tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in stored.weights.items()
        }
        write_tensors(folder / WEIGHTS, rounded, {"iteration": str(stored.iteration)})
        store.write_class_names(folder, stored.class_names)
        write_card(stored, stored.state, target.name, folder)
        Manifest.write(folder, [*RELEASED, *(name for name in (CLASSES,) if (folder / name).exists())])


def check_target(
    out: Path, required: Collection[str] = RELEASED, allowed: Collection[str] = FILES, what: str = "released weights"
) -> Path:
    """The folder that `out` is, or links to, for released weights or something else that a folder is made of.

    required, allowed: names that it has in any case, and all that it may have; what: it is called
    Raises ValueError unless it may be written there.
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
    if names and not set(required) <= set(names) <= set(allowed):
        foreign = [name for name in names if name not in allowed] or names
        raise ValueError(f"{out} holds {some_of(foreign)}: choose a new or empty directory, or {what} to replace")
    return target
