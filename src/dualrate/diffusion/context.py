"""Values that cross every boundary (Batch, Cond, the Context of a heavy call), and the shape vocabulary, stated once.

Shapes
    B           rows of a batch: images, or images x guidance branches
    (B, C, H, W)  an image-shaped state; times broadcast over leading axes, so code never counts the others
    (B,)        one label or sample number per row
Times
    t in [0, 1], 0 = data, 1 = noise; s < t is the next, less noisy time; tau >= t the time of the last heavy call.
    A time is (B,), one for each row, on the device of the states; or (), one for all rows, float64 on the host, as the
    times of a plan are (`shared_time`). Coefficients have the shape of their times. Those of shared times are computed
    once (`cached_for_shared_time`): a sampler launches no kernel for a coefficient, nor waits for the device for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache, partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from dualrate.diffusion.brief import Brief
from dualrate.diffusion.random import Draws

Shape = tuple[int, int, int]  # (C, H, W) of one image, or of its latent


def for_rows(of_conditions: Tensor, count: int) -> Tensor:
    """Rows (B, ...) of conditions for `count` samples of them, M of each: sample r gets the row of condition r // M."""
    rows = len(of_conditions)
    return of_conditions if rows == count else of_conditions.repeat_interleave(count // max(1, rows), 0)


@dataclass(frozen=True, repr=False)
class Cond(Brief):
    """The condition of samples.

    label: (B,) int64 class index; `num_classes` is the null class. None: an unconditional model.
    given: (B, C, h, w) the tensor that a sample is made of: a latent, a smaller image, ... None: there is none.
           Of M samples a condition (B / M, C, h, w), as of `for_rows`.
    features: what a heavy network made of `given` alone, for all steps (`Denoiser.read`); rows as of `given`
    """

    label: Tensor | None = None
    given: Tensor | None = None
    features: tuple[Tensor, ...] = ()

    def __getitem__(self, rows: Tensor | slice) -> Cond:
        label, y = (None if part is None else part[rows] for part in (self.label, self.given))
        return Cond(label, y, tuple(feature[rows] for feature in self.features))


@dataclass(frozen=True)
class Elsewhere:
    """The rows of a batch that other processes hold; by default none.

    before, after: how many come before the rows that are here, and after them
    add_up: replaces tensors by their sums over all processes, which must all ask for the same ones
    """

    before: int = 0
    after: int = 0
    add_up: Callable[[Iterable[Tensor]], None] = lambda tensors: None


@dataclass(frozen=True, repr=False)
class Batch(Brief):
    """One training batch, or the rows of it that this process computes.

    x:      (B, C, H, W) float32 in [-1, 1]
    label:  (B,) int64, or None for data without labels
    given:  (B, C, h, w) what x is to be made of, or None where nothing is given
    sample: (B,) int64, the global number of each row in the run; every random draw is a function of it
    elsewhere: for losses that are no means over rows
    here:   the sample numbers on the host, where the batch was brought from there
    """

    x: Tensor
    label: Tensor | None
    sample: Tensor
    elsewhere: Elsewhere = field(default=Elsewhere(), repr=False)
    here: Tensor | None = field(default=None, repr=False)
    given: Tensor | None = None

    @property
    def cond(self) -> Cond:
        """The condition of its rows."""
        return Cond(self.label, self.given)

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Batch:
        here = self.here[rows] if self.here is not None and isinstance(rows, slice) else None
        label, y = (None if part is None else part[rows] for part in (self.label, self.given))
        return Batch(self.x[rows], label, self.sample[rows], here=here, given=y)

    def to(self, device: torch.device | str) -> Batch:
        target = torch.device(device)
        to = partial(Tensor.to, device=target, non_blocking=target.type != "cpu")  # a copy to the host is waited for
        label, y = (None if part is None else to(part) for part in (self.label, self.given))
        here = self.sample if self.sample.device.type == "cpu" else self.here
        return Batch(to(self.x), label, to(self.sample), self.elsewhere, here, y)

    def draws(self, seed: int) -> Draws:
        """The random numbers of its rows, in a run of this seed."""
        return Draws(seed, self.sample, self.here)


class Reuse(Enum):
    """Under which samplers a context may be used at a later time than the one it was computed at."""

    FREE = "free"  # it depends on nothing noisy: any sampler
    MARKOV = "markov"  # trained on pairs of one forward path: Markovian samplers only
    SMOOTH = "smooth"  # caches and shared encoders: deterministic samplers, whose path is smooth
    OWN = "own"  # trained on pairs of its own sampling: the plan and the sampler that its `Serves` has


class Refresh(Enum):
    """Action of a step on the context, before it calls the denoiser."""

    NONE = "none"  # drop it: the light network alone
    KEEP = "keep"  # reuse it
    PARTIAL = "partial"  # renew a part of it, where the denoiser can (denoisers/denoiser.py)
    FULL = "full"  # a heavy call

    @property
    def reuses(self) -> bool:
        """Whether it needs the context of an earlier step."""
        return self in (Refresh.KEEP, Refresh.PARTIAL)


@dataclass(frozen=True, repr=False)
class Context(Brief):
    """The value of one heavy evaluation. Never stored on a module.

    features: tensors with a leading batch axis, one per resolution level
    tau:      (B,) or (), when they were computed; None if the context depends on nothing but (z_t, t)
    present:  (B,) bool; an absent row has zero features and a zero tau embedding. None: all present
    x_hat:    (B, C, H, W) an output already computed at this very (z, t): used once, then forgotten (`aged`)
    keeps:    how many earlier contexts its denoiser wants beside it
    earlier:  these, the latest first; fewer at the beginning (`after`)
    age:      steps since it was computed, where its denoiser wants earlier ones; of an earlier one, until the next was
    """

    features: tuple[Tensor, ...] = ()
    tau: Tensor | None = None
    present: Tensor | None = None
    x_hat: Tensor | None = None
    keeps: int = 0
    earlier: tuple[Context, ...] = ()
    age: int = 0

    def aged(self) -> Context:
        """The same context for any later step: `x_hat` belongs to the step it was computed at."""
        return self if self.x_hat is None else replace(self, x_hat=None)

    def a_step_later(self) -> Context:
        """The same context for the next step."""
        return replace(self.aged(), age=self.age + 1) if self.keeps else self.aged()

    def after(self, previous: Context) -> Context:
        """This context, just computed, with as many of the previous ones beside it as it keeps, the latest first."""
        if not self.keeps or previous.tau is None:
            return self
        return replace(self, earlier=(replace(previous.aged(), earlier=()), *previous.earlier)[: self.keeps])

    def rows(self, rows: Tensor | slice) -> Context:
        """The context of some rows of the batch."""

        def take(part: Tensor | None) -> Tensor | None:
            return part[rows] if part is not None and part.ndim else part

        features = tuple(feature[rows] for feature in self.features)
        earlier = tuple(context.rows(rows) for context in self.earlier)
        return Context(features, take(self.tau), take(self.present), take(self.x_hat), self.keeps, earlier, self.age)

    def scattered(self, rows: Tensor, size: int) -> Context:
        """This context's rows placed at `rows` of a batch of `size`; all other rows are absent.

        rows: (K,) int64; tau: (K,), if any. Turns a context of the kept half of a batch into one of the whole batch.
        """
        if not self.features and self.tau is None:
            return Context()

        def place(part: Tensor) -> Tensor:
            return part.new_zeros(size, *part.shape[1:]).index_copy(0, rows, part)

        present = torch.ones_like(rows, dtype=torch.bool) if self.present is None else self.present
        return Context(
            features=tuple(place(feature) for feature in self.features),
            tau=None if self.tau is None else place(self.tau),
            present=place(present),
        )


REMEMBERED = 4096  # of each formula: the latest plan of 1,000 steps has them all

P = ParamSpec("P")
Value = TypeVar("Value", bound=Tensor | tuple[Tensor, ...])


def shared_time(t: float) -> Tensor:
    """(), float64 on the host: a time that all rows share."""
    return torch.tensor(t, dtype=torch.float64, device="cpu")


def expand(value: Tensor, like: Tensor) -> Tensor:
    """A tensor over leading axes with trailing axes of size one, so that it broadcasts against `like`, in its dtype.

    Coefficients are computed in the dtype of the times (float64 in sampling); a state keeps its own. One number for all
    rows, (), is left where it is, on the host: an operator takes it along whatever the device.
    """
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim)).to(like) if value.ndim else value


def cached_for_shared_time(formula: Callable[P, Value]) -> Callable[P, Value]:
    """The formula with a cache: where all times are shared, it is evaluated once, in float64 on the host.

    Each call returns copies, which the caller may change.

    formula: (hashable, ..., *times) -> one tensor or several, shaped as the times, (B,) or ()
    """

    @lru_cache(REMEMBERED)
    def remembered(of: tuple[Any, ...], times: tuple[float, ...]) -> Any:
        with torch.inference_mode(False), torch.no_grad():  # its tensors serve whatever comes later
            return formula(*of, *map(shared_time, times))  # pyright: ignore[reportCallIssue]

    @wraps(formula)
    def evaluated(*args: P.args, **kwargs: P.kwargs) -> Value:
        times = [arg for arg in args if isinstance(arg, Tensor)]
        if kwargs or any(t.ndim or t.requires_grad for t in times):
            return formula(*args, **kwargs)
        values = remembered(args[: len(args) - len(times)], tuple(t.item() for t in times))
        copies: Any = values.clone() if isinstance(values, Tensor) else tuple(value.clone() for value in values)
        return copies

    return evaluated
