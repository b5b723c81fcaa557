"""Covariance-aware steps on Gaussian fields, where everything is known: marginals of every band, the law of pairs."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch

import dualrate as dr
from dualrate.denoisers.denoiser import Metered
from dualrate.diffusion.context import Cond, Context, Refresh, Reuse
from dualrate.sampling.covariance import (
    Bands,
    NoiseCovariance,
    derivative,
    probed,
    tweedie,
)
from dualrate.sampling.fourier import FourierCovariance
from dualrate.sampling.trajectory import trajectory
from theory.common import PROCESS, f64, normals, space_mixture, uniform_log_snr
from theory.exact import OracleDenoiser

BANDS = Bands((3, 8, 8), rings=6)
POWER = 20.0 / (1 + torch.arange(BANDS.count, dtype=torch.float64)) ** 2.5  # of each band: from 20 to 0.01
both_kernels = pytest.mark.parametrize("kernel", ["markov", "ddim"])
few_steps = pytest.mark.parametrize("steps", [1, 2, 4])


def uncertainty(t, power=POWER):
    """Var[x | z_t] of each band: (N, K)."""
    alpha2, sigma2 = (PROCESS.alpha(t) ** 2)[..., None], (PROCESS.sigma(t) ** 2)[..., None]
    return power * sigma2 / (alpha2 * power + sigma2)


@dataclass(frozen=True)
class Field:
    """The exact denoiser of a stationary Gaussian field with a spectrum."""

    power: torch.Tensor
    bands: Bands = BANDS
    reuse: Reuse = Reuse.FREE

    def encode(self, z, t, cond):
        return Context()

    def denoise(self, z, t, context, cond):
        alpha, sigma2 = PROCESS.alpha(t).reshape(-1, 1), PROCESS.sigma(t).reshape(-1, 1) ** 2
        gain = alpha * self.power / (alpha**2 * self.power + sigma2)
        return self.bands.inverse(self.bands.spread(gain) * self.bands.transform(z))


FIELD = Field(POWER)


IN_BANDS = FourierCovariance(PROCESS, "markov", rings=6, most=1e9)


def amplitudes(step, plan, denoiser=FIELD):
    """(states, sources, K): what each independent noise adds to a coefficient of each band, in every state.

    Nothing here mixes coefficients, so that a source may feed all of them at once.
    """
    rows = plan.num_steps + 1

    def unit(row):
        ones = BANDS.inverse(torch.ones(1, *BANDS.shape, dtype=torch.float64))
        return torch.eye(rows, dtype=torch.float64)[row].view(-1, 1, 1, 1) * ones

    def draw(i, j):
        return unit(i + 1)

    states = list(trajectory(denoiser, step, plan, unit(0), Cond(), draw))
    return torch.stack([BANDS.mean(BANDS.transform(state.z)) for state in states])


def variances(step, plan, denoiser=FIELD):
    """(K,) of each band at the end."""
    return amplitudes(step, plan, denoiser)[-1].square().sum(0)


@few_steps
def test_a_field_is_reproduced_in_every_band_by_any_number_of_steps(steps):
    torch.testing.assert_close(variances(IN_BANDS, dr.StepPlan.uniform(steps)), POWER, rtol=1e-4, atol=1e-6)


@few_steps
def test_without_the_covariance_bands_miss_their_variance_by_what_the_closed_form_says(steps):
    """v_s = (A + B k_t)^2 v_t, plus V where noise is drawn; the last step returns x_hat."""
    plan, log_snr = dr.StepPlan.uniform(steps), PROCESS.schedule.log_snr
    for step, noisy in ((dr.Ancestral(PROCESS), True), (dr.DDIM(PROCESS), False)):
        v = torch.ones_like(POWER)
        for t, s in itertools.pairwise(f64(*plan.t)):
            alpha_t, alpha_s, sigma_t, sigma_s = PROCESS.alpha(t), PROCESS.alpha(s), PROCESS.sigma(t), PROCESS.sigma(s)
            k = alpha_t * POWER / (alpha_t**2 * POWER + sigma_t**2)
            if s == 0:
                v = k**2 * v
            elif noisy:
                r = torch.exp(log_snr(t) - log_snr(s))
                v = (r * alpha_s / alpha_t + (1 - r) * alpha_s * k) ** 2 * v + (1 - r) * sigma_s**2
            else:
                v = (sigma_s / sigma_t + (alpha_s - alpha_t * sigma_s / sigma_t) * k) ** 2 * v
        made = variances(step, plan)
        torch.testing.assert_close(made, v, rtol=1e-9, atol=1e-12)
        assert bool((made < 0.9 * POWER).any())


def last_pair(step, plan):
    """(K,): the covariance of the last two states, and the variance of the earlier one."""
    *_, before, after = amplitudes(step, plan)
    return (before * after).sum(0), before.square().sum(0)


def test_only_the_markov_kernel_keeps_the_law_of_pairs():
    plan = uniform_log_snr(4, -15, 3)
    t, s = f64(plan.t[-2]), f64(plan.t[-1])
    law = PROCESS.alpha(t) / PROCESS.alpha(s) * (PROCESS.alpha(s) ** 2 * POWER + PROCESS.sigma(s) ** 2)
    torch.testing.assert_close(last_pair(IN_BANDS, plan)[0], law, rtol=1e-4, atol=1e-6)
    assert IN_BANDS.markovian
    for step in (dr.DDIM(PROCESS), NoiseCovariance(PROCESS, "ddim")):
        assert (last_pair(step, plan)[0] / law - 1).abs().max() > 0.2
        assert not step.markovian


@both_kernels
@pytest.mark.parametrize("length", [None, 0.3])
def test_along_the_noise_what_is_known_or_unknown_is_exact_and_all_else_has_less(kernel, length):
    plan = dr.StepPlan((0.6, 0.4), (Refresh.FULL,))
    t, s = f64(0.6)[0], f64(0.4)[0]
    alpha_t, alpha_s, sigma_t, sigma_s = PROCESS.alpha(t), PROCESS.alpha(s), PROCESS.sigma(t), PROCESS.sigma(s)
    power = torch.logspace(-8, 8, BANDS.count, dtype=torch.float64)
    step, field = NoiseCovariance(PROCESS, kernel, length), Field(power)
    made = amplitudes(step, plan, field)[-1][1].square()  # of the step's own noise
    c = uncertainty(t.view(1), power)[0]
    ratio = (PROCESS.alpha(t) * PROCESS.sigma(s) / (PROCESS.alpha(s) * PROCESS.sigma(t))) ** 2
    b, v = (
        ((1 - ratio) * alpha_s, (1 - ratio) * sigma_s**2)
        if kernel == "markov"
        else (alpha_s - alpha_t * sigma_s / sigma_t, 0.0)
    )
    exact = b**2 * c + v
    known, unknown = power < 1e-6, power > 1e6
    torch.testing.assert_close(made[unknown], exact[unknown], rtol=1e-5, atol=0)
    torch.testing.assert_close(made[known], exact[known], rtol=1e-5, atol=1e-6)
    between = ~known & ~unknown
    assert bool((made[between] <= exact[between] * (1 + 1e-9)).all())
    assert (made / exact)[between].min() < 0.97
    share = (c * alpha_t / sigma_t**2) * alpha_t  # lambda
    if kernel == "markov":
        chord = (
            v * (1 + share * (b**2 * sigma_t**2 / alpha_t**2 / v) / (1 + alpha_s * sigma_t / (sigma_s * alpha_t))) ** 2
        )
    else:
        chord = b**2 * sigma_t**2 / alpha_t**2 * share**2
    torch.testing.assert_close(made, chord, rtol=1e-6, atol=1e-12)


def test_along_the_noise_keeps_the_law_of_pairs_to_second_order():
    power, step = f64(*[0.09, 3.0] * 9), NoiseCovariance(PROCESS, length=None)
    errors, counts = [], [32, 64]
    for steps in counts:
        plan = uniform_log_snr(steps, -15, 6)
        made = amplitudes(step, plan, Field(power))
        every = steps // 8
        states, a = made[::every], PROCESS.alpha(f64(*plan.t[::every]))
        v = a[:, None] ** 2 * power + PROCESS.sigma(f64(*plan.t[::every]))[:, None] ** 2
        covariance = torch.einsum("isk,jsk->ijk", states, states)
        law = (a[None] / a[:, None])[..., None] * v[:, None]
        later = torch.ones(len(a), len(a)).tril().bool()  # i later than j: Cov = (alpha_j / alpha_i) v_i
        errors.append((covariance - law)[later].abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(step.order, abs=0.25)


def test_the_derivative_is_tweedies_covariance():
    mixture = space_mixture()
    oracle = OracleDenoiser(mixture, PROCESS)
    z, t, direction = normals(0, 16, 3), f64(0.3, 0.5, 0.7, 0.9).repeat(4), normals(1, 16, 3)
    want = torch.einsum("bij,bj->bi", mixture.posterior_covariance(z, PROCESS.schedule.log_snr(t)), direction)

    def denoise(z, t):
        return oracle.denoise(z, t, Context(), Cond())

    for length, tolerance in ((None, 1e-9), (1e-4, 1e-3)):
        x_hat, along = derivative(PROCESS, denoise, z, t, direction, length)
        torch.testing.assert_close(x_hat, denoise(z, t))
        torch.testing.assert_close(tweedie(PROCESS, t)[:, None] * along, want, rtol=tolerance, atol=tolerance)


def test_probes_are_unbiased_for_any_covariance():
    """Over all signs of a 2 x 2 image exactly; for a covariance that bands do not make diagonal."""
    bands, t = Bands((1, 2, 2), rings=2), f64(0.5).expand(16)
    jacobian = normals(3, 4, 4)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)), dtype=torch.float64).view(16, 1, 2, 2)

    def denoise(z, t):
        return (z.flatten(1) @ jacobian.T).view_as(z)

    _, estimate = probed(PROCESS, bands, denoise, normals(4, 16, 1, 2, 2), t, signs)
    u = bands.transform(torch.eye(4, dtype=torch.float64).view(4, 1, 2, 2)).flatten(1).T
    want = bands.mean((u @ jacobian @ u.T).diagonal().view(1, 1, 2, 2))[0] * tweedie(PROCESS, f64(0.5))
    torch.testing.assert_close(estimate.mean(0), want)


@dataclass(frozen=True)
class HalfEcho:
    """A light network that returns `share` of z_t and what the encoder saw; the encoder may answer by itself."""

    share: float
    head: bool
    reuse: Reuse = Reuse.MARKOV

    def encode(self, z, t, cond):
        return Context((z,), tau=t, x_hat=5 * z if self.head else None)

    def denoise(self, z, t, context, cond):
        if context.x_hat is not None:
            return context.x_hat
        return self.share * z + (1 - self.share) * context.features[0]


@dataclass(frozen=True)
class Look(dr.Step):
    """Carries (z, x_hat, derivative along ones) of every step."""

    length: float | None = None
    markovian = True

    def __call__(self, denoise, z, t, s, draw, carry):
        return z + 1, (*carry, (z, *derivative(PROCESS, denoise, z, t, torch.ones_like(z), self.length)))


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("length", [None, 0.1])
def test_at_a_fixed_context_the_derivative_is_the_light_networks(head, length):
    """At heavy steps and between them: `share`, not 1 (through the encoder), 0 (its x_hat) or 5 (its own)."""
    calls = Metered(HalfEcho(0.3, head))
    plan = dr.StepPlan.uniform(4, 2)
    *_, end = trajectory(calls, Look(length), plan, normals(0, 1, 2), Cond(), lambda i, j: normals(i, 1, 2))
    for _, _, along in end.carry:
        torch.testing.assert_close(along, torch.full_like(along, 0.3))
    z, x_hat, _ = end.carry[0]
    torch.testing.assert_close(x_hat / z, torch.full((1, 2), 5.0 if head else 1.0, dtype=torch.float64))
    at_heavy = 2 * 1 if not head or length is None else 2
    assert (calls.meter.heavy, calls.meter.light) == (2, 2 * at_heavy + 2 * 2)


def test_differences_take_over_where_an_operation_has_no_forward_rule():
    def denoise(z, t):
        if torch.autograd.forward_ad.unpack_dual(z).tangent is not None:
            raise NotImplementedError("no forward rule")
        return 3 * z

    z, t = normals(0, 2, 1, 2, 2), f64(0.5, 0.5)
    _, along = derivative(PROCESS, denoise, z, t, torch.ones_like(z), None)
    torch.testing.assert_close(along, torch.full_like(z, 3.0))


def test_the_difference_that_takes_over_is_short():
    """The difference of x_hat = z^3 over a length l: 3 z^2 + 3 z l + l^2, l = 0.05 sigma_t."""

    def denoise(z, t):
        if torch.autograd.forward_ad.unpack_dual(z).tangent is not None:
            raise NotImplementedError("no forward rule")
        return z**3

    z, t = normals(0, 2, 1, 2, 2), f64(0.3, 0.6)
    x_hat, along = derivative(PROCESS, denoise, z, t, torch.ones_like(z), None)
    length = 0.05 * PROCESS.scales(t)[1].view(2, 1, 1, 1)
    torch.testing.assert_close(along, 3 * z**2 + 3 * z * length + length**2)
    assert torch.equal(x_hat, z**3)


def test_what_does_not_depend_on_z_has_no_derivative():
    z, t = normals(0, 2, 1, 2, 2), f64(0.3, 0.6)
    x_hat, along = derivative(PROCESS, lambda z, t: torch.ones(2, 1, 2, 2), z, t, torch.ones_like(z), None)
    assert torch.equal(x_hat, torch.ones(2, 1, 2, 2))
    assert torch.equal(along, torch.zeros_like(z))


def test_there_too_a_heavy_calls_own_x_hat_is_the_x_hat_and_no_call_is_counted_twice():
    @dataclass(frozen=True)
    class WithoutRule(HalfEcho):
        def denoise(self, z, t, context, cond):
            if context.x_hat is None and torch.autograd.forward_ad.unpack_dual(z).tangent is not None:
                raise NotImplementedError("no forward rule")
            return super().denoise(z, t, context, cond)

    calls, start = Metered(WithoutRule(0.3, head=True)), torch.ones(1, 2, dtype=torch.float64)
    *_, end = trajectory(calls, Look(), dr.StepPlan.uniform(2, 1), start, Cond(), lambda i, j: start)
    (z, at_heavy, _), (later, between, _) = end.carry
    assert torch.equal(at_heavy, 5 * z)
    torch.testing.assert_close(between, 0.3 * later + 0.7 * z)
    for _, _, along in end.carry:
        torch.testing.assert_close(along, 0.3 * start)
    assert (calls.meter.heavy, calls.meter.light) == (1, 2 + 2)


def test_a_kernel_of_another_name_is_refused():
    with pytest.raises(ValueError, match=r'"markov" or "ddim", got \'Markov\''):
        NoiseCovariance(PROCESS, "Markov")


def test_a_difference_has_a_length():
    with pytest.raises(ValueError, match="length is a number above 0"):
        NoiseCovariance(PROCESS, length=0)
