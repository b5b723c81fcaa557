"""What an image costs in time and memory: alone, and in batches of the size from which on larger ones gain nothing.

The networks' calls are what a batch size acts on, so the size is found on them (once per model), and then whole images
are timed at it.

What a comparison has time for: where time is short fewer images, then fewer contenders, the most useful first.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import TypeVar

import torch

from dualrate.compare.contender import Contender
from dualrate.config.ranges import Precision
from dualrate.data.latent_set import DrawnLatents
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.measure import call_seconds
from dualrate.experiment.experiment import Model
from dualrate.runs.store import load
from dualrate.sampling.catalogue import sampler_named
from dualrate.sampling.cost import CallCost
from dualrate.system.device import keep_freed_memory, memory_shortage, peak_memory
from dualrate.system.workers import leave_with_parent

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


INCREMENT = 250  # images by which a contender has more or fewer
FEWEST = 2  # contenders that are measured however short the time is
Item = TypeVar("Item")


def levels(most: int, fewest: int) -> list[int]:
    """Numbers of images to choose from, in descending order: `most`, and multiples of INCREMENT from `fewest` on."""
    return [most, *reversed([n for n in range(INCREMENT, most, INCREMENT) if n >= fewest])]


def affordable(
    contenders: Sequence[Contender],
    seconds_of: Callable[[Contender, int], float],
    seconds: float,
    images: Sequence[int],
    *,
    wanted: int,
) -> tuple[list[Contender], int]:
    """Whom to measure, and on how many images: on the most that leave time for `wanted` contenders, else the fewest.

    contenders: the most useful first; FEWEST of them are among the result whatever it takes
    seconds_of: what so many images of a contender take
    images:     to choose from, in descending order
    """
    chosen: list[Contender] = []
    for count in images:
        chosen, spent = [], 0.0
        for contender in contenders:
            takes = seconds_of(contender, count)
            if spent + takes <= seconds or len(chosen) < FEWEST:
                chosen, spent = [*chosen, contender], spent + takes
        if len(chosen) >= wanted and spent <= seconds:
            return chosen, count
    return chosen, images[-1]


def useful_first(contenders: Sequence[Contender], macs: Mapping[str, int]) -> list[Contender]:
    """What the user named; then the runs in turns, each under the best samplers first, at costs spread out.

    macs: of an image, by a contender's key
    """

    def kind(one: Contender) -> tuple[int, str, float]:
        return sampler_named(one.sampler).rank, one.sampler, -one.gamma

    def usual(run: Path) -> list[Contender]:
        own = sorted((one for one in contenders if one.run == run and not one.named), key=lambda one: macs[one.key])
        alike = ([one for one in own if kind(one) == found] for found in sorted(set(map(kind, own))))
        return [one for group in alike for one in middles_first(group)]

    named = [one for one in contenders if one.named]
    return [*named, *round_robin([usual(run) for run in dict.fromkeys(one.run for one in contenders)])]


def middles_first(items: Sequence[Item]) -> list[Item]:
    """The middle one, then the middles of both halves in turns: however few are taken, they are spread out."""
    if not items:
        return []
    middle = len(items) // 2
    return [items[middle], *round_robin([middles_first(items[:middle]), middles_first(items[middle + 1 :])])]


def round_robin(lists: Sequence[Sequence[Item]]) -> list[Item]:
    """The first of every list, the second of every list, and so on."""
    return [item for item in chain.from_iterable(zip_longest(*lists)) if item is not None]
