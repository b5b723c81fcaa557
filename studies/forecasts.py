"""Forecasts of a chaotic system, by models that trained for equal seconds of a core, on equal starts.

    python -m studies.forecasts simulate OUT    trajectories, OUT/fields.npz
    python -m studies.forecasts train OUT --seconds 400 --seeds 0 1    trains and scores what OUT/rows.jsonl lacks
    python -m studies.forecasts page OUT        docs/results/forecasts.json, .png, and the tables

The Kuramoto-Sivashinsky equation: a past of one frame is observed at 16 of 64 points, with noise of a tenth of a
standard deviation. Three frames are made at once, a third, two thirds and a whole Lyapunov time ahead.

With --system kolmogorov a plane flow on 32 x 32 points, by networks of patches of 2 x 2 points, and roll-outs too: of
a past that is observed in full, with noise, frame by frame and by Rolling Diffusion.

With --system kuramoto-sivashinsky-leads the first system's frames are made each by itself, told its lead time.

With --system moving-fashion-mnist two garments bounce in a frame, of which one is given: where they go is chance.

One thread in float32: run it alone on its core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

import dualrate as dr
from dualrate.data.conditions import HeldOut
from dualrate.data.fields import write_fields
from dualrate.data.simulations import SIMULATIONS, Kolmogorov, KuramotoSivashinsky
from dualrate.data.simulations import System as Simulated
from dualrate.drawing.drawer import spread
from dualrate.drawing.forecast import costs, forecast_of, held_out_starts, roll_out
from dualrate.experiment.experiment import DataConfig
from dualrate.metrics.ensembles import fair_crps
from dualrate.metrics.forecasts import persistence
from dualrate.networks.uvit import UViTConfig
from dualrate.recipes.forecast import Forecasting
from dualrate.recipes.tasks import OfFrames, Rate, TrainedBy
from dualrate.report.figures import log_axis, png
from dualrate.system.files import write_whole
from dualrate.system.progress import Silent

RESULTS = Path("docs/results")
SHARED, FRAMES, RESAMPLES = (1, 16, 64), 3, 2000
Row = dict[str, Any]
Scores = dict[tuple[str, str, int], NDArray[np.float64]]  # by network, what trained it and steps


@dataclass(frozen=True)
class System:
    """What is simulated, observed, trained and scored.

    models, windows: what is made at once; starts, members, steps: of its scores
    rolled, roll_out: frame after frame: what trains, the frames of a window, steps; ahead: frames of a roll-out
    patch: of the networks
    """

    simulation: Simulated
    trajectories: int
    frames: int
    models: tuple[tuple[Rate, TrainedBy | OfFrames], ...]
    windows: Forecasting
    starts: int
    members: int
    steps: tuple[int, ...]
    page: str
    batch_size: int = 64
    patch: int = 1
    rolled: tuple[tuple[TrainedBy | OfFrames, int, tuple[int, ...]], ...] = ()
    roll_out: Forecasting = Forecasting()
    roll_starts: int = 50
    roll_members: int = 8
    ahead: int = 8


SYSTEMS = {
    "kuramoto-sivashinsky": System(
        KuramotoSivashinsky(), 1100, 60,
        (
            ("dual", "crps"), ("light", "crps"), ("single", "crps"), ("dual", "diffusion"), ("light", "diffusion"),
            ("single", "diffusion"), ("medium", "crps"), ("medium", "diffusion"),
        ),
        Forecasting(frames=FRAMES, lead=4, every=4, noise=0.1, periodic=True), 256, 16, (2, 4, 8, 16), "forecasts",
    ),
    "kolmogorov": System(
        Kolmogorov(points=32, viscosity=0.01, waves=2, dt=0.05), 1000, 40,
        (
            ("dual", "diffusion"), ("dual", "crps"), ("single", "diffusion"), ("single", "crps"),
            ("light", "diffusion"), ("single", "refiner"),
        ),
        Forecasting(frames=FRAMES, lead=2, every=4, noise=0.1, periodic=True), 128, 16, (2, 4, 8),
        "forecasts-kolmogorov", batch_size=16, patch=2, rolled=(("diffusion", 1, (2, 4, 8)), ("rolling", 4, (1, 2, 4))),
        roll_out=Forecasting(lead=2, noise=0.1, periodic=True, rate="single"),
    ),
    "moving-fashion-mnist": System(
        SIMULATIONS["moving-fashion-mnist"][0], 2000, 20,
        (
            ("dual", "diffusion"), ("dual", "crps"), ("single", "diffusion"), ("single", "crps"),
            ("light", "diffusion"), ("light", "crps"),
        ),
        Forecasting(frames=FRAMES, lead=2), 128, 16, (2, 4, 8), "forecasts-garments", batch_size=16, patch=2,
    ),
}  # fmt: skip
SYSTEMS["kuramoto-sivashinsky-leads"] = replace(
    SYSTEMS["kuramoto-sivashinsky"],
    models=(("dual", "diffusion"), ("dual", "crps"), ("single", "diffusion"), ("light", "diffusion")),
    windows=replace(SYSTEMS["kuramoto-sivashinsky"].windows, window="leads"),
    page="forecasts-leads",
)


def experiment(
    recipe: Forecasting, system: System, source: Path, name: str, seconds: float, seed: int
) -> dr.Experiment:
    made = replace(recipe, data=DataConfig(str(source)))(Silent())
    networks = {one.name: getattr(made.networks, one.name) for one in fields(made.networks)}  # pyright: ignore[reportArgumentType]
    patched = {key: replace(one, patch=system.patch) for key, one in networks.items() if isinstance(one, UViTConfig)}
    optim = replace(made.fit.optim, lr=2e-3, warmup=100)
    fit = replace(
        made.fit, iterations=None, max_seconds=seconds, batch_size=system.batch_size, sample_every=10**8,
        checkpoint_every=500, seed=seed, optim=optim, precision="float32",
        ema_halflife=10_000 * system.batch_size // 64,
    )  # fmt: skip
    return replace(made, name=name, fit=fit, networks=replace(made.networks, **patched))  # pyright: ignore[reportArgumentType]


def scored(model: dr.Model, system: System, steps: int | None) -> Row:
    """A plan's cost and its fair CRPS of each start, in standard deviations of the field."""
    held = model.given
    assert isinstance(held, HeldOut)
    starts, members = spread(system.starts, len(held.images)), system.members
    truth = torch.from_numpy(held.originals(torch.from_numpy(starts))).double()
    choice = dr.Choice() if steps is None else dr.Choice(steps=steps)
    drawer = choice.drawer(model, batch_size=256, members=members, precision="float32")
    begun = time.process_time()
    x = torch.cat(list(drawer.states(starts.tolist()))).unflatten(0, (len(starts), members)).double()
    seconds = (time.process_time() - begun) / (len(starts) * members)
    x, truth = (part.unflatten(-3, (FRAMES, -1)) for part in (x, truth))
    return {
        "steps": drawer.plan.num_steps,
        "macs": {count: replace(drawer, members=count).expected_cost.macs / 1e6 for count in SHARED},
        "ms": 1000 * seconds,
        **by_lead(x, truth),
    }


def rolled_out(model: dr.Model, system: System, steps: int) -> Row:
    """A frame's cost, a mean over a roll-out, and the fair CRPS of each start and lead, as in `scored`."""
    members, std = system.roll_members, torch.tensor(forecast_of(model).statistics.std)
    starts = held_out_starts(model, system.ahead, system.roll_starts)
    drawer = dr.Choice(steps=steps).drawer(model, batch_size=256, members=members, precision="float32")
    begun = time.process_time()
    pieces = list(roll_out(drawer, starts.past, system.ahead))
    seconds = (time.process_time() - begun) / (len(starts) * members * system.ahead)
    x = np.zeros((len(starts), members, system.ahead, *pieces[0].x.shape[3:]))
    for piece in pieces:
        x[np.ix_(piece.starts, piece.members, piece.frames)] = piece.x
    assert starts.truth is not None
    truth = np.stack([starts.truth(i) for i in range(len(starts))])
    x, truth = (torch.tensor(part).double() / std[:, None, None] for part in (x, truth))
    last = persistence(torch.tensor(starts.past), system.ahead).double() / std[:, None, None]
    cost = costs(replace(drawer, members=1))
    return {
        "steps": steps,
        "macs": (cost["first_window"] + (system.ahead / cost["frames"] - 1) * cost["later_window"])
        / 1e6
        / system.ahead,
        "ms": 1000 * seconds,
        "persistence": (last[:, 0] - truth).abs().mean((0, 2, 3, 4)).tolist(),
        **by_lead(x, truth),
    }


def by_lead(x: torch.Tensor, truth: torch.Tensor) -> Row:
    """Of members (N, M, F, C, H, W) and what was (N, F, C, H, W)."""
    members = x.shape[1]
    crps = torch.stack([fair_crps(x[:, :, k], truth[:, k]) for k in range(x.shape[2])], 1)
    error = (x.mean(1) - truth).square().mean((0, 2, 3, 4)).sqrt()
    deviation = (x.var(1).mean((0, 2, 3, 4)) * (members + 1) / members).sqrt()
    return {"spread_skill": (deviation / error).tolist(), "crps": np.round(crps.numpy(), 4).tolist()}


def simulate(system: System, out: Path) -> None:
    made = system.simulation.simulate(system.trajectories, system.frames, 0)
    write_fields(out / "fields.npz", made, system.simulation.variables, system.simulation.every)


def train(system: System, out: Path, seconds: float, seeds: Sequence[int]) -> None:
    torch.set_num_threads(1)
    done = {(row["rate"], row["trained_by"], row.get("frames", FRAMES), row["seed"]) for row in read(out)}
    windows = [replace(system.windows, rate=rate, trained_by=trained_by) for rate, trained_by in system.models]
    rolled = {replace(system.roll_out, trained_by=by, frames=frames): steps for by, frames, steps in system.rolled}
    for seed in seeds:
        for recipe in (*windows, *rolled):
            if (recipe.rate, recipe.trained_by, recipe.frames, seed) in done:
                continue
            name = f"{recipe.rate}-{recipe.trained_by}-{recipe.frames}-{seed}"
            made = experiment(recipe, system, out / "fields.npz", name, seconds, seed)
            result = dr.train(made, out / name)
            model = dr.load(str(out / name))
            known = {"rate": recipe.rate, "trained_by": recipe.trained_by, "frames": recipe.frames, "seed": seed}
            known |= {"iterations": result.iteration}
            if recipe in rolled:
                rows = [rolled_out(model, system, steps) for steps in rolled[recipe]]
            else:
                plans = system.steps if recipe.trained_by == "diffusion" else [None]
                rows = [scored(model, system, steps) for steps in plans]
            with (out / "rows.jsonl").open("a") as file:
                file.writelines(json.dumps(known | row) + "\n" for row in rows)


def read(out: Path) -> list[Row]:
    file = out / "rows.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def resampled(rows: Sequence[Row]) -> Scores:
    """(1 + R,) mean CRPS of each model and plan, over seeds, frames and starts; then of starts drawn anew, in pairs."""
    rng, found = np.random.default_rng(0), {}
    starts = len(rows[0]["crps"])
    picked = np.concatenate([np.arange(starts)[None], rng.integers(0, starts, (RESAMPLES, starts))])
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


def page(system: System, out: Path) -> None:
    kept = RESULTS / f"{system.page}.json"
    every = read(out) if (out / "rows.jsonl").is_file() else json.loads(kept.read_text())
    write_whole(kept, json.dumps(every, separators=(",", ":")) + "\n")
    rows = [row for row in every if "persistence" not in row]
    scores = resampled(rows)
    write_whole(RESULTS / f"{system.page}.png", png(figure(rows, scores)))
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
    rolled_table([row for row in every if "persistence" in row])


def rolled_table(rows: Sequence[Row]) -> None:
    """Of roll-outs by the large network: their costs and CRPS by lead, a mean over seeds, and their interval."""
    if not rows:
        return
    print("\n| trained by | steps | million multiply-adds a frame | ms a frame | CRPS | by lead | spread |")
    print("|" + " --- |" * 7)
    scores = resampled(rows)
    for key in sorted(scores, key=lambda key: (key[1], key[2])):
        own = [row for row in rows if (row["rate"], row["trained_by"], row["steps"]) == key]
        low, high = np.quantile(scores[key][1:], (0.025, 0.975))
        leads = np.mean([np.mean(row["crps"], 0) for row in own], 0), np.mean([row["spread_skill"] for row in own], 0)
        cells = [key[1], key[2], f"{own[0]['macs']:.1f}", f"{np.mean([row['ms'] for row in own]):.1f}"]
        cells += [f"{scores[key][0]:.4f} [{low:.4f}, {high:.4f}]"]
        cells += [", ".join(f"{value:.3g}" for value in values) for values in leads]
        print("| " + " | ".join(map(str, cells)) + " |")
    print("persistence:", ", ".join(f"{value:.3g}" for value in rows[0]["persistence"]))


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
        log_axis(axes, "x")
        axes.set(xlabel="million multiply-adds a member", title=f"members of a past: {members}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("fair CRPS")
    panels[1].legend(fontsize=7)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=("simulate", "train", "page"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--system", choices=SYSTEMS, default="kuramoto-sivashinsky")
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    system = SYSTEMS[options.system]
    if options.verb == "simulate":
        simulate(system, options.out)
    elif options.verb == "train":
        train(system, options.out, options.seconds, options.seeds)
    else:
        page(system, options.out)


if __name__ == "__main__":
    main()
