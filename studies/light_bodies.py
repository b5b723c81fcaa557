"""Seconds of one call of light networks of several kinds beside their multiply-adds, against one heavy call; of scans
beside attention; and what U-ViT, DiT and DiS of equal multiply-adds learn in equal CPU seconds.

    python studies/light_bodies.py [--compile] [--device cuda]
    python studies/light_bodies.py scans                      milliseconds, a table in Markdown
    python studies/light_bodies.py quality OUT --natural DIR  trainings; run again, it goes on with the next row
    python -m benchmarks.peers page OUT/fashion-mnist         their table

All make about the multiply-adds of today's light network. `today` is that network; of the others the finest level has
no blocks, and the next has a few, wide ones. Encoder and light network are a pair; each round calls all of them, so a
ratio is of one run. For a plan of 64 steps with 8 heavy calls, H and h a heavy and a light call,

    promised = 64 H / (8 H + 56 h) in multiply-adds;   efficiency = the same in seconds / promised
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from common import command, on_one_thread

import dualrate as dr
from benchmarks import peers
from benchmarks.interleave import Spread, interleaved
from benchmarks.workloads import a_call_each
from dualrate.data.images import to_float
from dualrate.networks.blocks import attend
from dualrate.networks.body import BodyConfig
from dualrate.networks.dis import DiSBlock
from dualrate.networks.dit import DiTBlock
from dualrate.networks.scan import selective_scan
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


def macs(network: BodyConfig) -> int:
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


# Scans


def scans(arguments: Sequence[str]) -> None:
    """CPU milliseconds of a forward pass and of one with its backward pass: scans and attention of as many channels,
    then blocks of half as many, whose scans have them. Medians of interleaved rounds.
    """
    options = command(scans.__doc__)
    options.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024])
    options.add_argument("--channels", type=int, default=192, help="a multiple of 64")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--seconds", type=float, default=5, help="at least, for each length")
    found = options.parse_args(arguments)
    print("| tokens | what | forward, ms | training, ms |\n| ---: | --- | ---: | ---: |")
    for length in found.lengths:
        calls = cores(found.batch, found.channels, length) | blocks(found.batch, found.channels // 2, length)
        both = {f"{name} {i}": partial(called, call, i) for name, call in calls.items() for i in (0, 1)}
        rounds = interleaved(both, torch.device("cpu"), seconds=found.seconds)
        for name in calls:
            each = ([one.cpu for one in rounds[f"{name} {i}"]] for i in (0, 1))
            forward, training = (1e3 * Spread.of(seconds).median for seconds in each)
            print(f"| {length} | {name} | {forward:.1f} | {training:.1f} |", flush=True)


def called(call: Callable[[], torch.Tensor], trained: int) -> None:
    with torch.set_grad_enabled(bool(trained)):
        y = call()
    if trained:
        y.sum().backward()


def cores(batch: int, channels: int, length: int, states: int = 16) -> dict[str, Callable[[], torch.Tensor]]:
    heads = channels // 64

    def given(*shape: int) -> torch.Tensor:
        return torch.randn(shape).requires_grad_()

    B, C, u = given(batch, states, length), given(batch, states, length), given(batch, channels, length)
    delta, per_head = given(batch, channels, length), given(batch, heads, length)
    A, of_heads = -torch.rand(channels, states), -torch.rand(heads)
    q, k, v = (given(batch, heads, length, 64) for _ in range(3))
    by_channel = {
        f"scan, {backend}": partial(selective_scan, u, delta, A, B, C, delta_softplus=True, backend=backend)
        for backend in ("loop", "chunked")
    }
    matrix = partial(selective_scan, u, per_head, of_heads, B, C, delta_softplus=True, backend="matrix")
    return {**by_channel, "scan, matrix": matrix, "attention": partial(attend, q, k, v)}


def blocks(batch: int, channels: int, length: int) -> dict[str, Callable[[], torch.Tensor]]:
    h, emb = torch.randn(batch, length, channels).requires_grad_(), torch.randn(batch, channels)
    config = dr.DiSConfig(8, 1, channels, 1)
    made = {
        "DiS block": DiSBlock(config, skip=False),
        "DiS block, a decay per head": DiSBlock(replace(config, decay="head"), skip=False),
        "DiT block": DiTBlock(dr.DiTConfig(8, 1, channels, 1, head_dim=32)),
    }
    return {name: partial(block, h, emb) for name, block in made.items()}


# Quality


def bodies_of(data: dr.DataConfig) -> dict[str, BodyConfig]:
    """Single networks of about the multiply-adds of the U-ViT, of 10 classes."""
    uvit, side, patch = fashion_mnist.LIGHT, 28, 4
    if data.size is not None:
        side, patch = data.size, 2
        levels = Level("conv", 48, 1), Level("transformer", 96, 2)
        uvit = UViTConfig(side, 3, levels, 10, embedding=128, head_dim=32)
    budget, channels = macs(uvit), uvit.image_channels
    dit = (
        dr.DiTConfig(side, channels, width, count, 10, patch, head_dim=32)
        for width, count in itertools.product((64, 96, 128), range(3, 9))
    )
    dis = [dr.DiSConfig(side, channels, width, 5, 10, patch, head_dim=32) for width in range(64, 176, 16)]
    return {
        "U-ViT": uvit,
        "DiT": nearest(dit, budget),
        "DiS": nearest(dis, budget),
        "DiS, a decay per head": nearest((replace(one, decay="head") for one in dis), budget),
    }


def nearest(sized: Iterable[BodyConfig], budget: int) -> BodyConfig:
    return min(sized, key=lambda config: abs(macs(config) - budget))


def quality(arguments: Sequence[str]) -> None:
    """Trains every body for equal CPU seconds, one row a body and seed, after a search of its learning rate, and scores
    1,000 images at 16 calls by two EfficientNets: all as benchmarks/peers.py does. OUT has a folder for each set; rows
    that are there are kept."""
    options = command(quality.__doc__)
    options.add_argument("out", type=Path)
    options.add_argument("--natural", help="colour images of ten classes with a test split, such as CIFAR-10's parquet")
    options.add_argument("--side", type=int, default=16, help="that these are brought to")
    options.add_argument("--seconds", type=float, default=360, help="CPU seconds of a training")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--only", nargs="+", help="bodies; all if not given")
    options.add_argument("--images", type=int, default=1000, help="that are drawn and scored")
    options.add_argument("--reference", type=int, default=10_000, help="test images that they are compared with")
    found = options.parse_args(arguments)
    sets = {"fashion-mnist": dr.DataConfig()}
    if found.natural:
        sets[f"natural-{found.side}"] = dr.DataConfig(found.natural, found.side, 3)
    for name, data in sets.items():
        of_set(found, found.out / name, data)


def of_set(options: argparse.Namespace, out: Path, data: dr.DataConfig) -> None:
    """Every row of a set that is not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    bodies, judge = bodies_of(data), None
    train, test = (data.images(split) for split in ("train", "test"))
    assert train.labels is not None
    assert test.labels is not None
    pixels = np.asarray(train.images)
    held = to_float(test.images[: peers.HELD]), torch.from_numpy(test.labels[: peers.HELD])
    for seed, name in itertools.product(options.seeds, options.only or bodies):
        of_name: peers.Row = {"name": name, "seconds": options.seconds}
        of_row = of_name | {"seed": seed, "images": options.images}
        if peers.kept(out, of_row):
            continue
        judge = judge or peers.Judge(out, options.reference, pixels[: options.images], test.images)
        change = partial(with_body, config=bodies[name], data=data)
        contender = peers.Contender(peers.ours, {"recipe": "fashion-mnist-light", "change": change}, ())
        run = peers.Run(pixels, train.labels, options.seconds, seed)
        of_search = of_name | {"what": "search"}
        searched: peers.Row = peers.kept(out, of_search)
        if not searched:
            searched = of_search | peers.search(contender, run, held)
            peers.add(out, searched)
        run = replace(run, **searched["found"])
        row = {"lines": 0, **searched, **of_row, "what": "row", "floor": judge.floor}
        peers.add(out, row | peers.measured(contender, run, options.images, judge))


def with_body(made: dr.Experiment, config: BodyConfig, data: dr.DataConfig) -> dr.Experiment:
    return replace(made, networks=dr.OneNetwork(config), data=data)


def main() -> None:
    if sys.argv[1:2] in (["scans"], ["quality"]):
        on_one_thread()
        {"scans": scans, "quality": quality}[sys.argv[1]](sys.argv[2:])
        return
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
