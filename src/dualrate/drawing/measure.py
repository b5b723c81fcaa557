"""Measuring a model: images scored and timed, as a row of a report; what its calls cost; evaluators of its data.

An evaluator has the images of a data set, or a reference file, and a net: named, shipped, cached or trained. Of a text
the net is a language model that is trained on it, and images are pieces of it.

A distance is of two sets of one rule: classes are drawn by their shares in the real images (`drawn_alike`).
"""

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
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate import metrics
from dualrate.codecs.codec import decoded
from dualrate.config.ranges import Precision, as_path
from dualrate.data.cache import cache_dir
from dualrate.data.conditions import Given, HeldOut, Latent
from dualrate.data.images import Everything, ImageSet, every_image
from dualrate.data.source import printable, reading, resolved
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Cond
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.samples import grids_below
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.modality import modalities, reader_of
from dualrate.experiment.model import Model
from dualrate.metrics import features as feature_nets
from dualrate.metrics import pretrained
from dualrate.metrics.ensembles import EnsembleScores
from dualrate.metrics.evaluate import Evaluator, Score, holds_statistics, load_reference
from dualrate.metrics.features import (
    CARD,
    FeatureExtractor,
    FeatureNet,
    TrainingProgress,
    check_trainable,
    read_card,
    train_feature_net,
)
from dualrate.metrics.pretrained import PRETRAINED, Pretrained
from dualrate.metrics.store import FeatureStore, fill_stores
from dualrate.networks.blocks import in_bfloat16
from dualrate.report.table import Row
from dualrate.runs.train import Score as ScoreInTraining
from dualrate.sampling.cost import CallCost, priced, seconds_per_call
from dualrate.system.device import own_defaults
from dualrate.system.files import check_regular
from dualrate.system.progress import ImageProgress, Reporter, image_progress
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


def until(deadline: float, report: ImageProgress) -> ImageProgress:
    """Reports, and raises OutOfTime after the deadline, of `time.monotonic`, unless all is done."""

    def check_time(done: int, total: int) -> None:
        report(done, total)
        if done < total and time.monotonic() > deadline:
            raise OutOfTime

    return check_time


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
    mapper: draws the shards; seconds are those of one worker
    Raises what drawing, `Evaluator.score_features` and `FeatureStore` raise, before anything is drawn where that is
    possible.
    """
    drawer, given = drawn_alike(drawer, evaluators), drawer.model.given
    texts = given.texts_of(seeds) if isinstance(given, Given) else None
    evaluators = tuple(one.of_texts(texts) for one in evaluators)
    check(evaluators, len(seeds), details=details)
    cost = drawer.cost  # counted apart from the seconds; refuses what cannot be drawn
    alone = replace(drawer, members=1)  # of each condition member 0: a distance is of independent images
    nets, of = [one.net for one in evaluators], _originals(drawer.model, seeds, evaluators[0])
    size = shard_size or max(SHARD * (keep is not None), drawer.batch_size)
    with TemporaryDirectory() if keep is None else nullcontext(keep) as directory:
        kept = stores(alone, nets, Path(directory))  # refused before the features of real images, which may take long
        for one in evaluators:
            one.prepare(mapper, held_out_alone=of is not None and not (details and one is evaluators[0]))
        filled, draw = [*zip(kept, nets, strict=True)], partial(_images, alone.resolved)
        scores = ensemble_scores(drawer, seeds, filled, progress) if ensemble else None
        fill_stores(filled, seeds, draw, size=size, progress=progress, mapper=mapper)
        found = [store.read(seeds) for store in kept]
        timed = found[0] if scores is None else kept[0].read(seeds[: scores.conditions])
    features = {one.metric: own.features for one, own in zip(evaluators, found, strict=True)}
    strata, replicates, distances = drawer.strata(seeds), {}, []
    for name, one in zip(features, evaluators, strict=True):
        replicates[name] = one.replicates(features[name], strata, of=of)
        score = one.score_features(
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
        distances.append(replace(score, note="; ".join(filter(None, (score.note, classes_note(drawer, evaluators))))))
    row = Row(
        network=drawer.network,
        sampler=drawer.sampler,
        num_steps=drawer.plan.num_steps,
        num_heavy=drawer.plan.num_heavy,
        macs=cost.macs,
        seconds_per_image=timed.seconds / len(timed.features),
        batch_size=min(drawer.batch_size, size, len(seeds)),
        precision=drawer.arithmetic,
        score=distances[0],
        beside=tuple(distances[1:]),
        ensemble=scores,
    )
    return Measurement(row, features, replicates)


def class_counts(model: Model, evaluators: Sequence[Evaluator[Any]]) -> tuple[int, ...]:
    """Real images of each of the model's classes, of a score against statistics those of training; else none."""
    real = next((one.reference for one in evaluators if one.reference is not None), None)
    if not model.num_classes or model.experiment.condition.labelled or real is None:
        return ()
    try:
        labels = (real if isinstance(real, ImageSet) else model.experiment.data.images("train")).labels
    except (ValueError, OSError):  # of published weights, whose images may not be here
        labels = None
    counts = np.bincount([] if labels is None else labels, minlength=model.num_classes)[: model.num_classes]
    return tuple(counts.tolist()) if counts.any() else ()


def drawn_alike(drawer: Drawer, evaluators: Sequence[Evaluator[Any]]) -> Drawer:
    """With classes as often as the real images have them, or all of those equally often where the drawer says so."""
    if not (counts := class_counts(drawer.model, evaluators)):
        return drawer
    return replace(drawer, shares=tuple(min(count, 1) for count in counts) if drawer.equal_classes else counts)


def classes_note(drawer: Drawer, evaluators: Sequence[Evaluator[Any]]) -> str:
    """How its classes are drawn, in words; empty where nothing is to be said, as of equal shares in the real images."""
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
    given, held_out = model.given, evaluator.held_out
    if not isinstance(given, HeldOut) or held_out is None:
        return None
    if given.images.fingerprint != held_out.fingerprint:
        raise ValueError(
            f"{model.name} makes images of {given.images.name}, and {evaluator.metric} has the held-out images of "
            f"{held_out.name}: measure it on the data that it was trained with"
        )
    return given.rows(torch.tensor(seeds))


def stores(drawer: Drawer, nets: Sequence[FeatureExtractor], directory: Path) -> list[FeatureStore]:
    """Where features are kept: the first net's in the directory, each other's in a folder of it that has its identity.

    Raises what `FeatureStore.open` raises.
    """
    places = [directory, *(directory / re.sub(r"[^\w.-]+", "-", net.identity) for net in nets[1:])]
    return [FeatureStore.open(*of) for of in zip(places, (drawer.origin(net.identity) for net in nets), strict=True)]


def _images(drawer: Drawer, seeds: Sequence[int]) -> NDArray[np.uint8]:
    return drawer.draw(seeds).images


def call_seconds(model: Model, batch_size: int, *, seconds: float = 1.0, precision: Precision = "auto") -> CallCost:
    """Seconds of a row in calls of `batch_size` rows, and of its decoding, measured now, for about `seconds` each.

    precision: of the networks' matrix products
    """
    device = model.device
    z = torch.zeros(batch_size, *model.process.state_shape(model.shape), device=device)
    t = torch.full((batch_size,), 0.5, dtype=torch.float64, device=device)
    given = model.experiment.networks.given
    cond = Cond(
        torch.zeros(batch_size, dtype=torch.int64, device=device) if model.num_classes else None,
        None if given is None else torch.zeros(batch_size, *given, device=device),
    )
    bfloat16 = in_bfloat16(precision, device, z.shape)
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

    Light calls alone, without a context, are light calls too. A batch holds all members of a condition; a heavy call is
    priced for an image, which shares it with them in `macs_per_image` and `seconds_per_image` alone.
    """
    cost, conditions = drawer.cost, drawer.seeds_at_once
    count = conditions * drawer.members
    drawer = replace(drawer, batch_size=count)
    drawer.draw(range(conditions))  # the first compiles, records, chooses kernels
    seconds = drawer.draw(range(conditions)).seconds
    taken = call_seconds(drawer.model, count, precision=drawer.precision)
    calls = {"heavy_call": "heavy", "light_call": "light", "light_call_alone": "without", "decode": "decode"}
    calls |= {"reading": "read"} if cost.calls.read else {}
    macs = {name: getattr(cost.calls, of) for name, of in calls.items()} | {"per_image": cost.macs}
    return {
        **{f"parameters_{name}": parameters for name, parameters in drawer.model.parameters.items()},
        **{f"macs_{of}": number for of, number in macs.items()},
        **{f"flops_{of}": 2 * number for of, number in macs.items() if of != "decode"},
        **{f"seconds_{name}": count * getattr(taken, of) if macs[name] else 0.0 for name, of in calls.items()},
        "seconds_per_image": seconds / count,
        "steps": drawer.plan.num_steps,
        "heavy_calls_per_image": cost.heavy_calls,
        "light_calls_per_image": cost.light_calls,
        "light_calls_alone_per_image": cost.alone_calls,
        "members": drawer.members,
        "batch_size": count,
        "device": str(drawer.model.device),
        "precision": drawer.arithmetic,
    }


Features = Pretrained | Path | None
SHIPPED = Path(metrics.__path__[0]) / "nets"  # nets/<name>/, as written by FeatureNet.save


def evaluators(
    data: DataConfig,
    features: str | Path | None = None,
    *,
    reference: Path | None = None,
    device: torch.device | str | None = None,
    progress: Reporter,
) -> tuple[Evaluator[Any], ...]:
    """An evaluator for each net in `features` (see `features_named`); the first one's score is the one that orders.

    Raises ValueError for two of one metric, and what `features_named` and `evaluator` raise.
    """
    found = tuple(
        evaluator(data, features=one, reference=reference, device=device, progress=progress)
        for one in features_named(features)
    )
    names = [one.metric for one in found]
    if len(set(names)) < len(names):
        raise ValueError(f"got the metrics {', '.join(names)}: name nets of different names, each once")
    return found


def features_named(text: str | Path | None) -> tuple[Features, ...]:
    """The nets that a text names, with commas between: a pretrained net, a directory of a feature net or of a
    CLIPModel, or a shipped net's name. A directory comes before a shipped net, and may have commas in its own name;
    None is as in `evaluator`.

    Raises ValueError for a name that is empty, or unknown.
    """
    if text is None:
        return (None,)
    found, names = [], sorted(card.parent.name for card in SHIPPED.glob(f"*/{CARD}"))
    for word in [str(text)] if str(text) and as_path(text).is_dir() else map(str.strip, str(text).split(",")):
        if word in PRETRAINED:
            found.append(word)
        elif word and as_path(word).is_dir():
            found.append(as_path(word))
        elif word in names:
            found.append(SHIPPED / word)
        else:
            raise ValueError(
                f"there is no feature net {word!r}: name {', '.join(PRETRAINED)}, a shipped one ({', '.join(names)}), "
                "or the directory of one; several with commas between"
            )
    return tuple(found)


def evaluator(
    data: DataConfig,
    *,
    features: Features = None,
    reference: Path | None = None,
    device: torch.device | str | None = None,
    progress: Reporter,
) -> Evaluator[Any]:
    """Training and test images of `data` with a net.

    features:  inception: FID; dinov2: FD-DINOv2; efficientnet: FD-EfficientNet; else a directory, of a feature net or
               of a CLIPModel (CLIP score, clip.py). None: the one shipped for exactly these training images, else one
               in the user's cache, trained there on first use (minutes on a CPU)
    reference: statistics (see `load_reference`) that take the place of the training images'; then there is no floor,
               since the file does not say which images it is of, and with `features` named `data` need not be here
    device:    as of `pick_device`, of pretrained nets, whose features of these images are kept in the user's cache
    Raises ValueError for features or a reference with a text, for data that cannot train a feature net, a net that is
    damaged, that knows its classes badly (`Card.check_accuracy`) or takes other images, or a reference that is not of
    its features; OSError for a missing one; what `pretrained.load` raises.
    """
    modality = reader_of(data.source)
    if modality is not None:
        made = modality.evaluator(data, progress, alone=features is None and reference is None)
        if made is not None:
            return made
    if isinstance(features, Path):
        for each in modalities():
            if (made := each.evaluator_by(features, data, device, progress)) is not None:
                return made
    shown = image_progress(progress)
    splits = splits_of(data, progress) if features is None or reference is None else None
    if features is None:
        assert splits is not None
        net = _feature_net(*splits, progress=progress)
    elif isinstance(features, Path):
        net = FeatureNet.load(features)
        taken = (net.card.architecture.channels, net.card.architecture.size, net.card.architecture.size)
        if splits is not None and splits[0].shape != taken:
            raise ValueError(
                f"{splits[0].name} has images of {splits[0].shape} (C, H, W), the feature net {net.card.name!r} takes "
                f"{taken}: give another one, or none, to train one on these images"
            )
    else:
        net = pretrained.load(features, device, note=progress.note)
    if isinstance(net, FeatureNet):
        net.card.check_accuracy()
    if splits is None or reference is not None:
        assert reference is not None
        return Evaluator(net, load_reference(reference, net), None)
    if isinstance(net, FeatureNet):  # a small net: computing features takes less time than reading them
        return Evaluator(net, *splits)
    return Evaluator(net, *splits, keep=cache_dir() / "real-features", progress=shown)


def splits_of(data: DataConfig, progress: Reporter) -> tuple[ImageSet, ImageSet]:
    """Training and test images."""
    decoding = messages(progress.note)
    return data.images("train", decoding), data.images("test", decoding)


def shipped(fingerprint: str) -> Path | None:
    """The shipped feature net that was trained on the images of this fingerprint; of several the first by its name."""
    cards = sorted(SHIPPED.glob(f"*/{CARD}"), key=lambda card: card.parent.name)
    return next((card.parent for card in cards if read_card(card).data == fingerprint), None)


def messages(note: Callable[[str], None]) -> Callable[[int, int, str], None]:
    """Progress of data loading as notes: every message once."""
    shown: set[str] = set()

    def report(done: int, total: int, message: str) -> None:
        if message and message not in shown:
            shown.add(message)
            note(message)

    return report


def _feature_net(train: ImageSet, test: ImageSet, *, progress: Reporter) -> FeatureNet:
    """The shipped one, or the one in the user's cache, trained there on first use."""
    place = shipped(train.fingerprint) or cache_dir() / "features" / train.fingerprint[:16]
    if not (place / CARD).exists():
        check_trainable(train)
        progress.note(f"training a feature net on {train.name}, once; it is kept in {place}")
        train_feature_net(train, test, progress=training_progress(progress, feature_nets.BATCH_SIZE)).save(place)
        progress.close()  # the next progress is counted anew
    return FeatureNet.load(place)


def training_progress(progress: Reporter, batch_size: int) -> TrainingProgress:
    """Shows the training of a net, of batches of this size."""
    start = time.monotonic()

    def report(done: int, total: int, loss: float) -> None:
        progress.update(done, total, {"images": done * batch_size, "seconds": time.monotonic() - start, "loss": loss})

    return report


CONDITIONS = 1000  # of an ensemble's scores, at most


def scored_together(drawer: Drawer, seeds: range) -> range:
    """The first of these seeds, whose members `ensemble_scores` draws: at most CONDITIONS, and no image twice.

    None of a model that is not given the conditions of held-out images, or of a single member.
    """
    given = drawer.model.given
    known = min(CONDITIONS, len(given.images)) if isinstance(given, HeldOut) and drawer.members > 1 else 0
    return seeds[:known]


def ensemble_scores(
    drawer: Drawer,
    seeds: range,
    stores: Sequence[tuple[FeatureStore, FeatureExtractor]] = (),
    progress: ImageProgress | None = None,
) -> EnsembleScores | None:
    """Scores of the members of `scored_together`, against the held-out images that they are made of; None of no seeds.

    stores: get the features of member 0 of the seeds that they lack, with the seconds of a member
    progress: called with (seeds done, all seeds)
    """
    given, members, first = drawer.model.given, drawer.members, scored_together(drawer, seeds)
    condition = drawer.model.experiment.condition
    if not isinstance(given, HeldOut) or not first:
        return None
    lacking = [(store, net, set(store.missing(first))) for store, net in stores]

    def scored() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], Tensor | None]]:
        for start in range(0, len(first), drawer.seeds_at_once):
            part = first[start : start + drawer.seeds_at_once]
            drawn = drawer.draw(part)
            images = drawn.images.reshape(len(part), members, *drawer.model.image_shape)
            for store, net, missing in lacking:
                if new := [row for row, seed in enumerate(part) if seed in missing]:
                    seconds = drawn.seconds * len(new) / len(drawn.images)
                    store.write([part[row] for row in new], net.features(images[new, 0]), seconds)
            if progress is not None:
                progress(start + len(part), len(seeds))
            unknown = condition.unknown(given(torch.tensor(part)))
            yield images, given.originals(torch.tensor(part)), None if unknown is None else unknown.cpu()

    return EnsembleScores.of(scored())


def score_source(
    source: str | Path,
    data: DataConfig | None = None,
    *,
    reference: str | Path | None = None,
    features: str | Path | None = None,
    details: bool = False,
    device: torch.device | str | None = None,
    progress: Reporter,
) -> tuple[Score, ...]:
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
    file = None if reference is None else Path(reference)
    found = evaluators(data or DataConfig(""), features, reference=file, device=device, progress=progress)
    found = tuple(one.of_texts(None) for one in found)
    real, folder = found[0].reference, resolved(source)
    channels, name = real.shape[0] if isinstance(real, ImageSet) else None, printable(folder.name)
    with TemporaryDirectory() as unpacked:
        if folder.suffix.lower() == ".zip":
            check_regular(folder)
            with reading(folder, "a .zip"):
                ZipFile(folder).extractall(unpacked)
            folder = Path(unpacked)
        images = every_image(folder, channels=channels, without=grids_below(folder))
        check(found, len(images), details=details)
        parts, done, shown = [], 0, image_progress(progress)
        for _, batch in image_batches(images, SHARD):
            if isinstance(real, ImageSet) and batch.shape[2:] != real.shape[1:]:
                sizes = [" x ".join(map(str, side)) for side in (batch.shape[2:], real.shape[1:])]
                raise ValueError(
                    f"the images of {name} are {sizes[0]} pixels, those of {real.name} {sizes[1]}: bring them to one "
                    "size, which a network that resizes them would hide"
                )
            parts.append([one.net.features(batch) for one in found])
            shown(done := done + len(batch), len(images))
    return tuple(
        one.score_features(
            torch.cat(own), seeds=f"images of {name}", labels="unknown", details=details and one is found[0]
        )
        for own, one in zip(zip(*parts, strict=True), found, strict=True)
    )


SCORED = 1000  # images of a score in training


def scorer(data: DataConfig, progress: Reporter) -> ScoreInTraining:
    """Frechet distance of 1,000 images under the recommended sampler and plan. Raises what `evaluator` raises."""
    found = evaluator(data, progress=progress)
    check([found], SCORED, details=False)
    if isinstance(found.net, FeatureNet) and found.net.card.judgement:
        progress.note(found.net.card.judgement)

    def score(model: Model) -> tuple[str, float]:
        return found.metric, measure(Choice().drawer(model), range(SCORED), found).row.score.value

    return score
