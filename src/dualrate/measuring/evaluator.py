"""The evaluator of a data set: its images or a reference file, and a feature net: given, shipped, cached or trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from dualrate import metrics
from dualrate.data.cache import cache_dir
from dualrate.data.images import ImageSet, load_images
from dualrate.experiments.experiment import DataConfig
from dualrate.machine.progress import Reporter, image_progress
from dualrate.metrics.dinov2 import DinoV2, load_dinov2
from dualrate.metrics.evaluate import Evaluator, Net
from dualrate.metrics.features import CARD, Architecture, FeatureNet, read_card
from dualrate.metrics.inception import DIM, Inception, load_inception
from dualrate.metrics.reference import load_reference
from dualrate.metrics.train_features import BATCH_SIZE, check_trainable, feature_net_in

SHIPPED = Path(metrics.__path__[0]) / "nets"  # nets/<name>/, as written by FeatureNet.save


def evaluator(
    data: DataConfig, *, features: Path | None, progress: Reporter, reference: Path | None = None
) -> Evaluator[FeatureNet]:
    """Training and test images of `data` with a feature net.

    features:  directory of a feature net. None: the one shipped for exactly these training images, else one in the
               user's cache, trained there on first use (minutes on a CPU)
    reference: statistics (see `load_reference`) that take the place of the training images'; then there is no floor,
               since nobody knows which images those statistics hold
    Raises ValueError for data that cannot train a feature net, a net that is damaged or takes other images, or a
    reference that is not of its features; OSError for a missing one.
    """
    train, test = _splits(data, progress)
    net = _net(train, test, progress) if features is None else FeatureNet.load(features)
    taken = (net.card.architecture.channels, net.card.architecture.size, net.card.architecture.size)
    if train.images.shape[1:] != taken:
        raise ValueError(
            f"{train.name} has images of {train.images.shape[1:]} (C, H, W), the feature net {net.card.name!r} takes "
            f"{taken}: give another one, or none, to train one on these images"
        )
    return Evaluator(net, train, test) if reference is None else Evaluator(net, load_reference(reference, net), None)


def inception_evaluator(
    data: DataConfig, *, reference: Path | None, device: torch.device, progress: Reporter
) -> Evaluator[Inception]:
    """FID: against a reference file, for which `data` need not be on this machine, or else its training images.

    Raises what `load_inception` and `load_reference` raise.
    """
    net = load_inception(device, progress=image_progress(progress), note=progress.note)
    return _of_net(net, data, reference, progress)


def dinov2_evaluator(
    data: DataConfig, *, reference: Path | None, device: torch.device, progress: Reporter
) -> Evaluator[DinoV2]:
    """FD-DINOv2, as `inception_evaluator`; raises what `load_dinov2` and `load_reference` raise."""
    return _of_net(load_dinov2(device, progress=image_progress(progress)), data, reference, progress)


def require_count(count: int, features: Literal["inception", "dinov2"] | Path | None) -> None:
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


def _of_net(net: Net, data: DataConfig, reference: Path | None, progress: Reporter) -> Evaluator[Net]:
    if reference is not None:
        return Evaluator(net, load_reference(reference, net), None)
    train, test = _splits(data, progress)
    return Evaluator(net, train, test)


def _splits(data: DataConfig, progress: Reporter) -> tuple[ImageSet, ImageSet]:
    """Training and test images."""
    decoding = messages(progress.note)
    train, test = (
        load_images(
            data.source, split=split, size=data.size, channels=data.channels, on_bad=data.on_bad, progress=decoding
        )
        for split in ("train", "test")
    )
    return train, test


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


def _net(train: ImageSet, test: ImageSet, progress: Reporter) -> FeatureNet:
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
