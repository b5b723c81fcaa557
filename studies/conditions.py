"""Samples of a condition of natural images: two rates beside all else that could be trained, for equal CPU seconds.

    python -m studies.conditions OUT --images CIFAR10 --seconds 600 --seeds 0 1    trains and scores what OUT lacks
    python -m studies.conditions OUT page    tables and pictures of the page, of kept rows if OUT has none

CIFAR10 is a source with a test split, such as a folder of two parquet files. Tasks: 8 x 8 pixels to 32 x 32, and a hole
of 16 x 16. Networks are those of `dualrate train auto --size tiny --task TASK --rate RATE --trained-by BY`. A row of
OUT/rows.jsonl is a plan of one training: scores of 16 members of each of 256 held-out conditions, and Frechet distances
of four of them to the test images, by the two EfficientNets of benchmarks/peers.py.

One thread in float32. A training that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import dualrate as dr
from benchmarks.peers import NETS, Judge
from benchmarks.workloads import in_cpu_seconds, whole
from dualrate.data.condition_rows import HeldOut
from dualrate.drawing.samples import strips
from dualrate.metrics.ensembles import energy_score, fair_crps, psnr
from dualrate.recipes.auto import Auto
from dualrate.recipes.tasks import Rate, TrainedBy
from dualrate.report.table import with_interval
from dualrate.system.progress import Silent
from studies.common import RESULTS, Row, add_rows, kept, markdown, place, rows_of
from studies.equal_score import at_equal_score, resampled

TASKS = ("super-resolution:4", "inpainting:16")
MODELS: tuple[tuple[Rate, TrainedBy], ...] = (
    ("dual", "crps"), ("dual", "diffusion"), ("light", "crps"), ("light", "diffusion"), ("single", "crps"),
    ("single", "diffusion"), ("medium", "diffusion"), ("medium", "crps"), ("dual", "corrdiff"), ("dual", "residual"),
)  # fmt: skip
STEPS, SHARED, CONDITIONS, SHOWN, REFERENCE = (2, 4, 8), (1, 16), 256, 4, 10_000
PAIRS = ("dual", "crps"), ("dual", "diffusion")  # what single networks are compared with
DRAWN = 4  # conditions of a picture
Plan = tuple[str, str, int]  # a network, what trained it, and steps


def experiment(source: str, task: str, rate: Rate, trained_by: TrainedBy, seconds: float, seed: int) -> dr.Experiment:
    base = Auto(dr.DataConfig(source), "tiny", rate, task, trained_by)(Silent())
    fit = replace(base.fit, iterations=None, max_seconds=seconds, seed=seed, sample_every=10**9, precision="float32")
    return replace(base, fit=fit)


def folder_of(out: Path, task: str, rate: str, trained_by: str, seed: int) -> Path:
    return out / f"{task.partition(':')[0]}-{rate}-{trained_by}-{seed}"


def scored(model: dr.Model, steps: int | None, judge: Judge) -> Row:
    """Costs of a plan's samples, of one and of 16 members, and their scores, of each condition."""
    conditions, members = model.given, SHARED[-1]
    assert isinstance(conditions, HeldOut)
    choice, ms, images = dr.Choice(steps=steps), {}, np.empty(0, np.uint8)
    drawers = {count: choice.drawer(model, batch_size=256, members=count, precision="float32") for count in SHARED}
    for count, drawer in drawers.items():
        begun = time.process_time()
        images = drawer.draw(range(CONDITIONS)).images
        ms[count] = 1000 * (time.process_time() - begun) / len(images)
    images = images.reshape(CONDITIONS, members, *model.image_shape)
    x, truth = (
        torch.from_numpy(part).double() / 255 for part in (images, conditions.originals(torch.arange(CONDITIONS)))
    )
    error = (x.mean(1) - truth).square().mean()
    each = {"crps": fair_crps(x, truth), "energy": energy_score(x, truth), "psnr": psnr(x.mean(1), truth)}
    return {
        "steps": drawers[members].plan.num_steps,
        "macs": {count: drawer.expected_cost.macs / 1e6 for count, drawer in drawers.items()},
        "ms": ms,
        **{name: [[round(value, 5)] for value in values.tolist()] for name, values in each.items()},
        "spread_skill": float((x.var(1).mean() * (members + 1) / members / error).sqrt()),
        "distances": judge.scores(images[:, :SHOWN].reshape(-1, *model.image_shape), None),
    }


def train(out: Path, source: str, seconds: float, seeds: Sequence[int], tasks: Sequence[str]) -> None:
    """Runs every training that has no row yet."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    done, judge = {(row["task"], row["rate"], row["trained_by"], row["seed"]) for row in rows_of(out)}, None
    for seed, task, (rate, trained_by) in product(seeds, tasks, MODELS):
        if (task, rate, trained_by, seed) in done:
            continue
        if judge is None:
            real, test = (np.asarray(dr.DataConfig(source).images(split).images) for split in ("train", "test"))
            judge = Judge(out, REFERENCE, real[: SHOWN * CONDITIONS], test)
        folder = folder_of(out, task, rate, trained_by, seed)
        with in_cpu_seconds():
            result = whole(
                dr.train(experiment(source, task, rate, trained_by, seconds, seed), folder, progress=Silent())
            )
        model = dr.load(str(folder))
        plans = STEPS if model.serves.any_plan else (None,)
        training = {"task": task, "rate": rate, "trained_by": trained_by, "seed": seed}
        training |= {"seconds": result.seconds, "seen": result.iteration * model.experiment.fit.batch_size}
        rows = [training | scored(model, steps, judge) | {"floor": judge.floor} for steps in plans]
        add_rows(out, rows)
        print(*(f"{folder.name}, {row['steps']} steps: CRPS {np.mean(row['crps']):.5f}" for row in rows), sep="\n")


def named(rate: str, trained_by: str) -> tuple[str, str]:
    kinds = {"crps": "CRPS, one call", "corrdiff": "CorrDiff", "residual": "CorrDiff with features"}
    return {"dual": "two rates", "single": "large"}.get(rate, rate), kinds.get(trained_by, trained_by)


def scored_table(rows: Sequence[Row]) -> str:
    """Scores of each network of one task in its most steps, the best first, means over trainings.

    Medium, large and CorrDiff have one line each, that of the lower CRPS; distances are by the first network.
    """
    groups, scores = most_steps(rows), resampled(rows, plan_of, score_of)
    head = ["network", "million multiply-adds a sample, of 1", "of 16", "CRPS", f"FD-EfficientNet-{NETS[0]}"]
    lines: list[list[object]] = []
    listed: set[str] = set()
    for key in sorted(groups, key=lambda key: scores[key][0]):
        kind = "CorrDiff" if key[1] in ("corrdiff", "residual") else key[0]
        if kind in listed - {"dual", "light"}:
            continue
        listed.add(kind)
        crps = with_interval(scores[key][0], *np.quantile(scores[key][1:], (0.025, 0.975)), places=4)
        cells = [", ".join(named(*key[:2])), *(f"{mean(groups[key], 'macs', count):.1f}" for count in SHARED), crps]
        distances = np.array([row["distances"][0] for row in groups[key]])  # (seeds, 3)
        lines.append(
            [*cells, with_interval(distances[:, 0].mean(), distances[:, 1].min(), distances[:, 2].max(), places=0)]
        )
    below = f"{SHOWN * CONDITIONS} training images have a distance of {rows[0]['floor'][0]:.0f}."
    return f"{markdown(head, lines, texts=1)}\n{below}\n"


def ratio_table(rows: Sequence[Row]) -> str:
    """Costs of the light network by diffusion where it scores as well as the pair, over the pair's."""
    lines: list[list[object]] = []
    for task, of_task in by_task(rows).items():
        groups, scores = by_plan(of_task), resampled(of_task, plan_of, score_of)
        costs = {count: {key: mean(groups[key], "macs", count) for key in groups} for count in SHARED}
        light = [key for key in groups if key[:2] == ("light", "diffusion")]
        pairs = [key for key in most_steps(of_task) if key[:2] in PAIRS]
        ratios = (at_equal_score(scores, costs[count], pair, light) for pair, count in product(pairs, SHARED))
        lines.append([task, *ratios])
    heads = [f"{way}, of {count}" for way, count in product(("one call", "diffusion"), SHARED)]
    return markdown(["task", *heads], lines, texts=1)


def score_of(row: Row) -> NDArray[np.float64]:
    """(conditions,)"""
    return np.mean(row["crps"], 1)


def plan_of(row: Row) -> Plan:
    return row["rate"], row["trained_by"], row["steps"]


def most_steps(rows: Sequence[Row]) -> dict[Plan, list[Row]]:
    """The rows by plan, of each network the plan of the most steps alone."""
    return {key: group for key, group in by_plan(rows).items() if key[2] in (1, STEPS[-1])}


def by_plan(rows: Sequence[Row]) -> dict[Plan, list[Row]]:
    groups: dict[Plan, list[Row]] = {}
    for row in sorted(rows, key=plan_of):
        groups.setdefault(plan_of(row), []).append(row)
    return groups


def mean(rows: Sequence[Row], of: str, count: int) -> float:
    """Over the rows that have it: those of another machine have no times."""
    return float(np.mean([row[of][str(count)] for row in rows if of in row]))


def picture(out: Path, task: str) -> None:
    """A row a held-out condition: the condition, two samples of each of three networks, the truth."""
    columns: list[NDArray[np.uint8]] = []
    for rate, trained_by in (("dual", "crps"), ("light", "crps"), ("single", "diffusion")):
        model = dr.load(folder_of(out, task, rate, trained_by, 0))
        drawer = dr.Choice(steps=STEPS[-1] if model.serves.any_plan else None).drawer(
            model, members=2, precision="float32"
        )
        seeds = range(DRAWN)
        images, count = strips(drawer, seeds, drawer.draw(seeds).images)
        assert count is not None
        tiles = images.reshape(DRAWN, count, *model.image_shape)
        columns = columns or [tiles[:, :1], tiles[:, 1:2]]
        columns.insert(-1, tiles[:, 2:])
    grid = np.concatenate(columns, 1)
    dr.save_grid(
        grid.reshape(-1, *grid.shape[2:]), RESULTS / f"conditions-{task.partition(':')[0]}.png", grid.shape[1], 2
    )


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each task by its name, in the order of TASKS."""
    names = {task.partition(":")[0]: [row for row in rows if row["task"] == task] for task in TASKS}
    return {name: group for name, group in names.items() if group}


def page(out: Path) -> None:
    rows, wanted = kept(RESULTS / "conditions.json.xz", out), RESULTS / "conditions.md"
    place("ratios", ratio_table(rows), wanted)
    for name, of_task in by_task(rows).items():
        place(f"{name} scores", scored_table(of_task), wanted)
        if folder_of(out, name, "single", "diffusion", 0).is_dir():
            picture(out, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("verb", nargs="?", choices=("train", "page"), default="train")
    parser.add_argument("--images", help="of natural things, with a test split")
    parser.add_argument("--seconds", type=float, default=600, help="CPU seconds of a training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    options = parser.parse_args()
    if options.verb == "page":
        page(options.out)
    elif not options.images:
        parser.error("networks train on images of yours: give --images SOURCE")
    else:
        train(options.out, options.images, options.seconds, options.seeds, options.tasks)


if __name__ == "__main__":
    main()
