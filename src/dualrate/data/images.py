"""Decoded image sets, the 8-bit rule, and `load_images`, which makes the one from any kind of source.

The 8-bit rule: x = u / 127.5 - 1 and u = round(127.5 x + 127.5), clamped to 0..255; its round trip is exact.

`prepare` decodes a source once, to a packed folder (cache.py) of images of one size. It has the bits of the source read
directly at that size: the same decoding, the same split. A shard is a range of the source's images in their order,
whatever the number of processes; one that is there with its record is never made again, so the same call goes on after
a kill. `look_at` looks at a source before it is decoded. `every_image` gives every image of a source by its name, for
those that are encoded or decoded and not trained on.

An entry of the cache is a packed folder of one split, images/<key>/. The key is a sha256 of the files' paths, sizes and
times of change and of all options, so an entry is never updated. It is written aside and renamed: an interrupted run
leaves no half entry. One that is not whole is made again. Who may read it, the umask says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.config.ranges import as_path, many
from dualrate.data import cache as packed
from dualrate.data import source as sources
from dualrate.data.cache import PREPARED, SHARD_BYTES, cache_dir
from dualrate.data.decode import OnBad, Options, image_of, image_or_fault
from dualrate.data.finding import check_outside, find_source, prepared_folder
from dualrate.data.folders import images_below, named
from dualrate.data.loader import Augment, TrainingSet
from dualrate.data.shards import Shards
from dualrate.data.source import SPLITS, DataProgress, Item, Raw, Source, Split, silent
from dualrate.diffusion.context import Shape
from dualrate.diffusion.random import Draws
from dualrate.system.files import naming, read_json
from dualrate.system.folders import new_folder
from dualrate.system.workers import Mapper, in_turn


def to_float(images: np.ndarray | Tensor) -> Tensor:
    """uint8 of any shape -> float32 in [-1, 1], by the 8-bit rule."""
    pixels = torch.tensor(images) if isinstance(images, np.ndarray) else images  # a copy: memory maps are read-only
    if pixels.dtype != torch.uint8:
        raise ValueError(f"images are {pixels.dtype}; expected uint8")
    half = torch.full((), 127.5, device=pixels.device)  # a number would be a product with 1 / 127.5 on CUDA: other bits
    return pixels.float().div_(half).sub_(1)


@dataclass(frozen=True, eq=False)
class ImageSet(TrainingSet):
    """Images with or without labels.

    images:      (N, C, H, W) uint8, C = 1 or 3, or of clips (N, T C, H, W): an array, or `Shards`, which slices and
                 numbers of rows index
    labels:      (N,) int64 in [0, num_classes), or None
    class_names: one per class; empty without labels
    hashed:      the fingerprint where it is known; empty: it is made when asked for
    alphabet:    of pieces of a text, (N, 1, 1, L): the characters, each by its place; empty: they are pictures
    frames_each: T, of each where they are clips
    Raises ValueError if a shape, a type or a label is not as said, or N = 0.
    """

    images: np.ndarray | Shards
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    name: str
    hashed: str = ""
    alphabet: str = ""
    frames_each: int = 1

    def __post_init__(self) -> None:
        shape, dtype, each = self.images.shape, self.images.dtype, self.frames_each
        if len(shape) != 4 or 0 in shape or shape[1] not in (each, 3 * each) or dtype != np.uint8:
            channels = "C = 1 or 3" if each == 1 else f"C = 1 or 3 times {each} frames"
            raise ValueError(f"{self.name}: images are {dtype} {shape}; expected uint8 (N, C, H, W), N > 0, {channels}")
        if self.labels is not None:
            if self.labels.shape != shape[:1] or self.labels.dtype != np.int64:
                got = f"{self.labels.dtype} {self.labels.shape}"
                raise ValueError(f"{self.name}: labels are {got}; expected int64 {shape[:1]}")
            sources.check_label_range(self.labels, len(self.class_names), self.name)
        elif self.class_names:
            raise ValueError(f"{self.name}: {len(self.class_names)} class names but no labels; expected none")

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def shape(self) -> Shape:
        """(C, H, W) of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def rows(self, index: NDArray[np.int64], draws: Draws, augment: Augment) -> Tensor:
        """(B, C, H, W) uint8: these images, changed by `augment`. draws: of their rows."""
        return augment(torch.from_numpy(self.images[index]), draws)  # fancy indexing copies

    @staticmethod
    def floats(rows: Tensor, draws: Draws) -> Tensor:
        return to_float(rows)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of images, labels and class names; reads every image once, unless it is known."""
        return self.hashed or self._digest

    @cached_property
    def _digest(self) -> str:
        """The fingerprint, computed once; not in `hashed`, which a copy with other images would have too."""
        return images_fingerprint(self.images, self.labels, self.class_names)


def images_fingerprint(images: np.ndarray | Shards, labels: np.ndarray | None, class_names: tuple[str, ...]) -> str:
    """sha256 (hex) of images (N, C, H, W), labels and class names."""
    digest = hashlib.sha256(repr((images.shape, class_names)).encode())
    for start in range(0, len(images), 256):
        digest.update(images[start : start + 256].tobytes())
    if labels is not None:
        digest.update(labels.tobytes())
    return digest.hexdigest()


def to_uint8(x: Tensor) -> Tensor:
    """Floats of any shape -> uint8 by the 8-bit rule; values outside [-1, 1] are clamped, as the rule says."""
    if not torch.isfinite(x).all():
        raise ValueError(f"{int((~torch.isfinite(x)).sum())} of {x.numel()} values are not finite; no 8-bit image")
    return to_bytes(x)


def to_bytes(x: Tensor) -> Tensor:
    """Convert as `to_uint8` does, without its check for finite values, which would wait for a GPU."""
    return (127.5 * x.float() + 127.5).round().clamp(0, 255).to(torch.uint8)


def load_images(
    source: str | Path,
    *,
    split: Split,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    on_bad: OnBad = "fail",
    label: str | None = None,
    cache: str | Path | None = None,
    progress: DataProgress | None = None,
) -> ImageSet:
    """One split of a data source, decoded once and memory-mapped ever after.

    source:   "fashion-mnist", a folder of images (see `source`), a .tar or .npz file, or a folder of tars (see
              `tars`), a Parquet file or a folder of them (see `parquet`), perhaps with "#" and the column of the
              images, or a folder that `prepare` wrote. A source without a test split has a tenth held out (see
              `source.hold_out`)
    size:     pixels; centre crop and resize to size x size. None: all images must have one shape
    channels: 1 or 3; None: as stored, one number for all images
    on_bad:   a file that is no image: "fail", or "skip" and report it through `progress`
    label:    the column of labels, of Parquet files, or the array of .npz; None: one of the usual names (see `parquet`)
    cache:    folder of decoded images; None: `cache_dir()`
    progress: called with (done, total, message); also with what is not used of the source (`source.NOTED`)
    Raises ValueError for content that cannot be used, FileNotFoundError if there is no such source, OSError for what
    cannot be opened or read.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}; expected train or test")
    options, report = Options(size, channels, on_bad), progress or silent
    if folder := prepared_folder(source):
        if label is not None:
            raise ValueError(f"{folder} was prepared with its labels: leave out --data.label {label}")
        stored = packed.read_packed(folder, split)
        depth, _, side = stored.rows.shape[1:]
        if size not in (None, side) or channels not in (None, depth):
            raise ValueError(
                f"{folder} was prepared at size {side} with {many(depth, 'channel')}, asked for {size} and {channels}: "
                "leave out --data.size and --data.channels, or prepare its source once more"
            )
        return _image_set(stored, report)
    cache = cache_dir() if cache is None else as_path(cache)
    return decoded_source(find_source(source, split, cache, report, label), split, options, cache, report)


def decoded_source(source: Source, split: Split, options: Options, cache: Path, report: DataProgress) -> ImageSet:
    """The images of a source, from the cache or decoded now. Raises as `load_images`."""
    folder = cache / "images" / _identity(source, options, changes=True)
    if not packed.is_finished(folder, [split]):
        try:
            with new_folder(folder, replace=True) as aside:
                _pack({split: source}, aside, options, report, f"decoding {source.name}", _SHARD_BYTES, in_turn)
        except OSError:
            if not packed.is_finished(folder, [split]):  # else another process has just published the same entry
                raise
    return _image_set(packed.read_packed(folder, split), report)


def _image_set(stored: packed.Packed, report: DataProgress) -> ImageSet:
    part = stored.part
    for note in part.get("notes", ()):  # none in a folder that v0.1 prepared
        report(len(stored.rows), len(stored.rows), note)
    names, frames = tuple(part["class_names"]), stored.dataset.get("frames", 1)
    return ImageSet(stored.rows, stored.labels, names, part["name"], part["fingerprint"], frames_each=frames)


def prepare(
    source: str | Path,
    folder: str | Path,
    *,
    size: int,
    channels: Literal[1, 3] | None = None,
    on_bad: OnBad = "fail",
    label: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    mapper: Mapper = in_turn,
    progress: DataProgress = silent,
) -> dict[str, Any]:
    """Both splits of a source (see `load_images`) as images in `folder`, made if it is missing; or what is left to do.

    label:       as in `load_images`
    shard_bytes: of a file at most, but for an image at least
    Returns what dataset.json holds. Raises ValueError for content that cannot be used, for a folder that holds
    anything else or was prepared from other images or in another way; OSError for what cannot be read or written.
    """
    folder, options = as_path(folder), Options(size, channels, on_bad)
    if prepared_folder(source):
        raise ValueError(f"{source} is prepared already: prepare other sizes from the images that it was made of")
    check_outside(folder, source)
    sources: dict[Split, Source] = {split: find_source(source, split, cache_dir(), progress, label) for split in SPLITS}
    content = [_identity(each, replace(options, on_bad="fail")) for each in sources.values()]
    plan = {"format": packed.FORMAT, "source": str(source), **asdict(options), "label": label}
    plan |= {"shard_bytes": shard_bytes, "content": content}
    with packed.begun(folder, PREPARED, plan) as unfinished:
        if unfinished:
            dataset = _pack(sources, folder, options, progress, PREPARING, shard_bytes, mapper)
            for part in dataset["splits"].values():
                for note in part["notes"]:
                    progress(1, 1, note)
    return read_json(folder / packed.DATASET)


PREPARING = "preparing"  # the message of progress


# Decoding

_VERSION = 3  # of the decoding rules: part of every key
_SHARD_BYTES = 2**24  # of the cache: few, so that progress is seen
_PROBED = 100  # images looked at for one that can be read, before it is given up


def _identity(source: Source, options: Options, *, changes: bool = False) -> str:
    """sha256 (hex) of what decoded images depend on: files by path, size and time of modification, and options.

    changes: also by the time of change, which nobody can set: a file put in the place of another is another one,
             whatever time it was given
    """
    digest = hashlib.sha256(repr((_VERSION, source.name, source.label, options)).encode())
    for file in source.files:
        try:
            stat = file.stat()
            changed = (stat.st_ctime_ns,) if changes else ()
            digest.update(repr((str(file), stat.st_size, stat.st_mtime_ns, *changed)).encode())
        except OSError as error:  # a link that leads nowhere: bad, once it is read
            digest.update(repr((str(file), error.errno)).encode())
    return digest.hexdigest()


def _pack(
    sources: Mapping[Split, Source],
    folder: Path,
    options: Options,
    progress: DataProgress,
    what: str,
    shard_bytes: int,
    mapper: Mapper,
) -> dict[str, Any]:
    """Decode what is missing of these splits into a packed folder; what dataset.json holds then. Arguments as `pack`'s.

    Raises ValueError for images that cannot be used, or are of several shapes; OSError for what cannot be read or
    written.
    """
    raws: dict[Split, tuple[str, Raw]] = {split: (source.name, source.read()) for split, source in sources.items()}
    shape = _shape(*next(iter(raws.values())), options)
    row = {"shape": shape, "dtype": "uint8", "each": 1}
    job = partial(_decode_shard, folder, options, shape)
    splits = packed.pack(folder, raws, job, row, shard_bytes=shard_bytes, mapper=mapper, progress=progress, what=what)
    return finish_images(folder, raws, row, splits, size=options.size, channels=shape[0])


def finish_images(
    folder: Path, raws: Mapping[Split, tuple[str, Raw]], row: Any, splits: Mapping[Split, Any], **about: Any
) -> dict[str, Any]:
    """Finish images that were packed, with fingerprints and notes; what dataset.json holds then. about: more for it

    Raises ValueError for a split without images.
    """
    for split, part in splits.items():
        name, raw = raws[split]
        rejects = [reject for shard in part["shards"] for reject in shard.get("rejects", ())]
        if not part["images"]:
            raise ValueError(f"none of the images of {name} can be used, {raw.count} in all: {rejects[0]}")
        labels = np.load(folder / packed.labels_file(split), allow_pickle=False) if part["labelled"] else None
        part["fingerprint"] = images_fingerprint(Shards(folder, row, part["shards"]), labels, raw.class_names)
        part["rejected"] = len(rejects)
        part["notes"] = [f"skipped {summary(rejects)} of {many(raw.count, 'image')}"] if rejects else []
        part["notes"] += [raw.note] if raw.note else []
    return packed.finish_dataset(folder, row, splits, **about)


def _decode_shard(folder: Path, options: Options, shape: tuple[int, ...], shard: packed.Shard) -> None:
    """Decode a shard. Raises ValueError for images that cannot be used, unless left out, or are of another shape.

    shape: (C, H, W) of every image
    """
    rejects: list[str] = []

    def images() -> Iterator[tuple[int, np.ndarray]]:
        number = -1
        with naming(shard.name):
            for number, (name, item) in enumerate(shard.items):
                image = image_or_fault(name, item, options)
                if isinstance(image, str):
                    rejects.append(image)
                    continue
                if image.shape != shape:
                    raise ValueError(
                        f"{name} is {image.shape} (channels, height, width), the first image of {shard.name} "
                        f"{shape}: pass --data.size (and --data.channels 1 or 3) for one shape"
                    )
                yield number, image
        if number + 1 != shard.count:
            raise ValueError(f"{shard.name} gave {number + 1} of {many(shard.count, 'image')}; did its files change?")
        if rejects and options.on_bad == "fail":
            raise ValueError(
                f"{summary(rejects)} of {many(shard.count, 'image')} of {shard.name} cannot be used; pass "
                "--data.on-bad skip to leave them out"
            )

    packed.write_shard(folder, shard, images(), {"rejects": rejects})


def _shape(name: str, raw: Raw, options: Options) -> tuple[int, ...]:
    """(C, H, W) of the first image that can be read."""
    faults: list[str] = []
    for label, item in raw.items[:_PROBED]:
        image = image_or_fault(label, item, options)
        if not isinstance(image, str):
            return image.shape
        faults.append(image)
    raise ValueError(f"none of the first images of {name} can be used: {''.join(faults[:1])}")


def summary(bad: list[str]) -> str:
    """A line with their number, and the first five of them."""
    return f"{len(bad)} ({'; '.join(bad[:5])}{'; ...' if len(bad) > 5 else ''})"


# Looking

MOST = 500  # images that are looked at


@dataclass(frozen=True, eq=False)
class Look:
    """The training images of a source, looked at before they are decoded.

    raw: all of them, before decoding
    """

    name: str
    raw: Raw

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 without labels."""
        return len(self.raw.class_names)

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """(C, H, W) of up to `MOST` images, spread evenly over all of them; files that are no images are passed over.

        Raises ValueError if nothing is left. May be read once, and reads all of a Parquet file.
        """
        shapes: list[Shape] = []
        problem = ""
        for name, item in islice(self.raw.items, 0, None, -(-self.raw.count // MOST)):
            image = image_or_fault(name, item, Options(None, None, "skip"))
            if isinstance(image, str):
                problem = problem or image
            else:
                shapes.append((image.shape[0], image.shape[1], image.shape[2]))
        if not shapes:
            raise ValueError(f"no image of {self.name} can be opened; the first one: {problem}")
        return tuple(shapes)


def look_at(source: str | Path, label: str | None = None) -> Look:
    """Look at the training split of a source (see `load_images`), with the labels of a column.

    Raises ValueError for content that cannot be used, FileNotFoundError if there is no such source.
    """
    training = find_source(source, "train", cache_dir(), silent, label)
    return Look(training.name, training.read())


@dataclass(frozen=True)
class Everything:
    """All images of a source, decoded one by one. items: not decoded yet; options: of decoding"""

    items: list[Item]
    options: Options

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Name and image, (C, H, W). Raises ValueError, naming it, for what is no image, OSError as `image_of`."""
        for name, item in self.items:
            yield name, image_of(name, item, self.options)


def every_image(
    source: str | Path, size: int | None = None, channels: int | None = None, *, without: Collection[Path] = ()
) -> Everything:
    """The images of a picture, a folder of pictures in the order of their paths, or anything that `load_images` takes.

    Of other sources come the training images, then the others; where a tenth was held out, all in their own order.
    size, channels: as in `load_images`, but images may have several shapes; without: pictures that are left out
    Raises ValueError for a source without images, FileNotFoundError for none, and what `find_source` raises.
    """
    options = Options(size, channels, "fail")  # pyright: ignore[reportArgumentType]  # refuses others than 1 and 3
    path = sources.resolved(source)
    if path.is_file() and path.name.lower().endswith(sources.SUFFIXES):
        return Everything(named(path.parent, [path]), options)
    if path.is_dir() and (files := [file for file in images_below(path) if file not in without]):
        return Everything(named(path, files), options)
    raw = [find_source(source, split, cache_dir(), silent).read() for split in SPLITS]
    items = [item for part in raw for item in part.items]
    rows = [part.rows for part in raw if part.rows is not None]
    order = range(len(items)) if len(rows) < len(raw) else np.concatenate(rows).argsort()
    return Everything([items[i] for i in order], options)
