"""The evaluator of a data set: its images or a reference file, and a net: given, shipped, cached or trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from dualrate import metrics
from dualrate.data.cache import cache_dir
from dualrate.data.images import ImageSet
from dualrate.experiments.experiment import DataConfig
from dualrate.machine.progress import Reporter, image_progress
from dualrate.metrics.dinov2 import load_dinov2
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.features import CARD, Architecture, FeatureNet, read_card
from dualrate.metrics.inception import DIM, load_inception
from dualrate.metrics.reference import load_reference
from dualrate.metrics.train_features import BATCH_SIZE, check_trainable, feature_net_in

Features = Literal["inception", "dinov2"] | Path | None
SHIPPED = Path(metrics.__path__[0]) / "nets"  # nets/<name>/, as written by FeatureNet.save


def evaluator(
    data: DataConfig,
    *,
    features: Features = None,
    reference: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Reporter,
) -> Evaluator[Any]:
    """Training and test images of `data` with a net.

    features:  inception: FID; dinov2: FD-DINOv2; else a directory of a feature net. None: the one shipped for exactly
               these training images, else one in the user's cache, trained there on first use (minutes on a CPU)
    reference: statistics (see `load_reference`) that take the place of the training images'; then there is no floor,
               since nobody knows which images those statistics hold, and for FID and FD-DINOv2 `data` need not be here
    device:    of Inception and DINOv2
    Raises ValueError for data that cannot train a feature net, a net that is damaged or takes other images, or a
    reference that is not of its features; OSError for a missing one; what `load_inception` and `load_dinov2` raise.
    """
    shown, splits = image_progress(progress), None
    if features == "inception":
        net = load_inception(device, progress=shown, note=progress.note)
    elif features == "dinov2":
        net = load_dinov2(device, progress=shown)
    else:
        splits = _splits(data, progress)
        net = _feature_net(*splits, progress) if features is None else FeatureNet.load(features)
        _check_size(net, splits[0])
    if reference is not None:
        return Evaluator(net, load_reference(reference, net), None)
    return Evaluator(net, *(splits or _splits(data, progress)))


def _check_size(net: FeatureNet, train: ImageSet) -> None:
    taken = (net.card.architecture.channels, net.card.architecture.size, net.card.architecture.size)
    if train.images.shape[1:] != taken:
        raise ValueError(
            f"{train.name} has images of {train.images.shape[1:]} (C, H, W), the feature net {net.card.name!r} takes "
            f"{taken}: give another one, or none, to train one on these images"
        )


def require_count(count: int, features: Features) -> None:
    """Raises ValueError for fewer images than twice the features, where that is known before anything is loaded."""
    match features:
        case "inception":
            dim = DIM
        case "dinov2":
            return
        case None:
            dim = Architecture.features
        case _:
            dim = FeatureNet.load(features).dim
    if count < 2 * dim:
        raise ValueError(f"--num {count} is too few: a distance in {dim} features needs at least {2 * dim} images")


def _splits(data: DataConfig, progress: Reporter) -> tuple[ImageSet, ImageSet]:
    """Training and test images."""
    decoding = messages(progress.note)
    return data.load("train", decoding), data.load("test", decoding)


def shipped(fingerprint: str) -> Path | None:
    """The shipped feature net that was trained on the images of this fingerprint."""
    for card in sorted(SHIPPED.glob(f"*/{CARD}")):
        if read_card(card).data == fingerprint:
            return card.parent
    return None


def messages(note: Callable[[str], None]) -> Callable[[int, int, str], None]:
    """Progress of data loading as notes: every message once."""
    seen: set[str] = set()

    def report(done: int, total: int, message: str) -> None:
        if message and message not in seen:
            seen.add(message)
            note(message)

    return report


def _feature_net(train: ImageSet, test: ImageSet, progress: Reporter) -> FeatureNet:
    found = shipped(train.fingerprint)
    if found is not None:
        return FeatureNet.load(found)
    cached = cache_dir() / "features" / train.fingerprint[:16]
    if not (cached / CARD).exists():
        check_trainable(train)
        progress.note(f"training a feature net on {train.name}, once; it is kept in {cached}")
    start = time.monotonic()

    def report(done: int, total: int, loss: float) -> None:
        progress.update(done, total, {"images": done * BATCH_SIZE, "seconds": time.monotonic() - start, "loss": loss})

    net = feature_net_in(cached, train, test, progress=report)
    progress.close()  # whatever is shown next has a rate of its own
    return net
