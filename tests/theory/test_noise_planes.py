"""Tokens with noise beside them: the tokens are those of the inner process, the noise is fresh and of nothing else."""

import pytest
import torch
from torch import nn

from dualrate.denoisers.denoiser import Plain
from dualrate.diffusion.context import Cond
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.sampling.ancestral import Reverse
from dualrate.sampling.bound import token_bound
from dualrate.sampling.trajectory import sample_batches
from dualrate.texts.noise_planes import NoisePlanes
from dualrate.texts.transformer import LightTokens, TokenEncoder, TokensConfig, TokenTransformer
from theory.common import f64
from theory.tokens import PROCESSES, one_hot

ROWS, PLANES = 2000, 3
DRAWS = Draws(0, torch.arange(ROWS))
every_inner = pytest.mark.parametrize("inner", PROCESSES.values(), ids=PROCESSES)


def normal_planes(z: torch.Tensor) -> torch.Tensor:
    """Return the planes of states, after what they should be is checked."""
    planes = z[:, 4:]
    assert planes.shape == (len(z), PLANES, 1, 2)
    flat = planes.flatten(1)
    torch.testing.assert_close(flat.T @ flat / len(z), torch.eye(2 * PLANES).to(flat), atol=0.12, rtol=0)
    assert flat.mean().abs() < 0.05
    return planes


@every_inner
def test_tokens_are_the_inner_process_s_and_noise_is_drawn_anew(inner):
    process, shape = NoisePlanes(inner, PLANES), (4, 1, 2)
    assert process.state_shape(shape) == (4 + PLANES, 1, 2)
    start, later = process.noise(DRAWS, ["start", "later"], *shape)
    plain_start, plain_later = inner.noise(DRAWS, ["start", "later"], *shape)
    t, s = f64(0.8).expand(ROWS), f64(0.3).expand(ROWS)
    x = one_hot(DRAWS.integer("x", 3, 2), 4)
    for made, expected in (
        (process.prior(start, shape), inner.prior(plain_start, shape)),
        (process.add_noise(x, t, start), inner.add_noise(x, t, plain_start)),
    ):
        assert torch.equal(process.data(made), expected)
        normal_planes(made)
    z_t = process.add_noise(x, t, start)
    z_s, tokens = process.posterior(z_t, x, t, s).sample(later), inner.posterior(z_t[:, :4], x, t, s)
    assert torch.equal(z_s[:, :4], tokens.sample(plain_later))
    both = normal_planes(z_t) * normal_planes(z_s)
    assert both.mean().abs() < 0.05
    assert torch.equal(
        process.conditional_mean(x, z_t, z_s, t, s), inner.conditional_mean(x, z_t[:, :4], z_s[:, :4], t, s)
    )
    assert torch.equal(process.transition(z_s, s, t).probabilities, inner.transition(z_s[:, :4], s, t).probabilities)
    z_t, z_tau = process.pair(x, s, t, start, later)
    assert torch.equal(z_tau[:, :4], inner.pair(x, s, t, plain_start, plain_later)[1])
    normal_planes(z_t)


def network(noise: int) -> nn.Module:
    net = TokenTransformer(TokensConfig(4, 2, channels=8, blocks=1, embedding=8, head_dim=8, noise=noise))
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return net.double()


def test_a_network_reads_noise_where_it_is_made_for_it_and_tokens_alone_where_not():
    process = NoisePlanes(PROCESSES["masked"], PLANES)
    z, label = process.prior(process.noise(DRAWS, ["start"], 4, 1, 2)[0], (4, 1, 2))[:5].double(), None
    assert torch.equal(network(0)(z, z[:, 0, 0, 0], label), network(0)(z[:, :4], z[:, 0, 0, 0], label))
    assert network(PLANES)(z, z.new_zeros(5), label).std(0).min() > 0.01
    config = TokensConfig(4, 2, channels=8, blocks=1, embedding=8, head_dim=8, noise=PLANES)
    encoder, light = TokenEncoder(config, config).double(), LightTokens(config).double()
    (feature, z_tau), _ = encoder(z, z.new_zeros(5), label)
    assert z_tau.shape == (5, 4, 1, 2)
    assert light(z, z.new_zeros(5), label, (feature, z_tau), z.new_zeros(5)).shape == (5, 4, 1, 2)


def test_trajectories_end_in_tokens_and_the_bound_is_of_them():
    process = NoisePlanes(PROCESSES["masked"], PLANES)
    student, step, plan = Plain(network(PLANES).float(), process), Reverse(process), StepPlan.uniform(3)
    (made,) = sample_batches(student, step, plan, (4, 1, 2), range(6))
    assert made.shape == (6, 4, 1, 2)
    assert torch.equal(made[:, :3].sum(1), torch.ones(6, 1, 2))
    x = one_hot(torch.zeros(9, 2, dtype=torch.int64), 4).float()
    found = token_bound(student, step, plan, x, Cond(), Draws(0, torch.arange(9)))
    assert torch.isfinite(found.steps).all()
