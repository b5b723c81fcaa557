"""Encoder sharing without training, for models of diffusers: the first blocks run at heavy calls only.

As an entry of `dualrate compare`, FOLDER+shared_blocks:Shared:16/8@dpm++2m, with studies/ on PYTHONPATH.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

import dualrate as dr
from dualrate.denoisers.denoiser import Plain
from dualrate.from_diffusers.network import ForeignNetwork
from dualrate.from_diffusers.retrofit import outputs


@contextmanager
def answering(blocks: Sequence[nn.Module], answers: Sequence[Callable[[Tensor], Any]]) -> Iterator[None]:
    """Each of the blocks returns its answer to its input without running."""
    for block, answer in zip(blocks, answers, strict=True):
        block.forward = lambda hidden_states, *given, answer=answer, **named: answer(hidden_states)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


class Shared:
    """A model of diffusers whose first blocks run at heavy calls only; what they gave serves the others.

    Of a UNet2DModel these are the down blocks and the middle block, whose outputs serve the up blocks. Between heavy
    calls z_t enters by the first convolution, whose output is the last up block's outermost skip, and the time by its
    embedding. Source: Faster Diffusion (Li et al. 2023, arXiv 2312.09608), with the skip kept as it is now.
    Of a DiTTransformer2DModel the first three fifths, whose sum of changes is added to what the patches of z_t are.
    Source: Delta-DiT (Chen et al. 2024, arXiv 2406.01125).
    Raises ValueError for a denoiser of another network.
    """

    reuse = dr.Reuse.SMOOTH

    def __init__(self, denoiser: dr.Denoiser, process: dr.GaussianProcess) -> None:
        network = denoiser.network if isinstance(denoiser, Plain) else None
        net = network.net if isinstance(network, ForeignNetwork) else None
        if not isinstance(network, ForeignNetwork) or not isinstance(net, (UNet2DModel, DiTTransformer2DModel)):
            raise ValueError(f"the first blocks of a UNet2DModel or a DiT alone are shared here, got {denoiser!r}")
        self.model, self.net = denoiser, cast(Any, net)
        dit = isinstance(net, DiTTransformer2DModel)
        count = 3 * len(network.blocks) // 5 if dit else len(self.net.down_blocks) + 1
        self.first = network.blocks[:count]

    def encode(self, z: Tensor, t: Tensor, cond: dr.Cond) -> dr.Context:
        dit = isinstance(self.net, DiTTransformer2DModel)
        with outputs([self.net.pos_embed, *self.first] if dit else self.first) as seen:
            x_hat = self.model.denoise(z, t, dr.Context(), cond)
        if dit:
            return dr.Context((seen[-1] - seen[0],), tau=t, x_hat=x_hat)
        *down, middle = seen
        return dr.Context((middle, *(skip for _, skips in down for skip in skips)), tau=t, x_hat=x_hat)

    def denoise(self, z: Tensor, t: Tensor, context: dr.Context, cond: dr.Cond) -> Tensor:
        if context.x_hat is not None:
            return context.x_hat
        if not context.features:
            return self.model.denoise(z, t, context, cond)
        with answering(self.first, self._answers(context.features)):
            return self.model.denoise(z, t, context, cond)

    def _answers(self, features: tuple[Tensor, ...]) -> list[Callable[[Tensor], Any]]:
        """Of each of the first blocks, to its input."""
        if isinstance(self.net, DiTTransformer2DModel):
            return [lambda h: h + features[0], *(lambda h: h for _ in self.first[1:])]
        middle, *kept = features
        answers: list[Callable[[Tensor], Any]] = []
        for block in self.first[:-1]:
            count = len(block.resnets) + len(block.downsamplers or ())  # pyright: ignore[reportArgumentType]
            skips, kept = tuple(kept[:count]), kept[count:]
            answers.append(lambda h, skips=skips: (skips[-1], skips))
        return [*answers, lambda h: middle]
