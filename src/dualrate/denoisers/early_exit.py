"""Early exit: a trained network that stops at the first block whose probe says that the error is small enough.

    x_hat of g_i,   i the first block with u_i <= threshold                     networks/early_exit.py

Each row leaves by itself. One that has left is taken out of the batch, so its later blocks are neither computed nor
paid, and an image is the same whatever batch it is in, but for rounding: a probe that is within rounding of the
threshold may fall to either side. What an image costs then depends on the image, and is counted as a mean over images
that are drawn (`sampling/cost.py`, `mean_macs`). On a GPU the host learns after every block which rows go on, and waits
for it; a batch takes as many calls of blocks as its slowest row.

Source: DeeDiff, later AdaDiff (Tang et al. 2023, arXiv 2309.17074), which leaves a batch together or runs images alone.
Reported beside DuoDiff (arXiv 2410.09633), U-ViT of 13 blocks, 1,000 steps, CIFAR-10: FID 17.89 in 1.88 s an image by
the network; 17.55 in 1.63 s, 24.60 in 1.32 s with early exits, and DuoDiff 17.95 in 1.30 s. ImageNet 64: 19.19 in
5.12 s, 32.52 in 3.90 s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from dualrate.config.ranges import Probability, Ranged
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.prediction import x_from_v
from dualrate.diffusion.process import GaussianProcess, per_row
from dualrate.diffusion.values import Cond, Context, Reuse
from dualrate.networks.early_exit import ExitUViT


@dataclass(frozen=True)
class EarlyExit(Ranged):
    """threshold: of the error that a probe estimates; 0: no exit, the network itself; 1: after the first block."""

    network: ExitUViT
    process: GaussianProcess
    threshold: Probability = 0.0
    reuse: Reuse = Reuse.FREE
    has_exits = True  # no annotation: no field

    @staticmethod
    def at(threshold: float) -> Callable[[Denoiser, GaussianProcess], EarlyExit]:
        """Sets the threshold of one. That raises ValueError for a denoiser that has no exits."""

        def leaving(denoiser: Denoiser, process: GaussianProcess) -> EarlyExit:
            if not isinstance(denoiser, EarlyExit):
                raise ValueError(
                    f"exits are trained beside a single-rate U-ViT, got {type(denoiser).__name__}: train some "
                    "(dualrate train fashion-mnist-early-exit --method.backbone-from RUN), and name that run"
                )
            return replace(denoiser, threshold=threshold)

        return leaving

    @property
    def varies(self) -> bool:
        """Whether a call costs what its rows make it cost."""
        return self.threshold > 0

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return Context()

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        return self.left(z, t, cond)[0]

    def left(self, z: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """x_hat, and the block after which each row left, (B,), from 0. Arguments: of `denoise`."""
        log_snr = self.process.log_snr(t).to(z.dtype)
        v, block = self.network.until(self.threshold, z, per_row(log_snr, z), cond.label)
        return x_from_v(z, v.to(z.dtype), log_snr), block
