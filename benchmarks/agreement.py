"""Does a device compute what a CPU computes: network calls, every sampler, CUDA graphs, training, resuming.

    python -m benchmarks.agreement [--device cuda] [--out FILE]

Networks of a few channels with random weights, called as commands call them: in float32 (whole, no TF32), or in
bfloat16 with their weights held so. Everything is compared with the same on a CPU in float32. A difference is a root
mean square over that of what is compared; of trained weights, over how far they moved since the first checkpoint.
Images by calls that are recorded as CUDA graphs are compared with those of the same device without. Ends with 3 if any
is too large.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

import dualrate as dr
from dualrate.denoisers.denoiser import DualRate
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.experiment import DataConfig, Experiment
from dualrate.methods.denoising import DenoisingConfig
from dualrate.recipes.students import StudentRecipe, dual_student
from dualrate.runs.train import train
from dualrate.sampling.catalogue import SAMPLERS, make_step
from dualrate.sampling.covariance import Bands, CovarianceTable
from dualrate.sampling.trajectory import sample_batches
from dualrate.system.device import Call, Recorded, graph_calls, record
from dualrate.system.environment import environment
from dualrate.system.files import write_whole
from dualrate.system.progress import Silent
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig
from dualrate.training.optim import OptimConfig

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
ALLOWED: dict[str, dict[Precision, float]] = {  # bfloat16: twice or more what a CPU's own makes
    "call": {"float32": 1e-4, "bfloat16": 0.03},
    "sampler": {"float32": 1e-3, "bfloat16": 0.03},
    "graphs": {"float32": 1e-6, "bfloat16": 1e-6},  # the same kernels
    "training": {"float32": 0.05, "bfloat16": 0.15},
    "resume": {"float32": 0.01, "bfloat16": 0.05},
}
TOO_LARGE = 3  # the exit code
CPU = torch.device("cpu")
PROCESS = dr.GaussianProcess(Cosine())
SIDE, CLASSES, ROWS = 16, 3, 4
ITERATIONS = 8


def network(conv: int, transformer: int) -> dr.UViTConfig:
    levels = (dr.Level("conv", conv, 1), dr.Level("transformer", transformer, 1))
    return dr.UViTConfig(SIDE, 1, levels, num_classes=CLASSES, embedding=32, head_dim=16)


FIT = FitConfig(ITERATIONS, batch_size=8, optim=OptimConfig(warmup=1), checkpoint_every=2, keep=100)
ONE, TWO = dr.OneNetwork(network(16, 32)), dr.TwoNetworks(network(16, 32), network(8, 16))


@dataclass(frozen=True)
class Finding:
    """error: a share; allowed: what it may be."""

    kind: str
    what: str
    precision: Precision
    error: float
    allowed: float

    @property
    def fine(self) -> bool:
        return self.error <= self.allowed  # False for NaN

    def __str__(self) -> str:
        sign = "ok" if self.fine else "TOO LARGE"
        return f"{self.kind:9}{self.what:28}{self.precision:10}{self.error:10.2e} of {self.allowed:7.0e}  {sign}"


def finding(kind: str, what: str, precision: Precision, error: float) -> Finding:
    return Finding(kind, what, precision, error, ALLOWED[kind][precision])


def size(tensors: Iterable[Tensor]) -> float:
    return sum(float(tensor.double().cpu().square().sum()) for tensor in tensors) ** 0.5


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Relative, over all elements of all tensors."""
    apart = [one.double().cpu() - other.double().cpu() for one, other in zip(found, expected, strict=True)]
    return size(apart) / size(expected)


def random_model() -> dr.Model:
    """A pair as built, but for weights that leave nothing zero."""
    torch.manual_seed(0)
    experiment = Experiment("random", TWO, DenoisingConfig(dr.TimeSampler((2, 4))), FIT)
    networks, denoiser = TWO.build(PROCESS)
    for parameter in networks.parameters():
        nn.init.normal_(parameter, std=0.3)
    return dr.Model("random", experiment, networks.eval().requires_grad_(False), denoiser, 0, "")


def on(device: torch.device, model: dr.Model) -> dr.Model:
    """A copy there."""
    networks, denoiser = copy.deepcopy((model.networks, model.denoiser))
    networks.to(device)
    return replace(model, networks=networks, denoiser=denoiser)


def ready(device: torch.device, model: dr.Model, precision: Precision) -> tuple[DualRate, bool]:
    """How commands call a copy there; and whether under autocast."""
    half = precision == "bfloat16"
    denoiser = on(device, model).ready(bfloat16=half).denoiser
    assert isinstance(denoiser, DualRate)
    return denoiser, half


def calls(device: torch.device) -> Iterator[Finding]:
    """A heavy call and a light one, on the same inputs."""
    torch.manual_seed(1)
    model = random_model()
    z, t = torch.randn(ROWS, 1, SIDE, SIDE), torch.linspace(0.2, 0.8, ROWS, dtype=torch.float64)

    def outputs(where: torch.device, precision: Precision) -> dict[str, list[Tensor]]:
        (net, half), cond = ready(where, model, precision), dr.Cond(torch.arange(ROWS, device=where) % CLASSES)
        with torch.no_grad(), torch.autocast(where.type, torch.bfloat16, enabled=half):
            context = net.encode(z.to(where), t.to(where), cond)
            light = net.denoise(z.to(where), 0.9 * t.to(where), context.aged(), cond)
        return {"heavy": list(context.features), "light": [light]}

    expected = outputs(CPU, "float32")
    for precision in PRECISIONS:
        for name, found in outputs(device, precision).items():
            yield finding("call", name, precision, difference(found, expected[name]))


def samplers(device: torch.device) -> Iterator[Finding]:
    """Images of the same seeds, by every sampler; those that may reuse a context do."""
    model = random_model()
    table = CovarianceTable.of_white_noise(Bands((1, SIDE, SIDE), rings=4))

    recorded: list[torch.device] = []

    def counted(call: Call, where: torch.device) -> Recorded:
        recorded.append(where)
        return record(call, where)

    def images(name: str, where: torch.device, precision: Precision, *, graphs: bool = False) -> list[Tensor]:
        plan = dr.StepPlan.uniform(6, 2 if SAMPLERS[name].markovian else None)
        step, seeds = make_step(name, PROCESS, plan=plan, table=table), range(ROWS)
        net, half = ready(where, model, precision)
        for network in (net.encoder, net.light) if graphs else ():
            graph_calls(network, counted)
        labels = [seed % CLASSES for seed in seeds]
        return list(sample_batches(net, step, plan, (1, SIDE, SIDE), seeds, labels, device=where, bfloat16=half))

    for name in SAMPLERS:
        expected = images(name, CPU, "float32")
        for precision in PRECISIONS:
            found = images(name, device, precision)
            yield finding("sampler", name, precision, difference(found, expected))
            if device.type == "cuda":
                recorded.clear()
                again = images(name, device, precision, graphs=True)
                yield finding("graphs", name, precision, difference(again, found) if recorded else math.inf)


def weights(run: Path, iteration: int) -> list[Tensor]:
    """Raw and averaged ones of a checkpoint."""
    saved = checkpoint.load(run / "checkpoints" / f"step-{iteration:08d}")
    return [tensor for named in (saved.tensors["model"], saved.weights()) for _, tensor in sorted(named.items())]


def moved(found: Path, expected: Path) -> float:
    """How far apart two runs end, over how far the second came."""
    ends = weights(found, ITERATIONS), weights(expected, ITERATIONS)
    way = [end - start for end, start in zip(ends[1], weights(expected, 2), strict=True)]
    return size([one - other for one, other in zip(*ends, strict=True)]) / size(way)


def trainings(device: torch.device, room: Path) -> Iterator[Finding]:
    """Runs of each method: on the device against the CPU, and with a stop half-way against without."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, SIDE, SIDE), dtype=np.uint8)
    np.savez(room / "noise.npz", images=pixels, labels=np.arange(64) % CLASSES)
    data, both = DataConfig(str(room / "noise.npz")), DenoisingConfig(dr.TimeSampler((2, 4)))
    denoising = {"single": (ONE, DenoisingConfig()), "dual-rate": (TWO, both)}
    cases = {name: Experiment("x", networks, method, FIT, data) for name, (networks, method) in denoising.items()}

    def trained(experiment: Experiment, where: torch.device, precision: Precision, name: str, *stops: int) -> Path:
        out = room / f"{name}-{where.type}-{precision}-{len(stops)}".replace(" ", "-")
        for stop in (*stops, ITERATIONS):
            asked = replace(experiment.fit, iterations=stop, precision=precision)
            train(replace(experiment, fit=asked), out, device=where, progress=Silent())
        return out

    teacher = trained(cases["single"], CPU, "float32", "teacher")
    recipe = StudentRecipe("x", TWO.light, FIT)
    cases["student"] = dual_student(recipe, str(teacher), 4, 2, pretraining=1)
    for name, experiment in cases.items():
        expected = trained(experiment, CPU, "float32", f"expected {name}")
        for precision in PRECISIONS:
            straight = trained(experiment, device, precision, name)
            yield finding("training", name, precision, moved(straight, expected))
            stopped = trained(experiment, device, precision, name, ITERATIONS // 2)
            yield finding("resume", name, precision, moved(stopped, straight))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device, findings = torch.device(options.device), []
    with tempfile.TemporaryDirectory() as room, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for found in chain(calls(device), samplers(device), trainings(device, Path(room))):
            print(found, flush=True)
            findings.append(found)
            if options.out:  # a row at a time, since the time may be over before the last
                rows = [asdict(one) | {"fine": one.fine} for one in findings]
                figures = {"environment": environment(device), "rows": rows}
                write_whole(options.out, json.dumps(figures, indent=1) + "\n")
    large = sum(not found.fine for found in findings)
    print(f"{large} of {len(findings)} differences are too large")
    raise SystemExit(TOO_LARGE if large else 0)


if __name__ == "__main__":
    main()
