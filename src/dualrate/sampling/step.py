"""What a sampler's update rule is: z_t -> z_s, given a denoiser. One small class each in the files beside this one.

`markovian` says whether the chain keeps the forward law of pairs (z_s, z_t), which a reused dual-rate context needs.
Noise alone is not enough: any DDIM kernel breaks it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dualrate.diffusion.prediction import eps_from_x
from dualrate.diffusion.process import Gaussian, GaussianProcess
from dualrate.diffusion.schedule import alpha

Denoise = Callable[[Tensor, Tensor], Tensor]  # (z, t) -> x_hat
Draw = Callable[[], Tensor]  # this step's next standard normal numbers, in the state's shape
Carry = Any  # what a multistep solver remembers: a value threaded by the loop, () for most


class Step(Protocol):
    """An update rule. A step is stateless; times are (B,) with s < t."""

    @property
    def markovian(self) -> bool:
        """Whether (z_s, z_t) keeps the law of the forward process."""
        ...

    def start(self) -> Carry:
        """The carry before the first step."""
        ...

    def __call__(
        self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry
    ) -> tuple[Tensor, Carry]:
        """z_s and the next carry. z: (B, ...)."""
        ...


@runtime_checkable
class MarkovStep(Step, Protocol):
    """A step with a Gaussian kernel: calling it samples p(z_s | z_t), a likelihood bound integrates it."""

    @property
    def process(self) -> GaussianProcess: ...

    def kernel(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """p(z_s | z_t), of finite variance at s = 0 too."""
        ...


def move(process: GaussianProcess, z: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """z_s on the probability-flow ODE if x_hat were x all the way from z_t. z, x: (B, ...); t, s: (B,)."""
    return process.add_noise(x, s, eps_from_x(z, x, process.schedule.log_snr(t)))


def weight_of_x(process: GaussianProcess, t: Tensor, s: Tensor) -> Tensor:
    """alpha_s - alpha_t sigma_s / sigma_t, of x in `move`: (B,)."""
    log_snr_t, log_snr_s = process.schedule.log_snr(t), process.schedule.log_snr(s)
    return -torch.expm1((log_snr_t - log_snr_s) / 2) * alpha(log_snr_s)
