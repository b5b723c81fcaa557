"""Measuring a model: images, of classes by the data's shares, scored and timed, as a row; scores of existing images.

A distance is of two sets of one rule: classes are drawn by their shares in the real images (`drawn_alike`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data.condition_rows import Given, HeldOut
from dualrate.data.conditions import Latent, OfPicture
from dualrate.data.images import Everything, ImageSet, every_image
from dualrate.data.source import printable, reading, resolved
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.evaluators import evaluator, evaluators
from dualrate.drawing.samples import grids_below
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.model import Model
from dualrate.metrics.ensembles import EnsembleScores
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.features import FeatureExtractor, FeatureNet
from dualrate.metrics.quality import QualityScore
from dualrate.metrics.references import holds_statistics
from dualrate.metrics.store import FeatureStore, fill_stores
from dualrate.report.table import Row
from dualrate.runs.train import Score as ScoreInTraining
from dualrate.system.device import own_defaults
from dualrate.system.files import check_regular
from dualrate.system.progress import ImageProgress, Reporter, image_progress
from dualrate.system.workers import Mapper, in_turn

SHARD = 125  # images of a file of kept features, at least


@dataclass(frozen=True, eq=False)
class Measurement:
    """A row; and by metric the features of its images, (N, D), from which its scores were made, and the bootstrap
    replicates, (R,), that their intervals are of. more: further numbers of a modality, as JSON
    """

    row: Row
    features: Mapping[str, Tensor]
    replicates: Mapping[str, NDArray[np.float64]]
    more: Mapping[str, Any] = field(default_factory=dict)


class OutOfTime(Exception):
    """Raised where drawing took longer than it may; images that were drawn are kept."""


def until(deadline: float, report: ImageProgress) -> ImageProgress:
    """Reports, and raises OutOfTime after the deadline, of `time.monotonic`, unless all is done."""

    def check_time(done: int, total: int) -> None:
        report(done, total)
        if done < total and time.monotonic() > deadline:
            raise OutOfTime

    return check_time


def check(evaluators: Sequence[Evaluator[Any]], count: int, *, details: bool) -> None:
    """Raises ValueError, before anything is drawn, for what could not be scored."""
    for judge in evaluators:
        judge.check_count(count)
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
    ensemble: bool = False,
    progress: ImageProgress | None = None,
    mapper: Mapper = in_turn,
) -> Measurement:
    """Draw one image per seed, once, and have every evaluator score them; the first with details if asked for.

    evaluators: at least one; no two of one metric. The row's score is the first one's. They are told the prompts
    keep: a directory that holds the features as images are drawn, `shard_size` at a time (a batch, and no fewer than
          SHARD, if not given), and images nowhere: for 50,000 of them or more, or a run that may be killed. The same
          call goes on where it was, one for more seeds draws only those that are new, and seconds per image are those
          of the calls that drew them. An evaluator that comes later has them drawn again
    ensemble: with `ensemble_scores` in the row, whose images of member 0 are those of the seeds; seconds per image are
          then those of all members
    mapper: draws the shards, and members; seconds are those of one process
    Raises what drawing, `Evaluator.score_features` and `FeatureStore` raise, before anything is drawn where that is
    possible.
    """
    drawer, conditions = drawn_alike(drawer, evaluators), drawer.model.given
    texts = conditions.texts_of(seeds) if isinstance(conditions, Given) else None
    evaluators = tuple(judge.of_texts(texts) for judge in evaluators)
    check(evaluators, len(seeds), details=details)
    cost = drawer.cost  # counted apart from the seconds; refuses what cannot be drawn
    alone = replace(drawer, members=1)  # of each condition member 0: a distance is of independent images
    nets, of = [judge.net for judge in evaluators], _originals(drawer.model, seeds, evaluators[0])
    size = shard_size or max(SHARD * (keep is not None), drawer.batch_size)
    with TemporaryDirectory() if keep is None else nullcontext(keep) as directory:
        opened = stores(alone, nets, Path(directory))  # refused before the features of real images, which may take long
        for judge in evaluators:
            judge.prepare(mapper, held_out_alone=of is not None and not (details and judge is evaluators[0]))
        filled, draw = [*zip(opened, nets, strict=True)], partial(_images, alone.resolved)
        scores = ensemble_scores(drawer, seeds, filled, progress, mapper) if ensemble else None
        fill_stores(filled, seeds, draw, size=size, progress=progress, mapper=mapper)
        stored = [store.read(seeds) for store in opened]
        timed = stored[0] if scores is None else opened[0].read(seeds[: scores.conditions])
    features = {judge.metric: part.features for judge, part in zip(evaluators, stored, strict=True)}
    strata, note, replicates, distances = drawer.strata(seeds), classes_note(drawer, evaluators), {}, []
    for name, judge in zip(features, evaluators, strict=True):
        replicates[name] = judge.replicates(features[name], strata, of=of)
        score = judge.score_features(
            features[name],
            seeds=f"{seeds.start}-{seeds.stop - 1}",
            labels=drawer.labels_rule,
            strata=strata,
            details=details and not distances,
            codec=drawer.model.codec,
            of=of,
            reconstructs=isinstance(drawer.model.experiment.condition, Latent),
            replicates=replicates[name],
        )
        distances.append(replace(score, note="; ".join(filter(None, (score.note, note)))))
    seconds, at_once = timed.seconds / len(timed.features), min(drawer.batch_size, size, len(seeds))
    row = row_of(drawer, cost.macs, seconds, at_once, *distances)
    return Measurement(replace(row, ensemble=scores), features, replicates)


def row_of(drawer: Drawer, macs: int, seconds: float, batch_size: int, *scores: QualityScore) -> Row:
    """The row of a drawer. macs, seconds: of a sample, drawn in batches of this size"""
    plan, first, beside = drawer.plan, scores[0], scores[1:]
    of = (drawer.network, drawer.sampler, plan.num_steps, plan.num_heavy, macs, seconds, batch_size)
    return Row(*of, drawer.arithmetic, first, beside)


def class_counts(model: Model, evaluators: Sequence[Evaluator[Any]]) -> tuple[int, ...]:
    """Real images of each of the model's classes, of a score against statistics those of training; else none."""
    real = next((judge.reference for judge in evaluators if judge.reference is not None), None)
    if not model.num_classes or model.experiment.condition.labelled or real is None:
        return ()
    try:
        labels = (real if isinstance(real, ImageSet) else model.experiment.data.images("train")).labels
    except (ValueError, OSError):  # of published weights, whose images may not be here
        labels = None
    counts = np.bincount([] if labels is None else labels, minlength=model.num_classes)[: model.num_classes]
    return tuple(counts.tolist()) if counts.any() else ()


def drawn_alike(drawer: Drawer, evaluators: Sequence[Evaluator[Any]]) -> Drawer:
    """Drawer with classes as often as the real images have them, or equally often where the drawer says so."""
    if not (counts := class_counts(drawer.model, evaluators)):
        return drawer
    return replace(drawer, shares=tuple(min(count, 1) for count in counts) if drawer.equal_classes else counts)


def classes_note(drawer: Drawer, evaluators: Sequence[Evaluator[Any]]) -> str:
    """Words on how its classes are drawn; empty where nothing is to be said, as of equal shares in the real images."""
    if not drawer.model.num_classes or drawer.model.experiment.condition.labelled:
        return ""
    if drawer.label is not None:
        return f"all images are of class {drawer.label}, whatever the classes of the real ones"
    if not (counts := class_counts(drawer.model, evaluators)):
        return f"the shares of classes in the real images are not known: drawn by {drawer.labels_rule}"
    low, high = (f"{100 * count / sum(counts):.3g}%" for count in (min(filter(None, counts)), max(counts)))
    shares = f"each is {low} to {high} of the real images" if low != high else ""
    if missing := counts.count(0):
        shares += (
            f"{' and ' if shares else ''}{missing} without real images {'is' if missing == 1 else 'are'} not drawn"
        )
    if not shares:
        return ""
    return f"classes are drawn {'equally often' if drawer.equal_classes else 'by their shares'}: {shares}"


def image_batches(images: Everything, size: int) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
    """Names and images (b, C, H, W) of one shape. Raises ValueError, naming the image, for one of another shape."""
    first, every = None, iter(images)
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
    """(N,) rows of the held-out images that samples are made of; None of another model, or without images.

    Raises ValueError for a model that is given what was made of other images.
    """
    conditions, held_out = model.given, evaluator.held_out
    if not isinstance(conditions, HeldOut) or held_out is None:
        return None
    if conditions.images.fingerprint != held_out.fingerprint:
        raise ValueError(
            f"{model.name} makes images of {conditions.images.name}, and {evaluator.metric} has the held-out images of "
            f"{held_out.name}: measure it on the data that it was trained with"
        )
    return conditions.rows(torch.tensor(seeds))


def stores(drawer: Drawer, nets: Sequence[FeatureExtractor], directory: Path) -> list[FeatureStore]:
    """Stores of features: the first net's in the directory, each other's in a folder of it that has its identity.

    Raises what `FeatureStore.open` raises.
    """
    places = [directory, *(directory / re.sub(r"[^\w.-]+", "-", net.identity) for net in nets[1:])]
    return [FeatureStore.open(*of) for of in zip(places, (drawer.origin(net.identity) for net in nets), strict=True)]


def _images(drawer: Drawer, seeds: Sequence[int]) -> NDArray[np.uint8]:
    return drawer.draw(seeds).images


CONDITIONS = 1000  # of an ensemble's scores, at most


def scored_together(drawer: Drawer, seeds: range) -> range:
    """The first of these seeds, whose members `ensemble_scores` draws: at most CONDITIONS, and no image twice.

    None of a model that is not given the conditions of held-out images, or of a single member.
    """
    conditions = drawer.model.given
    count = min(CONDITIONS, len(conditions.images)) if isinstance(conditions, HeldOut) and drawer.members > 1 else 0
    return seeds[:count]


def ensemble_scores(
    drawer: Drawer,
    seeds: range,
    stores: Sequence[tuple[FeatureStore, FeatureExtractor]] = (),
    progress: ImageProgress | None = None,
    mapper: Mapper = in_turn,
) -> EnsembleScores | None:
    """Scores of the members of `scored_together`, against the held-out images that they are made of; None of no seeds.

    stores: get the features of member 0 of the seeds that they lack, with the seconds of a member
    progress: called with (seeds done, all seeds); mapper: draws the members
    """
    conditions, members, first = drawer.model.given, drawer.members, scored_together(drawer, seeds)
    condition = drawer.model.experiment.condition
    if not isinstance(conditions, HeldOut) or not first:
        return None
    lacking = [(store, net, set(store.missing(first))) for store, net in stores]

    def block(part: range) -> _Members:
        return _Members(part, [[row for row, seed in enumerate(part) if seed in missing] for *_, missing in lacking])

    def scored() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], Tensor | None]]:
        size, job = drawer.seeds_at_once, partial(_drawn_together, drawer.resolved, [net for _, net, _ in lacking])
        blocks = [block(first[start : start + size]) for start in range(0, len(first), size)]
        for (part, rows), (images, features, seconds) in mapper(job, blocks):
            for (store, *_), new, of_net in zip(lacking, rows, features, strict=True):
                if of_net is not None:
                    store.write([part[row] for row in new], of_net, seconds * len(new) / (len(part) * members))
            if progress is not None:
                progress(part.stop - first.start, len(seeds))
            unknown = condition.unknown(conditions(torch.tensor(part))) if isinstance(condition, OfPicture) else None
            yield images, conditions.originals(torch.tensor(part)), None if unknown is None else unknown.cpu()

    return EnsembleScores.of(scored())


class _Members(NamedTuple):
    """Seeds whose members are drawn together. rows: by net, of those whose features are taken"""

    seeds: range
    rows: list[list[int]]


def _drawn_together(
    drawer: Drawer, nets: Sequence[FeatureExtractor], block: _Members
) -> tuple[NDArray[np.uint8], list[Tensor | None], float]:
    """(n, M, C, H, W), features of member 0 of the rows by each net, and the seconds that drawing took."""
    drawn = drawer.draw(block.seeds)
    images = drawn.images.reshape(len(block.seeds), drawer.members, *drawer.model.image_shape)
    features = [net.features(images[new, 0]) if new else None for net, new in zip(nets, block.rows, strict=True)]
    return images, features, drawn.seconds


def score_source(
    source: str | Path,
    data: DataConfig | None = None,
    *,
    reference: str | Path | None = None,
    features: str | Path | None = None,
    details: bool = False,
    device: torch.device | str | None = None,
    progress: Reporter,
) -> tuple[QualityScore, ...]:
    """Scores of existing images by every metric; the first one's score has the details, if asked for.

    Their classes are unknown, so the interval counts the choice of classes as chance.

    source:    a folder, a .zip, a .npz or another source of images (see `every_image`)
    data:      the real images; None: those of `reference`, which is a data source then, or a .npz of statistics
    features:  as of `features_named`
    Raises ValueError where neither says what to compare with, and for images of several shapes; what `evaluators`,
    `Evaluator.score_features` and reading images raise.
    """
    if data is None:
        if reference is None:
            raise ValueError("images are compared with real ones: name a run that was trained on them, or a reference")
        if not holds_statistics(Path(reference)):
            data, reference = DataConfig(str(reference)), None
    file, folder = None if reference is None else Path(reference), resolved(source)
    name = printable(folder.name)
    with TemporaryDirectory() as unpacked:
        if folder.suffix.lower() == ".zip":
            check_regular(folder)
            with reading(folder, "a .zip"):
                ZipFile(folder).extractall(unpacked)
            folder = Path(unpacked)
        images = every_image(folder, without=grids_below(folder))
        how: dict[str, Any] = {"reference": file, "device": device, "progress": progress}
        judges = evaluators(data or DataConfig(""), features, **how, count=len(images))
        judges = tuple(judge.of_texts(None) for judge in judges)
        real = judges[0].reference
        if isinstance(real, ImageSet):
            images = replace(images, options=replace(images.options, channels=real.shape[0]))
        check(judges, len(images), details=details)
        parts, done, shown = [], 0, image_progress(progress)
        for _, batch in image_batches(images, SHARD):
            if isinstance(real, ImageSet) and batch.shape[2:] != real.shape[1:]:
                sizes = [" x ".join(map(str, side)) for side in (batch.shape[2:], real.shape[1:])]
                raise ValueError(f"{name} is of {sizes[0]} pixels, {real.name} of {sizes[1]}: bring them to one size")
            parts.append([judge.net.features(batch) for judge in judges])
            shown(done := done + len(batch), len(images))
    return tuple(
        judge.score_features(
            torch.cat(batches), seeds=f"images of {name}", labels="unknown", details=details and judge is judges[0]
        )
        for batches, judge in zip(zip(*parts, strict=True), judges, strict=True)
    )


SCORED = 1000  # images of a score in training


def scorer(data: DataConfig, progress: Reporter) -> ScoreInTraining:
    """Frechet distance of 1,000 images under the recommended sampler and plan. Raises what `evaluator` raises."""
    judge = evaluator(data, progress=progress)
    check([judge], SCORED, details=False)
    if isinstance(judge.net, FeatureNet) and judge.net.card.judgement:
        progress.note(judge.net.card.judgement)

    def score(model: Model) -> tuple[str, float]:
        return judge.metric, measure(Choice().drawer(model), range(SCORED), judge).row.score.value

    return score
