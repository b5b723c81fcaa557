"""A network of another library as the light one: a heavy network's feature joins it after one of its parts.

    part's output + feature + embedding(log_snr_tau)

The embedding begins at zero; a row without a context gets neither. Without features it is that network alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from dualrate.foreign.network import ForeignNetwork
from dualrate.networks.blocks import NoiseEmbedding
from dualrate.networks.dual import of_present


class JoinedLight(nn.Module, ABC):
    """forward: (z_t, log_snr_t, label, features, log_snr_tau, present) -> v. width: channels of the feature."""

    def __init__(self, net: ForeignNetwork, width: int) -> None:
        super().__init__()
        self.net, self.tau = net, NoiseEmbedding(width)
        for weight in self.tau.mlp[-1].parameters():
            nn.init.zeros_(weight)

    @property
    @abstractmethod
    def place(self) -> nn.Module:
        """The part of the network to whose output the feature, the first one, is added."""

    @abstractmethod
    def spread(self, tau: Tensor) -> Tensor:
        """(B, width), as the feature broadcasts."""

    def forward(
        self,
        z: Tensor,
        log_snr: Tensor,
        label: Tensor | None,
        features: tuple[Tensor, ...] = (),
        log_snr_tau: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """z: (B, C, H, W); log_snr, log_snr_tau: (B,); present: (B,) bool, None if every row's context is there."""
        if log_snr_tau is None:
            return self.net(z, log_snr, label)
        added = features[0] + self.spread(of_present(self.tau(log_snr_tau), present))

        def join(part: nn.Module, given: Any, output: Tensor) -> Tensor:
            return output + added

        hook = self.place.register_forward_hook(join)
        try:
            return self.net(z, log_snr, label)
        finally:
            hook.remove()
