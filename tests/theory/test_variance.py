"""The variance measured for a step, against the closed form of a Gaussian and the bound that it makes."""

import math

import pytest
import torch

from dualrate.diffusion.context import Cond
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.bound import FittedVariance, mean_errors, variational_bound
from tests.theory.common import PROCESS, f64, gaussian, line_mixture, normals, uniform_log_snr, uniforms
from theory.exact import OracleDenoiser
from theory.held_context import Echo

ROWS, C = 20_000, 0.3
PLAIN = Ancestral(PROCESS)


def fitted(plan, x, denoiser, step=PLAIN) -> FittedVariance:
    errors = mean_errors(denoiser, step, plan, x, Cond(), Draws(7, torch.arange(len(x))))
    return FittedVariance(step, plan.t[:-1], tuple(errors.mean(0).tolist()))


def bound_of(step, plan, x, denoiser):
    return variational_bound(denoiser, step, plan, x, Cond(), Draws(1, torch.arange(len(x))), bins=None)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_gaussian_costs_its_entropy_and_the_priors_gap_at_every_number_of_steps(steps):
    """The exact kernel is Gaussian, of this variance. gamma = 0 is thousands of nats off on these grids."""
    plan, denoiser = StepPlan.uniform(steps), OracleDenoiser(gaussian(C), PROCESS)
    step = fitted(plan, C**0.5 * normals(1, ROWS, 1), denoiser)
    total = bound_of(step, plan, C**0.5 * normals(2, ROWS, 1), denoiser).total
    low = torch.sigmoid(f64(-15.0)).item()
    v = low * C + 1 - low
    expected = 0.5 * math.log(2 * math.pi * math.e * C) + 0.5 * (v - 1 - math.log(v))
    assert total.mean().item() == pytest.approx(expected, abs=5 * total.std().item() / ROWS**0.5 + 1e-3)


def test_the_error_of_a_mean_is_that_of_x_hat_through_the_posterior():
    """E|mean_q - mean_p|^2 / d = (c alpha_s)^2 Var[x | z_t], per element of any number of them."""
    plan = StepPlan.at([0.9, 0.5, 0.1], range(2))
    x = C**0.5 * normals(3, ROWS, 3)
    errors = mean_errors(OracleDenoiser(gaussian(C, 3), PROCESS), PLAIN, plan, x, Cond(), Draws(0, torch.arange(ROWS)))
    log_snr = PROCESS.schedule.log_snr(f64(*plan.t))
    low, high = log_snr[:-1], log_snr[1:]
    spread = C * torch.sigmoid(-low) / (C * torch.sigmoid(low) + torch.sigmoid(-low))
    expected = torch.expm1(low - high) ** 2 * torch.sigmoid(high) * spread
    assert errors.shape == (ROWS, 2)
    torch.testing.assert_close(errors.mean(0), expected, rtol=0.03, atol=0)


def test_no_other_variance_makes_a_lower_bound_on_the_same_path():
    plan, x = StepPlan.uniform(4), line_mixture().sample(uniforms(1, 500), normals(2, 500, 1))
    denoiser, draws = OracleDenoiser(line_mixture(), PROCESS), Draws(1, torch.arange(500))
    best = mean_errors(denoiser, PLAIN, plan, x, Cond(), draws).mean(0)

    def steps(excess):
        step = FittedVariance(PLAIN, plan.t[:-1], tuple(excess.tolist()))
        return variational_bound(denoiser, step, plan, x, Cond(), draws, bins=None).steps.mean(0)

    least = steps(best)
    for factor in (0.0, 0.8, 1.25):
        assert (steps(factor * best) > least).all()


def test_fitted_on_other_data_it_still_bounds_the_entropy_of_a_mixture():
    mixture, plan = line_mixture(), uniform_log_snr(32)
    fit, x = (mixture.sample(uniforms(seed, ROWS), normals(seed + 1, ROWS, 1)) for seed in (1, 3))
    denoiser = OracleDenoiser(mixture, PROCESS)
    log_p = mixture.log_density(x, torch.tensor(math.inf))
    gaps = [bound_of(step, plan, x, denoiser).total + log_p for step in (fitted(plan, fit, denoiser), PLAIN)]
    assert gaps[0].mean() > 3 * gaps[0].std() / ROWS**0.5
    assert gaps[0].mean() < 0.8 * gaps[1].mean()  # closer than the posterior's own variance


def test_it_learns_how_old_a_context_is():
    """Echo's x_hat = E[x | z_tau]: a kept step's error is that of tau, so the table belongs to the plan."""
    x = C**0.5 * normals(5, ROWS, 1)
    kept, fresh = StepPlan.at([0.8, 0.4, 0.2], [0]), StepPlan.at([0.8, 0.4, 0.2], [0, 1])
    old, new = (fitted(plan, x, Echo(gaussian(C), PROCESS)).excess for plan in (kept, fresh))
    log_snr = PROCESS.schedule.log_snr(f64(0.8, 0.4))
    spread = torch.sigmoid(-log_snr) / (C * torch.sigmoid(log_snr) + torch.sigmoid(-log_snr))
    assert old[0] == new[0]
    assert old[1] / new[1] == pytest.approx((spread[0] / spread[1]).item(), rel=0.03)


def test_it_samples_from_its_kernel():
    step = FittedVariance(PLAIN, (0.5,), (0.2,))
    z, noise, t, s = normals(1, 4, 2), normals(2, 4, 2), f64(*[0.5] * 4), f64(*[0.0] * 4)

    def denoise(z, t):
        return 0.5 * z

    kernel, plain = step.kernel(denoise, z, t, s), PLAIN.kernel(denoise, z, t, s)
    torch.testing.assert_close(kernel.variance, plain.variance + 0.2)
    torch.testing.assert_close(kernel.mean, plain.mean)
    drawn, carry = step(denoise, z, t, s, lambda: noise, ())
    torch.testing.assert_close(drawn, kernel.sample(noise))
    assert carry == ()
    assert step.markovian
    assert str(step) == "ancestral, fitted variance"


def test_it_refuses_a_plan_that_it_was_not_fitted_for():
    with pytest.raises(ValueError, match=r"no step of the plan starts at t = 0\.3"):
        FittedVariance(PLAIN, (0.5,), (0.2,)).kernel(lambda z, t: z, normals(1, 1, 1), f64(0.3), f64(0.1))


def test_a_fitted_step_belongs_to_its_plan():
    z, t = normals(0, 2, 3), f64(0.5, 0.5)
    with pytest.raises(ValueError, match=r"no step of the plan starts at t = 0.5: make the step for the plan"):
        FittedVariance(PLAIN, (1.0, 0.3), (0.1, 0.1)).kernel(lambda z, t: z, z, t, f64(0.2, 0.2))
