"""Samples in one call by proper scores: nothing pulls at the true conditional, and a linear generator finds it.

y ~ N(0, 1) and x = m + k y + L n in two dimensions; the generator X = a + b y + G z has it at a = m, b = k, G = L.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import dualrate as dr
from dualrate.denoisers.denoiser import Denoiser, DualRateConditional, Metered, given_of
from dualrate.diffusion.context import Batch, Cond, Context, Reuse
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.methods.crps import SCORES, OneCall, ScoreName
from dualrate.networks.blocks import add_shared
from dualrate.networks.conditional import ConditionEncoder
from dualrate.networks.uvit import UViT
from dualrate.sampling.trajectory import sample_batches

PROPER: tuple[ScoreName, ...] = ("crps", "energy")
PROCESS = dr.GaussianProcess(Cosine())
M, K = torch.tensor([0.3, -0.4], dtype=torch.float64), torch.tensor([0.5, 0.2], dtype=torch.float64)
L = torch.tensor([[0.4, 0.0], [0.3, 0.2]], dtype=torch.float64)


class Linear(nn.Module):
    """X = a + b y + G z"""

    reuse = Reuse.FREE

    def __init__(self, a: Tensor, b: Tensor, g: Tensor) -> None:
        super().__init__()
        self.a, self.b, self.g = (nn.Parameter(part.clone()) for part in (a, b, g))

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return Context((self.a + given_of(cond).flatten(1) * self.b,))

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        return add_shared(z.flatten(1).double() @ self.g.mT, context.features[0])[:, :, None, None]


def method(model: Denoiser | Linear, score: ScoreName, draws: int = 2) -> OneCall:
    return OneCall(nn.ModuleDict(), model, PROCESS, draws, score)  # pyright: ignore[reportArgumentType]


def data(rows: int, first: int = 0) -> Batch:
    draws = Draws(7, torch.arange(first, first + rows))
    y, noise = draws.normal("y", 1).double(), draws.normal("x", 2).double()
    x = M + K * y + noise @ L.mT
    return Batch(x[:, :, None, None], None, draws.row, given=y[:, :, None, None])


def slope(score: ScoreName, draws: int, model: Linear) -> tuple[Tensor, Tensor, float]:
    """The gradient in all parameters and its standard error, and the loss: over 30 batches of 1,000 rows."""
    found, loss = [], 0.0
    for i in range(30):
        batch = data(1_000, 1_000 * i)
        total = method(model, score, draws).loss(batch, 0, batch.draws(0)).total
        found.append(torch.cat([part.flatten() for part in torch.autograd.grad(total, list(model.parameters()))]))
        loss += total.item() / 30
    rows = torch.stack(found)
    return rows.mean(0), rows.std(0) / math.sqrt(30), loss


@pytest.mark.parametrize("draws", [2, 5])
@pytest.mark.parametrize("score", PROPER)
def test_nothing_pulls_at_the_true_conditional(score: ScoreName, draws: int) -> None:
    mean, error, loss = slope(score, draws, Linear(M, K, L))
    assert (mean.abs() < 4.5 * error).all()
    assert error.max() < 0.01
    if score == "crps":  # s / sqrt(pi) of each pixel
        assert loss == pytest.approx((L @ L.mT).diagonal().sqrt().mean().item() / math.sqrt(math.pi), rel=0.02)


def test_a_score_whose_pairs_are_not_counted_fairly_makes_the_spread_too_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unfair(members: Tensor, truth: Tensor) -> Tensor:
        apart = (members[:, 0] - members[:, 1]).abs()
        return ((members - truth[:, None]).abs().mean(1) - apart / 4).flatten(1).mean(1)

    monkeypatch.setitem(SCORES, "crps", unfair)
    mean, error, _ = slope("crps", 2, Linear(M, K, L))
    assert mean[4] > 20 * error[4]  # of L[0, 0]: downhill is less of it


def test_the_score_of_an_image_sees_what_pixels_have_in_common_and_that_of_pixels_does_not() -> None:
    apart = Linear(M, K, torch.diag((L @ L.mT).diagonal().sqrt()))  # the same pixels, independent
    crps, energy = ([slope(score, 2, model)[2] for model in (Linear(M, K, L), apart)] for score in PROPER)
    assert crps[1] == pytest.approx(crps[0], rel=0.01)
    assert energy[1] > 1.02 * energy[0]


@pytest.mark.parametrize("score", SCORES)
def test_a_linear_generator_finds_mean_and_spread_of_the_conditional(score: ScoreName) -> None:
    torch.manual_seed(0)
    model = Linear(torch.zeros_like(M), torch.zeros_like(K), 0.1 * torch.eye(2, dtype=torch.float64))
    steps, held = 200, [torch.zeros_like(part) for part in model.parameters()]
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for i in range(steps):
        batch = data(256, 256 * i)
        optimiser.zero_grad()
        method(model, score).loss(batch, i, batch.draws(0)).total.backward()
        optimiser.step()
        if i >= steps // 2:  # of which the mean is taken
            held = [kept + part.detach() / (steps // 2) for kept, part in zip(held, model.parameters(), strict=True)]
    a, b, g = held
    torch.testing.assert_close(a, M, rtol=0, atol=0.02)
    torch.testing.assert_close(b, K, rtol=0, atol=0.02)
    found, true = g @ g.mT, L @ L.mT
    if score == "regression":  # the mean, whatever the noise
        true = torch.zeros_like(true)
    if score == "crps":
        found, true = found.diagonal(), true.diagonal()
    torch.testing.assert_close(found, true, rtol=0, atol=0.02)


NET = dr.UViTConfig(8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1)), patch=2, embedding=16, head_dim=16)
LIGHT = replace(NET, levels=(dr.Level("conv", 4, 1), dr.Level("conv", 8, 1)))
GIVEN = (2, 4, 4)


def dual() -> DualRateConditional:
    torch.manual_seed(0)
    networks = nn.ModuleDict({"encoder": ConditionEncoder(NET, LIGHT, GIVEN), "light": UViT(LIGHT)})
    for parameter in networks.parameters():
        nn.init.normal_(parameter, std=0.2)
    return DualRateConditional(networks["encoder"], networks["light"], PROCESS)


def test_the_draws_of_a_row_do_not_depend_on_the_rest_of_its_batch() -> None:
    model, batch = Linear(M, K, L), data(6)
    parts = [batch[rows] for rows in (slice(0, 1), slice(1, 6))]
    whole, *each = (method(model, "crps", 3).loss(part, 0, part.draws(0)).total for part in (batch, *parts))
    torch.testing.assert_close(whole, (each[0] + 5 * each[1]) / 6)


def test_the_heavy_network_runs_once_for_all_draws_and_learns_of_each() -> None:
    rows, draws = 3, 4
    model = dual()
    metered = Metered(model)
    torch.manual_seed(1)
    batch = Batch(torch.randn(rows, 1, 8, 8), None, torch.arange(rows), given=torch.randn(rows, *GIVEN))
    loss = method(metered, "energy", draws).loss(batch, 0, batch.draws(0))
    assert (metered.meter.heavy, metered.meter.light) == (rows, rows * draws)
    assert loss.logs["spread"] > 0
    gradients = torch.autograd.grad(loss.total, [*model.encoder.parameters(), *model.light.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(bool(gradient.any()) for gradient in gradients) > 0.9 * len(gradients)
    # one heavy call at each draw has the same loss
    every = Linear(M, K, L)
    every.encode = lambda z, t, cond: model.encode(z, t, Cond(None, given_of(cond).repeat_interleave(draws, 0)))
    every.denoise = model.denoise
    torch.testing.assert_close(method(every, "energy", draws).loss(batch, 0, batch.draws(0)).total, loss.total)


def test_a_sampler_of_one_step_draws_what_was_trained() -> None:
    model, y = dual(), torch.randn(2, *GIVEN, generator=torch.Generator().manual_seed(0))
    images = sample_batches(
        model, dr.DDIM(PROCESS), dr.StepPlan.uniform(1), (1, 8, 8), [0, 1], members=3, given=lambda seed: y[seed]
    )
    keys = (torch.arange(2)[:, None] + 2**40 * torch.arange(3)).flatten()
    with torch.no_grad():
        members = method(model, "crps").members(Draws(0, keys).normal("start", 1, 8, 8), Cond(given=y))
    torch.testing.assert_close(torch.cat(list(images)), members)
