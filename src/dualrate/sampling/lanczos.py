"""The Lanczos Gaussian sampler: z_s with the whole covariance of q(z_s | z_t), by a few derivatives a step.

    z_s = A z_t + B x_hat + (B^2 C + V I)^(1/2) n,      C = Cov[x | z_t] = (sigma_t^2 / alpha_t) d x_hat / d z_t

with A, B, V of the ancestral step, or of DDIM (V = 0). C is not formed. Its products C v span, from v_1 = n / |n|, a
space in which C is a tridiagonal matrix T of as many rows as there are products (Lanczos), and

    C v_j = b_(j-1) v_(j-1) + a_j v_j + b_j v_(j+1),    (B^2 C + V)^(1/2) n = |n| [v_1 v_2 ..] (B^2 T + V)^(1/2) e_1

so that the root is exact where C has as many different eigenvalues as there are products, and its error falls
exponentially with their number otherwise. Each product is one derivative of the denoiser: a step of three costs four
calls. Into t = 0 it draws x_hat + C^(1/2) n.

Source: Akhtar, El Gadarri, Farias, Jozefiak, "The Value of Covariance Matching in Gaussian DDPMs and the Lanczos
Sampler", arXiv 2605.22723, of which the abstract is public: three products a step. Ours: differences in place of JVPs,
each vector orthogonal to all before it, eigenvalues of T below 0 taken as 0, and a_1, an estimate of the mean of
Var[x | z_t], brought down to `most`, as in fourier.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dualrate.config.ranges import Positive
from dualrate.diffusion.context import expand
from dualrate.diffusion.process import GaussianProcess
from dualrate.sampling.covariance import FALLBACK, Kernel, KernelStep, derivative, tweedie
from dualrate.sampling.fourier import kernel_weights, share
from dualrate.sampling.step import Carry, Denoise, Draw, Stepped


@dataclass(frozen=True)
class LanczosCovariance(KernelStep):
    """The step of the module. length: of a difference, in units of sigma_t"""

    process: GaussianProcess
    kernel: Kernel = "markov"
    length: Positive = FALLBACK
    most: Positive = 1.0
    products = 3
    calls_per_step = 1 + products

    def __str__(self) -> str:
        return f"Lanczos{', DDIM kernel' if self.kernel == 'ddim' else ''}"

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        x_hat, (vector, size), basis = denoise(z, t), _split(draw()), []
        factor = expand(tweedie(self.process, t), z)
        unit = z[0].numel() ** 0.5  # differences are along vectors whose elements are of size 1
        matrix = z.new_zeros(len(z), self.products, self.products)
        for j in range(self.products):
            basis.append(vector)
            _, along = derivative(self.process, denoise, z, t, unit * vector, self.length)
            rest = factor * along / unit
            matrix[:, j, j] = _dot(vector, rest)
            for earlier in basis:
                rest = rest - expand(_dot(earlier, rest), z) * earlier
            vector, length = _split(rest)
            if j + 1 < self.products:
                matrix[:, j, j + 1] = matrix[:, j + 1, j] = length.flatten()
        values, vectors = torch.linalg.eigh(matrix * share(matrix[:, :1, 0], self.most)[..., None])
        from_z, from_x, variance = kernel_weights(self.process, self.kernel, t, s)
        roots = (expand(from_x**2, values) * values.clamp_min(0) + expand(variance, values)).sqrt()
        first_column = ((vectors * roots[:, None]) @ vectors[:, 0, :, None])[..., 0]
        noise = size * sum(expand(first_column[:, j], z) * vector for j, vector in enumerate(basis))
        return expand(from_z, z) * z + expand(from_x, z) * x_hat + noise, carry


def _dot(vector: Tensor, other: Tensor) -> Tensor:
    """(B,)"""
    return (vector * other).flatten(1).sum(1)


def _split(vector: Tensor) -> tuple[Tensor, Tensor]:
    """A unit vector and a length, (B, 1, ...), for each row; 0 is 0."""
    length = expand(vector.flatten(1).norm(dim=1), vector)
    return vector / length.clamp_min(torch.finfo(length.dtype).tiny), length
