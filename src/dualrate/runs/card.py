"""A model card: what a run is, how it was made, how its training went. Every figure is read from the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dualrate.data.untrusted import printable
from dualrate.experiments.experiment import Model
from dualrate.machine.files import naming, read_records
from dualrate.machine.folders import some_of
from dualrate.runs.store import HISTORY, StoredModel, read_losses, read_moment_gaps

CARD, CURVE = "README.md", "loss.svg"
SHOWN = 100  # names of classes


def write_card(stored: StoredModel, state: Mapping[str, Any], name: str, out: Path) -> None:
    """Writes README.md and the loss curve of a run. state: of the checkpoint; name: what the weights are called.

    Raises ValueError, naming file and line, for a history or a log with a line that is none.
    """
    from dualrate.report.figures import loss_figure, svg  # only here: it imports matplotlib

    run = stored.path
    fit = stored.experiment.fit
    about = facts(stored, stored.model()) | {
        "training": f"{state['iteration']} iterations of {fit.batch_size} images, {state['seconds']:.0f} s",
        "precision": f"{state['precision']} in training, bfloat16 in this file",
        "seed": fit.seed,
        "optimiser": ", ".join(f"{name} {value}" for name, value in asdict(fit.optim).items()),
        "weights": f"averaged, half-life {fit.ema_halflife} images",
        "skipped updates": state["skipped"],
    }
    lines = [f"# {name}", "", "Averaged weights of a training run; `dualrate.load` reads this directory.", ""]
    lines += [*rows(about), ""]
    lines += ["Made by, in order:", "", *history(run), ""]
    gaps = read_moment_gaps(run)  # of a student, whose loss says nothing
    points, what = _smoothed(gaps or read_losses(run)), "moment gap" if gaps else "training loss"
    if points:
        with naming(out / CURVE):
            (out / CURVE).write_text(svg(loss_figure(points, "images seen (thousands)", what)))
        lines += [f"{what.capitalize()}, last value {points[-1][1]:.4g}:", "", f"![{what}]({CURVE})", ""]
    lines += ["Everything else is in `experiment.json`. Quality: docs/results.md.", ""]
    with naming(out / CARD):
        (out / CARD).write_text(printable("\n".join(lines)))  # commands and sources are file names


def facts(stored: StoredModel, model: Model) -> dict[str, object]:
    """What networks, images and data are, and what a call costs, by name; model: the stored one."""
    cost, (channels, height, width) = model.call_cost, model.image_shape
    calls = {"heavy call": cost.heavy, "light call": cost.light} if cost.heavy else {"call": cost.light}
    names = [f"{i} {' '.join(name.split())}".replace("|", r"\|") for i, name in enumerate(model.class_names)]
    return {
        "networks": ", ".join(f"{name} {count / 1e6:.2f} M parameters" for name, count in model.parameters.items()),
        "cost": ", ".join(f"{macs / 1e6:.1f} million MACs a {name}" for name, macs in calls.items()),
        "images": f"{height} x {width}, {channels} channel(s), {model.num_classes} classes",
        **({"classes": some_of(names, SHOWN)} if names else {}),
        "data": stored.experiment.data.source or "not known",
    }


def rows(values: Mapping[str, object]) -> list[str]:
    """A Markdown table of names and values."""
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())]


def history(path: Path) -> list[str]:
    """A Markdown item per start of a run; of released weights those of their card."""
    file = path / HISTORY
    if not file.exists():
        with naming(path / CARD):
            card = (path / CARD).read_text() if (path / CARD).is_file() else ""
        items = [line for line in card.splitlines() if line.startswith("- `")]
        return items or ["- unknown: this run kept no history"]
    starts = read_records(file)
    if nameless := [where for where, start in starts if "command" not in start]:
        raise ValueError(f"{nameless[0]} says no command; remove that line")
    return [f"- `{start['command']}` ({_surroundings(start)})" for _, start in starts]


def _surroundings(start: Mapping[str, Any]) -> str:
    keys = ("teacher", "student", "encoder", "light", "date", "commit", "processor", "threads", "torch")
    return ", ".join(f"{key} {start[key]}" for key in keys if key in start)


def _smoothed(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """(thousands of images, value); averaged over ten log lines, so that the curve can be read."""
    windows = [points[i : i + 10] for i in range(0, len(points) - len(points) % 10, 10)]
    return [(window[-1][0] / 1000, sum(loss for _, loss in window) / len(window)) for window in windows]
