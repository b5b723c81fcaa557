"""Forecasts of the Kuramoto-Sivashinsky equation, by models that trained for equal seconds of a core, on equal starts.

    dualrate data simulate kuramoto-sivashinsky --trajectories 1100 --frames 60 --out OUT/ks.npz
    python -m studies.forecasts train OUT --seconds 400 --seeds 0 1    trains and scores what OUT/rows.jsonl lacks
    python -m studies.forecasts page OUT                               docs/results/forecasts.json, .png, and the tables

A past of one frame is observed at 16 of 64 points, with noise of a tenth of a standard deviation. Three frames are made
at once, a third, two thirds and a whole Lyapunov time ahead. One thread in float32: run it alone on its core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

import dualrate as dr
from dualrate.data.conditions import HeldOut
from dualrate.drawing.drawer import spread
from dualrate.experiment.experiment import DataConfig
from dualrate.metrics.ensembles import fair_crps
from dualrate.recipes.forecast import Forecasting
from dualrate.recipes.tasks import Rate, TrainedBy
from dualrate.report.figures import png
from dualrate.system.files import write_whole
from dualrate.system.progress import Silent

RESULTS = Path("docs/results")
MODELS: tuple[tuple[Rate, TrainedBy], ...] = (
    ("dual", "crps"), ("light", "crps"), ("single", "crps"), ("dual", "diffusion"), ("light", "diffusion"),
    ("single", "diffusion"), ("medium", "crps"), ("medium", "diffusion"),
)  # fmt: skip
STEPS, STARTS, MEMBERS, SHARED = (2, 4, 8, 16), 256, 16, (1, 16, 64)
FRAMES, RESAMPLES = 3, 2000
Row = dict[str, Any]
Scores = dict[tuple[str, str, int], NDArray[np.float64]]  # by network, what trained it and steps


def experiment(source: Path, rate: Rate, trained_by: TrainedBy, seconds: float, seed: int) -> dr.Experiment:
    recipe = Forecasting(
        DataConfig(str(source)), frames=FRAMES, lead=4, every=4, noise=0.1, periodic=True, rate=rate,
        trained_by=trained_by,
    )  # fmt: skip
    made = recipe(Silent())
    optim = replace(made.fit.optim, lr=2e-3, warmup=100)
    fit = replace(
        made.fit, iterations=None, max_seconds=seconds, batch_size=64, sample_every=10**8, checkpoint_every=500, seed=seed, optim=optim,
        precision="float32", ema_halflife=10_000,
    )  # fmt: skip
    return replace(made, name=f"{rate}-{trained_by}-{seed}", fit=fit)


def scored(model: dr.Model, steps: int | None) -> Row:
    """A plan's cost and its fair CRPS of each start, in standard deviations of the field."""
    held = model.given
    assert isinstance(held, HeldOut)
    starts = spread(STARTS, len(held.images))
    truth = torch.from_numpy(held.originals(torch.from_numpy(starts))).double()
    choice = dr.Choice() if steps is None else dr.Choice(steps=steps)
    drawer = choice.drawer(model, batch_size=256, members=MEMBERS, precision="float32")
    begun = time.process_time()
    x = torch.cat(list(drawer.states(starts.tolist()))).unflatten(0, (STARTS, MEMBERS)).double()
    seconds = (time.process_time() - begun) / (STARTS * MEMBERS)
    x, truth = (part.unflatten(-3, (FRAMES, -1)) for part in (x, truth))
    crps = torch.stack([fair_crps(x[:, :, k], truth[:, k]) for k in range(FRAMES)], 1)
    error = (x.mean(1) - truth).square().mean((0, 2, 3, 4)).sqrt()
    deviation = (x.var(1).mean((0, 2, 3, 4)) * (MEMBERS + 1) / MEMBERS).sqrt()
    return {
        "steps": steps or 1,
        "macs": {count: replace(drawer, members=count).expected_cost.macs / 1e6 for count in SHARED},
        "ms": 1000 * seconds,
        "spread_skill": (deviation / error).tolist(),
        "crps": np.round(crps.numpy(), 4).tolist(),
    }


def train(out: Path, seconds: float, seeds: Sequence[int]) -> None:
    torch.set_num_threads(1)
    done = {(row["rate"], row["trained_by"], row["seed"]) for row in read(out)}
    for seed in seeds:
        for rate, trained_by in MODELS:
            if (rate, trained_by, seed) in done:
                continue
            made = experiment(out / "ks.npz", rate, trained_by, seconds, seed)
            result = dr.train(made, out / made.name)
            model = dr.load(str(out / made.name))
            name = {"rate": rate, "trained_by": trained_by, "seed": seed, "iterations": result.iteration}
            plans = [None] if trained_by == "crps" else STEPS
            rows = [name | scored(model, steps) for steps in plans]
            with (out / "rows.jsonl").open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


def read(out: Path) -> list[Row]:
    file = out / "rows.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def resampled(rows: Sequence[Row]) -> Scores:
    """(1 + R,) mean CRPS of each model and plan, over seeds, frames and starts; then of starts drawn anew, in pairs."""
    rng, found = np.random.default_rng(0), {}
    picked = np.concatenate([np.arange(STARTS)[None], rng.integers(0, STARTS, (RESAMPLES, STARTS))])
    for row in rows:
        found.setdefault((row["rate"], row["trained_by"], row["steps"]), []).append(np.mean(row["crps"], 1))
    return {key: np.mean(each, 0)[picked].mean(1) for key, each in found.items()}


def ratios(
    rows: Sequence[Row], scores: Scores, rate: str, trained_by: str, steps: int, against: str, members: int
) -> list[float]:
    """How many times the cheapest plan of other networks costs that scores as well as a pair's; with its interval.

    inf: no plan of theirs does
    """
    cost = {(row["rate"], row["trained_by"], row["steps"]): row["macs"][str(members)] for row in rows}
    pair = (rate, trained_by, steps)
    rivals = [key for key in scores if key[0] != "dual" and key[1] == against]
    enough = np.stack([np.where(scores[key] <= scores[pair], cost[key] / cost[pair], np.inf) for key in rivals]).min(0)
    return [enough[0], *np.quantile(enough[1:], (0.025, 0.975), method="inverted_cdf")]


def page(out: Path) -> None:
    rows = read(out) if (out / "rows.jsonl").is_file() else json.loads((RESULTS / "forecasts.json").read_text())
    write_whole(RESULTS / "forecasts.json", json.dumps(rows, separators=(",", ":")) + "\n")
    scores = resampled(rows)
    write_whole(RESULTS / "forecasts.png", png(figure(rows, scores)))
    columns = (
        "network",
        "trained by",
        "calls",
        *(f"of {count}" for count in SHARED),
        "ms",
        "CRPS",
        "by lead",
        "spread",
    )
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for key, score in sorted(scores.items(), key=lambda one: one[1][0]):
        own = [row for row in rows if (row["rate"], row["trained_by"], row["steps"]) == key]
        low, high = np.quantile(score[1:], (0.025, 0.975))
        leads = np.mean([np.mean(row["crps"], 0) for row in own], 0), np.mean([row["spread_skill"] for row in own], 0)
        cells = [*key, *(f"{own[0]['macs'][str(count)]:.2f}" for count in SHARED)]
        cells += [f"{np.mean([row['ms'] for row in own]):.2f}", f"{score[0]:.4f} [{low:.4f}, {high:.4f}]"]
        cells += [", ".join(f"{value:.3g}" for value in values) for values in leads]
        print("| " + " | ".join(map(str, cells)) + " |")
    for trained_by, steps in (("crps", 1), ("diffusion", 4), ("diffusion", 8)):
        for against in ("crps", "diffusion"):
            shown = {count: ratios(rows, scores, "dual", trained_by, steps, against, count) for count in SHARED}
            print(f"dual by {trained_by} in {steps} against {against}:", shown)


def figure(rows: Sequence[Row], scores: Scores) -> Figure:
    """CRPS against multiply-adds a member, of 1 and of 16 members, a line a network."""
    made = Figure((9, 3.6), layout="constrained")
    panels = made.subplots(1, 2, sharey=True)
    for axes, members in zip(panels, (1, 16), strict=True):
        for rate in get_args(Rate):
            for trained_by, line in (("diffusion", "-"), ("crps", "")):
                own = sorted({row["steps"] for row in rows if (row["rate"], row["trained_by"]) == (rate, trained_by)})
                if not own:
                    continue
                cost = {
                    row["steps"]: row["macs"][str(members)]
                    for row in rows
                    if (row["rate"], row["trained_by"]) == (rate, trained_by)
                }
                values = np.stack([scores[rate, trained_by, steps] for steps in own], 1)
                low, high = np.quantile(values[1:], (0.025, 0.975), axis=0)
                colour = {"dual": "C3", "single": "C0", "medium": "C2", "light": "C1"}[rate]
                label = {"dual": "two rates", "single": "large"}.get(rate, rate)
                axes.errorbar(
                    [cost[steps] for steps in own], values[0], [values[0] - low, high - values[0]], color=colour,
                    linestyle=line, marker="o" if line else "*", markersize=4 if line else 10,
                    label=f"{label}, {'diffusion' if line else 'one call'}",
                )  # fmt: skip
        axes.set(xscale="log", xlabel="million multiply-adds a member", title=f"members of a past: {members}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("fair CRPS")
    panels[1].legend(fontsize=7)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=("train", "page"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    if options.verb == "train":
        train(options.out, options.seconds, options.seeds)
    else:
        page(options.out)


if __name__ == "__main__":
    main()
