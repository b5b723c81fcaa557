"""Times that all rows share, and what is computed of them once.

A time is (B,), one a row, on the device of the states. A plan's time is the same for all rows: it is one float64 number
on the host, expanded to (B,), and its coefficients are numbers on the host, too. `once` makes them when they are first
asked for and remembers them: a step of a sampler then launches no kernel for a coefficient, and never waits for the
device to learn one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

REMEMBERED = 4096  # of each formula: the latest plan of 1,000 steps has them all

P = ParamSpec("P")
Value = TypeVar("Value", bound=Tensor | tuple[Tensor, ...])


def shared_time(t: float, rows: int) -> Tensor:
    """(B,) float64 on the host, one number."""
    return torch.tensor(t, dtype=torch.float64, device="cpu").as_strided(
        (rows,), (0,)
    )  # `expand` to one row has another stride


def expand(value: Tensor, like: Tensor) -> Tensor:
    """A tensor over leading axes with trailing axes of size one, so that it broadcasts against `like`, in its dtype.

    Coefficients are computed in the dtype of the times (float64 in sampling); a state keeps its own. One number for all
    rows, (), is left where it is, on the host: an operator takes it along whatever the device.
    """
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim)).to(like) if value.ndim else value


def is_shared(t: Tensor) -> bool:
    """Whether a time is one number on the host, and nobody asks for its gradient."""
    return not any(t.stride()) and t.device.type == "cpu" and t.dtype == torch.float64 and not t.requires_grad


def once(formula: Callable[P, Value]) -> Callable[P, Value]:
    """A formula (hashable, ..., *times) -> one or several tensors shaped as the times; () where these are shared.

    Then it is evaluated once, in float64 on the host, and remembered by its arguments.
    """

    @lru_cache(REMEMBERED)
    def remembered(of: tuple[Any, ...], times: tuple[float, ...]) -> Any:
        with torch.inference_mode(False), torch.no_grad():  # its tensors serve whatever comes later
            return formula(*of, *(torch.tensor(t, dtype=torch.float64, device="cpu") for t in times))  # pyright: ignore[reportCallIssue]

    @wraps(formula)
    def evaluated(*args: P.args, **kwargs: P.kwargs) -> Value:
        times = [arg for arg in args if isinstance(arg, Tensor)]
        if not all(map(is_shared, times)):
            return formula(*args, **kwargs)
        return remembered(args[: len(args) - len(times)], tuple(t.as_strided((), ()).item() for t in times))

    return evaluated
