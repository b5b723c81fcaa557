"""Early exits: a trained U-ViT that stops at the first block whose probe estimates a small enough error.

A head and a probe stand behind each block i of the innermost level but the last, K:

    h_i = block_i(h_i-1)
    u_i = mean over positions of sigmoid(probe_i(h_i, noise level, label))      in (0, 1): the estimated error of g_i
    g_i = predict(ascend(h_i + head_i(h_i, noise level, label)))                v, by the network's own way up and head
    x_hat is that of g_i, i the first block with u_i <= threshold

Each row leaves by itself and is taken out of the batch, so an image is the same whatever batch it is in, up to
rounding. What an image costs depends on the image, and is counted as a mean over images that are drawn.

Heads and probes train beside the frozen network (methods/early_exit.py).

Source: DeeDiff, later AdaDiff (Tang et al. 2023, arXiv 2309.17074), frozen and with a probe for each block as DuoDiff's
authors found best (arXiv 2410.09633). Differences: its heads make the picture of the tokens alone, ours predict what
the blocks left out would add, zero at first, and the levels above run in any case.

On Fashion-MNIST no threshold was better than fewer steps of the whole network (docs/results/tried.md). From the command
line:

    dualrate train dualrate.recipes.fashion_mnist:early_exit --method.backbone-from RUN --out EXITS
    dualrate sample EXITS --steps 16 --denoiser dualrate.denoisers.early_exit:at_2_percent
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from dualrate.config.ranges import Probability, Ranged
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.context import Cond, Context, Reuse
from dualrate.diffusion.prediction import x_from_v
from dualrate.diffusion.process import GaussianProcess, Process, per_row
from dualrate.networks.blocks import FiLM, layer_norm, zero_init
from dualrate.networks.uvit import Skips, UViT, UViTConfig


class Reading(nn.Module):
    """A linear layer on every position, behind a FiLM norm. (h (B, C, H, W), emb (B, E)) -> (B, `out`, H, W)."""

    def __init__(self, channels: int, embedding: int, out: int) -> None:
        super().__init__()
        self.film = FiLM(embedding, channels)
        self.linear = zero_init(nn.Linear(channels, out))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.film(emb)
        tokens = layer_norm(h.permute(0, 2, 3, 1)) * scale[:, None, None] + shift[:, None, None]
        return self.linear(tokens).permute(0, 3, 1, 2)


class Exit(nn.Module):
    """A place where a network may be left."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.head, self.probe = Reading(channels, embedding, channels), Reading(channels, embedding, 1)

    def left(self, h: Tensor, emb: Tensor) -> Tensor:
        """An estimate of the last block's output, from h and of its shape."""
        return h + self.head(h, emb)

    def error(self, h: Tensor, emb: Tensor) -> Tensor:
        """u: (B,)."""
        return torch.sigmoid(self.probe(h, emb)).flatten(1).mean(1)


class ExitUViT(nn.Module):
    """A frozen U-ViT, `net`, and its exits. Raises ValueError for one without a head, or of one innermost block."""

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        inner = config.levels[-1]
        if not config.head or inner.blocks < 2:
            raise ValueError(f"exits need a head and two blocks or more in the innermost level, got {config}")
        self.net = UViT(config).eval().requires_grad_(False)
        self.exits = nn.ModuleList(Exit(inner.channels, config.embedding) for _ in range(inner.blocks - 1))

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """v after each of the K blocks, (K, B, C, H, W), the last that of the network itself; and u of all but the
        last, (K - 1, B). Arguments: the U-ViT's.
        """
        emb, h, skips = self._above(z, log_snr, label)
        outputs, errors = [], []
        for i, leave in enumerate(self._exits):
            h = self.net.middle(h, emb, i, i + 1)
            outputs.append(self._v(leave.left(h, emb), skips, emb))
            errors.append(leave.error(h, emb))
        outputs.append(self._v(self.net.middle(h, emb, begin=len(self.exits)), skips, emb))
        return torch.stack(outputs), torch.stack(errors)

    def until(self, threshold: float, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """v, each row left after the first block whose u is at most the threshold; and that block, (B,), from 0.

        A row that has left is in no later block. A threshold of 0: none leaves, and no probe runs.
        """
        if threshold == 0:
            return self.net(z, log_snr, label), torch.full((len(z),), len(self.exits), device=z.device)
        emb, h, skips = self._above(z, log_snr, label)
        here, within, left, rows = torch.arange(len(z), device=z.device), emb, [], []
        for i, leave in enumerate(self._exits):
            h = self.net.middle(h, within, i, i + 1)
            leaves = leave.error(h, within) <= threshold
            left.append(leave.left(h[leaves], within[leaves]))
            rows.append(here[leaves])
            h, within, here = h[~leaves], within[~leaves], here[~leaves]
            if not len(here):
                break
        else:
            left.append(self.net.middle(h, within, begin=len(self.exits)))
            rows.append(here)
        back = torch.cat(rows).argsort()
        block = torch.cat([torch.full_like(some, i) for i, some in enumerate(rows)])
        return self._v(torch.cat(left)[back], skips, emb), block[back]

    @property
    def _exits(self) -> list[Exit]:
        return cast(list[Exit], list(self.exits))

    def _above(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor, Skips]:
        """The way down to the input of the innermost level."""
        emb = self.net.embedding(log_snr, label)
        return emb, *self.net.descend(self.net.patches(z), emb)

    def _v(self, h: Tensor, skips: Skips, emb: Tensor) -> Tensor:
        """v from h, the output of the innermost level."""
        return self.net.predict(self.net.ascend(h, skips, emb)[0])


@dataclass(frozen=True)
class EarlyExit(Ranged, Denoiser):
    """threshold: of the error that a probe estimates; 0: no exit, the network itself; 1: after the first block."""

    network: ExitUViT
    process: GaussianProcess
    threshold: Probability = 0.0
    reuse: Reuse = Reuse.FREE

    @property
    def varies(self) -> bool:
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


def at(threshold: float, denoiser: Denoiser, process: Process) -> EarlyExit:
    """The same network at another threshold. Raises ValueError for a denoiser without exits."""
    if not isinstance(denoiser, EarlyExit):
        raise ValueError(f"expected a run with early exits, got {type(denoiser).__name__}")
    return replace(denoiser, threshold=threshold)


whole, at_1_percent, at_2_percent, at_4_percent = (partial(at, threshold) for threshold in (0.0, 0.01, 0.02, 0.04))
