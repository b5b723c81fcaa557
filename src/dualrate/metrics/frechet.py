"""Frechet distance between two sets of feature vectors, each summed up as a Gaussian, in float64.

    FD(a, b) = |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))

(Dowson and Landau, "The Frechet distance between multivariate normal distributions", J. Multivariate Anal. 12, 1982).
The trace of the root is the nuclear norm of cov_a^(1/2) cov_b^(1/2): both factors are symmetric, so no complex root
appears, and rank-deficient covariances lose no accuracy.

Its bootstrap interval says what another set of as many images would have given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    def of(features: Tensor) -> GaussianStats:
        """Fit to features (N, D). ValueError unless N >= 2 and all are finite."""
        features = finite_features(features)
        return GaussianStats(features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1), len(features))


def frechet_distance(a: GaussianStats, b: GaussianStats) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians; ValueError if their dimensions differ.

    In units of squared features. Identical inputs give 0 up to rounding, which may fall on either side of it.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features have {len(a.mean)} and {len(b.mean)} dimensions: take both through the same net")
    cross = torch.linalg.svdvals(root(a.cov) @ root(b.cov)).sum()
    gap = (a.mean - b.mean).square().sum()
    return (gap + a.cov.trace() + b.cov.trace() - 2 * cross).item()


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
) -> Tensor:
    """Bias-centred bootstrap replicates of the distance, value + FD* - mean(FD*), (resamples,) float64.

    features: (N, D)
    reference: stays fixed; or (N, D), row i the partner of row i, as an image before a codec is of the one after it:
              pairs are then resampled, and what chance does to both cancels as it does in the distance.
    strata:   (N,) int64, the class of each vector, for samples whose number of each class is fixed, not drawn by
              chance; it stays fixed in every resample. None: one stratum.
    seed:     the same one counts the same rows alike for any features, so replicates of two models that drew row i
              from the same noise are paired, and those of their difference are the differences.
    Raises ValueError for fewer than 2 resamples, strata of another shape or type or of a single vector, partners of
    another shape, and what `GaussianStats.of` refuses.

    A stratum of n vectors gives n - 1 draws with replacement that count n/(n - 1) times each (Rao and Wu, "Resampling
    inference with complex survey data", J. Am. Stat. Assoc. 83, 1988): n draws of n would make the spread too small by
    (n - 1)/n, much for a few images of each of many classes.

    FD of a sample is biased upward by about C/N. A resample repeats some vectors, so it carries that bias a second
    time, and the plain percentile interval lies above the value, often without touching it. The bootstrap's own mean
    tells the second bias: it is subtracted. The first bias is left in on purpose, as it is in every value at this
    count, the floor of real images included.
    """
    if resamples < 2:
        raise ValueError(f"got {resamples} resamples; give at least 2")
    features = finite_features(features)
    if strata is None:
        strata = torch.zeros(len(features), dtype=torch.int64)
    if strata.shape != (len(features),) or strata.dtype != torch.int64:
        raise ValueError(f"got strata {tuple(strata.shape)} {strata.dtype}; expected ({len(features)},) int64")
    weights = _resampling_weights(strata, resamples, seed)
    if isinstance(reference, GaussianStats):
        value = frechet_distance(GaussianStats.of(features), reference)
        distances = _weighted_distances(features, reference, weights)
    else:
        if reference.shape != features.shape:
            raise ValueError(f"got features {tuple(features.shape)} and partners {tuple(reference.shape)}: one of each")
        pair = features, finite_features(reference)
        value = frechet_distance(*map(GaussianStats.of, pair))
        each = [frechet_distance(*(_weighted(one, weight) for one in pair)) for weight in weights]
        distances = torch.tensor(each, dtype=torch.float64)
    return value + distances - distances.mean()


def _resampling_weights(strata: Tensor, resamples: int, seed: int) -> Iterator[Tensor]:
    """How much each vector counts in each resample: (N,) float64 of sum N, and n in every stratum of n."""
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
    """Of vectors that count so often each, in all as often as there are: (N,)."""
    count = len(features)
    mean = weight @ features / count
    centred = features - mean
    return GaussianStats(mean, centred.T @ (centred * weight[:, None]) / (count - 1), count)


def _weighted_distances(features: Tensor, reference: GaussianStats, weights: Iterable[Tensor]) -> Tensor:
    """(resamples,) float64. Each costs one weighted Gram matrix: tr (S_f S_r)^(1/2) needs only that of f S_r^(1/2)."""
    count = len(features)
    centred = features - reference.mean
    rooted, squares = centred @ root(reference.cov), centred.square().sum(1)
    distances = []
    for weight in weights:
        mean, rooted_mean = weight @ centred / count, weight @ rooted / count
        trace = (weight @ squares - count * mean.square().sum()) / (count - 1)
        counted = weight.nonzero().squeeze(1)  # a resample leaves a third of the vectors out
        chosen = rooted[counted]
        second = chosen.T @ (chosen * weight[counted, None])
        product = (second - count * torch.outer(rooted_mean, rooted_mean)) / (count - 1)
        cross = clamped_eigenvalues(torch.linalg.eigvalsh(product)).sqrt().sum()
        distances.append(mean.square().sum() + trace + reference.cov.trace() - 2 * cross)
    return torch.stack(distances)
