"""What a training will take, predicted: memory of a GPU, time, price. Nothing here was measured on a GPU.

    memory    weights + gradients + Adam + averages, as their tensors have it, parted between S GPUs where these hold
              them together, + activations of a pass (training/memory.py)
    compute   FLOPs of an iteration / (GPUs x peak x utilisation); the utilisation is an assumption
    exchange  each GPU sends what a ring does, at EFFICIENCY of the bandwidth of the ring's slowest link: that of a GPU
              in a machine; between machines, of the network cards of all GPUs of one that are in the ring.
              P bytes of gradients in float32, n GPUs:
              added up once an iteration                                     2 (n - 1)/n P
              or, where S hold the weights together, in every pass           3 (S - 1)/S P + 2 (1 - S/n) P/S
              (gathered forward and backward and added up among the S, then added up between the groups)
    launching a GPU's host takes LAUNCH for every operator of every pass; fewer are left where blocks are compiled, how
              many is not known
    time      where all GPUs hold everything compute + what of exchange the backward pass of the last pass does not
              hide, 2/3 of that pass (training/distributed.py); the longer of the two where weights are held together,
              since torch gathers ahead; launching, if it takes longer and nothing is compiled

Memory is an upper bound where an iteration is one pass: then gradients grow as activations go. A compiled network
keeps fewer activations than counted here. Students whose rollouts gather weights more often exchange more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dualrate.config.ranges import GPUCount, Ranged, Share
from dualrate.diffusion.values import Batch
from dualrate.experiment.experiment import Experiment, Model, Start
from dualrate.training.accelerators import Accelerator
from dualrate.training.config import FitConfig
from dualrate.training.memory import pass_cost, recompute, weightless, widen
from dualrate.training.method import Method

EFFICIENCY = 0.8  # of a link's bandwidth, assumed
BACKWARD = 2 / 3  # of the time of a pass, by FLOPs
LAUNCH = 5e-6  # seconds; assumed
SPARE = 0.1  # of a GPU's memory: CUDA's own, workspaces, gaps; assumed
ADAM = 2  # moments of a parameter

ROWS = 64  # images by which the activations of phases are compared


@dataclass(frozen=True)
class Needs:
    """Of a training, whatever it runs on, in bytes.

    weights:   of all networks, frozen ones too
    trained:   weights of the phase that has most, and so its gradients
    adam, ema: moments and averages, of all phases
    fixed, per_image: activations of a pass, and what an image adds to them
    summed:    gradients of an iteration
    flops:     of an iteration, for an image
    launches:  operators of a pass of every phase of an iteration
    image:     as it is read
    """

    weights: float
    trained: float
    adam: float
    ema: float
    fixed: float
    per_image: float
    summed: float
    flops: float
    launches: float
    image: int


@dataclass(frozen=True)
class Cluster(Ranged):
    """The GPUs of a training, and how it uses them.

    node: GPUs of a machine; shard: how many hold the weights together; utilisation: share of the peak that is reached
    """

    device: Accelerator
    gpus: GPUCount = 1
    node: GPUCount = 8
    shard: GPUCount = 1
    utilisation: Share = 0.35

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpus % self.shard:
            raise ValueError(f"{self.shard} GPUs hold the weights together, of {self.gpus}: these must be a multiple")

    def seconds(self, size: float, gpus: int, apart: int = 1) -> float:
        """For each of a ring of GPUs to send so many bytes. apart: from one of them to the next, by number."""
        inside = max(self.node // apart, 1)
        speed = min(self.device.within, inside * self.device.between) if gpus > inside else self.device.within
        return size / (EFFICIENCY * speed)


@dataclass(frozen=True)
class Prediction:
    """Bytes of one GPU, seconds of an iteration; images are those of one GPU in one pass.

    most_images: how many fit; 0 if not even one does
    exchange:    seconds of an iteration in which GPUs send each other something
    launching:   seconds of an iteration that a host takes to launch all, were nothing compiled
    """

    weights: float
    gradients: float
    adam: float
    ema: float
    activations: float
    memory: float
    images: int
    passes: int
    most_images: int
    flops: float
    compute: float
    exchange: float
    launching: float
    iteration: float
    hours: float
    gpu_hours: float
    images_per_second: float
    bytes_per_second: float

    @property
    def used(self) -> float:
        """Bytes of one GPU."""
        return self.weights + self.gradients + self.adam + self.ema + self.activations

    @property
    def fits(self) -> bool:
        return self.images <= self.most_images


def needs(experiment: Experiment, load: Callable[[str], Experiment]) -> Needs:
    """What an experiment's training needs, found by running its phases without numbers: up to a minute.

    load: the experiment of a run that it learns from, such as a teacher
    Raises ValueError for a method that computes on images before it begins.
    """
    fit, bfloat16 = experiment.fit, experiment.fit.precision != "float32"
    with weightless() as modules:
        method = _method(experiment, load, bfloat16)
    if fit.recompute_from is not None:
        networks = (*method.networks.values(), *method.auxiliaries.values())
        widen(networks)
        recompute(networks, fit.recompute_from)
    last = range(max(fit.iterations - 2, 0), fit.iterations)  # phases may alternate
    phases = {phase.name: (i, phase) for i in (0, *last) for phase in method.phases(i)}
    repeated = [phase.name for i in last for phase in method.phases(i)]
    shape = experiment.batch_shape
    costs = {
        name: pass_cost(method, phase, shape, i, bfloat16=bfloat16)
        for name, (i, phase) in phases.items()
        if name in repeated
    }
    trained = {name: _size(phase.parameters) for name, (_, phase) in phases.items()}
    sampled = {id(parameter) for parameter in method.networks.parameters()}
    averaged = [p for _, phase in phases.values() for p in phase.parameters if id(p) in sampled]
    most = max(costs.values(), key=lambda cost: cost.activations(ROWS))
    return Needs(
        weights=_size(p for module in modules for p in module.parameters(recurse=False)),
        trained=max(trained.values()),
        adam=ADAM * sum(trained.values()),
        ema=_size(averaged),
        fixed=most.fixed,
        per_image=most.per_image,
        summed=sum(trained[name] for name in repeated) / len(last),
        flops=sum(costs[name].flops_per_image for name in repeated) / len(last),
        launches=sum(costs[name].launches for name in repeated) / len(last),
        image=torch.Size(shape).numel(),
    )


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _method(experiment: Experiment, load: Callable[[str], Experiment], bfloat16: bool) -> Method:
    """As a run that goes on gets it, for weights change nothing here."""

    def model(run: str) -> Model:
        other = load(run)
        networks, denoiser = other.build()
        return Model(other.name, other, networks.eval().requires_grad_(False), denoiser, 0, weights_hash="")

    def batch(iteration: int) -> Batch:
        raise ValueError(
            f"{experiment.name} computes on images before its first iteration, so what it takes is not predicted: of a "
            "student pass --version alternating, or begin the run and read images_per_second in its metrics.jsonl"
        )

    start = Start(False, torch.device("meta"), bfloat16, model, batch, note=lambda text: None)
    return experiment.method.prepare(experiment, start).method


def predict(needs: Needs, fit: FitConfig, cluster: Cluster) -> Prediction:
    """Raises ValueError for passes of fewer images than there are GPUs."""
    rows = min(fit.micro_batch or fit.batch_size, fit.batch_size)
    if rows < cluster.gpus:
        raise ValueError(
            f"{rows} images a pass are fewer than {cluster.gpus} GPUs: raise --fit.micro-batch or --fit.batch-size"
        )
    images, passes = -(-rows // cluster.gpus), -(-fit.batch_size // rows)
    parts = {
        "weights": needs.weights / cluster.shard,
        "gradients": needs.trained / cluster.shard,
        "adam": needs.adam / cluster.shard,
        "ema": needs.ema / cluster.shard,
    }
    spare = (1 - SPARE) * cluster.device.memory - sum(parts.values()) - needs.fixed
    peak = cluster.device.flops * (0.5 if fit.precision == "float32" else 1)  # of TF32
    compute = passes * images * needs.flops / (peak * cluster.utilisation)
    exchange = _exchange(needs.summed, passes, cluster)
    if cluster.shard == 1:
        iteration = compute + max(0.0, exchange - BACKWARD * compute / passes)
    else:
        iteration = max(compute, exchange)
    launching = passes * needs.launches * LAUNCH
    if not fit.compile:
        iteration = max(iteration, launching)
    hours = fit.iterations * iteration / 3600
    return Prediction(
        **parts,
        activations=needs.fixed + images * needs.per_image,
        memory=cluster.device.memory,
        images=images,
        passes=passes,
        most_images=max(int(spare / needs.per_image), 0),
        flops=needs.flops,
        compute=compute,
        exchange=exchange,
        launching=launching,
        iteration=iteration,
        hours=hours,
        gpu_hours=hours * cluster.gpus,
        images_per_second=fit.batch_size / iteration,
        bytes_per_second=fit.batch_size * needs.image / iteration,
    )


def _exchange(size: float, passes: int, cluster: Cluster) -> float:
    """Seconds of an iteration. size: bytes of gradients."""
    n, together = cluster.gpus, cluster.shard
    if together == 1:
        return cluster.seconds(2 * (n - 1) / n * size, n)
    within = cluster.seconds(3 * (together - 1) / together * size, together)
    return passes * (within + cluster.seconds(2 * (1 - together / n) * size / together, n // together, together))
