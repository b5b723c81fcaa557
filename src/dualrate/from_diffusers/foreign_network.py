"""A network of another library as one of ours: (z, log_snr, label) -> v. Which way its time runs is found by asking.

At the noise end x_hat is a blur that hardly knows z. A network that is given the wrong end takes noise for an image,
and its x_hat follows z, or is the noise that it finds in that image. Either end of time may be noise, and u may have
either sign. Of these four conventions the right one has the least response

    |x_hat(z) - x_hat(z')|^2 / |z - z'|^2,   z, z' ~ N(0, I) at log-SNR -4

which for data of variance c^2 is about (0.13 c^2)^2. It is more than 1 for the others where c is below 1, as it is for
all but the coarsest parts of images and latents. It costs four calls of the network, of two rows each.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dualrate.diffusion.prediction import x_from_v
from dualrate.diffusion.values import Shape
from dualrate.from_diffusers.cut import CutNetwork, CutTokens
from dualrate.from_diffusers.kinds import OPTIONAL, Kind, by_place, rows_of
from dualrate.from_diffusers.schedulers import Convention, Flow
from dualrate.system.device import own_defaults


class ForeignNetwork(nn.Module):
    """forward: (z, log_snr, label) -> v, float32 at least.

    net:         called as its kind says, in evaluation mode whatever the mode of this one: a DiT in training mode drops
                 labels of its own accord, in every block anew
    embeddings:  of a model of texts what a label stands for: tables (K + 1, ...) by the name of the argument; the last
                 row is the empty text, the null class
    num_classes: labels without the null class, 0 of an unconditional model; null: whether label `num_classes` is one
    A learned variance, a second half of the output's channels, is dropped.
    """

    def __init__(
        self,
        net: nn.Module,
        kind: Kind,
        convention: Convention,
        *,
        num_classes: int = 0,
        null: bool = False,
        embeddings: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.kind, self.convention = net.eval(), kind, convention
        self.num_classes, self.null = num_classes, null
        self.tables = tuple(embeddings or ())
        _check_embeddings(kind, embeddings or {})
        for name, table in (embeddings or {}).items():
            self.register_buffer(f"of_{name}", table)
        if embeddings:
            self.num_classes, self.null = len(next(iter(embeddings.values()))) - 1, True

    @property
    def blocks(self) -> list[nn.Module]:
        """The parts of the network that run one after another, in that order."""
        return self.kind.blocks(self.net)

    def cut(self, outer: int) -> CutNetwork:
        """This network, its row of blocks apart. Raises ValueError where that cannot be, as `CutNetwork`."""
        return CutNetwork(self, self.kind.row, outer)

    def token_cut(self, scores: bool) -> CutTokens:
        """This network, its blocks in tokens. Raises ValueError where that cannot be, as `CutTokens`."""
        return CutTokens(self, self.kind.row, scores)

    def train(self, mode: bool = True) -> ForeignNetwork:
        super().train(mode)
        self.net.eval()
        return self

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> Tensor:
        """z: (B, C, H, W); log_snr: (B,); label: (B,) int64 or None. Raises ValueError for an output of other shape."""
        own = next(self.net.parameters()).dtype
        embeddings = {name: self.get_buffer(f"of_{name}") for name in self.tables}
        if not self.num_classes:
            label = None
        elif label is None and self.null:
            label = torch.full((z.shape[0],), self.num_classes, device=z.device)
        given = rows_of(embeddings, label, z.shape[0])
        time = self.convention.time(log_snr)
        output = self.kind.call(self.net, self.convention.state(z, log_snr).to(own), time, label, given).to(z.dtype)
        if output.shape[1] == 2 * z.shape[1]:
            output = output[:, : z.shape[1]]
        if output.shape[1:] != z.shape[1:]:
            raise ValueError(
                f"for a state of {tuple(z.shape[1:])} this {type(self.net).__name__} returned {tuple(output.shape[1:])}"
                ": expected as many channels, or twice as many with a learned variance"
            )
        return self.convention.v(z, output, log_snr)


def _check_embeddings(kind: Kind, embeddings: Mapping[str, Tensor]) -> None:
    missing = [name for name in kind.takes if name not in embeddings and name not in OPTIONAL]
    unknown = [name for name in embeddings if name not in kind.takes]
    if missing or unknown:
        raise ValueError(
            f"embeddings are tables (K + 1, ...) of {', '.join(kind.takes) or 'nothing'}: a row for each of K texts, "
            f"then that of the empty one; missing {missing}, unknown {unknown}"
        )
    if len({len(table) for table in embeddings.values()}) > 1:
        shapes = {name: tuple(table.shape) for name, table in embeddings.items()}
        raise ValueError(f"embeddings have a row for each text, so all as many, got {shapes}")


def labels_of(kind: Kind, config: Mapping[str, Any], num_classes: int | None) -> dict[str, Any]:
    """num_classes and null of `ForeignNetwork`. Raises ValueError for more classes than labels."""
    labels = kind.classes(config) if kind.call is not by_place else num_classes or 0
    own = replace(kind, null=True) if kind.call is by_place else kind
    if num_classes is None or num_classes == labels:
        return {"num_classes": labels, "null": own.null and labels > 0}
    if own.null:
        raise ValueError(
            f"this network has {labels} classes and its null class after them, got num_classes {num_classes}: drop it"
        )
    if num_classes != labels - 1 or not num_classes:
        raise ValueError(
            f"this network has {labels} labels, so {labels} classes, or {labels - 1} if the last label is the null "
            f"class, got {num_classes}"
        )
    return {"num_classes": num_classes, "null": True}


def shape_of(config: Mapping[str, Any]) -> Shape:
    """(C, H, W) of a configuration. Raises ValueError where it does not say."""
    channels, side = config.get("in_channels"), config.get("sample_size")
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    if not (channels and height and width):
        raise ValueError(
            f"in_channels {channels} and sample_size {side} say no shape: write them into its config.json, or pass "
            "shape=(C, H, W)"
        )
    return int(channels), int(height), int(width)


LOG_SNR = -4.0
BLUR = 0.25  # response of what is no blur any more


@own_defaults()
@torch.no_grad()
def responses(network: ForeignNetwork, shape: Shape, flow: Flow) -> dict[Convention, float]:
    """Of the four conventions, `flow` first."""
    device = next(network.parameters()).device
    z = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    log_snr = torch.full((2,), LOG_SNR, device=device)
    asked, found = copy.copy(network), {}
    for noise_at in (flow.noise_at, 1 - flow.noise_at):
        for predicts in sorted(("eps - x", "x - eps"), key=lambda text: text != flow.predicts):
            asked.convention = replace(flow, noise_at=noise_at, predicts=predicts)
            label = torch.zeros(2, dtype=torch.int64, device=device) if network.num_classes else None
            x_hat = x_from_v(z, asked(z, log_snr, label), log_snr)
            found[asked.convention] = float((x_hat[0] - x_hat[1]).square().sum() / (z[0] - z[1]).square().sum())
    return found


def check_direction(network: ForeignNetwork, shape: Shape) -> None:
    """Raises ValueError where another direction than the network's convention fits; warns where none does.

    A table of betas has no direction to mistake.
    """
    flow = network.convention
    if not isinstance(flow, Flow):
        return
    found = responses(network, shape, flow)
    best = min(found, key=lambda convention: found[convention])
    if found[best] > BLUR:
        warnings.warn(
            f"at the noise end x_hat follows z whatever the direction of time (response {found[best]:.2g} at best): "
            "this network seems untrained, so its direction is not known",
            stacklevel=3,
        )
    elif found[flow] > 2 * found[best]:
        raise ValueError(
            f"time runs another way: at the noise end x_hat follows z under {flow} (response {found[flow]:.2g}), and "
            f"is a blur under {best} ({found[best]:.2g}): pass convention=, 'repa' or 'sit', or this one itself"
        )
