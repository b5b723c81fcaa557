"""Samples in a folder: every image is written as it is drawn, so that the same call goes on after a kill.

    OUT/sample.json     what the images are of; images of anything else are never put beside them
    OUT/<seed>.png      one image, whole or not there; of a text model <seed>.txt; of member 3 <seed>-03.png
    OUT/grid.png        the first hundred; of texts samples.txt, with all; of a conditional model a row for each of the
                        first conditions: the condition, the image that it was made of, members
    OUT/images.npz      if asked for: the layout of the reference evaluators

Batches are cut at multiples of the batch size from the first seed, and a batch that lacks an image is drawn again as a
whole: so what a resumed call draws has the bits of an uninterrupted one. No more than one batch is held in memory, and
one in each worker.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.codecs.token_codec import BETWEEN, texts
from dualrate.config.ranges import as_path
from dualrate.config.serial import from_json, to_plain
from dualrate.data.conditions import Given, HeldOut, picture_of
from dualrate.diffusion.context import Shape
from dualrate.drawing.drawer import Drawer, Guidance, Samples, plain_step
from dualrate.metrics.store import PIXELS, Origin
from dualrate.report.image_grid import is_whole_png, png_bytes, read_png, save_grid, write_npz
from dualrate.runs.train import LOGS, SAMPLES
from dualrate.sampling.cost import PlanCost
from dualrate.system.device import environment
from dualrate.system.files import read_bytes, write_whole, written_aside
from dualrate.system.folders import check_link, some_of
from dualrate.system.progress import ImageProgress, run_lock
from dualrate.system.workers import Mapper, in_turn

Ending = Literal[".png", ".txt"]
GRID_PNG, NPZ = "grid.png", "images.npz"
OVERVIEW: dict[Ending, str] = {".png": GRID_PNG, ".txt": "samples.txt"}  # the file that shows them together
SPACE = 100_000  # images for which the names of a folder have digits enough to sort as their seeds do


@dataclass(frozen=True)
class Pictures:
    """Samples of a shape (C, H, W) uint8 as PNG files. shown: how many the overview has, at most"""

    shape: Shape
    ending: ClassVar[Ending] = ".png"
    shown: ClassVar[int | None] = 100

    def content(self, sample: NDArray[np.uint8]) -> bytes:
        return png_bytes(sample)

    def is_whole(self, file: Path) -> bool:
        """Whether it is one of these, to its end. Raises OSError where it cannot be read."""
        return is_whole_png(file, self.shape)

    def read(self, file: Path) -> NDArray[np.uint8]:
        """Read a sample, (C, H, W). Raises OSError for a damaged one."""
        return read_png(file)

    def show(self, samples: NDArray[np.uint8], directory: Path, columns: int | None) -> None:
        """Writes the overview."""
        save_grid(samples, directory / GRID_PNG, columns, scale=2 if self.shape[-1] < 64 else 1)


@dataclass(frozen=True)
class Pieces:
    """Texts of `length` characters of an alphabet, in UTF-8, nothing after the last one. Methods as of `Pictures`."""

    alphabet: str
    length: int
    ending: ClassVar[Ending] = ".txt"
    shown: ClassVar[int | None] = None

    def content(self, sample: NDArray[np.uint8]) -> bytes:
        return next(iter(texts(self.alphabet, sample[None]))).encode()

    def is_whole(self, file: Path) -> bool:
        text = file.read_bytes().decode(errors="replace")
        return len(text) == self.length and set(text) <= set(self.alphabet)

    def read(self, file: Path) -> NDArray[np.uint8]:
        if not self.is_whole(file):
            raise OSError(f"{file} is not {self.length} characters of the model's: delete it, and it is drawn again")
        places = [self.alphabet.index(character) for character in file.read_bytes().decode()]
        return np.array(places, np.uint8)[None, None]

    def show(self, samples: NDArray[np.uint8], directory: Path, columns: int | None) -> None:
        pieces = texts(self.alphabet, samples)
        write_whole(directory / OVERVIEW[".txt"], BETWEEN.join(pieces) + "\n")


class Files:
    """One file for each of some seeds, filled batch by batch by the process that holds the lock of the directory.

    whole: (N,) bool, which of them are whole
    """

    def __init__(self, paths: list[Path], seeds: range, kind: Pictures | Pieces, noun: str = "image") -> None:
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
        starts = [first for first in range(0, len(self.seeds), size) if not self.whole[first : first + size].all()]
        for batch, samples in mapper(draw, [self.seeds[first : first + size] for first in starts]):
            seconds += samples.seconds
            drawn += len(batch)
            first, begun = batch.start - self.seeds.start, not self.whole[:shows].all()
            # Images that are there, maybe from a batch cut otherwise, are replaced first: until the last one is written
            # the batch lacks something, so that a kill never leaves it a mixture.
            for i in first + np.argsort(~self.whole[first : first + len(batch)], kind="stable"):
                write_whole(self.paths[i], self.kind.content(samples.images[i - first]), synced=False)
                self.whole[i] = True
            del samples  # before the next batch is drawn
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


@contextmanager
def naming_progress(of: object) -> Iterator[None]:
    """Says in an interruption, and in an error of a file, how far it came, as `of` is then printed."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: {of}; the same command goes on") from None
    except OSError as error:
        raise OSError(f"{error}. {of}; once that is mended, the same command goes on") from error


@dataclass(frozen=True, kw_only=True)
class FolderRecord:
    """A file that says what else is in its folder: the same call goes on, and nothing else is put beside."""

    file: ClassVar[str]
    content: ClassVar[str]
    """What the folder holds, in an error."""
    whole: ClassVar[tuple[str, ...]]
    """Files that are written whole, so that a process that was killed may have left a part of one; or, of many such
    files, how their names end."""

    def identity(self) -> dict[str, tuple[Any, Any]]:
        """Values that are equal in all of a folder, by name: the value, and how an error shows it."""
        raise NotImplementedError

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """The record in a directory; None for a directory that is new, or empty but for logs.

        Raises ValueError for a directory that holds anything else.
        """
        check_link(directory)
        if not directory.exists():
            return None
        if not directory.is_dir():
            raise ValueError(f"{directory} is a file; {cls.content} are kept in a directory: choose another --out")
        if (file := directory / cls.file).exists():
            try:
                return from_json(cls, read_bytes(file), str(file))
            except ValueError as error:
                raise ValueError(f"{error}; choose another --out") from error
        names = sorted(os.listdir(directory))
        if foreign := [name for name in names if not (name[0] == "." or name.endswith(LOGS) or cls._left(name))]:
            raise ValueError(f"{directory} holds {some_of(foreign)} but no {cls.file}: choose a new directory as --out")
        return None

    def joined(self, earlier: Self | None, directory: Path) -> Self:
        """Record with what an earlier one of the same content says besides.

        Raises ValueError that names what differs, if the earlier one is of something else.
        """
        here, differing = self.identity(), []
        for name, (value, words) in ({} if earlier is None else earlier.identity()).items():
            other, now = here[name]
            if value != other:
                differing.append(f"{name} ({value}; now {other})" if words == now else f"{name} ({words}; now {now})")
        if differing:
            raise ValueError(
                f"{directory} holds other {self.content}, they differ in {', '.join(differing)}: choose another --out"
            )
        return self

    @contextmanager
    def filling(self, directory: Path) -> Iterator[Self]:
        """Record, joined with what is in the directory, which is locked and cleared of what a killed process left.

        Raises as `joined` before anything is written, and OSError where another process is filling it.
        """
        _ = self.joined(self.read(directory), directory)
        directory.mkdir(parents=True, exist_ok=True)
        with run_lock(directory, f"filled with {self.content}"):
            record = self.joined(self.read(directory), directory)  # another process may have come before the lock
            for name in filter(self._left, os.listdir(directory)):
                (directory / name).unlink()
            yield record

    def write(self, directory: Path) -> None:
        write_whole(directory / self.file, json.dumps(to_plain(self), indent=1) + "\n")

    @classmethod
    def _left(cls, name: str) -> bool:
        """Whether a process that was killed left this file."""
        target = written_aside(name) or ""
        endings = tuple(end for end in cls.whole if end.startswith("."))
        return target in cls.whole or (target.endswith(endings) and target[0] != ".")


@dataclass(frozen=True, kw_only=True)
class Drawn(FolderRecord):
    """Record of what was drawn into a folder, whatever that is.

    model, path, iteration: where the weights are from; their hash is in `origin`
    sampler, step, plan:    the update rule in words, with all its settings, and its times and heavy calls
    origin:                 all that decides what is drawn with a seed
    first_seed:             of what is drawn first; the next has the seed after it
    members:                samples of each seed
    calls:                  what drew it: commands, batch sizes, devices, versions; no two differ in dates alone
    """

    model: str
    path: str
    iteration: int
    sampler: str
    step: dict
    plan: dict
    guidance: Guidance
    origin: Origin
    first_seed: int
    cost: dict
    members: int = 1
    calls: tuple[dict, ...] = ()

    def joined(self, earlier: Self | None, directory: Path) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        record = super().joined(earlier, directory)
        if earlier is None:
            return record
        earlier_calls = [call | {"date": None} for call in earlier.calls]
        return replace(
            record, calls=(*earlier.calls, *(call for call in self.calls if call | {"date": None} not in earlier_calls))
        )

    def identity(self) -> dict[str, tuple[Any, Any]]:
        values = {field.name: getattr(self.origin, field.name) for field in fields(Origin)}
        values |= {"first seed": self.first_seed, "members": self.members}
        weights = f"{self.model} at iteration {self.iteration}, {self.origin.weights[:12]}"
        words = {"weights": weights, "experiment": self.origin.experiment[:12], "sampler": self.sampler}
        return {name: (value, words.get(name, value)) for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class Record(Drawn):
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
    def of(drawer: Drawer, seeds: range, kind: Pictures | Pieces, command: str) -> Record:
        cost = drawer.cost
        return Record(
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
        expected.add(OVERVIEW[record.ending])
        names = (name for name in sorted(os.listdir(directory)) if name.endswith(record.ending) and name[0] != ".")
        if foreign := [name for name in names if name not in expected]:
            raise ValueError(
                f"{directory} holds {some_of(foreign)} beside its samples: take that away, or change --out"
            )
        return record


def grids_below(folder: Path) -> frozenset[Path]:
    """The pictures below a folder that stand beside samples and show some of them."""
    return frozenset(file.with_name(GRID_PNG) for file in folder.rglob(SAMPLES) if file.with_name(GRID_PNG).is_file())


def drawn_by(drawer: Drawer, command: str, labels: str | None = None) -> dict[str, Any]:
    """Fields of a record on a drawer and the call, whatever is drawn. labels: as of `Drawer.origin`"""
    model = drawer.model
    device = {"device": str(model.device), **environment(model.device)}
    return {
        "model": model.name,
        "path": str(model.path.resolve()) if model.path else "",
        "iteration": model.iteration,
        "sampler": drawer.sampler,
        "step": plain_step(drawer.step),
        "plan": json.loads(drawer.plan.to_json()),
        "guidance": drawer.guidance,
        "origin": drawer.origin(PIXELS, labels),
        "members": drawer.members,
        "calls": ({"command": command, "batch_size": drawer.batch_size, **device},),
    }


def as_before(drawer: Drawer, record: Drawn | None) -> Drawer:
    """Drawer; one of precision "auto" with the precision of what the record says is there already, if anything is."""
    if drawer.precision != "auto" or record is None:
        return drawer
    return replace(drawer, precision="bfloat16" if record.origin.precision.startswith("bfloat16") else "float32")


@dataclass(frozen=True)
class Written:
    """Outcome of a call of `write_samples`.

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
    drawer.model.experiment.condition.check_pictured()
    out, model = as_path(out), drawer.model
    drawer = as_before(drawer.for_seeds(len(seeds)), Record.read(out))
    alphabet = model.experiment.codec.alphabet
    kind = Pieces(alphabet, model.image_shape[2]) if alphabet else Pictures(model.image_shape)
    record = Record.of(drawer, seeds, kind, command)
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
    return Written(drawn, seconds, drawer.cost, record.origin.precision, files.paths)


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
