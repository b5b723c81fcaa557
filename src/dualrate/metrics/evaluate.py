"""Scores of generated images: a Frechet distance with its interval, beside the floor that real images reach.

Details go beyond the Frechet distance: a distance that is unbiased at any count, and fidelity apart from variety.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.codecs.codec import ON_PIXELS, Codec, round_trip
from dualrate.data.images import ImageSet, to_float, to_uint8
from dualrate.diffusion.random import Draws
from dualrate.metrics.distances import (
    LEVEL,
    PER_FEATURE,
    GaussianStats,
    frechet_distance,
    interval_of,
    kernel_distance,
    kernel_metric,
    precision_recall,
    resampled_distances,
)
from dualrate.metrics.features import FeatureExtractor, FeatureNet
from dualrate.metrics.quality import Better, Details, QualityScore
from dualrate.metrics.references import Reference
from dualrate.metrics.store import Fingerprint, real_features, store_in
from dualrate.system.progress import ImageProgress
from dualrate.system.workers import Mapper, in_turn

Net = TypeVar("Net", bound=FeatureExtractor)
ROUND_TRIP = 16  # images that a codec encodes at a time
RESAMPLING_SEED = 0  # of every interval, so that replicates are paired
DETAILED = 10  # images, and real ones, that further measures are of, at least
RECONSTRUCTED = "rFD: of reconstructions, from the held-out images that they are of"
CONDITIONAL = "from the held-out images that their conditions are of"


def check_count(metric: str, dim: int, count: int) -> None:
    """Raises ValueError for fewer images than a metric by D = `dim` features needs."""
    if count < (minimum := PER_FEATURE * dim):
        raise ValueError(f"{metric} needs at least {minimum} images, got {count}: draw or give more")


@dataclass(frozen=True)
class Evaluator(Generic[Net]):
    """Scores images against real ones in the features of one net.

    net:       for small images one trained on the reference's labels, or on images of the same size and colours
    reference: training images, all of them, whose features are computed once; or statistics from a file. None: of a
               score that compares with no images (clip.py)
    held_out:  real images that nothing was trained on, for the floor. None: no floor
    keep:      a directory for the features of real images, which then are taken once by all calls; None: memory alone
    progress:  of taking these features, where it takes long
    better:    which values are
    """

    better: ClassVar[Better] = "lower"
    net: Net
    reference: ImageSet | Reference | None
    held_out: ImageSet | None
    keep: Path | None = field(default=None, repr=False, compare=False)
    progress: ImageProgress | None = field(default=None, repr=False, compare=False)
    _known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def metric(self) -> str:
        return self.net.metric

    @property
    def reference_images(self) -> ImageSet:
        """The reference; ValueError if all there is of it is a file's statistics, or nothing."""
        if self.reference is None:
            raise ValueError(f"{self.metric} compares with no images: name a distance first, then {self.metric}")
        if isinstance(self.reference, Reference):
            raise ValueError(
                f"{self.reference.name} is read as mean and covariance, and kernel distance, precision and recall need "
                "single reference images: leave them out, or evaluate against the training images, not --reference"
            )
        return self.reference

    def of_texts(self, texts: Sequence[str] | None) -> Self:
        """An evaluator of images of these texts; None: of none, or unknown ones. A distance does not look at them."""
        return self

    def score_features(
        self,
        features: Tensor,
        *,
        seeds: str,
        labels: str,
        resamples: int = 200,
        strata: Tensor | None = None,
        details: bool = False,
        codec: Codec = ON_PIXELS,
        of: Tensor | None = None,
        reconstructs: bool = True,
        replicates: NDArray[np.float64] | None = None,
    ) -> QualityScore:
        """Score images by their features (N, D), which `net` gave.

        seeds, labels: what they were sampled from, e.g. "0-4999" and "i mod classes", for the fingerprint
        strata:        (N,) int64, the classes of images that have as many of each class as was asked for, not as
                       chance would have it: the interval then says what other noise would do, not other classes
        details:       whether the score has `details`
        codec:         that decoded the images, for the floor
        of:            (N,) int64, rows of the held-out images that these are made of: the distance is then from those.
                       Rows that come again are no independent images: the interval is over rows, and the details, if
                       there are DETAILED rows, are of the first image of each
        reconstructs:  whether those are what should come again (rFD): then 0 is the floor, and else there is none
        replicates:    those of the score, where they are known, in place of `resamples` new ones
        ValueError for fewer images than twice the features, and for what `resampled_distances` refuses.
        """
        count = len(features)
        self.check_count(count)
        value, reference, reference_count = self.value(features, of)
        if replicates is None:
            replicates = self.replicates(features, strata, resamples, of=of)
        low, high = interval_of(replicates)
        once = features if of is None else features[np.unique(of.numpy(), return_index=True)[1]]
        if of is not None:
            floor, floor_count, note = (0.0, len(once), RECONSTRUCTED) if reconstructs else (math.nan, 0, CONDITIONAL)
            note += f"; {count:,} images of {len(once):,} of them" if len(once) < count else ""
        else:
            floor, floor_count = self.floor(count, codec)
            note = self._note(count, floor_count, stratified=strata is not None, codec=codec)
        card = self.net.card if isinstance(self.net, FeatureNet) else None
        note = "; ".join(filter(None, (note, card and card.judgement)))
        return QualityScore(
            metric=self.metric,
            value=value,
            low=low,
            high=high,
            level=LEVEL,
            floor=floor,
            floor_count=floor_count,
            fingerprint=Fingerprint(
                features=self.net.identity,
                reference=reference,
                reference_count=reference_count,
                count=count,
                seeds=seeds,
                labels=labels,
            ),
            note=note,
            details=self.details(once) if details else None,
            better=self.better,
            accuracy=card and card.accuracy,
        )

    def value(self, features: Tensor, of: Tensor | None = None) -> tuple[float, str, int | None]:
        """The value of `score_features`, and its fingerprint's reference and reference_count."""
        images, stats = self.reference_images if self.reference is None else self.reference, self._stats
        if of is not None:
            assert self.held_out is not None
            images, stats = self.held_out, GaussianStats.of(self._features(self.held_out)[of])
        distance = frechet_distance(GaussianStats.of(features), stats)
        return distance, f"{images.name}:{images.fingerprint[:12]}", stats.count

    def replicates(
        self, features: Tensor, strata: Tensor | None = None, resamples: int = 200, *, of: Tensor | None = None
    ) -> NDArray[np.float64]:
        """The `resampled_distances` (resamples,) whose quantiles are the interval of `score_features`.

        Those of several sets of features that were drawn from the same seeds are paired.
        """
        self.check_count(len(features))
        source = self._stats if of is None or self.held_out is None else self._features(self.held_out)[of]
        again = of is not None and len(of.unique()) < len(of)
        how = {"groups": of} if again else {"strata": strata}
        return resampled_distances(features, source, resamples=resamples, seed=RESAMPLING_SEED, **how).numpy()

    def details(self, features: Tensor) -> Details | None:
        """Kernel distance, precision and recall of features (N, D) that `net` gave; None of fewer than DETAILED images.

        The reference images for precision and recall are chosen by a fixed seed, every class by its share in the
        reference. The kernel distance's subsets are random, so their standard error counts the choice of classes as
        chance too: for samples with fixed shares of them it errs on the safe side. Those shares lower the distance's
        expectation by O(1/N), for Fashion-MNIST a tenth of that standard error.
        ValueError for a reference that is a file's statistics.
        """
        reference = self.reference_features
        if (count := min(len(features), len(reference))) < DETAILED:
            return None
        shares = precision_recall(features, reference[_chosen(self.reference_images, count)])
        return Details(kernel_metric(self.net), kernel_distance(features, reference), shares, count)

    def check_count(self, count: int) -> None:
        """Raises ValueError for fewer images than twice the features: their covariance means nothing.

        A score's note names a data set that has no more training images.
        """
        check_count(self.metric, self.net.dim, count)

    def floor(self, count: int, codec: Codec = ON_PIXELS) -> tuple[float, int]:
        """The value of `count` held-out images, drawn without replacement by a fixed seed, and how many those are.

        They are encoded and decoded by the codec first: no model of its latents is expected to come below.

        Every class has its share of them, as in samples whose labels take turns: a random mix of classes would add to
        the distance, and double it for Fashion-MNIST (docs/results/tried.md). Where the reference has other shares,
        they are weighted to those. Fewer than `count` if there are no more: such a floor is too high. (NaN, 0) of fewer
        than two held-out images.
        """
        if self.held_out is None or len(self.held_out) < 2:
            return math.nan, 0
        count = min(count, len(self.held_out))
        key = "floor", count, codec.fingerprint
        if key not in self._known:
            self._known[key] = frechet_distance(self._through(codec, count)[1], self._stats)
        return self._known[key], count

    def reconstruction(self, count: int, codec: Codec) -> float:
        """rFD: the distance of `count` held-out images after the codec's round trip from the same before it."""
        return frechet_distance(self._through(codec, count)[0], self._through(ON_PIXELS, count)[0])

    def _through(self, codec: Codec, count: int) -> tuple[GaussianStats, GaussianStats]:
        """Statistics of `count` held-out images after the codec's round trip, plain and with `_weights`."""
        key = "round trip", count, codec.fingerprint
        if key not in self._known:
            assert self.held_out is not None
            rows = _chosen(self.held_out, count)
            if codec.fingerprint:
                features = torch.cat([self.net.features(part) for part in round_trips(codec, self.held_out, rows)])
            else:
                features = self._features(self.held_out)[rows]
            plain, weights = GaussianStats.of(features), self._weights(count)
            self._known[key] = plain, plain if weights is None else GaussianStats.of(features, weights)
        return self._known[key]

    def _weights(self, count: int) -> Tensor | None:
        """`class_weights` of the first `count` images of the floor, to the reference."""
        if self.held_out is None or not isinstance(self.reference, ImageSet):
            return None
        return class_weights(self.held_out, _chosen(self.held_out, count), self.reference)

    @cached_property
    def _stats(self) -> GaussianStats:
        if isinstance(self.reference, Reference):
            return self.reference.stats
        if len(self.reference_images) < 2:
            raise ValueError(
                f"{self.metric} needs a covariance, and {self.reference_images.name} has one training image: score "
                "against others, with --reference FILE.npz, or sample first, then evaluate --images and --reference"
            )
        return GaussianStats.of(self.reference_features)

    @property
    def reference_features(self) -> Tensor:
        """(M, D) float32 of `reference_images`."""
        return self._features(self.reference_images)

    def prepare(self, mapper: Mapper, *, held_out_alone: bool = False) -> None:
        """Take the features of the real images, which the first score would take, by several processes.

        held_out_alone: no others are needed, as for the distance of reconstructions
        Features that are not kept are taken by this process. Raises what `store_in` and `real_features` raise.
        """
        for images in (self.held_out, None if held_out_alone else self.reference):
            if isinstance(images, ImageSet):
                self._features(images, mapper)

    def _features(self, images: ImageSet, mapper: Mapper = in_turn) -> Tensor:
        if images.fingerprint not in self._known:
            store = None if self.keep is None else store_in(self.keep, self.net, images)
            self._known[images.fingerprint] = real_features(
                self.net, images.images, store=store, mapper=mapper, progress=self.progress
            )
        return self._known[images.fingerprint]

    def _note(self, count: int, floor_count: int, *, stratified: bool, codec: Codec) -> str:
        notes = [f"against the statistics in {self.reference.name}"] if isinstance(self.reference, Reference) else []
        dim = self.net.dim
        if isinstance(self.reference, ImageSet) and len(self.reference) < PER_FEATURE * dim:
            notes.append(
                f"the reference, {len(self.reference)} training images, is less than twice the {dim} features: it "
                "means little"
            )
        if count < self.net.usual_count:
            notes.append(
                f"{self.metric} of {count} images is biased upward: compare only with scores, and the floor, at this "
                f"count; usual are {self.net.usual_count}"
            )
        if floor_count == 0:
            notes.append("fewer than two held-out images, no floor")
        elif floor_count < count:
            notes.append(f"only {floor_count} held-out images: their floor is biased upward against {count}")
        if (weights := self._weights(floor_count)) is not None:
            alike = 1 / weights.square().sum().item()
            notes.append(f"the floor's classes weigh as in the reference: {alike:.0f} images alike would tell as much")
        if floor_count and codec.fingerprint:
            rfd = self.reconstruction(floor_count, codec)
            notes.append(f"the floor's {floor_count} images went through the codec, rFD {rfd:.4g} from before it")
        if stratified:
            notes.append("the interval is what other seeds would give, with as many images of each class")
        return "; ".join(notes)


def round_trips(codec: Codec, images: ImageSet, rows: Tensor) -> Iterator[NDArray[np.uint8]]:
    """(b, C, H, W): these images, encoded and decoded, ROUND_TRIP at a time."""
    for part in rows.split(ROUND_TRIP):
        x = to_float(images.images[part.numpy()]).to(codec.device)
        yield to_uint8(round_trip(codec, x, Draws(0, part.to(codec.device)))).cpu().numpy()


def _chosen(images: ImageSet, count: int) -> Tensor:
    """The rows of `count` images: the first ones of an order by a fixed seed in which labels, if any, take turns."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    if images.labels is not None:
        order = order[by_turns(images.labels[order.numpy()])]
    return order[:count]


def by_turns(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """An order of rows of which every beginning holds each class by its share, as nearly as whole rows allow."""
    turn = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        turn[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.argsort(turn, kind="stable")


def class_weights(images: ImageSet, rows: Tensor, like: ImageSet) -> Tensor | None:
    """(N,) float64 of these rows, of sum 1, that give each class of them its share in `like`.

    None where the classes of both sets have the same shares, or no labels, and where not even two rows would count.
    """
    labels, like_labels = images.labels, like.labels
    if labels is None or like_labels is None:
        return None
    classes = max(images.num_classes, like.num_classes)
    counts, like_counts = np.bincount(labels, minlength=classes), np.bincount(like_labels, minlength=classes)
    if (counts * len(like_labels) == like_counts * len(labels)).all():
        return None
    chosen = labels[rows.numpy()]
    weights = torch.from_numpy((like_counts / np.bincount(chosen, minlength=classes).clip(1))[chosen])
    weights /= weights.sum().clamp_min(1e-9)
    return weights if 0 < weights.square().sum() <= 0.5 else None
