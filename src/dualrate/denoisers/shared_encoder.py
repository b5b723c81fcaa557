"""Encoder sharing: a trained single-rate U-ViT whose first middle blocks run only now and then.

    refresh   h = down(z_tau);  d = blocks[:split](h) - h;  x_hat = up(blocks[split:](h + d))     the whole network
    between   h = down(z_t);                                x_hat = up(blocks[split:](h + d))     without blocks[:split]

Source: the decoupled diffusion transformer (Wang et al. 2025, arXiv 2504.05741), whose encoder's output serves several
neighbouring steps; `dualrate.planning.similarity` finds which, as it does. Published for its XL network on ImageNet 256
with 250 steps: FID 1.31 without sharing; with 50 encoder calls, 2.6 times as fast, 1.36 where they are spread evenly,
1.33 where they are found. Differences: its network has a decoder that
sees the time through the encoder's output alone; here everything that runs between refreshes is given the current
time. And the network here was never cut in two: `split` is a choice made at sampling.

Kept is what the blocks add to h. Keeping their output instead was measured on Fashion-MNIST: a slightly worse score,
within the intervals; images further from those of the network itself at half of the middle blocks, nearer at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dualrate.config.ranges import Ranged, SharedBlocks
from dualrate.denoisers.denoiser import Denoiser, Plain
from dualrate.denoisers.feature_cache import FeatureCache
from dualrate.diffusion.process import GaussianProcess, Process, require_gaussian
from dualrate.diffusion.values import Cond, Context, Reuse
from dualrate.networks.uvit import Skips, UViT, require_shape


@dataclass(frozen=True)
class SharedEncoder(Ranged):
    """A single-rate U-ViT that keeps what the first `split` blocks of its middle level add between refreshes.

    split: 1 to the number of middle blocks. More: a cheaper light call, further from the network
    It is the feature cache (denoisers/feature_cache.py) of the network cut there.
    """

    network: UViT
    process: GaussianProcess
    split: SharedBlocks
    reuse: Reuse = Reuse.SMOOTH
    alone_differs = True  # no annotation: its cost

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
    def around(denoiser: Denoiser, process: Process) -> SharedEncoder:
        """Of a single-rate U-ViT's denoiser; five in six of its middle blocks are shared.

        Raises ValueError for another denoiser, and for another process than of Gaussian noise.
        """
        network, gaussian = _shareable(denoiser), require_gaussian(process, "the model")
        return SharedEncoder(network, gaussian, max(1, network.config.levels[-1].blocks * 5 // 6))

    @staticmethod
    def at(split: int) -> Callable[[Denoiser, Process], SharedEncoder]:
        """Shares so many middle blocks. Raises as `around`, and ValueError for more blocks than there are."""

        def around(denoiser: Denoiser, process: Process) -> SharedEncoder:
            return SharedEncoder(_shareable(denoiser), require_gaussian(process, "the model"), split)

        return around

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        """Runs the whole network; the context has one feature, (B, C, h, w) of the middle level, and x_hat."""
        return FeatureCache(self, self.process).encode(z, t, cond)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        """Raises ValueError for a context that is not this network's, or that only some of the rows have."""
        return FeatureCache(self, self.process).denoise(z, t, context, cond)

    def whole(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the shared blocks add, and v. Arguments: the network's."""
        emb, h, skips = self._above(z, log_snr, label)
        out = self.network.middle(h, emb, end=self.split)
        return out - h, self._v(out, skips, emb)

    def rest(self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Tensor) -> Tensor:
        """v without the shared blocks, given what they add. Raises ValueError where that has another shape."""
        emb, h, skips = self._above(z, log_snr, label)
        require_shape(added, h)
        return self._v(h + added, skips, emb)

    def _above(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor, Skips]:
        """The way down to the input of the middle level."""
        emb = self.network.embedding(log_snr, label)
        return emb, *self.network.descend(self.network.patches(z), emb)

    def _v(self, h: Tensor, skips: Skips, emb: Tensor) -> Tensor:
        """From h, the output of the shared blocks."""
        h = self.network.middle(h, emb, begin=self.split)
        return self.network.predict(self.network.ascend(h, skips, emb)[0])


def _shareable(denoiser: Denoiser) -> UViT:
    """Raises ValueError for what is no single-rate U-ViT."""
    network = denoiser.network if isinstance(denoiser, Plain) else None
    if not isinstance(network, UViT):
        raise ValueError(f"an encoder is shared of a single-rate U-ViT, got {type(denoiser).__name__}")
    return network
