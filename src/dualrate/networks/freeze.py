"""Parameters that do not train for a while: `frozen`, the one way to switch them off and on again; `at_rest` stills
dropout too.

A frozen parameter gets no gradient, so an optimiser that holds it keeps no state for it and leaves it alone, weight
decay included, and its moving average stays where it is. The gradient with respect to the module's *inputs* still
flows: `torch.no_grad` is the stronger tool where not even that is wanted.

Only the `requires_grad` flags change: no parameter is replaced, cast or moved. The block may hold a network's first
forward:

    under autocast   it keeps 16-bit copies only of weights that require gradients, so a frozen call leaves none behind
    sharded (FSDP)   the first forward settles in which precision gradients arrive, by the parameters that train then;
                     if all are frozen, by none, and later updates fail. So this is settled again after the block, at
                     the cost of gathering each sharded module once
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import distributed, nn


@contextmanager
def frozen(*modules: nn.Module, but: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Within the block no parameter of `modules` requires a gradient; afterwards, come what may, each is as before.

    but: parameters that are left alone
    """
    spared = {id(parameter) for parameter in but}
    found = [parameter for module in modules for parameter in module.parameters() if id(parameter) not in spared]
    flags = [(parameter, parameter.requires_grad) for parameter in found]
    try:
        for parameter, _ in flags:
            _set(parameter, False)
        yield
    finally:
        for parameter, flag in flags:
            _set(parameter, flag)
        for module in modules:
            _settle(module)


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Within the block the module is frozen and in evaluation mode; afterwards each part of it is as before."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with frozen(module):
            yield
    finally:
        for part, training in modes:
            part.training = training


def _set(parameter: nn.Parameter, flag: bool) -> None:
    if parameter.requires_grad != flag:  # a needless call costs more than the look
        parameter.requires_grad_(flag)


def _settle(module: nn.Module) -> None:
    """Makes every sharded part of a module look at its flags again."""
    if not distributed.is_available() or not distributed.is_initialized():
        return
    from torch.distributed.fsdp import FSDPModule  # a slow import, of use to distributed runs only

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.unshard()
            part.reshard()
