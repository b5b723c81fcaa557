"""Frechet distance between two sets of feature vectors, each summed up as a Gaussian, in float64.

    FD(a, b) = |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))

(Dowson and Landau, "The Frechet distance between multivariate normal distributions", J. Multivariate Anal. 12, 1982).
The trace of the root is the nuclear norm of cov_a^(1/2) cov_b^(1/2): both factors are symmetric, so no complex root
appears, and rank-deficient covariances lose no accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
        features = _checked(features)
        return GaussianStats(features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1), len(features))


@dataclass(frozen=True)
class Interval:
    """A confidence interval, in the units of the value it belongs to."""

    low: float
    high: float


def frechet_distance(a: GaussianStats, b: GaussianStats) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians; ValueError if their dimensions differ.

    In units of squared features. Identical inputs give 0 up to rounding, which may fall on either side of it.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features have {len(a.mean)} and {len(b.mean)} dimensions: take both sets through the same feature net"
        )
    cross = torch.linalg.svdvals(root(a.cov) @ root(b.cov)).sum()
    gap = (a.mean - b.mean).square().sum()
    return (gap + a.cov.trace() + b.cov.trace() - 2 * cross).item()


def bootstrap_interval(
    features: Tensor, reference: GaussianStats, *, resamples: int = 200, level: float = 0.95, seed: int
) -> Interval:
    """Bias-centred bootstrap interval of the *expected distance at this count*, E[FD of N such vectors].

    features: (N, D); resamples draw N of them with replacement, the reference stays fixed. level in (0, 1).
    ValueError for other levels, fewer than 2 resamples, or what `GaussianStats.of` refuses.

    FD of a sample is biased upward by about C/N. A resample repeats some vectors, so it carries that bias a second
    time, and the plain percentile interval lies above the value, often without touching it. The bootstrap's own mean
    tells the second bias: it is subtracted, low = value + quantile(FD*) - mean(FD*). Percentiles rather than the
    reversed ("basic") interval, because the spread of a squared distance grows with it; the reversed one covers less
    and reaches below zero. The first bias is left in on purpose, as it is in every value at this count, the floor of
    real images included. Near the floor the bootstrap's spread is too wide, and the interval errs on the safe side.
    Not covered: the noise of the reference and that of training the sampled model again.
    """
    if resamples < 2 or not 0 < level < 1:
        raise ValueError(f"got {resamples} resamples at level {level}; give at least 2 and a level between 0 and 1")
    features = _checked(features)
    value = frechet_distance(GaussianStats.of(features), reference)
    distances = _resampled_distances(features, reference, resamples, seed)
    tail = (1 - level) / 2
    spread = torch.quantile(distances - distances.mean(), torch.tensor([tail, 1 - tail], dtype=torch.float64))
    low, high = (value + spread).tolist()
    return Interval(low, high)


def _resampled_distances(features: Tensor, reference: GaussianStats, resamples: int, seed: int) -> Tensor:
    """(resamples,) float64. Each costs one weighted Gram matrix: tr (S_f S_r)^(1/2) needs only that of f S_r^(1/2)."""
    count = len(features)
    centred = features - reference.mean
    rooted, squares = centred @ root(reference.cov), centred.square().sum(1)
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(resamples):
        drawn = torch.randint(count, (count,), generator=generator)
        weight = torch.bincount(drawn, minlength=count).to(features.dtype)
        mean, rooted_mean = weight @ centred / count, weight @ rooted / count
        trace = (weight @ squares - count * mean.square().sum()) / (count - 1)
        second = rooted.T @ (rooted * weight[:, None])
        product = (second - count * torch.outer(rooted_mean, rooted_mean)) / (count - 1)
        cross = _psd_eigenvalues(torch.linalg.eigvalsh(product)).sqrt().sum()
        distances.append(mean.square().sum() + trace + reference.cov.trace() - 2 * cross)
    return torch.stack(distances)


def root(cov: Tensor) -> Tensor:
    """The symmetric root of a covariance (D, D); ValueError if it has an eigenvalue below zero."""
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * _psd_eigenvalues(values).sqrt()) @ vectors.T


def _psd_eigenvalues(values: Tensor) -> Tensor:
    """Eigenvalues of a covariance, rounding below zero removed; ValueError if what is below zero is no rounding."""
    if values.min() < -1e-9 * values.abs().max():
        raise ValueError(f"a covariance has the eigenvalue {values.min():.3g} < 0; make it with GaussianStats.of")
    return values.clamp_min(0)


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"got features of shape {tuple(features.shape)}; expected (N, D) with N >= 2")
    if not features.isfinite().all():
        bad = int((~features.isfinite().all(1)).sum())
        raise ValueError(f"{bad} of {len(features)} feature vectors are not finite; look at the images they came from")
    return features.double()
