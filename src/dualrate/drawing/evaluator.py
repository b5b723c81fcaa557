"""The evaluator of a data set: its images or a reference file, and a net: given, shipped, cached or trained.

Of a text the net is a language model that is trained on it, and images are pieces of it.

A score of the weights in training, now and then.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from dualrate import metrics
from dualrate.config.ranges import as_path
from dualrate.data.cache import cache_dir
from dualrate.data.images import ImageSet
from dualrate.data.text_pieces import PIECE, is_text
from dualrate.drawing.choice import Choice
from dualrate.drawing.measure import check, measure
from dualrate.experiment.experiment import DataConfig, Model
from dualrate.metrics import efficientnet, inception
from dualrate.metrics import text as language_model
from dualrate.metrics.architectures import Architecture
from dualrate.metrics.dinov2 import load_dinov2
from dualrate.metrics.efficientnet import load_efficientnet
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.features import CARD, FeatureNet, read_card
from dualrate.metrics.inception import load_inception
from dualrate.metrics.reference import load_reference
from dualrate.metrics.text import LanguageModel, is_kept, train_language_model
from dualrate.metrics.train_features import BATCH_SIZE, TrainingProgress, check_trainable, feature_net_in
from dualrate.runs.train import Score
from dualrate.system.progress import Reporter, image_progress

Pretrained = Literal["inception", "dinov2", "efficientnet"]
Features = Pretrained | Path | None
PRETRAINED: tuple[Pretrained, ...] = get_args(Pretrained)
SHIPPED = Path(metrics.__path__[0]) / "nets"  # nets/<name>/, as written by FeatureNet.save


def evaluators(
    data: DataConfig,
    features: str | Path | None = None,
    *,
    reference: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Reporter,
) -> tuple[Evaluator[Any], ...]:
    """A judge for each name in `features` (see `features_named`); the first one's score is the one that orders.

    Raises ValueError for two judges of one metric, and what `features_named` and `evaluator` raise.
    """
    how = {"reference": reference, "device": device, "progress": progress}
    judges = tuple(evaluator(data, features=one, **how) for one in features_named(features))
    metrics = [judge.metric for judge in judges]
    twice = sorted({metric for metric in metrics if metrics.count(metric) > 1})
    if twice:
        raise ValueError(f"two judges are called {twice[0]}: name nets of different names, each once")
    return judges


def features_named(text: str | Path | None) -> tuple[Features, ...]:
    """The judges that a text names, with commas between: a pretrained net, a directory of a feature net, or a shipped
    net's name. A directory comes before a shipped net, and may have commas in its own name; None is as in `evaluator`.

    Raises ValueError for a name that is empty, or nobody's.
    """
    if text is None:
        return (None,)
    words = [str(text)] if str(text) and as_path(text).is_dir() else str(text).split(",")
    return tuple(_named(word.strip()) for word in words)


def _named(word: str) -> Features:
    for pretrained in PRETRAINED:
        if word == pretrained:
            return pretrained
    if word and (place := as_path(word)).is_dir():
        return place
    names = sorted(card.parent.name for card in SHIPPED.glob(f"*/{CARD}"))
    if word not in names:
        raise ValueError(
            f"there is no feature net {word!r}: name {', '.join(PRETRAINED)}, a shipped one ({', '.join(names)}), or "
            "the directory of one; several with commas between"
        )
    return SHIPPED / word


def evaluator(
    data: DataConfig,
    *,
    features: Features = None,
    reference: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Reporter,
) -> Evaluator[Any]:
    """Training and test images of `data` with a net.

    features:  inception: FID; dinov2: FD-DINOv2; efficientnet: FD-EfficientNet; else a directory of a feature net.
               None: the one shipped for exactly these training images, else one in the user's cache, trained there on
               first use (minutes on a CPU)
    reference: statistics (see `load_reference`) that take the place of the training images'; then there is no floor,
               since nobody knows which images those statistics hold, and for pretrained nets `data` need not be here
    device:    of pretrained nets, whose features of these images are kept in the user's cache
    Raises ValueError for features or a reference with a text, for data that cannot train a feature net, a net that is
    damaged or takes other images, or a reference that is not of its features; OSError for a missing one; what
    `load_inception`, `load_dinov2` and `load_efficientnet` raise.
    """
    if is_text(data.source):
        if features is not None or reference is not None:
            raise ValueError(
                f"{data.source} is a text, whose judge is a language model trained on it: drop features and reference"
            )
        return _of_text(data, progress)
    splits, shown = None, image_progress(progress)
    if features == "inception":
        net = load_inception(device, note=progress.note)
    elif features == "dinov2":
        net = load_dinov2(device)
    elif features == "efficientnet":
        net = load_efficientnet(device)
    else:
        splits = _splits(data, progress)
        net = _feature_net(*splits, progress) if features is None else FeatureNet.load(features)
        _check_size(net, splits[0])
    if reference is not None:
        return Evaluator(net, load_reference(reference, net, progress=shown), None)
    if splits is not None:  # a small net: sooner taken than read
        return Evaluator(net, *splits)
    return Evaluator(net, *_splits(data, progress), keep=cache_dir() / "real-features", progress=shown)


def _check_size(net: FeatureNet, train: ImageSet) -> None:
    taken = (net.card.architecture.channels, net.card.architecture.size, net.card.architecture.size)
    if train.images.shape[1:] != taken:
        raise ValueError(
            f"{train.name} has images of {train.images.shape[1:]} (C, H, W), the feature net {net.card.name!r} takes "
            f"{taken}: give another one, or none, to train one on these images"
        )


def require_count(count: int, judges: Sequence[Features], option: str = "--num", *, source: str | None = None) -> None:
    """Raises ValueError for fewer images than twice the features, where that is known before a judge is loaded.

    option: of the command line, that says how many; source: of the images, which says what judges them by itself
    """
    dim = max(_dim(judge, source) for judge in judges)
    if count < 2 * dim:
        raise ValueError(
            f"{option} {count} is too few: a distance in {dim} features needs at least {2 * dim} images: draw more"
        )


def _dim(features: Features, source: str | None) -> int:
    """Of a judge; 0 where it is not known before it is loaded."""
    match features:
        case "inception":
            return inception.DIM
        case "efficientnet":
            return efficientnet.DIM
        case "dinov2":
            return 0
        case None:
            return language_model.HIDDEN if source and is_text(source) else Architecture.features
        case _:
            return FeatureNet.load(features).dim


def _splits(data: DataConfig, progress: Reporter) -> tuple[ImageSet, ImageSet]:
    """Training and test images."""
    decoding = messages(progress.note)
    return data.images("train", decoding), data.images("test", decoding)


def shipped(fingerprint: str) -> Path | None:
    """The shipped feature net that was trained on the images of this fingerprint; of several the first by its name."""
    for card in sorted(SHIPPED.glob(f"*/{CARD}"), key=lambda card: card.parent.name):
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
    net = feature_net_in(cached, train, test, progress=training_progress(progress, BATCH_SIZE))
    progress.close()  # whatever is shown next has a rate of its own
    return net


def _language_model(train: ImageSet, test: ImageSet, progress: Reporter) -> LanguageModel:
    """Of a text: the one in the user's cache, trained there on first use (about two minutes on a core of a CPU)."""
    cached = cache_dir() / "language-models" / train.fingerprint[:16]
    if is_kept(cached):
        return LanguageModel.load(cached)
    progress.note(f"training a language model on {train.name}, once; it is kept in {cached}")
    model = train_language_model(train, test, progress=training_progress(progress, language_model.BATCH_SIZE))
    progress.close()
    model.save(cached)
    return model


def _of_text(data: DataConfig, progress: Reporter) -> Evaluator[LanguageModel]:
    """Its reference: the training split in pieces one after the other, of which training takes any others too."""
    (train, test), length = _splits(data, progress), data.size or PIECE
    hashed = hashlib.sha256(f"{train.fingerprint} every {length}".encode()).hexdigest()
    pieces = replace(train, images=train.images[::length], hashed=hashed)
    return Evaluator(_language_model(train, test, progress), pieces, test)


def training_progress(progress: Reporter, batch_size: int) -> TrainingProgress:
    """Shows the training of a judge, of batches of this size."""
    start = time.monotonic()

    def report(done: int, total: int, loss: float) -> None:
        progress.update(done, total, {"images": done * batch_size, "seconds": time.monotonic() - start, "loss": loss})

    return report


SCORED = 1000  # images


def scorer(data: DataConfig, progress: Reporter) -> Score:
    """Frechet distance of 1,000 images under the recommended sampler and plan. Raises what `evaluator` raises."""
    judge = evaluator(data, progress=progress)
    check([judge], SCORED, details=False)

    def score(model: Model) -> tuple[str, float]:
        return judge.metric, measure(Choice().drawer(model), range(SCORED), judge).row.score.value

    return score
