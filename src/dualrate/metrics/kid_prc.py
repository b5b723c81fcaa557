"""Kernel distance of two sets of feature vectors, and improved precision and recall.

The kernel distance is an unbiased estimate of the squared maximum mean discrepancy:

    k(x, y) = (x . y / D + 1)^3
    MMD^2   = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

(Binkowski, Sutherland, Arbel and Gretton, "Demystifying MMD GANs", ICLR 2018, arXiv 1801.01401; eq. 4 for the sums.)
Its expectation does not depend on how many vectors there are, which that of the Frechet distance does; near zero it may
come out negative. Called KID in Inception features and KD-<name> in any other.

The value is the mean over subsets of equal size. They share no vector: so they are independent, and the deviation
between them is the sampling error. Published code draws overlapping ones, whose deviation says less than it seems to;
the expectation is the same.

Precision says how many generated images look real, recall how many real ones the model could generate. A set of feature
vectors stands for the region of balls around each, with the distance to its k-th nearest neighbour in the set as
radius. Precision is the share of generated vectors in the region of the real ones, recall that of real vectors in the
region of the generated ones (Kynkaanniemi, Karras, Laine, Lehtinen and Aila, arXiv 1904.06991, eqs. 1-2). Both depend
on how many vectors there are: compare only at the same counts, best with as many real as generated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dualrate.metrics.features import FeatureExtractor
from dualrate.metrics.frechet import finite_features

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
    if features.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"features have {features.shape} and {reference.shape}: take both through the same feature net"
        )
    sets = finite_features(features), finite_features(reference)
    count = min(map(len, sets))
    subsets = min(SUBSETS, count // 2) if subsets is None else subsets
    size = count // max(1, subsets)
    if subsets < 2 or size < 2:
        raise ValueError(
            f"got {len(features)} and {len(reference)} feature vectors for {subsets} subsets; a standard error needs "
            "at least 2 subsets, of at least 2 vectors each: draw more images, or ask for other subsets"
        )
    generator = torch.Generator().manual_seed(seed)
    x, y = (one[torch.randperm(len(one), generator=generator)[: subsets * size]] for one in sets)
    values = torch.stack([squared_mmd(a, b) for a, b in zip(x.split(size), y.split(size), strict=True)])
    return KernelDistance(values.mean().item(), values.std().item() / math.sqrt(subsets), subsets, size)


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """The estimate above, a scalar, of x (N, D) and y (M, D)."""
    within = (_kernel(x, x), _kernel(y, y))
    pairs = [(kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1)) for kernel in within]
    return sum(pairs) - 2 * _kernel(x, y).mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


ROUNDING = 1e-12  # of squared norms: what a squared distance of equal vectors may come to


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1], higher is better; k: the neighbour that decides the radius."""

    precision: float
    recall: float
    k: int


@dataclass(frozen=True)
class Manifold:
    """Vectors with the balls that reach to their k-th neighbours, of a reference that several sets are compared with.

    points:        (M, D) float64, less their centre (D,): distances stay the same, and lose fewer digits
    squared_radii: (M,)
    block:         rows and columns of the matrices of distances: 512 lie in a core's cache, 2048 take twice as long
    """

    points: Tensor
    squared_radii: Tensor
    centre: Tensor
    k: int
    block: int

    @staticmethod
    def of(reference: Tensor, *, k: int = 3, block: int = 512) -> Manifold:
        """That of a reference (M, D), on the CPU in float64.

        Raises ValueError for k < 1, no more than k vectors, other shapes, and what is not finite; so does what follows.
        """
        reference = _neighbours(reference, reference.shape[-1], k)
        centre = reference.mean(0)
        points = reference - centre
        return Manifold(points, _squared_radii(points, k, block), centre, k, block)

    def precision_recall(self, features: Tensor) -> PrecisionRecall:
        """Of features (N, D) against this reference."""
        fake = _neighbours(features, len(self.centre), self.k) - self.centre
        return PrecisionRecall(
            precision=_share_inside(fake, self.points, self.squared_radii, self.block),
            recall=_share_inside(self.points, fake, _squared_radii(fake, self.k, self.block), self.block),
            k=self.k,
        )


def _neighbours(own: Tensor, dim: int, k: int) -> Tensor:
    """On the CPU in float64."""
    if own.ndim != 2 or own.shape[1] != dim:
        raise ValueError(f"got features {tuple(own.shape)}; expected (N, {dim}): take both through the same net")
    if not 1 <= k < len(own):
        raise ValueError(f"got k = {k} for {len(own)} vectors; k is at least 1, and every set larger than k")
    return finite_features(own).cpu()


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """(N, M): |a|^2 + |b|^2."""
    return a.square().sum(1)[:, None] + b.square().sum(1)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, M); zero for equal vectors up to ROUNDING."""
    return torch.addmm(_squares(a, b), a, b.T, alpha=-2)


def _squared_radii(points: Tensor, k: int, block: int) -> Tensor:
    """(N,) squared distance of every vector to its k-th nearest neighbour among the others."""
    radii, parts = [], points.split(block)
    for i, own in enumerate(parts):
        nearest = []
        for j, others in enumerate(parts):
            distances = _squared_distances(own, others)
            if i == j:
                distances.fill_diagonal_(torch.inf)  # itself
            nearest.append(distances.topk(min(k, distances.shape[1]), largest=False).values)
        radii.append(torch.cat(nearest, dim=1).topk(k, largest=False).values.amax(1))
    return torch.cat(radii)


def _share_inside(points: Tensor, centres: Tensor, squared_radii: Tensor, block: int) -> float:
    """The share of points in at least one ball; those on its edge count as inside."""
    outside = 0
    for left in points.split(block):
        for part, radii in zip(centres.split(block), squared_radii.split(block), strict=True):
            reach = radii + ROUNDING * _squares(left, part)
            left = left[(_squared_distances(left, part) > reach).all(1)]  # most are inside some ball soon
        outside += len(left)
    return (len(points) - outside) / len(points)
