"""Distances between two sets of feature vectors, in float64: Frechet, kernel, precision and recall.

The Frechet distance is between Gaussians that sum up the sets:

    FD(a, b) = |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))

(Dowson and Landau, "The Frechet distance between multivariate normal distributions", J. Multivariate Anal. 12, 1982).
The trace of the root is the nuclear norm of cov_a^(1/2) cov_b^(1/2): both factors are symmetric, so no complex root
appears, and rank-deficient covariances lose no accuracy.

Its bootstrap interval says what another set of as many images would have given.

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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.metrics.features import FeatureExtractor

ROUNDING = 1e-9  # of the largest eigenvalue: how far one of a covariance in float64 falls below zero
PER_FEATURE = 2  # images for each feature, at least: the covariance of fewer means nothing


@dataclass(frozen=True)
class GaussianStats:
    """The Gaussian fitted to a set of feature vectors.

    mean:  (D,) float64
    cov:   (D, D) float64, unbiased
    count: vectors it was fitted to; None if that is not known
    """

    mean: Tensor
    cov: Tensor
    count: int | None

    @staticmethod
    def of(features: Tensor, weights: Tensor | None = None) -> GaussianStats:
        """Fit to features (N, D). ValueError unless N >= 2 and all are finite.

        weights: (N,) float64, of sum 1: the covariance is unbiased for rows of one distribution
        """
        features = finite_features(features)
        if weights is not None:
            mean = weights @ features
            apart = features - mean
            cov = (weights * apart.T) @ apart / (1 - weights.square().sum())
            return GaussianStats(mean, (cov + cov.T) / 2, len(features))
        return GaussianStats(features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1), len(features))


def frechet_distance(a: GaussianStats, b: GaussianStats) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians; ValueError if their dimensions differ.

    In units of squared features. Identical inputs give 0 up to rounding, which may fall on either side of it.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features have {len(a.mean)} and {len(b.mean)} dimensions: take both through the same net")
    cross = torch.linalg.svdvals(root(a.cov) @ root(b.cov)).sum()
    return ((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross).item()


def root(cov: Tensor) -> Tensor:
    """The symmetric root of a covariance (D, D); ValueError if it has an eigenvalue below zero."""
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * clamped_eigenvalues(values).sqrt()) @ vectors.T


def clamped_eigenvalues(values: Tensor, rounding: float = ROUNDING) -> Tensor:
    """Eigenvalues of a covariance, rounding below zero removed; ValueError if what is below zero is no rounding.

    rounding: how far below zero it reaches, as a share of the largest
    """
    if values.min() < -rounding * values.abs().max():
        raise ValueError(f"a covariance has the eigenvalue {values.min():.3g} < 0; make it with GaussianStats.of")
    return values.clamp_min(0)


def finite_features(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"got features of shape {tuple(features.shape)}; expected (N, D) with N >= 2")
    if not features.isfinite().all():
        bad = int((~features.isfinite().all(1)).sum())
        raise ValueError(f"{bad} of {len(features)} feature vectors are not finite; look at the images they came from")
    return features.double()


LEVEL = 0.95


class Interval(NamedTuple):
    """A confidence interval, in the units of the value it belongs to."""

    low: float
    high: float


def interval_of(replicates: NDArray[np.float64], level: float = LEVEL) -> Interval:
    """Bias-centred bootstrap interval of the *expected distance at this count*, E[FD of N such vectors].

    replicates: of `resampled_distances`, whose quantiles these are

    Percentiles rather than the reversed ("basic") interval, because the spread of a squared distance grows with it;
    the reversed one covers less and reaches below zero. Near the floor the bootstrap's spread is too wide, and the
    interval errs on the safe side. Not covered: the noise of the reference and that of training the sampled model
    again.
    """
    return Interval(*np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2]).tolist())


def resampled_distances(
    features: Tensor,
    reference: GaussianStats | Tensor,
    *,
    resamples: int = 200,
    seed: int,
    strata: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Bias-centred bootstrap replicates of the distance, value + FD* - mean(FD*), (resamples,) float64.

    features: (N, D)
    reference: stays fixed; or (N, D), row i the partner of row i, as an image before a codec is of the one after it:
              pairs are then resampled, and what chance does to both cancels as it does in the distance.
    strata:   (N,) int64, the class of each vector, for samples whose number of each class is fixed, not drawn by
              chance; it stays fixed in every resample. None: one stratum.
    groups:   (N,) int64, in place of strata: vectors of one group, as samples of one condition, are not independent,
              and are counted together
    seed:     the same one counts the same rows alike for any features, so replicates of two models that drew row i
              from the same noise are paired, and those of their difference are the differences.
    Raises ValueError for a stratum of a single vector, and what `GaussianStats.of` refuses.

    A stratum of n vectors gives n - 1 draws with replacement that count n/(n - 1) times each (Rao and Wu, "Resampling
    inference with complex survey data", J. Am. Stat. Assoc. 83, 1988): n draws of n would make the spread too small by
    (n - 1)/n, much for a few images of each of many classes.

    FD of a sample is biased upward by about C/N. A resample repeats some vectors, so it carries that bias a second
    time, and the plain percentile interval lies above the value, often without touching it. The bootstrap's own mean
    measures the second bias, which is subtracted. The first bias is left in on purpose, as it is in every value at this
    count, the floor of real images included.
    """
    features = finite_features(features)
    strata = torch.zeros(len(features), dtype=torch.int64) if strata is None else strata
    weights = resampling_weights(strata, resamples, seed)
    if groups is not None:
        whole, of_row = groups.unique(return_inverse=True)
        of_groups = resampling_weights(torch.zeros(len(whole), dtype=torch.int64), resamples, seed)
        weights = (weight[of_row] * (len(groups) / weight[of_row].sum()) for weight in of_groups)
    if isinstance(reference, GaussianStats):
        value, rooted = frechet_distance(GaussianStats.of(features), reference), root(reference.cov)
        each = [_distance(_weighted(features, weight), reference, rooted) for weight in weights]
    else:
        pair = features, finite_features(reference)
        value = frechet_distance(*map(GaussianStats.of, pair))
        each = [frechet_distance(*(_weighted(vectors, weight) for vectors in pair)) for weight in weights]
    distances = torch.tensor(each, dtype=torch.float64)
    return value + distances - distances.mean()


def resampling_weights(strata: Tensor, resamples: int, seed: int) -> Iterator[Tensor]:
    """Weights of the vectors in each resample: (N,) float64 of sum N, and n in every stratum of n.

    As `resampled_distances` says. Raises ValueError for a stratum of a single vector.
    """
    labels, of_row, sizes = strata.unique(return_inverse=True, return_counts=True)
    if sizes.min() < 2:
        raise ValueError(f"stratum {labels[sizes.argmin()]} has a single vector: draw at least 2 of each class")
    by_stratum = of_row.argsort(stable=True)
    from_stratum = torch.arange(len(sizes)).repeat_interleave(sizes - 1)
    start, size = (sizes.cumsum(0) - sizes)[from_stratum], sizes[from_stratum]
    each = (sizes / (sizes - 1).double())[of_row]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(resamples):
        place = torch.rand(len(size), generator=generator, dtype=torch.float64) * size
        yield each * by_stratum[start + place.long()].bincount(minlength=len(strata))


def _weighted(features: Tensor, weight: Tensor) -> GaussianStats:
    """Statistics of vectors (N, D) that count as often as `weight`, (N,) of sum N, says."""
    count, mean = len(features), weight @ features / len(features)
    counted = weight.nonzero().squeeze(1)  # a resample leaves a third of the vectors out
    centred = features[counted] - mean
    return GaussianStats(mean, centred.T @ (centred * weight[counted, None]) / (count - 1), count)


def _distance(a: GaussianStats, b: GaussianStats, rooted: Tensor) -> float:
    """`frechet_distance` where the root of b's covariance is known: without a singular value decomposition."""
    cross = clamped_eigenvalues(torch.linalg.eigvalsh(rooted @ a.cov @ rooted)).sqrt().sum()
    return ((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross).item()


SUBSETS = 20  # where there are vectors enough


@dataclass(frozen=True)
class KernelDistance:
    """value: lower is better, possibly below 0; standard_error: of it; subsets of `size` vectors of either set."""

    value: float
    standard_error: float
    subsets: int
    size: int


def kernel_metric(net: FeatureExtractor) -> str:
    """The name of a kernel distance in these features: "KID" in Inception's alone, else "KD-<name>"."""
    return "KID" if net.metric == "FID" else f"KD-{net.metric.removeprefix('FD-')}"


def kernel_distance(features: Tensor, reference: Tensor, *, seed: int = 0) -> KernelDistance:
    """Unbiased squared MMD of features (N, D) and (M, D), N and M 4 or more, in float64, without unit.

    It is a mean over `SUBSETS` subsets, or half as many as there are vectors in the smaller set. The seed decides which
    vectors are in which; every subset takes min(N, M) // subsets of either set, so of a larger reference only as many
    vectors count as there are features. Raises ValueError for what is not finite.
    """
    sets = finite_features(features), finite_features(reference)
    count = min(map(len, sets))
    subsets = min(SUBSETS, count // 2)
    size = count // subsets
    generator = torch.Generator().manual_seed(seed)
    x, y = (vectors[torch.randperm(len(vectors), generator=generator)[: subsets * size]] for vectors in sets)
    values = torch.stack([squared_mmd(a, b) for a, b in zip(x.split(size), y.split(size), strict=True)])
    return KernelDistance(values.mean().item(), values.std().item() / math.sqrt(subsets), subsets, size)


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """The estimate above, a scalar, of x (N, D) and y (M, D)."""
    within = (_kernel(x, x), _kernel(y, y))
    pairs = [(kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1)) for kernel in within]
    return sum(pairs) - 2 * _kernel(x, y).mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


TOUCHING = 1e-12  # of squared norms: what a squared distance of equal vectors may come to


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1], higher is better; k: the neighbour that decides the radius."""

    precision: float
    recall: float
    k: int


def precision_recall(features: Tensor, reference: Tensor, *, k: int = 3, block: int = 256) -> PrecisionRecall:
    """Precision and recall of features (N, D) against a reference (M, D), in float64. Both hold more than k vectors.

    block: rows of a matrix of distances at a time
    Raises ValueError for what is not finite.
    """
    real, fake = finite_features(reference).cpu(), finite_features(features).cpu()
    centre = real.mean(0)  # without it distances stay the same, and lose fewer digits
    real, fake = real - centre, fake - centre
    return PrecisionRecall(_share_inside(fake, real, k, block), _share_inside(real, fake, k, block), k)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """(N, M): |a|^2 + |b|^2."""
    return a.square().sum(1)[:, None] + b.square().sum(1)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, M); zero for equal vectors up to TOUCHING."""
    return torch.addmm(_squares(a, b), a, b.T, alpha=-2)


def _share_inside(points: Tensor, centres: Tensor, k: int, block: int) -> float:
    """The share of points in the ball of at least one centre, which reaches to its k-th nearest neighbour among the
    others; those on its edge count as inside."""
    parts, outside = centres.split(block), 0
    nearest = [_squared_distances(part, centres).topk(k + 1, largest=False).values for part in parts]
    squared_radii = torch.cat(nearest).amax(1).split(block)  # of k + 1 with itself
    for left in points.split(block):
        for part, radii in zip(parts, squared_radii, strict=True):
            reach = radii + TOUCHING * _squares(left, part)
            left = left[(_squared_distances(left, part) > reach).all(1)]  # most are inside some ball soon
        outside += len(left)
    return (len(points) - outside) / len(points)
