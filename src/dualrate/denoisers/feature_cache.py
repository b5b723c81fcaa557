"""Caches of a trained single-rate network, without training: FORA, DeepCache, TaylorSeer, shared encoders, ToCa, DuCa.

Blocks add to what comes in, and so do a U-ViT's levels, which are linear but for their blocks. So what a row of blocks,
or all levels from `outer` on, add to their input is one tensor. `FeatureCache` keeps it between refreshes:

    refresh   D = h_out - h_in at tau                        the whole network
    between   h_out = h_in at t + forecast of D              what lies outside alone: levels above, patches, head

    FORA             outer 0, D as it was           every block's output is reused; patches and head run
    DeepCache        outer 1, D as it was           the inner levels' output is reused; the first level runs
    TaylorSeer       outer 0, D from the last m+1   every block's output is forecast, in steps
    polynomial       outer 0, D from the last m+1   the same, in log-SNR: ours
    encoder sharing  D of the first middle blocks of a U-ViT, as it was; all else runs

Keeping each block's output, as the originals do, is the same: the sum of what was kept, or forecast, is what is kept,
or forecast, of the sum (a test does it block by block). A kept sum costs one addition and the memory of one tensor.

FORA        Selvaraju et al. 2024, arXiv 2407.01425: DiT, refreshed at every N-th step. What it kept it scales by the
            gates of the current time; a U-ViT's blocks have no gates, those of a model of diffusers are kept with
            theirs.
DeepCache   Ma et al. 2023, arXiv 2312.00858: U-Nets, refreshed at every N-th step. Its skips concatenate, so what is
            kept there is the inner levels' activation; here they add.
TaylorSeer  Liu et al. 2025, arXiv 2503.06923: DiT, refreshed at every N-th step and the first few, order m. A cache
            that has seen fewer than m + 1 refreshes forecasts at a lower order.
Sharing     The decoupled diffusion transformer (Wang et al. 2025, arXiv 2504.05741), whose encoder's output serves
            several neighbouring steps. Its decoder sees the time through the encoder's output alone; here all that runs
            is given the current time, and the network was never cut in two in training.
A plan sets where it refreshes, evenly by default.

Features F_0 (the latest), F_1, ..., F_m, kept at steps n_0, ..., n_m of the sampling, at log-SNRs u_0, ..., u_m, are
forecast in two ways, at any spacing:

    taylor       F(n) = sum_i D_i[0] (n - n_0)^i / i!
                 D_0[j] = F_j,   D_i[j] = (D_(i-1)[j] - D_(i-1)[j+1]) / (n_j - n_(j+1))
    polynomial   F(u) = sum_j F_j prod_(k != j) (u - u_k) / (u_j - u_k)

The first is TaylorSeer's, its eq. (3) where refreshes are N steps apart: differences in the place of derivatives, so it
is exact for straight lines alone. The second is the polynomial through all of them, so it is exact for polynomials.

`TokenCache` keeps attention, and computes the rest for some tokens:

    full      the whole network; kept is, block by block, what attention adds to the tokens, and what the block adds
    partial   attention as it was kept; the rest of each block for a share of the tokens, chosen there, whose sums are
              renewed
    keep      what all blocks add as it was kept: patches and head alone, as FORA does

    ToCa      full, partial, partial, ...           tokens with the greatest score
    DuCa      full, ..., partial, keep, partial     any tokens, at random; the step before the next full one is partial

A token's score in a block: the attention that it received there at the latest full step, over the root of the sum of
squares of all tokens', plus AGE for every partial step since the block computed it. Where tokens divide into squares of
2 x 2, the greatest of each counts FIRST times as much.

ToCa    Zou et al. 2024, arXiv 2410.05317: full at every 3rd or 4th step; a ratio of 7%, times 2.5 in an MLP. DiT-XL/2,
        ImageNet 256, DDIM 50 steps, FID 2.32 without a cache: above 6.0 at 4.53 times fewer FLOPs.
DuCa    Zou et al. 2024, arXiv 2412.18911: full at every 3rd step, then keep and partial in turn; a ratio of 5%, times
        2.5. Its second version has tokens at random. As above: 2.88 at 2.48 times fewer, 6.06 at 3.78.

Deviations: as many tokens in every block and step, where ToCa has more in deeper ones and at later steps; full steps
are where the plan has them, where both move them by the time; in a U-ViT all of this is its middle's, and the levels
above run at every step. Published shares are of 256 tokens.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations
from typing import Annotated, Any, Literal, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from dualrate.config.ranges import Range, Ranged
from dualrate.denoisers.denoiser import Denoiser, Plain, condition_of
from dualrate.diffusion.context import Cond, Context, Refresh, Reuse, cached_for_shared_time, expand
from dualrate.diffusion.prediction import x_from_v
from dualrate.diffusion.process import GaussianProcess, Process, per_row, require_gaussian
from dualrate.diffusion.schedule import Schedule
from dualrate.networks.uvit import UViTCut

By = Literal["attention", "random"]
Form = Literal["polynomial", "taylor"]
ORDER = 2  # of forecasts, by default
SHARES = {"toca": 0.07 * 2.5, "duca": 0.05 * 2.5}  # of the tokens
AGE = 0.25 / 4  # of a score, a step: the published weight over the published interval
FIRST = 1.8  # times its score, the greatest of four neighbours: published are 0.8 more


@runtime_checkable
class Cuttable(Protocol):
    """A network that can be cut in two. The method raises ValueError where that cannot be."""

    def cut(self, outer: int) -> Any:
        """A `UViTCut`, or what has the same methods. Levels from `outer` on are inside."""
        ...


@runtime_checkable
class TokenCuttable(Protocol):
    """A network that can compute some of its tokens again. The method raises ValueError where that cannot be."""

    def token_cut(self, scores: bool) -> Any:
        """A `UViTTokens`, or what has the same methods. scores: whether it counts the attention of tokens."""
        ...


Network = TypeVar("Network")


def network_of(denoiser: Denoiser, kind: type[Network]) -> Network:
    """The network of a single-rate model. Raises ValueError where it is not of this kind, so cannot be cut."""
    network = denoiser.network if isinstance(denoiser, Plain) else None
    if not isinstance(network, kind):
        raise ValueError(
            "features and tokens are cached of a single-rate network that can be cut, a U-ViT or a transformer of "
            f"diffusers, got {type(denoiser).__name__}"
        )
    return network


def forecast_features(context: Context, t: Tensor, schedule: Schedule | None) -> tuple[Tensor, ...]:
    """The features of a context and of those before it, carried on to t; of a single one as they are.

    t: (B,) or (); schedule: of the log-SNR; None: TaylorSeer's form, by the contexts' ages
    Raises ValueError for contexts without a time.
    """
    contexts = (context, *context.earlier)
    times = [past.tau for past in contexts if past.tau is not None]
    if len(times) < len(contexts):
        raise ValueError("features are forecast from their times, and a context here has none (tau): pass encode's")
    if not context.earlier:
        return context.features
    if schedule is None:
        weights = taylor_weights(*(past.age for past in contexts))
    else:
        weights = forecast_weights(schedule, t, *times)
    return tuple(_mixed(weights, same) for same in zip(*(past.features for past in contexts), strict=True))


@cached_for_shared_time
def forecast_weights(schedule: Schedule, t: Tensor, *times: Tensor) -> tuple[Tensor, ...]:
    """Weights of F_0, ..., F_m in F(u), shaped as t. times: of the features, the latest first."""
    u, *nodes = (schedule.log_snr(time) for time in (t, *times))
    weights = [torch.ones_like(u) for _ in nodes]
    for j, k in permutations(range(len(nodes)), 2):
        weights[j] = weights[j] * (u - nodes[k]) / (nodes[j] - nodes[k])
    return tuple(weights)


def taylor_weights(steps: int, *gaps: int) -> tuple[Tensor, ...]:
    """Weights of F_0, ..., F_m in TaylorSeer's F(n), () float64. steps: n - n_0; gaps: n_0 - n_1, n_1 - n_2, ..."""
    differences = list(torch.eye(len(gaps) + 1, dtype=torch.float64, device="cpu"))
    weights, factor = differences[0], 1.0
    for i in range(1, len(gaps) + 1):
        pairs = zip(differences, differences[1:], gaps, strict=False)
        differences = [(later - earlier) / gap for later, earlier, gap in pairs]
        factor *= steps / i
        weights = weights + factor * differences[0]
    return tuple(weights)


def _mixed(weights: tuple[Tensor, ...], features: tuple[Tensor, ...]) -> Tensor:
    """The weighted sum, in float32 at least, since weights may be large and of both signs; in the features' dtype."""
    wide = [feature.to(torch.promote_types(feature.dtype, torch.float32)) for feature in features]
    total = expand(weights[0], wide[0]) * wide[0]
    for weight, feature in zip(weights[1:], wide[1:], strict=True):
        total = total + expand(weight, feature) * feature
    return total.to(features[0].dtype)


class _Cache(Ranged, Denoiser):
    """A single-rate network that keeps `num_features` features between refreshes, first the sum its inside adds.

    A refresh has denoised already (`Context.x_hat`), so its step needs no light call: H = N is the network itself.
    A step without a context runs the whole network, at its cost (`alone_differs`).
    """

    network: Any
    process: GaussianProcess
    reuse: Any
    num_features = 1
    alone_differs = True

    def called(self, method: Callable[..., Any], z: Tensor, t: Tensor, cond: Cond, *more: Tensor) -> tuple[Any, Tensor]:
        """Results of a method of the network: all but v, and x_hat of v."""
        log_snr = self.process.log_snr(t).to(z.dtype)
        *features, v = method(z, per_row(log_snr, z), *condition_of(cond), *more)
        return features, x_from_v(z, v.to(z.dtype), log_snr)

    def features_of(self, context: Context) -> tuple[Tensor, ...]:
        """Its features. Raises ValueError for a context of another network, or that some rows do not have."""
        if len(context.features) != self.num_features or context.present is not None:
            raise ValueError(
                f"this cache has contexts of {self.num_features} features, of all rows, got {len(context.features)}: "
                "pass what encode returned for these rows, or Context() to run the whole network"
            )
        return context.features

    def added(self, context: Context, t: Tensor) -> Tensor:
        """The sum that the inside adds at t."""
        return self.features_of(context)[0]

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        """Raises ValueError as `features_of`."""
        if context.x_hat is not None:
            return context.x_hat
        if not context.features and context.tau is None:
            return cast(Tensor, self.encode(z, t, cond).x_hat)
        return self.called(lambda *of: (self.network.rest(*of),), z, t, cond, self.added(context, t))[1]


@dataclass(frozen=True)
class FeatureCache(_Cache):
    """A single-rate network that keeps the sum which its inside adds.

    order: of the forecast, m; 0: the sum stays the same
    form:  how it is forecast
    """

    network: Any
    process: GaussianProcess
    order: Annotated[int, Range(0, 8)] = 0
    form: Form = "polynomial"
    reuse: Reuse = Reuse.SMOOTH

    @staticmethod
    def around(
        denoiser: Denoiser, process: Process, *, outer: int = 0, order: int = 0, form: Form = "polynomial"
    ) -> FeatureCache:
        """The cache of a single network, with all levels from `outer` on inside. Raises ValueError as `network_of`."""
        cut = network_of(denoiser, Cuttable).cut(outer)
        return FeatureCache(cut, require_gaussian(process, "the model"), order, form)

    @staticmethod
    def shared_encoder(denoiser: Denoiser, process: Process) -> FeatureCache:
        """The cache of five in six of a U-ViT's middle blocks, the first.

        Raises ValueError for a denoiser that is no single U-ViT.
        """
        cut = network_of(denoiser, Cuttable).cut(0)
        if not isinstance(cut, UViTCut):
            raise ValueError(f"an encoder is shared of a single-rate U-ViT, got {type(cut.network).__name__}")
        *above, middle = cut.network.config.levels
        inside = max(1, middle.blocks * 5 // 6)
        return FeatureCache(replace(cut, outer=len(above), blocks=inside), require_gaussian(process, "the model"))

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        """Runs the whole network; the context has one feature, the sum that the inside added, and x_hat."""
        features, x_hat = self.called(self.network.whole, z, t, cond)
        return Context(tuple(features), tau=t, x_hat=x_hat, keeps=self.order)

    def added(self, context: Context, t: Tensor) -> Tensor:
        self.features_of(context)
        return forecast_features(context, t, None if self.form == "taylor" else self.process.schedule)[0]


@dataclass(frozen=True)
class TokenCache(_Cache):
    """A single-rate network that keeps its attention, and computes some tokens again where a step is partial.

    share:   of the tokens, one at least
    by:      how they are chosen
    between: actions of the steps before a full one, counted back from it, in turn
    Features, block by block: the sums that it added, those of attention, the attention that tokens received, and the
    partial steps since each token was computed, (B, blocks, n).
    """

    network: Any
    process: GaussianProcess
    share: Annotated[float, Range(0, 1)]
    by: By = "random"
    between: tuple[Refresh, ...] = (Refresh.PARTIAL,)
    reuse: Reuse = Reuse.SMOOTH
    num_features = 4

    @staticmethod
    def around(
        denoiser: Denoiser, process: Process, *, share: float, by: By, between: tuple[Refresh, ...]
    ) -> TokenCache:
        """The cache of a single network. Raises ValueError as `network_of`, and where its attention cannot be kept."""
        cut = network_of(denoiser, TokenCuttable).token_cut(by == "attention")
        return TokenCache(cut, require_gaussian(process, "the model"), share, by, between)

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        """Runs the whole network."""
        features, x_hat = self.called(self.network.whole, z, t, cond)
        return Context((*features, torch.zeros_like(features[-1])), tau=t, x_hat=x_hat)

    def renew(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Context:
        """Raises ValueError as `features_of`."""
        sums, attention, received, age = self.features_of(context)
        chosen = choose(received, age, t, self.share, self.by)
        (sums,), x_hat = self.called(self.network.part, z, t, cond, sums, attention, chosen)
        return replace(context, features=(sums, attention, received, (age + 1).scatter(2, chosen, 0)), x_hat=x_hat)

    def added(self, context: Context, t: Tensor) -> Tensor:
        return self.features_of(context)[0].sum(1)


def choose(received: Tensor, age: Tensor, t: Tensor, share: float, by: By) -> Tensor:
    """Places of the tokens that are chosen in each block, (B, blocks, k): a share of the n, one at least.

    received, age: (B, blocks, n); t: (B,) or (), the seed of a random choice
    """
    rows, blocks, size = age.shape
    count = max(1, round(share * size))
    if by == "random":
        orders = [order(blocks, size, time, age.device) for time in t.expand(rows).tolist()]
        return torch.stack(orders)[..., :count]
    score = F.normalize(received, dim=2) + AGE * age
    side = round(size**0.5)
    if side * side == size and side % 2 == 0:
        squares = score.unflatten(2, (side, side))
        greatest = F.interpolate(F.max_pool2d(squares, 2), scale_factor=2.0)
        score = torch.where(squares == greatest, FIRST * squares, squares).flatten(2)
    return score.topk(count, dim=2).indices


@lru_cache(64)  # of many blocks and tokens they are large, and plans have times of their own
def order(blocks: int, size: int, t: float, device: torch.device) -> Tensor:
    """(blocks, n) the numbers from 0 on, in a random order each, which are the same for all images at a time t."""
    seed = zlib.crc32(struct.pack("<d", t))  # of all its bits: a generator on the CPU takes 32
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(size, generator=generator) for _ in range(blocks)]).to(device)
