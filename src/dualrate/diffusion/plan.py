"""When the networks run: the plan of a sampler.

A plan has N light steps on times t_0 > t_1 > ... > t_N and H heavy calls ("refreshes") at some of the first N times;
tau is the time of the latest refresh. By default step floor(j N / H) refreshes, j = 0..H-1; H need not divide N.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from typing import Literal, SupportsIndex

from dualrate.config.ranges import Steps, checked, many
from dualrate.config.serial import from_plain
from dualrate.diffusion.brief import brief
from dualrate.diffusion.context import Refresh

STEPS = 32  # of a sampler, by default
SIGNS = {Refresh.FULL: "H", Refresh.KEEP: "-", Refresh.PARTIAL: "+", Refresh.NONE: "."}
HEIGHTS = {Refresh.FULL: 32, Refresh.KEEP: 9, Refresh.PARTIAL: 16, Refresh.NONE: 4}
WIDEST = 64  # steps that a plan prints


@dataclass(frozen=True)
class StepPlan:
    """Times of a sampling run and what each step does to the context. Any sequences are taken, and kept as tuples.

    t:       N + 1 times, strictly decreasing, in [0, 1]
    refresh: N entries, one per step; a KEEP or PARTIAL needs a context computed earlier and not dropped since
    """

    t: tuple[float, ...]
    refresh: tuple[Refresh, ...]

    def __post_init__(self) -> None:
        if strange := [t for t in self.t if isinstance(t, (str, bool))]:
            raise ValueError(f"the times of a plan are numbers, got {strange[0]!r}")
        object.__setattr__(self, "t", tuple(map(float, self.t)))
        object.__setattr__(self, "refresh", tuple(self.refresh))
        if not all(isinstance(entry, Refresh) for entry in self.refresh):
            raise ValueError(f"a plan's steps are each one of {', '.join(map(str, Refresh))}, got {self.refresh}")
        if len(self.t) != len(self.refresh) + 1 or not self.refresh:
            raise ValueError(
                f"a plan of N >= 1 steps has N + 1 times and N refreshes, got {len(self.t)} and {len(self.refresh)}"
            )
        if not (self.t[0] <= 1 and all(later < earlier for earlier, later in pairwise(self.t)) and self.t[-1] >= 0):
            raise ValueError("the times of a plan lie in [0, 1] and decrease strictly, from noise (1) to data (0)")
        for step, (before, refresh) in enumerate(pairwise((Refresh.NONE, *self.refresh))):
            if refresh.reuses and before is Refresh.NONE:
                raise ValueError(f"step {step} reuses a context, but no step before it computed one: make it FULL")

    def __repr__(self) -> str:
        """Counts, times and the action of each step: H a heavy call, - reuse, + renewal in part, . no context."""
        signs, times = "".join(SIGNS[refresh] for refresh in self.refresh), brief([float(f"{t:.3g}") for t in self.t])
        if len(signs) > WIDEST:
            signs = f"{signs[: WIDEST // 2]}...{signs[-WIDEST // 4 :]}"
        return f"StepPlan({self.counts}, t {times}: {signs})"

    def _repr_html_(self) -> str:
        return self.html(repr(self))

    def html(self, text: str) -> str:
        """The text, and below it the calls of each step as an inline SVG, for notebooks: heavy calls are high bars."""
        width, bars = 640 / self.num_steps, {}
        for i, refresh in enumerate(self.refresh):
            height = HEIGHTS[refresh]
            bars[refresh] = f"{bars.get(refresh, '')}M{i * width:.2f} 32v-{height}h{0.8 * width:.2f}v{height}z"
        paths = "".join(f'<path class="{refresh.value}" d="{path}"/>' for refresh, path in bars.items())
        says = f"<title>{self.counts}</title>"
        style = "width:100%;max-width:40em;height:2em;fill:currentColor"
        svg = f'<svg viewBox="0 0 640 32" preserveAspectRatio="none" style="{style}" role="img">{says}{paths}</svg>'
        return f"<pre>{escape(text)}</pre>{svg}"

    @property
    def counts(self) -> str:
        """Steps and heavy calls in words."""
        return f"{many(self.num_steps, 'step')}, {many(self.num_heavy, 'heavy call')}"

    @property
    def num_steps(self) -> int:
        """N, the number of light steps."""
        return len(self.refresh)

    @property
    def num_heavy(self) -> int:
        """H, the number of heavy calls."""
        return sum(refresh is Refresh.FULL for refresh in self.refresh)

    @property
    def num_alone(self) -> int:
        """The number of steps without a context."""
        return sum(refresh is Refresh.NONE for refresh in self.refresh)

    @staticmethod
    def at(times: SupportsIndex | Iterable[float], heavy: Iterable[SupportsIndex]) -> StepPlan:
        """The plan of these times (an integer N: t = 1 - i / N), with heavy calls at these step indices.

        Integers and times may be numpy's.
        """
        t = _times(times)
        if not isinstance(heavy, Iterable):
            raise ValueError(f"heavy calls are a list of steps, got {heavy!r}: StepPlan.uniform spreads so many")
        num_steps, heavy = len(t) - 1, sorted({_whole("a heavy call", step) for step in heavy})
        if not heavy:
            return StepPlan(t, (Refresh.NONE,) * num_steps)
        if heavy[0] < 0 or heavy[-1] >= num_steps:
            raise ValueError(f"heavy calls happen at steps 0..{num_steps - 1}, got {heavy}")
        first, every = heavy[0], set(heavy)
        refresh = (Refresh.FULL if i in every else Refresh.KEEP for i in range(first, num_steps))
        return StepPlan(t, (*(Refresh.NONE,) * first, *refresh))

    @staticmethod
    def uniform(steps: SupportsIndex, heavy: SupportsIndex | None = None) -> StepPlan:
        """A plan of N steps uniform in t from 1 to 0, H heavy calls spread evenly; `heavy=None`: one at every step."""
        return StepPlan.spread(steps, heavy)

    @staticmethod
    def spread(times: SupportsIndex | Iterable[float], heavy: SupportsIndex | None = None) -> StepPlan:
        """A plan of these times, H heavy calls spread evenly over the steps; `heavy=None`: one at every step."""
        t = _times(times)
        return StepPlan.late(t, len(t) - 1 if heavy is None else heavy, 0)

    @staticmethod
    def late(
        times: SupportsIndex | Iterable[float], heavy: SupportsIndex, alone: SupportsIndex | None = None
    ) -> StepPlan:
        """A plan whose first steps, in almost pure noise, have no context; then as `spread`.

        alone: how many; None: an eighth of them, or as many as the heavy calls leave. Raises ValueError where they do
               not leave that many.
        """
        t = _times(times)
        steps = len(t) - 1
        heavy = _whole("the number of heavy calls", heavy)
        if not 0 <= heavy <= steps:
            raise ValueError(f"the number of heavy calls lies between 0 and the number of steps, {steps}, got {heavy}")
        alone = min(steps // 8, steps - heavy) if alone is None else _whole("the number of steps alone", alone)
        if not 0 <= alone <= steps - heavy:
            raise ValueError(
                f"steps {steps} and heavy {heavy} leave 0 to {steps - heavy} to the light network alone before "
                f"the first, got {alone}"
            )
        return StepPlan.at(t, (alone + j * (steps - alone) // heavy for j in range(heavy)))

    def renewing(self, between: Sequence[Refresh]) -> StepPlan:
        """This plan where each step that keeps the context does one of `between` instead.

        They take turns, counted back from the next heavy call. Raises ValueError for an empty `between`.
        """
        if not between:
            raise ValueError("steps between two heavy calls keep the context, or renew a part of it: got nothing to do")
        refresh, ahead = list(self.refresh), 0
        for i in reversed(range(self.num_steps)):
            ahead = ahead if self.refresh[i] is Refresh.KEEP else 0
            if self.refresh[i] is Refresh.KEEP:
                refresh[i], ahead = between[ahead % len(between)], ahead + 1
        return StepPlan(self.t, tuple(refresh))

    @property
    def context_steps(self) -> tuple[int | None, ...]:
        """For each step, the step at which its context was computed; None without a context.

        Raises ValueError for a plan with partial steps, whose context is of several.
        """
        if Refresh.PARTIAL in self.refresh:
            raise ValueError(
                "a context that was renewed in part is of no one time: leave partial steps to toca and duca"
            )
        steps: list[int | None] = []
        for i, refresh in enumerate(self.refresh):
            steps.append({Refresh.FULL: i, Refresh.KEEP: steps[-1] if steps else None, Refresh.NONE: None}[refresh])
        return tuple(steps)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of a hash of the plan, whose times are rounded: the same on every processor."""
        rounded = replace(self, t=tuple(round(t, 12) + 0.0 for t in self.t))
        return hashlib.sha256(rounded.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        return json.dumps({"t": list(self.t), "refresh": [refresh.value for refresh in self.refresh]})

    @staticmethod
    def from_json(text: str) -> StepPlan:
        """The plan that `to_json` wrote. Raises ValueError for text that is no plan, naming the place."""
        try:
            plain = json.loads(text)
            if not isinstance(plain, dict) or set(plain) != {"t", "refresh"}:
                raise ValueError('expected {"t": [1, ..., 0], "refresh": ["full", ...]}')
            t = from_plain(tuple[float, ...], plain["t"], "t")
            refresh = from_plain(tuple[Literal["none", "keep", "partial", "full"], ...], plain["refresh"], "refresh")
        except (RecursionError, ValueError) as error:
            raise ValueError(f"not a plan: {error}") from error
        return StepPlan(t, tuple(map(Refresh, refresh)))


def before(times: Sequence[float], switch: float) -> int:
    """The number of steps that start before the time `switch`, in more noise, where networks are switched."""
    return sum(t > switch + 1e-9 for t in times[:-1])


def _whole(what: str, value: SupportsIndex) -> int:
    """The value as an int. Raises ValueError for any that is no integer, and for a boolean; `what` names it."""
    with suppress(TypeError):
        if not isinstance(value, bool):
            return operator.index(value)
    raise ValueError(f"{what} is a whole number, got {value!r}")


def _times(steps: SupportsIndex | Iterable[float]) -> tuple[float, ...]:
    """The times themselves, or of a number N of steps t = 1 - i / N."""
    if isinstance(steps, Iterable) and not isinstance(steps, str):
        return tuple(steps)
    count: int = checked("the number of steps", steps, Steps)
    return tuple(1 - i / count for i in range(count + 1))
