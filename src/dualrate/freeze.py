"""Parameters that do not train for a while: `frozen`, the one way to switch them off and on again.

A frozen parameter gets no gradient, so an optimiser that holds it keeps no state for it and leaves it alone, weight
decay included, and its moving average stays where it is. The gradient with respect to the module's *inputs* still
flows: `torch.no_grad` is the stronger tool where not even that is wanted.

Only the `requires_grad` flags change: no parameter is replaced, cast or moved. So a block is safe before the first
forward of a sharded network, whose gathered parameters take their flag from the shards, and inside autocast, which
keeps 16-bit copies of weights that require gradients only: a frozen call leaves none behind for a later call to use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Within the block no parameter of `modules` requires a gradient; after it, whatever happened, each is as before.

    Flags are put back by name too, as a sharded network may hold a parameter's gathered form by then.
    """
    held = [{name: (p, p.requires_grad) for name, p in module.named_parameters()} for module in modules]
    flat = [entry for parameters in held for entry in parameters.values()]
    try:
        for parameter, _ in flat:
            _set(parameter, False)
        yield
    finally:
        for module, parameters in zip(modules, held, strict=True):
            for name, parameter in module.named_parameters():
                if name in parameters:
                    _set(parameter, parameters[name][1])
        for parameter, flag in flat:
            _set(parameter, flag)


def _set(parameter: nn.Parameter, flag: bool) -> None:
    if parameter.requires_grad != flag:  # a needless call costs more than the look
        parameter.requires_grad_(flag)
