"""Samples in a folder: every image is written as it is drawn, so that the same call goes on after a kill.

    OUT/sample.json     what the images are of; images of anything else are never put beside them
    OUT/<seed>.png      one image, whole or not there; of a model of texts <seed>.txt
    OUT/grid.png        the first hundred; of texts samples.txt, with all
    OUT/images.npz      if asked for: the layout of the reference evaluators

Batches are cut at multiples of the batch size from the first seed, and a batch that lacks an image is drawn again as a
whole: so what a resumed call draws has the bits of an uninterrupted one. No more than one batch is held in memory, and
one in each worker.

What a sample is as a file: a picture, or a piece of text; and the one file that shows them together.

What a folder of samples says that its images are of, and whether a folder may be filled with samples.

What tells how good the texts of a model are: the bound in bits a character, their entropy, and what a language
model that was trained on the same text says of them.

A language model alone deceives: it finds a text that repeats itself likely, so bits a character may lie below those of
held-out pieces. The entropy shows that, and so does the gradient moment, which is least where both laws are the same.
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
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.codecs.tokens import BETWEEN, texts
from dualrate.config.ranges import as_path
from dualrate.config.serial import from_json, to_plain
from dualrate.diffusion.values import Shape
from dualrate.drawing.drawer import Drawer, Guidance, plain_step, spread
from dualrate.drawing.likelihood import Estimate, Likelihood, bits_per_token
from dualrate.experiment.experiment import Model
from dualrate.metrics.evaluate import Evaluator, Score
from dualrate.metrics.origin import PIXELS, Origin
from dualrate.metrics.text import GradientMoment, LanguageModel, block_gradients, gradient_moment, number_of_blocks
from dualrate.report.image_grid import is_whole_png, png_bytes, read_png, save_grid, write_npz
from dualrate.runs.train import LOGS, SAMPLES
from dualrate.sampling.cost import PlanCost
from dualrate.system.environment import environment
from dualrate.system.files import read_bytes, write_whole, written_aside
from dualrate.system.folders import check_link, some_of
from dualrate.system.progress import ImageProgress, run_lock
from dualrate.system.workers import Mapper, in_turn

Ending = Literal[".png", ".txt"]
OVERVIEW: dict[Ending, str] = {".png": "grid.png", ".txt": "samples.txt"}  # the file that shows them together
GRID_PNG = OVERVIEW[".png"]
SHOWN = 100  # images on the grid, at most


class SampleFiles(Protocol):
    """Samples (C, H, W) uint8 as files.

    ending: of their names; shown: how many the overview has, None: all
    """

    ending: ClassVar[Ending]
    shown: ClassVar[int | None]

    def content(self, sample: NDArray[np.uint8]) -> bytes: ...

    def is_whole(self, file: Path) -> bool:
        """Whether it is one of these, to its end. Raises OSError where it cannot be read."""
        ...

    def read(self, file: Path) -> NDArray[np.uint8]:
        """(C, H, W). Raises OSError for a damaged one."""
        ...

    def show(self, samples: Sequence[NDArray[np.uint8]], directory: Path) -> None:
        """Writes the overview."""
        ...


def sample_files(model: Model) -> SampleFiles:
    alphabet = model.experiment.codec.alphabet
    return Pieces(alphabet, model.image_shape[2]) if alphabet else Pictures(model.image_shape)


@dataclass(frozen=True)
class Pictures:
    """shape: (C, H, W)."""

    shape: Shape
    ending: ClassVar[Ending] = ".png"
    shown: ClassVar[int | None] = SHOWN

    def content(self, sample: NDArray[np.uint8]) -> bytes:
        return png_bytes(sample)

    def is_whole(self, file: Path) -> bool:
        return is_whole_png(file, self.shape)

    def read(self, file: Path) -> NDArray[np.uint8]:
        return read_png(file)

    def show(self, samples: Sequence[NDArray[np.uint8]], directory: Path) -> None:
        save_grid(np.stack(samples), directory / GRID_PNG, scale=2 if self.shape[-1] < 64 else 1)


@dataclass(frozen=True)
class Pieces:
    """Texts of `length` characters of an alphabet, in UTF-8, nothing after the last one."""

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

    def show(self, samples: Sequence[NDArray[np.uint8]], directory: Path) -> None:
        pieces = texts(self.alphabet, np.stack(samples))
        write_whole(directory / OVERVIEW[".txt"], BETWEEN.join(pieces) + "\n")


NPZ = "images.npz"
SPACE = 100_000  # images for which the names of a folder have digits enough to sort as their seeds do


@dataclass(frozen=True)
class Record:
    """sample.json.

    model, path, iteration: where the weights are from; their hash is in `origin`
    sampler, step, plan:    the update rule in words, with all its settings, and its times and heavy calls
    first_seed, images:     image i has the seed first_seed + i; the most images that were asked for so far
    origin:                 all that decides an image of a seed
    cost:                   of one image
    ending:                 of the images' files: .txt of pieces of text
    calls:                  what drew the images: commands, batch sizes, devices, versions; no two differ in dates alone
    """

    model: str
    path: str
    iteration: int
    sampler: str
    step: dict
    plan: dict
    guidance: Guidance
    first_seed: int
    images: int
    origin: Origin
    cost: dict
    ending: Ending = ".png"
    calls: tuple[dict, ...] = ()

    def file_name(self, seed: int) -> str:
        """Six digits, or more if the first seed asks for them: a function of the two seeds alone."""
        return f"{seed:0{max(6, len(str(self.first_seed + SPACE)))}d}{self.ending}"

    def seed_of(self, name: str) -> int | None:
        """The seed of an image of this name; None if no such image was asked for so far."""
        stem = name.removesuffix(self.ending)
        if not stem.removeprefix("-").isdecimal():
            return None
        seed = int(stem)
        return seed if 0 <= seed - self.first_seed < self.images and name == self.file_name(seed) else None

    def is_own(self, name: str) -> bool:
        """Whether a file of this name is one of the folder's."""
        return name in (SAMPLES, OVERVIEW[self.ending], NPZ) or self.seed_of(name) is not None

    def require_same(self, wanted: Record, directory: Path) -> None:
        """Raises ValueError that names what differs, unless the images of `wanted` are of the same kind as these."""
        differing = {name: _described(name, self, wanted) for name in self.origin.differing(wanted.origin)}
        if self.first_seed != wanted.first_seed:
            differing["first seed"] = [str(self.first_seed), str(wanted.first_seed)]
        if differing:
            listed = ", ".join(f"{name} ({found}; now {here})" for name, (found, here) in differing.items())
            raise ValueError(
                f"{directory} holds other samples, they differ in {listed}: choose another --out, or delete this one"
            )

    def joined(self, earlier: Record | None) -> Record:
        """This record with what an earlier one of the same images says besides."""
        if earlier is None:
            return self
        known = [_undated(call) for call in earlier.calls]
        calls = (*earlier.calls, *(call for call in self.calls if _undated(call) not in known))
        return replace(self, images=max(self.images, earlier.images), calls=calls)

    def write(self, directory: Path) -> None:
        write_whole(directory / SAMPLES, (json.dumps(to_plain(self), indent=1) + "\n"))


def grids_below(folder: Path) -> frozenset[Path]:
    """The pictures below a folder that stand beside samples and show some of them."""
    return frozenset(file.with_name(GRID_PNG) for file in folder.rglob(SAMPLES) if file.with_name(GRID_PNG).is_file())


def read_record(directory: Path) -> Record | None:
    """What the samples in a directory are of; None for a directory that is new, or empty but for logs.

    Raises ValueError for a directory that holds anything else, or anything beside the samples.
    """
    if not directory.exists():
        check_link(directory)
        return None
    if not directory.is_dir():
        raise ValueError(f"{directory} is a file; samples are kept in a directory: choose another --out")
    file = directory / SAMPLES
    record = None
    if file.exists():
        try:
            record = from_json(Record, read_bytes(file), str(file))
        except ValueError as error:
            raise ValueError(f"{error}; choose another --out") from error
    foreign = sorted(name for name in os.listdir(directory) if not _is_ours(name, record))
    if "experiment.json" in foreign:
        raise ValueError(f"{directory} is a run, or released weights, and no place for samples: choose another --out")
    if foreign:
        listed = some_of(foreign)
        if record is None:
            raise ValueError(
                f"{directory} holds {listed} but no {SAMPLES}, which would say what they are of: choose a new or empty "
                "directory as --out"
            )
        raise ValueError(f"{directory} holds {listed} beside its samples: take that away, or choose another --out")
    return record


def _is_ours(name: str, record: Record | None) -> bool:
    """Whether a file may be in a folder of samples: its own, hidden ones, and logs."""
    if name.startswith(".") or name.endswith(LOGS):
        return True
    name = written_aside(name) or name
    return name == SAMPLES or (record is not None and record.is_own(name))


def _described(name: str, *records: Record) -> list[str]:
    """What records say about a field of their origins, for people."""
    whole = [getattr(record.origin, name) for record in records]
    match name:
        case "weights":
            short = [
                f"{record.model} at iteration {record.iteration}, {digest[:12]}"
                for record, digest in zip(records, whole, strict=True)
            ]
        case "sampler":
            short = [record.sampler for record in records]
        case "experiment":
            short = [digest[:12] for digest in whole]
        case _:
            short = whole
    return short if len(set(short)) == len(short) else whole


def _undated(call: dict) -> dict:
    return {name: value for name, value in call.items() if name != "date"}


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


@dataclass(frozen=True)
class OfPieces:
    """Of pieces of text, in bits a character, means over pieces.

    entropy: of the characters within a piece: low where it repeats itself
    bits:    -log2 p of a piece under the language model
    """

    entropy: Estimate
    bits: Estimate


@dataclass(frozen=True)
class TextScore:
    """Of a model of texts.

    bound:           on -log2 p of held-out pieces, in bits a character, under the plan that draws
    drawn, held_out: what was drawn, and as many held-out pieces
    gradient_moment: of what was drawn, from held-out pieces
    floor:           the same of pieces of the training split, which the model is to draw
    language_model:  which it is: the name of its text and the beginning of its weights' sha256
    distance:        the Frechet distance in its features; None of too few pieces
    """

    bound: Likelihood
    drawn: OfPieces
    held_out: OfPieces
    gradient_moment: GradientMoment
    floor: GradientMoment
    language_model: str
    distance: Score | None


def score_texts(
    drawer: Drawer,
    seeds: Sequence[int],
    judge: Evaluator[LanguageModel],
    *,
    progress: ImageProgress | None = None,
    mapper: Mapper = in_turn,
) -> TextScore:
    """Of as many pieces drawn, and held out, as there are seeds; of held-out ones all, where there are fewer.

    Raises ValueError for fewer than three, what `bits_per_token` and reading the text raise.
    """
    net, data = judge.net, drawer.model.experiment.data
    test, train = data.images("test"), data.images("train")
    count = min(len(seeds), len(test))
    blocks, total = number_of_blocks(count), 2 * count + 3 * len(seeds)  # bound, drawing, three sets of gradients

    def after(before: int) -> ImageProgress:
        return lambda done, of: progress(before + done, total) if progress else None

    bound = bits_per_token(drawer, test, count=count, seed=seeds[0], progress=after(0))
    drawn, done = _drawn(drawer, seeds, after(count), mapper), count + len(seeds)
    held_out, gradients = test.images[spread(count, len(test))], []
    for side in (drawn, held_out, train.images[spread(len(seeds), len(train))]):
        gradients.append(block_gradients(net.module, net.places(side), blocks, after(done)))
        done += len(side)
    return TextScore(
        bound,
        _of(drawn, net),
        _of(held_out, net),
        gradient_moment(gradients[0], gradients[1]),
        gradient_moment(gradients[2], gradients[1]),
        net.identity,
        _distance(drawn, seeds, judge),
    )


def _distance(drawn: NDArray[np.uint8], seeds: Sequence[int], judge: Evaluator[LanguageModel]) -> Score | None:
    if len(drawn) < 2 * judge.net.dim:
        return None
    features = judge.net.features(drawn)
    return judge.score_features(features, seeds=f"{seeds[0]}-{seeds[-1]}", labels="none")


def _drawn(drawer: Drawer, seeds: Sequence[int], show: ImageProgress, mapper: Mapper) -> NDArray[np.uint8]:
    """(N, 1, 1, L), in the order of the seeds."""
    size = drawer.batch_size
    batches = [tuple(seeds[first : first + size]) for first in range(0, len(seeds), size)]
    found: dict[tuple[int, ...], NDArray[np.uint8]] = {}
    for batch, (images, _) in mapper(partial(drawn_batch, drawer.settled), batches):
        found[batch] = images
        show(sum(map(len, found)), len(seeds))
    return np.concatenate([found[batch] for batch in batches])


def _of(pieces: NDArray[np.uint8], net: LanguageModel) -> OfPieces:
    return OfPieces(entropy(pieces), Estimate.of(net.bits(pieces).double()))


def entropy(pieces: NDArray[np.uint8]) -> Estimate:
    """-sum p log2 p of the shares p of characters in a piece. pieces: (N, 1, 1, L), N >= 2."""
    found = []
    for piece in pieces:
        share = np.unique(piece, return_counts=True)[1] / piece.size
        found.append(-(share * np.log2(share)).sum())
    return Estimate.of(torch.tensor(found, dtype=torch.float64))
