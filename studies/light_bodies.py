"""Seconds of one call of light networks of several kinds beside their multiply-adds, against one heavy call.

    python studies/light_bodies.py [--compile] [--device cuda]

All make about the multiply-adds of today's light network. `today` is that network; of the others the finest level has
no blocks, and the next has a few, wide ones. Encoder and light network are a pair; each round calls all of them, so a
ratio is of one run. For a plan of 64 steps with 8 heavy calls, H and h a heavy and a light call,

    promised = 64 H / (8 H + 56 h) in multiply-adds;   efficiency = the same in seconds / promised
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from common import command, on_one_thread

import dualrate as dr
from benchmarks.interleave import Spread, interleaved
from benchmarks.workloads import a_call_each
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes import auto, fashion_mnist
from dualrate.sampling.cost import CallCost, call_cost, macs_of
from dualrate.system.device import compile_calls, pays

Kind = Literal["conv", "transformer"]
STEPS, HEAVY = 64, 8
PAIRS = {
    "28x28x1": (fashion_mnist.HEAVY, fashion_mnist.LIGHT),
    "32x32x3": (small := auto.network(auto.TIERS["small"], 32, 3, 0), small.lighter()),
}
FINEST = 16  # channels of the finest level, for each image channel


def model(encoder: UViTConfig, light: UViTConfig, device: torch.device) -> dr.Model:
    """A pair with random weights."""
    made = dr.Experiment("pair", dr.TwoNetworks(encoder, light), dr.DenoisingConfig(dr.TimeSampler()), dr.FitConfig(1))
    networks, denoiser = made.build()
    for i, weight in enumerate(networks.parameters()):
        torch.nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(i))
    return dr.Model("pair", made, networks.eval().requires_grad_(False).to(device), denoiser, 0, "")


def macs(network: UViTConfig) -> int:
    net = network.network()
    return macs_of(lambda: net(torch.zeros(1, *network.shape), torch.zeros(1), None))


def candidates(today: UViTConfig, kinds: Sequence[Kind], counts: Sequence[int]) -> Iterator[tuple[str, UViTConfig]]:
    """Light networks of kinds of blocks and counts of them, as wide as today's multiply-adds allow."""
    yield "today", today
    budget = macs(today)
    for kind in kinds:
        for blocks in counts:
            finest = Level("conv", FINEST * today.image_channels, 0)
            sized = (
                replace(today, levels=(finest, Level(kind, width, blocks)), head_dim=32)
                for width in range(384, 63, -32)
            )
            yield f"{kind} x {blocks}", next(light for light in sized if macs(light) <= budget)


def table(
    found: Mapping[str, UViTConfig], encoder: UViTConfig, batch: int, options: argparse.Namespace
) -> Iterator[dict[str, object]]:
    """A row for each candidate."""
    device = torch.device(options.device)
    calls: dict[str, Callable[[], object]] = {}
    costs: dict[str, CallCost] = {}
    for name, light in found.items():
        pair = model(encoder, light, device)
        costs[name] = call_cost(pair.denoiser, pair.shape, 0 if pair.num_classes else None, device)
        both = a_call_each(pair, batch, pays(device))
        timed = {"light": name, "encoder": "heavy"} if name == "today" else {"light": name}
        for role in timed if options.compile else ():
            compile_calls(pair.ready(bfloat16=pays(device)).networks[role])
        calls |= {called: both["heavy" if role == "encoder" else role] for role, called in timed.items()}
    rounds = interleaved(calls, device, seconds=options.seconds, least=5)
    heavy = costs["today"].heavy
    for name, light in found.items():
        counted = costs[name].light
        promised, taken = speed_up(heavy, counted), list(zip(rounds["heavy"], rounds[name], strict=True))
        yield {
            "light": name,
            "width": light.widths[-1],
            "batch": batch,
            "compiled": options.compile,
            "million multiply-adds": counted / 1e6,
            "of heavy": counted / heavy,
            "milliseconds": 1e3 * Spread.of([one.wall for one in rounds[name]]).median,
            "heavy milliseconds": 1e3 * Spread.of([one.wall for one in rounds["heavy"]]).median,
            "seconds of heavy": Spread.of([g.wall / h.wall for h, g in taken]),
            "promised": promised,
            "efficiency": Spread.of([speed_up(h.wall, g.wall) / promised for h, g in taken]),
        }


def speed_up(heavy: float, light: float) -> float:
    return STEPS * heavy / (HEAVY * heavy + (STEPS - HEAVY) * light)


def parser() -> argparse.ArgumentParser:
    options = command(__doc__)
    options.add_argument("--device", default="cpu")
    options.add_argument("--compile", action="store_true")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    options.add_argument("--sizes", nargs="+", default=list(PAIRS), choices=PAIRS)
    options.add_argument("--kinds", nargs="+", default=get_args(Kind), choices=get_args(Kind))
    options.add_argument("--blocks", type=int, nargs="+", default=[1, 2])
    options.add_argument("--seconds", type=float, default=10, help="at least, for each batch and size")
    return options


def main() -> None:
    options = parser().parse_args()
    on_one_thread()
    for size in options.sizes:
        encoder, today = PAIRS[size]
        found = dict(candidates(today, options.kinds, options.blocks))
        for batch in options.batches:
            for row in table(found, encoder, batch, options):
                print(json.dumps({"size": size, **row}, default=str), flush=True)


if __name__ == "__main__":
    main()
