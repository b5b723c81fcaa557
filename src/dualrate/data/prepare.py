"""`prepare`: any source of images -> packed shards of one size (shards.py), over processes, going on after a kill.

A shard is a range of the source's images in their order, whatever the number of processes. It is written aside and
renamed, then its record; one that has both is never made again. What is prepared has the bits of the source read
directly at that size: the same decoding, the same split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dualrate.config.ranges import as_path
from dualrate.data.cache import OnBad, Options, cache_dir, identity, image_of, image_or_fault, summary
from dualrate.data.images import ImageSet, check_outside, find_source, prepared_folder
from dualrate.data.prepare_folder import (
    begun_strictly,
    check_folder,
    check_space,
    is_done,
    make_blocks,
    record_file,
    remove_leftovers,
)
from dualrate.data.shards import DATASET, FORMAT, PLAN, SHARD_BYTES, Shards, block_sums, is_finished, labels_file
from dualrate.data.source import SPLITS, DataProgress, Items, Raw, Source, Split
from dualrate.data.untrusted import one_line
from dualrate.machine.files import read_json, whole, write_whole
from dualrate.machine.folders import Manifest
from dualrate.machine.guards import run_lock
from dualrate.machine.workers import Mapper, in_turn

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
