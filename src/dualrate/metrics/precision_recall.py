"""Improved precision and recall: how many generated images look real, and how many real ones the model could generate.

A set of feature vectors stands for the region of balls around each, with the distance to its k-th nearest neighbour in
the set as radius. Precision is the share of generated vectors in the region of the real ones, recall that of real
vectors in the region of the generated ones (Kynkaanniemi, Karras, Laine, Lehtinen and Aila, arXiv 1904.06991, eqs.
1-2). Both hang on how many vectors there are: compare only at the same counts, best with as many real as generated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 1e-12  # of squared norms: what a squared distance of equal vectors may come to


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1], higher is better; k: the neighbour that decides the radius."""

    precision: float
    recall: float
    k: int


@dataclass(frozen=True)
class Manifold:
    """Vectors with the balls that reach to their k-th neighbours; of a reference, to judge several sets against it."""

    points: _Points
    squared_radii: Tensor
    centre: Tensor
    k: int
    block: int

    @staticmethod
    def of(reference: Tensor, *, k: int = 3, block: int = 512) -> Manifold:
        """That of a reference (M, D), on the CPU in float64.

        block: rows and columns of the matrices of distances: 512 lie in a core's cache, 2048 take twice as long
        Raises ValueError for k < 1, no more than k vectors, other shapes, and what is not finite; so does what follows.
        """
        _check("reference", reference, reference.shape[-1], k)
        centre = reference.cpu().double().mean(0)  # distances do not change, and lose fewer digits
        points = _Points.of(reference, centre)
        return Manifold(points, _squared_radii(points, k, block), centre, k, block)

    def precision_recall(self, features: Tensor) -> PrecisionRecall:
        """Of features (N, D) against this reference."""
        _check("features", features, len(self.centre), self.k)
        fake = _Points.of(features, self.centre)
        return PrecisionRecall(
            precision=_share_inside(fake, self.points, self.squared_radii, self.block),
            recall=_share_inside(self.points, fake, _squared_radii(fake, self.k, self.block), self.block),
            k=self.k,
        )


def _check(name: str, own: Tensor, dim: int, k: int) -> None:
    if own.ndim != 2 or own.shape[1] != dim or not own.isfinite().all():
        raise ValueError(
            f"{name} {tuple(own.shape)} must be finite and (N, D) of one D: take both sets through the same net"
        )
    if not 1 <= k < len(own):
        raise ValueError(f"got k = {k} for {len(own)} {name}; k is at least 1, and every set larger than k")


@dataclass(frozen=True)
class _Points:
    """x: (N, D) float64; squares: (N,) of their norms."""

    x: Tensor
    squares: Tensor

    @staticmethod
    def of(features: Tensor, centre: Tensor) -> _Points:
        x = features.cpu().double() - centre
        return _Points(x, x.square().sum(1))

    def __getitem__(self, rows: slice | Tensor) -> _Points:
        return _Points(self.x[rows], self.squares[rows])

    def blocks(self, size: int) -> Iterator[tuple[slice, _Points]]:
        for start in range(0, len(self.x), size):
            rows = slice(start, min(start + size, len(self.x)))
            yield rows, self[rows]


def _squared_distances(a: _Points, b: _Points) -> Tensor:
    """(N, M); zero for equal vectors up to ROUNDING."""
    return torch.addmm(a.squares[:, None] + b.squares, a.x, b.x.T, alpha=-2)


def _squared_radii(points: _Points, k: int, block: int) -> Tensor:
    """(N,) squared distance of every vector to its k-th nearest neighbour among the others."""
    radii = []
    for rows, own in points.blocks(block):
        nearest = torch.empty(len(own.x), 0, dtype=torch.float64)
        for columns, others in points.blocks(block):
            distances = _squared_distances(own, others)
            if rows == columns:
                distances.fill_diagonal_(torch.inf)  # itself
            closest = distances.topk(min(k, distances.shape[1]), largest=False).values
            merged = torch.cat((nearest, closest), dim=1)
            nearest = merged.topk(min(k, merged.shape[1]), largest=False).values
        radii.append(nearest.amax(1))
    return torch.cat(radii)


def _share_inside(points: _Points, region: _Points, squared_radii: Tensor, block: int) -> float:
    """The share of points in at least one ball; those on its edge count as inside."""
    outside = 0
    for _, left in points.blocks(block):
        for columns, centres in region.blocks(block):
            reach = squared_radii[columns] + ROUNDING * (left.squares[:, None] + centres.squares)
            left = left[(_squared_distances(left, centres) > reach).all(1)]  # most are inside some ball soon
        outside += len(left.x)
    return (len(points.x) - outside) / len(points.x)
