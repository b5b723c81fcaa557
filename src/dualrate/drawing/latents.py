"""Images to a file of their latents, and back to images: what a codec makes of somebody's own pictures.

    LATENTS (.npz)      latents (N, C, h, w) float32, as `Codec.encode` gives their means; names (N,); codec: the sha256
                        by which a codec's latents are known. Written whole or not at all
    OUT/decoded.json    what the images beside it are of; images of anything else are never put there
    OUT/000007-cat.png  the image of latent 7, whole or not there: the same call goes on after a kill
    OUT/images.npz      if asked for: arr_0 (N, H, W, C) uint8

The noise that a decoder takes latents with, and what it draws, are keyed by a latent's number.

Latents that a model of them draws, for decoders to be compared on: kept as they are drawn, like features of images.

A decoder's own noise is keyed by its image's seed, so the latent of image i is drawn from another one, FIRST + i.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.codecs.codec import Codec, decoded, with_noise
from dualrate.codecs.diffusion import decoding_of
from dualrate.data.archives import read_arrays
from dualrate.data.images import Everything, to_float, to_uint8
from dualrate.data.latents import DrawnLatents
from dualrate.diffusion.random import Draws
from dualrate.drawing.drawer import Drawer
from dualrate.metrics.store import FeatureStore
from dualrate.report.html import is_whole_png, png_bytes, read_png, write_npz
from dualrate.report.table import plan_name
from dualrate.system.files import read_json, whole, write_whole, written_aside
from dualrate.system.progress import ImageProgress, run_lock
from dualrate.system.workers import Mapper, in_turn

ARRAYS = ("latents", "names", "codec")
RECORD, NPZ = "decoded.json", "images.npz"
HOW = ("sampler", "steps")  # of a decoder that draws, in the record


@dataclass(frozen=True, eq=False)
class Latents:
    """x: (N, C, h, w) float32, normalised, without noise; names: of their images; codec: `Codec.latents` of theirs"""

    x: NDArray[np.float32]
    names: tuple[str, ...]
    codec: str

    @staticmethod
    def read(file: Path) -> Latents:
        """Raises ValueError, naming the file, for another content; OSError where it cannot be read."""

        def wanted(found: list[str]) -> tuple[str, ...]:
            if missing := set(ARRAYS) - set(found):
                raise ValueError(f"it has no array {sorted(missing)[0]}, which dualrate data encode-images writes")
            return ARRAYS

        x, names, codec = read_arrays(file, wanted, "latents").values()
        if x.dtype != np.float32 or x.ndim != 4 or names.shape != x.shape[:1] or not len(x) or not np.isfinite(x).all():
            raise ValueError(
                f"{file} has latents {x.dtype} {x.shape} and names {names.shape}; expected finite float32 (N, C, h, w) "
                "and a name for each"
            )
        return Latents(x, tuple(map(str, names)), str(codec))

    @property
    def digest(self) -> str:
        """sha256 of all that images of them depend on."""
        return hashlib.sha256(repr((self.x.shape, self.names, self.codec)).encode() + self.x.tobytes()).hexdigest()


@torch.no_grad()
def encode_images(
    images: Everything,
    codec: Codec,
    out: Path,
    *,
    batch_size: int = 64,
    progress: ImageProgress = lambda done, total: None,
) -> Latents:
    """Write the latents of all images to a new file `out`, and return them.

    Raises ValueError for a file that is there, images that are none or that the codec does not take, and latents that
    are not finite; OSError for what cannot be read or written.
    """
    if out.exists():
        raise ValueError(f"{out} is there already: name another --out, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    found, names = [], []
    progress(0, len(images))
    for batch in _batches(images, codec, batch_size):
        x = to_float(np.stack([image for _, image in batch])).to(codec.device)
        found.append(codec.encode(x).mean.float().cpu().numpy())
        names += [name for name, _ in batch]
        if not np.isfinite(found[-1]).all():
            raise ValueError(f"the codec gives latents that are not finite, of {names[-len(batch)]} or one after it")
        progress(len(names), len(images))
    latents = Latents(np.concatenate(found), tuple(names), codec.latents)
    with whole(out) as aside, aside.open("wb") as file:
        np.savez(file, latents=latents.x, names=np.array(names), codec=np.array(latents.codec))
    return latents


def _batches(images: Everything, codec: Codec, size: int) -> Iterator[list[tuple[str, NDArray[np.uint8]]]]:
    """Raises ValueError, naming the image, for one of a shape that the codec or this file does not take."""
    batch: list[tuple[str, NDArray[np.uint8]]] = []
    first: tuple[str, tuple[int, ...]] | None = None
    for name, image in images:
        first = first or (name, image.shape)
        if image.shape != first[1]:
            raise ValueError(
                f"{name} is {image.shape} (C, H, W), {first[0]} is {first[1]}: a file holds latents of one shape: "
                "bring the images to one size (--size), or encode those of each size apart"
            )
        channels, height, width = image.shape
        try:
            codec.latent_shape((channels, height, width))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        batch.append((name, image))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass(frozen=True)
class Decoded:
    """What a call of `decode_latents` did. drawn: images, in so many seconds of the codec"""

    images: int
    drawn: int
    seconds: float


def decode_latents(
    latents: Latents,
    codec: Codec,
    out: Path,
    *,
    seed: int = 0,
    batch_size: int = 64,
    npz: bool = False,
    progress: ImageProgress = lambda done, total: None,
) -> Decoded:
    """Write the images of latents that `out` lacks as PNGs, and images.npz if asked for.

    Raises ValueError, before anything is written, for latents of another codec, and for an `out` that holds anything
    else; OSError for what cannot be read or written, and for a folder that another process is filling.
    """
    if codec.latents != latents.codec:
        raise ValueError(
            f"these are latents of the codec {latents.codec[:12]} (sha256), this one's are {codec.latents[:12]}: name "
            "the run that encoded them, as it was then, or a decoder of its latents"
        )
    count, channels, height, width = latents.x.shape
    shape = codec.image_shape((channels, height, width))
    record = _record(latents, codec, seed)
    _check_folder(out, record)
    out.mkdir(parents=True, exist_ok=True)
    with run_lock(out, "filled with decoded images"):
        _check_folder(out, record)
        write_whole(out / RECORD, json.dumps(record, indent=1) + "\n")
        files = [out / f"{i:06}-{_plain(name)}.png" for i, name in enumerate(latents.names)]
        there = np.array([file.is_file() and is_whole_png(file, shape) for file in files])
        before, start = int(there.sum()), time.perf_counter()
        progress(before, count)
        for first in range(0, count, batch_size):
            part = slice(first, min(first + batch_size, count))
            if there[part].all():
                continue
            row = torch.arange(part.start, part.stop, device=codec.device)
            draws, x = Draws(seed, row), torch.from_numpy(latents.x[part]).to(codec.device)
            with torch.no_grad():
                images = to_uint8(decoded(codec, with_noise(codec, x, draws), draws)).cpu().numpy()
            for file, image in zip(files[part], images, strict=True):
                write_whole(file, png_bytes(image), synced=False)
            there[part] = True
            progress(int(there.sum()), count)
        seconds = time.perf_counter() - start
        if npz:
            write_npz(out / NPZ, map(read_png, files), (count, *shape), None)
    return Decoded(count, count - before, seconds)


def _record(latents: Latents, codec: Codec, seed: int) -> dict[str, object]:
    """What images are of. codec: sha256, of sampler and steps too, where its decoder has them"""
    decoding = decoding_of(codec)
    how = {} if decoding is None else dict(zip(HOW, (decoding.sampler, decoding.plan.num_steps), strict=True))
    return {
        "latents": latents.digest,
        "codec": codec.fingerprint,
        **how,
        "seed": seed,
        "images": len(latents.x),
    }


def _short(name: str, record: dict[str, object]) -> str:
    """Of a record, for people: the beginning of a sha256."""
    return str(record[name])[: 12 if name in ("latents", "codec") else None]


def _check_folder(out: Path, record: dict[str, object]) -> None:
    """Raises ValueError, naming what differs, for a folder of anything else than images of this record."""
    if (out / RECORD).is_file():
        found = read_json(out / RECORD)
        found = found if isinstance(found, dict) else {}
        there = {name: found.get(name, record[name] if name in HOW else None) for name in record}  # not written before
        differ = [name for name in record if there[name] != record[name]]
        if set(HOW) & set(differ):
            differ = [name for name in differ if name != "codec"]  # of whose sha256 they are a part
        if differ:
            listed = ", ".join(f"{name} ({_short(name, there)}; now {_short(name, record)})" for name in differ)
            raise ValueError(
                f"{out} holds other images, they differ in {listed}: name another --out, or ask for the same again"
            )
    elif out.exists() and (not out.is_dir() or any(not _is_left(file) for file in out.iterdir())):
        raise ValueError(
            f"{out} is there already and holds no images that dualrate data decode wrote: name another --out"
        )


def _is_left(file: Path) -> bool:
    """Whether a kill before the first image leaves such a file."""
    return file.name == ".lock" or written_aside(file.name) == RECORD


def _plain(name: str) -> str:
    """A name of an image as a part of a file's."""
    return re.sub(r"[^\w.-]+", "-", Path(name).stem).strip("-.")[:60] or "image"


FIRST = 2_000_000  # beyond the seeds of images
SHARD = 250  # latents of a file


def draw_latents(
    drawer: Drawer,
    count: int,
    directory: Path,
    *,
    progress: ImageProgress | None = None,
    mapper: Mapper = in_turn,
) -> DrawnLatents:
    """`count` of them, those that the directory lacks drawn now, in blocks; it goes on where a killed call was.

    Raises OSError for files that are damaged or cannot be read.
    """
    model, cost, origin = drawer.model, drawer.expected_cost, drawer.origin(_Itself.identity)
    store = FeatureStore.open(directory / f"latents-{origin.digest}", origin)
    seeds, how = range(FIRST, FIRST + count), {"size": SHARD, "progress": progress, "mapper": mapper}
    store.fill(seeds, partial(_latents, drawer.settled), _Itself(), **how)
    return DrawnLatents(
        store.read(seeds).features.unflatten(1, model.shape),
        codec=model.codec.latents,
        digest=f"{origin.digest} {count}",
        drawn_by=drawn_by(drawer),
        weights=model.weights_hash,
        macs=int(cost.macs - cost.calls.decode),
    )


def drawn_by(drawer: Drawer) -> str:
    """Model, sampler and plan, in words."""
    return f"{drawer.network} ({drawer.sampler}, {plan_name(drawer.plan.num_steps, drawer.plan.num_heavy)} steps)"


class _Itself:
    """The features of a latent: its numbers."""

    identity = "the latents themselves"

    def features(self, images: Any) -> Tensor:
        """(N, C h w) of (N, C, h, w)."""
        return torch.as_tensor(images).flatten(1)


def _latents(drawer: Drawer, seeds: Sequence[int]) -> Any:
    return torch.cat(list(drawer.states(seeds))).cpu().numpy()
