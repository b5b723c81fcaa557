"""Which precision networks run in; under autocast weights held in bfloat16, and the parts in float32 nevertheless.

Autocast casts the weights of linear layers and convolutions wherever they are used; it keeps the result only of weights
that require gradients, and only until its block ends. A network that samples has none of those: 72 of the 170 operators
of a light call were casts. Held in bfloat16 the weights have the same bits, and are cast once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from dualrate.config.ranges import Precision
from dualrate.machine.device import pays

Value = TypeVar("Value")


def in_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether matrix products are in bfloat16 there."""
    return pays(device) if precision == "auto" else precision == "bfloat16"


def no_autocast(h: Tensor) -> AbstractContextManager[object]:
    """Within it what is done with h is done in its own precision.

    Nothing where autocast is off: what is compiled from that alone is found in the cache again.
    """
    device = h.device.type
    if h.is_meta or not torch.is_autocast_enabled(device):  # torch cannot ask for `meta`
        return nullcontext()
    return torch.autocast(device, enabled=False)


class InFloat32(nn.Module):
    """Of a layer's base classes the first: it then runs in the precision of its weights, whatever autocast says."""

    def forward(self, input: Tensor) -> Tensor:
        h = input.to(next(self.parameters()).dtype)
        with no_autocast(h):
            return super().forward(h)


def cast_layers(network: nn.Module) -> Iterator[nn.Module]:
    """The linear layers and convolutions, whose weights autocast casts, but for those within `InFloat32`."""
    if isinstance(network, InFloat32):
        return
    if isinstance(network, (nn.Linear, nn.Conv2d)):
        yield network
    for part in network.children():
        yield from cast_layers(part)


def copied(value: Value, network: nn.Module, *, bfloat16: bool) -> Value:
    """A copy of what holds the network or parts of it, which shares the network's weights.

    bfloat16: but for those of `cast_layers`, which are bfloat16 then, without gradient
    """
    held: dict[int, object] = {id(part): part for part in (*network.parameters(), *network.buffers())}
    for layer in cast_layers(network) if bfloat16 else ():
        for weight in layer.parameters(recurse=False):
            held[id(weight)] = nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
    return copy.deepcopy(value, held)
