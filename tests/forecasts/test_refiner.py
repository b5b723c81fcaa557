"""PDE-Refiner: the paper's algorithm, written plainly, and a Gaussian whose refinements have variances in closed form.

x | y ~ N(m y, V): f is m y at first, then E[eps | z_k] = sigma_k (z_k - m y) / (V + sigma_k^2), so that

    u_k = m y + g_k (u_{k-1} + sigma_k eps - m y),  g_k = V / (V + sigma_k^2)
    Var u_k = g_k^2 (Var u_{k-1} + sigma_k^2)
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import dualrate as dr
from dualrate.data.conditions import SuperResolution
from dualrate.denoisers.denoiser import Conditional, Metered
from dualrate.diffusion.context import Batch
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Elbo
from dualrate.experiment.experiment import Start
from dualrate.experiment.network_configs import TwoConditional
from dualrate.forecasts.refiner import AtLevels, Levels, Refinement, RefinerConfig, Refining
from dualrate.methods.times import GivenTimes, SingleTime
from dualrate.sampling.ancestral import Reverse
from dualrate.sampling.trajectory import sample_batches

K, SIGMA_MIN = 3, 0.05
PROCESS = Refinement(Levels(K, SIGMA_MIN))
PLAN = RefinerConfig(refinements=K).serves.default_plan()
SHAPE = (1, 2, 2)


def level(log_snr: Tensor) -> Tensor:
    """k, of what networks are told."""
    return torch.round(-log_snr * K / (2 * torch.log(torch.tensor(SIGMA_MIN))))


class Operator(nn.Module):
    """f(u, k, y): of no meaning, and not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, z: Tensor, log_snr: Tensor, given: Tensor, label: None) -> Tensor:
        return self.of(z, level(log_snr)[:, None, None, None], given)

    def of(self, z: Tensor, k: Tensor | int, given: Tensor) -> Tensor:
        return torch.sin(self.weight * z + given) + 0.1 * k * z + 0.2 * k


def paper(f: Operator, y: Tensor, noises: list[Tensor]) -> Tensor:
    """Its algorithm of prediction."""
    u = f.of(torch.zeros_like(y), 0, y)
    for k in range(1, K + 1):
        std = SIGMA_MIN ** (k / K)
        noised = u + std * noises[k - 1]
        u = noised - std * f.of(noised, k, y)
    return u


def test_samples_are_those_of_the_paper_s_algorithm() -> None:
    f, y, seeds = Operator(), torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    noises = [Draws(0, seeds).normal(f"step {i} draw 0", *SHAPE) for i in range(K)]
    metered = Metered(Conditional(f, PROCESS))
    given = dict(zip(range(3), y, strict=True))
    (found,) = sample_batches(
        metered, Reverse(PROCESS), PLAN, SHAPE, range(3), given=lambda seed: torch.stack([given[int(i)] for i in seed])
    )
    torch.testing.assert_close(found, paper(f, y, noises))
    assert metered.meter.light == 3 * (K + 1)


def test_the_loss_is_the_paper_s() -> None:
    f, rows = Operator(), 64
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, *SHAPE, generator=generator) for _ in range(2))
    batch = Batch(x, None, torch.arange(rows), given=y)
    times = AtLevels(SingleTime(), PROCESS.schedule)
    method = Refining(nn.ModuleDict({"f": f}), Conditional(f, PROCESS), PROCESS, Elbo(), times)
    draws = batch.draws(0)
    found = method.loss(batch, 0, draws).total
    k = torch.round((1 - times(draws).t) * (K + 1))
    k, eps = k[:, None, None, None].float(), draws.normals(["z_tau"], *SHAPE)[0]
    noised = torch.where(k > 0, x + SIGMA_MIN ** (k / K) * eps, 0)
    plain = (f.of(noised, k, y) - torch.where(k > 0, eps, x)).square().mean()
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=0)


def test_levels_are_equally_frequent_and_have_the_paper_s_noise() -> None:
    levels = Levels(K, SIGMA_MIN)
    t = AtLevels(SingleTime(), levels)(Draws(0, torch.arange(4096))).t
    found, counts = t.unique(return_counts=True)
    torch.testing.assert_close(found, torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
    assert (counts - 1024).abs().max() < 40
    sigma = torch.exp(-levels.log_snr(found) / 2)
    torch.testing.assert_close(sigma, SIGMA_MIN ** (torch.arange(3, -1, -1).double() / K))
    torch.testing.assert_close(levels.time(levels.log_snr(found)), found)


class Exact(nn.Module):
    """f of the module's docstring, with m = 1."""

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.variance = variance

    def forward(self, z: Tensor, log_snr: Tensor, given: Tensor, label: None) -> Tensor:
        k, y = level(log_snr).long(), given.repeat_interleave(len(z) // len(given), 0)
        sigma = torch.exp(-log_snr / 2)[:, None, None, None]
        noise = sigma * (z - y) / (self.variance + sigma**2)
        return torch.where((k == 0)[:, None, None, None], y, noise)


def test_refinements_of_a_gaussian_have_the_variance_of_the_recursion() -> None:
    variance, rows = 0.04, 20_000
    y = torch.full((1, 1, 1, 1), 0.5)
    model = Conditional(Exact(variance), PROCESS)
    x = torch.cat(
        list(
            sample_batches(
                model, Reverse(PROCESS), PLAN, (1, 1, 1), range(rows), batch_size=rows,
                given=lambda seed: y.expand(len(seed), 1, 1, 1),
            )
        )
    )  # fmt: skip
    expected = 0.0
    for k in range(1, K + 1):
        noise = SIGMA_MIN ** (2 * k / K)
        expected = (variance / (variance + noise)) ** 2 * (expected + noise)
    assert 0 < expected < variance  # members differ less than futures do
    assert x.var().item() == pytest.approx(expected, rel=0.05)
    assert x.mean().item() == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize(("variance", "right"), [(0.04, True), (0.4, False)])
def test_nothing_pulls_at_the_exact_network(variance: float, right: bool) -> None:
    rows, model = 40_000, Exact(variance)
    draws = Draws(3, torch.arange(rows))
    y, noise = draws.normal("y", 1, 1, 1), draws.normal("x", 1, 1, 1)
    x = y + 0.2 * noise
    batch = Batch(x, None, draws.row, given=y)
    off = nn.Parameter(torch.ones(()))

    class Scaled(nn.Module):
        def forward(self, z: Tensor, log_snr: Tensor, given: Tensor, label: None) -> Tensor:
            return off * model(z, log_snr, given, label)

    times = AtLevels(SingleTime(), PROCESS.schedule)
    method = Refining(nn.ModuleDict(), Conditional(Scaled(), PROCESS), PROCESS, Elbo(), times)
    (gradient,) = torch.autograd.grad(method.loss(batch, 0, batch.draws(0)).total, [off])
    assert (gradient.abs() < 0.02) == right


NET = dr.UViTConfig(8, 1, (dr.Level("conv", 8, 1), dr.Level("conv", 8, 1)), patch=2, embedding=16)
GIVEN = SuperResolution(2).shape((1, 8, 8))


def experiment(process: dr.GaussianProcess | Refinement, refinements: int = K) -> dr.Experiment:
    method = RefinerConfig(GivenTimes(draws=2), refinements)
    pair = TwoConditional(NET, NET, GIVEN)
    return dr.Experiment("run", pair, method, dr.FitConfig(2), process=process, condition=SuperResolution(2))


def test_the_heavy_network_of_two_rates_sees_the_condition_once() -> None:
    made = experiment(Refinement())
    plan = made.serves.default_plan()
    assert (plan.num_steps, plan.num_heavy) == (4, 1)
    nothing = Start(True, torch.device("cpu"), False, lambda path: None, lambda i: None, print)  # pyright: ignore[reportArgumentType]
    method = made.method.prepare(made, nothing).method
    metered, y = Metered(method.denoiser()), torch.randn(2, *GIVEN)
    (x,) = sample_batches(metered, Reverse(made.process), plan, (1, 8, 8), [0, 1], members=3, given=lambda seed: y)
    assert (metered.meter.heavy, metered.meter.light) == (2, 24)
    assert x.isfinite().all()


def test_what_is_no_refinement_is_refused() -> None:
    with pytest.raises(ValueError, match="its process is a Refinement of as many levels"):
        experiment(dr.GaussianProcess(dr.Experiment.process.schedule))  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="refines 2 times"):
        experiment(Refinement(), 2)
    with pytest.raises(ValueError, match="noise levels of 4 steps, and no others"):
        experiment(Refinement()).serves.check(dr.StepPlan.uniform(8, 1))
    with pytest.raises(ValueError, match="none is made of another"):
        PROCESS.transition(torch.zeros(1, 1, 1, 1), torch.tensor(0.25), torch.tensor(0.5))
