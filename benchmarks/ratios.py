"""The ratios that speed is judged by, from the shipped weights; `make benchmark` (five minutes on a quiet machine).

    sampler     sampling over its network calls alone: what the loop, the noise and the update rule add
    efficiency  speed-up of the dual-rate model over the heavy one at equal steps, over the ratio of their multiply-adds
    members     the same of a conditional model, whose M samples of a condition share one heavy call
    training    images per second, dual-rate over heavy: both networks, the light one alone beside a trained one
    memory      peak, dual-rate over heavy; CPU seconds of a training iteration with and without kept memory beside it

Prints each, in CPU and in wall time, and writes them all with what they were measured on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import dualrate as dr
from benchmarks import child, workloads
from benchmarks.interleave import Spread, interleaved, quotient
from dualrate.data.cache import cache_dir
from dualrate.data.conditions import SuperResolution
from dualrate.diffusion.context import Shape
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.model import COMPILED, Model
from dualrate.forecasts import recipe as forecast_recipe
from dualrate.networks.blocks import copied
from dualrate.networks.uvit import UViTConfig
from dualrate.recipes import tasks
from dualrate.recipes.auto import TIERS, network
from dualrate.recipes.tasks import Rate
from dualrate.sampling.cost import call_cost
from dualrate.system.device import environment, keep_freed_memory, pays
from dualrate.system.files import write_whole
from dualrate.system.packages import package_calls

Figures = dict[str, Any]

RELEASED = {"heavy": "heavy-annealed", "dual": "dual-45", "light": "light"}


def sampler_over_networks(
    model: Model, plan: dr.StepPlan, batch: int, device: torch.device, bfloat16: bool, seconds: float
) -> dict[str, Spread]:
    """Time of sampling over that of its network calls; at best 1."""
    whole = workloads.sampling(model, plan, batch, bfloat16)
    calls = {"whole": whole, "networks": workloads.network_calls(model, whole, device, bfloat16)}
    return quotient(interleaved(calls, device, seconds=seconds), "whole", "networks")


def efficiency(
    heavy: Model, dual: Model, steps: int, calls: int, batch: int, device: torch.device, bfloat16: bool, seconds: float
) -> Figures:
    """Speed-up over the heavy model at the same steps, the ratio of multiply-adds, and the one over the other."""
    plans = {"heavy": (heavy, dr.StepPlan.uniform(steps)), "dual": (dual, dr.StepPlan.uniform(steps, calls))}
    work = {name: workloads.sampling(model, plan, batch, bfloat16) for name, (model, plan) in plans.items()}
    rounds = interleaved(work, device, seconds=seconds)
    macs = {name: workloads.macs(model, plan) for name, (model, plan) in plans.items()}
    promised = macs["heavy"] / macs["dual"]
    return {
        "plan": f"{steps}/{calls}",
        "batch": batch,
        "speedup": quotient(rounds, "heavy", "dual"),
        "macs_ratio": promised,
        "efficiency": quotient(rounds, "heavy", "dual", 1 / promised),
    }


FORECASTS = forecast_recipe.TIERS["tiny"]
PAST = 3  # channels of the frames that a forecast is made of
# heavy networks by what their samples are of, shapes of the conditions, steps
CONDITIONAL: dict[str, tuple[UViTConfig, Shape, int]] = {
    "super-resolution": (network(TIERS["tiny"], 32, 3, 0), SuperResolution(4).shape((3, 32, 32)), 8),
    "a flow, 32 x 32": (forecast_recipe.heavy_network((3, 32, 32), FORECASTS, periodic=True), (PAST, 32, 32), 4),
    "a line of 64": (forecast_recipe.heavy_network((3, 1, 64), FORECASTS, periodic=True), (PAST, 1, 64), 4),
}


def members(
    count: int,
    device: torch.device,
    bfloat16: bool,
    seconds: float,
    conditions: int = 8,
    of: str = "super-resolution",
    compiled: bool = False,
) -> Figures:
    """Figures as of `efficiency`, of a pair of CONDITIONAL with random weights: `count` samples of each condition.

    The single network is the encoder's own. compiled: whether calls are, on a CPU
    """
    (heavy, of_condition, steps), process = CONDITIONAL[of], dr.GaussianProcess(Cosine())
    task: Any = SimpleNamespace(shape=lambda image: of_condition)
    shape, y = heavy.shape, torch.randn(conditions, *of_condition, device=device)
    rates: dict[str, Rate] = {"heavy": "single", "dual": "dual"}
    models = {
        name: tasks.conditional_networks(task, shape, heavy, rate, "diffusion")[0].build(process)
        for name, rate in rates.items()
    }
    plan = dr.StepPlan.uniform(steps, 1)

    def sampling(name: str) -> Callable[[], object]:
        trained = models[name][0].to(device).eval().requires_grad_(False)
        networks, denoiser = copied(models[name], trained, bfloat16=bfloat16)
        for part in networks.values() if compiled else ():
            package_calls(part, cache_dir() / COMPILED)
        how = {"batch_size": conditions * count, "members": count, "device": device, "bfloat16": bfloat16}
        seeds, step = range(conditions), dr.DDIM(process)
        return lambda: list(dr.sample_batches(denoiser, step, plan, shape, seeds, given=lambda rows: y[rows], **how))

    rounds = interleaved({name: sampling(name) for name in models}, device, seconds=seconds)
    calls = {name: call_cost(models[name][1], shape, None, device, given=of_condition) for name in models}
    macs = {name: cost.heavy / count + steps * cost.light for name, cost in calls.items()}
    promised = macs["heavy"] / macs["dual"]
    return {
        "members": count,
        "speedup": quotient(rounds, "heavy", "dual"),
        "macs_ratio": promised,
        "efficiency": quotient(rounds, "heavy", "dual", 1 / promised),
    }


def training(
    heavy: dr.Experiment, dual: dr.Experiment, device: torch.device, bfloat16: bool, seconds: float
) -> dict[str, Spread]:
    """Images per second of the second over the first, at their own batch sizes."""
    work = {name: workloads.training(experiment, device, bfloat16) for name, experiment in (("a", heavy), ("b", dual))}
    images = dual.fit.batch_size / heavy.fit.batch_size
    return quotient(interleaved(work, device, seconds=seconds), "a", "b", images)


def processes(weights: dict[str, Path], device: str, threads: int) -> Figures:
    """Peak memory of sampling 64 images (64 steps, 8 heavy calls) and of training; CPU time of an iteration."""
    common = ("--device", device, "--threads", str(threads))
    figures: Figures = {}
    for name in ("heavy", "dual"):
        plan = ("--heavy", "8") if name == "dual" else ()
        figures[f"sample {name}"] = child.run(str(weights[name]), "sample", "--repeats", "1", *plan, *common)
    trained = (("heavy", "heavy"), ("joint", "dual"), ("retrofit", "dual", "--freeze-encoder"), ("light", "light"))
    for name, of, *how in trained:
        work = (str(weights[of]), "train", *how, *common)
        figures[f"train {name}"] = child.run(*work)
        figures[f"train {name}, freed memory returned"] = child.run(*work, "--return-freed")
    for work, name in (("sample", "dual"), ("train", "joint"), ("train", "retrofit")):
        pair, heavy = figures[f"{work} {name}"], figures[f"{work} heavy"]
        figures[f"{work}, {name} over heavy"] = pair["peak"] / heavy["peak"]
        above = [part["peak"] - part["start"] for part in (pair, heavy)]
        figures[f"{work}, {name} over heavy, above the libraries' own"] = above[0] / above[1]
    return figures


def plain(value: Any) -> Any:
    """Spreads as dictionaries, for JSON."""
    if isinstance(value, Spread):
        return asdict(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def show(name: str, both: dict[str, Spread]) -> None:
    print(f"{name:55} cpu {both['cpu']}   wall {both['wall']}", flush=True)


def measure(weights: dict[str, Path], options: argparse.Namespace) -> Figures:
    """All ratios, printed as they come. weights: of `heavy`, `dual` and `light`."""
    device, seconds = torch.device(options.device), options.seconds
    bfloat16 = pays(device)
    heavy, dual = (dr.load(weights[name], device=device) for name in ("heavy", "dual"))
    figures: Figures = {
        "environment": environment(device),
        "device": str(device),
        "bfloat16": bfloat16,
        "efficiency": [],
    }
    steps, calls = options.plans[0]
    plan = dr.StepPlan.uniform(steps, calls)
    figures["sampler"] = {
        f"batch {batch}": sampler_over_networks(dual, plan, batch, device, bfloat16, seconds)
        for batch in options.batches
    }
    for name, ratio in figures["sampler"].items():
        show(f"sampling over its network calls, {steps}/{calls}, {name}", ratio)
    for steps, calls in options.plans:
        for batch in options.batches:
            cell = efficiency(heavy, dual, steps, calls, batch, device, bfloat16, seconds)
            figures["efficiency"].append(cell)
            show(f"speed-up {steps}/{calls}, batch {batch} (MACs {cell['macs_ratio']:.2f})", cell["speedup"])
            show("    over the ratio of multiply-adds", cell["efficiency"])
    figures["members"] = [members(count, device, bfloat16, seconds) for count in (1, 16)]
    for cell in figures["members"]:
        show(f"speed-up of {cell['members']} members (MACs {cell['macs_ratio']:.2f})", cell["speedup"])
        show("    over the ratio of multiply-adds", cell["efficiency"])
    beside = workloads.beside_frozen_encoder(dual.experiment)
    trained = {"heavy": heavy.experiment, "joint": dual.experiment, "retrofit": beside}
    figures["training"] = {
        name: training(trained["heavy"], trained[name], device, bfloat16, seconds) for name in ("joint", "retrofit")
    }
    for name, ratio in figures["training"].items():
        show(f"training images/s, {name} over heavy", ratio)
    figures["processes"] = processes(weights, options.device, options.threads)
    for name, value in figures["processes"].items():
        print(name, f"{value:.3f}" if isinstance(value, float) else value)
    return figures


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20, help="at least, for each comparison")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--weights", type=Path, default=child.ROOT / "weights")
    parser.add_argument("--out", type=Path, default=child.ROOT / "docs/results/benchmarks.json")
    parser.set_defaults(plans=[(64, 8), (32, 8)])
    return parser


def main() -> None:
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    weights = {name: options.weights / f"fashion-mnist-{released}" for name, released in RELEASED.items()}
    figures = measure(weights, options)
    write_whole(options.out, json.dumps(plain(figures), indent=1) + "\n")


if __name__ == "__main__":
    main()
