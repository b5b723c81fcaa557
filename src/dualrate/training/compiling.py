"""Compilation in training, block by block: equal blocks share what is compiled, and weights may be held in parts.

Each process compiles for itself, at the first calls; what is in the cache (machine/device.py) it takes from there.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from dualrate.machine.device import compile_calls
from dualrate.networks.blocks import blocks_of


def compile_blocks(networks: Iterable[nn.Module]) -> None:
    """Have the blocks of networks compiled; a network without blocks as a whole."""
    for network in networks:
        for part in blocks_of(network) or [network]:
            compile_calls(part)
