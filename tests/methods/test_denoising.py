"""The denoising method: kept rows, micro-batches, and what its optimum is."""

import math
from dataclasses import replace

import pytest
import torch
from theory.exact import GaussianMixture, OracleDenoiser
from torch import nn

from dualrate.denoisers.denoiser import DualRate, Plain
from dualrate.diffusion.categorical import Masked
from dualrate.diffusion.context import Batch, Context
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Sigmoid, x_loss_weight
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneNetwork
from dualrate.methods.denoising import Denoising, DenoisingConfig, DualRateLoss
from dualrate.methods.times import BothTimes, GivenTimes, SingleTime, TimeSampler
from dualrate.networks.dual import ContextEncoder, LightBody
from dualrate.networks.uvit import Level, UViT, UViTConfig
from dualrate.texts.codec import GreyLevels
from dualrate.texts.networks import OneTransformer
from dualrate.texts.transformer import TokensConfig
from dualrate.training.config import FitConfig

PROCESS = GaussianProcess(Cosine())
NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16)


def batch(rows: int = 8) -> Batch:
    torch.manual_seed(1)
    return Batch(torch.randn(rows, 1, 8, 8, dtype=torch.float64), torch.arange(rows) % 3, torch.arange(rows))


def dual(dropout: float = 0.5, head: bool = True, **changes) -> Denoising:
    torch.manual_seed(0)
    encoder, light = ContextEncoder(replace(NET, head=head), NET), LightBody(NET)
    networks = nn.ModuleDict({"encoder": encoder, "light": light}).double()
    for parameter in networks.parameters():
        nn.init.normal_(parameter, std=0.2)
    model = DualRate(encoder, light, PROCESS)
    return Denoising(networks, model, PROCESS, Sigmoid(), TimeSampler((2, 4), dropout), null=3, **changes)


def test_each_noise_of_a_pair_has_a_name_of_its_own():
    """So the draws of one are independent of the other's."""
    method, data = dual(), batch()
    draws, t, tau = Draws(0, data.sample), torch.full((8,), 0.25), torch.full((8,), 0.75)
    z_t, z_tau = method.pair(data.x, t, tau, draws)
    expected = PROCESS.pair(data.x, t, tau, draws.normal("z_tau", 1, 8, 8), draws.normal("z_t", 1, 8, 8))
    torch.testing.assert_close((z_t, z_tau), expected)


def gradients(method: Denoising, total: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(total, list(method.networks.parameters()), allow_unused=True))


def test_kept_rows_only_is_dropping_after_encoding():
    """Encoding the kept rows gives the loss and gradient of encoding all rows and then dropping the others."""
    method, data = dual(head=False), batch()
    draws = Draws(0, data.sample)
    loss = method.loss(data, 0, draws).total

    times, cond = method.times(draws), method.given(data, draws)
    z_t, z_tau = method.pair(data.x, times.t, times.tau, draws)
    full = method.model.encode(z_tau, times.tau, cond)
    present = torch.zeros(len(data), dtype=torch.bool)
    present[times.heavy_rows] = True
    dropped = Context(tuple(f * present[:, None, None, None] for f in full.features), times.tau, present)
    x_hat = method.model.denoise(z_t, times.t, dropped, cond)
    expected = method.weighted_error(data.x, x_hat, times.t).mean()

    assert present.sum() == 4
    torch.testing.assert_close(loss, expected)
    for got, want in zip(gradients(method, loss), gradients(method, expected), strict=True):
        if want is not None:
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_micro_batches_add_up(rows):
    """Weighted by their rows, whether or not each keeps the same share of them."""
    method, data = dual(), batch(8)
    whole = method.loss(data, 0, Draws(0, data.sample))
    parts = [data[slice(i, i + rows)] for i in range(0, 8, rows)]
    losses = [method.loss(part, 0, Draws(0, part.sample)) for part in parts]
    shares = [len(part) / 8 for part in parts]
    total = sum(w * loss.total for w, loss in zip(shares, losses, strict=True))
    torch.testing.assert_close(total, whole.total)
    for added, gradient in zip(gradients(method, total), gradients(method, whole.total), strict=True):
        torch.testing.assert_close(added, gradient)
    for name, value in whole.logs.items():
        torch.testing.assert_close(sum(w * loss.logs[name] for w, loss in zip(shares, losses, strict=True)), value)


def test_noise_level_quarters_add_up_to_the_loss():
    loss = dual(head=False).loss(batch(), 0, Draws(0, torch.arange(8)))
    torch.testing.assert_close(sum(loss.logs[f"loss_t{i}"] for i in range(4)) / 4, loss.total.detach())


def test_encoder_loss_only_with_a_head_and_gradient_only_where_rows_are_kept():
    data = batch()
    draws = Draws(0, data.sample)
    assert "encoder_loss" in dual().loss(data, 0, draws).logs
    assert "encoder_loss" not in dual(head=False).loss(data, 0, draws).logs
    without = dual(dropout=1.0, head=False)
    grads = torch.autograd.grad(
        without.loss(data, 0, draws).total, list(without.networks["encoder"].parameters()), allow_unused=True
    )
    assert all(grad is None or grad.abs().max() == 0 for grad in grads)


def test_encoder_loss_is_its_own_error_at_tau_as_a_share_of_all_rows():
    method, data = dual(encoder_weight=3.0), batch()
    draws = Draws(0, data.sample)
    loss = method.loss(data, 0, draws)
    times, cond = method.times(draws), method.given(data, draws)
    _, z_tau = method.pair(data.x, times.t, times.tau, draws)
    kept = times.heavy_rows
    x_hat = method.model.encode(z_tau[kept], times.tau[kept], cond[kept]).x_hat
    expected = method.weighted_error(data.x[kept], x_hat, times.tau[kept]).sum() / 8
    torch.testing.assert_close(loss.logs["encoder_loss"], expected.detach())
    denoising = sum(loss.logs[f"loss_t{i}"] for i in range(4)) / 4
    torch.testing.assert_close(loss.total, denoising + 3 * expected)


def test_the_loss_depends_on_nothing_but_sample_numbers():
    method, data = dual(), batch()
    torch.manual_seed(5)
    first = method.loss(data, 0, Draws(0, data.sample)).total
    torch.manual_seed(6)
    torch.testing.assert_close(method.loss(data, 7, Draws(0, data.sample)).total, first, rtol=0, atol=0)
    assert not torch.allclose(method.loss(data, 0, Draws(0, data.sample + 8)).total, first)


def test_labels_are_dropped_to_the_null_class():
    method = dual(label_dropout=0.3)
    data = Batch(torch.zeros(20_000, 1, 1, 1), torch.zeros(20_000, dtype=torch.int64), torch.arange(20_000))
    label = method.given(data, Draws(0, data.sample)).label
    assert (label == 3).double().mean().item() == pytest.approx(0.3, abs=0.01)


def test_single_rate_trains_every_row_without_context():
    network = UViT(NET)
    method = Denoising(nn.ModuleDict({"model": network}), Plain(network, PROCESS), PROCESS, Sigmoid(), SingleTime(), 3)
    data = Batch(batch().x.float(), batch().label, batch().sample)
    assert torch.isfinite(method.loss(data, 0, Draws(0, data.sample)).total)
    assert method.phases(0)[0].name == "model"


class Biased(nn.Module):
    """The exact denoiser scaled by 1 + bias: at bias 0 the loss is at its minimum."""

    def __init__(self, oracle: OracleDenoiser) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.oracle = oracle
        self.reuse = oracle.reuse
        self.encode = oracle.encode

    def denoise(self, z, t, context, cond):
        return (1 + self.bias) * self.oracle.denoise(z, t, context, cond)


@pytest.mark.parametrize("copies", [0, 1, 3])
def test_the_multiscale_error_of_a_constant_is_its_square_at_every_scale_and_of_fine_detail_at_the_finest(copies):
    """Constant c: (K + 1) c^2. A chessboard of +-c, whose means of 2 x 2 are 0: c^2. The sum of both: the sum."""
    network = UViT(NET)
    networks = nn.ModuleDict({"model": network})
    method = Denoising(networks, Plain(network, PROCESS), PROCESS, Sigmoid(), SingleTime(), multiscale=copies)
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    x = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    constant = torch.tensor([0.5, -1.5], dtype=torch.float64)[:, None, None, None].expand_as(x)
    sign = torch.arange(8)[:, None] + torch.arange(8)
    board = 0.25 * (1 - 2 * (sign % 2)).double().expand_as(x)
    weight = x_loss_weight(method.weighting, PROCESS.schedule, t)
    squares = torch.tensor([0.25, 2.25], dtype=torch.float64)
    torch.testing.assert_close(method.weighted_error(x + constant, x, t), weight * (copies + 1) * squares)
    torch.testing.assert_close(method.weighted_error(x + board, x, t), weight * 0.0625)
    both = method.weighted_error(x, x + constant + board, t)
    torch.testing.assert_close(both, weight * ((copies + 1) * squares + 0.0625))


def test_copies_that_the_images_do_not_have_are_refused():
    method = DenoisingConfig(multiscale=4)
    with pytest.raises(ValueError, match=r"4 copies need sides that are multiples of 16, .* has 8 x 8"):
        Experiment("run", OneNetwork(NET), method, FitConfig(1))
    tokens = OneTransformer(TokensConfig(5, 8, 8, channels=16, blocks=1, num_classes=3, embedding=16, head_dim=16))
    with pytest.raises(ValueError, match="has no Gaussian noise"):
        Experiment("run", tokens, method, FitConfig(1), process=Masked(), codec=GreyLevels(4))


def test_expected_gradient_is_zero_at_the_optimum():
    mixture = GaussianMixture.isotropic(torch.tensor([[-1.0, 0.5], [0.8, -0.2]], dtype=torch.float64), 0.1)
    model = Biased(OracleDenoiser(mixture, PROCESS))
    networks = nn.ModuleDict({"model": model})
    method = Denoising(networks, model, PROCESS, Sigmoid(), SingleTime())
    rows = 40_000
    draws = Draws(3, torch.arange(rows))
    x = mixture.sample(draws.uniform("component"), draws.normal("x", 2).double())
    data = Batch(x, None, torch.arange(rows))

    def per_row(bias: float) -> torch.Tensor:
        model.bias.data.fill_(bias)
        draws = Draws(0, data.sample)
        times = method.times(draws)
        z_t, _ = method.pair(data.x, times.t, times.tau, draws)
        with torch.no_grad():
            x_hat = model.denoise(z_t, times.t, Context(), method.given(data, draws))
        return method.weighted_error(data.x, x_hat, times.t)

    slope = (per_row(1e-4) - per_row(-1e-4)) / 2e-4
    standard_error = slope.std() / rows**0.5
    assert slope.mean().abs() < 3.5 * standard_error
    slope_away = (per_row(0.3) - per_row(0.2)) / 0.1
    assert slope_away.mean() > 10 * standard_error


class Counting(nn.Module):
    """An encoder that counts, by label, the rows that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(())), torch.zeros(3, dtype=torch.int64)

    def forward(self, z, log_snr, label):
        self.seen += torch.bincount(label, minlength=3)
        return (self.weight * z,), None


class Dropping(nn.Module):
    """A light network with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.dropout = nn.Parameter(torch.ones(())), nn.Dropout(0.5)

    def forward(self, z, log_snr, label, features, log_snr_tau, present):
        return self.weight * self.dropout(z) + features[0]


@pytest.mark.parametrize("labels", [[0], [0, 1, 0, 1]])
def test_in_a_loop_of_one_s_own_every_place_of_a_batch_keeps_its_context_as_often(labels) -> None:
    """Half of 400 batches, within five standard deviations."""
    torch.manual_seed(0)
    encoder = Counting()
    loss = DualRateLoss(encoder, Dropping(), num_classes=2, label_dropout=0.0)
    for _ in range(400):
        loss(torch.zeros(len(labels), 1, 2, 2), torch.tensor(labels))
    for label in set(labels):
        rows = 400 * labels.count(label)
        assert abs(encoder.seen[label].item() - rows / 2) < 5 * math.sqrt(rows) / 2


def test_in_a_loop_of_one_s_own_times_say_how_many_noise_levels_an_image_has_and_have_a_tau() -> None:
    encoder, times = Counting(), BothTimes((2, 4), dropout=0.0, draws=3)
    loss = DualRateLoss(encoder, Dropping(), num_classes=2, label_dropout=0.0, times=times)
    loss(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]))
    assert encoder.seen.tolist() == [3, 3, 0]
    for alone in (SingleTime(), GivenTimes()):
        with pytest.raises(ValueError, match="a pair is trained at two times"):
            DualRateLoss(encoder, Dropping(), times=alone)


def test_samples_in_a_loop_of_one_s_own_are_without_dropout_and_training_goes_on() -> None:
    loss = DualRateLoss(Counting(), Dropping(), num_classes=2)
    loss.encoder.eval()
    once, again = (loss.sample(4, (1, 2, 2), steps=4, label=[0, 1, 0, 1]) for _ in range(2))
    assert torch.equal(once, again)
    assert (loss.encoder.training, loss.light.training) == (False, True)
    assert loss.light.weight.requires_grad


def test_images_of_8_bits_are_refused_in_a_loop_of_one_s_own() -> None:
    with pytest.raises(ValueError, match=r"images are torch.uint8; expected floats in \[-1, 1\]"):
        DualRateLoss(Counting(), Dropping())(torch.zeros(2, 1, 2, 2, dtype=torch.uint8))
