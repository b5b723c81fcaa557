"""The evaluator of a data set: its images or a reference file, and a net: named, shipped, cached or trained.

Of a text the net is a language model that is trained on it, and images are pieces of it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import torch

from dualrate import metrics
from dualrate.config.ranges import as_path
from dualrate.data.cache import cache_dir
from dualrate.data.images import ImageSet, every_image
from dualrate.data.source import printable, resolved
from dualrate.data.text_pieces import PIECE, is_text
from dualrate.drawing.choice import Choice
from dualrate.drawing.measure import check, measure, score_images
from dualrate.drawing.samples import grids_below
from dualrate.experiment.experiment import DataConfig, Model
from dualrate.metrics import features as feature_nets
from dualrate.metrics import pretrained
from dualrate.metrics import text as language_models
from dualrate.metrics.evaluate import Evaluator, Score, holds_statistics, load_reference
from dualrate.metrics.features import CARD, FeatureNet, TrainingProgress, check_trainable, read_card, train_feature_net
from dualrate.metrics.pretrained import PRETRAINED, Pretrained
from dualrate.metrics.text import LanguageModel, train_language_model
from dualrate.runs.train import Score as ScoreInTraining
from dualrate.system.progress import Reporter, image_progress

Features = Pretrained | Path | None
SHIPPED = Path(metrics.__path__[0]) / "nets"  # nets/<name>/, as written by FeatureNet.save


def evaluators(
    data: DataConfig,
    features: str | Path | None = None,
    *,
    reference: Path | None = None,
    device: torch.device | str = "cpu",
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
    """The nets that a text names, with commas between: a pretrained net, a directory of a feature net, or a shipped
    net's name. A directory comes before a shipped net, and may have commas in its own name; None is as in `evaluator`.

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
    device: torch.device | str = "cpu",
    progress: Reporter,
) -> Evaluator[Any]:
    """Training and test images of `data` with a net.

    features:  inception: FID; dinov2: FD-DINOv2; efficientnet: FD-EfficientNet; else a directory of a feature net.
               None: the one shipped for exactly these training images, else one in the user's cache, trained there on
               first use (minutes on a CPU)
    reference: statistics (see `load_reference`) that take the place of the training images'; then there is no floor,
               since the file does not say which images it is of, and with `features` named `data` need not be here
    device:    of pretrained nets, whose features of these images are kept in the user's cache
    Raises ValueError for features or a reference with a text, for data that cannot train a feature net, a net that is
    damaged or takes other images, or a reference that is not of its features; OSError for a missing one; what
    `pretrained.load` raises.
    """
    if is_text(data.source):
        if features is not None or reference is not None:
            raise ValueError(f"{data.source} is a text, scored by a language model of it: drop features and reference")
        return _of_text(data, progress)
    shown = image_progress(progress)
    splits = _splits(data, progress) if features is None or reference is None else ()
    if features is None:
        net = _feature_net(*splits, progress=progress)
    elif isinstance(features, Path):
        net = FeatureNet.load(features)
        taken = (net.card.architecture.channels, net.card.architecture.size, net.card.architecture.size)
        if splits and splits[0].shape != taken:
            raise ValueError(
                f"{splits[0].name} has images of {splits[0].shape} (C, H, W), the feature net {net.card.name!r} takes "
                f"{taken}: give another one, or none, to train one on these images"
            )
    else:
        net = pretrained.load(features, device, note=progress.note)
    if reference is not None:
        return Evaluator(net, load_reference(reference, net, progress=shown), None)
    if isinstance(net, FeatureNet):  # a small net: computing features takes less time than reading them
        return Evaluator(net, *splits)
    return Evaluator(net, *splits, keep=cache_dir() / "real-features", progress=shown)


def _splits(data: DataConfig, progress: Reporter) -> tuple[ImageSet, ImageSet]:
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
        net = train_feature_net(train, test, progress=training_progress(progress, feature_nets.BATCH_SIZE))
        progress.close()  # whatever is shown next has a rate of its own
        net.save(place)
    return FeatureNet.load(place)


def _of_text(data: DataConfig, progress: Reporter) -> Evaluator[LanguageModel]:
    """Its reference: the training split in pieces one after the other, of which training takes any others too.

    The language model is in the user's cache, trained there on first use (about two minutes on a core of a CPU).
    """
    (train, test), length = _splits(data, progress), data.size or PIECE
    place = cache_dir() / "language-models" / train.fingerprint[:16]
    if not (place / f"{language_models.NAME}.json").exists():
        progress.note(f"training a language model on {train.name}, once; it is kept in {place}")
        shown = training_progress(progress, language_models.BATCH_SIZE)
        train_language_model(train, test, progress=shown).save(place)
        progress.close()
    hashed = hashlib.sha256(f"{train.fingerprint} every {length}".encode()).hexdigest()
    pieces = replace(train, images=train.images[::length], hashed=hashed)
    return Evaluator(LanguageModel.load(place), pieces, test)


def training_progress(progress: Reporter, batch_size: int) -> TrainingProgress:
    """Shows the training of a net, of batches of this size."""
    start = time.monotonic()

    def report(done: int, total: int, loss: float) -> None:
        progress.update(done, total, {"images": done * batch_size, "seconds": time.monotonic() - start, "loss": loss})

    return report


def score_source(
    source: str | Path,
    data: DataConfig | None = None,
    *,
    reference: str | Path | None = None,
    features: str | Path | None = None,
    details: bool = False,
    device: torch.device | str = "cpu",
    progress: Reporter,
) -> tuple[Score, ...]:
    """Scores of images that are there already, whoever made them, as of samples of a run.

    source:    a folder, a .zip, a .npz or another source of images (see `every_image`)
    data:      the real images; None: those of `reference`, which is a data source then, or a .npz of statistics
    features:  as of `features_named`
    Raises ValueError where neither says what to compare with, and what `evaluators` and `score_images` raise.
    """
    if data is None:
        if reference is None:
            raise ValueError("images are compared with real ones: name a run that was trained on them, or a reference")
        if not holds_statistics(Path(reference)):
            data, reference = DataConfig(str(reference)), None
    file = None if reference is None else Path(reference)
    found = evaluators(data or DataConfig(""), features, reference=file, device=device, progress=progress)
    real, folder = found[0].reference, resolved(source)
    channels, name = real.shape[0] if isinstance(real, ImageSet) else None, printable(folder.name)
    with TemporaryDirectory() as unpacked:
        if folder.suffix == ".zip":
            ZipFile(folder).extractall(unpacked)
            folder = Path(unpacked)
        images = every_image(folder, channels=channels, without=grids_below(folder))
        shown = image_progress(progress)
        return score_images(images, name, *found, details=details, progress=shown)


SCORED = 1000  # images of a score in training


def scorer(data: DataConfig, progress: Reporter) -> ScoreInTraining:
    """Frechet distance of 1,000 images under the recommended sampler and plan. Raises what `evaluator` raises."""
    found = evaluator(data, progress=progress)
    check([found], SCORED, details=False)

    def score(model: Model) -> tuple[str, float]:
        return found.metric, measure(Choice().drawer(model), range(SCORED), found).row.score.value

    return score
