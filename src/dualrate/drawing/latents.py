"""Latents: of somebody's own pictures and back, of a model that draws them, and what a codec keeps of images.

    LATENTS (.npz)      latents (N, C, h, w) float32, as `Codec.encode` gives their means; names (N,); codec: the sha256
                        by which a codec's latents are known. Written whole or not at all
    OUT/decoded.json    what the images beside it are of; images of anything else are never put there
    OUT/000007-cat.png  the image of latent 7, whole or not there: the same call goes on after a kill
    OUT/images.npz      if asked for: arr_0 (N, H, W, C) uint8

The noise that a decoder takes latents with, and what it draws, are keyed by a latent's number.

What a codec keeps of images, and at what cost in bits:

    gFD     the Frechet distance of a table, where its images are drawn by a model of latents: from training images
    rFD     of reconstructions of held-out images, from the same images
    PSNR    10 log10(255^2 / mean square error) of a reconstruction, in dB, on 8-bit pixels
    bits    KL(q(z_0 | x) | p(z_0)) / (pixels ln 2) at most, by the prior that was trained with the codec:
            mean over t of its unweighted loss, and KL(q(z_1 | x) | N(0, I))        (methods/unified_latents.py)

Reconstructions are drawn: z_0 has its noise, a diffusion decoder its own. Both are keyed by the image's number.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.codecs.codec import RUN, Codec, CodecFolder, decoded, with_noise
from dualrate.codecs.diffusion import decoding_of
from dualrate.data.condition_rows import HeldOut
from dualrate.data.images import Everything, ImageSet, to_float, to_uint8
from dualrate.data.source import read_arrays
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.context import Cond
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Elbo
from dualrate.drawing.drawer import Drawer, Samples
from dualrate.drawing.likelihood import Estimate
from dualrate.drawing.measure import Measurement, image_batches
from dualrate.drawing.record import FolderRecord, naming_progress
from dualrate.drawing.samples import NPZ, Files
from dualrate.experiment.model import Model
from dualrate.methods.unified_latents import bound, end
from dualrate.metrics.evaluate import ROUND_TRIP, Evaluator, round_trips
from dualrate.report.image_grid import Pictures, write_npz
from dualrate.runs.store import load
from dualrate.system.files import whole
from dualrate.system.progress import ImageProgress

ARRAYS = ("latents", "names", "codec")
RECORD = "decoded.json"
LOOKED_AT = 1000  # images of PSNR and bits, at most, where a score has more
TIMES = 16  # of the integral of `bits_per_pixel`, for each image: one in each sixteenth


@dataclass(frozen=True, eq=False)
class Latents:
    """Latents of named images.

    x: (N, C, h, w) float32, normalised, without noise; names: of their images; codec: `Codec.latents` of theirs
    """

    x: NDArray[np.float32]
    names: tuple[str, ...]
    codec: str

    @staticmethod
    def read(file: Path) -> Latents:
        """Read a file. Raises ValueError, naming the file, for another content; OSError where it cannot be read."""

        def wanted(arrays: list[str]) -> tuple[str, ...]:
            if missing := sorted(set(ARRAYS) - set(arrays)):
                raise ValueError(f"it has no array {missing[0]}, which `dualrate data encode-images` writes")
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

    Raises ValueError for a file that is there, images that are none, of several shapes, or that the codec does not
    take, and latents that are not finite; OSError for what cannot be read or written.
    """
    if out.exists():
        raise ValueError(f"{out} is there already: name another --out, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    means, names = [], []
    progress(0, len(images))
    for batch_names, batch in image_batches(images, batch_size):
        try:
            codec.latent_shape(batch.shape[1:])
        except ValueError as error:
            raise ValueError(f"{batch_names[0]}: {error}") from error
        means.append(codec.encode(to_float(batch).to(codec.device)).mean.float().cpu().numpy())
        names += batch_names
        if not np.isfinite(means[-1]).all():
            raise ValueError(f"the codec gives latents that are not finite, of {batch_names[0]} or one after it")
        progress(len(names), len(images))
    latents = Latents(np.concatenate(means), tuple(names), codec.latents)
    with whole(out) as aside, aside.open("wb") as file:
        np.savez(file, latents=latents.x, names=np.array(names), codec=np.array(latents.codec))
    return latents


@dataclass(frozen=True, kw_only=True)
class DecodedRecord(FolderRecord):
    """Content of decoded.json. latents, codec: sha256 of them; sampler, steps: of a decoder that draws"""

    file, content, whole = RECORD, "decoded images", (RECORD, NPZ, ".png")
    latents: str
    codec: str
    seed: int
    images: int
    sampler: str | None = None
    steps: int | None = None

    def identity(self) -> dict[str, tuple[Any, Any]]:
        return {name: (value, str(value)[:12]) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Decoded:
    """Outcome of a call of `decode_latents`. drawn: images, in so many seconds of the codec"""

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
        raise ValueError(f"got latents of the codec {latents.codec[:12]} (sha256), this one's are {codec.latents[:12]}")
    count, channels, height, width = latents.x.shape
    shape = codec.image_shape((channels, height, width))
    record = DecodedRecord(latents=latents.digest, codec=codec.fingerprint, seed=seed, images=count)
    if (decoding := decoding_of(codec)) is not None:
        record = replace(record, sampler=decoding.sampler, steps=decoding.plan.num_steps)

    def draw(rows: Sequence[int]) -> Samples:
        start, row = time.perf_counter(), torch.tensor(rows, device=codec.device)
        draws, x = Draws(seed, row), torch.from_numpy(latents.x[list(rows)]).to(codec.device)
        with torch.no_grad():
            images = to_uint8(decoded(codec, with_noise(codec, x, draws), draws)).cpu().numpy()
        return Samples(images, time.perf_counter() - start)

    with record.filling(out) as record:
        record.write(out)
        names = [re.sub(r"[^\w.-]+", "-", Path(name).stem).strip("-.")[:60] or "image" for name in latents.names]
        files = Files([out / f"{i:06}-{name}.png" for i, name in enumerate(names)], range(count), Pictures(shape))
        with naming_progress(files):
            drawn, seconds = files.fill(draw, batch_size, progress)
            if npz:
                write_npz(out / NPZ, files.read(), (count, *shape), None)
    return Decoded(count, drawn, seconds)


# What a codec keeps


@dataclass(frozen=True)
class Nearness:
    """A mean over images, and its standard error. psnr: in dB."""

    psnr: float
    error: float
    count: int

    def __str__(self) -> str:
        return f"PSNR {self.psnr:.2f} dB, standard error {self.error:.2f}, of {self.count:,} reconstructions"


def nearness(images: Iterable[NDArray[np.uint8]], reconstructions: Iterable[NDArray[np.uint8]]) -> Nearness:
    """Mean PSNR of the same images in batches, each (b, C, H, W)."""
    decibels: list[float] = []
    for x, drawn in zip(images, reconstructions, strict=True):
        square = (drawn.astype(np.float64) - x) ** 2
        decibels += [10 * math.log10(255**2 / max(error, 1e-9)) for error in square.mean((1, 2, 3)).tolist()]
    return Nearness(float(np.mean(decibels)), float(np.std(decibels) / math.sqrt(len(decibels))), len(decibels))


def round_trip_nearness(codec: Codec, images: ImageSet, count: int) -> Nearness:
    """Mean PSNR of the first `count` images and what the codec makes of them."""
    rows = torch.arange(count)
    return nearness((images.images[part.numpy()] for part in rows.split(ROUND_TRIP)), round_trips(codec, images, rows))


@dataclass(frozen=True)
class LatentScores:
    """Scores of a codec's round trip.

    generated: whether the table's distances are gFDs; rfd: by metric, of `count` images; bits: a pixel
    """

    generated: bool
    rfd: Mapping[str, float]
    count: int
    nearness: Nearness
    bits: Estimate | None

    def __str__(self) -> str:
        """Lines for people."""
        table = "gFD: images from a model of latents, from training images" if self.generated else "rFD"
        of = f"of {self.count:,} reconstructions, from the same held-out images"
        lines = [
            f"the table's distances are {table}",
            *(f"r{name} {value:.4g}, {of}" for name, value in self.rfd.items()),
            str(self.nearness),
        ]
        if self.bits is not None:
            lines.append(f"latents hold {self.bits} bits a pixel at most, by the prior that was trained with them")
        return "\n".join(lines)


def latent_scores(
    drawer: Drawer, seeds: range, measured: Measurement, evaluators: Sequence[Evaluator[Any]]
) -> LatentScores | None:
    """Scores of a decoder, or of a model of latents; None for one of pixels, or evaluators without held-out images.

    measured: what `measure` gave for them. Raises what drawing and reading the codec raise.
    """
    model, images = drawer.model, evaluators[0].held_out
    conditions = model.given if isinstance(model.given, HeldOut) else None
    codec = model.codec if conditions is None else conditions.codec
    if not codec.fingerprint or images is None:
        return None
    if conditions is not None:
        rfd, count = {metric: score.value for metric, score in measured.row.scores.items()}, len(seeds)
        first = seeds[:LOOKED_AT]
        originals = map(conditions.originals, torch.tensor(first).split(drawer.batch_size))
        near = nearness(originals, replace(drawer, members=1).batches(first))
    else:
        count = min(len(seeds), len(images))
        rfd = {
            evaluator.metric: evaluator.reconstruction(count, codec)
            for evaluator in evaluators
            if evaluator.reference is not None
        }
        near = round_trip_nearness(codec, images, min(count, LOOKED_AT))
    prior = prior_of(model)
    looked_at = min(len(images), LOOKED_AT)
    bits = prior and bits_per_pixel(
        prior.denoiser, prior.gaussian, codec, images, looked_at, classes=prior.num_classes > 0
    )
    return LatentScores(conditions is None, rfd, count, near, bits)


def prior_of(model: Model) -> Model | None:
    """The model, among those that it is built on, that trained with the codec a prior of its noisy latents, if any.

    Raises what `load` raises.
    """
    latents = model.experiment.condition.codec
    config = latents if latents.fingerprint else model.experiment.codec
    if not config.fingerprint:
        return model if model.process.end is not None else None
    if not isinstance(config, CodecFolder) or not (Path(config.folder) / RUN).is_file():
        return None
    return prior_of(load(config.folder, device=model.device, note=lambda text: None))


@torch.no_grad()
def bits_per_pixel(
    denoiser: Denoiser, process: GaussianProcess, codec: Codec, images: ImageSet, count: int, *, classes: bool = False
) -> Estimate:
    """An upper bound on what z_0 holds of the first `count` images, in bits for each pixel, by a model of latents.

    classes: whether the model is given the images' labels
    """
    bits = []
    for row in torch.arange(count, device=codec.device).split(ROUND_TRIP):
        index, draws = row.cpu().numpy(), Draws(0, row)
        moments = codec.encode(to_float(images.images[index]).to(codec.device))
        z = moments.sample(draws.normal("latent", *moments.mean.shape[1:]))
        label = torch.from_numpy(images.labels[index]).to(z.device) if classes and images.labels is not None else None
        nats, offset = end(process, z).double(), draws.uniform("t").double()
        for k in range(TIMES):
            eps = draws.normal(f"z_t {k}", *z.shape[1:])
            nats += bound(denoiser, process, z, (k + offset) / TIMES, eps, Cond(label), Elbo()) / TIMES
        bits.append(nats.cpu() / (math.log(2) * images.frames_each * math.prod(images.shape[1:])))
    return Estimate.of(torch.cat(bits))
