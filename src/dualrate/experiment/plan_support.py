"""Which plans and steps a model serves, which of them are its own, and which a comparison tries.

A model that was trained at every noise level takes any plan. A distilled student learned steps of some lengths and no
longer ones: its x_hat at z_t is right for the z_s at the end of the step. A dual-rate student learned the (t, tau) of
one plan. A consistency model learned where its own few steps of DDIM end.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dualrate.config.ranges import Probability, Ranged, Steps
from dualrate.diffusion.plan import STEPS, StepPlan
from dualrate.sampling.ancestral import Ancestral, Reverse
from dualrate.sampling.bound import FittedVariance
from dualrate.sampling.catalogue import ANCESTRAL
from dualrate.sampling.ddim import DDIM
from dualrate.sampling.step import Step

ROUNDING = 1e-9  # of times


class Serves(ABC):
    """Plans that a model may be asked for. A subclass is a frozen dataclass; names without an annotation are no fields.

    steps:    of a sampler, where none are asked for
    sampler:  the one that the model was made for, by its name in `sampling/catalogue.py`; None: any
    heavy:    heavy calls of a sample; None: the network runs at every step
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

    def check(self, plan: StepPlan) -> None:  # noqa: B027  # nothing to refuse
        """Raises ValueError for a plan that is not served."""

    def check_step(self, step: Step) -> None:  # noqa: B027
        """Raises ValueError for an update rule that is not served."""


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
        """Plans as above, only where the encoder was trained: fewer heavy calls where there are fewer such steps."""
        plan, (least, most) = StepPlan.late(times, heavy, alone), self.times
        where = [i for i, t in enumerate(plan.t[:-1]) if i >= alone and least - ROUNDING <= t <= most + ROUNDING]
        heavy = min(heavy, len(where))
        return StepPlan.at(plan.t, (where[j * len(where) // heavy] for j in range(heavy)))


class _Distilled(Serves):
    """Plans of a student, whose x_hat is no posterior mean: under plain ancestral sampling."""

    def check_step(self, step: Step) -> None:
        rule = step.step if isinstance(step, FittedVariance) else step  # of a bound: the same means
        if rule not in (Reverse(rule.process), Ancestral(rule.process)):
            raise ValueError(
                f"this model is a distilled student, for plain ancestral sampling: drop the sampler ({step}) and its "
                "settings"
            )


@dataclass(frozen=True)
class AtLeast(_Distilled, Ranged):
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
                f"this student was distilled to {self.steps} steps and takes as many or more, equal in t; the plan of "
                f"{plan.num_steps} has a step of length {longest:.3g}, longer than 1/{self.steps}: "
                f"ask for {self.steps} steps or more, or distill another"
            )


class _Single(Serves):
    """The plan of a model that learned its steps: it serves that one.

    learned: what it serves, as an error says it after 'this'
    """

    learned: Any

    def ladder(self, calls: Iterable[int]) -> list[StepPlan]:
        """Its own plan."""
        return [self.default_plan()]

    def check(self, plan: StepPlan) -> None:
        """Raises ValueError for any plan but its own."""
        served = self.default_plan()
        if plan.refresh != served.refresh or any(abs(a - b) > ROUNDING for a, b in zip(plan.t, served.t, strict=True)):
            raise ValueError(
                f"this {self.learned}; got {plan.num_steps} steps with {plan.num_heavy} "
                "heavy calls: drop --steps, --heavy, --places, --grid, --times and --plan, or train another"
            )


@dataclass(frozen=True)
class OnePlan(_Single, _Distilled, Ranged):
    """A dual-rate student trained on the times and heavy calls of one plan."""

    steps: Steps
    heavy: Steps

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heavy > self.steps:
            raise ValueError(
                f"a dual-rate student of {self.steps} steps has 1 to {self.steps} heavy calls, got {self.heavy}"
            )

    @property
    def learned(self) -> str:
        return (
            f"student was distilled for {self.steps} steps equal in t with {self.heavy} heavy calls spread evenly, and "
            "serves no other plan"
        )


@dataclass(frozen=True)
class OneStep(_Single, _Distilled):
    """A model that goes from noise to its x_hat at once."""

    steps = 1
    learned = "model has learned one step, and makes no more"


@dataclass(frozen=True)
class OwnSteps(_Single, _Distilled, Ranged):
    """A model that learned the calls of `steps` noise levels of its own, one after the other, and no others.

    heavy: heavy calls of a dual-rate one; None: the network runs at every step
    """

    steps: Steps
    heavy: Steps | None = None

    @property
    def learned(self) -> str:
        return f"model has learned the noise levels of {self.steps} steps, and no others"


@dataclass(frozen=True)
class Segments(_Single, Ranged):
    """A consistency model, which learned to make `steps` steps of DDIM, equal in t.

    heavy: heavy calls of a dual-rate one, spread evenly over the steps; None: the network runs at every step
    """

    steps: Steps
    heavy: Steps | None = None
    sampler = "ddim"

    @property
    def learned(self) -> str:
        calls = "" if self.heavy is None else f" with {self.heavy} heavy calls spread evenly"
        return f"consistency model has learned to make {self.steps} steps, equal in t{calls}, and no others"

    def check_step(self, step: Step) -> None:
        if not isinstance(step, DDIM):
            raise ValueError(
                f"this consistency model has learned to make steps of DDIM: drop the sampler ({step}) and its settings"
            )


@dataclass(frozen=True)
class OwnGrid(_Single, Ranged):
    """A single-rate model trained at a few times alone, those of its steps. grid: these, from 1 down, without 0"""

    grid: tuple[Probability, ...]

    sampler = "ddim"

    @property
    def steps(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.grid)

    def own_times(self, steps: int) -> tuple[float, ...]:
        """Its own; of another number, which `check` refuses, equal steps."""
        return (*self.grid, 0.0) if steps == self.steps else super().own_times(steps)

    @property
    def learned(self) -> str:
        return f"model has learned to make {self.steps} steps at times of its own, and no others"
