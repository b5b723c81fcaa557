"""What a codec keeps of images, and at what price: rFD, PSNR, and bits a pixel of its latents, beside a model's gFD.

    gFD         the Frechet distance of a table, where its images are drawn by a model of latents: from training images
    rFD         of reconstructions of held-out images, from the same images
    bits        KL(q(z_0 | x) | p(z_0)) / (pixels ln 2) at most, by the prior that was trained with the codec:
                mean over t of its unweighted loss, and KL(q(z_1 | x) | N(0, I))        (methods/unified_latents.py)

Reconstructions are drawn: z_0 has its noise, a diffusion decoder its own. Both are keyed by the image's number.

How near a decoder's images are to those whose latents it was given.

PSNR = 10 log10(255^2 / mean square error) of an image, in dB, on 8-bit pixels
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.codecs.codec import RUN, Codec, CodecFolder
from dualrate.data.images import ImageSet, to_float
from dualrate.data.latent_set import HeldOut
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.prediction import Elbo
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Cond
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.likelihood import Estimate
from dualrate.drawing.measure import Measurement
from dualrate.experiment.experiment import Model
from dualrate.methods.unified_latents import bound, end
from dualrate.metrics.evaluate import ROUND_TRIP, Evaluator, round_trips
from dualrate.runs.store import load

LOOKED_AT = 1000  # images, at most, where a score has more


@dataclass(frozen=True)
class Nearness:
    """A mean over images, and its standard error. psnr: in dB."""

    psnr: float
    error: float
    count: int

    def __str__(self) -> str:
        return f"PSNR {self.psnr:.2f} dB, standard error {self.error:.2f}, of {self.count:,} reconstructions"


def nearness(drawer: Drawer, seeds: range) -> Nearness | None:
    """Draws one image per seed. None for a model that is given no latents of images. Raises what drawing raises."""
    given = drawer.model.given
    if not isinstance(given, HeldOut):
        return None
    parts = torch.tensor(seeds).split(drawer.batch_size)
    return nearness_of((given.originals(part), drawn) for part, drawn in zip(parts, drawer.batches(seeds), strict=True))


def nearness_of(pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> Nearness:
    """pairs: images and their reconstructions, each (b, C, H, W), batch by batch."""
    found: list[float] = []
    for images, drawn in pairs:
        square = (drawn.astype(np.float64) - images) ** 2
        found += [10 * math.log10(255**2 / max(error, 1e-9)) for error in square.mean((1, 2, 3)).tolist()]
    return Nearness(float(np.mean(found)), float(np.std(found) / math.sqrt(len(found))), len(found))


TIMES = 16  # of the bound's integral, for each image: one in each sixteenth


@dataclass(frozen=True)
class LatentScores:
    """generated: whether the table's distances are gFDs; rfd: by metric, of `count` images; bits: a pixel"""

    generated: bool
    rfd: Mapping[str, float]
    count: int
    nearness: Nearness
    bits: Estimate | None

    def __str__(self) -> str:
        """For people, line by line."""
        table = "gFD: images from a model of latents, from training images" if self.generated else "rFD"
        lines = [f"the table's distances are {table}"]
        lines += [f"r{metric} {value:.4g}, of {self.count:,} reconstructions, from the same held-out images"
                  for metric, value in self.rfd.items()]  # fmt: skip
        lines.append(str(self.nearness))
        if self.bits is not None:
            lines.append(f"latents hold {self.bits} bits a pixel at most, by the prior that was trained with them")
        return "\n".join(lines)


def latent_scores(
    drawer: Drawer, seeds: range, measured: Measurement, judges: Sequence[Evaluator[Any]]
) -> LatentScores | None:
    """Of a decoder, or of a model of latents; None for one of pixels, or judges without held-out images.

    measured: what `measure` gave for the drawer, seeds and judges. Raises what drawing and reading the codec raise.
    """
    model, images = drawer.model, judges[0].held_out
    given = model.given if isinstance(model.given, HeldOut) else None
    codec = model.codec if given is None else given.codec
    if not codec.fingerprint or images is None:
        return None
    if given is not None:
        rfd, count = {metric: score.value for metric, score in measured.row.scores.items()}, len(seeds)
        near = nearness(drawer, seeds[:LOOKED_AT])
        assert near is not None  # of a decoder
    else:
        count = min(len(seeds), len(images))
        rfd = {judge.metric: judge.reconstruction(count, codec) for judge in judges}
        near = round_trip_nearness(codec, images, min(count, LOOKED_AT))
    prior = prior_of(model)
    held = min(len(images), LOOKED_AT)
    bits = prior and bits_per_pixel(prior.denoiser, prior.gaussian, codec, images, held, classes=prior.num_classes > 0)
    return LatentScores(given is None, rfd, count, near, bits)


def round_trip_nearness(codec: Codec, images: ImageSet, count: int) -> Nearness:
    """PSNR of the first `count` images after the codec's round trip."""
    rows = torch.arange(count)
    parts = zip(rows.split(ROUND_TRIP), round_trips(codec, images, rows), strict=True)
    return nearness_of((images.images[row.numpy()], drawn) for row, drawn in parts)


def prior_of(model: Model) -> Model | None:
    """The model, among those that it is built on, that trained with the codec a prior of its noisy latents, if any.

    Raises what `load` raises.
    """
    latents = model.experiment.method.latents
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
    found = []
    for row in torch.arange(count, device=codec.device).split(ROUND_TRIP):
        index, draws = row.cpu().numpy(), Draws(0, row)
        moments = codec.encode(to_float(images.images[index]).to(codec.device))
        z = moments.sample(draws.normal("latent", *moments.mean.shape[1:]))
        label = torch.from_numpy(images.labels[index]).to(z.device) if classes and images.labels is not None else None
        nats, offset = end(process, z).double(), draws.uniform("t").double()
        for k in range(TIMES):
            eps = draws.normal(f"z_t {k}", *z.shape[1:])
            nats += bound(denoiser, process, z, (k + offset) / TIMES, eps, Cond(label), Elbo()) / TIMES
        found.append(nats.cpu() / (math.log(2) * math.prod(images.shape[1:])))
    return Estimate.of(torch.cat(found))
