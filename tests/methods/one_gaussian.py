"""One Gaussian, x ~ N(0, C), and a denoiser that is one number."""

import torch
from torch import Tensor, nn

import dualrate as dr
from dualrate.diffusion.context import Batch, Cond, Context, Reuse
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine

PROCESS = dr.GaussianProcess(Cosine())
C = 0.09


class Scale(nn.Module):
    """x_hat = a z, a denoiser of one parameter. spread: of the noise added to it, as a sampler of x might."""

    reuse = Reuse.FREE

    def __init__(self, a: float, spread: float = 0.0) -> None:
        super().__init__()
        self.a, self.spread = nn.Parameter(torch.tensor(a, dtype=torch.float64)), spread

    def encode(self, z, t, cond) -> Context:
        return Context()

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        return self.a * z + self.spread * torch.randn_like(z)


def data(rows: int, first: int = 0) -> Batch:
    draws = Draws(5, torch.arange(first, first + rows))
    return Batch(C**0.5 * draws.normal("x", 1).double(), None, draws.row)
