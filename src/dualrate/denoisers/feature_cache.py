"""Feature caching of a trained single-rate U-ViT, without training: FORA, DeepCache, TaylorSeer.

A U-ViT's blocks, and its levels, add to what comes in, and between them it is linear. So what all blocks from level
`outer` on add, h_in to h_out of that level, is one tensor, and kept between refreshes:

    refresh   D = h_out - h_in at tau                        the whole network
    between   h_out = h_in at t + forecast of D              the levels outside of `outer` alone, and the head

    FORA         outer 0, D as it was           every block's output is reused; patches and head run
    DeepCache    outer 1, D as it was           the inner levels' output is reused; the first level runs
    TaylorSeer   outer 0, D from the last m+1   every block's output is forecast (denoisers/forecast.py)

Keeping each block's output, as the originals do, is the same: the sum of what was kept, or forecast, is what is kept,
or forecast, of the sum (a test does it block by block). A kept sum costs one addition and the memory of one tensor.

FORA        Selvaraju et al. 2024, arXiv 2407.01425: DiT, refreshed at every N-th step. DiT-XL/2, ImageNet 256, DDIM 50
            steps, FID 2.32 without a cache: 3.55 at 2.77 times fewer FLOPs (N = 3), 6.58 at 4.53 (N = 5). It scales what
            it kept by the gates of the current time; these blocks have no gates behind them.
DeepCache   Ma et al. 2023, arXiv 2312.00858: U-Nets, refreshed at every N-th step. Stable Diffusion 1.5 2.3 times as
            fast at 0.05 less CLIP score, LDM-4-G 4.1 times at 0.22 more FID. Its skips concatenate, so what is kept
            there is the inner levels' activation; here they add. Of two levels it is encoder sharing
            (denoisers/shared_encoder.py) of all middle blocks.
TaylorSeer  Liu et al. 2025, arXiv 2503.06923: DiT, refreshed at every N-th step and the first few, order m. As above:
            2.34 at 2.77 times fewer FLOPs (N = 3, m = 3), 2.65 at 4.53 (N = 5, m = 3). A cache that has seen fewer than
            m + 1 refreshes forecasts at a lower order.
Where a plan refreshes is its own matter: evenly, or where features changed most (planning/similarity.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from dualrate.config.ranges import Range, Ranged
from dualrate.denoisers.denoiser import Denoiser, Plain
from dualrate.denoisers.forecast import Form, forecast
from dualrate.diffusion.prediction import x_from_v
from dualrate.diffusion.process import GaussianProcess, per_row
from dualrate.diffusion.values import Cond, Context, Reuse
from dualrate.networks.uvit import Skips, UViT

ORDER = 2  # of TaylorSeer, where nothing else is said


@dataclass(frozen=True)
class FeatureCache(Ranged):
    """A single-rate U-ViT that keeps what its levels from `outer` on add between refreshes.

    outer: levels that run at every step, from the finest; 0 to those above the middle
    order: of the forecast, m; 0: what is kept stays as it is
    form:  of the forecast
    A refresh has denoised already (`Context.x_hat`), so its step needs no light call: H = N is the network itself.
    A step without context runs the whole network, though a meter counts it among the light calls.
    """

    network: UViT
    process: GaussianProcess
    outer: Annotated[int, Range(0, 1000)] = 0
    order: Annotated[int, Range(0, 8)] = 0
    form: Form = "newton"
    reuse: Reuse = Reuse.SMOOTH

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.network.config.head:
            raise ValueError("this U-ViT was built without a head, so it cannot denoise: cache one that predicts v")
        above = len(self.network.config.levels) - 1
        if self.outer > above:
            raise ValueError(
                f"outer is the number of levels that run at every step, 0 to {above} in this network of {above + 1}, "
                f"got {self.outer}; to cache none, use Plain"
            )

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        """Runs the whole network; the context has one feature, (B, C, h, w) of level `outer`, and x_hat."""
        log_snr, emb = self._embedded(z, t, cond)
        h, outer = self._outside(z, emb)
        inside = self._inside(h, emb)
        return Context((inside - h,), tau=t, x_hat=self._x_hat(z, log_snr, emb, inside, outer), keeps=self.order)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        """Raises ValueError for a context that is not this network's, or that only some of the rows have."""
        if context.x_hat is not None:
            return context.x_hat
        log_snr, emb = self._embedded(z, t, cond)
        h, outer = self._outside(z, emb)
        if not context.features and context.tau is None:
            return self._x_hat(z, log_snr, emb, self._inside(h, emb), outer)
        if [feature.shape for feature in context.features] != [h.shape] or context.present is not None:
            raise ValueError(
                f"the context of a feature cache is one feature of shape {tuple(h.shape)} that all rows have, got "
                f"{[tuple(feature.shape) for feature in context.features]}"
                f"{'' if context.present is None else ', absent for some rows'}: pass what encode returned for these "
                "rows, or Context() to run the whole network"
            )
        (added,) = forecast(context, t, self.process.schedule, self.form)
        return self._x_hat(z, log_snr, emb, h + added, outer)

    def _embedded(self, z: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        log_snr = self.process.log_snr(t).to(z.dtype)
        return log_snr, self.network.embedding(per_row(log_snr, z), cond.label)

    def _outside(self, z: Tensor, emb: Tensor) -> tuple[Tensor, Skips]:
        """The way down to the input of level `outer`."""
        return self.network.descend(self.network.patches(z), emb, end=self.outer)

    def _inside(self, h: Tensor, emb: Tensor) -> Tensor:
        """The last activation of level `outer`, given its input."""
        h, skips = self.network.descend(h, emb, begin=self.outer)
        return self.network.ascend(self.network.middle(h, emb), skips, emb, begin=self.outer)[0]

    def _x_hat(self, z: Tensor, log_snr: Tensor, emb: Tensor, h: Tensor, outer: Skips) -> Tensor:
        """From h, the last activation of level `outer`."""
        v = self.network.predict(self.network.ascend(h, outer, emb)[0])
        return x_from_v(z, v.to(z.dtype), log_snr)


def feature_cache(
    *, outer: int = 0, order: int = 0, form: Form = "newton"
) -> Callable[[Denoiser, GaussianProcess], FeatureCache]:
    """Makes the cache of a single-rate U-ViT's denoiser, which raises ValueError for another denoiser."""

    def around(denoiser: Denoiser, process: GaussianProcess) -> FeatureCache:
        network = denoiser.network if isinstance(denoiser, Plain) else None
        if not isinstance(network, UViT):
            raise ValueError(f"features are cached of a single-rate U-ViT, got {type(denoiser).__name__}")
        return FeatureCache(network, process, outer, order, form)

    return around
