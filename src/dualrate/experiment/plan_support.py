"""Which plans and steps a model serves, which of them are its own, and which a comparison tries.

A model that was trained at every noise level takes any plan. A distilled student learned steps of some lengths and no
longer ones: its x_hat at z_t is right for the z_s at the end of the step. A dual-rate student learned the (t, tau) of
one plan. A consistency model learned where its own few steps of DDIM end. The last two, and all that learned but their
own steps, are `OnePlan`s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from dualrate.config.ranges import Probability, Ranged, Steps, check_rising, many
from dualrate.diffusion.context import Refresh
from dualrate.diffusion.plan import STEPS, StepPlan
from dualrate.sampling.ancestral import Ancestral, Reverse
from dualrate.sampling.bound import FittedVariance
from dualrate.sampling.catalogue import ANCESTRAL
from dualrate.sampling.ddim import DDIM
from dualrate.sampling.step import Step

ROUNDING = 1e-9  # of times


class Serves:
    """Plans that a model may be asked for. A subclass is a frozen dataclass; names without an annotation are no fields.

    steps:    of a sampler, where none are asked for
    heavy:    heavy calls of a sample; None: the network runs at every step
    sampler:  the one that the model was made for, by its name in `sampling/catalogue.py`; None: any
    drops:    whether the model was trained on steps without a context too
    even:     whether its heavy calls are to lie on an even grid from t = 1
    any_plan: whether there are plans to choose from: then samplers, grids and places of heavy calls may be tried
    """

    steps: int
    heavy: Any = None  # a whole number; Any: so that a field may stand for it
    sampler: str | None = ANCESTRAL
    drops = False
    even = False
    any_plan = False

    def default_heavy(self, steps: int) -> int:
        """Heavy calls for so many steps, where none are asked for. `check` refuses a plan that is not served."""
        return steps if self.heavy is None else min(self.heavy, steps)

    def own_times(self, steps: int) -> tuple[float, ...]:
        """The N + 1 times of so many steps, where there are no plans to choose from: equal steps in t."""
        return StepPlan.uniform(steps).t

    def default_plan(self, steps: int | None = None) -> StepPlan:
        """Steps on `own_times`, heavy calls spread evenly."""
        steps = self.steps if steps is None else steps
        return self.spread(self.own_times(steps), self.default_heavy(steps))

    def spread(self, times: Sequence[float], heavy: int, alone: int = 0) -> StepPlan:
        """Heavy calls spread evenly over the steps after the first `alone`, which have no context.

        Raises ValueError for more heavy calls than such steps.
        """
        return StepPlan.late(times, heavy, alone)

    def ladder(self, calls: Iterable[int]) -> list[StepPlan]:
        """The plans to compare at costs of about so many calls of the network each."""
        return [self.default_plan(steps) for steps in sorted({max(steps, 1) for steps in calls})]

    def check(self, plan: StepPlan) -> None:
        """Raises ValueError for a plan that is not served."""

    def untrained(self, plan: StepPlan) -> int:
        """The number of heavy calls at times at which the encoder was not trained."""
        return 0

    def check_step(self, step: Step) -> None:
        """Raises ValueError for an update rule that is not served: any but that of `sampler`, unless overridden."""
        if self.sampler == "ddim" and not isinstance(step, DDIM):
            raise ValueError(
                f"this consistency model has learned to make steps of DDIM: drop the sampler ({step}) and its settings"
            )
        rule = step.step if isinstance(step, FittedVariance) else step  # of a bound: the same means
        if self.sampler == ANCESTRAL and rule not in (Reverse(rule.process), Ancestral(rule.process)):
            raise ValueError(  # its x_hat is no posterior mean
                f"this model is a distilled student, for plain ancestral sampling: drop the sampler ({step}) and its "
                "settings"
            )


@dataclass(frozen=True)
class AnyPlan(Serves, Ranged):
    """Any plan, under any step.

    heavy: the least and the largest number of heavy calls that the model was trained for; None: the network runs at
           every step
    drops: whether it was trained on steps without a context too
    times: the least and the largest time at which its encoder was trained
    even:  whether it was trained on even grids of heavy calls from t = 1, as published: then it is drawn on one, and by
           ancestral sampling where nothing else is asked for
    """

    heavy: tuple[Steps, Steps] | None = None
    drops: bool = False
    times: tuple[Probability, Probability] = (0.0, 1.0)
    even: bool = False

    steps = STEPS
    any_plan = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rising("heavy is the least number of heavy calls, then the largest", self.heavy)
        check_rising("times are the least time of a heavy call, then the largest", self.times)

    @property
    def sampler(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ANCESTRAL if self.even else None

    def default_heavy(self, steps: int) -> int:
        """A quarter of the steps, within what was trained."""
        if self.heavy is None:
            return steps
        low, high = self.heavy
        return min(max(steps // 4, low), high, steps)

    def spread(self, times: Sequence[float], heavy: int, alone: int = 0) -> StepPlan:
        """Plans as above, only where the encoder was trained: fewer heavy calls where there are fewer such steps.

        Of an encoder of even grids a plan stays as it is where it was trained at all of its heavy calls.
        """
        plan, (least, most) = StepPlan.late(times, heavy, alone), self.times
        if self.even and not self.untrained(plan):
            return plan
        where = [i for i, t in enumerate(plan.t[:-1]) if i >= alone and least - ROUNDING <= t <= most + ROUNDING]
        heavy = min(heavy, len(where))
        return StepPlan.at(plan.t, (where[j * len(where) // heavy] for j in range(heavy)))

    def untrained(self, plan: StepPlan) -> int:
        heavy = (t for t, refresh in zip(plan.t, plan.refresh, strict=False) if refresh is Refresh.FULL)
        return sum(not self.times[0] - ROUNDING <= t <= self.times[1] + ROUNDING for t in heavy)


@dataclass(frozen=True)
class AtLeast(Serves, Ranged):
    """A student trained at any time, on steps of length 1 / `steps` and shorter: it serves all of them.

    heavy: 1 where the heavy network sees a condition alone; None: the network runs at every step
    """

    steps: Steps
    heavy: Steps | None = None

    def ladder(self, calls: Iterable[int]) -> list[StepPlan]:
        """Its own plan, and longer ones."""
        return super().ladder({self.steps, *(count for count in calls if count > self.steps)})

    def check(self, plan: StepPlan) -> None:
        """Raises ValueError for a plan with a step longer than 1 / `steps`."""
        longest = max(t - s for t, s in pairwise(plan.t))
        if longest > 1 / self.steps + ROUNDING:
            raise ValueError(
                f"this student was distilled to {many(self.steps, 'step')} and takes as many or more, equal in t; the "
                f"plan of {plan.num_steps} has a step of length {longest:.3g}, longer than 1/{self.steps}: ask for "
                f"{many(self.steps, 'step')} or more, or distill another"
            )


@dataclass(frozen=True)
class OnePlan(Serves, Ranged):
    """A dual-rate student trained on the times and heavy calls of one plan, which it serves alone."""

    steps: Steps
    heavy: Steps

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heavy is not None and self.heavy > self.steps:
            raise ValueError(
                f"a dual-rate student of {many(self.steps, 'step')} has 1 to {self.steps} heavy calls, got {self.heavy}"
            )

    @property
    def learned(self) -> str:
        """Words for what it serves, as an error says them after 'this'."""
        return (
            f"student was distilled for {many(self.steps, 'step')} equal in t with {many(self.heavy, 'heavy call')} "
            "spread evenly, and serves no other plan"
        )

    def ladder(self, calls: Iterable[int]) -> list[StepPlan]:
        """Its own plan."""
        return [self.default_plan()]

    def check(self, plan: StepPlan) -> None:
        """Raises ValueError for any plan but its own."""
        served = self.default_plan()
        if plan.refresh != served.refresh or any(abs(a - b) > ROUNDING for a, b in zip(plan.t, served.t, strict=True)):
            raise ValueError(f"this {self.learned}; got {plan.counts}: drop --steps, --heavy, --places, --grid, --plan")


@dataclass(frozen=True)
class OwnSteps(OnePlan):
    """The plan of a model that learned a few steps of its own, and no others.

    heavy:   heavy calls of a dual-rate one, spread evenly; None: the network runs at every step
    learned: as of `OnePlan`
    grid:    the N + 1 times; none: equal steps in t. A model of a grid was trained at its times alone, for any step
    """

    heavy: Steps | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    sampler: str | None = field(default=ANCESTRAL, kw_only=True)
    learned: str = field(  # pyright: ignore[reportIncompatibleVariableOverride,reportIncompatibleMethodOverride]
        default="model has learned a few steps of its own, and no others", kw_only=True
    )
    grid: tuple[Probability, ...] = field(default=(), kw_only=True)

    def own_times(self, steps: int) -> tuple[float, ...]:
        """Its own; of another number, which `check` refuses, equal steps."""
        return self.grid if steps + 1 == len(self.grid) else super().own_times(steps)

    def check_step(self, step: Step) -> None:
        if not self.grid:
            super().check_step(step)


ONE_STEP = OwnSteps(1, learned="model has learned one step, and makes no more")  # from noise to its x_hat at once


def steps_of_ddim(steps: int, heavy: int | None = None) -> OwnSteps:
    """Steps of a consistency model, equal in t, each of DDIM. heavy: heavy calls of a dual-rate one"""
    calls = "" if heavy is None else f" with {many(heavy, 'heavy call')} spread evenly"
    learned = f"consistency model has learned to make {many(steps, 'step')}, equal in t{calls}, and no others"
    return OwnSteps(steps, heavy, learned=learned, sampler="ddim")


def steps_at(times: Sequence[float]) -> OwnSteps:
    """Steps of a single-rate model trained at a few times alone. times: from 1 down, without 0"""
    learned = f"model has learned to make {many(len(times), 'step')} at times of its own, and no others"
    return OwnSteps(len(times), learned=learned, sampler="ddim", grid=(*times, 0.0))
