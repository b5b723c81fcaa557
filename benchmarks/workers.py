"""What `--workers` gains on this machine: images per second, drawn and scored, by the number of workers.

    python -m benchmarks.workers [--counts 1 2 4] [--model weights/fashion-mnist-dual-45]

Wall time has what else runs on the machine in it; CPU seconds of an image, which the workers themselves count, have
not: where they rise with the number, the workers are in each other's way (memory, caches, shared cores).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dualrate as dr
from benchmarks.child import ROOT
from dualrate.drawing.evaluator import SHIPPED
from dualrate.metrics.features import FeatureNet
from dualrate.system.workers import Mapper, Workers


@dataclass(frozen=True)
class Rate:
    """Images per second of wall time, and CPU seconds per image."""

    images: float
    cpu: float


def scored(drawer: dr.Drawer, net: FeatureNet, seeds: range) -> float:
    """CPU seconds of drawing a block and its features."""
    start = time.process_time()
    net.features(drawer.draw(seeds).images)
    return time.process_time() - start


def rate(drawer: dr.Drawer, net: FeatureNet, mapper: Mapper, count: int, blocks: int) -> Rate:
    """Of `blocks` batches for each of `count` workers, which have done one already: they are there, and warm."""
    size = drawer.batch_size
    batches = [range(first, first + size) for first in range(0, count * blocks * size, size)]
    job = partial(scored, drawer.settled, net)
    for _ in mapper(job, batches[:count]):
        pass
    start = time.perf_counter()
    cpu = sum(seconds for _, seconds in mapper(job, batches))
    return Rate(len(batches) * size / (time.perf_counter() - start), cpu / (len(batches) * size))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--blocks", type=int, default=10, help="of every worker")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--model", type=Path, default=ROOT / "weights/fashion-mnist-dual-45")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    model = dr.load(options.model, device=options.device)
    drawer = dr.Choice(steps=16, heavy=4).drawer(model, batch_size=options.batch)
    net = FeatureNet.load(SHIPPED / "fashion-mnist")
    first: Rate | None = None
    for count in options.counts:
        with Workers(count, options.device) as workers:
            found = rate(drawer, net, workers, count, options.blocks)
        first = first or found
        print(
            f"{count} workers: {found.images:7.1f} images/s, {found.images / first.images:.2f} times the first; "
            f"{1000 * found.cpu:.1f} ms of CPU an image, {found.cpu / first.cpu:.2f} times the first",
            flush=True,
        )


if __name__ == "__main__":
    main()
