"""The options that say how images are drawn, and the step and plan that they mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from dualrate.config.ranges import GuidanceWeight, HeavyCalls, NoiseLevel, Probability, Ranged, Steps
from dualrate.diffusion.plan import StepPlan
from dualrate.experiments.experiment import Model
from dualrate.measuring.calibration import step_for
from dualrate.measuring.planning import read_plan
from dualrate.sampling.catalogue import ANCESTRAL, SAMPLERS, sampler_named, taking
from dualrate.sampling.grids import GridName, grid_times
from dualrate.sampling.step import Step


def _names(markovian: bool) -> str:
    kind = {name: sampler for name, sampler in SAMPLERS.items() if sampler.markovian == markovian}
    return ", ".join(f"{name}*" if sampler.of_table else name for name, sampler in kind.items())


SAMPLER = (
    f"May reuse a dual-rate context: {_names(markovian=True)}; for a heavy call at every step, or one network: "
    f"{_names(markovian=False)}; or package.module:Class, a step of your own. "
    "*: needs `dualrate calibrate RUN` once, which measures without guidance."
)
GAMMA = f"Noise level of {' and '.join(taking('gamma'))}: 0 posterior variance (if not given), 1 transition variance."
ETA = (
    f"Share of the noise of {' and '.join(taking('eta'))} that is drawn afresh: 1 all of it (if not given), 0 none, "
    "which is DDIM; below 1, for a heavy call at every step, or one network."
)


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
    sampler: Annotated[str, arg(help=SAMPLER)] = ANCESTRAL
    grid: GridName = "t"
    """Steps equal in t, in log-SNR, or as in Karras et al. 2022."""
    times: tuple[Probability, ...] | None = None
    """The N + 1 times themselves, from 1 (noise) to 0 (data), instead of --steps and --grid: 1 0.7 0.3 0."""
    gamma: Annotated[Probability | None, arg(help=GAMMA)] = None
    eta: Annotated[Probability | None, arg(help=ETA)] = None
    guidance: GuidanceWeight = 1.0
    """Classifier-free guidance weight; 1 is none."""
    interval: tuple[NoiseLevel, NoiseLevel] | None = None
    """Noise levels (low, high] of sigma/alpha in which guidance acts; everywhere if not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sampler_named(self.sampler)


def sampler_of(model: Model, options: Plan) -> tuple[Step, StepPlan]:
    """The step and the plan that the options ask for. Raises ValueError for options that exclude each other."""
    plan = _step_plan(model, options)
    model.serves.check(plan)
    return step_for(model, plan, options.sampler, options.gamma, options.eta), plan


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
        steps = model.serves.default_steps if options.steps is None else options.steps
        times = grid_times(options.grid, model.process.schedule, steps)
    steps = len(times) - 1
    heavy = model.serves.default_heavy(steps) if options.heavy is None else options.heavy
    return StepPlan.spread(times, heavy)
