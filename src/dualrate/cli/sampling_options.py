"""The options that say how images are drawn, and the step and plan that they mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualrate.config.ranges import GuidanceWeight, HeavyCalls, NoiseLevel, Probability, Ranged, Steps
from dualrate.diffusion.plan import StepPlan
from dualrate.measuring.drawer import Drawer, Guidance
from dualrate.measuring.samplers import GAMMA, GridName, SamplerName, grid_times, read_plan, step_for
from dualrate.runs.store import Model
from dualrate.sampling.covariance import ProbedCovariance
from dualrate.sampling.step import Step


@dataclass(frozen=True)
class Plan(Ranged):
    """When the networks run."""

    steps: Steps | None = None
    """N, steps of the sampler; 64, or a distilled student's own, if not given. Heun calls the network twice in each but
    the first and the last."""
    heavy: HeavyCalls | None = None
    """H, heavy calls per image, spread evenly. A quarter of the steps, within what was trained, if not given."""
    plan: Path | None = None
    """A StepPlan as JSON, instead of --steps, --heavy, --grid and --times."""
    sampler: SamplerName = "ancestral"
    """ancestral, sde-dpm++2m and covariance (-table, -jvp) may reuse a dual-rate context; all others, and --eta, are
    for a heavy call at every step, or a single-rate model. Names with -table or -jvp need `dualrate calibrate RUN`
    once, which measures without guidance."""
    grid: GridName = "t"
    """Steps equal in t, in log-SNR, or as in Karras et al. 2022."""
    times: tuple[Probability, ...] | None = None
    """The N + 1 times themselves, from 1 (noise) to 0 (data), instead of --steps and --grid: 1 0.7 0.3 0."""
    gamma: Probability | None = None
    """Noise level of ancestral and sde-dpm++2m: 0 posterior variance (if not given), 1 transition variance."""
    eta: Probability | None = None
    """Share of ancestral's noise that is drawn afresh: 1 all of it (if not given), 0 none, which is DDIM."""
    guidance: GuidanceWeight = 1.0
    """Classifier-free guidance weight; 1 is none."""
    interval: tuple[NoiseLevel, NoiseLevel] | None = None
    """Noise levels (low, high] of sigma/alpha in which guidance acts; everywhere if not given."""


def drawer_of(model: Model, options: Plan, **more: Any) -> Drawer:
    """What the options ask for. more: fields of a `Drawer`. Raises what `sampler_of` and `Drawer` raise."""
    step, plan = sampler_of(model, options)
    return Drawer(model, step, plan, Guidance(options.guidance, options.interval), **more)


def sampler_of(model: Model, options: Plan) -> tuple[Step, StepPlan]:
    """The step and the plan that the options ask for. Raises ValueError for options that exclude each other."""
    if options.sampler not in GAMMA and options.gamma is not None:
        raise ValueError(f"--gamma is the noise level of {' and '.join(GAMMA)}; {options.sampler} has none")
    if options.sampler != "ancestral" and options.eta is not None:
        raise ValueError(f"--eta belongs to ancestral sampling, got it with {options.sampler}: drop one of the two")
    plan = _step_plan(model, options)
    model.experiment.times.check(plan)
    eta = 1.0 if options.eta is None else options.eta
    return step_for(model, plan, options.sampler, options.gamma or 0.0, eta), plan


def clamped(drawer: Drawer) -> dict[str, str]:
    """How often a step that probes covariances had to clamp them, for a report; empty for other steps."""
    return {"covariance_clamped": str(drawer.step.clamps)} if isinstance(drawer.step, ProbedCovariance) else {}


def _step_plan(model: Model, options: Plan) -> StepPlan:
    on_grid = options.steps is not None or options.grid != "t"
    if options.plan is not None:
        if on_grid or options.heavy is not None or options.times is not None:
            raise ValueError("--plan says all about the steps: drop --steps, --heavy, --grid and --times")
        return read_plan(options.plan)
    if options.times is not None:
        if on_grid:
            raise ValueError("--times says where the steps are: drop --steps and --grid")
        times = options.times
        if len(times) < 2 or (times[0], times[-1]) != (1, 0):
            raise ValueError(f"--times go from 1 (noise) to 0 (data), got {' '.join(map(str, times)) or 'none'}")
    else:
        steps = model.experiment.times.default_steps if options.steps is None else options.steps
        times = grid_times(options.grid, model.process.schedule, steps)
    steps = len(times) - 1
    heavy = model.experiment.times.default_heavy(steps) if options.heavy is None else options.heavy
    return StepPlan.spread(times, heavy)
