"""Which way a flow network's time runs, found by asking it.

At the noise end x_hat is a blur that hardly knows z. A network that is told the wrong end takes noise for an image, and
its x_hat follows z, or is the noise that it finds in that image. So of the four conventions (either end of time may be
noise, either sign of u) the right one has the least response

    |x_hat(z) - x_hat(z')|^2 / |z - z'|^2,   z, z' ~ N(0, I) at log-SNR -4

which for data of variance c^2 is about (0.13 c^2)^2, and more than 1 for the others where c is below 1, as it is for
all but the coarsest parts of images and latents. Four calls of the network, of two rows each.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import torch

from dualrate.diffusion.prediction import x_from_v
from dualrate.diffusion.values import Shape
from dualrate.from_diffusers.network import ForeignNetwork
from dualrate.from_diffusers.schedulers import Convention, Flow
from dualrate.system.device import own_defaults

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
            x_hat = x_from_v(z, asked(z, log_snr, None if not network.num_classes else _first(z)), log_snr)
            found[asked.convention] = float((x_hat[0] - x_hat[1]).square().sum() / (z[0] - z[1]).square().sum())
    return found


def _first(z: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(z), dtype=torch.int64, device=z.device)


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
