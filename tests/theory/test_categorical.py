"""Categorical processes against products of transition matrices and Bayes' rule, by enumeration."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualrate.diffusion.categorical import Categorical, Masked, Uniform, shares
from dualrate.diffusion.prediction import Sigmoid, x_loss_weight
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine, Linear
from theory.common import f64, uniforms
from theory.tokens import MASKED, PROCESSES, UNIFORM, every, one_hot

V = 4
ALL = every(1, V)  # (V, V, 1, 1): row c is category c
times = st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3, unique=True).map(sorted)
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
NOISE = {"masked": f64(0, 0, 0, 1), "uniform": f64(*[1 / V] * V)}
every_kind = pytest.mark.parametrize("kind", PROCESSES)


def matrix(kind: str, s: float, t: float) -> torch.Tensor:
    """(V, V): P(z_t = column | z_s = row), with a_t = 1 - t, written down by itself."""
    kept = (1 - t) / (1 - s)
    return kept * torch.eye(V, dtype=torch.float64) + (1 - kept) * NOISE[kind]


def rows(categorical: Categorical) -> torch.Tensor:
    return categorical.probabilities[..., 0, 0]


@every_kind
@settings(max_examples=12)
@given(times)
def test_marginal_and_transition_are_the_matrices(kind, times):
    s, _, t = times
    process = PROCESSES[kind]
    torch.testing.assert_close(rows(process.marginal(ALL, f64(*[t] * V))), matrix(kind, 0, t))
    torch.testing.assert_close(rows(process.transition(ALL, f64(*[s] * V), f64(*[t] * V))), matrix(kind, s, t))


@every_kind
@settings(max_examples=12)
@given(times)
def test_posterior_is_bayes_rule(kind, times):
    """P(z_s | z_t, x) = P(z_s | x) P(z_t | z_s) / P(z_t | x), for every x and z_t that x can become."""
    s, _, t = times
    process, before, after = PROCESSES[kind], matrix(kind, 0, s), matrix(kind, s, t)
    for x in range(V):
        for z in range(V):
            joint = before[x] * after[:, z]  # over z_s
            if joint.sum() == 0:
                continue
            found = process.posterior(ALL[z : z + 1], ALL[x : x + 1], f64(t), f64(s))
            torch.testing.assert_close(rows(found)[0], joint / joint.sum(), rtol=1e-9, atol=1e-12)


@every_kind
@settings(max_examples=12)
@given(times)
def test_posterior_of_an_estimate_is_its_mean_over_x(kind, times):
    s, _, t = times
    process = PROCESSES[kind]
    share = torch.softmax(f64(0.3, -0.5, 1.0, -math.inf if kind == "masked" else 0.2), 0)
    for z in range(V):
        p = share if kind == "uniform" or z == 3 else ALL[z, :, 0, 0]  # a revealed token is known
        each = rows(process.posterior(ALL[z : z + 1].expand(V, -1, -1, -1), ALL, f64(*[t] * V), f64(*[s] * V)))
        found = rows(process.posterior(ALL[z : z + 1], p.view(1, V, 1, 1), f64(t), f64(s)))[0]
        torch.testing.assert_close(found, p @ each, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.sum(), torch.ones(()).double())


@every_kind
@settings(max_examples=12)
@given(times)
def test_what_a_later_state_tells_of_an_estimate_is_bayes_rule(kind, times):
    """E[x | z_t, z_s] by the probabilities of z_s by way of every x; of a token whose states can follow one another."""
    s, _, t = times
    process = PROCESSES[kind]
    share = torch.softmax(f64(0.3, -0.5, 1.0, -math.inf if kind == "masked" else 0.2), 0)
    for z in range(V):
        p = share if kind == "uniform" or z == 3 else ALL[z, :, 0, 0]
        each = rows(process.posterior(ALL[z : z + 1].expand(V, -1, -1, -1), ALL, f64(*[t] * V), f64(*[s] * V)))
        for later in torch.nonzero(p @ each > 1e-9).flatten():
            z_t, z_s = ALL[z : z + 1], ALL[later : later + 1]
            found = process.conditional_mean(p.view(1, V, 1, 1), z_t, z_s, f64(t), f64(s)).flatten()
            torch.testing.assert_close(found, p * each[:, later] / (p @ each[:, later]), rtol=1e-7, atol=1e-9)


def test_a_masked_token_is_revealed_at_its_rate_and_a_revealed_one_stays():
    s, t = f64(0.3), f64(0.8)
    p = f64(0.2, 0.5, 0.3, 0).view(1, V, 1, 1)
    found = rows(MASKED.posterior(ALL[3:], p, t, s))[0]
    torch.testing.assert_close(found, f64(0.2, 0.5, 0.3, 0) * 0.5 / 0.8 + f64(0, 0, 0, 0.3 / 0.8))
    assert torch.equal(rows(MASKED.posterior(ALL[1:2], ALL[1:2], t, s))[0].round(decimals=12), f64(0, 1, 0, 0))


@every_process
@pytest.mark.parametrize("leading", [(), (3,)])
def test_pairs_lie_on_one_path(process, leading):
    """P(z_t, z_tau | x) = P(z_t | x) P(z_tau | z_t): also with several z_t to one z_tau."""
    n, t, tau = 60_000, 0.3, 0.7
    x = one_hot(torch.ones(n, 1, dtype=torch.int64), V)
    if leading:
        x, n = x[: n // 3], n // 3
        of = (x[:, None], torch.full((n, 3), t).double(), torch.full((n, 1), tau).double())
    else:
        of = (x, torch.full((n,), t).double(), torch.full((n,), tau).double())
    noise_tau, noise_t = uniforms(0, *of[2].shape, 1, 1, 1), uniforms(1, *of[1].shape, 1, 1, 1)
    z_t, z_tau = process.pair(*of, noise_tau, noise_t)
    z_t, z_tau = z_t.flatten(0, len(leading))[..., 0, 0], z_tau.expand_as(z_t).flatten(0, len(leading))[..., 0, 0]
    kind = next(name for name, known in PROCESSES.items() if known is process)
    expected = matrix(kind, 0, t)[1][:, None] * matrix(kind, t, tau)
    torch.testing.assert_close(z_t.T @ z_tau / len(z_t), expected, rtol=0, atol=4 * 0.5 / 20_000**0.5)


def test_a_token_is_masked_again_to_an_earlier_state():
    """Masked tokens that z_tau shows z_t shows too: a context of z_tau holds no information that z_t lacks."""
    x = one_hot(torch.arange(3).repeat(50, 2), V)
    n = len(x)
    t, tau = uniforms(3, 2, n).sort(dim=0).values
    z_t, z_tau = MASKED.pair(x, t, tau, uniforms(4, n, 1, 1, 6), uniforms(5, n, 1, 1, 6))
    shown = z_tau[:, :3]
    assert torch.equal(shown, shown * z_t[:, :3])
    assert torch.equal(z_t[:, :3], z_t[:, :3] * x[:, :3])


def test_draws_have_their_law():
    p = f64(0.1, 0.0, 0.6, 0.3).view(1, V, 1, 1).expand(50_000, -1, -1, -1)
    drawn = Categorical(p).sample(uniforms(0, 50_000, 1, 1, 1))
    assert torch.equal(drawn.sum(1), torch.ones_like(drawn[:, 0]))
    torch.testing.assert_close(drawn.mean(0), p[0], rtol=0, atol=4 * 0.5 / 50_000**0.5)
    assert drawn[:, 1].sum() == 0
    ends = Categorical(p[:2].float()).sample(f64(2**-33, 1 - 2**-33).view(2, 1, 1, 1))
    assert ends.dtype == torch.float32
    assert ends[..., 0, 0].tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_rare_categories_are_drawn_as_often_as_float32_says_wherever_they_stand():
    """Four of 1e-9 after two of a half, which a cumulative sum in float32 would lose: by inversion, at their places."""
    p = torch.tensor([0.5, 0.5, 1e-9, 1e-9, 1e-9, 1e-9])
    within = 1 + 1e-9 * (torch.arange(4, dtype=torch.float64) + 0.5)  # the middles of the four
    drawn = Categorical(p.view(1, 6, 1, 1).expand(4, -1, -1, -1)).sample((within / (1 + 4e-9)).view(4, 1, 1, 1))
    assert drawn[..., 0, 0].argmax(1).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=["linear", "cosine"])
def test_tokens_are_all_kept_at_0_and_none_at_1(schedule):
    process = Masked(schedule)
    assert shares(schedule, f64(0, 1))[0].tolist() == [1, 0]
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    known = 1 - t if isinstance(schedule, Linear) else torch.cos(t * math.pi / 2) ** 2
    torch.testing.assert_close(shares(schedule, t)[0], known, rtol=0, atol=2e-3)
    assert torch.equal(process.marginal(ALL[:3], f64(0, 0, 0)).probabilities, ALL[:3])


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=["linear", "cosine"])
def test_the_weight_of_the_masked_bound_is_twice_the_sigmoid_s(schedule):
    """-a' / (1 - a), a' by autograd."""
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64, requires_grad=True)
    kept = shares(schedule, t)[0]
    (slope,) = torch.autograd.grad(kept.sum(), t)
    torch.testing.assert_close(
        2 * x_loss_weight(Sigmoid(), schedule, t).detach(), (-slope / (1 - kept)).detach(), rtol=2e-3, atol=0
    )


@every_process
def test_trajectories_begin_in_noise(process):
    draws = Draws(0, torch.arange(20_000))
    z = process.prior(process.noise(draws, ["start"], V, 1, 2)[0], (V, 1, 2))
    kind = next(name for name, known in PROCESSES.items() if known is process)
    assert torch.equal(z.sum(1), torch.ones_like(z[:, 0]))
    torch.testing.assert_close(z.mean((0, 2, 3)).double(), NOISE[kind], rtol=0, atol=4 * 0.5 / 40_000**0.5)


def test_logits_become_probabilities_by_bayes_rule():
    """No mass on the mask, all of it on a revealed token; where noise is uniform the prior is the softmax of logits."""
    logits, t = torch.randn(V, V, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), f64(0.3)
    p = MASKED.x_hat(ALL, logits, MASKED.log_snr(t))
    assert torch.equal(p[:3], ALL[:3])
    assert p[3, 3] == 0
    torch.testing.assert_close(p[3, :3], torch.softmax(logits[3, :3], 0))
    prior, forward = torch.softmax(logits, 1)[:, :, 0, 0], matrix("uniform", 0, 0.3)
    joint = prior * forward.T  # row z: over x
    found = UNIFORM.x_hat(ALL, logits, UNIFORM.log_snr(t).expand(V))[:, :, 0, 0]
    torch.testing.assert_close(found, joint / joint.sum(1, keepdim=True))


def test_bayes_rule_has_the_share_that_is_kept_whatever_the_ends_of_the_schedule():
    """log-SNR from -4 to 4: a sigmoid of it is 0.982 where all is kept."""
    process, t = Uniform(Linear(-4.0, 4.0)), f64(0.02)
    logits = torch.randn(V, V, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    joint = torch.softmax(logits, 1)[:, :, 0, 0] * matrix("uniform", 0, 0.02).T
    found = process.x_hat(ALL, logits, process.log_snr(t).expand(V))[:, :, 0, 0]
    torch.testing.assert_close(found, joint / joint.sum(1, keepdim=True))


def test_guidance_is_a_straight_line_of_log_probabilities():
    p, q = f64(0.2, 0.5, 0.3, 0).view(1, V, 1, 1), f64(0.6, 0.3, 0.1, 0).view(1, V, 1, 1)
    for weight in (0.0, 1.0, 2.5):
        raw = torch.where(q > 0, p ** (1 - weight) * q**weight, 0)
        torch.testing.assert_close(MASKED.extrapolate(p, q, f64(weight)), raw / raw.sum())


def test_deviance_is_twice_the_cross_entropy_of_a_token():
    x, p = one_hot(torch.tensor([[0, 2]]), V), f64(0.2, 0.5, 0.3, 0).view(1, V, 1, 1).expand(1, V, 1, 2)
    torch.testing.assert_close(MASKED.deviance(x, p), f64(-math.log(0.2) - math.log(0.3)))
    assert UNIFORM.deviance(x, x) == 0


def test_noise_is_the_last_category_or_any():
    for process, expected in ((Masked(), [0, 0, 1]), (Uniform(), [1 / 3] * 3)):
        torch.testing.assert_close(process.pi(torch.zeros(2, 3, 1, 1)).flatten(), torch.tensor(expected).float())
