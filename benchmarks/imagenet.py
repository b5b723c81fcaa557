"""ImageNet-64's networks, on made-up images with random weights, which do not change the time.

    python -m benchmarks.imagenet sampling [--out FILE]   speed-up of dual-rate over heavy, and over its ratio of FLOPs
    python -m benchmarks.imagenet training [--out FILE]   images a second of heavy and of dual-rate

Eager, then with the networks compiled. Never run on a GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import dualrate as dr
from benchmarks import ratios, workloads
from benchmarks.interleave import Spread, interleaved
from dualrate.experiment.experiment import Experiment, Model
from dualrate.recipes import imagenet
from dualrate.system.device import pays
from dualrate.system.environment import environment
from dualrate.system.files import write_whole

Row = dict[str, Any]


def experiments(*, tiny: bool) -> dict[str, Experiment]:
    """Heavy and dual-rate. tiny: of a few channels at 8 x 8, for a CPU."""
    heavy, dual = imagenet.heavy(), imagenet.dual()
    if not tiny:
        return {"heavy": heavy, "dual": dual}
    layouts = [
        dr.UViTConfig(
            8, 3, (dr.Level("conv", width, 1), dr.Level("transformer", width, 1)), 10, embedding=16, head_dim=8
        )
        for width in (32, 8)
    ]
    dual = replace(dual, data=replace(dual.data, augment=heavy.data.augment))
    return {
        "heavy": replace(heavy, networks=dr.OneNetwork(layouts[0])),
        "dual": replace(dual, networks=dr.TwoNetworks(layouts[0], layouts[1])),
    }


def model(experiment: Experiment, device: torch.device) -> Model:
    networks, denoiser = experiment.build()
    networks.to(device).eval().requires_grad_(False)
    return Model(experiment.name, experiment, networks, denoiser, 0, "")


def sampling(
    found: dict[str, Experiment], steps: int, heavy: int, batches: list[int], device: torch.device, seconds: float
) -> Iterator[Row]:
    """The dual-rate plan against as many calls of heavy."""
    eager = {name: model(experiment, device) for name, experiment in found.items()}
    for mode in modes(device):
        models = {name: replace(one, compiled=mode == "compiled") for name, one in eager.items()}
        for batch in batches:
            cell = ratios.efficiency(
                models["heavy"], models["dual"], steps, heavy, batch, device, pays(device), seconds
            )
            yield {"mode": mode} | cell


def training(found: dict[str, Experiment], batches: list[int], device: torch.device, seconds: float) -> Iterator[Row]:
    """An iteration of each at these batch sizes, without the loading of images."""
    for mode in modes(device):
        for batch in batches:
            for name, experiment in found.items():
                sized = replace(experiment, fit=replace(experiment.fit, batch_size=batch))
                work = workloads.training(sized, device, pays(device), compiled=mode == "compiled")
                durations = interleaved({name: work}, device, seconds=seconds)[name]
                yield {"mode": mode, "model": name, "batch": batch} | {
                    "images_per_second": Spread.of([batch / duration.wall for duration in durations])
                }


def modes(device: torch.device) -> tuple[str, ...]:
    """Compiled networks are timed on GPUs alone."""
    return ("eager", "compiled") if device.type == "cuda" else ("eager",)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("sampling", "training"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="networks of a few channels, for a CPU")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--heavy", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found, device = experiments(tiny=options.tiny), torch.device(options.device)
    if options.what == "sampling":
        cells = sampling(found, options.steps, options.heavy, options.batch, device, options.seconds)
    else:
        cells = training(found, options.batch, device, options.seconds)
    rows = []
    for cell in cells:
        rows.append(ratios.plain(cell))
        print(json.dumps(rows[-1]), flush=True)
        if options.out:  # a row at a time, since the time may be over before the last
            write_whole(options.out, json.dumps({"environment": environment(device), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
