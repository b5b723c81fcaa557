"""What is compared: a model under a sampler and a plan, as one value."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dualrate.config.ranges import Probability, Range, Ranged
from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.choice import step_for
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.experiment import Model
from dualrate.runs.store import called_by
from dualrate.sampling.catalogue import sampler_named
from dualrate.sampling.step import Step


@dataclass(frozen=True)
class Contender(Ranged):
    """A model under a sampler and a plan.

    run:     directory of the model
    network: what its line is called
    gamma:   noise level of a sampler with noise
    note:    what is special about the plan, empty if nothing
    denoiser: that calls the model's networks, of denoisers/catalogue.py; None: its own. Or the directory of a run,
             whose network makes the steps before the first heavy call
    named:   by the user, plan and all, so measured on the front in any case
    training: which of its network's trainings the run is, 0 the first
    """

    run: Path
    network: str
    sampler: str
    plan: StepPlan
    gamma: Probability = 0.0
    note: str = ""
    denoiser: str | None = None
    named: bool = False
    training: Annotated[int, Range(0, 1000)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        sampler_named(self.sampler)

    @property
    def reuses(self) -> bool:
        """Whether a step goes without a heavy call; a pair that never does is one network."""
        return self.plan.num_heavy < self.plan.num_steps

    @property
    def curve(self) -> str:
        """Names the contenders that differ from this one in the number of steps alone."""
        rate = f"{self.plan.num_steps / self.plan.num_heavy:g}" if self.plan.num_heavy else "no heavy calls"
        return f"{self.network} {self.denoiser} {self.sampler} {self.gamma} {self.note} {rate}"

    @property
    def key(self) -> str:
        """A file name, different for every contender; networks have different names."""
        says = f"{self.network} {self.denoiser} {self.gamma} {self.plan.digest}"
        digest = hashlib.sha256(says.encode()).hexdigest()[:8]
        name = re.sub(r"[^\w.-]+", "-", self.network)
        again = f"-{self.training}" if self.training else ""
        return f"{name}-{self.plan.num_steps}-{self.plan.num_heavy}-{self.sampler.replace(':', '-')}-{digest}{again}"

    def step(self, model: Model) -> Step:
        return step_for(model, self.plan, self.sampler, self.gamma or None)

    def drawer(self, loaded: Model) -> Drawer:
        """Raises what `step`, `called_by` and `Drawer` raise."""
        model = called_by(loaded, self.denoiser)
        return Drawer(model, self.step(model), self.plan, name=self.network)
