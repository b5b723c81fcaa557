"""Training of the feature net: minutes on a CPU, once per data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dualrate.data.images import ImageSet
from dualrate.data.loader import Augment, Batches
from dualrate.metrics.architectures import Architecture, Classifier
from dualrate.metrics.features import CARD, Card, FeatureNet
from dualrate.metrics.kept import weight_bytes

BATCH_SIZE = 256
MAX_SHIFT = 1  # pixel, each way: the only augmentation
TrainingProgress = Callable[[int, int, float], None]  # iterations done, iterations in all, loss


def feature_net_in(
    directory: Path | str,
    images: ImageSet,
    test: ImageSet | None,
    *,
    seed: int = 0,
    epochs: int = 10,
    kind: type[Architecture] = Architecture,
    name: str = "",
    progress: TrainingProgress | None = None,
) -> FeatureNet:
    """The feature net stored in `directory`; if there is none, trained on `images` and stored there first.

    ValueError if the stored net was trained on other images, or for what `train_feature_net` refuses.
    """
    if not (Path(directory) / CARD).exists():
        how = {"seed": seed, "epochs": epochs, "kind": kind, "name": name}
        net = train_feature_net(images, test, **how, progress=progress)
        net.save(directory)
        return net
    net = FeatureNet.load(directory)
    if net.card.data != images.fingerprint:
        raise ValueError(
            f"the feature net in {directory} was trained on {net.card.name!r} ({net.card.data[:12]}), not on "
            f"{images.name!r} ({images.fingerprint[:12]}): give the folder of the right net, or an empty one"
        )
    return net


def train_feature_net(
    images: ImageSet,
    test: ImageSet | None,
    *,
    seed: int,
    epochs: int = 10,
    kind: type[Architecture] = Architecture,
    name: str = "",
    progress: TrainingProgress | None = None,
) -> FeatureNet:
    """Train a classifier of the images' labels in float32: AdamW, one cycle, shifts of up to 1 pixel.

    kind: of architecture
    name: scores are called FD-<name>; that of the images if empty
    The seed determines the weights bit for bit on one kind of machine at one number of threads. ValueError for images
    without labels, of fewer than 2 classes, or that are not square.
    """
    check_trainable(images)
    channels, height, _ = images.images.shape[1:]
    architecture = kind(channels, height, images.num_classes)
    module = _initialised(architecture.build(), torch.Generator().manual_seed(seed))
    _fit(module, images, seed, epochs, architecture.learning_rate, progress)
    card = Card(
        name=name or images.name.removesuffix("/train"),
        identity=hashlib.sha256(weight_bytes(module)).hexdigest(),
        architecture=architecture,
        data=images.fingerprint,
        accuracy=None,
        seed=seed,
        epochs=epochs,
    )
    net = FeatureNet(card, module)
    return net if test is None else replace(net, card=replace(card, accuracy=_accuracy(net, test)))


def check_trainable(images: ImageSet) -> None:
    """Raises ValueError for images without labels, of fewer than 2 classes, or that are not square."""
    labels, (height, width) = images.labels, images.images.shape[2:]
    if labels is None or len(np.unique(labels)) < 2:
        raise ValueError(
            f"{images.name!r} has {'no labels' if labels is None else 'one class'}, and the feature net is a "
            "classifier: sort the images into a folder per class, or give the feature net of a data set with labels "
            "and images of this size (--features DIRECTORY); evaluate also takes --features efficientnet, inception or "
            "dinov2"
        )
    if height != width:
        raise ValueError(f"{images.name!r} has images of {height} x {width}; the feature net takes square ones: crop")


def _fit(
    module: Classifier, images: ImageSet, seed: int, epochs: int, rate: float, progress: TrainingProgress | None
) -> None:
    batches = Batches(images, min(BATCH_SIZE, len(images)), seed, Augment(translate=MAX_SHIFT))
    total = max(1, round(epochs * len(images) / batches.batch_size))
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=total)
    module.train()
    for iteration in range(total):
        batch = batches.batch(iteration)
        assert batch.label is not None  # for the type checker: `train_feature_net` refuses images without labels
        loss = F.cross_entropy(module(batch.x.contiguous(memory_format=torch.channels_last)), batch.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(iteration + 1, total, loss.item())
    module.eval().requires_grad_(False)


def _accuracy(net: FeatureNet, test: ImageSet) -> float:
    if test.labels is None:
        raise ValueError(f"{test.name!r} has no labels to test the feature net on: give none, or a labelled test set")
    guess = net.module.classify(net.features(test.images)).argmax(1)
    return (guess.numpy() == test.labels).mean().item()


def _initialised(module: Classifier, generator: torch.Generator) -> Classifier:
    """Weights from the generator, biases zero: nothing hangs on the global random state."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module
