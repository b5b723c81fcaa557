"""Evaluators of a data set, and the feature nets that they score by.

An evaluator has the images of a data set, or a reference file, and a net: named, shipped, cached or trained. Of a text
the net is a language model that is trained on it, and images are pieces of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dualrate import metrics
from dualrate.config.ranges import as_path
from dualrate.data.cache import cache_dir
from dualrate.data.images import ImageSet
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.modality import modalities, reader_of
from dualrate.metrics import pretrained
from dualrate.metrics.evaluate import Evaluator, check_count
from dualrate.metrics.features import CARD, Architecture, Card, FeatureNet, check_trainable, train_feature_net
from dualrate.metrics.pretrained import PRETRAINED, Pretrained
from dualrate.metrics.references import load_reference
from dualrate.metrics.trained_network import read_card
from dualrate.system.progress import Reporter, image_progress

Features = Pretrained | Path | None
SHIPPED = Path(metrics.__path__[0]) / "nets"  # nets/<name>/, as written by FeatureNet.save


def evaluators(
    data: DataConfig,
    features: str | Path | None = None,
    *,
    reference: Path | None = None,
    device: torch.device | str | None = None,
    progress: Reporter,
    count: int | None = None,
) -> tuple[Evaluator[Any], ...]:
    """An evaluator for each net in `features` (see `features_named`); the first one's score is the one that orders.

    count: images that are to be scored

    Raises ValueError for two of one metric, and what `features_named` and `evaluator` raise.
    """
    judges = tuple(
        evaluator(data, features=net, reference=reference, device=device, progress=progress, count=count)
        for net in features_named(features)
    )
    names = [judge.metric for judge in judges]
    if len(set(names)) < len(names):
        raise ValueError(f"got the metrics {', '.join(names)}: name nets of different names, each once")
    return judges


def features_named(text: str | Path | None) -> tuple[Features, ...]:
    """The nets that a text names, with commas between: a pretrained net, a directory of a feature net or of a
    CLIPModel, or a shipped net's name. A directory comes before a shipped net, and may have commas in its own name;
    None is as in `evaluator`.

    Raises ValueError for a name that is empty, or unknown.
    """
    if text is None:
        return (None,)
    nets, names = [], sorted(card.parent.name for card in SHIPPED.glob(f"*/{CARD}"))
    for word in [str(text)] if str(text) and as_path(text).is_dir() else map(str.strip, str(text).split(",")):
        if word in PRETRAINED:
            nets.append(word)
        elif word and as_path(word).is_dir():
            nets.append(as_path(word))
        elif word in names:
            nets.append(SHIPPED / word)
        else:
            raise ValueError(
                f"there is no feature net {word!r}: name {', '.join(PRETRAINED)}, a shipped one ({', '.join(names)}), "
                "or the directory of one; several with commas between"
            )
    return tuple(nets)


def evaluator(
    data: DataConfig,
    *,
    features: Features = None,
    reference: Path | None = None,
    device: torch.device | str | None = None,
    progress: Reporter,
    count: int | None = None,
) -> Evaluator[Any]:
    """Training and test images of `data` with a net.

    features:  inception: FID; efficientnet: FD-EfficientNet; else a directory, of a feature net or of a CLIPModel (CLIP
               score, clip.py). None: the one shipped for exactly these training images, else one
               in the user's cache, trained there on first use (minutes on a CPU)
    reference: statistics (see `load_reference`) that take the place of the training images'; then there is no floor,
               since the file does not say which images it is of, and with `features` named `data` need not be here
    device:    as of `pick_device`, of pretrained nets, whose features of these images are kept in the user's cache
    count:     images that are to be scored, where it is known: too few are refused before a net is loaded or trained
    Raises ValueError for features or a reference with a text, for images that are not square, a net that is
    damaged, that knows its classes badly (`Card.check_accuracy`) or takes other images, or a reference that is not of
    its features; OSError for a missing one; what `pretrained.load` raises.
    """
    modality, alone = reader_of(data.source), features is None and reference is None
    if modality is not None and (judge := modality.evaluator(data, progress, alone=alone)) is not None:
        return judge
    if isinstance(features, Path):
        for each in modalities():
            if (judge := each.evaluator_by(features, data, device, progress)) is not None:
                return judge
    if count is not None and isinstance(features, str):
        check_count(pretrained.METRICS[features], pretrained.DIMS[features], count)
    shown = image_progress(progress)
    splits = splits_of(data, progress) if features is None or reference is None else None
    if features is None:
        assert splits is not None
        net = feature_net(*splits, progress=progress, count=count)
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
    return next((card.parent for card in cards if read_card(card, Card).data == fingerprint), None)


def messages(note: Callable[[str], None]) -> Callable[[int, int, str], None]:
    """Progress of data loading as notes: every message once."""
    shown: set[str] = set()

    def report(done: int, total: int, message: str) -> None:
        if message and message not in shown:
            shown.add(message)
            note(message)

    return report


def feature_net(train: ImageSet, test: ImageSet, *, progress: Reporter, count: int | None = None) -> FeatureNet:
    """The shipped one, or the one in the user's cache, trained there on first use. Raises as `check_count`."""
    place = shipped(train.fingerprint) or cache_dir() / "features" / train.fingerprint[:16]
    if not (place / CARD).exists():
        check_trainable(train)
        if count is not None:
            check_count(f"FD-{train.name.removesuffix('/train')}", Architecture.features, count)
        by = "" if train.num_classes > 1 else ", which has no classes, to tell how an image is turned"
        progress.note(f"training a feature net on {train.name}{by}, once; it is kept in {place}")
        train_feature_net(train, test, progress=progress).save(place)
        progress.close()  # the next progress is counted anew
    return FeatureNet.load(place)
