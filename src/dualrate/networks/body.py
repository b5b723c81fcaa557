"""`BodyConfig`: the interface of networks of images. Single-rate models, encoders and light networks are made of any
(`uvit.UViTConfig`, `dit.DiTConfig`, `dis.DiSConfig`).

Such a network has levels, each a map (B, C_i, H_i, W_i); a flat one has one. Its module has

    embedding(log_snr, label) -> emb (B, E)
    called(z, log_snr, emb, added) -> v         added: of the first levels; it joins where the level begins
    features(z, log_snr, label, added) -> (the last activation of every level, finest first; v, or None without a head)
    forward(z, log_snr, label, added) -> v
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Self

from torch import nn

from dualrate.config.ranges import Ranged
from dualrate.diffusion.context import Shape


class BodyConfig(Ranged, ABC):
    """A network of images. A subclass is a frozen dataclass."""

    image_channels: int
    num_classes: int
    patch: int
    embedding: int
    """Width of the embedding of noise level and label."""
    head: bool
    """Whether the network has a head that predicts v. A context encoder may do without."""
    periodic = across = poles = False
    """Whether opposite edges meet; or the left and right ones alone; with these, whether rows go on over the poles."""

    @property
    def wrapped(self) -> tuple[bool, bool]:
        """Whether the upper and lower edges meet, and the left and right ones."""
        return self.periodic, self.periodic or self.across

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """(C, H, W) of an image."""

    @property
    @abstractmethod
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, finest first."""

    @property
    def num_levels(self) -> int:
        return len(self.widths)

    def along(self, count: int) -> tuple[int, int]:
        """This count down and across."""
        return count, count

    @abstractmethod
    def sides(self, level: int) -> tuple[int, int]:
        """Positions down and across at a level."""

    @abstractmethod
    def with_dropout(self, dropout: float) -> Self:
        """A copy with this rate of dropout in all blocks."""

    def with_head(self, head: bool) -> Self:
        """A copy with a head, or without."""
        return replace(self, head=head)  # pyright: ignore[reportArgumentType]

    @abstractmethod
    def lighter(self) -> Self:
        """A light network beside it, in proportion to it."""

    @abstractmethod
    def network(self) -> nn.Module:
        """The network, with random weights (module docstring)."""

    def coarsest(self, network: nn.Module) -> nn.ModuleList:
        """The blocks of the network's last level, (h, emb) -> h each, to which more may be added.

        Raises ValueError for a network that runs no such list.
        """
        raise ValueError(f"frames see each other in a U-ViT or a DiT, got {type(self).__name__}: take that")
