"""Does a GPU compute what a CPU does, and how fast is it? What disagrees stops nothing: the last row lists it.

Agreement   networks of a few channels with random weights, in float32 (whole, no TF32) and in bfloat16, against the
            same on a CPU in float32: every sampler, every cache, CUDA graphs, the loss and gradient of every training
            method (the cases of tests/contracts). A difference is a root mean square over that of what is compared
Speed       milliseconds of a heavy and of a light call by batch, eager, compiled and as CUDA graphs; images a second of
            training; MFU
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dualrate as dr
from benchmarks import utilisation, workloads
from benchmarks.interleave import Spread, interleaved
from dualrate.denoisers.catalogue import DENOISERS, denoiser_named
from dualrate.denoisers.denoiser import abilities
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.experiment import Start
from dualrate.recipes import cifar10, fashion_mnist, imagenet
from dualrate.sampling.catalogue import SAMPLERS, make_step
from dualrate.system.device import record_graph, settle_products
from tools.gpu.piece import FAILED, Job, Piece, Row

NAME, DISAGREE = "right_and_fast", "what disagrees"
CPU = torch.device("cpu")
HALF = {"float32": False, "bfloat16": True}
ALLOWED = {  # bfloat16: twice or more what a CPU's own makes
    "sampler": {"float32": 1e-3, "bfloat16": 0.03},
    "cache": {"float32": 1e-3, "bfloat16": 0.05},
    "graphs": {"float32": 1e-6, "bfloat16": 1e-6},  # the same kernels
    "method": {"float32": 1e-3, "bfloat16": 0.03},
}
PROCESS = dr.GaussianProcess(Cosine())
SIDE, CLASSES, ROWS = 16, 3, 4


def network(conv: int, transformer: int, blocks: int = 1) -> dr.UViTConfig:
    levels = (dr.Level("conv", conv, 1), dr.Level("transformer", transformer, blocks))
    return dr.UViTConfig(SIDE, 1, levels, num_classes=CLASSES, embedding=32, head_dim=16)


FIT = dr.FitConfig(8, batch_size=8)
ONE, TWO = dr.OneNetwork(network(16, 32, blocks=3)), dr.TwoNetworks(network(16, 32), network(8, 16))
BOTH = dr.DenoisingConfig(dr.TimeSampler((2, 4)))
ONLY = dr.DenoisingConfig()


def size(tensors: Iterable[Tensor]) -> float:
    return sum(float(tensor.detach().double().cpu().square().sum()) for tensor in tensors) ** 0.5


def difference(results: list[Tensor], expected: list[Tensor]) -> float:
    """Relative difference, over all elements of all tensors."""
    apart = [
        result.detach().double().cpu() - wanted.detach().double().cpu()
        for result, wanted in zip(results, expected, strict=True)
    ]
    return size(apart) / size(expected)


def verdict(kind: str, precision: str, error: float) -> Row:
    """fine: False for NaN too."""
    allowed = ALLOWED[kind][precision]
    return {"error": error, "allowed": allowed, "fine": error <= allowed}


def random_model(networks: dr.OneNetwork | dr.TwoNetworks, device: torch.device, *, graphs: bool) -> dr.Model:
    """A model as built, but for weights that leave nothing zero."""
    torch.manual_seed(0)
    experiment = dr.Experiment("random", networks, BOTH if networks is TWO else ONLY, FIT)
    built, denoiser = networks.build(PROCESS)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)
    built.to(device).eval().requires_grad_(False)
    return dr.Model("random", experiment, built, denoiser, 0, "", graphs=graphs)


def drawn(kind: str, name: str, where: torch.device, precision: str, *, graphs: bool = False) -> list[Tensor]:
    """Images of the same seeds by a sampler of this name, or by a cache. Samplers that may reuse a context do."""
    model = random_model(TWO if kind == "sampler" else ONE, where, graphs=graphs).ready(bfloat16=HALF[precision])
    sampler = name if kind == "sampler" else "dpm++2m"
    reuses = kind == "cache" or SAMPLERS[name].markovian
    plan = dr.StepPlan.uniform(9, 3 if reuses else None)
    denoiser = model.denoiser
    if kind == "cache":
        denoiser = denoiser_named(name)(denoiser, PROCESS)
        plan = plan.renewing(abilities(denoiser).between)
    step, labels = make_step(sampler, PROCESS), [seed % CLASSES for seed in range(ROWS)]
    images = dr.sample_batches(
        denoiser, step, plan, (1, SIDE, SIDE), range(ROWS), labels, device=where, bfloat16=HALF[precision]
    )
    return list(images)


def contracts() -> Any:
    """The cases of every training method, which the tests keep complete."""
    tests = str(Path(__file__).resolve().parents[2] / "tests")
    if tests not in sys.path:
        sys.path.insert(0, tests)
    return importlib.import_module("contracts.test_method_contracts")


def gradients(case: str, where: torch.device, precision: str) -> list[Tensor]:
    """The loss of every phase of a method, and its gradients."""
    cases = contracts()
    experiment = cases.CASES[case]

    def load(run: str) -> dr.Model:
        model = cases.loaded(run)
        model.networks.to(where)
        return model

    def batch(iteration: int) -> Any:
        example = cases.batch_of(experiment, 8 * iteration)
        x, condition = example.x, None if example.given is None else example.given.float()
        return replace(example, x=x.float() if x.is_floating_point() else x, given=condition).to(where)

    settle_products(where, bfloat16=HALF[precision], trains=True)
    torch.manual_seed(0)
    start = Start(True, where, HALF[precision], load, batch, lambda text: None)
    method = experiment.method.prepare(experiment, start).method
    for seed, part in ((7, method.networks), (8, method.auxiliaries)):
        cases.randomised(part, seed)
        part.to(where)
    tensors: list[Tensor] = []
    for iteration, phase in cases.phases_of(method).values():
        data = batch(0)
        with torch.autocast(where.type, torch.bfloat16, enabled=HALF[precision]):
            loss = phase.loss(data, iteration, data.draws(0)).total
        parameters = [parameter for parameter in phase.parameters if parameter.requires_grad]
        slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
        tensors += [loss, *(torch.zeros(()) if slope is None else slope for slope in slopes)]
    return tensors


PAIR = dr.Experiment("x", TWO, BOTH, FIT)


def agreement(job: Job, precision: str) -> Iterator[tuple[str, str, Callable[[], float]]]:
    """Kind and name of each comparison, and what makes its difference."""
    few, device = slice(None, None, 15 if job.smoke else 1), job.device

    def beside(make: Callable[..., list[Tensor]], *of: str) -> Callable[[], float]:
        return lambda: difference(make(*of, device, precision), make(*of, CPU, "float32"))

    def beside_eager(name: str) -> Callable[[], float]:
        of = ("sampler", name, device, precision)
        return lambda: difference(drawn(*of, graphs=True), drawn(*of))

    for name in list(SAMPLERS)[few]:
        yield "sampler", name, beside(drawn, "sampler", name)
        if device.type == "cuda":
            yield "graphs", name, beside_eager(name)
    for name in list(DENOISERS)[few]:
        yield "cache", name, beside(drawn, "cache", name)
    for name in list(contracts().CASES)[few]:
        yield "method", name, beside(gradients, name)


def timed(job: Job, experiment: dr.Experiment, batch: int, mode: str) -> Row:
    """Median milliseconds and MFU of a heavy and of a light call."""
    built, denoiser = experiment.build()
    built.to(job.device).eval().requires_grad_(False)
    model = dr.Model(experiment.name, experiment, built, denoiser, 0, "")
    model = replace(model, compiled=mode == "compiled", graphs=mode == "graphs")
    half = job.device.type == "cuda"
    calls, cost = workloads.a_call_each(model, batch, half), model.call_cost
    rounds = interleaved(calls, job.device, seconds=0 if job.smoke else 1.5)
    row: dict[str, Any] = {}
    peak = utilisation.known_peak(job.device)
    for name, macs in (("heavy", cost.heavy), ("light", cost.light)):
        seconds = Spread.of([timing.wall for timing in rounds[name]]).median
        row[f"{name} ms"] = round(1e3 * seconds, 4)
        row[f"{name} MFU"] = peak and 2 * macs * batch / (peak * seconds)
    return row


def training_speed(job: Job, experiment: dr.Experiment, batch: int, mode: str) -> Row:
    """Images a second, and MFU. graphs: an iteration is one launch, what a trainer that recorded it would reach."""
    half = job.device.type == "cuda"
    sized = replace(experiment, fit=replace(experiment.fit, batch_size=batch))
    record = (record_graph if half else called_again) if mode == "graphs" else None
    work = workloads.training(sized, job.device, half, compiled=mode == "compiled", record=record)
    rounds = interleaved({"": work}, job.device, seconds=0 if job.smoke else 4)[""]
    seconds = Spread.of([timing.wall for timing in rounds]).median
    peak = utilisation.known_peak(job.device)
    share = peak and utilisation.flops_of(work) / (peak * seconds) if mode == "eager" else None
    return {"images a second": batch / seconds, "MFU": share}


def called_again(call: Callable[[], Any], device: torch.device) -> tuple[Callable[[], Any], Any]:
    """The call itself, in place of a recording, where there is no GPU."""
    return call, call()


def speed(job: Job) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Name and work of each row. Compiling takes longest, so it comes last."""
    large = imagenet.dual()
    pairs = {"imagenet-64": large, "fashion-mnist": fashion_mnist.dual(), "cifar10": cifar10.dual()}
    trainings = {"imagenet-64 heavy": (imagenet.heavy(), 64), "imagenet-64 pair": (large, 64)}
    trainings |= {"cifar10 pair": (pairs["cifar10"], 512), "fashion-mnist pair": (pairs["fashion-mnist"], 64)}
    batches: tuple[int, ...] = (1, 8, 64)
    if job.smoke:
        pairs, trainings, batches = {"tiny": PAIR}, {"tiny": (PAIR, 8)}, (2,)
    gpu = job.device.type == "cuda"
    for mode in ("eager", "graphs", "compiled") if gpu else ("eager", "graphs"):
        for name, pair in pairs.items():
            for batch in batches if gpu or mode == "eager" else ():
                yield f"calls of {name}, {mode}, batch {batch}", lambda p=pair, b=batch, m=mode: timed(job, p, b, m)
        for name, (experiment, batch) in trainings.items():
            yield f"training of {name}, {mode}", lambda m=experiment, b=batch, c=mode: training_speed(job, m, b, c)


def run(job: Job) -> bool:
    job.work.mkdir(parents=True, exist_ok=True)
    for precision in HALF:
        for kind, name, make in agreement(job, precision):
            job.row(f"{kind} {name} {precision}", lambda k=kind, p=precision, m=make: verdict(k, p, m()))
    for name, make in speed(job):
        job.row(name, make)
    wrong = [name for name, row in job.rows.items() if FAILED in row or row.get("fine") is False]
    missing = job.left <= 0
    job.put(DISAGREE, {"rows": wrong, "of": len(job.rows), "cut off": missing})
    return not missing


PIECE = Piece(NAME, "does the GPU compute what a CPU does, and how fast", run, calls=1)
