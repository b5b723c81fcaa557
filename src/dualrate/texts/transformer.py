"""Networks of tokens, one-hot over V categories: a transformer, and the two networks of a dual-rate model made of it.

    h = E z + position                E: one vector for each category, as a 1 x 1 convolution of one-hot states
    blocks
    logits = head(h)

States are image-shaped, (B, V, H, W): a grid of tokens, or a text with H = 1. (A `UViT` of V image channels is another
network of token grids: its v are the logits.)

The encoder hands over its last activation, projected to the light network's width, and z_tau itself: compared with z_t
it shows which tokens changed since tau, so how old the context is, token by token. Where noise is a mask these are
the tokens that were revealed since; and z_t shows all that z_tau did, so the context holds no information that z_t
lacks: it spares work alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor, nn

from dualrate.config.ranges import BelowOne, Channels, Classes, Range, Ranged, Side
from dualrate.networks.blocks import ChannelNorm, Embedding, NoiseEmbedding, TransformerBlock, unpatchified, zero_init
from dualrate.networks.dual import Features, LightNetwork, require_same_fields
from dualrate.networks.uvit import Head

SPREAD = 0.02  # of vectors of categories and positions at the start


@dataclass(frozen=True)
class TokensConfig(Ranged):
    """A transformer of tokens."""

    vocabulary: Annotated[int, Range(2, 65_536)]
    """Categories of a token, with the mask where there is one."""
    width: Side
    """Tokens in a row; for text, all tokens of a piece."""
    height: Side = 1
    """Rows of tokens; 1 for a text."""
    channels: Channels = 256
    """Width of the blocks."""
    patch: Annotated[int, Range(1, 256)] = 1
    """Side of the square of tokens that becomes one position of the blocks; 1 for a text."""
    blocks: Annotated[int, Range(0, 1000)] = 8
    """Number of blocks, each of self-attention and an MLP."""
    num_classes: Classes = 0
    """Number of classes; 0 for an unconditional model. The label after the last class is the null class."""
    embedding: Channels = 256
    """Width of the embedding of noise level and label."""
    head_dim: Annotated[int, Range(1, 1024)] = 64
    """Width of an attention head, a divisor of the channels."""
    dropout: BelowOne = 0.0
    """Dropout in the blocks, in training."""
    head: bool = True
    """Whether it predicts logits; a context encoder may do without."""
    noise: Annotated[int, Range(0, 1024)] = 0
    """For a student: planes of noise that it reads beside the tokens. 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(f"{self.height} x {self.width} tokens do not divide into patches of {self.patch}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(V, H, W) of tokens."""
        return self.vocabulary, self.height, self.width

    def lighter(self) -> TokensConfig:
        """A light network beside it: half of its channels, in heads that divide them, and of its blocks."""
        channels = max(self.channels // 2, 1)
        blocks, head_dim = max(self.blocks // 2, 1), math.gcd(self.head_dim, channels)
        return replace(self, channels=channels, blocks=blocks, head_dim=head_dim, dropout=0.0, head=True)

    def with_noise(self, planes: int) -> TokensConfig:
        return replace(self, noise=planes)

    def with_dropout(self, dropout: float) -> TokensConfig:
        return replace(self, dropout=dropout)


class TokenTransformer(nn.Module):
    """forward: (z, log_snr, label) -> logits.

    z: (B, V, H, W), or with planes of noise after the tokens, which a network without `TokensConfig.noise` does not see
    """

    def __init__(self, config: TokensConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.embedding, config.num_classes)
        self.stem = plane_stem(config.vocabulary, config)
        nn.init.normal_(self.stem.weight, std=SPREAD)
        self.noise = zero_init(plane_stem(config.noise, config)) if config.noise else None
        height, width = config.height // config.patch, config.width // config.patch
        self.position = nn.Parameter(SPREAD * torch.randn(1, config.channels, height, width))
        self.blocks = nn.ModuleList(
            TransformerBlock(config.channels, config.embedding, config.head_dim, config.dropout)
            for _ in range(config.blocks)
        )
        self.head = None
        if config.head:
            out = zero_init(nn.Conv2d(config.channels, config.vocabulary * config.patch**2, 1))
            self.head = Head(ChannelNorm(config.channels), out)

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> Tensor:
        """z: (B, V, H, W) one-hot; log_snr: (B,); label: (B,) int64 or None -> (B, V, H, W) float32."""
        return self.predict(self.trunk(z, self.embedding(log_snr, label)))

    def trunk(self, z: Tensor, emb: Tensor, added: Tensor | None = None) -> Tensor:
        """(B, C, H / patch, W / patch): the last activation. added: joins the first."""
        h = self.stem(self.tokens(z))
        if self.noise is not None:
            h = h + self.noise(z[:, self.config.vocabulary :])
        h = h + self.position.to(h.dtype)
        h = h if added is None else h + added
        for block in self.blocks:
            h = block(h, emb)
        return h

    def tokens(self, z: Tensor) -> Tensor:
        """The tokens of z, (B, V, H, W), without planes of noise."""
        return z[:, : self.config.vocabulary]

    def predict(self, h: Tensor) -> Tensor:
        """Logits of the last activation, in float32 whatever precision the trunk ran in."""
        if self.head is None:
            raise ValueError("this transformer was built without a head (TokensConfig.head): it has no logits")
        return unpatchified(self.head(h), (self.config.patch, self.config.patch))


def plane_stem(planes: int, config: TokensConfig) -> nn.Conv2d:
    """A convolution without bias from planes to the first activation, a patch to a position."""
    return nn.Conv2d(planes, config.channels, config.patch, config.patch, bias=False)


class TokenEncoder(nn.Module):
    """forward: (z_tau, log_snr_tau, label) -> ((its activation at the light width, z_tau), logits or None)."""

    def __init__(self, config: TokensConfig, light: TokensConfig) -> None:
        super().__init__()
        check_tokens(config, light)
        self.net = TokenTransformer(config)
        self.projections = nn.ModuleList([nn.Conv2d(config.channels, light.channels, 1, bias=False)])

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """z: (B, V, H, W) one-hot; log_snr: (B,). Features: (B, light C, H / patch, W / patch) and (B, V, H, W)."""
        h = self.net.trunk(z, self.net.embedding(log_snr, label))
        return (self.projections[0](h), self.net.tokens(z)), None if self.net.head is None else self.net.predict(h)


class LightTokens(LightNetwork):
    """A small transformer, to whose first activation a feature is added."""

    def __init__(self, config: TokensConfig) -> None:
        super().__init__()
        self.net = TokenTransformer(replace(config, head=True))
        self.tau = NoiseEmbedding(config.embedding)
        self.changed = plane_stem(1, config)

    def joined(
        self, z: Tensor, log_snr: Tensor, label: Tensor | None, features: Features, tau: Tensor, present: Tensor | None
    ) -> Tensor:
        """z: (B, V, H, W) one-hot."""
        feature, z_tau = features
        changed = (self.net.tokens(z) - z_tau).abs().sum(1, keepdim=True) / 2  # 1 where a token did
        if present is not None:
            changed = changed * present.to(z.dtype)[:, None, None, None]
        added = feature + self.changed(changed.to(feature.dtype))
        return self.net.predict(self.net.trunk(z, self.net.embedding(log_snr, label) + tau, added))


def check_tokens(encoder: TokensConfig, light: TokensConfig) -> None:
    """Raise ValueError, with the differences, unless a light network can read this encoder's context."""
    require_same_fields(encoder, light, "shape", "patch", "num_classes", "noise")
