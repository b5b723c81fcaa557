"""Which plans a distilled student serves. Others would call it at steps it never learned to make.

A step of a few-step student goes from z_t to an x_hat that is right for the z_s it makes of it, s within the step: it
learned steps of some lengths and no longer ones, and a dual-rate student learned the very (t, tau) of one plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from dualrate.config.ranges import Ranged, Steps
from dualrate.diffusion.plan import StepPlan

ROUNDING = 1e-9  # of times


@dataclass(frozen=True)
class Continuous(Ranged):
    """A single-rate student trained at any time, on steps of length 1 / `steps` and shorter: it serves all of them."""

    steps: Steps

    @property
    def default_steps(self) -> int:
        """Its own: the fewest."""
        return self.steps

    def default_heavy(self, steps: int) -> int:
        """The network runs at every step."""
        return steps

    def check(self, plan: StepPlan) -> None:
        """Raises ValueError for a plan with a step longer than 1 / `steps`."""
        longest = max(t - s for t, s in pairwise(plan.t))
        if longest > 1 / self.steps + ROUNDING:
            raise ValueError(
                f"this student was distilled to {self.steps} steps and serves as many or more, equal in t; the plan of "
                f"{plan.num_steps} has a step of length {longest:.3g}, longer than 1/{self.steps}: "
                f"ask for {self.steps} steps or more, or distill another"
            )


@dataclass(frozen=True)
class Grid(Ranged):
    """A dual-rate student trained on the times and heavy calls of one plan: it serves that one."""

    steps: Steps
    heavy: Steps

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heavy > self.steps:
            raise ValueError(
                f"a dual-rate student of {self.steps} steps has 1 to {self.steps} heavy calls, got {self.heavy}"
            )

    @property
    def plan(self) -> StepPlan:
        """Equal steps in t, heavy calls spread evenly."""
        return StepPlan.uniform(self.steps, self.heavy)

    @property
    def default_steps(self) -> int:
        """Its own."""
        return self.steps

    def default_heavy(self, steps: int) -> int:
        """Its own, however many steps are asked for; `check` refuses what it does not serve."""
        return min(self.heavy, steps)

    def check(self, plan: StepPlan) -> None:
        """Raises ValueError for any plan but its own."""
        own = self.plan
        same = plan.refresh == own.refresh and all(
            abs(t - mine) <= ROUNDING for t, mine in zip(plan.t, own.t, strict=True)
        )
        if not same:
            raise ValueError(
                f"this student was distilled for {self.steps} steps equal in t with {self.heavy} heavy calls spread "
                f"evenly, and serves no other plan; got {plan.num_steps} steps with {plan.num_heavy}: "
                f"drop --steps, --heavy, --grid and --plan, or distill another"
            )
