"""A light network of a model's own first and last blocks, beside the model; what the blocks between made is kept.

    heavy, at tau    h_1, ..., h_L, the tokens after each of L blocks;    context = h_(L-K+1) - h_1
    light, at t      block 1 of z_t, + context + embedding(log_snr_tau), the last K - 1 blocks, the head

At t = tau that is the model itself, and before any training the encoder sharing of Delta-DiT (Chen et al. 2024, arXiv
2406.01125), from where training starts: the embedding begins at zero, the blocks as the model's. The first block is
among them since the head of a DiT takes its conditioning from it. Without a context the blocks stand one on another.

For classes whose blocks run in a row, on tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from dualrate.foreign.config import ForeignConfig
from dualrate.foreign.joined import JoinedLight
from dualrate.foreign.kinds import BLOCKS
from dualrate.foreign.network import ForeignNetwork
from dualrate.foreign.taps import outputs

COUNT = "num_layers"  # of a configuration


def shorter(model: ForeignConfig, blocks: int) -> ForeignConfig:
    """The model with so many blocks. Raises ValueError for a class whose blocks are not in a row, and too many."""
    config = json.loads(model.config)
    if model.kind != "DiTTransformer2DModel":
        raise ValueError(
            f"a light network of a model's own blocks is known for DiTTransformer2DModel, got {model.kind}: leave it "
            "out, for a fresh one"
        )
    if not 2 <= blocks < config[COUNT]:
        raise ValueError(
            f"of {config[COUNT]} blocks 2 to {config[COUNT] - 1} make a light network, the first and the last ones, "
            f"got {blocks}"
        )
    return replace(model, config=json.dumps({**config, COUNT: blocks}, sort_keys=True))


def of_shorter(weights: Mapping[str, Tensor], whole: int, blocks: int) -> dict[str, Tensor]:
    """Of the weights of a network of `whole` blocks, by name, those of its first and its last `blocks - 1`."""
    kept = {0: 0, **{whole - blocks + place: place for place in range(1, blocks)}}
    found = {}
    for name, tensor in weights.items():
        before, is_block, after = name.partition(f"{BLOCKS}.")
        place, _, rest = after.partition(".")
        if not is_block:
            found[name] = tensor
        elif int(place) in kept:
            found[f"{before}{BLOCKS}.{kept[int(place)]}.{rest}"] = tensor
    return found


class OwnEncoder(nn.Module):
    """forward: (z_tau, log_snr_tau, label) -> ((context,), v); context: (B, n, C). blocks: of the light network."""

    def __init__(self, net: ForeignNetwork, blocks: int) -> None:
        super().__init__()
        self.net, self.last = net, len(net.blocks) - blocks

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor]:
        """z: (B, C, H, W); log_snr: (B,)."""
        parts = self.net.blocks
        with outputs([parts[0], parts[self.last]]) as seen:
            v = self.net(z, log_snr, label)
        return (seen[1] - seen[0],), v


class OwnLight(JoinedLight):
    """Joined after the first block."""

    def __init__(self, net: ForeignNetwork) -> None:
        inner: Any = net.net
        super().__init__(net, inner.inner_dim)

    @property
    def place(self) -> nn.Module:
        return self.net.blocks[0]

    def spread(self, tau: Tensor) -> Tensor:
        return tau[:, None]
