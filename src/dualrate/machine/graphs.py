"""Calls of a network as CUDA graphs: recorded once for inputs of a kind, and launched as a whole from then on.

A light network launches some hundred kernels a call; a recording is one launch. It reads its inputs from buffers of its
own, which are filled before, and what it leaves in others is copied, since the next launch overwrites it.

One call is recorded, not all the steps between two heavy calls: it is the same under every plan, sampler and guidance,
and a step adds only a few kernels to it. `torch.compile(mode="reduce-overhead")` does not do: its outputs are
overwritten by the next call, and a context lives through many.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from dualrate.machine.device import carries_derivative, memory_shortage

KEPT = 8  # recordings of a network, the latest used: of its batch sizes, with and without a context
WARM_UPS = 3  # libraries choose kernels and workspaces in the first calls, which cannot be recorded

Call = Callable[[], Any]
Recorded = tuple[Callable[[], None], Any]  # what launches a call again, and what it returned: each launch makes it anew
Record = Callable[[Call, torch.device], Recorded]


def record(call: Call, device: torch.device) -> Recorded:
    """The kernels of a call on a GPU. Raises ValueError for another device, and as `refusing`."""
    if device.type != "cuda":
        raise ValueError(f"CUDA graphs need a GPU, and this is the {device}: draw without graphs")
    with torch.cuda.device(device):
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                call()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # `here` again behind it, which a recording that fails does not see to
        with refusing(), torch.cuda.stream(here), torch.cuda.graph(graph, stream=aside):
            output = call()
    return graph.replay, output


@contextmanager
def refusing() -> Iterator[None]:
    """Raises ValueError for what a call does in it that a recording does not allow, such as wait for a value.

    Raises torch.OutOfMemoryError for a shortage of memory.
    """
    try:
        yield
    except RuntimeError as error:
        first = error
        while isinstance(first.__context__, RuntimeError):  # the recording's own end fails then, too
            first = first.__context__
        if shortage := memory_shortage(first):
            raise torch.OutOfMemoryError(shortage) from error
        what = (str(first).strip().splitlines() or [type(first).__name__])[0]
        raise ValueError(
            f"the calls of this network cannot be recorded as CUDA graphs ({what}): draw without graphs"
        ) from error


def graph_calls(network: nn.Module, record: Record = record) -> None:
    """Has a network's calls recorded, but for those of training and those that ask for a derivative.

    The network is on a GPU, as are its inputs; its weights stay where they are; its course depends on nothing but what
    kind its inputs are of: all but their numbers. Inputs of another kind are recorded anew.
    Raises ValueError from a call that cannot be recorded, as `record` says.
    """
    eager, recordings = network.forward, OrderedDict[Hashable, _Recording]()

    def forward(*inputs: Any) -> Any:
        leaves, structure = tree_flatten(inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if network.training or torch.is_grad_enabled() or carries_derivative(tensors):
            return eager(*inputs)
        device = tensors[0].device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        kind = (torch.is_inference_mode_enabled(), precision, structure, *map(_kind, leaves))
        if kind not in recordings:
            others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

            def call(buffers: Sequence[Tensor]) -> Any:
                for i, buffer in zip(places, buffers, strict=True):
                    others[i] = buffer
                with torch.autocast(device, precision, enabled=precision is not None, cache_enabled=False):
                    return eager(*tree_unflatten(others, structure))  # casts that were kept would be gone at a launch

            recordings[kind] = _Recording(call, tensors, record)
        recordings.move_to_end(kind)
        while len(recordings) > KEPT:
            recordings.popitem(last=False)
        return recordings[kind](tensors)

    network.forward = forward


def _kind(leaf: object) -> Hashable:
    """All of an input but a tensor's numbers."""
    return (leaf.shape, leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


class _Recording:
    """A call with inputs of one kind."""

    def __init__(self, call: Callable[[Sequence[Tensor]], Any], tensors: Sequence[Tensor], record: Record) -> None:
        self.buffers = [tensor.clone() for tensor in tensors]
        self.held: list[tuple[weakref.ref[Tensor], int] | None] = [None] * len(tensors)
        self.launch, self.output = record(lambda: call(self.buffers), tensors[0].device)

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        for i, tensor in enumerate(tensors):
            self._fill(i, tensor)
        self.launch()
        return tree_map_only(Tensor, torch.clone, self.output)

    def _fill(self, i: int, tensor: Tensor) -> None:
        """Unless the buffer holds these very numbers, as it does of a context's features through many calls."""
        held = self.held[i]
        if held is None or held[0]() is not tensor or held[1] != tensor._version:
            self.buffers[i].copy_(tensor)
            counted = not tensor.is_inference()  # nobody counts the changes of an inference tensor
            self.held[i] = (weakref.ref(tensor), tensor._version) if counted else None
