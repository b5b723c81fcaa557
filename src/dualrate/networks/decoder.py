"""Networks that make an image of a latent z_0: a diffusion decoder p(x | z_0) (Unified Latents, arXiv 2602.17270).

    single-rate   v = U-ViT(x_t, log_snr_t, label; z_0)                                            at every step
    dual-rate     features = P U-ViT(0, log_snr_1, label; z_0) + maps(z_0)                                   once
                  v = U-ViT(x_t, log_snr_t, label; features)                                       at every step

z_0 enters where the levels of a U-ViT begin: one linear map, without bias, from the positions of the latent to those of
the level, so that a latent of 8 x 8 gives every one of 16 x 16 positions what is its own.

The heavy network of the dual-rate decoder is that of the single-rate one where all is noise: there x_t says nothing of
x, and has 0 in its place. So it sees z_0 alone, a trained single-rate decoder can take its part, and its features are
right at every time. The sizes of the paper's decoder are known, how z_0 enters it is not: this is ours.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from dualrate.diffusion.values import Shape
from dualrate.networks.dual import ContextConfig, check_pair, last_weights, projection
from dualrate.networks.uvit import UViT, UViTConfig

ALL = ContextConfig()


class LatentMaps(nn.Module):
    """z_0: (B, C, h, w) -> what it adds at each level of a U-ViT, (B, C_i, H_i, W_i), finest first."""

    def __init__(self, latent: Shape, config: UViTConfig) -> None:
        super().__init__()
        channels, *sides = latent
        self.maps = nn.ModuleList()
        for i, level in enumerate(config.levels):
            side = config.side(i)
            if len(set(sides)) > 1 or max(side, *sides) % min(side, *sides):
                raise ValueError(
                    f"a latent of {latent} (C, H, W) is square, and its side a multiple or a divisor of those of the "
                    f"decoder's levels, {', '.join(str(config.side(i)) for i in range(len(config.levels)))}: change "
                    "the decoder's patch or levels"
                )
            finer, coarser = side // sides[0], sides[0] // side
            kind, ratio = (nn.ConvTranspose2d, finer) if finer else (nn.Conv2d, coarser)
            self.maps.append(kind(channels, level.channels, ratio, stride=ratio, bias=False))

    def forward(self, z_0: Tensor) -> tuple[Tensor, ...]:
        return tuple(to_level(z_0) for to_level in self.maps)


class DecoderUViT(nn.Module):
    """forward: (x_t, log_snr, z_0, label) -> v. latent: (C, h, w) of z_0."""

    def __init__(self, config: UViTConfig, latent: Shape) -> None:
        super().__init__()
        self.net, self.latent = UViT(config), LatentMaps(latent, config)

    def forward(self, x_t: Tensor, log_snr: Tensor, z_0: Tensor, label: Tensor | None) -> Tensor:
        """x_t: (B, C, H, W); log_snr: (B,); z_0: (B, c, h, w); label: (B,) int64 or None -> v, as x_t, float32."""
        return self.net(x_t, log_snr, label, self.latent(z_0))

    def features(self, log_snr: Tensor, z_0: Tensor, label: Tensor | None) -> tuple[Tensor, ...]:
        """The last activation of every level, (B, C_i, H_i, W_i), finest first, with 0 for x_t."""
        x_t = z_0.new_zeros(len(z_0), *self.net.config.shape)
        return self.net.trunk(x_t, self.net.embedding(log_snr, label), self.latent(z_0))


class LatentEncoder(nn.Module):
    """forward: (log_snr at t = 1, z_0, label) -> features of a light decoder, at its widths.

    net:   a `DecoderUViT` without a head
    light: what z_0 itself adds at the levels of the light network, as in a decoder of that alone
    """

    def __init__(self, config: UViTConfig, light: UViTConfig, latent: Shape, context: ContextConfig = ALL) -> None:
        super().__init__()
        check_pair(config, light, context)
        if context.residual:
            raise ValueError("a decoder's encoder has no estimate at a time for the light network to correct")
        if context.join != "add":
            raise ValueError(
                f"features of a decoder's encoder are added to what the light network makes of z_0, got join "
                f"{context.join!r}: leave it at add"
            )
        self.net, self.light = DecoderUViT(replace(config, head=False), latent), LatentMaps(latent, light)
        pairs = list(zip(config.levels, light.levels, strict=True))
        self.projections = nn.ModuleList(
            projection(heavy.channels, narrow.channels, context.width) for heavy, narrow in pairs[: context.levels]
        )

    def forward(self, log_snr: Tensor, z_0: Tensor, label: Tensor | None) -> tuple[Tensor, ...]:
        """log_snr: (B,); z_0: (B, c, h, w); label: (B,) int64 or None -> (B, light C_i, H_i, W_i), finest first."""
        features, levels = list(self.light(z_0)), self.net.features(log_snr, z_0, label)
        for i, project in enumerate(self.projections):
            features[i] = features[i] + project(levels[i])
        return tuple(features)

    def disconnect(self) -> None:
        """Zero every way from the heavy network into the light one, which is then a decoder by itself."""
        for way in last_weights(self.projections):
            nn.init.zeros_(way)
