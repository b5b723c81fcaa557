"""Parts that the theory tests share: schedules, mixtures, float64 random numbers, exact variances of samplers."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dualrate.diffusion.context import Cond
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine, Interpolated, shifted
from dualrate.sampling.cost import call_cost, expected_costs
from dualrate.sampling.trajectory import State, trajectory
from theory.exact import GaussianMixture

SCHEDULES = {
    "cosine": Cosine(),
    "narrow cosine": Cosine(-9.0, 7.0),
    "shifted": shifted(32, 128),
    "interpolated": Interpolated.between(32, 128, 128),
    "interpolated, one end shifted": Interpolated.between(32, 64, 64),
}
PROCESS = GaussianProcess(Cosine())


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normals(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uniforms(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(variance: float, dimensions: int = 1, mean: float = 0.0) -> GaussianMixture:
    """One component N(mean, variance I)."""
    return GaussianMixture.isotropic(torch.full((1, dimensions), mean, dtype=torch.float64), variance)


def line_mixture() -> GaussianMixture:
    """Three components on a line, of unequal weight and width."""
    return GaussianMixture(f64(0.2, 0.5, 0.3), f64(-0.8, 0.1, 0.9)[:, None], f64(0.01, 0.04, 0.0025)[:, None, None])


def space_mixture() -> GaussianMixture:
    """Two components in three dimensions with full covariances, the second of rank 2."""
    root = normals(7, 2, 3, 3) * 0.4
    root[1, :, 2] = 0
    return GaussianMixture(f64(0.35, 0.65), normals(8, 2, 3) * 0.5, root @ root.mT)


def sources(denoiser, step, plan: StepPlan, shape: tuple[int, ...] = (1,)) -> Iterator[State]:
    """A trajectory whose row j carries what the j-th independent standard normal contributes to z.

    Row 0 is the start, row i + 1 the noise of step i. For a linear denoiser (a centred Gaussian's) the exact covariance
    of two states is the sum over rows of their products, without Monte Carlo.
    """
    rows = plan.num_steps + 1

    def unit(row: int) -> Tensor:
        return torch.eye(rows, dtype=torch.float64)[row].view(-1, *[1] * len(shape)).expand(rows, *shape)

    return trajectory(denoiser, step, plan, unit(0), Cond(), lambda i, draw: unit(i + 1))


def uniform_log_snr(steps: int, low: float = -15.0, high: float = 15.0, heavy: int | None = None) -> StepPlan:
    """A plan with equal steps in log-SNR, heavy calls at every step unless told otherwise."""
    t = PROCESS.schedule.time(torch.linspace(low, high, steps + 1, dtype=torch.float64))
    t = (t * 1e15).round() / 1e15  # 0 and 1 themselves at the ends
    return StepPlan(tuple(t.tolist()), StepPlan.uniform(steps, heavy).refresh)


def plan_cost(denoiser, step, plan, shape, *, label=None, wrap=lambda inner: inner, given=None):
    """Return the cost of an image, by one call of each kind that is counted."""
    calls = call_cost(denoiser, step.process.state_shape(shape), label, given=given)
    return expected_costs(calls, denoiser.reuse, step, plan, shape, label=label, wrap=wrap)[-1]
