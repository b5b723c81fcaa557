"""Ratios of what was made faster, each beside its aim, and the shares of pairs; `make benchmark` prints them.

torus      a light call that pads by torch over one that pads by `blocks.wrapped`
precision  samplings in the precision that "auto" takes over those in the other one
labels     the check of a draw's labels over a light call of one image
files      2 steps of 1000 images with a PNG each over the same images drawn
loop       samplers of this package over those of diffusers, 16 steps of a network that does nothing; with a generator
           an image there too, as here, no image depends on the others of its batch
share      the speed-up of a light call over a heavy one, over the ratio of their multiply-adds: of the shipped
           pairs, and of what `train auto` makes, with random weights
members    the same of whole samplings of a condition: super-resolution and periodic forecasts, with random weights
compiled   light calls that torch compiled ahead of time over those that it did not, and an image in 16 steps; the
           first time they are compiled, for three minutes

python -m benchmarks.calls [--only share ...] [--seconds 5] [--compile]

A table in Markdown, with the machine below it. With --compile shares are also measured of calls that torch compiled
ahead of time, heavy and light ones; the first time it compiles for most of an hour.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import dualrate as dr
from benchmarks import child, ratios, workloads
from benchmarks.interleave import Spread, interleaved, quotient
from dualrate.data.images import Look
from dualrate.data.source import Raw
from dualrate.denoisers.denoiser import Plain, check_labels
from dualrate.diffusion.schedule import Cosine
from dualrate.drawing.samples import write_samples
from dualrate.experiment.model import Model
from dualrate.networks.blocks import PeriodicConv2d, in_bfloat16
from dualrate.recipes.auto import Size, experiment
from dualrate.sampling.solvers import DPMSolver2M
from dualrate.system.device import compiles, environment, keep_freed_memory

CPU = torch.device("cpu")
PAIRS = ("dual-25", "dual-45")
SIZES: tuple[Size, ...] = ("tiny", "small")
LEVELS = (dr.Level("conv", 24, 1), dr.Level("conv", 24, 1), dr.Level("conv", 64, 1))
PERIODIC = {
    "32 x 32": dr.UViTConfig(32, 3, LEVELS, patch=2, embedding=128, periodic=True),
    "a line of 64": dr.UViTConfig(64, 3, LEVELS, embedding=128, periodic=True, height=1),
}


@dataclass(frozen=True)
class Figure:
    """A ratio of CPU seconds, in words what it should be, and for a share the ratio of multiply-adds.

    compiled: the same ratio of compiled calls
    """

    name: str
    ratio: Spread
    aim: str
    macs: str = ""
    compiled: Spread | str = ""


Work = Callable[[], object]


def over(top: Work, bottom: Work, seconds: float, scale: float = 1.0) -> Spread:
    return quotient(interleaved({"top": top, "bottom": bottom}, CPU, seconds=seconds), "top", "bottom", scale)["cpu"]


def torus(seconds: float) -> Iterator[Figure]:
    for (name, config), count in ((pair, count) for pair in PERIODIC.items() for count in (1, 16, 64)):
        net, z, log_snr = config.network(), torch.zeros(count, *config.shape), torch.zeros(count)
        call = torch.no_grad()(lambda net=net, z=z, log_snr=log_snr: net(z, log_snr, None))

        def by_torch(call: Work = call) -> None:
            with patch.object(PeriodicConv2d, "forward", nn.Conv2d.forward):
                call()

        yield Figure(f"torch's padding, {name}, batch {count}", over(by_torch, call, seconds), "1 at least")


def precision(seconds: float) -> Iterator[Figure]:
    model = shipped(PAIRS[1])
    for count in (1, 8, 64):
        auto = in_bfloat16("auto", CPU, (count, *model.shape))
        taken, other = (
            workloads.sampling(model, dr.StepPlan.uniform(8, 2), count, bfloat16) for bfloat16 in (auto, not auto)
        )
        name = f"{'bfloat16' if auto else 'float32'} over the other, batch {count}"
        yield Figure(name, over(taken, other, seconds), "1 at most")


def labels(seconds: float) -> Iterator[Figure]:
    model = shipped(PAIRS[1])
    light = workloads.a_call_each(model, 1, bfloat16=False)["light"]
    yield Figure(
        "labels of a draw over a light call",
        over(lambda: check_labels(model.denoiser, [0]), light, seconds),
        "0.05 at most",
    )


def files(seconds: float) -> Iterator[Figure]:
    drawer, seeds = dr.Choice(steps=2).drawer(shipped("light-10")), range(1000)

    with tempfile.TemporaryDirectory() as out:
        ratio = over(
            lambda: write_samples(drawer, seeds, tempfile.mkdtemp(dir=out)), lambda: drawer.draw(seeds), seconds
        )
    yield Figure("1000 images in 2 steps as files over drawn", ratio, "1.2 at most")


class Nothing(nn.Module):
    """A network that returns 0."""

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> Tensor:
        return torch.zeros_like(z)


def loop(seconds: float) -> Iterator[Figure]:
    """None where diffusers is not installed."""
    try:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    except ImportError:
        return
    process, shape, plan = dr.GaussianProcess(Cosine()), (1, 28, 28), dr.StepPlan.uniform(16)
    denoiser, net = Plain(Nothing(), process), Nothing()
    steps: dict[str, tuple[Any, Any]] = {
        "DDPM": (dr.Ancestral(process), DDPMScheduler),
        "DDIM": (dr.DDIM(process), DDIMScheduler),
        "DPM-Solver++ 2M": (DPMSolver2M(process), DPMSolverMultistepScheduler),
    }
    ways = [(name, count, False) for name in steps for count in (1, 64)] + [("DDPM", 64, True)]
    for name, count, alone in ways:
        step, kind = steps[name]
        seeds = range(count)
        how = {"batch_size": count, "device": CPU}

        def ours(step: Any = step, seeds: range = seeds, how: Any = how) -> None:
            list(dr.sample_batches(denoiser, step, plan, shape, seeds, **how))

        @torch.no_grad()
        def theirs(kind: Any = kind, count: int = count, alone: bool = alone) -> None:
            scheduler = kind(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
            scheduler.set_timesteps(16)
            if alone:
                generator: Any = [torch.Generator().manual_seed(i) for i in range(count)]
                z = torch.cat([torch.randn(1, *shape, generator=each) for each in generator])
            else:
                z, generator = torch.randn(count, *shape), torch.Generator()
            more = {} if kind is DPMSolverMultistepScheduler else {"generator": generator}
            for t in scheduler.timesteps:
                z = scheduler.step(net(z, t, None), t, z, **more).prev_sample

        row = f"the loop over diffusers', {name}, batch {count}{', a generator an image' if alone else ''}"
        yield Figure(row, over(ours, theirs, seconds), "1 at most")


def share(seconds: float, compiled: bool = False) -> Iterator[Figure]:
    pairs = {name: shipped(name) for name in PAIRS}
    pairs |= {f"auto {size}, {side} x {side}": of_auto(size, side) for size in SIZES for side in (32, 64, 128)}
    for (name, model), count in ((pair, count) for pair in pairs.items() for count in (1, 64)):
        bfloat16 = in_bfloat16("auto", CPU, (count, *model.shape))
        promised = model.call_cost.heavy / model.call_cost.light
        shares: list[Spread] = []
        for way in (model, replace(model, compiled=True))[: 1 + compiled]:
            calls = workloads.a_call_each(way, count, bfloat16)
            shares.append(over(calls["heavy"], calls["light"], seconds, 1 / promised))
        row = f"share of {name}, batch {count}, {'bfloat16' if bfloat16 else 'float32'}"
        yield Figure(row, shares[0], least(count), f"{promised:.2f}", *shares[1:])


def members(seconds: float, compiled: bool = False) -> Iterator[Figure]:
    for name, count in ((name, count) for name in ratios.CONDITIONAL for count in (1, 16, 64)):
        shape = ratios.CONDITIONAL[name][0].shape
        bfloat16 = in_bfloat16("auto", CPU, (count, *shape))
        both = [
            ratios.members(count, CPU, bfloat16, seconds, conditions=1, of=name, compiled=way)
            for way in (False, True)[: 1 + compiled]
        ]
        shares, numbers = [each["efficiency"]["cpu"] for each in both], "bfloat16" if bfloat16 else "float32"
        name = f"share of {name}, members {count}, {numbers}"
        yield Figure(name, shares[0], least(count), f"{both[0]['macs_ratio']:.2f}", *shares[1:])


def compiled(seconds: float) -> Iterator[Figure]:
    """None where torch cannot compile."""
    if compiles(CPU) is not None:
        return
    model, plan = shipped(PAIRS[1]), dr.StepPlan.uniform(16, 4)
    both = replace(model, compiled=True), model
    for count, most in ((1, 0.5), (8, 0.75), (64, 0.9)):
        light, eager = (workloads.a_call_each(made, count, bfloat16=False)["light"] for made in both)
        yield Figure(f"a light call compiled over eager, batch {count}", over(light, eager, seconds), f"{most} at most")
    image, eager = (workloads.sampling(made, plan, 1, bfloat16=False) for made in both)
    yield Figure("an image in 16 steps compiled over eager", over(image, eager, seconds), "0.67 at most")


def least(count: int) -> str:
    """The aim of a share."""
    return f"{0.8 if count == 1 else 0.9} at least"


def shipped(name: str) -> Model:
    return dr.load(child.ROOT / f"weights/fashion-mnist-{name}", device=CPU)


def of_auto(size: Size, side: int) -> Model:
    """What `train auto --rate dual` makes for colour images of this side, with random weights."""
    look = Look("colour", Raw([], 1, None, ()))
    made = experiment(look, dr.DataConfig(source="colour", size=side, channels=3), size)
    networks, denoiser = made.build()
    return Model("auto", made, networks.eval().requires_grad_(False), denoiser, 0, "")


SHARES: dict[str, Callable[[float, bool], Iterator[Figure]]] = {"share": share, "members": members}
PARTS: dict[str, Callable[[float], Iterator[Figure]]] = {
    part.__name__: part for part in (torus, precision, labels, files, loop, share, members, compiled)
}


def table(only: list[str], seconds: float, compile_shares: bool = False) -> Iterator[str]:
    """Lines in Markdown."""
    yield "| | ratio of multiply-adds | ratio of seconds | compiled | aim |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name in only:
        figures = SHARES[name](seconds, compile_shares) if name in SHARES else PARTS[name](seconds)
        for figure in figures:
            yield f"| {figure.name} | {figure.macs} | {figure.ratio} | {figure.compiled} | {figure.aim} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=5, help="at least, for each ratio")
    parser.add_argument("--compile", action="store_true", help="shares of compiled calls, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    for line in table(options.only, options.seconds, options.compile):
        print(line, flush=True)
    print("\n" + ", ".join(environment(CPU).values()))


if __name__ == "__main__":
    main()
