"""Samplers at equal calls of an exact denoiser, by their distance from the data: the table of docs/choosing.md.

    PYTHONPATH=src:tests python -m theory.samplers_compared

Data are Gaussian fields of 8 x 8 on a torus, of which waves of radius k have the power (1 + k^2)^(-3/2), and mixtures
of them. A derivative counts as a call. Every sampler has, at each number of calls, the best of the grids.

    distance  sliced Wasserstein distance (W2) between ROWS samples and as many draws of the data: its root mean square
              over the twelve lowest waves and a hundred directions at random, over that of the data from 0
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import dualrate as dr
from dualrate.diffusion.context import Cond
from dualrate.sampling.covariance import Bands
from dualrate.sampling.ddim import AdjustedDDIM
from dualrate.sampling.fourier import FourierCovariance
from dualrate.sampling.grids import grid_times
from dualrate.sampling.lanczos import LanczosCovariance
from dualrate.sampling.solvers import DPMSolver2M, Heun
from dualrate.sampling.trajectory import rollout
from theory.common import PROCESS, normals, uniforms
from theory.exact import GaussianMixture, OracleDenoiser

SHAPE, SIZE, ROWS, CALLS = (1, 8, 8), 64, 3000, (4, 8, 16)
GRIDS = ("t", "blend:0.5", "log-snr", "karras")
WAVES = Bands(SHAPE, 1000, "periodic").transform(torch.eye(SIZE).double().view(SIZE, *SHAPE)).flatten(1).mT
SAMPLERS: dict[str, dr.Step] = {
    "aDDIM": AdjustedDDIM(PROCESS),
    "Heun": Heun(PROCESS),
    "DPM-Solver++ 2M": DPMSolver2M(PROCESS),
    "SDE-DPM-Solver++ 2M": dr.SDEDPMSolver2M(PROCESS),
    "`covariance-dft`": FourierCovariance(PROCESS, boundary="periodic"),
    "`covariance-dct`": FourierCovariance(PROCESS, boundary="even"),
    "the same by DFT, Markov kernel": FourierCovariance(PROCESS, "markov", "periodic"),
    "`lanczos`": LanczosCovariance(PROCESS),
}


def field(variance: float) -> Tensor:
    """Covariance of a stationary field, of this variance at every point."""
    frequency = torch.minimum(torch.arange(8), 8 - torch.arange(8)).double()
    power = (1 + frequency[:, None] ** 2 + frequency**2).pow(-1.5).flatten()
    return WAVES.mT @ torch.diag(variance * power / power.mean()) @ WAVES


def mixture(means: Tensor, *covariances: Tensor) -> GaussianMixture:
    """Equally likely components."""
    stacked = torch.stack(covariances)
    return GaussianMixture(torch.full((len(means),), 1 / len(means)).double(), means, (stacked + stacked.mT) / 2)


def datasets() -> dict[str, GaussianMixture]:
    rising, nothing = torch.linspace(0.1, 1, 8).double().repeat(8), torch.zeros(3, SIZE).double()
    values, axes = torch.linalg.eigh(field(0.25))
    means = normals(3, 5, SIZE) * values.sqrt() @ axes.mT
    return {
        "one field": mixture(nothing[:1], field(0.3)),
        "a field of one of three amplitudes": mixture(nothing, *map(field, (0.02, 0.1, 0.5))),
        "a field that grows from left to right": mixture(nothing[:1], rising[:, None] * field(0.8) * rising),
        "fields about one of five images": mixture(means, *[field(0.05)] * 5),
    }


def sliced(x: Tensor, y: Tensor) -> float:
    """Distance of the module, before it is divided. x, y: (N, D)"""
    order = torch.linalg.eigh(field(1.0))[1].flip(1)[:, :12]
    directions = torch.cat((order, torch.nn.functional.normalize(normals(9, SIZE, 100), dim=0)), 1)
    return ((x @ directions).sort(0)[0] - (y @ directions).sort(0)[0]).square().mean().sqrt().item()


def samples(data: GaussianMixture, step: dr.Step, plan: dr.StepPlan) -> Tensor:
    """(ROWS, D)"""
    start, draw = normals(5, ROWS, *SHAPE), lambda i, j: normals(1000 + 10 * i + j, ROWS, *SHAPE)
    return rollout(OracleDenoiser(data, PROCESS), step, plan, start, Cond(), draw).flatten(1)


def distances(data: GaussianMixture, measure: Callable[[Tensor], float]) -> dict[str, list[float]]:
    """Return the distances of each sampler, at each number of calls."""
    return {
        name: [
            min(
                measure(samples(data, step, dr.StepPlan.at(grid_times(grid, PROCESS.schedule, steps), range(steps))))
                for grid in GRIDS
            )
            for steps in map(step.most_steps, CALLS)
        ]
        for name, step in SAMPLERS.items()
    }


def main() -> None:
    print(f"| data | sampler | {' | '.join(f'{calls} calls' for calls in CALLS)} |")
    print(f"| --- | --- |{' ---: |' * len(CALLS)}")
    for name, data in datasets().items():
        real, again = (data.sample(uniforms(seed, ROWS), normals(seed + 1, ROWS, SIZE)) for seed in (1, 3))
        size = sliced(real, torch.zeros_like(real))
        for sampler, row in distances(data, lambda x, y=real, s=size: sliced(x, y) / s).items():
            print(f"| {name} | {sampler} | {' | '.join(f'{value:.3f}' for value in row)} |", flush=True)
        print(f"| {name} | the data, drawn again | {' | '.join([f'{sliced(again, real) / size:.3f}'] * len(CALLS))} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
