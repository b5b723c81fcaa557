"""Parameters that do not train for a while: `frozen`, the one way to switch them off and on again; `at_rest` stills
dropout too.

A frozen parameter gets no gradient, so an optimiser that holds it keeps no state for it and leaves it alone, weight
decay included, and its moving average stays where it is. The gradient with respect to the module's *inputs* still
flows: `torch.no_grad` is the stronger tool where not even that is wanted.

Only the `requires_grad` flags change: no parameter is replaced, cast or moved. The block may hold a network's first
forward: autocast keeps 16-bit copies only of weights that require gradients, so a frozen call leaves none behind; and
gathered weights of networks that processes hold together (FSDP) take the flags of their parts at every gathering.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


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
