"""The evaluator of a data set: its images and its feature net, given, shipped, cached, or trained on first use."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from dualrate import metrics
from dualrate.data.cache import cache_dir
from dualrate.data.images import ImageSet, load_images
from dualrate.experiment import DataConfig
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.features import CARD, FeatureNet
from dualrate.metrics.train_features import BATCH_SIZE, feature_net_in
from dualrate.training.log import Progress

SHIPPED = Path(metrics.__path__[0]) / "nets"  # nets/<name>/, as written by FeatureNet.save


def evaluator(data: DataConfig, *, features: Path | None, progress: Progress) -> Evaluator:
    """Training and test images of `data` with a feature net.

    features: directory of a feature net. None: the one shipped for exactly these training images, else one in the
              user's cache, trained there on first use (minutes on a CPU)
    Raises ValueError for data that cannot train a feature net, or a net that is damaged or takes other images; OSError
    for a missing one.
    """
    decoding = messages(progress.note)
    train, test = (
        load_images(
            data.source, split=split, size=data.size, channels=data.channels, on_bad=data.on_bad, progress=decoding
        )
        for split in ("train", "test")
    )
    net = _net(train, test, progress) if features is None else FeatureNet.load(features)
    taken = (net.card.architecture.channels, net.card.architecture.size, net.card.architecture.size)
    if train.images.shape[1:] != taken:
        raise ValueError(
            f"{train.name} has images of {train.images.shape[1:]} (C, H, W), the feature net {net.card.name!r} takes "
            f"{taken}: give another one, or none, to train one on these images"
        )
    return Evaluator(net, train, test)


def shipped(fingerprint: str) -> Path | None:
    """The shipped feature net that was trained on the images of this fingerprint."""
    for card in sorted(SHIPPED.glob(f"*/{CARD}")):
        if json.loads(card.read_text())["data"] == fingerprint:
            return card.parent
    return None


def messages(note: Callable[[str], None]) -> Callable[[int, int, str], None]:
    """Progress of data loading as notes: every message once."""
    told: set[str] = set()

    def report(done: int, total: int, message: str) -> None:
        if message and message not in told:
            told.add(message)
            note(message)

    return report


def _net(train: ImageSet, test: ImageSet, progress: Progress) -> FeatureNet:
    found = shipped(train.fingerprint)
    if found is not None:
        return FeatureNet.load(found)
    cached = cache_dir() / "features" / train.fingerprint[:16]
    if not (cached / CARD).exists():
        progress.note(f"training a feature net on {train.name}, once; it is kept in {cached}")
    start = time.monotonic()

    def report(done: int, total: int, loss: float) -> None:
        progress.update(done, total, {"images": done * BATCH_SIZE, "seconds": time.monotonic() - start, "loss": loss})

    return feature_net_in(cached, train, test, progress=report)
