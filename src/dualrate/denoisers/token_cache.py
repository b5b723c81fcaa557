"""Caching by tokens of a trained single-rate network, without training: ToCa and DuCa.

    full      the whole network; kept is what attention adds to the tokens, block by block, and what all blocks add
    partial   attention as it was kept; the rest of the blocks for a share of the tokens, chosen, whose sums are renewed
    keep      what all blocks add as it was kept: patches and head alone, as FORA does (denoisers/feature_cache.py)

    ToCa      full, partial, partial, ...           tokens with the greatest score
    DuCa      full, ..., partial, keep, partial     any tokens, at random; the step before the next full one is partial

A token's score: the attention that it received at the latest full step, over the root of the sum of squares of all
tokens', plus AGE for every partial step since it was made; where tokens divide into squares of 2 x 2, the greatest of
each counts FIRST times as much.

ToCa    Zou et al. 2024, arXiv 2410.05317: full at every 3rd or 4th step; a ratio of 7%, times 2.5 in an MLP. DiT-XL/2,
        ImageNet 256, DDIM 50 steps, FID 2.32 without a cache: above 6.0 at 4.53 times fewer FLOPs.
DuCa    Zou et al. 2024, arXiv 2412.18911: full at every 3rd step, then keep and partial in turn; a ratio of 5%, times
        2.5. Its second version has tokens at random. As above: 2.88 at 2.48 times fewer, 6.06 at 3.78.

Deviations: one choice of tokens for all blocks, so that no other token runs in any of them, where ToCa chooses in each,
more in deeper ones and at later steps; full steps are where the plan has them, where both move them by the time; in a
U-ViT all of this is its middle's, and the levels above run at every step. Published shares are of 256 tokens.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from dualrate.config.ranges import Range, Ranged
from dualrate.denoisers.denoiser import Denoiser, Plain
from dualrate.denoisers.feature_cache import check_own
from dualrate.diffusion.prediction import x_from_v
from dualrate.diffusion.process import GaussianProcess, Process, per_row, require_gaussian
from dualrate.diffusion.values import Cond, Context, Refresh, Reuse

SHARES = {"toca": 0.07 * 2.5, "duca": 0.05 * 2.5}  # of the tokens
AGE = 0.25 / 4  # of a score, a step: the published weight over the published interval
FIRST = 1.8  # times its score, the greatest of four neighbours: published are 0.8 more
By = Literal["attention", "random"]


class TokenCut(Protocol):
    """A network whose attention can be kept; arguments as `networks/uvit.py` has them."""

    def whole(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What all blocks add, what attention adds, the attention that tokens receive (B, n), and v."""
        ...

    def part(
        self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Tensor, attention: Tensor, chosen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What all blocks add, that of the chosen tokens (B, k) made anew, and v."""
        ...

    def rest(self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Tensor) -> Tensor:
        """v without the blocks, given what they add."""
        ...


@runtime_checkable
class TokenCuttable(Protocol):
    """A network whose tokens can be renewed one by one."""

    def token_cut(self, scores: bool) -> TokenCut:
        """scores: whether it computes the attention that tokens receive. Raises ValueError where that cannot be."""
        ...


@dataclass(frozen=True)
class TokenCache(Ranged, Denoiser):
    """A single-rate network that keeps its attention, and makes some tokens anew where a step is partial.

    share:   of the tokens, one at least
    by:      how they are chosen
    between: what the steps before a full one do, counted back from it, in turn
    A full or partial step has denoised already (`Context.x_hat`): H = N is the network itself.
    """

    network: TokenCut
    process: GaussianProcess
    share: Annotated[float, Range(0, 1)]
    by: By = "random"
    between: tuple[Refresh, ...] = (Refresh.PARTIAL,)
    reuse: Reuse = Reuse.SMOOTH
    alone_differs = True

    @staticmethod
    def around(*, share: float, by: By, between: tuple[Refresh, ...]) -> Callable[[Denoiser, Process], TokenCache]:
        """Makes the cache of a denoiser.

        That raises ValueError for one that is no single network, or whose attention cannot be kept.
        """

        def make(denoiser: Denoiser, process: Process) -> TokenCache:
            network = denoiser.network if isinstance(denoiser, Plain) else denoiser
            if not isinstance(network, TokenCuttable):
                raise ValueError(
                    f"tokens are kept of a single U-ViT, or a transformer of diffusers, got {type(network).__name__}"
                )
            cut = network.token_cut(by == "attention")
            return TokenCache(cut, require_gaussian(process, "the model"), share, by, between)

        return make

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        """Runs the whole network. Features: what all blocks added, what attention added, what tokens received, and the
        partial steps since each token was made, (B, n).
        """
        log_snr = self.process.log_snr(t).to(z.dtype)
        added, attention, received, v = self.network.whole(z, per_row(log_snr, z), cond.label)
        features = (added, attention, received, torch.zeros_like(received))
        return Context(features, tau=t, x_hat=x_from_v(z, v.to(z.dtype), log_snr))

    def renew(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Context:
        """Raises ValueError for a context that is not this network's, or that only some of the rows have."""
        check_own(context, 4)
        added, attention, received, age = context.features
        log_snr = self.process.log_snr(t).to(z.dtype)
        chosen = choose(received, age, t, round(self.share * age.shape[1]), self.by)
        added, v = self.network.part(z, per_row(log_snr, z), cond.label, added, attention, chosen)
        features = (added, attention, received, (age + 1).scatter(1, chosen, 0))
        return replace(context, features=features, x_hat=x_from_v(z, v.to(z.dtype), log_snr))

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        """Raises ValueError as `renew`."""
        if context.x_hat is not None:
            return context.x_hat
        if not context.features and context.tau is None:
            return cast(Tensor, self.encode(z, t, cond).x_hat)
        check_own(context, 4)
        added, *_ = context.features
        log_snr = self.process.log_snr(t).to(z.dtype)
        return x_from_v(z, self.network.rest(z, per_row(log_snr, z), cond.label, added).to(z.dtype), log_snr)


def choose(received: Tensor, age: Tensor, t: Tensor, count: int, by: By) -> Tensor:
    """(B, count) of the n tokens, one at least. received, age: (B, n); t: (B,) or (), which decides what random is."""
    size = age.shape[1]
    if by == "random":
        return torch.stack([order(size, time, age.device)[: max(1, count)] for time in t.expand(len(age)).tolist()])
    score = F.normalize(received, dim=1) + AGE * age
    side = round(size**0.5)
    if side * side == size and side % 2 == 0:
        squares = score.view(-1, 1, side, side)
        greatest = F.interpolate(F.max_pool2d(squares, 2), scale_factor=2.0)
        score = torch.where(squares == greatest, FIRST * squares, squares).flatten(1)
    return score.topk(max(1, count), dim=1).indices


@cache
def order(size: int, t: float, device: torch.device) -> Tensor:
    """(n,) the numbers from 0 on in an order that is random, and the same for all images at a time."""
    seed = zlib.crc32(struct.pack("<d", t))  # of all its bits: a generator on the CPU takes 32
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).to(device)
