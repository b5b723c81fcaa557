"""Few-step students of a mixture of eight Gaussians on a ring: sliced Wasserstein distance to exact samples, pictures.

    OMP_NUM_THREADS=1 .venv/bin/python studies/mixture_students.py     # minutes; writes docs/results/mixture-students.*

The teacher is a small network trained with the denoising loss; it samples with 256 ancestral steps, and with as few as
its students. Students: both versions of moment matching at 1, 2, 4 and 8 steps, the instant one also without its
preconditioner, and a dual-rate one of 8 steps with 4 heavy calls, by segment rollouts (A) and by full rollouts (B). The
students' networks and the encoders start from the teacher. Each student gets the same number of updates; the dual-rate
ones have half as many of pre-training before them.

Distances: the root mean square of the 2-Wasserstein distances of projections onto 64 directions, between a set of
samples and a set of exact ones, the mean over independent pairs of sets with its bootstrap interval. "exact" is the
floor: two exact sets.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, command, keep, markdown
from matplotlib.figure import Figure
from torch import Tensor, nn

import dualrate as dr
from dualrate.denoisers.denoiser import DualRate, Plain
from dualrate.denoisers.exact import GaussianMixture
from dualrate.diffusion.prediction import Sigmoid
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.values import Batch
from dualrate.methods.denoising import Denoising
from dualrate.methods.moment_matching.alternating import MomentMatching
from dualrate.methods.moment_matching.instant import InstantMomentMatching
from dualrate.methods.moment_matching.states import ForwardPairs, FromData, FullRollout, SegmentRollout
from dualrate.methods.times import SingleTime
from dualrate.networks.blocks import NoiseEmbedding
from dualrate.report.figures import INK, PALETTE, png
from dualrate.training.method import Method

OUT = RESULTS / "mixture-students.json"
PROCESS = dr.GaussianProcess(Cosine())
WEIGHTING = Sigmoid()
ANGLES = torch.arange(8, dtype=torch.float64) * math.pi / 4
RING = GaussianMixture.isotropic(torch.stack((ANGLES.cos(), ANGLES.sin()), 1), 0.08**2)
BATCH, SETS, SIZE = 512, 20, 5000


class Mlp(nn.Module):
    """(z, log_snr, label) -> v for points in the plane; `hidden`: also its last activation."""

    def __init__(self, width: int, extra: int = 0) -> None:
        super().__init__()
        self.embedding = NoiseEmbedding(64)
        sizes = (2 + 64 + extra, width, width, width)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(width, 2)

    def hidden(self, z: Tensor, log_snr: Tensor, *extra: Tensor) -> Tensor:
        h = torch.cat((z, self.embedding(log_snr), *extra), 1)
        for layer in self.layers:
            h = nn.functional.silu(layer(h))
        return h

    def forward(self, z: Tensor, log_snr: Tensor, label: None) -> Tensor:
        return self.head(self.hidden(z, log_snr))


class Encoder(nn.Module):
    """The teacher's network and a projection of its last activation."""

    def __init__(self, net: Mlp, features: int) -> None:
        super().__init__()
        self.net, self.projection = net, nn.Linear(net.head.in_features, features, bias=False)

    def forward(self, z: Tensor, log_snr: Tensor, label: None) -> tuple[tuple[Tensor], Tensor]:
        h = self.net.hidden(z, log_snr)
        return (self.projection(h),), self.net.head(h)


class Light(nn.Module):
    """A network of a quarter of the width, which also gets the encoder's feature and its log-SNR."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.net, self.tau = Mlp(width, extra=features + 64), NoiseEmbedding(64)

    def forward(
        self, z: Tensor, log_snr: Tensor, label: None, features: tuple[Tensor], log_snr_tau: Tensor, present: None
    ) -> Tensor:
        return self.net.head(self.net.hidden(z, log_snr, features[0], self.tau(log_snr_tau)))


@dataclass(frozen=True)
class Sampler:
    """A row of the result: what samples, and how."""

    name: str
    denoiser: dr.Denoiser
    plan: dr.StepPlan
    step: dr.Step = dr.Ancestral(PROCESS)

    def __call__(self, first: int) -> Tensor:
        seeds = range(first, first + SIZE)
        return torch.cat(list(dr.sample_batches(self.denoiser, self.step, self.plan, (2,), seeds, batch_size=SIZE)))


def exact(first: int, count: int) -> Tensor:
    """Samples of the mixture itself. A batch of training and a set of evaluation never share numbers."""
    draws = Draws(1, torch.arange(first, first + count))
    return RING.sample(draws.uniform("component").flatten(), draws.normal("x", 2)).float()


def batch_of(iteration: int) -> Batch:
    first = iteration * BATCH
    return Batch(exact(first, BATCH), None, torch.arange(first, first + BATCH))


def fit(method: Method, iterations: int, lr: float) -> None:
    """Every phase its own Adam, the learning rate falling linearly to zero."""
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for iteration in range(iterations):
        batch = batch_of(iteration)
        for phase in method.phases(iteration):
            if phase.name not in optimizers:
                optimizers[phase.name] = torch.optim.Adam(phase.parameters, betas=(0.0, 0.99))
            optimizer = optimizers[phase.name]
            optimizer.param_groups[0]["lr"] = lr * (1 - iteration / iterations)
            gradients = torch.autograd.grad(
                phase.loss(batch, iteration, Draws(0, batch.sample)).total, phase.parameters, allow_unused=True
            )
            for parameter, gradient in zip(phase.parameters, gradients, strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(phase.parameters, 1.0)
            optimizer.step()


def teacher(iterations: int) -> Mlp:
    network = Mlp(128)
    method = Denoising(nn.ModuleDict({"model": network}), Plain(network, PROCESS), PROCESS, WEIGHTING, SingleTime())
    fit(method, iterations, 2e-3)
    return network


def plain_student(network: Mlp, steps: int, version: str, iterations: int) -> Sampler:
    """A student in continuous time, sampled with its own number of steps."""
    student = copy.deepcopy(network)
    common: dict[str, Any] = {
        "networks": nn.ModuleDict({"model": student}), "student": Plain(student, PROCESS),
        "teacher": Plain(network, PROCESS), "process": PROCESS, "weighting": WEIGHTING,
        "states": FromData(steps, PROCESS),
    }  # fmt: skip
    if version == "alternating":
        fit(alternating(common, network), 2 * iterations, 5e-4)
    else:
        method = InstantMomentMatching(teacher_network=network, **common)
        adam = version == "instant"
        fit(method.preconditioned(map(batch_of, range(64))) if adam else method, iterations, 5e-4)
    return Sampler(f"student, {version}", common["student"], dr.StepPlan.uniform(steps))


def dual_student(network: Mlp, rollout: str, iterations: int, steps: int = 8) -> Sampler:
    """With half as many heavy calls as steps."""
    plan = dr.StepPlan.uniform(steps, steps // 2)
    encoder, light = Encoder(copy.deepcopy(network), 32), Light(32, 32)
    common: dict[str, Any] = {
        "networks": nn.ModuleDict({"encoder": encoder, "light": light}),
        "student": DualRate(encoder, light, PROCESS),
        "teacher": Plain(network, PROCESS), "process": PROCESS, "weighting": WEIGHTING,
        "states": (SegmentRollout if rollout == "A" else FullRollout)(plan, PROCESS),
        "pretraining": iterations // 2, "pretraining_states": ForwardPairs(plan, PROCESS),
        "backbone": encoder.net,
    }  # fmt: skip
    fit(alternating(common, network), 2 * iterations + iterations // 2, 5e-4)
    return Sampler(f"dual-rate student, {rollout}", common["student"], plan)


def alternating(common: dict[str, Any], network: Mlp) -> MomentMatching:
    auxiliary = copy.deepcopy(network)
    return MomentMatching(
        auxiliaries=nn.ModuleDict({"auxiliary": auxiliary}), auxiliary=Plain(auxiliary, PROCESS), **common
    )


def sliced_wasserstein(a: Tensor, b: Tensor) -> float:
    """Of two sets of as many points, over 64 directions spread evenly."""
    angle = torch.arange(64) * math.pi / 64
    directions = torch.stack((angle.cos(), angle.sin()))
    gap = (a @ directions).sort(0).values - (b @ directions).sort(0).values
    return gap.square().mean().sqrt().item()


def interval(values: list[float]) -> list[float]:
    """The 95% bootstrap interval of the mean."""
    chosen = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    return np.quantile(np.array(values)[chosen].mean(1), (0.025, 0.975)).tolist()


def table() -> str:
    """Markdown of what was measured."""
    header, lines = ("points", "steps", "heavy calls", "sliced Wasserstein distance"), []
    for row in json.loads(OUT.read_text())["rows"]:
        low, high = row["interval"]
        distance = f"{row['distance']:.3f} [{low:.3f}, {high:.3f}]"
        lines.append([row["name"], str(row["steps"] or "-"), str(row["heavy"] or "-"), distance])
    return markdown(header, lines, texts=1)


def samplers(options: argparse.Namespace) -> Iterator[Sampler]:
    network = teacher(options.teacher_iterations)
    torch.manual_seed(0)  # of the dual-rate students' new parts
    for steps in (256, 8, 4, 2, 1):
        yield Sampler("teacher", Plain(network, PROCESS), dr.StepPlan.uniform(steps))
    for version in ("alternating", "instant", "instant, Lambda = 1"):
        for steps in (8, 4, 2, 1):
            yield plain_student(network, steps, version, options.iterations)
    for rollout in ("A", "B"):
        yield dual_student(network, rollout, options.iterations)


def row(name: str, steps: int, heavy: int, sets: list[Tensor], others: list[Tensor], seconds: float) -> dict[str, Any]:
    """The measured distance, printed too."""
    values = [sliced_wasserstein(own, other) for own, other in zip(sets, others, strict=True)]
    mean, (low, high) = float(np.mean(values)), interval(values)
    print(f"| {name} | {steps} | {heavy} | {mean:.4f} | {low:.4f} to {high:.4f} | {seconds:.0f} |", flush=True)
    return {"name": name, "steps": steps, "heavy": heavy, "distance": mean, "interval": [low, high], "values": values}


def draw(pictures: dict[str, Tensor]) -> Figure:
    columns = 4
    figure = Figure(figsize=(2.1 * columns, 2.25 * -(-len(pictures) // columns)), layout="constrained")
    for i, (title, points) in enumerate(pictures.items()):
        axes = figure.add_subplot(-(-len(pictures) // columns), columns, i + 1)
        axes.scatter(points[:2000, 0], points[:2000, 1], s=0.5, color=PALETTE[0], rasterized=True)
        axes.set_title(title, fontsize=8, color=INK)
        axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), xticks=[], yticks=[], aspect="equal")
    return figure


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--iterations", default=3000, type=int, help="updates of a student")
    parser.add_argument("--teacher-iterations", default=8000, type=int)
    parser.add_argument("--out", default=OUT, type=Path)
    options = parser.parse_args()
    default = parser.get_default("iterations"), parser.get_default("teacher_iterations")
    if options.out == OUT and (options.iterations, options.teacher_iterations) != default:
        parser.error("the page is of the usual numbers of iterations: name another file, --out")
    torch.manual_seed(0)
    references = [exact(-(i + 1) * SIZE, SIZE) for i in range(2 * SETS)]
    print("| samples | steps | heavy calls | sliced W2 | 95% interval | s |\n|---|---:|---:|---:|---|---:|", flush=True)
    records = [row("exact", 0, 0, references[SETS:], references[:SETS], 0)]
    pictures = {"exact": references[0]}
    start = time.perf_counter()
    for sampler in samplers(options):
        sets = [sampler(i * SIZE) for i in range(SETS)]
        seconds, start = time.perf_counter() - start, time.perf_counter()
        plan = sampler.plan
        records.append(row(sampler.name, plan.num_steps, plan.num_heavy, sets, references[:SETS], seconds))
        pictures[f"{sampler.name}\nN = {plan.num_steps}: {records[-1]['distance']:.3f}"] = sets[0]
    keep(options.out, 1, iterations=options.iterations, rows=records)
    options.out.with_suffix(".png").write_bytes(png(draw(pictures)))


if __name__ == "__main__":
    main()
