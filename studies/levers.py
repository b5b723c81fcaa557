"""What makes a dual-rate model better in equal time: each lever of its training alone.

    OMP_NUM_THREADS=1 .venv/bin/python studies/levers.py base targets       # trains and measures, in turn
    OMP_NUM_THREADS=1 .venv/bin/python studies/levers.py    # the table of what there is

`base` is a light network beside a frozen encoder, the annealed network of 0.45 of heavy's cost: it starts as
weights/fashion-mnist-light and learns the images, for plans of 1 to 8 heavy calls, the first at t = 0.6 to 0.9, batches
of 64, a rate that falls to nothing. Every other line changes one thing of it; those named after `joint` change one
thing of that, in which the encoder trains too, those named after `scratch`, whose light network starts from nothing,
one of that. All train for SECONDS of one core, by seconds of processor time of an iteration: medians of 8 interleaved
rounds (`benchmarks.workloads.training`, batch 64, bfloat16, one thread) of an AMD EPYC with AVX-512. Killed, a training
goes on. Runs are kept in runs/levers, results in docs/results/levers, a file a name.

What a model lacks is what studies/saving_model.py calls so, under the plan that is scored, PLAN: the sum over steps of
E|x - x_hat|^2 - E|x - x_hat of the encoder's network alone|^2, each with half the loss weight's integral over it, on
the same held-out images and noise for all, so that lines are compared in pairs. The second table has the squared
distance of x_hat to that network's by noise level and age of the context, as in studies/errors.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import errors
import torch
from common import RESULTS, keep, load, markdown, place, within
from lines import Found, Line, Study, fashion_judges
from saving_model import held_out, weighted_errors

import dualrate as dr
from dualrate.cli.console import reporter
from dualrate.drawing.choice import Choice
from dualrate.drawing.likelihood import Estimate
from dualrate.system.progress import Reporter

ALONE = "weights/fashion-mnist-medium-45"  # the encoder's network by itself
PAGE = RESULTS / "levers.md"
PLAN = dr.StepPlan.from_json((RESULTS / "plans" / "blend-0.7-8-2.json").read_text())
SCORED = Choice(plan=PLAN, sampler="sde-dpm++2m", gamma=0.1)
COUNT, AGED_COUNT = 1024, 500  # held-out images
AGED = [  # log-SNR, age of the context: of what the second table shows
    (level, age) for level in ("-2 to 0", "0 to 2", "2 to 4") for age in ("0.125 to 0.25", "0.25 to 0.5", "none")
]
SECONDS = 600.0
FROM_LIGHT = "--method.light-from weights/fashion-mnist-light"
FROZEN = "--method.freeze-encoder"
BASE = f"{FROM_LIGHT} {FROZEN}"
MANY = "--method.times.heavy 4 32 --method.times.first None"
TARGETS = f"--method.targets-from {ALONE}"
LIGHT = "--networks.light.levels"
COMPARED = ("joint", "scratch")  # what lines named after them are compared with; the others with base
Lacks = dict[str, list[float]]  # on every batch
Cells = dict[str, Any]  # of studies/errors.py
LEVERS = {  # name: what it is called, what trains it, seconds of an iteration
    "base": ("as it is", BASE, 0.086),
    "targets": ("targets: x_hat of the encoder's network", f"{BASE} {TARGETS}", 0.136),
    "targets-half": ("targets: half of it, half the image", f"{BASE} {TARGETS} --method.targets-share 0.5", 0.136),
    "residual": ("a correction of x_hat(tau), moved to t", f"{BASE} --networks.context.residual", 0.087),
    "few": ("plans of few heavy calls oftener, odds 1/H^2", f"{BASE} --method.times.few 2", 0.086),
    "many": ("plans of 4 to 32 heavy calls from t = 1 on", f"{BASE} {MANY}", 0.093),
    "joint": ("the encoder trains too", FROM_LIGHT, 0.125),
    "joint-slow": ("the encoder trains at a tenth of the rate", f"{FROM_LIGHT} --method.encoder-rate 0.1", 0.125),
    "joint-late": (
        "the encoder trains in the second half",
        f"{FROM_LIGHT} --method.release-encoder-at {{half}}",
        0.107,
    ),
    "joint-unheld": (
        "the encoder trains without a loss of its own",
        f"{FROM_LIGHT} --method.encoder-weight 0",
        0.125,
    ),
    "joint-targets": ("the encoder trains too, with those targets", f"{FROM_LIGHT} {TARGETS}", 0.175),
    "scratch": ("light network from nothing", FROZEN, 0.086),
    "scratch-10": (
        "light network of 0.1 of heavy's cost from nothing",
        f"{FROZEN} {LIGHT}.0.channels 32 {LIGHT}.1.channels 80 --networks.light.head-dim 40",
        0.070,
    ),
    "scratch-30": (
        "light network of 0.3 of heavy's cost from nothing",
        f"{FROZEN} {LIGHT}.0.channels 56 {LIGHT}.1.channels 120 {LIGHT}.1.blocks 3 --networks.light.head-dim 40",
        0.129,
    ),
}


LINES = {
    name: Line(
        called,
        f"runs/levers/{name}",
        f"train fashion-mnist-dual-45 --method.encoder-from {ALONE} "
        f"{options.format(half=round(SECONDS / seconds / 2))} --fit.batch-size 64 --fit.ema-halflife 25000",
        round(SECONDS / seconds),
        SCORED,
    )
    for name, (called, options, seconds) in LEVERS.items()
} | {"retrofit-45": Line("settle-retrofit-45, an hour", "weights/fashion-mnist-retrofit-45", choice=SCORED)}
STUDY = Study("levers", LINES, fashion_judges)


def compared_with(name: str) -> str:
    """The lever that this one changes one thing of."""
    return next((other for other in COMPARED if name.startswith(f"{other}-")), "base")


def lacking(names: Sequence[str], count: int, progress: Reporter) -> Lacks:
    """By name, on every batch of `count` held-out images."""
    alone, found = load(ALONE), {}
    batches = held_out(alone, count)
    for name in names:
        own, alones = weighted_errors(load(LINES[name].run), alone, PLAN, batches).T
        found[name] = (own - alones).tolist()
        progress.update(len(found), len(names), {"images": count})
    progress.close()
    return found


def estimated(values: Sequence[float]) -> str:
    """In units of 1e-4, with the standard error over batches."""
    one = Estimate.of(torch.tensor(values, dtype=torch.float64))
    return f"{1e4 * one.value:.1f} ± {1e4 * one.error:.1f}"


def table(found: Found, lacks: Lacks) -> str:
    """Markdown; `more`: than what the line compares with, in pairs of batches."""
    metrics = list(next(iter(found.values()))["scores"])
    header = ["lever", "iterations", "GFLOPs", "lacks", "more than what it changes", *metrics]
    made = []
    for name, one in found.items():
        beside = compared_with(name)
        more = "" if name == beside else estimated([a - b for a, b in zip(lacks[name], lacks[beside], strict=True)])
        made.append([LINES[name].called, f"{LINES[name].iterations:,}", f"{2 * one['macs'] / 1e9:.3g}"])
        made[-1] += [estimated(lacks[name]), more, *(within(one["scores"][metric]) for metric in metrics)]
    return markdown(header, made, texts=1)


def by_age(names: Sequence[str], count: int, progress: Reporter) -> dict[str, list[Cells]]:
    """By name the cells of studies/errors.py: |x_hat - x_hat of the encoder's network alone|^2 by noise and age."""
    alone = load(ALONE)
    return {
        name: [asdict(one) for one in errors.measure(load(LINES[name].run), alone, count, progress)] for name in names
    }


def age_table(found: Mapping[str, Sequence[Cells]]) -> str:
    header = ["lever", *(f"{level}, {age}" for level, age in AGED)]
    lines = []
    for name, cells in found.items():
        at = {(one["log_snr"], one["age"]): one["heavy"] for one in cells}
        numbers = (f"{1e4 * at[key]['value']:.1f} ± {1e4 * at[key]['error']:.1f}" for key in AGED)
        lines.append([LINES[name].called, *numbers])
    return markdown(header, lines, texts=1)


def pages() -> None:
    found, file = STUDY.results(LINES), RESULTS / "levers.json"
    kept = json.loads(file.read_text()) if file.exists() else {"lacks": {}, "by_age": {}}
    if here := [name for name in found if STUDY.is_here(name)]:  # the others keep what was measured of them
        lacks = kept["lacks"] | lacking(here, COUNT, reporter())
        aged = kept["by_age"] | by_age(here, AGED_COUNT, reporter())
        keep(file, count=COUNT, lacks=lacks, aged_count=AGED_COUNT, by_age=aged)
        kept = {"lacks": lacks, "by_age": aged}
    found = {name: one for name, one in found.items() if {name, compared_with(name)} <= kept["lacks"].keys()}
    for name, made in {"levers": table(found, kept["lacks"]), "levers by age": age_table(kept["by_age"])}.items():
        print(made)
        place(name, made, PAGE)


if __name__ == "__main__":
    STUDY.command(__doc__, pages)
