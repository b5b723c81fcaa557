"""Speculative sampling: its law is the target's, whatever drafts; acceptance has a closed form."""

from dataclasses import dataclass

import pytest
import torch
from scipy.stats import ks_2samp, norm
from theory.common import PROCESS, f64, gaussian, normals, space_mixture, uniforms
from theory.exact import OracleDenoiser

from dualrate.contrib.speculative import Speculated, frozen, light, other, reflection_coupling, speculate
from dualrate.denoisers.denoiser import Metered
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.categorical import Masked
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import Gaussian, NoisyEnd
from dualrate.diffusion.values import Context, Reuse
from dualrate.likelihood.bound import FittedVariance
from dualrate.sampling.ancestral import Ancestral, Reverse
from dualrate.sampling.ddim import DDIM
from dualrate.sampling.solvers import SDEDPMSolver2M
from dualrate.sampling.trajectory import sample_batches

TARGET, PLAN = OracleDenoiser(space_mixture(), PROCESS), StepPlan.uniform(12)
ROUGH = other(OracleDenoiser(gaussian(0.3, 3), PROCESS))  # knows one Gaussian of the two components
DRAFTS = {"rough": ROUGH, "frozen": frozen}


def accepted(made: Speculated) -> torch.Tensor:
    """Drafts of each image that stayed: every call makes one step of its own."""
    return PLAN.num_steps - made.calls


@pytest.mark.parametrize("distance", [0.3, 1.5, 4.0])
def test_reflection_coupling_draws_the_target_and_accepts_as_often_as_possible(distance):
    """N = 40,000: standard errors are 0.005 of a mean, 0.007 of a variance, 0.0025 of a frequency."""
    rows, variance = 40_000, 0.49
    d = distance * 0.7 * torch.nn.functional.normalize(f64(1, -2, 2), dim=0)
    q = Gaussian(f64(0.3, -1, 2).expand(rows, 3), torch.full((rows, 1), variance, dtype=torch.float64))
    p = Gaussian(q.mean + d, q.variance)
    y, accepted = reflection_coupling(p, q, normals(0, rows, 3), uniforms(1, rows))
    white = (y - q.mean) / 0.7
    assert white.mean(0).abs().max() < 0.02
    assert (white.T @ white / rows - torch.eye(3)).abs().max() < 0.03
    assert ks_2samp(white[:, 2], normals(2, rows)).pvalue > 0.01
    assert abs(accepted.double().mean().item() - 2 * norm.cdf(-distance / 2)) < 0.01
    torch.testing.assert_close(y[accepted], p.sample(normals(0, rows, 3))[accepted])


def test_equal_kernels_are_one():
    q = Gaussian(normals(0, 50, 2), torch.ones(50, 1, dtype=torch.float64))
    y, accepted = reflection_coupling(q, q, normals(1, 50, 2), uniforms(2, 50))
    assert bool(accepted.all())
    torch.testing.assert_close(y, q.sample(normals(1, 50, 2)), rtol=0, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
def test_its_law_is_that_of_the_target_at_every_step(draft, gamma):
    """Two samples of 3,000: moments within four standard errors, Kolmogorov and Smirnov along three axes."""
    step, count = Ancestral(PROCESS, gamma), 3000
    made = speculate(TARGET, draft, step, PLAN, (3,), range(count), window=3)
    plain = torch.cat(list(sample_batches(TARGET, step, PLAN, (3,), range(count, 2 * count), batch_size=count)))
    assert 0.05 < accepted(made).sum() / made.drafted.sum() < 0.95
    for got, want in ((made.z, plain), (made.z[:, :, None] * made.z[:, None], plain[:, :, None] * plain[:, None])):
        error = (got.mean(0) - want.mean(0)) / (2 * want.var(0) / count).sqrt()
        assert error.abs().max() < 4
    assert min(ks_2samp(made.z[:, axis], plain[:, axis]).pvalue for axis in range(3)) > 0.01


@pytest.mark.parametrize("process", [PROCESS, NoisyEnd(PROCESS.schedule)], ids=["ends in x_hat", "ends in z_0"])
@pytest.mark.parametrize("window", [0, 2, 20])
def test_a_draft_that_is_the_target_draws_the_images_of_sample(process, window):
    step, target = Ancestral(process, 0.3), OracleDenoiser(space_mixture(), process)
    made = speculate(target, other(target), step, PLAN, (3,), range(5), window=window)
    (plain,) = sample_batches(target, step, PLAN, (3,), range(5))
    torch.testing.assert_close(made.z, plain, rtol=0, atol=1e-5)
    calls = {0: 12, 2: 1 + 4, 20: 1 + 1}[window]  # the first is of one state, the others of window + 1
    assert made.calls.tolist() == [calls] * 5
    assert made.verified.tolist() == [12] * 5
    assert made.drafted.tolist() == [12 - calls] * 5


def test_an_image_does_not_depend_on_its_batch():
    made = speculate(TARGET, ROUGH, Ancestral(PROCESS), PLAN, (3,), range(20), window=2)
    assert len(set(made.calls.tolist())) > 2  # images are done at different calls
    for seed in range(20):
        alone = speculate(TARGET, ROUGH, Ancestral(PROCESS), PLAN, (3,), [seed], window=2)
        torch.testing.assert_close(alone.z[0], made.z[seed], rtol=0, atol=1e-5)
        assert (alone.calls, alone.verified, alone.drafted) == (
            made.calls[seed], made.verified[seed], made.drafted[seed],
        )  # fmt: skip


@dataclass(frozen=True)
class Remembering:
    """A target whose context says which image, state and time it is of; its light network checks what it is given."""

    seen: list
    reuse: Reuse = Reuse.MARKOV

    def encode(self, z, t, cond):
        x_hat = TARGET.denoise(z, t, Context(), cond)
        return Context((cond.label.double(), z), tau=t, x_hat=x_hat)

    def denoise(self, z, t, context, cond):
        if context.x_hat is not None:
            return context.x_hat
        label, z_tau = context.features
        assert label.tolist() == cond.label.tolist()
        assert (context.tau > t).all()
        self.seen.extend((context.tau - t).tolist())
        return TARGET.denoise(z_tau, context.tau, Context(), cond) + 0.1


def test_a_light_network_drafts_with_the_latest_context_of_its_own_image():
    target = Metered(Remembering([]))
    made = speculate(target, light(target), Ancestral(PROCESS), PLAN, (3,), range(6), list(range(6)), window=3)
    assert (target.meter.heavy, target.meter.light) == (made.verified.sum(), made.drafted.sum())
    ages = torch.tensor(target.inner.seen) * PLAN.num_steps  # a round drafts 1 to 3 steps from the one before it
    assert len(ages) == made.drafted.sum()
    assert sorted({round(age, 6) for age in ages.tolist()}) == [1, 2, 3]


FITTED = FittedVariance(Ancestral(PROCESS), (-1.0, 1.0), (0.1, 0.1))
STRANGE = [DDIM(PROCESS), SDEDPMSolver2M(PROCESS), Ancestral(PROCESS, eta=0), FITTED, Reverse(Masked())]


@pytest.mark.parametrize("step", STRANGE, ids=str)
def test_steps_that_are_not_ancestral_are_refused(step):
    with pytest.raises(ValueError, match="use Ancestral"):
        speculate(TARGET, frozen, step, PLAN, (3,), [0])


def test_what_it_cannot_serve_is_refused():
    step = Ancestral(PROCESS)
    with pytest.raises(ValueError, match=r"StepPlan.uniform\(12\)"):
        speculate(TARGET, frozen, step, StepPlan.uniform(12, 3), (3,), [0])
    with pytest.raises(ValueError, match="window is a whole number from 0"):
        speculate(TARGET, frozen, step, PLAN, (3,), [0], window=-1)
    guided = Guided(Remembering([]), PROCESS, weight=2.0, null=3)
    with pytest.raises(ValueError, match="without guidance"):
        speculate(guided, light(guided), step, PLAN, (3,), [0], [1])
