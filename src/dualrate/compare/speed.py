"""What an image costs in time and memory: alone, and in batches of the size from which on larger ones gain nothing.

The networks' calls are what a batch size acts on, so the size is found on them (once per model), and then whole images
are timed at it.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from dualrate.compare.contenders import Contender
from dualrate.experiments.experiment import Model
from dualrate.machine.malloc import keep_freed_memory
from dualrate.measuring.measure import draw, seconds_of_calls
from dualrate.runs.store import load
from dualrate.sampling.cost import PlanCost

GAIN = 1.05  # a batch twice as large that makes fewer than this many times the images per second is not worth it
LARGEST_BATCH = 1024
CALLING = 0.3  # seconds that a call is timed for, at least


@dataclass(frozen=True)
class Speed:
    """Seconds per image, in batches of one and of `batch`; all medians of measurements of their own."""

    alone: float
    batched: float
    batch: int


def saturating_batch(model: Model, cost: PlanCost, *, device: torch.device) -> int:
    """The batch size, a power of two, from which on doubling it makes less than 5% more images per second.

    Twice doubled, for a single measurement may be disturbed.
    """

    def seconds_per_image(batch: int) -> float:
        heavy, light = seconds_of_calls(model, batch, device=device, seconds=CALLING)
        return (cost.heavy_calls * heavy + cost.light_calls * light) / batch

    best, best_seconds, batch = 1, seconds_per_image(1), 1
    while batch < min(4 * best, LARGEST_BATCH):
        batch *= 2
        try:
            seconds = seconds_per_image(batch)
        except torch.OutOfMemoryError:
            break
        if best_seconds / seconds >= GAIN:
            best, best_seconds = batch, seconds
    return best


def speed(
    contender: Contender, model: Model, batch: int, cost: PlanCost, *, device: torch.device, repeats: int = 3
) -> Speed:
    """Seconds of whole images, networks and sampler; the median of `repeats` batches each."""

    def seconds_per_image(size: int) -> float:
        def drawn() -> float:
            step, plan = contender.step(model), contender.plan
            return draw(model, step, plan, range(size), batch_size=size, device=device, cost=cost).seconds

        return statistics.median(drawn() for _ in range(repeats)) / size

    return Speed(seconds_per_image(1), seconds_per_image(batch), batch)


def peak_memory(contender: Contender, batch: int, *, device: torch.device) -> int:
    """Bytes held at most while a batch is drawn, in a process of its own: torch's on a GPU, all of it on a CPU."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_peak, contender, batch, str(device), torch.get_num_threads()).result()
        except BrokenProcessPool as error:
            raise MemoryError(
                f"measuring the memory of {contender.network} in batches of {batch} was killed, perhaps for lack of "
                "memory: what was drawn is kept; try again on a machine with more"
            ) from error


def _peak(contender: Contender, batch: int, device: str, threads: int) -> int:
    torch.set_num_threads(threads)
    keep_freed_memory()
    model = contender.model(load(contender.run, device=device, note=lambda text: None))
    draw(model, contender.step(model), contender.plan, range(batch), batch_size=batch, device=device)
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "darwin":
        import resource  # not on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of macOS, in bytes
    # Linux's ru_maxrss of a child begins at its parent's size
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
