"""Denoisers that are known exactly: the yardstick of the tests and of the documentation.

`GaussianMixture` is data x ~ sum_k w_k N(m_k, C_k), under z_t = alpha x + sigma eps with alpha^2 = sigmoid(log_snr) and
sigma^2 = sigmoid(-log_snr). Each component stays Gaussian, z_t | k ~ N(alpha m_k, alpha^2 C_k + sigma^2 I), so with
responsibilities r_k = p(k | z_t)

    E[x | z_t, k]   = m_k + alpha C_k (alpha^2 C_k + sigma^2 I)^-1 (z_t - alpha m_k)
    Cov[x | z_t, k] = sigma^2 C_k (alpha^2 C_k + sigma^2 I)^-1

and density, score, posterior mean and covariance of the mixture follow, all in the eigenbasis of C_k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.context import Cond, Context, Reuse
from dualrate.diffusion.process import GaussianProcess


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of K Gaussians in D dimensions; all results have its dtype.

    weights:     (K,) positive, sum 1
    means:       (K, D)
    covariances: (K, D, D) symmetric, positive semi-definite; zeros make a point mass
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        k, d = self.means.shape
        if self.weights.shape != (k,) or self.covariances.shape != (k, d, d):
            got = f"weights {tuple(self.weights.shape)}, covariances {tuple(self.covariances.shape)}"
            raise ValueError(f"means {(k, d)} need weights {(k,)} and covariances {(k, d, d)}; got {got}")
        if bool((self.weights <= 0).any()) or not math.isclose(float(self.weights.sum()), 1, rel_tol=1e-5):
            raise ValueError(f"weights must be positive and sum to 1, got {self.weights.tolist()}; divide by their sum")
        lowest, highest = torch.aminmax(torch.linalg.eigvalsh(self.covariances))
        if not torch.equal(self.covariances, self.covariances.mT) or float(lowest) < -1e-5 * float(highest):
            raise ValueError(
                "covariances must be symmetric and positive semi-definite; use (C + C.mT) / 2 of a valid C"
            )

    @staticmethod
    def isotropic(means: Tensor, variance: float) -> GaussianMixture:
        """Components N(m_k, variance I), equally likely. means: (K, D)."""
        k, d = means.shape
        return GaussianMixture(means.new_full((k,), 1 / k), means, variance * torch.eye(d).to(means).expand(k, d, d))

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """(K, D) variances and (K, D, D) axes as columns; rounding below zero is cut off, as samples need the root."""
        values, axes = torch.linalg.eigh(self.covariances)
        return values.clamp_min(0), axes

    def _split(self, z: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """alpha^2, sigma^2: (B, 1, 1); along the axes, offset from alpha m_k and variance: (B, K, D); log p(z, k)."""
        log_snr = log_snr.to(self.means).expand(len(z))[:, None, None]
        alpha2, sigma2 = torch.sigmoid(log_snr), torch.sigmoid(-log_snr)
        values, axes = self._eigen
        centred = z.to(self.means).flatten(1)[:, None] - alpha2.sqrt() * self.means
        offset = torch.einsum("bki,kij->bkj", centred, axes)
        variance = alpha2 * values + sigma2
        log_joint = self.weights.log() - 0.5 * (offset**2 / variance + torch.log(2 * math.pi * variance)).sum(-1)
        return alpha2, sigma2, offset, variance, log_joint

    def sample(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """x: (B, D) from uniform: (B,) in (0, 1), which picks the component, and standard normal: (B, D)."""
        edges = self.weights.cumsum(0)[:-1]
        k = torch.searchsorted(edges, uniform.to(edges))
        values, axes = self._eigen
        return self.means[k] + torch.einsum("bij,bj->bi", axes[k], values[k].sqrt() * normal.to(self.means))

    def log_density(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """log p(z_t), natural log: (B,). z: (B, *D); log_snr: (B,) or (), infinity for the data themselves."""
        return torch.logsumexp(self._split(z, log_snr)[-1], dim=1)

    def score(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """The gradient of log p(z_t) in z: (B, *D). z: (B, *D); log_snr: (B,) or ()."""
        _, _, offset, variance, log_joint = self._split(z, log_snr)
        parts = torch.einsum("bkj,kij->bki", -offset / variance, self._eigen[1])
        return torch.einsum("bk,bki->bi", log_joint.softmax(1), parts).view_as(z)

    def _component_means(self, z: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """E[x | z_t, k]: (B, K, D), and responsibilities: (B, K)."""
        alpha2, _, offset, variance, log_joint = self._split(z, log_snr)
        values, axes = self._eigen
        gain = alpha2.sqrt() * values / variance
        return self.means + torch.einsum("bkj,kij->bki", gain * offset, axes), log_joint.softmax(1)

    def posterior_mean(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """E[x | z_t]: (B, *D). z: (B, *D); log_snr: (B,) or ()."""
        means, share = self._component_means(z, log_snr)
        return torch.einsum("bk,bki->bi", share, means).view_as(z)

    def posterior_covariance(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """Cov[x | z_t]: (B, D, D), of the flattened x: within components plus between them. z: (B, *D)."""
        _, sigma2, _, variance, _ = self._split(z, log_snr)
        values, axes = self._eigen
        within = torch.einsum("bkj,kij,klj->bkil", sigma2 * values / variance, axes, axes)
        means, share = self._component_means(z, log_snr)
        offsets = means - torch.einsum("bk,bki->bi", share, means)[:, None]
        return torch.einsum("bk,bkil->bil", share, within + offsets[..., :, None] * offsets[..., None, :])


@dataclass(frozen=True)
class OracleDenoiser(Denoiser):
    """The exact E[x | z_t] as a denoiser without context. `cond` is ignored; x_hat has the dtype and shape of z."""

    mixture: GaussianMixture
    process: GaussianProcess
    reuse: Reuse = Reuse.FREE

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        """An empty context."""
        return Context()

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        """x_hat: (B, *D). z: (B, *D), t: (B,)."""
        return self.mixture.posterior_mean(z, self.process.log_snr(t)).to(z.dtype)
