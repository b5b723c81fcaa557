"""Feature caching of a trained single-rate network, without training: FORA, DeepCache, TaylorSeer, encoder sharing.

Blocks add to what comes in, and so do a U-ViT's levels, which are linear but for their blocks. So what a row of blocks,
or all levels from `outer` on, add to their input is one tensor, and kept between refreshes:

    refresh   D = h_out - h_in at tau                        the whole network
    between   h_out = h_in at t + forecast of D              what lies outside alone: levels above, patches, head

    FORA             outer 0, D as it was           every block's output is reused; patches and head run
    DeepCache        outer 1, D as it was           the inner levels' output is reused; the first level runs
    TaylorSeer       outer 0, D from the last m+1   every block's output is forecast
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
Where a plan refreshes is its own matter: evenly, or where features changed most (planning/planner.py).

A forecast of features F_0, F_1, ..., F_m, kept at u_0 (the latest), u_1, ..., u_m, is a polynomial in u = log-SNR. With
D_0[k] = F_k:

    newton      D_i[k] = (D_i-1[k] - D_i-1[k+1]) / (u_k - u_k+i)     F(u) = sum_i D_i[0] (u - u_0) ... (u - u_i-1)
    published   D_i[k] = (D_i-1[k] - D_i-1[k+1]) / (u_k - u_k+1)     F(u) = sum_i D_i[0] (u - u_0)^i / i!

The first is the polynomial through all of them, at any spacing. The second is that of TaylorSeer, which counts steps
where u stands here: it puts differences, which belong between the times, in the place of derivatives at the latest one,
and is exact for straight lines alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from dualrate.config.ranges import Range, Ranged
from dualrate.denoisers.denoiser import Denoiser, Plain
from dualrate.diffusion.prediction import x_from_v
from dualrate.diffusion.process import GaussianProcess, Process, per_row, require_gaussian
from dualrate.diffusion.schedule import Schedule
from dualrate.diffusion.values import Cond, Context, Reuse, expand, once
from dualrate.networks.uvit import UViT, UViTCut

Form = Literal["newton", "published"]


def forecast(context: Context, t: Tensor, schedule: Schedule, form: Form) -> tuple[Tensor, ...]:
    """The features of a context and of those before it, carried on to t; of a single one as they are.

    t: (B,) or (). Raises ValueError for contexts without a time.
    """
    held = (context, *context.earlier)
    times = [one.tau for one in held if one.tau is not None]
    if len(times) < len(held):
        raise ValueError("features are forecast from their times, and a context here has none (tau): pass encode's")
    if not context.earlier:
        return context.features
    weights = forecast_weights(form, schedule, t, *times)
    return tuple(_mixed(weights, same) for same in zip(*(one.features for one in held), strict=True))


@once
def forecast_weights(form: Form, schedule: Schedule, t: Tensor, *times: Tensor) -> tuple[Tensor, ...]:
    """What each of F_0, ..., F_m counts in F(u), as t. times: of the features, the latest first."""
    u, *nodes = (schedule.log_snr(time) for time in (t, *times))
    size = len(nodes)
    differences = [[torch.full_like(u, float(j == k)) for j in range(size)] for k in range(size)]  # D_i[k], of F_j
    weights, factor = differences[0], torch.ones_like(u)
    for i in range(1, size):
        gaps = [nodes[k] - nodes[k + (i if form == "newton" else 1)] for k in range(size - i)]
        differences = [
            [(a - b) / gap for a, b in zip(differences[k], differences[k + 1], strict=True)]
            for k, gap in enumerate(gaps)
        ]
        factor = factor * (u - nodes[i - 1] if form == "newton" else (u - nodes[0]) / i)
        weights = [weight + factor * part for weight, part in zip(weights, differences[0], strict=True)]
    return tuple(weights)


def _mixed(weights: tuple[Tensor, ...], features: tuple[Tensor, ...]) -> Tensor:
    """The weighted sum, in float32 at least, since weights may be large and of both signs; in the features' dtype."""
    wide = [feature.to(torch.promote_types(feature.dtype, torch.float32)) for feature in features]
    total = expand(weights[0], wide[0]) * wide[0]
    for weight, feature in zip(weights[1:], wide[1:], strict=True):
        total = total + expand(weight, feature) * feature
    return total.to(features[0].dtype)


def check_own(context: Context, count: int) -> None:
    """Raises ValueError for a context that is not of a cache with so many features, or that some rows do not have."""
    if len(context.features) != count or context.present is not None:
        raise ValueError(
            f"this cache has contexts of {count} features, of all rows, got {len(context.features)}: pass what encode "
            "returned for these rows, or Context() to run the whole network"
        )


ORDER = 2  # of TaylorSeer, where nothing else is said


class Cut(Protocol):
    """A network in two: an inside that adds to what comes into it, and the rest."""

    def whole(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the inside adds, and v."""
        ...

    def rest(self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Tensor) -> Tensor:
        """v without the inside, given what it adds."""
        ...


@runtime_checkable
class Cuttable(Protocol):
    """A network that can be cut in two."""

    def cut(self, outer: int) -> Cut:
        """Levels from `outer` on are inside. Raises ValueError where that cannot be."""
        ...


@dataclass(frozen=True)
class FeatureCache(Ranged, Denoiser):
    """A single-rate network that keeps what its inside adds between refreshes.

    order: of the forecast, m; 0: what is kept stays as it is
    form:  of the forecast
    A refresh has denoised already (`Context.x_hat`), so its step needs no light call: H = N is the network itself.
    A step without a context runs the whole network, for its price (`alone_differs`).
    """

    network: Cut
    process: GaussianProcess
    order: Annotated[int, Range(0, 8)] = 0
    form: Form = "newton"
    reuse: Reuse = Reuse.SMOOTH
    alone_differs = True

    @staticmethod
    def around(*, outer: int = 0, order: int = 0, form: Form = "newton") -> Callable[[Denoiser, Process], FeatureCache]:
        """Makes the cache of a denoiser, all of whose levels from `outer` on are inside.

        That raises ValueError for a denoiser that is no single network, or whose network cannot be cut there.
        """

        def cache(denoiser: Denoiser, process: Process) -> FeatureCache:
            network = denoiser.network if isinstance(denoiser, Plain) else None
            if not isinstance(network, Cuttable):
                raise ValueError(
                    "features are cached of a single-rate network that can be cut, a U-ViT or a transformer of "
                    f"diffusers, got {type(denoiser).__name__}"
                )
            return FeatureCache(network.cut(outer), require_gaussian(process, "the model"), order, form)

        return cache

    @staticmethod
    def shared_encoder(blocks: int | None = None) -> Callable[[Denoiser, Process], FeatureCache]:
        """Makes the cache of a U-ViT's first middle blocks; None: of five in six of them.

        That raises ValueError for a denoiser that is no single U-ViT, and for more blocks than there are.
        """

        def cache(denoiser: Denoiser, process: Process) -> FeatureCache:
            network = denoiser.network if isinstance(denoiser, Plain) else None
            if not isinstance(network, UViT):
                raise ValueError(f"an encoder is shared of a single-rate U-ViT, got {type(denoiser).__name__}")
            levels = network.config.levels
            inside = max(1, levels[-1].blocks * 5 // 6) if blocks is None else blocks
            return FeatureCache(UViTCut(network, len(levels) - 1, inside), require_gaussian(process, "the model"))

        return cache

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        """Runs the whole network; the context has one feature, what the inside added, and x_hat."""
        log_snr = self.process.log_snr(t).to(z.dtype)
        added, v = self.network.whole(z, per_row(log_snr, z), cond.label)
        return Context((added,), tau=t, x_hat=x_from_v(z, v.to(z.dtype), log_snr), keeps=self.order)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        """Raises ValueError for a context that is not this network's, or that only some of the rows have."""
        if context.x_hat is not None:
            return context.x_hat
        if not context.features and context.tau is None:
            return cast(Tensor, self.encode(z, t, cond).x_hat)
        check_own(context, 1)
        log_snr = self.process.log_snr(t).to(z.dtype)
        (added,) = forecast(context, t, self.process.schedule, self.form)
        v = self.network.rest(z, per_row(log_snr, z), cond.label, added)
        return x_from_v(z, v.to(z.dtype), log_snr)
