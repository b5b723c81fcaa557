"""Measuring a model: images drawn, scored and timed, as a row of a report; and what its calls and images cost."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.codecs.codec import decoded
from dualrate.config.ranges import Precision
from dualrate.data.images import Everything
from dualrate.data.latent_set import HeldOut
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Cond
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.experiment import Model
from dualrate.metrics.evaluate import Evaluator, Score
from dualrate.metrics.features import FeatureExtractor
from dualrate.metrics.store import FeatureStore, fill_stores
from dualrate.networks.blocks import in_bfloat16
from dualrate.report.table import Row
from dualrate.sampling.cost import CallCost, priced, seconds_per_call
from dualrate.system.device import own_defaults
from dualrate.system.progress import ImageProgress
from dualrate.system.workers import Mapper, in_turn

SHARD = 125  # images of a file of kept features, at least


@dataclass(frozen=True, eq=False)
class Measurement:
    """A row; and by metric the features of its images, (N, D), from which its scores were made, and the bootstrap
    replicates, (R,), that their intervals are of.
    """

    row: Row
    features: Mapping[str, Tensor]
    replicates: Mapping[str, NDArray[np.float64]]


class OutOfTime(Exception):
    """What was to be drawn took longer than it may; what was drawn is kept."""


def until(deadline: float, tell: Callable[[int, int], None]) -> ImageProgress:
    """Raises OutOfTime at the first report after the deadline, of `time.monotonic`, unless all is done.

    tell: called with the images that were there before, and those drawn since
    """
    before = -1

    def report(done: int, total: int) -> None:
        nonlocal before
        before = done if before < 0 else before
        tell(before, done - before)
        if done < total and time.monotonic() > deadline:
            raise OutOfTime

    return report


def check(evaluators: Sequence[Evaluator[Any]], count: int, *, details: bool) -> None:
    """Raises ValueError, before anything is drawn, for what could not be scored."""
    for one in evaluators:
        one.check_count(count)
    if details:
        _ = evaluators[0].reference_images


@own_defaults()
def measure(
    drawer: Drawer,
    seeds: range,
    *evaluators: Evaluator[Any],
    keep: Path | None = None,
    shard_size: int | None = None,
    details: bool = False,
    progress: ImageProgress | None = None,
    mapper: Mapper = in_turn,
) -> Measurement:
    """Draw one image per seed, once, and have every evaluator score them; the first with details if asked for.

    evaluators: at least one; no two of one metric. The row's score is the first one's
    keep: a directory that holds the features as images are drawn, `shard_size` at a time (a batch, and no fewer than
          SHARD, if not given), and images nowhere: for 50,000 of them or more, or a run that may be killed. The same
          call goes on where it was, one for more seeds draws only those that are new, and seconds per image are those
          of the calls that drew them. An evaluator that comes later has them drawn again
    mapper: draws the shards; seconds are those of one worker
    Raises what drawing, `Evaluator.score_features` and `FeatureStore` raise, before anything is drawn where that is
    possible.
    """
    check(evaluators, len(seeds), details=details)
    cost = drawer.cost  # counted apart from the seconds; refuses what cannot be drawn
    nets, of = [one.net for one in evaluators], _originals(drawer.model, seeds, evaluators[0])
    size = shard_size or max(SHARD * (keep is not None), drawer.batch_size)
    with TemporaryDirectory() if keep is None else nullcontext(keep) as directory:
        stores(drawer, nets, Path(directory))  # refused before the features of real images, which may take long
        for one in evaluators:
            one.prepare(mapper, held_out_alone=of is not None and not (details and one is evaluators[0]))
        kept = keep_features(drawer, seeds, nets, Path(directory), shard_size=size, progress=progress, mapper=mapper)
        found = [store.read(seeds) for store in kept]
    features = {one.metric: own.features for one, own in zip(evaluators, found, strict=True)}
    strata = drawer.strata(seeds)
    replicates = {one.metric: one.replicates(features[one.metric], strata, of=of) for one in evaluators}
    score, *beside = (
        one.score_features(
            features[one.metric],
            seeds=f"{seeds.start}-{seeds.stop - 1}",
            labels=drawer.labels_rule,
            strata=strata,
            details=details and one is evaluators[0],
            codec=drawer.model.codec,
            of=of,
            replicates=replicates[one.metric],
        )
        for one in evaluators
    )
    row = Row(
        network=drawer.network,
        sampler=drawer.sampler,
        num_steps=drawer.plan.num_steps,
        num_heavy=drawer.plan.num_heavy,
        macs=cost.macs,
        seconds_per_image=found[0].seconds / len(seeds),
        batch_size=min(drawer.batch_size, size, len(seeds)),
        precision=drawer.arithmetic,
        score=score,
        beside=tuple(beside),
    )
    return Measurement(row, features, replicates)


def score_images(
    images: Everything,
    name: str,
    *evaluators: Evaluator[Any],
    details: bool = False,
    batch_size: int = 125,
    progress: ImageProgress | None = None,
) -> tuple[Score, ...]:
    """Scores of images that are there already, whoever made them, by every evaluator; the first with details if asked.

    images: of one shape, (C, H, W), as `every_image` finds them
    name:   of the images, in the scores' fingerprints
    Their classes are unknown, so the interval counts the choice of classes as chance. Raises ValueError for images of
    several shapes, and what `Evaluator.score_features` and reading them raise.
    """
    check(evaluators, len(images), details=details)
    parts: list[list[Tensor]] = [[] for _ in evaluators]
    done = 0
    for names, batch in image_batches(images, batch_size):
        for own, one in zip(parts, evaluators, strict=True):
            own.append(one.net.features(batch))
        done += len(names)
        if progress is not None:
            progress(done, len(images))
    return tuple(
        one.score_features(
            torch.cat(own), seeds=f"images of {name}", labels="unknown", details=details and one is evaluators[0]
        )
        for own, one in zip(parts, evaluators, strict=True)
    )


def image_batches(images: Everything, size: int) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
    """Names and images (b, C, H, W) of one shape. Raises ValueError, naming the image, for one of another shape."""
    first: tuple[str, tuple[int, ...]] | None = None
    every = iter(images)
    while batch := list(islice(every, size)):
        for name, image in batch:
            first = first or (name, image.shape)
            if image.shape != first[1]:
                raise ValueError(
                    f"{name} is {image.shape} (C, H, W), {first[0]} is {first[1]}; expected one shape: bring all "
                    "images to one size (--size)"
                )
        yield [name for name, _ in batch], np.stack([image for _, image in batch])


def _originals(model: Model, seeds: range, evaluator: Evaluator[Any]) -> Tensor | None:
    """(N,) rows of the held-out images that a decoder reconstructs; None of another model, or without images.

    Raises ValueError for a decoder that is given the latents of other images.
    """
    given = model.given
    if not isinstance(given, HeldOut) or evaluator.held_out is None:
        return None
    if given.images.fingerprint != evaluator.held_out.fingerprint:
        raise ValueError(
            f"{model.name} reconstructs {given.images.name}, and {evaluator.metric} has the held-out images of "
            f"{evaluator.held_out.name}: measure it on the data that it was trained with"
        )
    return given.rows(torch.tensor(seeds))


def keep_features(
    drawer: Drawer,
    seeds: range,
    nets: Sequence[FeatureExtractor],
    directory: Path,
    *,
    shard_size: int | None = None,
    progress: ImageProgress | None = None,
    mapper: Mapper = in_turn,
) -> list[FeatureStore]:
    """Draw one image per seed that `stores` lack, and keep their features. Raises what they and drawing raise."""
    found = stores(drawer, nets, directory)
    size = shard_size or max(SHARD, drawer.batch_size)
    draw = partial(_images, drawer.resolved)
    fill_stores(list(zip(found, nets, strict=True)), seeds, draw, size=size, progress=progress, mapper=mapper)
    return found


def stores(drawer: Drawer, nets: Sequence[FeatureExtractor], directory: Path) -> list[FeatureStore]:
    """Where features are kept: the first net's in the directory, each other's in a folder of it that has its identity.

    Raises what `FeatureStore.open` raises.
    """
    places = [directory, *(directory / re.sub(r"[^\w.-]+", "-", net.identity) for net in nets[1:])]
    opened = zip(places, nets, strict=True)
    return [FeatureStore.open(place, drawer.origin(net.identity)) for place, net in opened]


def _images(drawer: Drawer, seeds: Sequence[int]) -> NDArray[np.uint8]:
    return drawer.draw(seeds).images


def call_seconds(model: Model, batch_size: int, *, seconds: float = 1.0, precision: Precision = "auto") -> CallCost:
    """Seconds of a row in calls of `batch_size` rows, and of its decoding, measured now, for about `seconds` each.

    precision: of the networks' matrix products
    """
    device = model.device
    z = torch.zeros(batch_size, *model.process.state_shape(model.shape), device=device)
    t = torch.full((batch_size,), 0.5, dtype=torch.float64, device=device)
    latent = model.experiment.networks.latent
    cond = Cond(
        torch.zeros(batch_size, dtype=torch.int64, device=device) if model.num_classes else None,
        None if latent is None else torch.zeros(batch_size, *latent, device=device),
    )
    bfloat16 = in_bfloat16(precision, device)
    denoiser = model.ready(bfloat16=bfloat16).denoiser
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):

        def taken(call: Callable[[], object]) -> float:
            return seconds_per_call(call, seconds=seconds, device=device) / batch_size

        calls = priced(denoiser, z, t, cond, taken)
    if not model.call_cost.decode:
        return calls
    x, draws = torch.zeros(batch_size, *model.shape, device=device), Draws(0, torch.arange(batch_size, device=device))
    return replace(calls, decode=taken(lambda: decoded(model.codec, x, draws)))


def cost_report(drawer: Drawer) -> dict[str, object]:
    """Parameters, MACs and FLOPs, and latency of the networks' calls and of a batch's images, measured now.

    Light calls alone, without a context, are light calls too.
    """
    cost, count = drawer.cost, drawer.batch_size
    drawer.draw(range(count))  # the first compiles, records, chooses kernels
    seconds = drawer.draw(range(count)).seconds
    taken = call_seconds(drawer.model, count, precision=drawer.precision)
    calls = {"heavy_call": cost.calls.heavy, "light_call": cost.calls.light, "light_call_alone": cost.calls.without}
    macs = {**calls, "decode": cost.calls.decode, "per_image": cost.macs}
    return {
        **{f"parameters_{name}": parameters for name, parameters in drawer.model.parameters.items()},
        **{f"macs_{of}": number for of, number in macs.items()},
        **{f"flops_{of}": 2 * number for of, number in macs.items() if of != "decode"},
        "seconds_heavy_call": count * taken.heavy if cost.calls.heavy else 0.0,
        "seconds_light_call": count * taken.light,
        "seconds_light_call_alone": count * taken.without,
        "seconds_decode": count * taken.decode,
        "seconds_per_image": seconds / count,
        "steps": drawer.plan.num_steps,
        "heavy_calls_per_image": cost.heavy_calls,
        "light_calls_per_image": cost.light_calls,
        "light_calls_alone_per_image": cost.alone_calls,
        "batch_size": count,
        "device": str(drawer.model.device),
        "precision": drawer.arithmetic,
    }
