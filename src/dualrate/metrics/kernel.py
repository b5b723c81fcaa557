"""Kernel distance between two sets of feature vectors: an unbiased estimate of the squared maximum mean discrepancy.

    k(x, y) = (x . y / D + 1)^3
    MMD^2   = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

(Binkowski, Sutherland, Arbel and Gretton, "Demystifying MMD GANs", ICLR 2018, arXiv 1801.01401; eq. 4 for the sums.)
Its expectation does not depend on how many vectors there are, which that of the Frechet distance does; near zero it may
come out negative. Called KID in Inception features and KD-<name> in any other.

The value is the mean over subsets of equal size. They share no vector: so they are independent, and the deviation
between them is the sampling error. Published code draws overlapping ones, whose deviation says less than it seems to;
the expectation is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dualrate.metrics.extractor import FeatureExtractor

SUBSETS = 20  # where there are vectors enough


@dataclass(frozen=True)
class KernelDistance:
    """value: lower is better, possibly below 0; standard_error: of it; subsets of `size` vectors of either set."""

    value: float
    standard_error: float
    subsets: int
    size: int


def kernel_metric(net: FeatureExtractor) -> str:
    """What a kernel distance in these features is called: "KID" in Inception's alone, else "KD-<name>"."""
    return "KID" if net.metric == "FID" else f"KD-{net.metric.removeprefix('FD-')}"


def kernel_distance(
    features: Tensor, reference: Tensor, *, subsets: int | None = None, seed: int = 0
) -> KernelDistance:
    """Unbiased squared MMD of features (N, D) and (M, D), in float64, without unit.

    subsets: None: `SUBSETS`, or half as many as there are vectors in the smaller set
    The seed decides which vectors are in which subset; every subset takes min(N, M) // subsets of either set, so of a
    larger reference only as many vectors count as there are features.
    Raises ValueError for fewer than 2 subsets, subsets of fewer than 2 vectors, other shapes, and what is not finite.
    """
    _check(features, reference)
    count = min(len(features), len(reference))
    subsets = min(SUBSETS, count // 2) if subsets is None else subsets
    size = count // max(1, subsets)
    if subsets < 2 or size < 2:
        raise ValueError(
            f"got {len(features)} and {len(reference)} feature vectors for {subsets} subsets; a standard error needs "
            "at least 2 subsets, of at least 2 vectors each: draw more images, or ask for other subsets"
        )
    generator = torch.Generator().manual_seed(seed)
    x, y = (f[torch.randperm(len(f), generator=generator)[: subsets * size]].double() for f in (features, reference))
    values = torch.stack([squared_mmd(a, b) for a, b in zip(x.split(size), y.split(size), strict=True)])
    return KernelDistance(values.mean().item(), values.std().item() / math.sqrt(subsets), subsets, size)


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """The estimate above, a scalar, of x (N, D) and y (M, D)."""
    return _mean_of_pairs(x) + _mean_of_pairs(y) - 2 * _kernel(x, y).mean()


def _mean_of_pairs(x: Tensor) -> Tensor:
    kernel = _kernel(x, x)
    return (kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _check(features: Tensor, reference: Tensor) -> None:
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"got features {tuple(features.shape)} and {tuple(reference.shape)}; expected (N, D) and (M, D): take both "
            "sets through the same feature net"
        )
    if not (features.isfinite().all() and reference.isfinite().all()):
        raise ValueError("some feature vectors are not finite; look at the images they came from")
