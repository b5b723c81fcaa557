"""A method on the latents of images that are encoded as they come, by a codec that does not train and costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.draws import Draws
from dualrate.diffusion.values import Batch
from dualrate.methods.method import Loss, Method, Phase


@dataclass(frozen=True)
class Encoded:
    """The method, given batches whose x is `encode` of theirs. encode: (B, C, H, W) -> latents."""

    method: Method
    encode: Callable[[Tensor], Tensor]

    @property
    def networks(self) -> nn.ModuleDict:
        return self.method.networks

    @property
    def auxiliaries(self) -> nn.ModuleDict:
        return self.method.auxiliaries

    def phases(self, iteration: int) -> Sequence[Phase]:
        return [replace(phase, loss=self._of_latents(phase)) for phase in self.method.phases(iteration)]

    def denoiser(self) -> Denoiser:
        return self.method.denoiser()

    def _of_latents(self, phase: Phase) -> Callable[[Batch, int, Draws], Loss]:
        return lambda batch, iteration, draws: phase.loss(replace(batch, x=self.encode(batch.x)), iteration, draws)
