"""Dual-rate sampling on denoisers whose answer depends on when the context was computed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dualrate.denoisers.denoiser import DualRate, Plain
from dualrate.diffusion.context import Cond, Context, Refresh, expand
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.prediction import v_from_x
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Interpolated, alpha, sigma
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.trajectory import rollout, trajectory
from theory.common import PROCESS, f64, line_mixture, normals, sources, uniform_log_snr
from theory.exact import OracleDenoiser
from theory.held_context import Echo, NeededContext, two_band_variance


class TimesSwapped(NeededContext):
    """A light network that takes the context to be as old as the state."""

    def denoise(self, z, t, context, cond):
        return super().denoise(z, t, replace(context, tau=t), cond)


def band_variances(denoiser, plan):
    """Exact variances of the two bands of the samples."""
    *_, last = sources(denoiser, Ancestral(denoiser.process), plan, shape=(2,))
    return (last.z**2).sum(0)


def gain(log_snr, like, c=0.09):
    """E[x | z] / z for x ~ N(0, c)."""
    return expand(alpha(log_snr) * c / (alpha(log_snr) ** 2 * c + sigma(log_snr) ** 2), like)


class Remember(nn.Module):
    """The encoder of `NeededContext` as a network."""

    def forward(self, z, log_snr, label):
        return (z[:, :1],), None


class TwoBands(nn.Module):
    """The light network of `NeededContext` as a network that predicts v."""

    def forward(self, z, log_snr, label, features, log_snr_tau, present):
        low, high = gain(log_snr_tau, z) * features[0], gain(log_snr, z) * z[:, 1:]
        return v_from_x(z, torch.cat((low, high), dim=1), log_snr)


class ExactV(nn.Module):
    """E[v | z_t] of a mixture, on a line."""

    def forward(self, z, log_snr, label):
        return v_from_x(z, line_mixture().posterior_mean(z, log_snr), log_snr)


PLANS = {
    **{f"N 32, H {h}": StepPlan.uniform(32, h) for h in (1, 2, 3, 4, 32)},
    "N 10, H 4": StepPlan.uniform(10, 4),
    "uniform log-SNR": uniform_log_snr(24, heavy=5),
    "from half way": StepPlan.at([0.6, 0.5, 0.3, 0.2, 0.0], heavy=[0, 2]),
    "not to the end": StepPlan.at([1.0, 0.8, 0.5, 0.4, 0.2, 0.1], heavy=[0, 3]),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("c", [0.09, 1.0, 10.0])
def test_needed_context_variances(plan, c):
    torch.testing.assert_close(
        band_variances(NeededContext(PROCESS, c), plan), torch.stack(two_band_variance(PROCESS, plan, c))
    )


def test_needed_context_variances_under_another_schedule():
    process, plan = GaussianProcess(Interpolated.between(32, 128, 128)), StepPlan.uniform(32, 4)
    expected = torch.stack(two_band_variance(process, plan, 0.09))
    torch.testing.assert_close(band_variances(NeededContext(process, 0.09), plan), expected)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_networks_are_given_the_times_of_state_and_context(plan):
    denoiser = DualRate(Remember(), TwoBands(), PROCESS)
    torch.testing.assert_close(
        band_variances(denoiser, plan), torch.stack(two_band_variance(PROCESS, plan, 0.09)), rtol=1e-6, atol=0
    )


def test_a_plain_network_that_predicts_v_exactly_is_the_oracle():
    z, t = normals(0, 5, 1), f64(0.0, 0.2, 0.5, 0.9, 1.0)
    plain, oracle = Plain(ExactV(), PROCESS), OracleDenoiser(line_mixture(), PROCESS)
    expected = oracle.denoise(z, t, Context(), Cond())
    torch.testing.assert_close(plain.denoise(z, t, plain.encode(z, t, Cond()), Cond()), expected)


@pytest.mark.parametrize("heavy", [2, 3, 4])
def test_needed_context_variance_by_monte_carlo(heavy):
    n, c, plan = 40_000, 0.09, StepPlan.uniform(32, heavy)
    denoiser, step = NeededContext(PROCESS, c), Ancestral(PROCESS)
    x = rollout(denoiser, step, plan, normals(0, n, 2), Cond(), lambda i, _: normals(i + 1, n, 2))
    expected = torch.stack(two_band_variance(PROCESS, plan, c))
    torch.testing.assert_close(x.var(0), expected, rtol=4 * (2 / n) ** 0.5, atol=0)


@pytest.mark.parametrize("heavy", [2, 3, 4])
@pytest.mark.parametrize("mistake", ["late refresh", "early refresh", "missing refresh", "times swapped"])
def test_needed_context_shows_mistakes(heavy, mistake):
    right = StepPlan.uniform(32, heavy)
    calls = [i for i, refresh in enumerate(right.refresh) if refresh is Refresh.FULL]
    plan = {
        "late refresh": StepPlan.at(32, [0, *(i + 1 for i in calls[1:])]),
        "early refresh": StepPlan.at(32, [0, *(i - 1 for i in calls[1:])]),
        "missing refresh": StepPlan.at(32, calls[:-1]),
        "times swapped": right,
    }[mistake]
    denoiser = (TimesSwapped if mistake == "times swapped" else NeededContext)(PROCESS, 0.09)
    expected = two_band_variance(PROCESS, right, 0.09)[0]
    assert abs(band_variances(denoiser, plan)[0] / expected - 1) > 0.05


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_echo_is_piecewise_constant(plan):
    """Within a segment x_hat is E[x | z_tau], so without noise z_s is the posterior's mean from z_tau in one go."""
    mixture, z = line_mixture(), normals(0, 6, 1)
    states = trajectory(Echo(mixture, PROCESS), Ancestral(PROCESS), plan, z, Cond(), lambda i, _: torch.zeros_like(z))
    z_tau, tau = z, f64(plan.t[0]).expand(6)
    for state in states:
        if state.i > 0:
            x_hat = mixture.posterior_mean(z_tau, PROCESS.schedule.log_snr(tau))
            at_end = bool((state.t == 0).all())
            expected = x_hat if at_end else PROCESS.posterior(z_tau, x_hat, tau, state.t).mean
            torch.testing.assert_close(state.z, expected)
            torch.testing.assert_close(state.context.features[0], x_hat)
        if state.i < plan.num_steps and plan.refresh[state.i] is Refresh.FULL:
            z_tau, tau = state.z, state.t
