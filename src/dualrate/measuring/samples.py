"""Samples in a folder: every image is written as it is drawn, so that the same call goes on after a kill.

    OUT/sample.json     what the images are of; images of anything else are never put beside them
    OUT/<seed>.png      one image, whole or not there
    OUT/grid.png        the first hundred
    OUT/images.npz      if asked for: the layout of the reference evaluators

Batches are cut at multiples of the batch size from the first seed, and a batch that lacks an image is drawn again as a
whole: so what a resumed call draws has the bits of an uninterrupted one. No more than one batch is held in memory.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.diffusion.plan import StepPlan
from dualrate.experiments.experiment import Model
from dualrate.machine.device import pays
from dualrate.machine.environment import environment
from dualrate.machine.files import write_whole, written_aside
from dualrate.machine.guards import run_lock
from dualrate.measuring.measure import UNGUIDED, Guidance, balanced_labels, draw_batches, image_cost
from dualrate.measuring.origin import origin_of, plain_step
from dualrate.measuring.sample_record import GRID, NPZ, Record, read_record
from dualrate.metrics.origin import PIXELS
from dualrate.report.files import is_whole_png, png_bytes, read_png, write_npz
from dualrate.report.grid import save_grid
from dualrate.sampling.cost import PlanCost
from dualrate.sampling.step import Step

SHOWN = 100  # images on the grid, at most


@dataclass(frozen=True)
class Written:
    """What a call of `write_samples` did.

    drawn:   images that it drew, in so many seconds of networks and sampler
    cost:    of one image
    """

    drawn: int
    seconds: float
    cost: PlanCost
    precision: str


def write_samples(
    model: Model,
    step: Step,
    plan: StepPlan,
    seeds: range,
    out: Path | str,
    *,
    label: int | None = None,
    guidance: Guidance = UNGUIDED,
    batch_size: int = 125,
    device: torch.device | str = "cpu",
    bfloat16: bool | None = None,
    npz: bool = False,
    progress: Callable[[int, int], None] | None = None,
    command: str = "dualrate.write_samples",
) -> Written:
    """Draw the images of these seeds that `out` lacks, and write each as PNG at once; then the grid, and images.npz.

    label, guidance, batch_size, device: as in `draw`
    bfloat16: None: as the images that are there, else where it pays
    progress: called with (images there, of how many) at first and after every batch
    command:  kept in sample.json
    Raises ValueError, before anything is written, for what cannot be drawn, and for an `out` that holds samples of
    another kind or anything else; OSError for a file that cannot be written or read, with its name, and for a folder
    that another process is filling. That error and a KeyboardInterrupt say how many images are there.
    """
    if not seeds or seeds.step != 1 or batch_size < 1:
        raise ValueError(f"expected seeds one after the other and batch_size at least 1, got {seeds} and {batch_size}")
    out = Path(out)
    balanced_labels(model, seeds[:1], label)
    cost = image_cost(model, step, plan, guidance, device=device)
    found = read_record(out)
    if bfloat16 is None:
        bfloat16 = pays(torch.device(device)) if found is None else found.origin.precision == "bfloat16"
    record = Record(
        model=model.name,
        path=str(model.path.resolve()) if model.path else "",
        iteration=model.iteration,
        sampler=f"{step}{guidance}",
        step=plain_step(step),
        plan=json.loads(plan.to_json()),
        guidance=guidance,
        first_seed=seeds.start,
        images=len(seeds),
        origin=origin_of(model, step, plan, guidance, PIXELS, label=label, bfloat16=bfloat16),
        cost={"heavy_calls": cost.heavy_calls, "light_calls": cost.light_calls, "macs": cost.macs, "flops": cost.flops},
        calls=({"command": command, "batch_size": batch_size, "device": str(device), **environment()},),
    )
    if found is not None:
        found.require_same(record, out)

    def draw(batch: range) -> NDArray[np.uint8]:
        how = {"guidance": guidance, "batch_size": len(batch), "device": device, "bfloat16": bfloat16}
        (images,) = draw_batches(model, step, plan, batch, label=label, **how)
        return images

    out.mkdir(parents=True, exist_ok=True)
    with run_lock(out, "filled with samples"):
        found = read_record(out)  # again: before the lock was held, another process may have been here
        if found is not None:
            found.require_same(record, out)
        folder = _Folder(out, record.joined(found), seeds, model.shape)
        with folder.told():
            drawn, seconds = folder.fill(draw, batch_size, progress or (lambda done, total: None))
            if npz:
                folder.write_npz(balanced_labels(model, seeds, label))
    return Written(drawn, seconds, cost, record.origin.precision)


class _Folder:
    """The images of some seeds in a directory that this process holds the lock of. there: (N,) which are."""

    def __init__(self, directory: Path, record: Record, seeds: range, shape: tuple[int, int, int]) -> None:
        self.directory, self.record, self.seeds, self.shape = directory, record, seeds, shape
        self.there = np.zeros(len(seeds), bool)
        with os.scandir(directory) as entries:
            for entry in entries:
                if record.is_own(written_aside(entry.name) or ""):  # left by a process that was killed
                    os.unlink(entry)
                seed = record.seed_of(entry.name)
                if seed is not None and seed in seeds:
                    self.there[seed - seeds.start] = is_whole_png(Path(entry), shape)

    def fill(
        self, draw: Callable[[range], NDArray[np.uint8]], batch_size: int, report: Callable[[int, int], None]
    ) -> tuple[int, float]:
        """Draws what is missing; how many images were drawn, in how many seconds."""
        starts = range(0, len(self.seeds), batch_size)
        missing = [first for first in starts if not self.there[first : first + batch_size].all()]
        if missing:
            self.record.write(self.directory)
        drawn, seconds, shown = 0, 0.0, False
        report(int(self.there.sum()), len(self.seeds))
        for first in missing:
            batch = self.seeds[first : first + batch_size]
            start = time.perf_counter()
            images = draw(batch)
            seconds += time.perf_counter() - start
            drawn += len(batch)
            self._write(first, images)
            del images  # before the next batch is drawn
            if not shown and self.there[:SHOWN].all():
                self._write_grid()
                shown = True
            report(int(self.there.sum()), len(self.seeds))
        if not shown:
            self._write_grid()
        return drawn, seconds

    def _write(self, first: int, images: NDArray[np.uint8]) -> None:
        """A batch from the position `first` on.

        Images that are there, maybe from a batch cut otherwise, are replaced first: until the last one is written the
        batch lacks something, so that a kill never leaves it a mixture.
        """
        here = self.there[first : first + len(images)]
        for i in np.argsort(~here, kind="stable"):
            write_whole(self._file(self.seeds[first + i]), png_bytes(images[i]), synced=False)
            here[i] = True

    def _write_grid(self) -> None:
        images = np.stack(list(self._read(self.seeds[:SHOWN])))
        save_grid(images, self.directory / GRID, scale=2 if self.shape[-1] < 64 else 1)

    def write_npz(self, labels: list[int] | None) -> None:
        classes = None if labels is None else np.asarray(labels)
        write_npz(self.directory / NPZ, self._read(self.seeds), (len(self.seeds), *self.shape), classes)

    def _file(self, seed: int) -> Path:
        return self.directory / self.record.file_name(seed)

    def _read(self, seeds: range) -> Iterator[NDArray[np.uint8]]:
        return (read_png(self._file(seed)) for seed in seeds)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Says in an interruption, and in an error of a file, how far it came."""
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted: {self}; the same command goes on") from None
        except OSError as error:
            raise OSError(f"{error}. {self}; once that is mended, the same command goes on") from error

    def __str__(self) -> str:
        return f"{self.there.sum()} of {len(self.seeds)} images are in {self.directory}"
