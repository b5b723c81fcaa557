"""`prepare` and `encode`: any source of images -> a packed folder (cache.py) of images of one size, or of latents.

A shard is a range of the source's images in their order, whatever the number of processes; one that is there with its
record is never made again, so the same call goes on after a kill. What is prepared has the bits of the source read
directly at that size: the same decoding, the same split. What is encoded are moments (latent_set.py): images go through
the codec in batches within a shard, in float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.codecs.codec import Codec, CodecFolder
from dualrate.config.ranges import as_path
from dualrate.data import fashion_mnist
from dualrate.data.cache import (
    DATASET,
    ENCODED,
    FORMAT,
    PREPARED,
    SHARD_BYTES,
    OnBad,
    Options,
    Shard,
    cache_dir,
    identity,
    is_finished,
    pack,
    pack_images,
    raw_rows,
    write_dataset,
    write_shard,
)
from dualrate.data.images import ImageSet, check_outside, find_source, load_images, prepared_folder, to_float
from dualrate.data.latent_set import is_encoded
from dualrate.data.source import SPLITS, DataProgress, Source, Split, resolved
from dualrate.system.device import whole_products
from dualrate.system.files import naming, read_json, write_whole, written_aside
from dualrate.system.folders import MANIFEST
from dualrate.system.progress import run_lock
from dualrate.system.workers import Mapper, in_turn

PREPARING, ENCODING = "preparing", "encoding"  # messages of progress
HIGHEST = float(np.finfo(np.float16).max)


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
    """Both splits of a source (see `load_images`) as images in `folder`, made if it is missing; or what is left to do.

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
    content = [identity(found, replace(options, on_bad="fail")) for found in sources.values()]
    plan = {"format": FORMAT, "source": str(source), **asdict(options), "label": label, "shard_bytes": shard_bytes}
    with _begun(folder, PREPARED, {**plan, "content": content}) as unfinished:
        if unfinished:
            made = pack_images(
                sources, folder, options, progress=progress, what=PREPARING, shard_bytes=shard_bytes, mapper=mapper
            )
            for note in (note for split in SPLITS for note in made["splits"][split]["notes"]):
                progress(1, 1, note)
    return read_json(folder / DATASET)


@contextmanager
def _begun(folder: Path, file: str, plan: dict[str, Any]) -> Iterator[bool]:
    """Hold a folder that is empty, new, or of the same plan; yields whether something is left to do.

    file: that holds the plan, whose "content" is the source's
    Raises ValueError for any other folder; one in which bad images ended it may leave them out now.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / file).is_file():
        found = read_json(folder / file)
        before = found if isinstance(found, dict) else {}
        before |= {"on_bad": plan["on_bad"]} if before.get("on_bad") == "fail" else {}
        if names := [name for name in plan if name not in ("source", "content") and before.get(name) != plan[name]]:
            differ = "; ".join(f"{name} {before.get(name)}, now {plan[name]}" for name in names)
            raise ValueError(f"{folder} was made with {differ}: ask for the same, or give another folder")
        if before.get("content") != plan["content"]:
            raise ValueError(
                f"{folder} was made from other files ({before.get('source')}): their names, sizes or times of change "
                f"are not those of {plan['source']} now; give another folder"
            )
    elif there := sorted(one.name for one in folder.iterdir() if one.name != ".lock" and not written_aside(one.name)):
        raise ValueError(f"{folder} is not empty ({there[0]}, ...): give a new folder")
    with run_lock(folder, "written"):
        unfinished = not is_finished(folder)
        if unfinished:
            for left in folder.iterdir():  # half written, or the manifest of what is to be mended
                if written_aside(left.name) or left.name == MANIFEST:
                    with naming(left):
                        left.unlink()
            write_whole(folder / file, json.dumps(plan, indent=1))
        try:
            yield unfinished
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted: finished shards are kept in {folder}; the same command goes on"
            ) from None


def encode(
    source: str | Path,
    folder: str | Path,
    codec: CodecFolder,
    *,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    on_bad: OnBad = "fail",
    label: str | None = None,
    mirrored: bool = True,
    shard_bytes: int = SHARD_BYTES,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    mapper: Mapper = in_turn,
    progress: DataProgress = lambda done, total, message: None,
) -> dict[str, Any]:
    """Both splits of a source (see `load_images`) as latents in `folder`, made if it is missing; or what is left to do.

    size, channels, on_bad, label: as in `load_images`
    mirrored: also the latents of mirrored images
    shard_bytes: of a file at most, but for an image at least
    device:   of the codec, in every process
    Returns what dataset.json holds. Raises ValueError for images or latents that cannot be used, for a folder that
    holds anything else or was encoded from other images, by another codec or in another way; OSError for what cannot be
    read or written.
    """
    folder = as_path(folder)
    if is_encoded(source):
        raise ValueError(f"{source} holds latents already: encode the images that they were made of")
    check_outside(folder, source)
    if shard_bytes < 1 or batch_size < 1:
        raise ValueError(f"shard_bytes {shard_bytes}, batch_size {batch_size}; expected at least 1 each")
    named = str(source) if source == fashion_mnist.NAME else str(resolved(source))  # read again, from wherever
    how: dict[str, Any] = {"source": named, "size": size, "channels": channels, "on_bad": on_bad, "label": label}
    images: dict[Split, ImageSet] = {split: load_images(**how, split=split, progress=progress) for split in SPLITS}
    if images["test"].shape != images["train"].shape:
        shapes = " and ".join(f"{images[split].shape} ({split})" for split in SPLITS)
        raise ValueError(f"images of one shape (C, H, W) are encoded, got {shapes}: give --size")
    made_by = codec.read(device)
    made_by.latent_shape(images["train"].shape)  # refuses what it cannot encode
    plan = {"format": FORMAT, **how, "mirrored": mirrored, "shard_bytes": shard_bytes}
    plan |= {"codec": codec.fingerprint, "content": [images[split].fingerprint for split in SPLITS]}
    with _begun(folder, ENCODED, plan) as unfinished:
        if unfinished:
            first = moments_of(made_by, images["train"].images[:1], device, mirrored)
            row = {"shape": list(first.shape[2:]), "dtype": "float16", "each": first.shape[1]}
            where = str(device) if mapper is in_turn else torch.device(device).type  # a worker has a GPU of its own
            job = partial(encode_shard, folder, codec, where, mirrored, batch_size)
            raws = {
                split: (one.name, raw_rows(one.name, one.images, one.labels, one.class_names))
                for split, one in images.items()
            }
            splits = pack(
                folder, raws, job, row, shard_bytes=shard_bytes, mapper=mapper, progress=progress, what=ENCODING
            )
            for split, part in splits.items():
                part["fingerprint"] = images[split].fingerprint
            by = {"folder": codec.folder, "fingerprint": codec.fingerprint}
            write_dataset(folder, row, splits, codec=by, images=how)
    return read_json(folder / DATASET)


def moments_of(codec: Codec, images: np.ndarray, device: torch.device | str, mirrored: bool) -> Tensor:
    """(B, V, M, C, H, W) float16. images: (B, C, H, W) uint8. Raises ValueError for numbers that float16 has not."""
    x = to_float(torch.tensor(images).to(device))
    with whole_products():
        views = [codec.encode(view).stacked() for view in ((x, x.flip(-1)) if mirrored else (x,))]
    stacked = torch.stack(views, 1).cpu()
    if not (stacked.isfinite().all() and stacked.abs().max() <= HIGHEST):
        raise ValueError(
            "the codec gives latents that are not finite, or too large for float16: see `dualrate codec check`"
        )
    return stacked.half()


def encode_shard(folder: Path, by: CodecFolder, device: str, mirrored: bool, batch_size: int, shard: Shard) -> None:
    """Raises what `moments_of` raises, and ValueError where the codec is not what it was."""
    codec, record = by.read(device), {"sha256": ""}

    def rows() -> Iterator[tuple[int, NDArray[np.float16]]]:
        digest, items, first = hashlib.sha256(), iter(shard.items), 0
        while batch := [image for _, image in islice(items, batch_size)]:
            moments = moments_of(codec, np.stack(batch), device, mirrored).numpy()
            digest.update(moments.tobytes())
            yield from enumerate(moments, first)
            first += len(batch)
        record["sha256"] = digest.hexdigest()

    write_shard(folder, shard, rows(), record)
