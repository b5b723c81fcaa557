"""What an image costs in time and memory: alone, and in batches of the size from which on larger ones gain nothing.

The networks' calls are what a batch size acts on, so the size is found on them (once per model), and then whole images
are timed at it.
"""

from __future__ import annotations

import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

import torch

from dualrate.compare.contender import Contender
from dualrate.config.ranges import Precision
from dualrate.data.given_latents import DrawnLatents
from dualrate.experiments.experiment import Model
from dualrate.machine.device import memory_shortage, peak_memory
from dualrate.machine.malloc import keep_freed_memory
from dualrate.machine.workers import leave_with_parent
from dualrate.measuring.drawer import Drawer
from dualrate.measuring.measure import call_seconds
from dualrate.runs.store import load
from dualrate.sampling.cost import CallCost

GAIN = 1.05  # a batch twice as large that makes fewer than this many times the images per second is not worth it
LARGEST_BATCH = 1024
CALLING = 0.3  # seconds that a call is timed for, at least


@dataclass(frozen=True)
class Speed:
    """Seconds per image, in batches of one and of `batch`; all medians of measurements of their own."""

    alone: float
    batched: float
    batch: int


def time_calls(model: Model, batch: int, precision: Precision) -> CallCost:
    """Seconds of a row in calls of `batch` rows, each timed for CALLING."""
    return call_seconds(model, batch, seconds=CALLING, precision=precision)


def saturating_batch(drawer: Drawer) -> int:
    """The batch size, a power of two, from which on doubling it makes less than 5% more images per second.

    Twice doubled, for a single measurement may be disturbed.
    """

    def seconds_per_image(batch: int) -> float:
        return drawer.cost.where(time_calls(drawer.model, batch, drawer.precision))

    best, best_seconds, batch = 1, seconds_per_image(1), 1
    while batch < min(4 * best, LARGEST_BATCH):
        batch *= 2
        try:
            seconds = seconds_per_image(batch)
        except RuntimeError as error:
            if not memory_shortage(error):
                raise
            break
        if best_seconds / seconds >= GAIN:
            best, best_seconds = batch, seconds
    return best


def speed(drawer: Drawer, batch: int, *, repeats: int = 3) -> Speed:
    """Seconds of whole images, networks and sampler; the median of `repeats` batches each."""

    def seconds_per_image(size: int) -> float:
        sized = replace(drawer, batch_size=size)
        if drawer.model.compiled or drawer.model.graphs:
            sized.draw(range(size))  # compiles or records what was not called yet
        return statistics.median(sized.draw(range(size)).seconds for _ in range(repeats)) / size

    return Speed(seconds_per_image(1), seconds_per_image(batch), batch)


def memory_of(
    contender: Contender,
    batch: int,
    latents: DrawnLatents | None = None,
    *,
    device: torch.device,
    precision: Precision = "auto",
) -> int:
    """Bytes held at most while a batch is drawn, in a process of its own: torch's on a GPU, all of it on a CPU.

    latents: see `Model`; precision: see `Drawer`
    """
    few = latents and replace(latents, z_0=latents.z_0[:batch].clone())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=leave_with_parent) as pool:
        try:
            how = (str(device), torch.get_num_threads(), few, precision)
            return pool.submit(_peak, contender, batch, *how).result()
        except BrokenProcessPool as error:
            raise MemoryError(
                f"measuring the memory of {contender.network} in batches of {batch} was killed, perhaps for lack of "
                "memory: what was drawn is kept; try again on a machine with more"
            ) from error


def _peak(
    contender: Contender, batch: int, device: str, threads: int, latents: DrawnLatents | None, precision: Precision
) -> int:
    torch.set_num_threads(threads)
    keep_freed_memory()
    loaded = load(contender.run, device=device, note=lambda text: None)
    drawer = contender.drawer(loaded if latents is None else loaded.with_latents(latents))
    replace(drawer, batch_size=batch, precision=precision).draw(range(batch))
    return peak_memory(drawer.model.device)
