"""A process that ends in noisy latents: every sampler draws z_0 with its noise, and others end in x_hat as before."""

import math

import pytest
import torch
from torch import Tensor

from dualrate.diffusion.context import Cond
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess, NoisyEnd
from dualrate.diffusion.schedule import Cosine
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.covariance import NoiseCovariance
from dualrate.sampling.ddim import DDIM, AdjustedDDIM
from dualrate.sampling.grids import GRIDS, grid_times
from dualrate.sampling.solvers import DPMSolver2M, DPMSolver3M, Heun, SDEDPMSolver2M
from dualrate.sampling.trajectory import rollout
from theory.common import gaussian, normals, sources
from theory.exact import OracleDenoiser

SCHEDULE, LOG_SNR, C = Cosine(log_snr_max=5.0), 5.0, 0.01
KINDS = (Ancestral, DDIM, Heun, DPMSolver2M, DPMSolver3M, SDEDPMSolver2M, NoiseCovariance)
CLEAN, NOISE = 1 / (1 + math.exp(-LOG_SNR)), 1 / (1 + math.exp(LOG_SNR))  # alpha_0^2, sigma_0^2


def last_variance(kind, process, grid: str, steps: int = 64) -> float:
    plan = StepPlan.spread(grid_times(grid, SCHEDULE, steps))
    *_, end = sources(OracleDenoiser(gaussian(C), process), kind(process), plan)
    return float((end.z**2).sum())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_drawn_has_the_variance_of_noisy_latents(kind):
    """For data smaller than the noise left in them x_hat would have a third of it, and of the last call's a fifth."""
    assert last_variance(kind, NoisyEnd(SCHEDULE), "log-snr") == pytest.approx(CLEAN * C + NOISE, rel=0.2)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_other_processes_end_in_x_hat(kind):
    assert last_variance(kind, GaussianProcess(SCHEDULE), "log-snr") < 0.4 * (CLEAN * C + NOISE)


def test_the_adjusted_step_too():
    """Which is not linear, and looks at all elements of an image together."""
    plan = StepPlan.spread(grid_times("log-snr", SCHEDULE, 32))
    process = NoisyEnd(SCHEDULE)
    z = rollout(
        OracleDenoiser(gaussian(C, 64), process), AdjustedDDIM(process), plan, normals(0, 200, 64), Cond(), no_noise
    )
    assert float(z.var()) == pytest.approx(CLEAN * C + NOISE, rel=0.2)


def no_noise(step: int, draw: int) -> Tensor:
    raise AssertionError("a deterministic step draws no noise")


@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_serves_a_process_that_ends_early(grid):
    assert last_variance(Ancestral, NoisyEnd(SCHEDULE), grid) == pytest.approx(CLEAN * C + NOISE, rel=0.2)


def test_a_process_says_what_it_ends_in():
    zero = torch.zeros(2, dtype=torch.float64)
    assert (NoisyEnd(SCHEDULE).end, GaussianProcess(SCHEDULE).end) == (LOG_SNR, None)
    assert (NoisyEnd(SCHEDULE).ends(zero), GaussianProcess(SCHEDULE).ends(zero)) == (False, True)
