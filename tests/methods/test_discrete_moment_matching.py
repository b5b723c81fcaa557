"""Moment matching of tokens against enumeration: its two losses, what its samples know, and what noise is for."""

import math
from collections.abc import Callable

import pytest
import torch
from theory.common import f64
from theory.tokens import MASKED, PROCESSES, UNIFORM, Joint, every, one_hot, table
from torch import Tensor, nn

from dualrate.denoisers.denoiser import DualRate, Plain, posterior_mean
from dualrate.diffusion.context import Batch, Cond, Context
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Sigmoid
from dualrate.methods.moment_matching import MomentMatching, auxiliary_loss, student_loss
from dualrate.methods.student_states import FromData, FullRollout, SegmentRollout, StateSource
from dualrate.texts.noise_planes import NoisePlanes
from dualrate.texts.transformer import LightTokens, TokenEncoder, TokensConfig, TokenTransformer


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    return (x - x_hat).square().flatten(1).mean(1)


SCORES = {"cross-entropy": UNIFORM.deviance, "squared error": squared_error}
every_score = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
V = 4


def distribution(seed: int) -> Tensor:
    """(1, V, 1, 1)."""
    logits = torch.randn(V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.softmax(logits, 0).view(1, V, 1, 1)


P, THETA = distribution(0), distribution(1)
EACH = every(1, V)


def descended(loss: Callable[[Tensor], Tensor], logits: Tensor, rate: float, steps: int) -> Tensor:
    """By plain gradient descent."""
    for _ in range(steps):
        logits = logits.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(logits), logits)
        logits = logits - rate * slope
    return logits.detach()


@every_score
def test_the_auxiliary_goes_half_way_from_teacher_to_student(score):
    """A table of logits, on tokens x ~ p."""

    def loss(logits: Tensor) -> Tensor:
        phi = torch.softmax(logits, 1).expand(V, -1, -1, -1)
        return (P.flatten() * auxiliary_loss(score, EACH, phi, THETA.expand_as(phi))).sum()

    found = torch.softmax(descended(loss, torch.zeros_like(P), 1.0 if score == UNIFORM.deviance else 8.0, 300), 1)
    torch.testing.assert_close(found, (P + THETA) / 2, rtol=0, atol=1e-5)


@every_score
def test_the_student_has_no_gradient_where_the_auxiliary_is_the_teacher(score):
    x = P.clone().requires_grad_()
    student_loss(score, x, THETA.clone(), THETA).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(P))


@every_score
def test_gradients_pass_through_the_student_s_output_alone_and_the_auxiliary_s(score):
    x, phi, theta = (one.clone().requires_grad_() for one in (P, distribution(2), THETA))
    student_loss(score, x, phi, theta).sum().backward()
    assert x.grad.abs().sum() > 0.01
    assert (phi.grad, theta.grad) == (None, None)
    x.grad = None
    auxiliary_loss(score, x, phi, theta).sum().backward()
    assert phi.grad.abs().sum() > 0.01
    assert (x.grad, theta.grad) == (None, None)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def test_at_the_auxiliary_s_optimum_the_values_are_those_of_the_two_methods():
    """Value of L(x, theta) - L(x, phi) - L(theta, phi): half the squared gap, and three divergences in its place."""
    middle = (P + THETA) / 2

    def value(score) -> Tensor:
        mean = (P.flatten() * (2 * student_loss(score, EACH, middle.expand_as(EACH), THETA.expand_as(EACH)))).sum()
        return mean - score(THETA, middle)

    torch.testing.assert_close(value(squared_error), squared_error(P, THETA) / 2)
    three = divergence(P, THETA) - divergence(P, middle) - divergence(THETA, middle)
    entropy = -(THETA * THETA.log()).sum()
    torch.testing.assert_close(value(UNIFORM.deviance) / 2, (three - entropy)[None])
    assert three > 0


def test_the_student_s_gradient_is_the_log_ratio_or_the_gap():
    """-w sum x (log theta - log phi) of the paper; <x, phi - theta> / d of moment matching."""
    phi = distribution(2)
    for score, expected in (
        (UNIFORM.deviance, -(THETA.log() - phi.log())),
        (squared_error, (phi - THETA) / V),
    ):
        x = P.clone().requires_grad_()
        student_loss(score, x, phi, THETA).sum().backward()
        torch.testing.assert_close(x.grad, expected)


def generated(joint: Joint, x: Tensor, z_t: Tensor, weight: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """p(z_s): (S,), and E[x | z_s]: (S, V, 1, L), by enumeration of tokens and states.

    x: (R, V, 1, L) the student's probabilities at states z_t, which have these weights: (R,).
    """
    tokens, states = joint.x, every(joint.table.ndim, len(joint.table))
    chance = (x[:, None] * tokens).sum(2).flatten(2).prod(-1)  # (R, K)
    known = torch.where(chance[..., None, None, None] > 0, tokens, 0)
    posterior = joint.process.posterior(z_t[:, None], known, t.expand(len(x), 1), s.expand(len(x), 1)).probabilities
    to = (posterior[:, :, None] * states).sum(3).flatten(3).prod(-1)  # (R, K, S)
    both = torch.einsum("r,rk,rks->ks", weight, chance, to)
    density = both.sum(0)
    return density, torch.einsum("ks,kvhl->svhl", both / density.clamp(min=1e-300), tokens)


@pytest.mark.parametrize(
    ("halvings", "expected"), [(1, "0.0419"), (2, "0.0292"), (3, "0.0135"), (4, "0.00506"), (5, "0.00162")]
)
def test_an_exact_teacher_as_student_misses_its_own_moments_by_what_is_revealed_at_once(halvings, expected):
    """E|E_gen[x | z_s] - theta(z_s)|^2 at t = 0.9, which vanishes with the step."""
    joint, t, s = table(MASKED, [0.4, 0.1], [0.15, 0.35]), f64(0.9), f64(0.9 - 2.0**-halvings)
    z = every(2, 3)
    x = joint.denoise(z, t, Context(), Cond())
    density, p = generated(joint, x, z, joint.density(z, t), t, s)
    gap = (p - joint.denoise(z, s, Context(), Cond())).square().sum((1, 2, 3))
    found = (density @ gap).item()
    digits = len(expected.rstrip("0").split(".")[1])
    assert density.sum().item() == pytest.approx(1)
    assert f"{found:.{digits}f}" == expected


def distance(noises: int) -> float:
    """Total variation between pairs of equal bits and a student of one step from all masks, trained on exact moments.

    noises: values of the student's noise input, equally likely; 1: none
    """
    joint, states, s = table(MASKED, [0.5, 0.0], [0.0, 0.5]), every(2, 3), f64(0.5)
    states = states[(joint.density(states, s) > 0) & (states[:, -1].sum((1, 2)) > 0)]  # with a mask left
    theta, hidden = joint.denoise(states, s, Context(), Cond()), states[:, -1:]
    start = torch.randn(noises, 2, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def output(logits: Tensor) -> Tensor:
        return torch.nn.functional.pad(torch.softmax(logits, 1), (0, 0, 0, 0, 0, 1))

    def loss(logits: Tensor) -> Tensor:
        """E[x | z_s] is a mean over the noise that z_s leaves likely; given the noise tokens are independent."""
        x = output(logits)
        z_t, ones = states[-1:].expand(noises, -1, -1, -1), f64(1).expand(noises)
        to = MASKED.posterior(z_t, x.detach(), ones, ones * s).probabilities
        chance = (to[:, None] * states).sum(2).flatten(2).prod(-1) / noises  # (n, S)
        mean = torch.einsum("ns,nvhl->svhl", chance / chance.sum(0), x.detach())
        phi = (hidden * mean + (1 - hidden) * states + theta) / 2
        given = (x[:, None] * hidden).flatten(0, 1)
        each = student_loss(MASKED.deviance, given, phi.repeat(noises, 1, 1, 1), theta.repeat(noises, 1, 1, 1))
        return (chance.flatten() * each).sum()

    x = output(descended(loss, start, 0.5 * noises, 120))
    chance = torch.einsum("na,nb->ab", x[:, :2, 0, 0], x[:, :2, 0, 1]) / noises
    return (chance - joint.table[:2, :2]).abs().sum().item() / 2


def test_a_masked_student_of_one_step_needs_noise():
    """All masks are one state, so that without noise its tokens are independent: half of the pairs at best."""
    assert distance(1) > 0.499
    assert distance(8) < 0.02


def trained_distance(planes: int, iterations: int) -> float:
    """As `distance`, of likely equal bits, by a transformer that reads planes of noise, with moments of 64 draws."""
    process, ones = NoisePlanes(MASKED, 2), torch.ones(64, dtype=torch.float64)
    joint, states, s = table(MASKED, [0.45, 0.05], [0.05, 0.45]), every(2, 3), f64(0.5)
    states = states[(joint.density(states, s) > 0) & (states[:, -1].sum((1, 2)) > 0)]
    theta, hidden = joint.denoise(states, s, Context(), Cond()), states[:, -1:]
    config = TokensConfig(3, 2, channels=16, blocks=1, embedding=16, head_dim=16, noise=planes)
    net = randomised(TokenTransformer(config), 0)
    student, optimiser = Plain(net, process), torch.optim.Adam(net.parameters(), lr=3e-3)

    def output(first: int, rows: int) -> tuple[Tensor, Tensor]:
        draws = Draws(0, torch.arange(first, first + rows))
        z = process.prior(process.noise(draws, ["start"], 3, 1, 2)[0], (3, 1, 2)).double()
        return z, posterior_mean(student, z, torch.ones(rows).double(), Cond())

    for iteration in range(iterations):
        z_t, x = output(64 * iteration, 64)
        to = process.posterior(z_t, x.detach(), ones, ones * s).probabilities
        chance = (to[:, None] * states).sum(2).flatten(2).prod(-1) / 64
        mean = torch.einsum("ns,nvhl->svhl", chance / chance.sum(0), x.detach())
        phi = (hidden * mean + (1 - hidden) * states + theta) / 2
        given = (x[:, None] * hidden).flatten(0, 1)
        each = student_loss(MASKED.deviance, given, phi.repeat(64, 1, 1, 1), theta.repeat(64, 1, 1, 1))
        optimiser.zero_grad()
        (chance.flatten() * each).sum().backward()
        optimiser.step()
    with torch.no_grad():
        _, x = output(10**6, 2000)
    chance = torch.einsum("na,nb->ab", x[:, :2, 0, 0], x[:, :2, 0, 1]) / len(x)
    return (chance - joint.table[:2, :2]).abs().sum().item() / 2


def test_a_network_learns_dependent_tokens_in_one_step_from_planes_of_noise_alone():
    """Without them the best distance is 0.4. A teacher that excludes a pair altogether would end at one pair."""
    assert trained_distance(0, 20) > 0.39
    assert trained_distance(2, 120) < 0.05


NET = TokensConfig(4, 6, channels=16, blocks=1, embedding=16, head_dim=16)
PLAN = StepPlan.uniform(4, 2)


def randomised(net: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return net.double()


def method(process, states: StateSource, *, dual: bool) -> MomentMatching:
    teacher, auxiliary = (randomised(TokenTransformer(NET), seed) for seed in (0, 1))
    if dual:
        networks = nn.ModuleDict({"encoder": TokenEncoder(NET, NET), "light": LightTokens(NET)})
        student = DualRate(networks["encoder"], networks["light"], process)
    else:
        networks = nn.ModuleDict({"model": TokenTransformer(NET)})
        student = Plain(networks["model"], process)
    return MomentMatching(
        networks=nn.ModuleDict({name: randomised(net, 2) for name, net in networks.items()}),
        student=student,
        teacher=Plain(teacher, process),
        process=process,
        weighting=Sigmoid(),
        states=states,
        auxiliaries=nn.ModuleDict({"auxiliary": auxiliary}),
        auxiliary=Plain(auxiliary, process),
    )


def batch(process, rows: int) -> Batch:
    draws = Draws(3, torch.arange(rows))
    return Batch(one_hot(draws.integer("x", 3 if process is MASKED else 4, 6), 4), None, draws.row)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize(("source", "dual"), [(FromData, False), (SegmentRollout, True), (FullRollout, True)])
def test_the_method_of_images_distils_tokens(process, source, dual):
    """Its phases, states and rollouts, with tokens drawn; no gradient where the auxiliary is the teacher."""
    made = method(process, source(4 if source is FromData else PLAN, process), dual=dual)
    rows = batch(process, 6)
    draws = rows.draws(0)
    states, x, drawn, z_s = made.sampled(rows, draws)
    for tokens in (states.z_t, drawn, z_s):
        assert torch.equal(tokens.sum(1), torch.ones_like(tokens[:, 0]))
        assert torch.equal(tokens.amax(1), torch.ones_like(tokens[:, 0]))
    torch.testing.assert_close(x.sum(1), torch.ones_like(x[:, 0]))
    if process is MASKED:
        shown = z_s[:, :3]  # of z_s what is not masked is the token that was drawn
        assert torch.equal(shown * drawn[:, :3], shown)
        assert torch.equal(shown * states.z_t[:, :3], states.z_t[:, :3])
    for phase in (made.phases(0)[0], made.phases(1)[0]):
        loss = phase.loss(rows, 1, draws)
        assert math.isfinite(loss.total.item())
        assert all(math.isfinite(value) for value in loss.logs.values())
        slopes = torch.autograd.grad(loss.total, phase.parameters, allow_unused=True)
        assert sum(slope.abs().sum().item() for slope in slopes if slope is not None) > 1e-4
    made.auxiliaries["auxiliary"].load_state_dict(made.teacher.network.state_dict())
    slopes = torch.autograd.grad(
        made.student_loss(rows, 1, draws).total, tuple(made.networks.parameters()), allow_unused=True
    )
    assert all(slope is None or not slope.any() for slope in slopes)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_a_student_that_collapses_to_one_token_loses_the_spread_of_its_samples(process):
    """It is (1 - sum p^2) / V of even shares, and less than half of it where t is high: whatever z_t shows there."""
    made, rows = method(process, FromData(4, process), dual=False), batch(process, 400)

    def spread() -> float:
        with torch.no_grad():
            return made.phases(1)[0].loss(rows, 1, rows.draws(0)).logs["spread_t3"].item()

    head = made.networks["model"].head[-1]
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    symbols = 3 if process is MASKED else 4
    quarter = (made.sampled(rows, rows.draws(0))[0].t >= 0.75).double().mean().item()
    independent = (1 - 1 / symbols) * (1 - 1 / 6) / 4 * (4 * quarter)  # of 6 tokens
    assert spread() == pytest.approx(independent, rel=0.1)
    nn.init.constant_(head.bias[1], 20)
    assert spread() < independent / 2


def test_masks_of_a_student_s_states_stay_with_the_probability_of_its_step():
    """(1 - s) / (1 - t), with a_t = 1 - t."""
    made, rows = method(MASKED, FromData(4, MASKED), dual=False), batch(MASKED, 400)
    with torch.no_grad():
        states, _, _, z_s = made.sampled(rows, rows.draws(0))
    masked, still = states.z_t[:, 3], z_s[:, 3]
    stays = (states.s / states.t)[:, None, None] * masked
    assert abs((still - stays).sum().item()) < 4 * (stays * (1 - stays)).sum().sqrt().item()
    assert masked.sum() - still.sum() > 100
