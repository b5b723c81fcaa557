"""When the networks run: the plan of a sampler, and the times of a training batch. The only file that knows H and tau.

A plan has N light steps on times t_0 > t_1 > ... > t_N and H heavy calls ("refreshes") at some of the first N times;
tau is the time of the latest refresh. By default step floor(j N / H) refreshes, j = 0..H-1; H need not divide N.

In training t ~ U(0, 1) and tau = min(1, t + u / H), u ~ U(0, 1): the law of tau given t under a plan of H equal cells
with a random phase. H is log-uniform on the integers of a range, so that one model serves any H. The distance to the
next edge of a plan with fixed phase (the paper's own grid) is `phase=0`: tau = ceil(t H) / H.

A shared context serves k draws of t, each of the law of t given tau; their quantiles differ by 1 / k:
    random phase, tau < 1: t uniform on [max(0, tau - 1/H), tau];  tau = 1: P(t <= y) = (1 - H (1 - y))^2
    fixed phase:           t uniform on [tau - 1/H, tau]
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Protocol, SupportsIndex

import torch
from torch import Tensor

from dualrate.draws import Draws
from dualrate.ranges import Probability, Range, Ranged, Steps
from dualrate.types import Refresh

STEPS = 64  # of a sampler, where nothing else is said


@dataclass(frozen=True)
class StepPlan:
    """Times of a sampling run and what each step does to the context. Any sequences are taken, and kept as tuples.

    t:       N + 1 times, strictly decreasing, in [0, 1]
    refresh: N entries, one per step; a KEEP or PARTIAL needs a context computed earlier and not dropped since
    """

    t: tuple[float, ...]
    refresh: tuple[Refresh, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "t", tuple(map(_time, self.t)))
        object.__setattr__(self, "refresh", tuple(self.refresh))
        if strange := [entry for entry in self.refresh if not isinstance(entry, Refresh)]:
            raise ValueError(f"what a step does is one of {', '.join(map(str, Refresh))}, got {strange[0]!r}")
        if len(self.t) != len(self.refresh) + 1 or not self.refresh:
            raise ValueError(
                f"a plan of N >= 1 steps has N + 1 times and N refreshes, got {len(self.t)} and {len(self.refresh)}"
            )
        if not all(later < earlier for earlier, later in pairwise(self.t)):
            raise ValueError("the times of a plan must decrease strictly, from noise (1) to data (0)")
        if self.t[0] > 1 or self.t[-1] < 0:
            raise ValueError(f"the times of a plan lie in [0, 1], got {self.t[0]} ... {self.t[-1]}")
        held = False
        for step, refresh in enumerate(self.refresh):
            if refresh in (Refresh.KEEP, Refresh.PARTIAL) and not held:
                raise ValueError(f"step {step} reuses a context, but no step before it computed one: make it FULL")
            held = refresh is not Refresh.NONE

    @property
    def num_steps(self) -> int:
        """N, the number of light steps."""
        return len(self.refresh)

    @property
    def num_heavy(self) -> int:
        """H, the number of heavy calls."""
        return sum(refresh is Refresh.FULL for refresh in self.refresh)

    @staticmethod
    def at(times: SupportsIndex | Iterable[float], heavy: Iterable[SupportsIndex]) -> StepPlan:
        """Steps on given times (an integer N: t = 1 - i / N), heavy calls at the given step indices.

        Integers and times may be numpy's.
        """
        t = tuple(map(_time, times)) if isinstance(times, Iterable) else _even(times)
        num_steps, heavy = len(t) - 1, sorted({_whole("a heavy call", step) for step in heavy})
        if not heavy:
            return StepPlan(t, (Refresh.NONE,) * num_steps)
        if heavy[0] < 0 or heavy[-1] >= num_steps:
            raise ValueError(f"heavy calls happen at steps 0..{num_steps - 1}, got {heavy}")
        refresh = [Refresh.NONE if i < heavy[0] else Refresh.KEEP for i in range(num_steps)]
        for i in heavy:
            refresh[i] = Refresh.FULL
        return StepPlan(t, tuple(refresh))

    @staticmethod
    def uniform(steps: SupportsIndex, heavy: SupportsIndex | None = None) -> StepPlan:
        """N steps uniform in t from 1 to 0 with H heavy calls spread evenly; `heavy=None`: one at every step."""
        return StepPlan.spread(_even(steps), heavy)

    @staticmethod
    def spread(times: Iterable[float], heavy: SupportsIndex | None = None) -> StepPlan:
        """Steps on given times, H heavy calls spread evenly over the steps; `heavy=None`: one at every step."""
        t = tuple(times)
        steps = len(t) - 1
        heavy = steps if heavy is None else _whole("the number of heavy calls", heavy)
        if not 0 <= heavy <= steps:
            raise ValueError(f"the number of heavy calls lies between 0 and the {steps} steps, got {heavy}")
        return StepPlan.at(t, (j * steps // heavy for j in range(heavy)))

    def to_json(self) -> str:
        return json.dumps({"t": list(self.t), "refresh": [refresh.value for refresh in self.refresh]})

    @staticmethod
    def from_json(text: str) -> StepPlan:
        """Raises ValueError for text that is no plan, naming the place."""
        try:
            fields = json.loads(text)
        except (RecursionError, json.JSONDecodeError) as error:
            raise ValueError(f"not a plan: {error}; {PLAN}") from error
        if not isinstance(fields, dict) or set(fields) != {"t", "refresh"}:
            raise ValueError(f"not a plan: {PLAN}, got {_short(fields)}")
        for name, kinds in (("t", (int, float)), ("refresh", (str,))):
            values = fields[name]
            if not isinstance(values, list):
                raise ValueError(f"not a plan: {name} is a list, got {_short(values)}; {PLAN}")
            for i, value in enumerate(values):
                if isinstance(value, bool) or not isinstance(value, kinds):
                    raise ValueError(f"not a plan: {name}[{i}] is {_short(value)}; {PLAN}")
        known = {refresh.value: refresh for refresh in Refresh}
        if strange := [value for value in fields["refresh"] if value not in known]:
            raise ValueError(f"not a plan: a step is one of {', '.join(known)}, got {_short(strange[0])}")
        try:
            return StepPlan(tuple(fields["t"]), tuple(known[value] for value in fields["refresh"]))
        except OverflowError as error:
            raise ValueError(f"not a plan: {error}") from error


PLAN = 'expected {"t": [1, ..., 0], "refresh": ["full", ...]}'


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _whole(what: str, value: SupportsIndex) -> int:
    """Any kind of integer; a boolean is none."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(f"{what} is a whole number, got {value!r}")


def _time(value: float) -> float:
    """Any kind of number but a boolean; text is none."""
    if isinstance(value, (str, bytes, bool)):
        raise ValueError(f"the times of a plan are numbers, got {value!r}")
    return float(value)


def _even(steps: SupportsIndex) -> tuple[float, ...]:
    """t = 1 - i / N."""
    steps = _whole("the number of steps", steps)
    if steps < 1:
        raise ValueError(f"a plan needs at least one step, got {steps}")
    return tuple(1 - i / steps for i in range(steps + 1))


@dataclass(frozen=True)
class Times:
    """The times of a training batch of B images with k draws of t each; draw r belongs to image r // k.

    t:    (B k,) float64
    tau:  (B,) float64, of the context that the draws of an image share; t <= tau
    kept: (K,) the draws whose context is not dropped
    """

    t: Tensor
    tau: Tensor
    kept: Tensor


class TimeSource(Protocol):
    """Where a denoising method's times come from."""

    def __call__(self, draws: Draws) -> Times: ...


@dataclass(frozen=True)
class TimeSampler(Ranged):
    """Draws (t, tau) and the context dropout of each row.

    The images that keep their context are spread evenly over the sample numbers (`radical_inverse`), so every run of an
    even number of images keeps exactly half of them at a dropout of 0.5.
    """

    heavy: tuple[Steps, Steps] = (4, 32)
    """The least and the largest number of heavy calls per image that the model is trained for."""
    dropout: Probability = 0.5
    """Share of the images that train without context."""
    phase: Annotated[float, Range(0, 0)] | None = None
    """0: heavy calls on the fixed grid tau = ceil(t H) / H; at a random place in it if not given."""
    draws: Annotated[int, Range(1, 1000)] = 1
    """The light network's times for one heavy call."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.heavy
        if low > high:
            raise ValueError(f"heavy is the least number of heavy calls, then the largest, got {self.heavy}")

    @property
    def default_steps(self) -> int:
        """Steps of a sampler, where nothing else is said."""
        return STEPS

    def check(self, plan: StepPlan) -> None:
        """Any plan is served."""

    def default_heavy(self, steps: int) -> int:
        """Heavy calls for a sampler of `steps`, where nothing else is said: a quarter, within what was trained."""
        low, high = self.heavy
        return min(max(steps // 4, low), high, steps)

    def __call__(self, draws: Draws) -> Times:
        t = stratified_uniform(draws)
        heavy = self._num_heavy(draws)
        if self.phase is None:
            tau = (t + draws.uniform("tau") / heavy).clamp(max=1)
        else:
            tau = torch.maximum(torch.ceil(t * heavy) / heavy, t)
        kept = torch.nonzero(radical_inverse(draws.row) >= self.dropout)
        kept = kept * self.draws + torch.arange(self.draws, device=t.device)
        return Times(self._spread(tau, heavy, t).flatten(), tau, kept.flatten())

    def _spread(self, tau: Tensor, heavy: Tensor, t: Tensor) -> Tensor:
        """(B, k): t itself, and k - 1 more times of the law of t given tau, their quantiles spread evenly."""
        low = tau - 1 / heavy
        if self.phase is None:
            low = low.clamp(min=0)
        share = (t - low) / (tau - low)
        whole = tau == 1 if self.phase is None else torch.zeros_like(tau, dtype=torch.bool)
        share = torch.where(whole, share.square(), share)[:, None]
        others = (share + torch.arange(1, self.draws, device=t.device) / self.draws) % 1
        others = torch.where(whole[:, None], others.sqrt(), others)
        others = torch.minimum(low[:, None] + others * (tau - low)[:, None], tau[:, None])
        return torch.cat((t[:, None], others.clamp(min=1e-9)), dim=1)

    def _num_heavy(self, draws: Draws) -> Tensor:
        """(B,) float64, log-uniform on the integers low..high: P(H) proportional to log((H + 1) / H)."""
        low, high = self.heavy
        u = draws.uniform("heavy")
        return torch.floor(low * ((high + 1) / low) ** u).clamp(max=high)


@dataclass(frozen=True)
class SingleTime:
    """Times of a single-rate model: t alone; no row has a context of another time."""

    @property
    def default_steps(self) -> int:
        """Steps of a sampler, where nothing else is said."""
        return STEPS

    def check(self, plan: StepPlan) -> None:
        """Any plan is served."""

    def default_heavy(self, steps: int) -> int:
        """The network runs at every step."""
        return steps

    def __call__(self, draws: Draws) -> Times:
        t = stratified_uniform(draws)
        return Times(t, t, torch.arange(len(t), device=t.device))


def stratified_uniform(draws: Draws) -> Tensor:
    """(B,) float64 in (0, 1): a golden-ratio sequence over the sample numbers; any run of rows fills (0, 1) evenly."""
    golden = (5**0.5 - 1) / 2
    offset = Draws(draws.seed, torch.zeros(1, dtype=torch.int64, device=draws.row.device)).uniform("t")
    return ((draws.row.double() * golden + offset) % 1).clamp(1e-9, 1 - 1e-9)


def radical_inverse(row: Tensor) -> Tensor:
    """(B,) float64 in [0, 1): the binary digits of sample numbers, the lowest 32, mirrored at the point.

    Van der Corput's sequence: any 2^m rows that begin at a multiple of 2^m have one in every 2^-m. Beside the rotation
    of `stratified_uniform` it is uniform in the square, whatever threshold it is compared with: the rows that share
    their lowest digits are equally far apart, and t at these is a rotation by a multiple of the golden ratio, which is
    as irrational. A second rotation would be tied to the first at thresholds near its multiples.
    """
    place = torch.arange(32, device=row.device)
    return ((row[:, None] >> place) & 1).double() @ torch.ldexp(torch.ones_like(place).double(), -place - 1)
