"""Encoder sharing: a trained single-rate U-ViT whose first middle blocks run only now and then.

    refresh   h = down(z_tau);  d = blocks[:split](h) - h;  x_hat = up(blocks[split:](h + d))     the whole network
    between   h = down(z_t);                                x_hat = up(blocks[split:](h + d))     without blocks[:split]

Source: the decoupled diffusion transformer (Wang et al. 2025, arXiv 2504.05741), whose encoder's output serves several
neighbouring steps; `dualrate.planning.similarity` finds which, as it does. Differences: its network has a decoder that
sees the time through the encoder's output alone; here everything that runs between refreshes is given the current
time. And the network here was never cut in two: `split` is a choice made at sampling.

Kept is what the blocks add to h. Keeping their output instead was measured on Fashion-MNIST: a slightly worse score,
within the intervals; images further from those of the network itself at half of the middle blocks, nearer at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dualrate.config.ranges import Ranged, SharedBlocks
from dualrate.denoisers.denoiser import Denoiser, Plain
from dualrate.diffusion.prediction import x_from_v
from dualrate.diffusion.process import GaussianProcess, per_row
from dualrate.diffusion.values import Cond, Context, Reuse
from dualrate.networks.uvit import Skips, UViT


@dataclass(frozen=True)
class SharedEncoder(Ranged):
    """A single-rate U-ViT that keeps what the first `split` blocks of its middle level add between refreshes.

    split: 1 to the number of middle blocks. More: a cheaper light call, further from the network
    A refresh has denoised already (`Context.x_hat`), so its step needs no light call: H = N is the network itself.
    A step without context runs the whole network, though a meter counts it among the light calls.
    """

    network: UViT
    process: GaussianProcess
    split: SharedBlocks
    reuse: Reuse = Reuse.SMOOTH

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.network.config.head:
            raise ValueError("this U-ViT was built without a head, so it cannot denoise: share one that predicts v")
        blocks = self.network.config.levels[-1].blocks
        if self.split > blocks:
            raise ValueError(
                f"split is the number of middle blocks that a refresh serves, 1 to {blocks} in this network, got "
                f"{self.split}; to share none, use Plain"
            )

    @staticmethod
    def around(denoiser: Denoiser, process: GaussianProcess) -> SharedEncoder:
        """Of a single-rate U-ViT's denoiser; five in six of its middle blocks are shared (dev/LOG.md has why).

        Raises ValueError for another denoiser.
        """
        network = denoiser.network if isinstance(denoiser, Plain) else None
        if not isinstance(network, UViT):
            raise ValueError(f"an encoder is shared of a single-rate U-ViT, got {type(denoiser).__name__}")
        return SharedEncoder(network, process, max(1, network.config.levels[-1].blocks * 5 // 6))

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        """Runs the whole network; the context has one feature, (B, C, h, w) of the middle level, and x_hat."""
        net, log_snr, emb = self._embedded(z, t, cond)
        h, skips = net.descend(net.patches(z), emb)
        out = net.middle(h, emb, end=self.split)
        return Context((out - h,), tau=t, x_hat=self._x_hat(z, log_snr, emb, out, skips))

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        """Raises ValueError for a context that is not this network's, or that only some of the rows have."""
        if context.x_hat is not None:
            return context.x_hat
        net, log_snr, emb = self._embedded(z, t, cond)
        h, skips = net.descend(net.patches(z), emb)
        if not context.features and context.tau is None:
            return self._x_hat(z, log_snr, emb, net.middle(h, emb, end=self.split), skips)
        if [feature.shape for feature in context.features] != [h.shape] or context.present is not None:
            raise ValueError(
                f"the context of a shared encoder is one feature of shape {tuple(h.shape)} that all rows have, got "
                f"{[tuple(feature.shape) for feature in context.features]}"
                f"{'' if context.present is None else ', absent for some rows'}: pass what encode returned for these "
                "rows, or Context() to run the whole network"
            )
        return self._x_hat(z, log_snr, emb, h + context.features[0], skips)

    def _embedded(self, z: Tensor, t: Tensor, cond: Cond) -> tuple[UViT, Tensor, Tensor]:
        log_snr = self.process.log_snr(t).to(z.dtype)
        return self.network, log_snr, self.network.embedding(per_row(log_snr, z), cond.label)

    def _x_hat(self, z: Tensor, log_snr: Tensor, emb: Tensor, h: Tensor, skips: Skips) -> Tensor:
        """From h, the output of the first `split` blocks."""
        h = self.network.middle(h, emb, begin=self.split)
        v = self.network.predict(self.network.ascend(h, skips, emb)[0])
        return x_from_v(z, v.to(z.dtype), log_snr)
