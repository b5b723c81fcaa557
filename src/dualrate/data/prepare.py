"""`prepare`: any source of images -> packed shards of one size (shards.py), over processes, going on after a kill.

A shard is a range of the source's images in their order, whatever the number of processes. It is written aside and
renamed, then its record; one that has both is never made again. What is prepared has the bits of the source read
directly at that size: the same decoding, the same split.

The folder that `prepare`, or `encode`, writes: whether it may, whether there is room, what a killed process left.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from dualrate.config.ranges import as_path
from dualrate.data.cache import OnBad, Options, cache_dir, identity, image_of, image_or_fault, summary
from dualrate.data.images import ImageSet, check_outside, find_source, prepared_folder
from dualrate.data.shards import (
    DATASET,
    FORMAT,
    PLAN,
    SHARD_BYTES,
    Shards,
    block_sums,
    is_finished,
    is_prepared,
    labels_file,
)
from dualrate.data.source import SPLITS, DataProgress, Items, Raw, Source, Split, one_line
from dualrate.system.files import naming, read_json, whole, write_whole, written_aside
from dualrate.system.folders import MANIFEST, Manifest
from dualrate.system.progress import run_lock
from dualrate.system.workers import Mapper, in_turn


class Counted(Protocol):
    """The work of one shard, of so many images."""

    @property
    def count(self) -> int: ...


Work = TypeVar("Work", bound=Counted)


def check_space(folder: Path, needed: int) -> None:
    """Raises OSError, before hours of work, where the disk cannot hold so many bytes more."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} is to hold {_size(needed)} more, and {_size(free)} are free there: make room for "
            f"{_size(needed - free)}, or ask for a smaller --size; the same command goes on"
        )


def _size(count: int) -> str:
    """Of so many bytes."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count} byte{'s' * (count != 1)}"


def begun_strictly(folder: Path) -> bool:
    """Whether a preparation was begun there that ends at bad images: one that leaves them out has the same shards."""
    before = read_json(folder / PLAN) if is_prepared(folder) else None
    return isinstance(before, dict) and before.get("on_bad") == "fail"


def check_folder(
    folder: Path, plan: dict[str, Any], *, file: str = PLAN, done: str = "prepared", free: Container[str] = ("source",)
) -> None:
    """Raises ValueError unless the folder is empty, new, or of the same plan.

    file: that holds the plan, whose "content" is the source's; done: what became of it; free: parts that may differ
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a new folder for the {done} images")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / file).is_file():
        if there := sorted(
            file.name for file in folder.iterdir() if file.name != ".lock" and not written_aside(file.name)
        ):
            raise ValueError(f"{folder} is not empty ({there[0]}, ...): give a new folder for the {done} images")
        return
    before = read_json(folder / file)
    if not isinstance(before, dict):
        raise ValueError(f"{folder / file} is no JSON object: remove the folder and begin anew")
    names = [name for name in plan if name not in free and name != "content" and before.get(name) != plan[name]]
    if names:
        differ = "; ".join(f"{name} {before.get(name)}, now {plan[name]}" for name in names)
        raise ValueError(f"{folder} was {done} with {differ}: ask for the same, or give another folder")
    if before.get("content") != plan["content"]:
        raise ValueError(
            f"{folder} was {done} from other files ({before.get('source')}): their names, sizes or times of change "
            f"are not those of {plan['source']} now; give another folder"
        )


def remove_leftovers(folder: Path) -> None:
    """What a killed process left half written, and the manifest of what is to be mended."""
    for file in folder.iterdir():
        if written_aside(file.name) or file.name == MANIFEST:
            with naming(file):
                file.unlink()


def record_file(file: str) -> str:
    """Of a shard's record, which is written after the shard."""
    return Path(file).with_suffix(".json").name


def is_done(folder: Path, file: str, row: int) -> bool:
    """Whether a shard is there with its record, which says how many rows it has; row: bytes of one."""
    shard, record = folder / file, folder / record_file(file)
    if not (shard.is_file() and record.is_file()):
        return False
    try:
        return shard.stat().st_size == read_json(record)["images"] * row
    except (ValueError, KeyError, TypeError):  # no record: the shard is made again
        return False


def make_blocks(
    job: Callable[[Work], object],
    missing: Sequence[Work],
    total: int,
    mapper: Mapper,
    progress: Callable[[int, int], None],
    place: str,
) -> None:
    """Do the job for every block; of `total` images the others are done. progress: (images done, total).

    Raises KeyboardInterrupt, which says how many images are in their place.
    """
    done = total - sum(block.count for block in missing)
    progress(done, total)
    try:
        for block, _ in mapper(job, missing):
            done += block.count
            progress(done, total)
    except KeyboardInterrupt:
        said = f"interrupted: {done:,} of {total:,} images are {place}; the same command goes on"
        raise KeyboardInterrupt(said) from None


PREPARING = "preparing"  # what progress is told
_PROBED = 100  # images looked at for one that can be read, before it is given up


@dataclass(frozen=True, eq=False)
class Block:
    """The work of one shard.

    file:   its name
    items:  `count` images, with their labels
    shape:  (C, H, W) of every image
    """

    file: str
    items: Items
    count: int
    labels: np.ndarray | None
    shape: tuple[int, ...]


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
    progress: DataProgress = lambda done, total, message: None,
) -> dict[str, Any]:
    """Both splits of a source (see `load_images`) as shards in `folder`, made if it is missing; or what is left to do.

    label:       as in `load_images`
    shard_bytes: of a file at most, but for an image at least
    Returns what dataset.json holds. Raises ValueError for content that cannot be used, for a folder that holds
    anything else or was prepared from other images or in another way; OSError for what cannot be read or written.
    """
    folder = as_path(folder)
    if size < 1 or shard_bytes < 1:
        raise ValueError(f"size {size}, shard_bytes {shard_bytes}; expected at least 1 each")
    if prepared_folder(source):
        raise ValueError(f"{source} is prepared already: prepare other sizes from the images that it was made of")
    check_outside(folder, source)
    options = Options(size, channels, on_bad)
    sources: dict[Split, Source] = {split: find_source(source, split, cache_dir(), progress, label) for split in SPLITS}

    def plan_of(options: Options) -> dict[str, Any]:
        content = [identity(found, options) for found in sources.values()]
        made = {"format": FORMAT, "source": str(source), **asdict(options), "label": label, "shard_bytes": shard_bytes}
        return {**made, "content": content}

    as_begun = replace(options, on_bad="fail") if begun_strictly(folder) else options
    plan = plan_of(as_begun)
    check_folder(folder, plan)
    with run_lock(folder, "prepared"):
        if not is_finished(folder):
            remove_leftovers(folder)
            write_whole(folder / PLAN, json.dumps(plan if as_begun == options else plan_of(options), indent=1))
            _prepare(sources, folder, options, shard_bytes, mapper, progress)
    return read_json(folder / DATASET)


def _prepare(
    sources: dict[Split, Source],
    folder: Path,
    options: Options,
    shard_bytes: int,
    mapper: Mapper,
    progress: DataProgress,
) -> None:
    raws: dict[Split, Raw] = {split: source.read() for split, source in sources.items()}
    for split, raw in raws.items():
        for note in filter(None, (sources[split].note, raw.note)):
            progress(raw.count, raw.count, note)
    shape = _shape(raws["train"], options, sources["train"].name)
    per_shard = max(1, shard_bytes // int(np.prod(shape)))
    blocks: dict[Split, list[Block]] = {split: _blocks(split, raw, shape, per_shard) for split, raw in raws.items()}
    row = int(np.prod(shape))
    missing = [block for split in SPLITS for block in blocks[split] if not is_done(folder, block.file, row)]
    check_space(folder, sum(block.count for block in missing) * row)
    job, total = partial(make_shard, folder, options), sum(raw.count for raw in raws.values())
    make_blocks(job, missing, total, mapper, lambda done, of: progress(done, of, PREPARING), f"in {folder}")
    splits: dict[Split, dict[str, Any]] = {
        split: _described(folder, split, sources[split].name, raw, [b.file for b in blocks[split]], shape)
        for split, raw in raws.items()
    }
    dataset = {"format": FORMAT, "size": options.size, "channels": shape[0], "splits": splits}
    write_whole(folder / DATASET, json.dumps(dataset, indent=1))
    labels = [labels_file(split) for split, part in splits.items() if part["labelled"]]
    Manifest.write(folder, [DATASET, *labels])


def make_shard(folder: Path, options: Options, block: Block) -> None:
    """Decode the images of one shard and write it, then its record.

    Raises ValueError for images that cannot be used, unless they are left out, and for one of other channels.
    """
    kept: list[int] = []
    rejects: list[str] = []
    digest = hashlib.sha256()
    with whole(folder / block.file) as aside, aside.open("wb") as file:
        for i, (name, item) in enumerate(block.items):
            image = image_or_fault(name, item, options)
            if isinstance(image, str):
                rejects.append(image)
                continue
            if image.shape != block.shape:
                raise ValueError(
                    f"{name} has {image.shape[0]} channel(s), the first image {block.shape[0]}; pass --channels 1 or 3 "
                    "to bring all to one number"
                )
            pixels = image.tobytes()
            digest.update(pixels)
            file.write(pixels)
            kept.append(i)
        if len(kept) + len(rejects) != block.count:
            raise ValueError(
                f"{block.file} got {len(kept) + len(rejects)} images, expected {block.count}; did the files change?"
            )
        if rejects and options.on_bad == "fail":
            raise ValueError(
                f"{summary(rejects)} of {block.count} images cannot be used; --on-bad skip leaves them out"
            )
    labels = None if block.labels is None else block.labels[kept].tolist()
    sums = {"sha256": digest.hexdigest(), "blocks": block_sums(folder / block.file)}
    record = {"images": len(kept), "labels": labels, **sums, "rejects": rejects}
    write_whole(folder / record_file(block.file), json.dumps(record))


def _blocks(split: Split, raw: Raw, shape: tuple[int, ...], per_shard: int) -> list[Block]:
    blocks = []
    for i, start in enumerate(range(0, raw.count, per_shard)):
        part = slice(start, min(start + per_shard, raw.count))
        labels = None if raw.labels is None else raw.labels[part]
        blocks.append(Block(f"{split}-{i:05}.bin", raw.items[part], part.stop - start, labels, shape))
    return blocks


def _shape(raw: Raw, options: Options, name: str) -> tuple[int, ...]:
    """(C, H, W) of the first image that can be read."""
    first = ""
    for label, item in raw.items[:_PROBED]:
        try:
            return image_of(label, item, options).shape
        except ValueError as error:
            if options.on_bad == "fail":
                raise ValueError(f"{error}; --on-bad skip leaves such images out") from error
            first = first or one_line(error)
    raise ValueError(f"none of the first {min(_PROBED, raw.count)} images of {name} can be used: {first}")


def _described(
    folder: Path, split: Split, name: str, raw: Raw, files: Sequence[str], shape: tuple[int, ...]
) -> dict[str, Any]:
    """A split's part of dataset.json, from the records of its shards, whose labels it writes; all pixels are read."""
    records = [read_json(folder / record_file(file)) for file in files]
    labels = None if raw.labels is None else np.concatenate([np.array(r.pop("labels"), np.int64) for r in records])
    if not any(record["images"] for record in records):
        first = next((reject for record in records for reject in record["rejects"]), "")
        raise ValueError(f"none of the {raw.count} images of {name} can be used: {first}")
    channels, height, width = shape
    images = Shards([folder / file for file in files], [r["images"] for r in records], (channels, height, width))
    whole_set = ImageSet(images, labels, raw.class_names, name)
    if labels is not None:
        with whole(folder / labels_file(split)) as aside, aside.open("wb") as file:
            np.save(file, labels, allow_pickle=False)
    return {
        "name": name,
        "images": len(images),
        "rejected": raw.count - len(images),
        "labelled": labels is not None,
        "class_names": raw.class_names,
        "fingerprint": whole_set.fingerprint,
        "shards": [
            {"file": file, **{name: r[name] for name in ("images", "sha256", "blocks", "rejects") if name in r}}
            for file, r in zip(files, records, strict=True)
        ],
    }
