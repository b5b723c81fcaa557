"""Features of images, kept in a directory shard by shard as the images are drawn.

    DIRECTORY/origin.json                   what the features are of; nothing else may continue the directory
    DIRECTORY/<first>-<last>.safetensors    ids (n,) int64 and features (n, D) float32 of one shard

So 50,000 images need neither a folder of files nor an array in memory, and a killed evaluation goes on where it was: a
shard is written whole or not at all, and a finished one is never drawn again. An image is a function of its id (its
seed), so several processes may fill one directory, each its own ids. Shard b holds the ids with id // size = b: what is
resumed is drawn in the same batches and gives the same bits; in other batches features agree to rounding.

Features of real images are taken PART at a time, and may be kept in the same way: Inception takes hours of a CPU for a
data set. 60,000 images need 490 MB for Inception's features, 77 MB for EfficientNet's.

An `Origin` holds what decides the features of an image; a `Fingerprint` what must be equal for scores to compare.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import save as bytes_of_tensors
from torch import Tensor

from dualrate.config.serial import from_json, to_plain
from dualrate.data.images import ImageSet
from dualrate.metrics.features import FeatureExtractor
from dualrate.metrics.trained_network import Pixels
from dualrate.system.files import open_tensors, read_bytes, write_whole
from dualrate.system.progress import ImageProgress
from dualrate.system.workers import Mapper, in_turn

BITS = "uint8 round(127.5x+127.5)"


@dataclass(frozen=True)
class Fingerprint:
    """The conditions a score was taken under.

    features:        the extractor's identity, "<name>:<first 12 hex digits of its weights' sha256>"
    reference:       "<data set and split, or file>:<first 12 hex digits of the images' or the file's sha256>"
    reference_count: how many of them; None for statistics from a file, which do not say
    count:           images scored
    seeds:           their seeds, e.g. "0-4999"
    labels:          the rule of their labels, e.g. "i mod classes", or "none"
    bits:            how they were quantised
    """

    features: str
    reference: str
    reference_count: int | None
    count: int
    seeds: str
    labels: str
    bits: str = BITS

    def json(self) -> str:
        """All fields as one line of JSON."""
        return json.dumps(asdict(self))

    def short(self) -> str:
        """The first 12 hex digits of the sha256 of `json()`."""
        return hashlib.sha256(self.json().encode()).hexdigest()[:12]


def require_same(fingerprints: Sequence[Fingerprint]) -> None:
    """ValueError naming the differing fields, unless all fingerprints are equal."""
    if differing := _differences(fingerprints):
        raise ValueError(f"these scores cannot be compared, they differ in {differing}: score them alike")


def _differences(records: Sequence[Any]) -> str:
    """The fields in which dataclasses of one kind differ, with their values; empty if they are equal."""
    by_field = {
        part.name: list(dict.fromkeys(str(getattr(record, part.name)) for record in records))
        for part in fields(records[0] if records else Origin)
    }
    return ", ".join(f"{name} ({' / '.join(values)})" for name, values in by_field.items() if len(values) > 1)


NOISE = "Philox keyed by the seed"
PIXELS = "none, the images themselves"


@dataclass(frozen=True)
class Origin:
    """All that decides the features, or the pixels, of an id (an image's seed).

    weights, experiment: sha256 of the model's
    sampler, plan:       the update rule with its settings and guidance; times and heavy calls
    labels:              the rule that makes a class of an id, or "none"
    features:            the extractor's identity; PIXELS where the images themselves are kept
    precision:           of the model's matrix products, and whether it is compiled, which changes rounding
    seeds, bits:         the rules that make noise of an id, and 8-bit images of samples
    """

    weights: str
    experiment: str
    sampler: str
    plan: str
    labels: str
    features: str
    precision: str
    seeds: str = NOISE
    bits: str = BITS

    def json(self) -> str:
        return json.dumps(to_plain(self), indent=1) + "\n"

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits for the name of a place: another one for whatever gives other features."""
        return hashlib.sha256(self.json().encode()).hexdigest()[:8]


ORIGIN, SUFFIX = "origin.json", ".safetensors"
VERSION = 1  # of `real_features`; raised where a net of the same identity gives other features
PART = 500  # images that a process sees at once; a multiple of every net's usual batch, for the same bits as at once

DrawImages = Callable[[Sequence[int]], NDArray[Any]]  # ids -> images (n, C, H, W), each a function of its id


@dataclass(frozen=True)
class StoredFeatures:
    """features: (N, D) float32 in the order of the ids asked for; seconds: that drawing their images took."""

    features: Tensor
    seconds: float


@dataclass(frozen=True)
class FeatureStore:
    """A directory of shards of one origin; make it by `open`."""

    directory: Path
    origin: Origin

    @staticmethod
    def open(directory: Path | str, origin: Origin) -> FeatureStore:
        """The directory of this origin, made if it is missing; ValueError if it holds anything of another one."""
        directory = Path(directory)
        if directory.exists() and not directory.is_dir():
            raise ValueError(f"{directory} is a file; features are kept in a directory: give another place")
        directory.mkdir(parents=True, exist_ok=True)
        file, names = directory / ORIGIN, [path.name for path in directory.iterdir()]  # first: another may begin it now
        if file.exists():
            try:
                stored = from_json(Origin, read_bytes(file), str(file))
            except ValueError as error:
                raise ValueError(f"{error}; give a new directory for these features") from error
            if differing := _differences((stored, origin)):
                raise ValueError(
                    f"{directory} holds features of other images, they differ in {differing}: give another directory, "
                    "or delete this one"
                )
        elif any(not name.endswith(".partial") for name in names):
            raise ValueError(f"{directory} is not empty and has no {ORIGIN}: give a new directory for these features")
        else:
            write_whole(file, origin.json())
        return FeatureStore(directory, origin)

    def missing(self, ids: Sequence[int]) -> list[int]:
        """The ids that are not here, in order. Raises what `read` raises for repeated ids and for files."""
        return sorted(_distinct(ids) - self._files().keys())

    def read(self, ids: Sequence[int]) -> StoredFeatures:
        """The features of these ids, in this order.

        Raises ValueError for repeated ids, ids that are in no shard or in two, and shards of another origin; OSError
        for damaged files, and those that cannot be read.
        """
        files = self._files()
        if missing := sorted(_distinct(ids) - files.keys()):
            raise ValueError(f"{self.directory} lacks {len(missing)} of {len(ids)} ids, the first is {missing[0]}")
        by_id, seconds = {}, 0.0
        for file, wanted in Counter(files[id_] for id_ in ids).items():
            tensors, about = _tensors(file, ("ids", "features"))
            by_id |= zip(tensors["ids"].tolist(), tensors["features"], strict=True)
            seconds += float(about["seconds"]) * wanted / len(tensors["ids"])
        return StoredFeatures(torch.stack([by_id[id_] for id_ in ids]), seconds)

    def write(self, ids: Sequence[int], features: Tensor, seconds: float = 0.0) -> None:
        """A shard of these ids, in order, and what drawing them took. Raises ValueError for other features than (n, D)
        finite float32, OSError where it cannot be written.
        """
        if len(features) != len(ids) or features.dtype != torch.float32 or not features.isfinite().all():
            raise ValueError(
                f"images {ids[0]} to {ids[-1]} gave features {tuple(features.shape)} {features.dtype}, of which "
                f"{int((~features.isfinite()).sum())} are not finite; expected {len(ids)} finite float32 vectors"
            )
        tensors = {"ids": torch.tensor(list(ids)), "features": features.contiguous()}
        about = {"origin": self._origin, "content": _content(tensors), "seconds": f"{seconds}"}
        write_whole(self.directory / f"{ids[0]:08d}-{ids[-1]:08d}{SUFFIX}", bytes_of_tensors(tensors, about))

    @property
    def _origin(self) -> str:
        return hashlib.sha256(self.origin.json().encode()).hexdigest()

    def _files(self) -> dict[int, Path]:
        """The file of every id that is here."""
        files: dict[int, Path] = {}
        for file in sorted(self.directory.glob(f"*{SUFFIX}")):
            tensors, about = _tensors(file, ("ids",))
            if about.get("origin") != self._origin:
                raise ValueError(f"{file} was written for another origin than {ORIGIN} beside it: take it away")
            for id_ in tensors["ids"].tolist():
                if id_ in files:
                    raise ValueError(f"id {id_} is both in {files[id_]} and in {file.name}: delete one of the two")
                files[id_] = file
        return files


def fill_stores(
    stores: Sequence[tuple[FeatureStore, FeatureExtractor]],
    ids: Sequence[int],
    draw: DrawImages,
    *,
    size: int = 250,
    progress: ImageProgress | None = None,
    mapper: Mapper = in_turn,
) -> None:
    """Draw the images of those ids that any store lacks, once, and keep each net's features, `size` ids at a time.

    progress: called with (ids in all of them, of how many) at first and after every shard
    mapper:   draws the shards
    Raises ValueError for repeated ids, a net that is not its store's, and features that are not finite; and what
    `FeatureStore.read` raises for files.
    """
    for store, net in stores:
        if net.identity != store.origin.features:
            raise ValueError(f"got features of {net.identity}; {store.directory} has {store.origin.features}")
    lacking = [set(store.missing(ids)) for store, _ in stores]
    missing = sorted(set().union(*lacking))
    report = progress or (lambda done, total: None)
    report(done := len(ids) - len(missing), len(ids))
    shards = [list(group) for _, group in itertools.groupby(missing, key=lambda id_: id_ // size)]
    for shard, (features, seconds) in mapper(partial(_features_drawn, draw, [net for _, net in stores]), shards):
        for (store, _), wanted, net_features in zip(stores, lacking, features, strict=True):
            if rows := [row for row, id_ in enumerate(shard) if id_ in wanted]:
                store.write([shard[row] for row in rows], net_features[rows], seconds * len(rows) / len(shard))
        done += len(shard)
        report(done, len(ids))


def _features_drawn(
    draw: DrawImages, nets: Sequence[FeatureExtractor], ids: Sequence[int]
) -> tuple[list[Tensor], float]:
    """Features (n, D) of the images of these ids by every net, and the seconds that drawing them took."""
    start = time.perf_counter()
    images = draw(ids)
    seconds = time.perf_counter() - start
    return [net.features(images) for net in nets], seconds


def _tensors(file: Path, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Some tensors of a shard, and its metadata; with features, its content is checked.

    Raises OSError for damaged files, and those that cannot be read.
    """
    try:
        with open_tensors(file) as opened:
            tensors, about = {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
        if "features" in names and ("seconds" not in about or _content(tensors) != about.get("content")):
            raise ValueError("its content has changed")
        return tensors, about
    except ValueError as error:
        raise OSError(f"{file} is damaged ({error}): delete it, and its features are taken again") from error


def _content(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in ("ids", "features"))).hexdigest()


def _distinct(ids: Sequence[int]) -> set[int]:
    distinct = set(ids)
    if not distinct or len(distinct) != len(ids):
        raise ValueError(f"got {len(ids)} ids, {len(distinct)} of them distinct; expected at least one, none twice")
    return distinct


def real_features(
    net: FeatureExtractor,
    images: Pixels,
    *,
    store: FeatureStore | None = None,
    mapper: Mapper = in_turn,
    progress: ImageProgress | None = None,
) -> Tensor:
    """(N, D) float32 of images (N, C, H, W) uint8: `net.features(images)`, PART at a time.

    store: of `store_in`: what is there is not taken again, and what is taken is kept there, by `mapper`
    Raises what `fill_stores` and the net raise.
    """
    ids = range(len(images))
    if store is None:
        return torch.cat([net.features(images[start : start + PART]) for start in ids[::PART]])
    fill_stores([(store, net)], ids, partial(_part, images), size=PART, progress=progress, mapper=mapper)
    return store.read(ids).features


def _part(images: Pixels, ids: Sequence[int]) -> Any:
    return images[ids[0] : ids[-1] + 1]


def store_in(directory: Path, net: FeatureExtractor, images: ImageSet) -> FeatureStore:
    """The store of features of these images, in a folder of the directory, which may hold other stores, too.

    Raises what `FeatureStore.open` raises.
    """
    rows = f"rows of {images.name}:{images.fingerprint}, {PART} at a time, version {VERSION}"  # the ids of real images
    origin = Origin(*5 * ("none",), features=net.identity, precision="none", seeds=rows, bits="their own")
    name = re.sub(r"[^\w.-]+", "-", f"{images.name}-{net.identity}-{origin.digest}")
    return FeatureStore.open(directory / name, origin)
