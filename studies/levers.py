"""What makes the light network of a dual-rate model better in equal time: each lever alone.

    OMP_NUM_THREADS=1 .venv/bin/python studies/levers.py base targets       # trains and measures, in turn
    OMP_NUM_THREADS=1 .venv/bin/python studies/levers.py    # the table of what there is

`base` is a light network beside a frozen encoder, the annealed heavy network: it starts as weights/fashion-mnist-light
and learns the images, for plans of 1 to 8 heavy calls, the first at t = 0.6 to 0.9, batches of 64, a rate that falls to
nothing. Every other line changes one thing of it. `scratch` starts its light network from nothing; it is what those of
other sizes, for which no trained light network is there, compare with. All train for SECONDS of one core, by seconds of
processor time of an iteration: medians of 10 interleaved rounds (`benchmarks.workloads.training`, batch 64, bfloat16,
one thread) of an AMD EPYC with AVX-512. Killed, a training goes on. Runs are kept in runs/levers, results in
docs/results/levers, a file a name.

What a model lacks is what studies/saving_model.py calls so, under the plan that is scored, PLAN: the sum over steps of
E|x - x_hat|^2 - E|x - x_hat of heavy|^2, each with half the loss weight's integral over it, on the same held-out images
and noise for all, so that lines are compared in pairs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from common import RESULTS, keep, load, markdown, place, within
from lines import Found, Line, Study, fashion_judges
from saving_model import held_out, weighted_errors

import dualrate as dr
from dualrate.cli.console import reporter
from dualrate.machine.progress import Reporter
from dualrate.measuring.choosing import Choice
from dualrate.measuring.likelihood import Estimate

HEAVY = "weights/fashion-mnist-heavy-annealed"
PAGE = RESULTS / "levers.md"
PLAN = dr.StepPlan.from_json((RESULTS / "plans" / "late-16-4.json").read_text())
SCORED = Choice(plan=PLAN, sampler="sde-dpm++2m", gamma=0.1)
COUNT = 1024  # held-out images
SECONDS = 600.0
LATE = "--method.times.heavy 1 8 --method.times.first 0.6 0.9"
FROM_LIGHT = "--method.light-from weights/fashion-mnist-light"
FROZEN = "--method.freeze-encoder"
BASE = f"{FROM_LIGHT} {FROZEN} {LATE}"
TARGETS = f"--method.targets-from {HEAVY}"
LIGHT = "--networks.light.levels"
Lacks = dict[str, list[float]]  # on every batch
LEVERS = {  # name: what it is called, what trains it, seconds of an iteration
    "base": ("as it is", BASE, 0.105),
    "targets": ("targets: the heavy network's x_hat", f"{BASE} {TARGETS}", 0.192),
    "targets-half": ("targets: half of it, half the image", f"{BASE} {TARGETS} --method.targets-share 0.5", 0.192),
    "residual": ("a correction of x_hat(tau), moved to t", f"{BASE} --networks.context.residual", 0.106),
    "few": ("plans of few heavy calls oftener, odds 1/H^2", f"{BASE} --method.times.few 2", 0.105),
    "many": ("plans of 4 to 32 heavy calls from t = 1 on", f"{FROM_LIGHT} {FROZEN}", 0.117),
    "slow": ("the encoder trains at a tenth of the rate", f"{FROM_LIGHT} {LATE} --method.encoder-rate 0.1", 0.174),
    "joint": ("the encoder trains too", f"{FROM_LIGHT} {LATE}", 0.174),
    "scratch": ("light network from nothing", f"{FROZEN} {LATE}", 0.105),
    "scratch-10": (
        "light network of 0.1 of heavy's cost from nothing",
        f"{FROZEN} {LATE} {LIGHT}.0.channels 32 {LIGHT}.1.channels 80 --networks.light.head-dim 40",
        0.088,
    ),
    "scratch-30": (
        "light network of 0.3 of heavy's cost from nothing",
        f"{FROZEN} {LATE} {LIGHT}.0.channels 56 {LIGHT}.1.channels 120 {LIGHT}.1.blocks 3 --networks.light.head-dim 40",
        0.153,
    ),
}


LINES = {
    name: Line(
        called,
        f"runs/levers/{name}",
        f"train fashion-mnist-dual --method.encoder-from {HEAVY} {options} --fit.batch-size 64 "
        "--fit.ema-halflife 25000 --fit.optim.decay cosine --fit.sample-every 5000",
        round(SECONDS / seconds),
        SCORED,
    )
    for name, (called, options, seconds) in LEVERS.items()
} | {"retrofit": Line("the shipped retrofit, 2.5 hours", "weights/fashion-mnist-retrofit", choice=SCORED)}
STUDY = Study("levers", LINES, fashion_judges)


def lacking(names: Sequence[str], count: int, progress: Reporter) -> Lacks:
    """By name, on every batch of `count` held-out images."""
    heavy, found = load(HEAVY), {}
    batches = held_out(heavy, count)
    for name in names:
        own, heavys = weighted_errors(load(LINES[name].run), heavy, PLAN, batches).T
        found[name] = (own - heavys).tolist()
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
    header = ["lever", "iterations", "GFLOPs", "lacks", "more than as it is", *metrics]
    made = []
    for name, one in found.items():
        beside = "scratch" if name.startswith("scratch-") else "base"
        more = "" if name == beside else estimated([a - b for a, b in zip(lacks[name], lacks[beside], strict=True)])
        made.append([LINES[name].called, f"{LINES[name].iterations:,}", f"{2 * one['macs'] / 1e9:.3g}"])
        made[-1] += [estimated(lacks[name]), more, *(within(one["scores"][metric]) for metric in metrics)]
    return markdown(header, made, texts=1)


def pages() -> None:
    found, file = STUDY.results(LINES), RESULTS / "levers.json"
    if all(STUDY.is_here(name) for name in found):
        keep(file, count=COUNT, lacks=lacking(list(found), COUNT, reporter()))
    made = table(found, json.loads(file.read_text())["lacks"])
    print(made)
    place("levers", made, PAGE)


if __name__ == "__main__":
    STUDY.command(__doc__, pages)
