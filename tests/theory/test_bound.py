"""The variational bound, against entropies and closed forms."""

import math
from dataclasses import dataclass

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from dualrate.diffusion.context import Cond, expand
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import Gaussian, GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.bound import divergence, log_probability, variational_bound
from dualrate.sampling.ddim import DDIM
from tests.theory.common import PROCESS, gaussian, line_mixture, normals, uniform_log_snr, uniforms
from theory.exact import OracleDenoiser
from theory.held_context import Echo

ROWS = 20_000


def marginal(log_snr: torch.Tensor, c: float) -> torch.Tensor:
    return torch.sigmoid(log_snr) * c + torch.sigmoid(-log_snr)


@dataclass(frozen=True)
class Exact:
    """The kernel with the true variance of p(z_s | z_t) for data N(0, c): V + B^2 Var[x | z_t]."""

    process: GaussianProcess
    c: float
    markovian = True

    def start(self):
        return ()

    def kernel(self, denoise, z, t, s):
        plain = Ancestral(self.process).kernel(denoise, z, t, s)
        low, high = self.process.schedule.log_snr(t), self.process.schedule.log_snr(s)
        weight = -torch.expm1(low - high) * torch.sigmoid(high).sqrt()
        spread = self.c * torch.sigmoid(-low) / marginal(low, self.c)
        return Gaussian(plain.mean, plain.variance + expand(weight**2 * spread, z))

    def __call__(self, denoise, z, t, s, draw, carry):
        return self.kernel(denoise, z, t, s).sample(draw()), carry


def bound_of(step, plan, c=0.3, rows=ROWS, denoiser=None):
    x = c**0.5 * normals(3, rows, 1)
    denoiser = denoiser or OracleDenoiser(gaussian(c), PROCESS)
    return variational_bound(denoiser, step, plan, x, Cond(), Draws(1, torch.arange(rows)), bins=None)


def close(values: torch.Tensor, expected: float) -> None:
    error = 4 * values.std().item() / len(values) ** 0.5
    assert values.mean().item() == pytest.approx(expected, abs=error)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_exact_kernel_reaches_the_entropy_at_every_number_of_steps(steps):
    """Up to the prior's own gap: KL(q(z_1) | N(0, I)) = 1/2 (v_1 - 1 - log v_1)."""
    c = 0.3
    bound = bound_of(Exact(PROCESS, c), StepPlan.uniform(steps), c)
    v = marginal(torch.tensor(-15.0, dtype=torch.float64), c).item()
    close(bound.total, 0.5 * math.log(2 * math.pi * math.e * c) + 0.5 * (v - 1 - math.log(v)))


@pytest.mark.parametrize(
    "plan",
    [StepPlan.uniform(4), uniform_log_snr(6), StepPlan.at([0.9, 0.5, 0.1], range(2)), StepPlan.at([0.4, 0.1], [0])],
)
def test_every_step_is_the_closed_form_of_a_gaussian(plan):
    """KL of a step with variance V: 1/2 B^2 Var[x | z_t] / V, for the exact x_hat."""
    c = 0.3
    bound = bound_of(Ancestral(PROCESS), plan, c)
    log_snr = PROCESS.schedule.log_snr(torch.tensor(plan.t, dtype=torch.float64))
    low, high = log_snr[:-1], log_snr[1:]
    share = -torch.expm1(low - high)
    spread = c * torch.sigmoid(-low) / marginal(low, c)
    expected = 0.5 * share * torch.exp(high) * spread  # B^2 / V = c alpha_s^2 / sigma_s^2
    for i in range(plan.num_steps):
        close(bound.steps[:, i], expected[i].item())
    first = log_snr[0]
    prior = torch.sigmoid(-first) - 1 - torch.log(torch.sigmoid(-first)) + torch.sigmoid(first) * c
    close(bound.prior, 0.5 * prior.item())


def test_gamma_enters_as_a_ratio_of_variances():
    c, gamma, plan = 0.3, 0.7, StepPlan.at([0.6, 0.4], [0])
    plain, wide = (bound_of(Ancestral(PROCESS, g), plan, c).steps[:, 0] for g in (0.0, gamma))
    t, s = (PROCESS.schedule.log_snr(torch.tensor(u, dtype=torch.float64)) for u in plan.t)
    ratio = (torch.sigmoid(-s) / torch.sigmoid(-t)).item() ** gamma  # V / v
    torch.testing.assert_close(wide, 0.5 * (ratio - 1 - math.log(ratio)) + ratio * plain)


def test_above_the_entropy_of_a_mixture_and_converging_to_it():
    mixture, rows = line_mixture(), 5000
    x = mixture.sample(uniforms(1, rows), normals(2, rows, 1))
    denoiser, draws = OracleDenoiser(mixture, PROCESS), Draws(0, torch.arange(rows))
    log_p = mixture.log_density(x, torch.tensor(math.inf))  # its mean is minus the entropy
    gaps = []
    for steps in (64, 256):
        bound = variational_bound(denoiser, Ancestral(PROCESS), uniform_log_snr(steps), x, Cond(), draws, bins=None)
        gap = bound.total + log_p
        assert gap.mean() > 3 * gap.std() / len(gap) ** 0.5
        gaps.append(gap.mean().item())
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.25)  # ~ 1 / N


def test_a_reused_context_is_judged_by_what_it_knew_at_tau():
    """Echo's x_hat = E[x | z_tau]: the error of a kept step is Var[x | z_tau], not Var[x | z_t]."""
    c, plan = 0.3, StepPlan.at([0.8, 0.6, 0.4, 0.2], [0, 2])
    bound = bound_of(Ancestral(PROCESS), plan, c, denoiser=Echo(gaussian(c), PROCESS))
    log_snr = PROCESS.schedule.log_snr(torch.tensor(plan.t, dtype=torch.float64))
    tau = log_snr[[0, 0, 2]]
    share = -torch.expm1(log_snr[:-1] - log_snr[1:]) * torch.exp(log_snr[1:])
    expected = 0.5 * share * c * torch.sigmoid(-tau) / marginal(tau, c)
    for i in range(3):
        close(bound.steps[:, i], expected[i].item())


def test_ddim_has_no_kernel_and_breaks_the_pair_law():
    with pytest.raises(ValueError, match="joint law"):
        bound_of(DDIM(PROCESS), StepPlan.uniform(4, 2), denoiser=Echo(gaussian(0.3), PROCESS))


@pytest.mark.parametrize("bins", [2, 4, 256])
def test_bins_hold_all_of_the_mass(bins):
    values = torch.linspace(-1, 1, bins, dtype=torch.float64)
    for mean, deviation in ((0.1, 0.3), (-0.9, 2.0), (0.5, 1e-3), (3.0, 0.2)):
        log_p = log_probability(values, torch.tensor(mean).double(), torch.tensor(deviation).double(), bins)
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_bins_in_the_tails_keep_their_precision():
    x = torch.tensor([-0.5, 0.5], dtype=torch.float64)
    got = log_probability(x, torch.zeros(2, dtype=torch.float64), torch.tensor(0.02, dtype=torch.float64), 5)
    expected = norm.logsf(0.25 / 0.02)  # the next bin's share is nothing beside it
    assert got.tolist() == pytest.approx([expected, expected], rel=1e-9)


def test_discrete_data_of_one_value_cost_nothing_and_bits_count_all_elements():
    """A perfect denoiser of a known image: the bound goes to 0 bits; a wrong one pays."""
    x = torch.full((4, 1, 2, 2), 0.2, dtype=torch.float64)
    x = (x * 127.5 + 127.5).round() / 127.5 - 1

    class Knows:
        reuse = OracleDenoiser.reuse

        def __init__(self, value):
            self.value = value

        def encode(self, z, t, cond, **_):
            return OracleDenoiser(gaussian(1.0), PROCESS).encode(z, t, cond)

        def denoise(self, z, t, context, cond):
            return self.value.expand_as(z)

    plan, draws = uniform_log_snr(16), Draws(0, torch.arange(4))
    right = variational_bound(Knows(x[:1]), Ancestral(PROCESS), plan, x, Cond(), draws)
    assert right.bits_per_dimension.abs().max() < 1e-3
    assert right.dimensions == 4
    wrong = variational_bound(Knows(x[:1] + 0.01), Ancestral(PROCESS), plan, x, Cond(), draws)
    assert wrong.bits_per_dimension.min() > 1
    torch.testing.assert_close(wrong.bits_per_dimension, wrong.total / 4 / math.log(2))


def test_rounding_costs_what_noise_of_a_grey_level_leaves_open():
    """At an end where a bin is as wide as the noise: E -log(Phi(n + 1/2) - Phi(n - 1/2)), n normal."""
    x = (torch.arange(ROWS) % 200 + 20).double().view(-1, 1) / 127.5 - 1  # away from the outer bins
    end = PROCESS.schedule.time(torch.tensor(2 * math.log(255 / 2), dtype=torch.float64)).item()
    plan, draws = StepPlan.at([1.0, 0.5, end], range(2)), Draws(1, torch.arange(ROWS))
    bound = variational_bound(OracleDenoiser(gaussian(0.3), PROCESS), Ancestral(PROCESS), plan, x, Cond(), draws)
    cost, _ = quad(lambda n: -norm.pdf(n) * math.log(norm.cdf(n + 0.5) - norm.cdf(n - 0.5)), -8, 8)
    close(bound.reconstruction, cost)


def test_divergence_is_that_of_torch():
    mean, other = normals(1, 3, 5), normals(2, 3, 5)
    variance, wide = uniforms(3, 3, 1) + 0.1, uniforms(4, 3, 1) + 0.1
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, variance.sqrt()), torch.distributions.Normal(other, wide.sqrt())
    ).sum(1)
    torch.testing.assert_close(divergence(Gaussian(mean, variance), Gaussian(other, wide)), expected)
