"""The denoising loss of tokens: the masked bound, at one rate and at two, and what it trains."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from theory.tokens import MASKED, frequencies, table
from torch import nn

from dualrate.denoisers.denoiser import DualRate, Plain
from dualrate.diffusion.categorical import Masked, Uniform
from dualrate.diffusion.context import Batch, Cond
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Sigmoid
from dualrate.methods.denoising import Denoising
from dualrate.methods.times import SingleTime, TimeSampler
from dualrate.networks.uvit import Level, UViT, UViTConfig
from dualrate.sampling.ancestral import Reverse
from dualrate.sampling.trajectory import sample_batches
from dualrate.texts.networks import TwoTransformers
from dualrate.texts.transformer import LightTokens, TokenEncoder, TokensConfig, TokenTransformer
from dualrate.training.method import Phase

JOINT = table(MASKED, [0.4, 0.1], [0.15, 0.35])
NET = TokensConfig(3, 2, channels=16, blocks=1, embedding=16, head_dim=16)


def data(rows: int, size: int = 3, first: int = 0) -> Batch:
    """Rows of a joint, as often as they are likely, in a fixed order."""
    table = torch.tensor([[0, 0]] * 8 + [[0, 1]] * 2 + [[1, 0]] * 3 + [[1, 1]] * 7)
    draws = Draws(5, torch.arange(first, first + rows))
    x = torch.nn.functional.one_hot(table[draws.integer("x", 20)], size).permute(0, 2, 1)[:, :, None]
    return Batch(x.float(), None, draws.row)


def test_the_loss_of_the_exact_denoiser_is_the_entropy():
    """In nats a token: the masked bound is reached. The weight, its factor and the mean over tokens all count."""
    method = Denoising(nn.ModuleDict(), JOINT, MASKED, Sigmoid(), SingleTime(), label_dropout=0)
    batch = data(8000)
    found = method.loss(batch, 0, batch.draws(0)).total.item()
    share = frequencies(batch.x)[:2, :2]
    entropy = -(share * JOINT.table[:2, :2].log()).sum().item()
    assert 2 * found == pytest.approx(entropy, abs=0.03)


def single(process, net=NET) -> Denoising:
    torch.manual_seed(0)
    network = TokenTransformer(net)
    return Denoising(nn.ModuleDict({"model": network}), Plain(network, process), process, Sigmoid(), SingleTime())


def dual(process, net=NET) -> Denoising:
    torch.manual_seed(0)
    encoder, light = TokenEncoder(net, net), LightTokens(net)
    networks = nn.ModuleDict({"encoder": encoder, "light": light})
    return Denoising(networks, DualRate(encoder, light, process), process, Sigmoid(), TimeSampler((1, 4)))


def test_a_light_network_that_begins_alone_learns_when_its_context_is_from():
    """After one step off zero every weight of the embedding of tau has a gradient."""
    networks, denoiser = TwoTransformers(NET, NET).build(Masked())
    for parameter in networks.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    TwoTransformers(NET, NET).disconnect(networks)
    z, cond = torch.eye(3)[torch.tensor([[0, 1], [2, 1]])].mT[:, :, None], Cond()
    for step in range(2):
        context = denoiser.encode(z, torch.tensor([0.9, 0.9]), cond).aged()
        denoiser.denoise(z, torch.tensor([0.5, 0.5]), context, cond)[:, 0].square().sum().backward()
        tau = networks["light"].tau.mlp
        if step == 0:
            torch.optim.SGD(networks.parameters(), 0.1).step()
            networks.zero_grad()
    assert all(parameter.grad.abs().max() > 0 for parameter in tau.parameters())


def test_a_transformer_of_patches_takes_no_rows_in_training():
    net = TokenTransformer(TokensConfig(3, 4, 4, channels=16, blocks=1, embedding=16, head_dim=16, patch=2))
    out = net(torch.zeros(0, 3, 4, 4), torch.zeros(0), None)
    assert out.shape == (0, 3, 4, 4)
    out.sum().backward()


def train(method: Denoising, batch_from: Callable[[int], Batch], iterations: int) -> Phase:
    """The only phase, after so many iterations. batch_from: 128 rows, the first of which has this number."""
    (phase,) = method.phases(0)
    optimizer = torch.optim.Adam(phase.parameters, lr=3e-3)
    for iteration in range(iterations):
        batch = batch_from(128 * iteration)
        loss = phase.loss(batch, iteration, batch.draws(0))
        optimizer.zero_grad()
        loss.total.backward()
        nn.utils.clip_grad_norm_(phase.parameters, 1.0)
        optimizer.step()
    return phase


def test_a_u_vit_of_a_channel_a_category_is_a_network_of_tokens():
    """It learns that the tokens of a 2 x 2 grid are all the same, one value as likely as the other."""
    torch.manual_seed(0)
    levels = (Level("conv", 16, 1),)
    network = UViT(UViTConfig(2, 3, levels, embedding=16))
    method = Denoising(nn.ModuleDict({"model": network}), Plain(network, MASKED), MASKED, Sigmoid(), SingleTime())

    def alike(first: int) -> Batch:
        rows = torch.arange(first, first + 128)
        x = nn.functional.one_hot(Draws(5, rows).integer("x", 2), 3).float()
        return Batch(x[:, :, None, None].expand(-1, -1, 2, 2), None, rows)

    train(method, alike, 100)
    (z,) = sample_batches(
        method.denoiser(), Reverse(MASKED), StepPlan.uniform(16), (3, 2, 2), range(1000), batch_size=1000
    )
    same = z.mean((2, 3)).max(1).values == 1
    assert same.float().mean() > 0.8  # of independent tokens an eighth
    assert z[same, 0].mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("make", "process", "size"), [(single, Uniform(), 2), (dual, Masked(), 3)])
def test_it_trains_networks_that_sample_the_data(make, process, size):
    method = make(process, replace(NET, vocabulary=size))
    phase = train(method, lambda first: data(128, size, first), 70)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in phase.parameters)
    plan = StepPlan.uniform(16, 4 if make is dual else None)
    (z,) = sample_batches(method.denoiser(), Reverse(process), plan, (size, 1, 2), range(2000), batch_size=2000)
    error = (frequencies(z)[:2, :2] - JOINT.table[:2, :2].float()).abs().sum().item() / 2
    assert error < (0.2 if make is dual else 0.1)  # 0.25 of tokens that know nothing of each other
