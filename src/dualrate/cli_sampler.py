"""The options that say how images are drawn, and the step and plan that they mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dualrate.runs.samplers import GridName, SamplerName, grid_times, make_step
from dualrate.runs.store import Model
from dualrate.steps import Step
from dualrate.timing import StepPlan


@dataclass(frozen=True)
class Plan:
    """When the networks run."""

    steps: int | None = None
    """N, steps of the sampler; 64 if not given. Heun calls the network twice in each but the first and the last."""
    heavy: int | None = None
    """H, heavy calls per image, spread evenly. A quarter of the steps, within what was trained, if not given."""
    plan: Path | None = None
    """A StepPlan as JSON, instead of --steps, --heavy and --grid."""
    sampler: SamplerName = "ancestral"
    """All but ancestral and sde-dpm++2m are for a heavy call at every step, or a single-rate model."""
    grid: GridName = "t"
    """Steps equal in t, in log-SNR, or as in Karras et al. 2022."""
    gamma: float | None = None
    """Noise level of ancestral and sde-dpm++2m: 0 posterior variance (if not given), 1 transition variance."""
    guidance: float = 1.0
    """Classifier-free guidance weight; 1 is none."""
    interval: tuple[float, float] | None = None
    """Noise levels (low, high] of sigma/alpha in which guidance acts; everywhere if not given."""


def sampler_of(model: Model, options: Plan) -> tuple[Step, StepPlan]:
    """The step and the plan that the options ask for. Raises ValueError for options that exclude each other."""
    if options.sampler not in ("ancestral", "sde-dpm++2m") and options.gamma is not None:
        raise ValueError(f"--gamma belongs to samplers with noise; {options.sampler} draws no noise")
    step = make_step(options.sampler, model.process, options.gamma or 0.0)
    if options.plan is not None:
        if options.steps is not None or options.heavy is not None or options.grid != "t":
            raise ValueError("--plan says all about the steps: drop --steps, --heavy and --grid")
        return step, StepPlan.from_json(options.plan.read_text())
    steps = 64 if options.steps is None else options.steps
    heavy = model.experiment.times.default_heavy(steps) if options.heavy is None else options.heavy
    refresh = StepPlan.uniform(steps, heavy).refresh
    return step, StepPlan(grid_times(options.grid, model.process.schedule, steps), refresh)
