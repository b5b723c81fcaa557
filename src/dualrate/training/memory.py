"""What a training needs of a device: memory and multiply-adds of an iteration, found by running it without numbers.

`weightless` makes networks whose tensors have shapes, types and strides and no content (torch's fake tensors), so that
an iteration of any size runs in seconds on any machine. `pass_cost` runs the loss of a phase on them, and the backward
pass, and counts

    activations   the largest number of bytes that were held at once beyond weights and gradients: what the backward
                  pass needs, copies of weights in bfloat16, and what comes and goes
    flops         of matrix products and convolutions, forward and backward, two a multiply-add
    launches      operators that are no views: where nothing is compiled a GPU's host launches each

What a kernel needs inside (cuDNN's workspaces) is not seen. Attention is the fused kernel, and norms and resizing are
in float32 where autocast decides, as on a GPU, and not as on a CPU.

Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): blocks that do not keep what the backward pass needs.

They compute it again then, with the same dropout masks: the same numbers for less memory, and one more forward of these
blocks. Most memory is that of the finest levels, most time often not, hence the side of the maps.

Compilation in training, block by block: equal blocks share what is compiled, and weights may be held in parts.

Each process compiles for itself, at the first calls; what is in the cache (system/device.py) it takes from there.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.nn.modules import module as modules
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Batch
from dualrate.networks.blocks import Block, as_on_gpu, blocks_of, frozen
from dualrate.system.device import compile_calls
from dualrate.training.method import Method, Phase

IN_FLOAT32 = {F.layer_norm, F.group_norm, F.rms_norm, F.interpolate}
ROWS = (8, 16)  # of the two passes from which every number of rows follows


@dataclass(frozen=True)
class PassCost:
    """Of one forward and backward pass. activations: bytes, of which `fixed` do not grow with the images."""

    fixed: float
    per_image: float
    flops_per_image: float
    launches: int

    def activations(self, images: int) -> float:
        return self.fixed + self.per_image * images


@contextmanager
def weightless() -> Iterator[list[nn.Module]]:
    """Networks made within the block have tensors without content after it. Gives the modules that are left of them."""
    found: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()

    def note(module: nn.Module, name: str, value: object) -> None:
        found[id(module)] = module

    hooks = (
        modules.register_module_parameter_registration_hook(note),
        modules.register_module_buffer_registration_hook(note),
    )
    made: list[nn.Module] = []
    try:
        with torch.device("meta"):
            yield made
    finally:
        for hook in hooks:
            hook.remove()
    gc.collect()
    made += found.values()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for module in made:
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(_fake(value, mode), value.requires_grad)
        for name, value in module._buffers.items():
            module._buffers[name] = None if value is None else _fake(value, mode)


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


def widen(networks: Iterable[nn.Module]) -> None:
    """Have the blocks of networks run in `Widened` of their own: computed again, they do after its block has ended."""
    for network in networks:
        for block in blocks_of(network):
            block.forward = partial(_widened, block.forward)


def _widened(forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    with Widened():
        return forward(*inputs)


def pass_cost(method: Method, phase: Phase, shape: Sequence[int], iteration: int, *, bfloat16: bool) -> PassCost:
    """Of a phase of a method whose networks are `weightless`. shape: (C, H, W) of an image.

    Two passes, over ROWS images, say what grows with the images and what does not.
    """
    few, many = ROWS
    with frozen(method.networks, method.auxiliaries, but=phase.parameters):
        low, high = (_one_pass(phase, shape, iteration, count, bfloat16) for count in ROWS)
    per_image = (high.most - low.most) / (many - few)
    return PassCost(high.most - many * per_image, per_image, high.flops / many, high.launches)


def _one_pass(phase: Phase, shape: Sequence[int], iteration: int, rows: int, bfloat16: bool) -> Counted:
    """Of this many images; its bytes are those beyond weights and gradients."""
    batch = Batch(torch.zeros(rows, *shape), torch.zeros(rows, dtype=torch.int64), torch.arange(rows))
    for parameter in phase.parameters:
        parameter.grad = torch.zeros_like(parameter)  # those of the micro-batches before
    with torch.random.fork_rng([]), Counted(phase.parameters) as counted, Widened(), as_on_gpu():
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            total = phase.loss(batch, iteration, Draws(0, batch.sample)).total
        total.backward()
    return counted


class Widened(TorchFunctionMode):
    """Of networks that are not ours: norms and resizing in float32 where autocast decides, as CUDA's does."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


class Counted(TorchDispatchMode):
    """Counts what operations within the block do: FLOPs, launches, and the bytes of what they made, while it lives.

    most: bytes at any time. (torch's own counter of FLOPs keeps tensors alive where blocks are computed again.)
    """

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.most = self.flops = self.launches = 0
        self.seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        for tensor in before:
            self.seen.update(one.untyped_storage() for one in (tensor, tensor.grad) if one is not None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        self.launches += func.namespace == "aten" and not func.is_view
        if formula := FORMULAS.get(func.overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=made)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen.add(storage)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())
        return made

    def _gone(self, size: int) -> None:
        self.now -= size


FORMULAS = flop_registry | {  # the fused attention of CPUs, which torch does not know, costs what that of GPUs does
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention
    ],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ],
}


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


def compile_blocks(networks: Iterable[nn.Module]) -> None:
    """Have the blocks of networks compiled; a network without blocks as a whole."""
    for network in networks:
        for part in blocks_of(network) or [network]:
            compile_calls(part)
