"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): blocks that do not keep what the backward pass needs.

They compute it again then, with the same dropout masks: the same numbers for less memory, and one more forward of these
blocks. Most memory is that of the finest levels, most time often not, hence the side of the maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dualrate.networks.blocks import Block, blocks_of


def recompute(networks: Iterable[nn.Module], side: int) -> None:
    """Have the blocks of networks compute again what they are called with on maps of this side, or a larger one."""
    for network in networks:
        for block in blocks_of(network):
            block.forward = partial(_forward, block, block.forward, side)


def _forward(block: Block, forward: Callable[..., Tensor], side: int, h: Tensor, emb: Tensor) -> Tensor:
    # in evaluation mode a method keeps dropout off, for this call only: the backward pass would turn it on
    if h.shape[-1] < side or not block.training or not torch.is_grad_enabled():
        return forward(h, emb)
    again = checkpoint(forward, h, emb, use_reentrant=False)
    assert isinstance(again, Tensor)
    return again
