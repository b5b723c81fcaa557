"""Samples in a folder: every image is written as it is drawn, so that the same call goes on after a kill.

    OUT/sample.json     what the images are of; images of anything else are never put beside them
    OUT/<seed>.png      one image, whole or not there; of a model of texts <seed>.txt
    OUT/grid.png        the first hundred; of texts samples.txt, with all
    OUT/images.npz      if asked for: the layout of the reference evaluators

Batches are cut at multiples of the batch size from the first seed, and a batch that lacks an image is drawn again as a
whole: so what a resumed call draws has the bits of an uninterrupted one. No more than one batch is held in memory, and
one in each worker.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dualrate.config.ranges import as_path
from dualrate.diffusion.values import Shape
from dualrate.machine.environment import environment
from dualrate.machine.files import write_whole, written_aside
from dualrate.machine.guards import run_lock
from dualrate.machine.progress import ImageProgress
from dualrate.machine.workers import Mapper, in_turn
from dualrate.measuring.drawer import Drawer, plain_step
from dualrate.measuring.sample_files import SampleFiles, sample_files
from dualrate.measuring.sample_record import NPZ, Record, read_record
from dualrate.metrics.origin import PIXELS
from dualrate.report.files import write_npz
from dualrate.sampling.cost import PlanCost


@dataclass(frozen=True)
class Written:
    """What a call of `write_samples` did.

    drawn:   images that it drew, in so many seconds of networks and sampler
    cost:    of one image
    files:   of the images, in the order of their seeds
    """

    drawn: int
    seconds: float
    cost: PlanCost
    precision: str
    files: list[Path]


def write_samples(
    drawer: Drawer,
    seeds: range,
    out: Path | str,
    *,
    npz: bool = False,
    progress: ImageProgress | None = None,
    mapper: Mapper = in_turn,
    command: str = "dualrate.write_samples",
) -> Written:
    """Draw the images of these seeds that `out` lacks, and write each at once; then the grid, and images.npz.

    drawer:   of precision "auto": that of the images that are there, if any
    progress: called with (images there, of how many) at first and after every batch
    mapper:   draws the batches; they are written here
    command:  kept in sample.json
    Raises ValueError, before anything is written, for what cannot be drawn, and for an `out` that holds samples of
    another kind or anything else; OSError for a file that cannot be written or read, with its name, and for a folder
    that another process is filling. That error and a KeyboardInterrupt say how many images are there.
    """
    if not seeds or seeds.step != 1:
        raise ValueError(f"expected seeds one after the other, got {seeds}")
    out, model, cost, found = as_path(out), drawer.model, drawer.cost, read_record(as_path(out))
    kind = sample_files(model)
    if drawer.precision == "auto" and found is not None:
        drawer = replace(drawer, precision="bfloat16" if found.origin.precision.startswith("bfloat16") else "float32")
    ran_on = {"device": str(model.device), **environment(model.device)}
    record = Record(
        model=model.name,
        path=str(model.path.resolve()) if model.path else "",
        iteration=model.iteration,
        sampler=drawer.sampler,
        step=plain_step(drawer.step),
        plan=json.loads(drawer.plan.to_json()),
        guidance=drawer.guidance,
        first_seed=seeds.start,
        images=len(seeds),
        origin=drawer.origin(PIXELS),
        cost={"heavy_calls": cost.heavy_calls, "light_calls": cost.light_calls, "macs": cost.macs, "flops": cost.flops},
        ending=kind.ending,
        calls=({"command": command, "batch_size": drawer.batch_size, **ran_on},),
    )
    if found is not None:
        found.require_same(record, out)

    out.mkdir(parents=True, exist_ok=True)
    with run_lock(out, "filled with samples"):
        found = read_record(out)  # again: before the lock was held, another process may have been here
        if found is not None:
            found.require_same(record, out)
        folder = _Folder(out, record.joined(found), seeds, kind, model.experiment.noun)
        with folder.naming_progress():
            drawn, seconds = folder.fill(drawer, progress or (lambda done, total: None), mapper)
            if npz:
                folder.write_npz(model.image_shape, drawer.labels(seeds))
    return Written(drawn, seconds, cost, record.origin.precision, [folder.file(seed) for seed in seeds])


class _Folder:
    """The images of some seeds in a directory that this process holds the lock of. there: (N,) which are."""

    def __init__(self, directory: Path, record: Record, seeds: range, kind: SampleFiles, noun: str) -> None:
        self.directory, self.record, self.seeds, self.kind, self.noun = directory, record, seeds, kind, noun
        self.there = np.zeros(len(seeds), bool)
        with os.scandir(directory) as entries:
            for entry in entries:
                if record.is_own(written_aside(entry.name) or ""):  # left by a process that was killed
                    os.unlink(entry)
                seed = record.seed_of(entry.name)
                if seed is not None and seed in seeds:
                    self.there[seed - seeds.start] = kind.is_whole(Path(entry))

    def fill(self, drawer: Drawer, report: ImageProgress, mapper: Mapper) -> tuple[int, float]:
        """Draws what is missing; how many images were drawn, in how many seconds."""
        size = drawer.batch_size
        missing = [i for i in range(0, len(self.seeds), size) if not self.there[i : i + size].all()]
        if missing:
            self.record.write(self.directory)
        drawn, seconds, shown = 0, 0.0, False
        report(int(self.there.sum()), len(self.seeds))
        batches = [self.seeds[first : first + size] for first in missing]
        for batch, (images, spent) in mapper(partial(drawn_batch, drawer.settled), batches):
            seconds += spent
            drawn += len(batch)
            self._write(batch.start - self.seeds.start, images)
            del images  # before the next batch is drawn
            if not shown and self.there[: self.kind.shown].all():
                self._show()
                shown = True
            report(int(self.there.sum()), len(self.seeds))
        if not shown:
            self._show()
        return drawn, seconds

    def _write(self, first: int, images: NDArray[np.uint8]) -> None:
        """A batch from the position `first` on.

        Images that are there, maybe from a batch cut otherwise, are replaced first: until the last one is written the
        batch lacks something, so that a kill never leaves it a mixture.
        """
        here = self.there[first : first + len(images)]
        for i in np.argsort(~here, kind="stable"):
            write_whole(self.file(self.seeds[first + i]), self.kind.content(images[i]), synced=False)
            here[i] = True

    def _show(self) -> None:
        self.kind.show(list(self._read(self.seeds[: self.kind.shown])), self.directory)

    def write_npz(self, shape: Shape, labels: list[int] | None) -> None:
        classes = None if labels is None else np.asarray(labels)
        write_npz(self.directory / NPZ, self._read(self.seeds), (len(self.seeds), *shape), classes)

    def file(self, seed: int) -> Path:
        return self.directory / self.record.file_name(seed)

    def _read(self, seeds: range) -> Iterator[NDArray[np.uint8]]:
        return (self.kind.read(self.file(seed)) for seed in seeds)

    @contextmanager
    def naming_progress(self) -> Iterator[None]:
        """Says in an interruption, and in an error of a file, how far it came."""
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted: {self}; the same command goes on") from None
        except OSError as error:
            raise OSError(f"{error}. {self}; once that is mended, the same command goes on") from error

    def __str__(self) -> str:
        return f"{self.there.sum()} of {len(self.seeds)} {self.noun}s are in {self.directory}"


def drawn_batch(drawer: Drawer, seeds: Sequence[int]) -> tuple[NDArray[np.uint8], float]:
    """The images of a batch, (b, C, H, W), and the seconds that they took: a job for a `Mapper`."""
    start = time.perf_counter()
    (images,) = drawer.batches(seeds)
    return images, time.perf_counter() - start
