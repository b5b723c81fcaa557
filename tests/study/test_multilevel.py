"""Multilevel Euler-Maruyama on exact denoisers: unbiased, counted, and as good as its largest network in many steps."""

from functools import cache

import pytest
import torch
from theory.exact import GaussianMixture, OracleDenoiser

import dualrate as dr
from dualrate.diffusion.context import Cond, Refresh
from dualrate.diffusion.schedule import Cosine
from studies.multilevel import Multilevel

PROCESS = dr.GaussianProcess(Cosine())
COND = Cond()


def oracle(*means: float, variance: float = 0.05) -> OracleDenoiser:
    points = torch.tensor(means, dtype=torch.float64)[:, None]
    return OracleDenoiser(GaussianMixture.isotropic(points, variance), PROCESS)


EXACT = oracle(-1.0, 1.0)
NEARLY, ROUGH = oracle(-1.1, 1.0, variance=0.1), oracle(-1.4, 0.8, variance=0.2)  # of two modes that are elsewhere


def even(steps: int) -> tuple[float, ...]:
    return dr.StepPlan.uniform(steps).t


@cache
def sampled(denoiser: dr.Denoiser, plan: dr.StepPlan) -> torch.Tensor:
    batches = dr.sample_batches(denoiser, dr.Ancestral(PROCESS), plan, (1, 1, 1), range(4000), batch_size=4000)
    return torch.cat(list(batches)).flatten().double().sort().values


def wasserstein(x: torch.Tensor) -> float:
    """From the exact data, by quantiles."""
    uniform = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)
    halves = torch.special.ndtri((2 * uniform) % 1) * 0.05**0.5 + torch.where(uniform < 0.5, -1.0, 1.0)
    return float((x - halves.sort().values).abs().mean())


def test_networks_that_always_correct_are_the_heaviest():
    levels = Multilevel((ROUGH, NEARLY, EXACT), even(8), (1.0, 1.0))
    assert torch.equal(sampled(levels, levels.plan), sampled(EXACT, dr.StepPlan.uniform(8)))
    assert levels.calls == (8, 8, 8)


def test_a_step_is_the_telescoping_sum_of_what_was_drawn():
    levels = Multilevel((ROUGH, NEARLY, EXACT), even(64), (0.5, 0.25), seed=3)
    z = torch.randn(5, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    patterns = set()
    for step, refresh in enumerate(levels.plan.refresh):
        t = torch.tensor(levels.times[step], dtype=torch.float64)
        rough, nearly, exact = (level.denoise(z, t, level.encode(z, t, COND), COND) for level in levels.levels)
        middle, top = (levels.corrections[step, 1:] > 0).tolist()
        wanted = rough + middle * 2 * (nearly - rough) + top * 4 * (exact - nearly)
        context = levels.encode(z, t, COND) if refresh is Refresh.FULL else dr.Context()
        torch.testing.assert_close(levels.denoise(z, t, context, COND), wanted, rtol=1e-12, atol=1e-12)
        patterns.add((middle, top))
    assert len(patterns) == 4


def test_the_mean_over_draws_is_the_heaviest():
    """B / p has mean 1 and variance (1 - p) / p: the mean of n lies within 5 of its standard deviations."""
    steps, p = 20_000, (0.5, 0.1)
    means = Multilevel((ROUGH, NEARLY, EXACT), even(steps), p).corrections.mean(0)[1:]
    for mean, probability in zip(means.tolist(), p, strict=True):
        assert abs(mean - 1) < 5 * ((1 - probability) / probability / steps) ** 0.5


def test_calls_are_those_that_are_made(monkeypatch):
    levels = Multilevel((ROUGH, NEARLY, EXACT), even(40), (0.5, 0.25), seed=1)
    counts = dict.fromkeys(map(id, levels.levels), 0)
    before = OracleDenoiser.denoise

    def counted(self, *args):
        counts[id(self)] += 1
        return before(self, *args)

    monkeypatch.setattr(OracleDenoiser, "denoise", counted)
    _ = list(dr.sample_batches(levels, dr.Ancestral(PROCESS), levels.plan, (1, 1, 1), [0]))
    assert tuple(counts.values()) == levels.calls
    assert levels.calls[0] == 40


def test_errors_of_single_steps_average_out_over_many():
    """In 256 steps a quarter of the heaviest network's calls come near to all of them, where light ones are far."""
    every, rough = (wasserstein(sampled(one, dr.StepPlan.uniform(256))) for one in (EXACT, ROUGH))
    distances = []
    for seed in range(4):
        levels = Multilevel((ROUGH, EXACT), even(256), (0.25,), seed)
        distances.append(wasserstein(sampled(levels, levels.plan)))
    assert every < 0.03
    assert rough > 0.2
    assert sum(distances) / 4 < 0.3 * rough
    few = Multilevel((ROUGH, EXACT), even(16), (0.25,))
    assert wasserstein(sampled(few, few.plan)) > sum(distances) / 4


@pytest.mark.parametrize(
    ("levels", "probabilities", "message"),
    [
        ((EXACT,), (), "expected two networks or more"),
        ((ROUGH, EXACT), (0.5, 0.5), "2 networks and 2 probabilities"),
        ((ROUGH, EXACT), (0.0,), "above 0"),
        ((ROUGH, EXACT), (1.5,), "at most 1"),
    ],
)
def test_other_numbers_are_refused(levels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        Multilevel(levels, even(4), probabilities)


def test_a_time_of_another_plan_is_refused():
    levels = Multilevel((ROUGH, EXACT), even(4), (0.5,))
    with pytest.raises(ValueError, match=r"no step at 0\.3"):
        levels.encode(torch.zeros(1, 1, 1, 1), torch.tensor(0.3, dtype=torch.float64), COND)
