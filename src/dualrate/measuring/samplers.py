"""Samplers and time grids by the names that the command line and reports know them by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from dualrate.data.untrusted import read_text, reading
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Schedule
from dualrate.experiments.experiment import Model
from dualrate.measuring.calibration import read_table
from dualrate.sampling import grids
from dualrate.sampling.adjusted_ddim import AdjustedDDIM
from dualrate.sampling.ancestral import DDIM, Ancestral
from dualrate.sampling.covariance import NoiseCovariance
from dualrate.sampling.solvers import DPMSolver2M, DPMSolver3M, Heun, SDEDPMSolver2M
from dualrate.sampling.step import Step

SamplerName = Literal[
    "ancestral",
    "ddim",
    "addim",
    "addim-table",
    "heun",
    "dpm++2m",
    "dpm++3m",
    "sde-dpm++2m",
    "covariance",
    "covariance-ddim",
    "covariance-table",
    "covariance-table-ddim",
    "covariance-jvp",
    "covariance-jvp-ddim",
]
TABLED = (
    "addim-table",
    "covariance-table",
    "covariance-table-ddim",
    "covariance-jvp",
    "covariance-jvp-ddim",
)  # need a calibrated run
TWICE = ("heun", "covariance", "covariance-ddim", "covariance-jvp", "covariance-jvp-ddim")  # two calls a step
GAMMA = ("ancestral", "sde-dpm++2m")  # have a noise level
GridName = Literal["t", "log-snr", "karras"]


def step_for(model: Model, plan: StepPlan, name: SamplerName, gamma: float = 0.0, eta: float = 1.0) -> Step:
    """The update rule of this name, for a model under a plan.

    Raises ValueError for a gamma or an eta that it has no use for, for a model without the table that it needs, and for
    a distilled student under anything but plain ancestral sampling.
    """
    _check(name, gamma, eta)
    if name not in TABLED:
        step = make_step(name, model.process, gamma, eta)
        model.serves.check_step(step)
        return step
    table, kernel = read_table(model), "ddim" if name.endswith("ddim") else "markov"
    if name == "addim-table":
        return table.adjusted(model.process)
    return (table.probed if "jvp" in name else table.tabulated)(model.process, plan, kernel)


def make_step(name: SamplerName, process: GaussianProcess, gamma: float = 0.0, eta: float = 1.0) -> Step:
    """The update rule of this name, aDDIM with the analytic variance.

    Raises ValueError for a gamma or an eta that it has no use for, and for a name that belongs to a model and a plan.
    """
    _check(name, gamma, eta)
    steps: dict[str, Callable[[GaussianProcess], Step]] = {
        "ancestral": lambda of: Ancestral(of, gamma, eta),
        "ddim": DDIM,
        "addim": AdjustedDDIM,
        "heun": Heun,
        "dpm++2m": DPMSolver2M,
        "dpm++3m": DPMSolver3M,
        "sde-dpm++2m": lambda of: SDEDPMSolver2M(of, gamma),
        "covariance": NoiseCovariance,
        "covariance-ddim": lambda of: NoiseCovariance(of, "ddim"),
    }
    if name not in steps:
        raise ValueError(f"{name} needs the table of a model, for a plan: use `step_for`")
    return steps[name](process)


def _check(name: SamplerName, gamma: float, eta: float) -> None:
    if eta != 1 and name != "ancestral":
        raise ValueError(f"eta takes noise from ancestral sampling and means nothing to {name}, got eta {eta}")
    if gamma != 0 and name not in GAMMA:
        raise ValueError(f"gamma is the noise level of {' and '.join(GAMMA)}; {name} has none, got gamma {gamma}")


def steps_of(name: SamplerName, calls: int) -> int:
    """The most steps of this sampler for so many calls of the network."""
    if name not in TWICE:
        return calls
    spared = {"heun": 2, "covariance": 1, "covariance-ddim": 1}.get(name, 0)  # steps at the ends that take one call
    return (calls + spared) // 2


def grid_times(name: GridName, schedule: Schedule, steps: int) -> tuple[float, ...]:
    """The N + 1 times of a grid with its usual ends. Raises ValueError where `dualrate.sampling.grids` does."""
    match name:
        case "t":
            return grids.uniform(steps)
        case "log-snr":
            return grids.uniform_log_snr(schedule, steps)
        case "karras":
            return grids.karras(schedule, steps)


def read_plan(path: Path) -> StepPlan:
    """A plan from a JSON file. Raises OSError if it cannot be read; ValueError, naming the file, if it is no plan."""
    with reading(path, "a plan"):
        return StepPlan.from_json(read_text(path))
