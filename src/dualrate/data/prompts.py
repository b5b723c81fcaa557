"""Prompts of images: their captions, and what the text encoders of a model make of these, packed beside latents.

    FOLDER/prompts/            a packed folder (cache.py), rows N x 1 x 1 x D float16, in the latents' order
    FOLDER/prompts/captions    the captions in their own order, a JSON string a line; where in it a prompt's is, in
                               bytes, stands in the place of a label
    FOLDER/prompts/empty.npy   (1, 1, D) float32: the prompt that stands for none

Captions are lines of a text file, rows of a .csv or .parquet file, or a text file beside each image, of its name. Rows
say whose they are by a column of names, else they are in the order of the images: by path, or by number. They are read
as a stream: what is held of a caption is its place in the file, and its image's name.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data import cache as packed
from dualrate.data.cache import SHARD_BYTES, Packed, read_packed
from dualrate.data.images import column_of, named_splits
from dualrate.data.loader import Augment, TrainingSet
from dualrate.data.source import (
    SPLITS,
    DataProgress,
    Item,
    Raw,
    Split,
    names_of,
    read_text,
    reading,
    resolved,
    silent,
    without_ending,
)
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Shape
from dualrate.system.files import blaming, check_regular, read_bytes, read_json, whole
from dualrate.system.folders import Damaged, some_of
from dualrate.system.workers import Mapper, in_turn

PROMPTS, CAPTIONS, EMPTY = "prompts", "captions", "empty.npy"
COLUMNS = ("caption", "text", "prompt", "captions", "texts", "prompts")  # of captions, the first that there is
NAMES = ("file_name", "filename", "file", "image", "name", "path")  # of images
ENCODING = "encoding prompts"  # the message of progress
AT_A_TIME, HELD = 16, 16  # texts that are encoded together; so many times these are held


class TextEncoder(Protocol):
    """What makes prompts of texts; pickled as where it is. size: D"""

    @property
    def fingerprint(self) -> str:
        """sha256 of all that prompts depend on."""
        ...

    @property
    def size(self) -> int: ...

    def read(self, device: torch.device | str) -> Callable[[Sequence[str]], Tensor]:
        """texts -> (B, 1, 1, D)"""
        ...

    def empty(self, device: torch.device | str) -> Tensor:
        """(1, 1, 1, D): the prompt that stands for none."""
        ...


class Encoded:
    """Prompts of texts as one array that is only read: (N, 1, 1, D), indexed by numbers, encoded when asked for.

    A prompt is the same whichever are asked for with it: texts are encoded AT_A_TIME, in their order. The latest
    AT_A_TIME x HELD are held, in float32.
    """

    def __init__(self, texts: Sequence[str], encoder: TextEncoder, device: torch.device | str) -> None:
        self._made_of, self.shape = (texts, encoder, device), (len(texts), 1, 1, encoder.size)
        self._held = lru_cache(maxsize=HELD)(self._encode)

    def __reduce__(self) -> tuple[type[Encoded], tuple[Any, ...]]:
        texts, encoder, device = self._made_of
        return Encoded, (texts, encoder, torch.device(device).type)  # a worker has a GPU of its own

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: NDArray[np.int64]) -> Tensor:
        """On the CPU. Raises what the encoder's `read` raises."""
        return torch.stack([self._held(i // AT_A_TIME)[i % AT_A_TIME] for i in index.tolist()])

    @property
    def sums(self) -> str:
        """What they are made of, and by."""
        texts, encoder, _ = self._made_of
        return json.dumps([encoder.fingerprint, encoder.size, list(texts)])

    def _encode(self, number: int) -> Tensor:
        texts, encoder, device = self._made_of
        return encoder.read(device)(texts[number * AT_A_TIME : (number + 1) * AT_A_TIME]).float().cpu()


Pairs = Iterator[tuple[str, str]]  # the image's name, empty where nothing says it, and its caption


@dataclass(frozen=True, eq=False)
class Captions:
    """Captions of the images of a source.

    rows:    reads them in their own order
    places:  of each split, where in the file that `write` makes each image's caption is, in bytes
    content: sha256 of captions and places
    """

    place: str
    rows: Callable[[], Pairs]
    places: dict[Split, NDArray[np.int64]]
    content: str

    def write(self, file: Path) -> None:
        with whole(file) as aside, aside.open("wb") as opened:
            for _, caption in self.rows():
                opened.write(_line(caption))


def _line(caption: str) -> bytes:
    return json.dumps(caption).encode() + b"\n"


def read_captions(
    place: str | Path, source: str | Path, label: str | None = None, progress: DataProgress = silent
) -> Captions:
    """The captions of a source's images. place: a file, FILE#COLUMN, or a folder of Parquet files or of text files

    source, label: as in `load_images`
    Raises ValueError for a file without a column of captions, naming the columns, for images without a caption, and for
    a prepared source, which has no names; OSError for what cannot be read.
    """
    found = named_splits(source, "captions", label, progress)
    own = [without_ending(names_of(found[split].read().items)) for split in SPLITS]
    names = [name for some in own for name in some]
    by_name = {name: i for i, name in enumerate(names)}
    if len(by_name) < len(names):
        raise ValueError(
            f"{source} has several images of one name, without its ending: captions cannot tell them apart"
        )
    rows, named = _reader(place, names)
    in_order = None if named else np.array(sorted(range(len(names)), key=lambda i: _order(names[i])), np.int64)
    places = np.full(len(names), -1, np.int64)
    digest, start, number = hashlib.sha256(), 0, -1
    for number, (name, caption) in enumerate(rows()):
        line, name = _line(caption), without_ending([name])[0]
        named = named or (number == 0 and name in by_name)
        i = by_name.get(name) if named else None
        if in_order is not None and not named and number < len(names):
            i = int(in_order[number])
        if i is not None:
            places[i] = start
        digest.update(line)
        start += len(line)
    lacking = [names[i] for i in np.flatnonzero(places < 0)]
    count, total = number + 1, len(names)
    if lacking or (count > total and not named):
        told = f"none for {len(lacking)} of them ({some_of(lacking)})" if lacking else "and nothing says whose they are"
        raise ValueError(
            f"{place} has {count} captions for the {total} images of {source}, {told}: give one per line or row, in "
            f"the order of the images, or name the image of each in a column {NAMES[0]}"
        )
    by_split = dict(zip(SPLITS, np.split(places, np.cumsum([*map(len, own)])[:-1]), strict=True))
    digest.update(places.tobytes())
    return Captions(str(place), rows, by_split, digest.hexdigest())


def _order(name: str) -> tuple[Any, ...]:
    """By path, and rows of a file by number."""
    numbered = re.fullmatch(r"(.*)\[(\d+)\]", name)
    return (tuple(numbered[1].split("/")), int(numbered[2])) if numbered else (tuple(name.split("/")), 0)


def _reader(place: str | Path, names: list[str]) -> tuple[Callable[[], Pairs], bool]:
    """What reads the captions, and whether their names are those of images in any case. names: of the images"""
    asked, column = column_of(place)
    path = resolved(asked)
    if not path.exists():
        raise FileNotFoundError(f"no captions at {path}: expected a .txt, .csv or .parquet file, or a folder of these")
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if files and files[0].suffix == ".parquet":
        return _of_parquet(files, column)
    if path.is_dir():
        return partial(_beside, path, names), True
    if path.suffix == ".csv":
        with reading(path, "CSV in UTF-8"), _table(path) as opened:
            header = csv.DictReader(opened).fieldnames or []
        named, texts = _columns(header, path, column)
        return partial(_of_csv, path, named, texts), bool(named)
    if path.suffix == ".txt":
        return partial(_of_lines, path), False
    raise ValueError(f"captions are in a .txt, .csv or .parquet file, or in a folder of text files, got {path}")


def _columns(there: Sequence[str], file: Path, asked: str) -> tuple[str, str]:
    """The columns of names, empty if there is none, and of captions."""
    known = {column.lower(): column for column in there}
    wanted = [asked] if asked else [known[column] for column in COLUMNS if column in known]
    if not wanted or wanted[0] not in there:
        looked = asked or ", ".join(COLUMNS[:3])
        raise ValueError(
            f"{file} has the columns {', '.join(there) or 'none'}, and none of captions ({looked}): name it after the "
            f"file, {file.name}#COLUMN"
        )
    return next((known[column] for column in NAMES if column in known), ""), wanted[0]


def _of_parquet(files: list[Path], column: str) -> tuple[Callable[[], Pairs], bool]:
    try:
        from dualrate.data.parquet import columns_of, texts_of
    except ModuleNotFoundError as error:
        raise ValueError(f"pyarrow reads {files[0]}: pip install 'dualrate[parquet]'") from error
    named, texts = _columns(list(columns_of(files[0])), files[0], column)
    named = named if named and columns_of(files[0])[named] else ""  # images themselves are no names
    return partial(texts_of, files, texts, named), bool(named)


def _table(file: Path) -> io.TextIOWrapper:
    check_regular(file)
    return file.open(encoding="utf-8-sig", newline="")


def _of_csv(file: Path, named: str, texts: str) -> Pairs:
    with reading(file, "CSV in UTF-8"), _table(file) as opened:
        for row in csv.DictReader(opened):
            yield (row[named] or "") if named else "", row[texts] or ""


def _of_lines(file: Path) -> Pairs:
    check_regular(file)
    with reading(file, "text in UTF-8"), file.open(encoding="utf-8-sig") as opened:
        for line in opened:
            yield "", line.rstrip("\r\n")


def _beside(folder: Path, names: list[str]) -> Pairs:
    for name in names:
        if (file := folder / f"{name}.txt").is_file():
            yield name, read_text(file).strip()


# Packing


@dataclass(frozen=True, eq=False)
class _Lines:
    """Captions by their places in a file."""

    file: Path
    places: NDArray[np.int64]

    def __iter__(self) -> Iterator[Item]:
        with self.file.open("rb") as opened:
            for place in self.places.tolist():
                opened.seek(place)
                yield "", opened.readline()

    def __getitem__(self, part: slice, /) -> _Lines:
        return _Lines(self.file, self.places[part])


def encode_prompts(
    captions: Captions,
    folder: Path,
    encoder: TextEncoder,
    *,
    shard_bytes: int = SHARD_BYTES,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    mapper: Mapper = in_turn,
    progress: DataProgress = silent,
) -> dict[str, Any]:
    """Prompts of both splits, beside the latents in `folder`; or what is left to do. Returns what dataset.json holds.

    Raises ValueError for a folder with prompts of other captions, or by another encoder, and for numbers that float16
    has not; OSError for what cannot be read or written.
    """
    place = folder / PROMPTS
    plan = {"format": packed.FORMAT, "source": captions.place, "on_bad": "fail", "shard_bytes": shard_bytes}
    plan |= {"encoder": encoder.fingerprint, "size": encoder.size, "captions": captions.content, "content": ""}
    with packed.begun(place, packed.PROMPTED, plan) as unfinished:
        if unfinished:
            captions.write(place / CAPTIONS)
            raws: dict[Split, tuple[str, Raw]] = {
                split: (f"{folder.name}/{split}", Raw(_Lines(place / CAPTIONS, found), len(found), found, ()))
                for split, found in captions.places.items()
            }
            row = {"shape": [1, 1, encoder.size], "dtype": "float16", "each": 1}
            where = str(device) if mapper is in_turn else torch.device(device).type  # a worker has a GPU of its own
            job = partial(_encode_shard, place, encoder, where, batch_size)
            splits = packed.pack(
                place, raws, job, row, shard_bytes=shard_bytes, mapper=mapper, progress=progress, what=ENCODING
            )
            with whole(place / EMPTY) as aside, aside.open("wb") as file:
                np.save(file, encoder.empty(device)[0].float().cpu().numpy(), allow_pickle=False)
            empty = hashlib.sha256(read_bytes(place / EMPTY)).hexdigest()
            packed.write_dataset(place, row, splits, encoder=encoder.fingerprint, empty=empty)
    return read_json(place / packed.DATASET)


def _encode_shard(folder: Path, encoder: TextEncoder, device: str, batch_size: int, shard: packed.Shard) -> None:
    encode = encoder.read(device)

    def made(lines: list[bytes]) -> NDArray[np.float16]:
        return packed.halves(encode([json.loads(line) for line in lines]).float(), "text encoder")

    packed.write_encoded(folder, shard, made, batch_size)


# Reading


@dataclass(frozen=True, eq=False)
class Texts:
    """Captions by their places in a file, read when they are asked for."""

    file: Path
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> str:
        """Raises Damaged for a file that is not what was written."""
        with self.file.open("rb") as opened:
            opened.seek(int(self.places[index]))
            line = opened.readline()
        try:
            return str(json.loads(line))
        except ValueError as error:
            raise Damaged(f"{self.file} is not what was written ({error}): encode the captions again") from error


class PromptSet(TrainingSet):
    """Prompts of one split, in the order of the latents beside them. encoder: its fingerprint; size: D"""

    labels = None
    class_names = ()

    def __init__(self, found: Packed, folder: Path) -> None:
        self.packed, self.folder, self.name = found, folder, found.part["name"]
        self.encoder: str = found.dataset["encoder"]

    @property
    def size(self) -> int:
        return self.packed.dataset["row"]["shape"][2]

    @property
    def shape(self) -> Shape:
        return 1, 1, self.size

    @property
    def fingerprint(self) -> str:
        content = [self.encoder, self.packed.dataset["empty"], *(one["sha256"] for one in self.packed.part["shards"])]
        return hashlib.sha256("".join(content).encode()).hexdigest()

    def __len__(self) -> int:
        return self.packed.part["images"]

    def rows(self, index: NDArray[np.int64], draws: Draws, augment: Augment, /) -> Tensor:
        """(B, 1, 1, D) float16."""
        return torch.from_numpy(self.packed.rows[index])

    @staticmethod
    def floats(rows: Tensor, draws: Draws) -> Tensor:
        return rows.float()

    @property
    def texts(self) -> Texts | None:
        """The captions; None of prompts that were encoded before their places were kept."""
        places = self.packed.labels
        return None if places is None else Texts(self.folder / CAPTIONS, places)

    def empty(self) -> Tensor:
        """(1, 1, 1, D): the prompt that stands for none. Raises Damaged where the file is not what was written."""
        content = read_bytes(self.folder / EMPTY)
        if hashlib.sha256(content).hexdigest() != self.packed.dataset["empty"]:
            raise Damaged(f"{self.folder / EMPTY} is not what was written: remove {self.folder}, then {packed.AGAIN}")
        return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))[None]


def has_prompts(source: str | Path) -> bool:
    """Whether a data source is a folder of latents with prompts, finished or not."""
    return source != "" and (resolved(source) / PROMPTS / packed.PROMPTED).is_file()


def read_prompts(source: str | Path, split: Split) -> PromptSet:
    """Raises ValueError for latents without prompts, and as `read_latents`."""
    if not has_prompts(source):
        raise ValueError(
            f"{source} has no prompts, which a text-to-image model is trained on: dualrate data encode IMAGES LATENTS "
            "--prompts CAPTIONS PIPELINE"
        )
    folder = resolved(source) / PROMPTS
    rows = read_packed(folder, split)
    with blaming(folder / packed.DATASET):
        found = PromptSet(rows, folder)
        _ = found.size, found.fingerprint
        return found
