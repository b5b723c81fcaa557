"""Bias of the Frechet distance with the number of images: held-out real images against the training images.

    .venv/bin/python studies/fd_bias.py     # about a minute; writes docs/results/fd-bias.png

Both sets are of one distribution, so FD shows its bias, about C / N; beside it the kernel distance, which has none.
Sets that hold every class equally often, as generated ones do, lie closer than random ones: part of the bias is the
chance mix of classes. Fashion-MNIST in the features of its shipped net, 1000 test images and 6000 training images of
every class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, command
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data.images import load_images
from dualrate.drawing.evaluator import shipped
from dualrate.metrics.features import FeatureNet
from dualrate.metrics.frechet import GaussianStats, frechet_distance
from dualrate.metrics.kid_prc import KernelDistance, kernel_distance, kernel_metric
from dualrate.report.figures import INK, MARKERS, PALETTE, png

COUNTS = (500, 1000, 2000, 3000, 5000, 10_000)
OUT = RESULTS / "fd-bias.png"


def fd_of_counts(features: Tensor, reference: GaussianStats) -> list[tuple[float, float]]:
    """Mean and standard deviation of FD over all disjoint sets of each count, in order; deviation 0 of a single set."""
    results = []
    for count in COUNTS:
        sets = features[: len(features) // count * count].split(count)
        values = np.array([frechet_distance(GaussianStats.of(own), reference) for own in sets])
        results.append((float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0))
    return results


def in_turn(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order in which classes take turns; for classes of equal size."""
    return np.argsort(labels, kind="stable").reshape(labels.max() + 1, -1).T.flatten()


def slope(results: list[tuple[float, float]]) -> float:
    """C of C / N, the mean over counts of which there is more than one set."""
    return float(np.mean([count * mean for count, (mean, spread) in zip(COUNTS, results, strict=True) if spread]))


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    train, test = (load_images("fashion-mnist", split=split) for split in ("train", "test"))
    directory = shipped(train.fingerprint)
    if directory is None or test.labels is None:
        raise SystemExit(f"no feature net is shipped for {train.name}")
    net = FeatureNet.load(directory)
    features, reference = net.features(test.images), net.features(train.images)
    stats = GaussianStats.of(reference)
    lines = {
        "random images": fd_of_counts(features, stats),
        "as many of every class": fd_of_counts(features[in_turn(test.labels)], stats),
    }
    kernels = [kernel_distance(features[:count], reference) for count in COUNTS]
    for i, (count, kernel) in enumerate(zip(COUNTS, kernels, strict=True)):
        distances = ", ".join(f"{name} {line[i][0]:.4f} +- {line[i][1]:.4f}" for name, line in lines.items())
        apart = f"{kernel_metric(net)} {kernel.value:+.4f} +- {kernel.standard_error:.4f}"
        print(f"{count}: {net.metric} {distances}; {apart}")
    out.write_bytes(png(picture(lines, kernels, net)))


def picture(lines: dict[str, list[tuple[float, float]]], kernels: list[KernelDistance], net: FeatureNet) -> Figure:
    """FD on log axes with C / N through it, and the kernel distance with its standard errors."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, line) in enumerate(lines.items()):
        label = f"{name}: about {slope(line):.0f} / N"
        left.errorbar(COUNTS, [m for m, _ in line], [s for _, s in line], label=label, **_style(i))
        left.plot(COUNTS, [slope(line) / count for count in COUNTS], color=PALETTE[i], linewidth=1)
    left.set_yscale("log")
    left.legend(frameon=False)
    right.errorbar(COUNTS, [k.value for k in kernels], [k.standard_error for k in kernels], **_style(2))
    right.axhline(0, color=INK, linewidth=1)
    _finish(left, net.metric)
    _finish(right, kernel_metric(net))
    return figure


def _style(i: int) -> dict[str, Any]:
    return {"color": PALETTE[i], "marker": MARKERS[i], "linestyle": "none", "capsize": 4}


def _finish(axes: Axes, metric: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks(COUNTS)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("held-out real images, N")
    axes.set_ylabel(metric)
    axes.grid(color=INK, alpha=0.12)


if __name__ == "__main__":
    main()
