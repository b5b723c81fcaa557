"""Classifier-free guidance on two exact denoisers, and what it costs."""

from dataclasses import dataclass

import pytest
import torch

from dualrate.denoisers.denoiser import Metered
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.context import Cond, Context, Reuse
from dualrate.diffusion.plan import StepPlan
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.ddim import DDIM
from dualrate.sampling.trajectory import rollout
from theory.common import PROCESS, f64, gaussian, normals
from theory.exact import GaussianMixture, OracleDenoiser
from theory.held_context import Echo

NULL = 2
Z, T = normals(0, 3, 1), f64(0.9, 0.7, 0.4)
COND = Cond(torch.tensor([0, 1, 1]))


@dataclass(frozen=True)
class ByClass:
    """Class 0 or 1: N(-+0.5, 0.01); the null class: both. With `held`, everything is known through the context."""

    held: bool = False
    reuse: Reuse = Reuse.MARKOV

    def _x_hat(self, z, t, label):
        kind = Echo if self.held else OracleDenoiser
        means = f64(-0.5, 0.5)[:, None]
        mixtures = [gaussian(0.01, mean=-0.5), gaussian(0.01, mean=0.5), GaussianMixture.isotropic(means, 0.01)]
        each = [kind(mixture, PROCESS).mixture.posterior_mean(z, PROCESS.schedule.log_snr(t)) for mixture in mixtures]
        return torch.stack(each)[label, torch.arange(len(z))]

    def encode(self, z, t, cond):
        return Context(features=(self._x_hat(z, t, cond.label),), tau=t)

    def denoise(self, z, t, context, cond):
        return context.features[0] if self.held else self._x_hat(z, t, cond.label)


def guided(weight, held=False, interval=None, inner=None):
    return Guided(inner or ByClass(held), PROCESS, weight, NULL, interval)


def x_hat(denoiser, cond=COND, t=T):
    return denoiser.denoise(Z, t, denoiser.encode(Z, t, cond), cond)


@pytest.mark.parametrize("held", [False, True])
def test_weight_one_is_the_conditional_and_zero_the_unconditional(held):
    torch.testing.assert_close(x_hat(guided(1.0, held)), x_hat(ByClass(held)))
    torch.testing.assert_close(x_hat(guided(0.0, held)), x_hat(ByClass(held), Cond(torch.full((3,), NULL))))


def test_a_weight_has_the_precision_of_what_it_weighs():
    label, null = x_hat(ByClass()), x_hat(ByClass(), Cond(torch.full((3,), NULL)))
    torch.testing.assert_close(x_hat(guided(1.3)), null + 1.3 * (label - null), rtol=0, atol=1e-14)


@pytest.mark.parametrize("held", [False, True])
def test_guidance_is_linear_in_its_weight(held):
    low, middle, high = (x_hat(guided(weight, held)) for weight in (0.5, 1.5, 2.5))
    torch.testing.assert_close(middle - low, high - middle)
    assert (high - middle).abs().max() > 0.1
    direction = x_hat(guided(1.0, held)) - x_hat(guided(0.0, held))
    torch.testing.assert_close(high - low, 2 * direction)


@pytest.mark.parametrize("held", [False, True])
def test_guidance_acts_inside_its_interval_only(held):
    noise_level = torch.exp(-PROCESS.schedule.log_snr(T) / 2)  # sigma / alpha; falls from row to row
    inside = (float(noise_level[2]), float(noise_level[1]))  # open below, closed above: the middle row
    partly, always = x_hat(guided(3.0, held, inside)), x_hat(guided(3.0, held))
    torch.testing.assert_close(partly[1], always[1])
    torch.testing.assert_close(partly[[0, 2]], x_hat(ByClass(held))[[0, 2]])
    assert (always[1] - x_hat(ByClass(held))[1]).abs() > 1e-3


@pytest.mark.parametrize("held", [False, True])
def test_outside_its_interval_guidance_is_the_conditional(held):
    torch.testing.assert_close(x_hat(guided(3.0, held, (50.0, 60.0))), x_hat(ByClass(held)))


@pytest.mark.parametrize("interval", [None, (0.5, 5.0)])
def test_rows_are_counted_per_branch(interval):
    metered, plan = Metered(ByClass(held=True)), StepPlan.uniform(16, 4)
    rollout(guided(2.0, True, interval, metered), Ancestral(PROCESS), plan, Z, COND, lambda i, _: normals(i + 1, 3, 1))
    times = torch.tensor(plan.t[:-1], dtype=torch.float64)
    level = PROCESS.sigma(times) / PROCESS.alpha(times)
    twice = 16 if interval is None else int(((level > interval[0]) & (level <= interval[1])).sum())
    assert 0 < twice <= 16
    assert metered.meter.heavy == 2 * 3 * 4
    assert metered.meter.light == 3 * (16 + twice)


def test_reuse_passes_through():
    with pytest.raises(ValueError, match="Ancestral"):
        rollout(guided(2.0), DDIM(PROCESS), StepPlan.uniform(4, 2), Z, COND, lambda i, _: Z)
    assert Metered(guided(2.0, inner=ByClass(reuse=Reuse.FREE))).reuse is Reuse.FREE


def test_impossible_guidance_is_refused():
    with pytest.raises(ValueError, match="label"):
        x_hat(guided(2.0), Cond())
    for interval in [(3.0, 0.3), (-1.0, 2.0), (1.0, 1.0)]:
        with pytest.raises(ValueError, match="interval"):
            guided(2.0, interval=interval)
