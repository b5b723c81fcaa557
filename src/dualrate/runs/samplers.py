"""Samplers and time grids by the names that the command line and reports know them by."""

from __future__ import annotations

from typing import Literal

from dualrate import grids
from dualrate.adjusted_ddim import AdjustedDDIM
from dualrate.process import GaussianProcess
from dualrate.schedule import Schedule
from dualrate.solvers import DPMSolver2M, DPMSolver3M, Heun, SDEDPMSolver2M
from dualrate.steps import DDIM, Ancestral, Step

SamplerName = Literal["ancestral", "ddim", "addim", "heun", "dpm++2m", "dpm++3m", "sde-dpm++2m"]
GridName = Literal["t", "log-snr", "karras"]


def make_step(name: SamplerName, process: GaussianProcess, gamma: float = 0.0, eta: float = 1.0) -> Step:
    """The update rule of this name, aDDIM with the analytic variance.

    Raises ValueError for a gamma or an eta that it has no use for.
    """
    if eta != 1 and name != "ancestral":
        raise ValueError(f"eta takes noise from ancestral sampling and means nothing to {name}, got eta {eta}")
    if name == "ancestral":
        return Ancestral(process, gamma, eta)
    if name == "sde-dpm++2m":
        return SDEDPMSolver2M(process, gamma)
    if gamma != 0:
        raise ValueError(f"gamma belongs to samplers with noise; {name} draws no noise, got gamma {gamma}")
    steps = {"ddim": DDIM, "addim": AdjustedDDIM, "heun": Heun, "dpm++2m": DPMSolver2M, "dpm++3m": DPMSolver3M}
    return steps[name](process)


def grid_times(name: GridName, schedule: Schedule, steps: int) -> tuple[float, ...]:
    """The N + 1 times of a grid with its usual ends. Raises ValueError where `dualrate.grids` does."""
    match name:
        case "t":
            return grids.uniform(steps)
        case "log-snr":
            return grids.uniform_log_snr(schedule, steps)
        case "karras":
            return grids.karras(schedule, steps)
