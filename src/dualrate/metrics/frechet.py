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
        raise ValueError(
            f"features have {len(a.mean)} and {len(b.mean)} dimensions: take both sets through the same feature net"
        )
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
