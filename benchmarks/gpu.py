"""Light steps between two heavy calls on a GPU: eager, compiled, as CUDA graphs; depth against width.

    python -m benchmarks.gpu --device cuda [--models NAME ...] [--precision float32] [--out FILE]

Untested on a GPU: only the eager part was ever run, on a CPU (`--device cpu`). What it is to show: at small batch the
time of a light step follows its number of kernels, not its multiply-adds, so a graph over a whole segment should help
most there, and of two light networks of equal multiply-adds the deep and narrow one should be the slower. A graph of
every call is what `--graphs` of the commands makes (system/device.py); that of the segment says what is left to gain.

A segment is one heavy call and n light steps with the update rule; its noise lies in buffers, drawn outside of the
timing. Weights are random: they do not change the time.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

import dualrate as dr
from benchmarks.interleave import interleaved
from benchmarks.utilisation import known_peak
from dualrate.config.ranges import Precision
from dualrate.denoisers.denoiser import DualRate
from dualrate.diffusion.values import shared_time
from dualrate.experiment.network_configs import TwoNetworks
from dualrate.networks.blocks import in_bfloat16
from dualrate.recipes import fashion_mnist
from dualrate.sampling.cost import CallCost, call_cost
from dualrate.system.device import graph_calls, record
from dualrate.system.environment import environment
from dualrate.system.files import write_whole


@dataclass(frozen=True)
class Segment:
    """Everything that the steps of one segment read, in buffers of fixed address.

    z: (B, C, H, W); times: n + 1 of (B,) float64, decreasing, on the host; noise: (n, B, C, H, W)
    """

    denoiser: DualRate
    step: dr.Ancestral
    z: Tensor
    times: Sequence[Tensor]
    noise: Tensor
    cond: dr.Cond
    bfloat16: bool
    cost: CallCost

    def precision(self) -> torch.autocast:
        """Autocast without its cache, whose entries must not outlive a captured graph."""
        return torch.autocast(self.z.device.type, torch.bfloat16, enabled=self.bfloat16, cache_enabled=False)

    def heavy(self) -> dr.Context:
        with torch.no_grad(), self.precision():
            return self.denoiser.encode(self.z, self.times[0], self.cond).aged()

    def light(self, context: dr.Context) -> Tensor:
        z = self.z
        with torch.no_grad(), self.precision():
            for t, s, noise in zip(self.times, self.times[1:], self.noise, strict=False):
                kernel = self.step.kernel(lambda z, t: self.denoiser.denoise(z, t, context, self.cond), z, t, s)
                z = kernel.sample(noise)
        return z


def segment(
    experiment: dr.Experiment, steps: int, batch: int, device: torch.device, precision: Precision = "auto"
) -> Segment:
    """The segment of `steps` light steps in the middle of a sampler of 8 times as many.

    precision: of matrix products
    """
    networks, denoiser = experiment.build()
    if not isinstance(denoiser, DualRate):
        raise ValueError(f"a segment has a heavy and a light network, {experiment.name} has one: take a dual recipe")
    networks.to(device).eval().requires_grad_(False)
    bfloat16 = in_bfloat16(precision, device)
    model = dr.Model(experiment.name, experiment, networks, denoiser, 0, "").ready(bfloat16=bfloat16)  # as samples are
    assert isinstance(model.denoiser, DualRate)
    shape, null = (batch, *experiment.shape), experiment.num_classes
    return Segment(
        model.denoiser,
        dr.Ancestral(experiment.gaussian),
        torch.randn(shape, device=device),
        [shared_time(0.5 - i / (8 * steps)) for i in range(steps + 1)],
        torch.randn(steps, *shape, device=device),
        dr.Cond(torch.arange(batch, device=device) % null if null else None),
        bfloat16,
        call_cost(denoiser, experiment.shape, 0 if null else None, device),
    )


def compiled(part: Segment) -> Segment:
    """The same with its networks compiled, each on its first call."""
    light, encoder = (torch.compile(net) for net in (part.denoiser.light, part.denoiser.encoder))
    assert isinstance(light, nn.Module)
    assert isinstance(encoder, nn.Module)
    return replace(part, denoiser=replace(part.denoiser, light=light, encoder=encoder))


def graphed(part: Segment, context: dr.Context) -> Callable[[], None]:
    """Launches all the light steps as one; a new context is copied into `context`'s tensors before it."""
    return record(lambda: part.light(context), part.z.device)[0]


def by_call(part: Segment) -> Segment:
    """The same with every call of its networks as a graph."""
    light, encoder = (copy.deepcopy(net) for net in (part.denoiser.light, part.denoiser.encoder))
    for network in (light, encoder):
        graph_calls(network)
    return replace(part, denoiser=replace(part.denoiser, light=light, encoder=encoder))


def modes(part: Segment, device: torch.device) -> dict[str, Callable[[], object]]:
    """Whole segments, and the light steps alone, in every mode that the device has."""
    context = part.heavy()
    calls: dict[str, Callable[[], object]] = {
        "heavy call, eager": part.heavy,
        "light steps, eager": lambda: part.light(context),
    }
    if device.type == "cuda":
        fused, each = compiled(part), by_call(part)
        calls["heavy call, graph"] = each.heavy
        calls["light steps, a graph each"] = lambda: each.light(context)
        calls["heavy call, compiled"] = fused.heavy
        calls["light steps, compiled"] = lambda: fused.light(context)
        calls["light steps, graph"] = graphed(part, context)
        fused.light(context)  # compiles outside of the capture
        calls["light steps, compiled and graph"] = graphed(fused, context)
    return calls


def layouts() -> dict[str, dr.Experiment]:
    """Dual-rate experiments with light networks of about equal multiply-adds: channels^2 x depth is fixed."""
    dual = fashion_mnist.dual()
    found = {}
    for channels, depth in ((48, 32), (96, 8), (192, 2)):
        light = fashion_mnist.network(conv=48, transformer=channels, depth=depth)
        name = f"light of {depth} blocks of {channels}"
        found[name] = replace(dual, name=name, networks=TwoNetworks(fashion_mnist.HEAVY, light))
    return found


def measure(
    experiments: dict[str, dr.Experiment],
    steps: int,
    batches: list[int],
    device: torch.device,
    seconds: float,
    precision: Precision = "auto",
) -> Iterator[dict[str, object]]:
    """Median milliseconds of each mode, per experiment and batch; light ones per step."""
    for name, experiment in experiments.items():
        for batch in batches:
            part = segment(experiment, steps, batch, device, precision)
            for mode, durations in interleaved(modes(part, device), device, seconds=seconds).items():
                walls = sorted(duration.wall for duration in durations)
                each = steps if mode.startswith("light") else 1
                row = {"model": name, "batch": batch, "mode": mode, "ms": 1e3 * walls[len(walls) // 2] / each}
                peak = known_peak(device, bfloat16=part.bfloat16)
                if peak is not None:
                    macs = part.cost.light if mode.startswith("light") else part.cost.heavy
                    row["mfu"] = 2 * macs * batch / (peak * row["ms"] / 1e3)
                share = f", MFU {row['mfu']:.3f}" if "mfu" in row else ""
                print(f"{name:36} batch {batch:4} {mode:34} {row['ms']:9.3f} ms{share}", flush=True)
                yield row | {"bfloat16": part.bfloat16} | asdict(part.cost)


def main() -> None:
    models = {"fashion-mnist-dual-45": fashion_mnist.dual(), **layouts()}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", choices=models, default=list(models), metavar="NAME")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto")
    parser.add_argument("--steps", type=int, default=7, help="light steps of a segment")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    experiments, device = {name: models[name] for name in options.models}, torch.device(options.device)
    rows: list[dict[str, object]] = []
    for row in measure(experiments, options.steps, options.batches, device, options.seconds, options.precision):
        rows.append(row)
        if options.out:  # a row at a time, since the time may be over before the last
            write_whole(options.out, json.dumps({"environment": environment(device), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
