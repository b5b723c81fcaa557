"""The judges of Fashion-MNIST: classifiers of three architectures, trained apart, and what each of them sees.

    OMP_NUM_THREADS=1 .venv/bin/python studies/judges.py fashion-mnist-b    # prints a table for its README
    OMP_NUM_THREADS=1 .venv/bin/python studies/judges.py efficientnet       # the one that nobody here trained

Trains the net of that name into src/dualrate/metrics/nets, if it is not there: five minutes of one core, the same bits
on one kind of machine. Then distances of 5,000 test images, intact and damaged, from all training images, with 95%
bootstrap intervals; and the floor, which is that of 5,000 test images, every class by its share. A net that misses a
damage is no judge.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import PRETRAINED, command, markdown, on_one_thread
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from dualrate.data.images import ImageSet, load_images
from dualrate.drawing.evaluator import SHIPPED
from dualrate.metrics.architectures import Architecture, Mixed, Stacked
from dualrate.metrics.efficientnet import load_efficientnet
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.features import FeatureNet
from dualrate.metrics.train_features import feature_net_in
from dualrate.report.table import significant

COUNT = 5000
# architecture, seed, epochs
NETS: dict[str, tuple[type[Architecture], int, int]] = {
    "fashion-mnist": (Architecture, 0, 10),
    "fashion-mnist-b": (Stacked, 1, 7),
    "fashion-mnist-c": (Mixed, 2, 7),
}
Damage = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def noisy(share: float) -> Damage:
    """Gaussian noise whose standard deviation is a share of the range of a pixel."""

    def damaged(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        noise = np.random.default_rng(0).normal(0, 255 * share, images.shape)
        return np.rint(images + noise).clip(0, 255).astype(np.uint8)

    return damaged


def each(change: Callable[[Image.Image], Image.Image]) -> Damage:
    """A change of every grey image."""
    return lambda images: np.stack([np.asarray(change(Image.fromarray(image[0])))[None] for image in images])


def blurred(radius: float) -> Damage:
    """By a Gaussian of this radius, in pixels."""
    return each(lambda image: image.filter(ImageFilter.GaussianBlur(radius)))


def halved(image: Image.Image) -> Image.Image:
    small = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BICUBIC)


DAMAGES: dict[str, Damage] = {
    "intact": lambda images: images,
    "one grey level darker": lambda images: np.maximum(images, 1) - 1,
    "Gaussian noise, 2% of the range": noisy(0.02),
    "Gaussian noise, 5%": noisy(0.05),
    "Gaussian noise, 10%": noisy(0.1),
    "Gaussian blur, 0.5 pixels": blurred(0.5),
    "Gaussian blur, 1 pixel": blurred(1),
    "down to 14 x 14 and back": each(halved),
    "mirrored": lambda images: images[..., ::-1],
}


def lines(judge: Evaluator[Any], test: ImageSet) -> list[tuple[str, str]]:
    """Names of damages, and the distances of images so damaged."""
    found = []
    for name, damage in DAMAGES.items():
        features = judge.net.features(np.ascontiguousarray(damage(test.images[:COUNT])))
        score = judge.score_features(features, seeds="test images", labels="their own")
        found.append((name, f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"))
    return found


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("name", choices=(*NETS, PRETRAINED))
    name = parser.parse_args().name
    on_one_thread()
    train, test = (load_images("fashion-mnist", split=split) for split in ("train", "test"))
    net = load_efficientnet() if name == PRETRAINED else trained(name, train, test)
    judge = Evaluator(net, train, test)
    print(f"floor at {COUNT} images: {significant(judge.floor(COUNT)[0])}\n")
    print(markdown(("images", f"{judge.metric} of {COUNT:,}"), lines(judge, test), texts=1))


def trained(name: str, train: ImageSet, test: ImageSet) -> FeatureNet:
    """The net of that name, which is said what it is."""
    kind, seed, epochs = NETS[name]
    losses: list[float] = []
    start = time.process_time()

    def report(done: int, total: int, loss: float) -> None:
        if done * epochs // total > len(losses):
            losses.append(loss)
            print(f"epoch {len(losses)} of {epochs}: loss {loss:.3f}, {time.process_time() - start:.0f} s", flush=True)

    how = {"seed": seed, "epochs": epochs, "kind": kind, "name": name}
    net = feature_net_in(SHIPPED / name, train, test, **how, progress=report)
    parameters = sum(parameter.numel() for parameter in net.module.parameters())
    print(f"{net.identity}: {net.dim} features, {parameters:,} parameters, accuracy {net.card.accuracy:.2%}")
    return net


if __name__ == "__main__":
    main()
