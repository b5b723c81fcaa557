"""Calls of networks that requests wait for, and several of them as one."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from dualrate.denoisers.denoiser import read
from dualrate.diffusion.context import Cond, Context, Reuse, for_rows


@dataclass(eq=False)
class Call:
    """A call of a network that a request waits for."""

    drawing: Any  # a Drawing of the engine
    inner: Any  # a Denoiser
    method: str
    bfloat16: bool
    z: Tensor | None  # None: of `read`
    t: Tensor | None
    context: Context
    cond: Cond
    answer: Future[Any] = field(default_factory=Future)

    @property
    def of(self) -> Tensor:
        """Tensor whose rows it is called with."""
        return cast(Tensor, self.cond.given if self.z is None else self.z)

    @property
    def rows(self) -> int:
        return len(self.of)

    @property
    def device(self) -> torch.device:
        return self.of.device

    @cached_property
    def alike(self) -> tuple[object, ...]:
        """Key that is the same for calls which may be a batch."""
        of = self.z, None if self.t is None else (), _outline(self.context), _outline(self.cond)
        return self.method, id(self.inner), self.bfloat16, *map(_outline, of)

    @property
    def condition(self) -> str | None:
        """Digest of all that the result depends on, if that is the condition alone, and a time."""
        y, label = self.cond.given, self.cond.label
        if y is None or not (self.method == "read" or (self.method == "encode" and self.inner.reuse is Reuse.FREE)):
            return None
        label = None if label is None else label[:: max(1, len(label) // len(y))].tolist()
        numbers = y.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes()
        key = self.alike[:3], y.shape, y.dtype, label, None if self.t is None else self.t.tolist()
        return hashlib.sha256(repr(key).encode() + numbers).hexdigest()

    def run(self) -> Any:
        """The network's result, in this thread."""
        if self.method == "read":
            return read(self.inner, self.cond)
        of = (self.z, self.t) if self.method == "encode" else (self.z, self.t, self.context)
        return getattr(self.inner, self.method)(*of, self.cond)


def _outline(value: object) -> object:
    """The shape of a value: of tensors all but their rows."""
    if isinstance(value, Tensor):
        return value.shape[1:], value.dtype, value.device
    if isinstance(value, Context):
        parts = value.features, value.present, value.x_hat, *value.earlier
        return value.tau is None, value.keeps, value.age, *map(_outline, parts)
    if isinstance(value, Cond):
        return tuple(map(_outline, (value.label, value.given, value.features)))
    return tuple(map(_outline, value)) if isinstance(value, tuple) else value


def _merged(join: Callable[[tuple[Tensor, ...]], Tensor], values: Sequence[Any]) -> Any:
    """Tensors, contexts or conditions of several calls as one, tensor by tensor."""
    first = values[0]
    if isinstance(first, Tensor):
        return join(tuple(values))
    if isinstance(first, tuple):
        return tuple(_merged(join, parts) for parts in zip(*values, strict=True))
    if isinstance(first, (Context, Cond)):
        names = ("features", "tau", "present", "x_hat", "earlier", "label", "given")
        names = [name for name in names if hasattr(first, name)]
        return replace(first, **{name: _merged(join, [getattr(value, name) for value in values]) for name in names})
    return first  # None


class Joined:
    """Several calls as one, and its result in their parts."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls, self.sizes = calls, [call.rows for call in calls]
        self.ends = [0, *itertools.accumulate(self.sizes)]
        self.before: dict[int, tuple[Tensor, tuple[Tensor, ...]]] = {}  # what was joined, and of which tensors
        z, t, context, cond = (
            _merged(self._join, [getattr(call, name) for call in calls]) for name in ("z", "t", "context", "cond")
        )
        self.call = replace(calls[0], z=z, t=t, context=context, cond=cond)

    def _join(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Rows of all. Of M samples that share a row there are as many in all calls, so some rows are repeated."""
        if parts[0].dtype == torch.float64 and any(part.ndim == 0 for part in parts):  # times
            if all(part is parts[0] or (part.ndim == 0 and torch.equal(part, parts[0])) for part in parts):
                return parts[0]
            device = self.calls[0].device
            whole = torch.cat([part.to(device).expand(rows) for part, rows in zip(parts, self.sizes, strict=True)])
        else:
            pairs = list(zip(parts, self.sizes, strict=True))
            members = math.gcd(*(rows // len(part) for part, rows in pairs))
            whole = torch.cat([for_rows(part, rows // members) for part, rows in pairs])
        self.before[id(whole)] = whole, parts
        return whole

    def parts(self, result: Any) -> Iterator[Any]:
        """Yields each call's part: its own tensors where they were handed on, copies elsewhere, which hold no other."""
        for number in range(len(self.calls)):

            def cut(whole: tuple[Tensor, ...], number: int = number) -> Tensor:
                (of,) = whole
                if id(of) in self.before:
                    return self.before[id(of)][1][number]
                if not of.ndim:
                    return of
                members = self.ends[-1] // len(of)
                return of[self.ends[number] // members : self.ends[number + 1] // members].clone()

            yield _merged(cut, [result])
