"""A light U-ViT with which features are concatenated, as Dual-Rate Diffusion (arXiv 2605.18190) describes it in public.

Where a level of C channels begins, its own activations h and a feature e of C_e channels become

    W [h; e] = W_h h + W_e e        W: (C, C + C_e), a 1x1 convolution of the two, concatenated; no bias

The encoder computes W_e e, its projection, once a heavy call. W_h costs C^2 multiply-adds a position, at every step. It
is the identity at first (ours), so that training begins as where features are added.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dualrate.networks.uvit import UViT, UViTConfig


def concatenated(light: object, name: str) -> ConcatenatedConfig:
    """A light network of the same levels. name: of the model with it. Raises ValueError unless it is a U-ViT."""
    if type(light) is not UViTConfig:
        raise ValueError(
            f"features are concatenated with those of a light U-ViT, and {name} has a {type(light).__name__}: name a "
            "recipe of two U-ViTs, for example cifar10-dual"
        )
    return ConcatenatedConfig(**vars(light))


@dataclass(frozen=True)
class ConcatenatedConfig(UViTConfig):
    """A light U-ViT, with which the encoder's features are concatenated."""

    def network(self) -> UViT:
        network = super().network()
        first, *later = (nn.Conv2d(width, width, 1, bias=False) for width in self.widths)
        for conv in (first, *later):
            nn.init.dirac_(conv.weight)  # pyright: ignore[reportArgumentType]
        network.stem = nn.Sequential(network.stem, first)
        network.shrink = nn.ModuleList(nn.Sequential(*pair) for pair in zip(network.shrink, later, strict=True))
        return network
