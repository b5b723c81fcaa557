"""Samples in a folder: every image is written as it is drawn, so that the same call goes on after a kill.

    OUT/sample.json     what the images are of; images of anything else are never put beside them
    OUT/<seed>.png      one image, whole or not there; of a text model <seed>.txt; of member 3 <seed>-03.png
    OUT/grid.png        the first hundred; of texts samples.txt, with all; of a conditional model a row for each of the
                        first conditions: the condition, the image that it was made of, members
    OUT/images.npz      if asked for: the layout of the reference evaluators

Batches are cut at multiples of the batch size from the first seed, and a batch that lacks an image is drawn again as a
whole: so what a resumed call draws has the bits of an uninterrupted one. No more than one batch is held in memory, and
one in each process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.config.ranges import as_path, many
from dualrate.data.condition_rows import Given, HeldOut
from dualrate.data.conditions import picture_of
from dualrate.drawing.drawer import SHOWN, Drawer, Samples
from dualrate.drawing.record import SamplingRecord, as_before, drawn_by, naming_progress
from dualrate.experiment.modality import maker_of
from dualrate.report.html import notebook, picture
from dualrate.report.image_grid import GRID_PNG, Ending, Pictures, image_grid, read_png, write_npz
from dualrate.runs.train import SAMPLES
from dualrate.sampling.cost import PlanCost
from dualrate.system.files import write_unsynced
from dualrate.system.folders import some_of
from dualrate.system.progress import ImageProgress
from dualrate.system.workers import Mapper, in_turn

NPZ = "images.npz"
SPACE = 100_000  # images for which the names of a folder have digits enough to sort as their seeds do


class Files:
    """One file for each of some seeds, filled batch by batch by the process that holds the lock of the directory.

    whole: (N,) bool, which of them are whole
    """

    def __init__(self, paths: list[Path], seeds: range, kind: Pictures, noun: str = "image") -> None:
        self.paths, self.seeds, self.kind, self.noun = paths, seeds, kind, noun
        self.whole = np.array([path.exists() and kind.is_whole(path) for path in paths])

    def fill(
        self,
        draw: Callable[[Sequence[int]], Samples],
        size: int,
        report: ImageProgress,
        mapper: Mapper = in_turn,
        shown: Callable[[], None] = lambda: None,
    ) -> tuple[int, float]:
        """Draw every batch of `size` seeds that lacks an image; how many images were drawn, in how many seconds.

        shown: called when the first images, those of the overview, have been drawn
        """
        drawn, seconds, shows = 0, 0.0, self.kind.shown
        report(int(self.whole.sum()), len(self.seeds))
        starts = range(0, len(self.seeds), size)
        batches = [self.seeds[i : i + size] for i in starts if not self.whole[i : i + size].all()]
        for batch, (contents, took) in mapper(partial(_contents, draw, self.kind), batches):
            seconds += took
            drawn += len(batch)
            first, begun = batch.start - self.seeds.start, not self.whole[:shows].all()
            # Images that are there, maybe from a batch cut otherwise, are replaced first: until the last one is written
            # the batch lacks something, so that a kill never leaves it a mixture.
            for i in first + np.argsort(~self.whole[first : first + len(batch)], kind="stable"):
                write_unsynced(self.paths[i], contents[i - first])
                self.whole[i] = True
            del contents  # before the next batch is drawn
            if begun and self.whole[:shows].all():
                shown()
            report(int(self.whole.sum()), len(self.seeds))
        return drawn, seconds

    def read(self) -> Iterator[NDArray[np.uint8]]:
        """Read the samples, (C, H, W) each, one at a time."""
        return map(self.kind.read, self.paths)

    def __str__(self) -> str:
        """Progress in words."""
        return f"{self.whole.sum()} of {len(self.seeds)} {self.noun}s are in {self.paths[0].parent}"


def _contents(
    draw: Callable[[Sequence[int]], Samples], kind: Pictures, seeds: Sequence[int]
) -> tuple[list[bytes], float]:
    """Contents of the files of these seeds, and the seconds that drawing took: who draws a batch also packs it."""
    samples = draw(seeds)
    return [kind.content(image) for image in samples.images], samples.seconds


@dataclass(frozen=True, kw_only=True)
class SampleRecord(SamplingRecord):
    """Content of sample.json.

    images: the most that were asked for so far
    cost:   of one image
    ending: of the images' files: .txt of pieces of text
    conditions: the pictures that were given, (N,): seed i is a sample of number i mod N
    """

    file, content, whole = SAMPLES, "samples", (SAMPLES, NPZ, ".png", ".txt")
    images: int
    ending: Ending = ".png"
    conditions: tuple[str, ...] = ()

    @staticmethod
    def of(drawer: Drawer, seeds: range, kind: Pictures, command: str) -> SampleRecord:
        cost = drawer.cost
        return SampleRecord(
            **drawn_by(drawer, command),
            first_seed=seeds.start,
            images=len(seeds),
            cost={name: getattr(cost, name) for name in ("heavy_calls", "light_calls", "macs", "flops")},
            ending=kind.ending,
            conditions=conditions.files if isinstance(conditions := drawer.model.given, Given) else (),
        )

    def file_names(self, seed: int) -> list[str]:
        """Names of the members' files.

        Six digits, or more if the first seed asks for them: a function of the two seeds alone.
        """
        name = f"{seed:0{max(6, len(str(self.first_seed + SPACE)))}d}"
        digits = max(2, len(str(self.members - 1)))
        members = [f"-{member:0{digits}d}" for member in range(self.members)] if self.members > 1 else [""]
        return [f"{name}{member}{self.ending}" for member in members]

    def joined(self, earlier: Self | None, directory: Path) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        record = super().joined(earlier, directory)
        return record if earlier is None else replace(record, images=max(self.images, earlier.images))

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """Read as any record is read. Raises ValueError for other images beside the samples, too."""
        record = super().read(directory)
        if record is None:
            return None
        expected = {name for i in range(record.images) for name in record.file_names(record.first_seed + i)}
        expected |= {GRID_PNG, "samples.txt"}
        names = (name for name in sorted(os.listdir(directory)) if name.endswith(record.ending) and name[0] != ".")
        if foreign := [name for name in names if name not in expected]:
            raise ValueError(
                f"{directory} holds {some_of(foreign)} beside its samples: take that away, or change --out"
            )
        return record


def grids_below(folder: Path) -> frozenset[Path]:
    """The pictures below a folder that stand beside samples and show some of them."""
    return frozenset(file.with_name(GRID_PNG) for file in folder.rglob(SAMPLES) if file.with_name(GRID_PNG).is_file())


@dataclass(frozen=True)
class Written:
    """Outcome of a call of `write_samples`.

    drawn:   images that it drew, in so many seconds of networks and sampler
    cost:    of one image
    files:   of the images, in the order of their seeds
    texts:   what they hold, where they are texts
    """

    drawn: int
    seconds: float
    cost: PlanCost
    precision: str
    files: list[Path]
    texts: list[str] | None = None

    def __repr__(self) -> str:
        where = self.files[0].parent if self.files else "no folder"
        cost = f"{self.cost.macs / 1e6:.4g} million multiply-adds each"
        return f"{many(len(self.files), 'sample')} in {where}: {self.drawn} drawn now, in {self.seconds:.3g} s, {cost}"

    def _repr_html_(self) -> str:
        """The texts, or a picture of the first images, in a notebook."""
        if self.texts is not None:
            return notebook(self, "".join(f"<pre>{escape(text)}</pre>" for text in self.texts))
        return notebook(self, picture(image_grid(np.stack([read_png(file) for file in self.files[:SHOWN]]))))


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

    Of several members a seed, those of one seed are drawn together.
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
    out, model = as_path(out), drawer.model
    kind = maker_of(model.experiment).files(model)
    if npz and kind.ending != Pictures.ending:
        raise ValueError(f"{NPZ} is of images, and this is a {model.experiment.noun} model: drop --npz")
    drawer = as_before(drawer.for_seeds(len(seeds)), SampleRecord.read(out))
    record = SampleRecord.of(drawer, seeds, kind, command)
    with record.filling(out) as record:
        members, paths = drawer.members, [out / name for seed in seeds for name in record.file_names(seed)]
        rows = range(seeds.start * members, seeds.stop * members)
        files = Files(paths, rows, kind, model.experiment.noun)
        if not files.whole.all():
            record.write(out)

        def show() -> None:
            images, columns = strips(drawer, seeds, np.stack([kind.read(path) for path in files.paths[: kind.shown]]))
            kind.show(images, out, columns)

        with naming_progress(files):
            if files.whole[: kind.shown].all():
                show()
            report = progress or (lambda done, total: None)
            size = drawer.seeds_at_once * members
            drawn, seconds = files.fill(partial(_draw, drawer.resolved), size, report, mapper, show)
            if npz:
                labels = drawer.labels(seeds)
                classes = None if labels is None else np.repeat(labels, members)
                write_npz(out / NPZ, files.read(), (len(rows), *model.image_shape), classes)
    return Written(drawn, seconds, drawer.cost, record.origin.precision, files.paths, kind.texts(files.paths))


def _draw(drawer: Drawer, rows: Sequence[int]) -> Samples:
    """The images of consecutive rows, M of each seed: row r is member r mod M of seed r // M."""
    return drawer.draw(range(rows[0] // drawer.members, rows[-1] // drawer.members + 1))


ROWS, COLUMNS = 10, 8  # of a picture of conditions: conditions, members of each


def strips(drawer: Drawer, seeds: range, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int | None]:
    """Images and columns of a picture of samples; None: as many columns as rows.

    Of a conditional model a row a condition: the condition, where it is a picture, the image that it was made of, and
    members. Where all that would be in a row is one member, as of prompts, there are no such rows.
    images: (N, C, H, W), the first of those seeds, all members of one after the other
    """
    conditions, shape, members = drawer.model.given, drawer.model.image_shape, drawer.members
    if conditions is None:
        return images, None
    count = min(ROWS, len(seeds), len(images) // members)
    some = torch.tensor(seeds[:count])
    columns = []
    y = picture_of(conditions(some.to(drawer.model.device)), shape)
    if y is not None:
        columns.append(y)
    if isinstance(conditions, HeldOut):
        columns.append(conditions.originals(some))
    drawn = images[: count * members].reshape(count, members, *shape)[:, :COLUMNS]
    columns += [drawn[:, member] for member in range(drawn.shape[1])]
    if len(columns) == 1:
        return images, None
    return np.stack(columns, 1).reshape(-1, *shape), len(columns)
