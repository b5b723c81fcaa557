"""Scores of a codec's latents: what it keeps of images, and at what cost in bits.

    gFD     the Frechet distance of a table, where its images are drawn by a model of latents: from training images
    rFD     of reconstructions of held-out images, from the same images
    PSNR    10 log10(255^2 / mean square error) of a reconstruction, in dB, on 8-bit pixels
    bits    KL(q(z_0 | x) | p(z_0)) / (pixels ln 2) at most, by the prior that was trained with the codec:
            mean over t of its unweighted loss, and KL(q(z_1 | x) | N(0, I))        (methods/unified_latents.py)

Reconstructions are drawn: z_0 has its noise, a diffusion decoder its own. Both are keyed by the image's number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.codecs.codec import RUN, Codec, CodecFolder
from dualrate.data.condition_rows import HeldOut
from dualrate.data.images import ImageSet, to_float
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.context import Cond
from dualrate.diffusion.prediction import Elbo
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.likelihood import Estimate
from dualrate.drawing.measure import Measurement
from dualrate.experiment.model import Model
from dualrate.methods.unified_latents import bound, end
from dualrate.metrics.ensembles import psnr
from dualrate.metrics.evaluate import ROUND_TRIP, Evaluator, round_trips
from dualrate.runs.store import load

LOOKED_AT = 1000  # images of PSNR and bits, at most, where a score has more
TIMES = 16  # of the integral of `bits_per_pixel`, for each image: one in each sixteenth


def nearness(images: Iterable[NDArray[np.uint8]], reconstructions: Iterable[NDArray[np.uint8]]) -> Estimate:
    """Mean PSNR, in dB, of the same images in batches, each (b, C, H, W). Raises ValueError for fewer than 2 images."""
    pairs = zip(images, reconstructions, strict=True)
    return Estimate.of(torch.cat([psnr(*(torch.tensor(x).double() / 255 for x in pair)) for pair in pairs]))


def round_trip_nearness(codec: Codec, images: ImageSet, count: int) -> Estimate:
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
    nearness: Estimate
    bits: Estimate | None

    def __str__(self) -> str:
        """Lines for people."""
        table = "gFD: images from a model of latents, from training images" if self.generated else "rFD"
        of = f"of {self.count:,} reconstructions, from the same held-out images"
        lines = [
            f"the table's distances are {table}",
            *(f"r{name} {value:.4g}, {of}" for name, value in self.rfd.items()),
            f"PSNR {self.nearness} dB, of up to {LOOKED_AT:,} reconstructions",
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
