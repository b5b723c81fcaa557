"""A smaller model of the same data as the light network, beside the heavy one.

    heavy, at tau    feature = sum over taps of project(norm(block's output)) + pixels(x_hat)
    light, at t      stem(z_t) + feature + embedding(log_snr_tau), and on as it always did

The projections begin at zero (as those of Zhang et al. 2023, arXiv 2302.05543), so before training the pair is the
heavy model at heavy steps and the smaller one between them. Each is asked at the same log-SNR in its own convention, so
their schedules and predictions may differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dualrate.diffusion.schedule import Schedule
from dualrate.foreign.config import ForeignConfig
from dualrate.foreign.conventions import Discrete
from dualrate.foreign.joined import JoinedLight
from dualrate.foreign.network import ForeignNetwork
from dualrate.foreign.taps import Stem, Tap, TappedEncoder

BEYOND = 0.5  # in log-SNR: so much more noise is none that counts


def stem_of(net: ForeignNetwork, side: int) -> Stem:
    """Of a network of images of that side. Raises what `convolution_of` raises."""
    convolution = convolution_of(net)
    patch = convolution.stride[0]
    return Stem(convolution.in_channels, convolution.out_channels, side // patch, patch)


def convolution_of(net: ForeignNetwork) -> nn.Conv2d:
    """Its stem's. Raises ValueError for a class whose stem is not known."""
    if net.kind.stem is None:
        raise ValueError(
            f"as a light network DiTTransformer2DModel and UNet2DModel are known, got {type(net.net).__name__}: leave "
            "it out, for a fresh one"
        )
    return net.kind.stem(net.net)


def check_reach(light: ForeignConfig, schedule: Schedule) -> None:
    """Raises ValueError where a network is asked for eps of more noise than it knows: x_hat divides by alpha there."""
    spoken, end = light.convention, torch.ones((), dtype=torch.float64)
    if not isinstance(spoken, Discrete) or spoken.predicts != "epsilon":
        return
    known, asked = (float(one.log_snr(end)) for one in (spoken.betas, schedule))
    if asked < known - BEYOND:
        raise ValueError(
            f"{light.source} predicts eps down to log-SNR {known:.3g}, the heavy model is trained down to {asked:.3g}, "
            "where that says nothing of x: name a light network that predicts v or x, a flow, or one of that schedule"
        )


class SiblingEncoder(TappedEncoder):
    """With projections that begin at zero."""

    def __init__(self, net: ForeignNetwork, stem: Stem, taps: Sequence[Tap]) -> None:
        super().__init__(net, stem, taps)
        for weight in (*self.projections.parameters(), *self.pixels.parameters()):
            nn.init.zeros_(weight)


class SiblingLight(JoinedLight):
    """Joined at the stem. x_hat, which an encoder hands over too, stays aside."""

    def __init__(self, net: ForeignNetwork) -> None:
        super().__init__(net, convolution_of(net).out_channels)

    @property
    def place(self) -> nn.Module:
        return convolution_of(self.net)

    def spread(self, tau: Tensor) -> Tensor:
        return tau[..., None, None]
