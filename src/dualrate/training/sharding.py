"""Weights that several processes hold together: torch's FSDP2 (`fully_shard`), a part of every weight in each.

    shard      replaces the parameters of networks by parts of them; so come gradients, states of Adam and averages
    gathered   within the block networks hold whole weights, for what a single process does with them
    whole      tensors as a checkpoint holds them; in_parts: the way back

A unit is a `Block`, or what is left of a network. `forward` gathers the weights of a unit from the other processes and
drops them behind it, the backward pass gathers them again, and adds up the gradients: each process is left with the sum
of its part. So a method may do with its networks what it likes, as long as it calls them through `forward`, as often
on every process (methods/method.py), and its phases name the parameters that the networks have then.

Where `World.mesh` is None all of this does nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from dualrate.machine.world import World
from dualrate.networks.blocks import blocks_of

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def shard(networks: Iterable[nn.Module], world: World) -> None:
    """Have the processes of a row of `world.mesh` hold the weights of networks together. They must be the same in all.

    The weights are put in the contiguous memory format, in which alone they can be cut.
    """
    if world.mesh is None:
        return
    from torch.distributed.fsdp import fully_shard  # a slow import, of use here only

    # of outputs that are views, which must not be changed in place: nothing here changes what a network returned
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    for network in networks:
        network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        for unit in (*blocks_of(network), network):
            sharded = fully_shard(unit, mesh=world.mesh, reshard_after_forward=True)
            sharded.set_gradient_divide_factor(1.0)  # losses are weighted by rows: gradients are added up
            sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def shard_frozen(network: nn.Module, world: World) -> None:
    """As `shard`, of a network that is called and never trained."""
    shard([network.requires_grad_(False)], world)
    if forget := getattr(network, "reset_iter_state", None):  # its calls are noted for a backward pass: none comes
        network.register_forward_hook(lambda module, inputs, output: forget())


@contextmanager
def gathered(network: nn.Module, world: World) -> Iterator[None]:
    """Within the block every process has the whole weights, to be read by `forward` alone; all leave it together.

    All processes must enter. Within it nobody waits for another one, so any of them may call the network.
    """
    if world.mesh is None:
        yield
        return
    world.any(False)  # the leader may still be writing, for longer than the device's operations wait
    units = _units(network)
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        world.any(False)
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(True, recurse=False)


def _units(network: nn.Module) -> list[FSDPModule]:
    from torch.distributed.fsdp import FSDPModule

    return [part for part in network.modules() if isinstance(part, FSDPModule)]


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is held in parts, as one; any other as it is. All processes must call it."""
    gather = getattr(tensor, "full_tensor", None)  # of a DTensor alone, whose import is slow
    return tensor if gather is None else cast("Tensor", gather())


def collected(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """As `whole`, one tensor after another, those that were in parts on the CPU; none where they are not kept."""
    found = {}
    for name in sorted(tensors):  # an optimiser's state that was loaded has another order in every process
        one = whole(tensors[name])
        if keep:
            found[name] = one if one is tensors[name] else one.cpu()
    return found


def in_parts(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, held as `like` is."""
    mesh = getattr(like, "device_mesh", None)
    if mesh is None or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    placements = cast("DTensor", like).placements
    parts = distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)
    return parts.clone()  # else it is a view that keeps all of the tensor


def all_in_parts(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As `in_parts`, by name; a name that `like` has not is left as it is."""
    return {name: in_parts(tensor, like[name]) if name in like else tensor for name, tensor in tensors.items()}
