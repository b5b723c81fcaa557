"""Measuring a model: images drawn, scored and timed, as a row of a report; and what its calls and images cost."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.codecs.codec import decoded
from dualrate.config.ranges import Precision
from dualrate.data.latent_set import HeldOut
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Cond
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.experiment import Model
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.extractor import FeatureExtractor
from dualrate.metrics.store import FeatureStore, StoredFeatures, fill_together
from dualrate.networks.blocks import in_bfloat16
from dualrate.report.rows import Row
from dualrate.sampling.cost import CallCost, priced, seconds_per_call
from dualrate.system.device import own_defaults
from dualrate.system.progress import ImageProgress
from dualrate.system.workers import Mapper, in_turn

SHARD = 125  # images of a file of kept features, at least


@dataclass(frozen=True, eq=False)
class Measurement:
    """A row; and by the judge's metric the features of its images, (N, D), from which its scores were made, and the
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


def check(judges: Iterable[Evaluator[Any]], count: int, *, details: bool) -> None:
    """Raises ValueError, before anything is drawn, for what could not be scored."""
    first, *others = judges
    for judge in (first, *others):
        judge.check_count(count)
    if details:
        _ = first.reference_images


@own_defaults()
def measure(
    drawer: Drawer,
    seeds: range,
    *judges: Evaluator[Any],
    keep: Path | None = None,
    shard_size: int | None = None,
    details: bool = False,
    progress: ImageProgress | None = None,
    mapper: Mapper = in_turn,
) -> Measurement:
    """Draw one image per seed, once, and have every judge score them; the first with details if asked for.

    judges: at least one; no two of one metric. The row's score is the first one's
    keep: a directory that holds the features as images are drawn, `shard_size` at a time (a batch, and no fewer than
          SHARD, if not given), and images nowhere: for 50,000 of them or more, or a run that may be killed. The same
          call goes on where it was, one for more seeds draws only those that are new, and seconds per image are those
          of the calls that drew them. A judge that comes later has them drawn again
    mapper: draws the blocks, which are shards, or batches where nothing is kept; seconds are then those of one worker
    Raises what drawing, `Evaluator.score` and `FeatureStore` raise, before anything is drawn where that is possible.
    """
    check(judges, len(seeds), details=details)
    cost = drawer.cost  # counted apart from the seconds; refuses what cannot be drawn
    nets, of = [judge.net for judge in judges], _originals(drawer.model, seeds, judges[0])
    if keep is not None:
        stores(drawer, nets, keep)  # refused before real images are seen, which may take long
    for judge in judges:
        judge.prepare(mapper, held_out_alone=of is not None and not (details and judge is judges[0]))
    if keep is None:
        found, largest = _features(drawer, seeds, nets, progress, mapper), len(seeds)
    else:
        size = shard_size or max(SHARD, drawer.batch_size)
        how = {"shard_size": size, "progress": progress, "mapper": mapper}
        found = [store.read(seeds) for store in keep_features(drawer, seeds, nets, keep, **how)]
        largest = min(size, len(seeds))
    features = {judge.metric: own.features for judge, own in zip(judges, found, strict=True)}
    strata = drawer.strata(seeds)
    how = {
        "codec": drawer.model.codec,
        "labels": drawer.labels_rule,
        "strata": strata,
        "of": of,
        "seeds": f"{seeds.start}-{seeds.stop - 1}",
    }
    replicates = {judge.metric: judge.replicates(features[judge.metric], strata, of=of) for judge in judges}
    score, *beside = (
        judge.score_features(
            features[judge.metric], details=details and judge is judges[0], replicates=replicates[judge.metric], **how
        )
        for judge in judges
    )
    row = Row(
        network=drawer.network,
        sampler=drawer.sampler,
        num_steps=drawer.plan.num_steps,
        num_heavy=drawer.plan.num_heavy,
        macs=cost.macs,
        seconds_per_image=found[0].seconds / len(seeds),
        batch_size=min(drawer.batch_size, largest),
        precision=drawer.arithmetic,
        score=score,
        beside=tuple(beside),
    )
    return Measurement(row, features, replicates)


def _originals(model: Model, seeds: range, judge: Evaluator[Any]) -> Tensor | None:
    """(N,) rows of the judge's held-out images that a decoder reconstructs; None of another model, or without images.

    Raises ValueError for a decoder that is given the latents of other images.
    """
    given = model.given
    if not isinstance(given, HeldOut) or judge.held_out is None:
        return None
    if given.images.fingerprint != judge.held_out.fingerprint:
        raise ValueError(
            f"{model.name} reconstructs {given.images.name}, and {judge.metric} has the held-out images of "
            f"{judge.held_out.name}: measure it on the data that it was trained with"
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
    """Draw one image per seed that `stores` lack, and keep what the nets see. Raises what they and drawing raise."""
    found = stores(drawer, nets, directory)
    pairs = list(zip(found, nets, strict=True))
    how = {"size": shard_size or max(SHARD, drawer.batch_size), "progress": progress, "mapper": mapper}
    fill_together(pairs, seeds, partial(_images, drawer.settled), **how)
    return found


def stores(drawer: Drawer, nets: Sequence[FeatureExtractor], directory: Path) -> list[FeatureStore]:
    """Where features are kept: the first net's in the directory, each other's in a folder of it that has its identity.

    Raises what `FeatureStore.open` raises.
    """
    places = [directory, *(directory / re.sub(r"[^\w.-]+", "-", net.identity) for net in nets[1:])]
    opened = zip(places, nets, strict=True)
    return [FeatureStore.open(place, drawer.origin(net.identity)) for place, net in opened]


def _features(
    drawer: Drawer,
    seeds: range,
    nets: Sequence[FeatureExtractor],
    progress: ImageProgress | None,
    mapper: Mapper,
) -> list[StoredFeatures]:
    """By every net, as they are drawn, batch by batch, and kept nowhere."""
    size, found, report = drawer.batch_size, {}, progress or (lambda done, total: None)
    batches = [seeds[first : first + size] for first in range(0, len(seeds), size)]
    for batch, drawn in mapper(partial(_scored, drawer.settled, nets), batches):
        found[batch] = drawn
        report(sum(map(len, found)), len(seeds))
    seconds = sum(spent for _, spent in found.values())
    return [StoredFeatures(torch.cat([found[batch][0][i] for batch in batches]), seconds) for i in range(len(nets))]


def _scored(drawer: Drawer, nets: Sequence[FeatureExtractor], seeds: range) -> tuple[list[Tensor], float]:
    drawn = drawer.draw(seeds)
    return [net.features(drawn.images) for net in nets], drawn.seconds


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
    return replace(calls, decode=seconds_of_decoding(model, batch_size, seconds=seconds) / batch_size)


def seconds_of_decoding(model: Model, batch_size: int, *, seconds: float = 1.0) -> float:
    """Seconds in which `batch_size` latents become images, measured now, for about `seconds`; 0 on pixels."""
    if not model.call_cost.decode:
        return 0.0
    x = torch.zeros(batch_size, *model.shape, device=model.device)
    draws = Draws(0, torch.arange(batch_size, device=model.device))
    return seconds_per_call(lambda: decoded(model.codec, x, draws), seconds=seconds, device=model.device)


def cost_report(drawer: Drawer) -> dict[str, object]:
    """Parameters, MACs and FLOPs, and latency of the networks' calls and of a batch's images, measured now.

    Light calls alone, without a context, are light calls too.
    """
    cost, count = drawer.cost, drawer.batch_size
    drawer.draw(range(count))  # the first compiles, records, chooses kernels
    seconds = drawer.draw(range(count)).seconds
    taken = call_seconds(drawer.model, count, precision=drawer.precision)
    return {
        **{f"parameters_{name}": parameters for name, parameters in drawer.model.parameters.items()},
        "macs_heavy_call": cost.calls.heavy,
        "macs_light_call": cost.calls.light,
        "macs_light_call_alone": cost.calls.without,
        "macs_decode": cost.calls.decode,
        "flops_heavy_call": 2 * cost.calls.heavy,
        "flops_light_call": 2 * cost.calls.light,
        "flops_light_call_alone": 2 * cost.calls.without,
        "seconds_heavy_call": count * taken.heavy if cost.calls.heavy else 0.0,
        "seconds_light_call": count * taken.light,
        "seconds_light_call_alone": count * taken.without,
        "seconds_decode": count * taken.decode,
        "steps": drawer.plan.num_steps,
        "heavy_calls_per_image": cost.heavy_calls,
        "light_calls_per_image": cost.light_calls,
        "light_calls_alone_per_image": cost.alone_calls,
        "macs_per_image": cost.macs,
        "flops_per_image": cost.flops,
        "seconds_per_image": seconds / count,
        "batch_size": count,
        "device": str(drawer.model.device),
        "precision": drawer.arithmetic,
    }
