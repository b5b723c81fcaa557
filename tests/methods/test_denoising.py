"""The denoising method: kept rows, micro-batches, and what its optimum is."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dualrate.codecs.token_codec import GreyLevels
from dualrate.denoisers.denoiser import DualRate, Plain
from dualrate.denoisers.exact import GaussianMixture, OracleDenoiser
from dualrate.diffusion.categorical import Masked
from dualrate.diffusion.prediction import Sigmoid, x_loss_weight
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.values import Batch, Cond, Context
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.networks import OneNetwork
from dualrate.experiment.tokens import OneTransformer
from dualrate.methods.denoising import Denoising, DenoisingConfig, Targets
from dualrate.methods.times import SingleTime, TimeSampler
from dualrate.networks.dual import ContextEncoder, LightUViT
from dualrate.networks.tokens import TokensConfig
from dualrate.networks.uvit import Level, UViT, UViTConfig
from dualrate.training.config import FitConfig

PROCESS = GaussianProcess(Cosine())
NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16)


def batch(rows: int = 8) -> Batch:
    torch.manual_seed(1)
    return Batch(torch.randn(rows, 1, 8, 8, dtype=torch.float64), torch.arange(rows) % 3, torch.arange(rows))


def dual(dropout: float = 0.5, head: bool = True, **changes) -> Denoising:
    torch.manual_seed(0)
    encoder, light = ContextEncoder(replace(NET, head=head), NET), LightUViT(NET)
    networks = nn.ModuleDict({"encoder": encoder, "light": light}).double()
    for parameter in networks.parameters():
        nn.init.normal_(parameter, std=0.2)
    model = DualRate(encoder, light, PROCESS)
    return Denoising(networks, model, PROCESS, Sigmoid(), TimeSampler((2, 4), dropout), null=3, **changes)


@pytest.mark.parametrize("times", [1, 3])
def test_each_noise_of_a_pair_has_a_name_of_its_own(times):
    """By which runs of before go on with the same noise."""
    method, data = dual(), batch()
    draws = Draws(0, data.sample)
    t, tau = torch.full((8, times), 0.25).flatten(), torch.full((8,), 0.75)
    z_t, z_tau = method.pair(data.x, t, tau, draws)
    noise_tau, noise_t = draws.normal("z_tau", 1, 8, 8), draws.repeated(times).normal("z_t", 1, 8, 8)
    rows = (data.x.repeat_interleave(times, 0), tau.repeat_interleave(times), noise_tau.repeat_interleave(times, 0))
    expected_t, expected_tau = PROCESS.pair(rows[0], t, rows[1], rows[2], noise_t)
    torch.testing.assert_close(z_t, expected_t)
    torch.testing.assert_close(z_tau, expected_tau[::times])


def gradients(method: Denoising, total: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(total, list(method.networks.parameters()), allow_unused=True))


def test_kept_rows_only_is_dropping_after_encoding():
    """Encoding the kept rows gives the loss and gradient of encoding all rows and then dropping the others."""
    method, data = dual(head=False), batch()
    draws = Draws(0, data.sample)
    loss = method.loss(data, 0, draws).total

    times, cond = method.times(draws), method.condition(data, draws)
    z_t, z_tau = method.pair(data.x, times.t, times.tau, draws)
    full = method.model.encode(z_tau, times.tau, cond)
    present = torch.zeros(len(data), dtype=torch.bool)
    present[times.kept] = True
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


def shared(k: int, **changes) -> Denoising:
    method = dual(**changes)
    return replace(method, times=replace(method.times, draws=k))


def test_shared_context_is_the_mean_over_its_draws():
    """k draws of a batch are the losses of k batches that share (x, z_tau), each with its own times and noise."""
    k, method, data = 3, shared(3), batch()
    draws = Draws(0, data.sample)
    times, cond = method.times(draws), method.condition(data, draws)
    z_t, z_tau = method.pair(data.x, times.t, times.tau, draws)
    kept = times.kept.view(-1, k)[:, 0] // k
    context = method.model.encode(z_tau[kept], times.tau[kept], cond[kept])
    own = method.weighted_error(data.x[kept], context.x_hat, times.tau[kept]).sum() / len(data)
    losses = []
    for j in range(k):
        t, z = times.t.view(-1, k)[:, j], z_t.view(-1, k, 1, 8, 8)[:, j]
        x_hat = method.model.denoise(z, t, context.scattered(kept, len(data)), cond)
        losses.append(method.weighted_error(data.x, x_hat, t).mean())
    torch.testing.assert_close(method.loss(data, 0, draws).total, sum(losses) / k + own)


def test_draws_of_a_shared_context_are_independent_given_it():
    """Cov(z_t, z_t' | x) is that of two posterior draws of one z_tau: a a' Var(z_tau), and nothing more."""
    rows, t, tau = 100_000, torch.tensor([0.3, 0.5], dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    method = dual()
    x = torch.full((rows, 1), 0.4, dtype=torch.float64)
    z_t, z_tau = method.pair(x, t.repeat(rows), tau.repeat(rows), Draws(0, torch.arange(rows)))
    z = torch.cat((z_t.view(rows, 2), z_tau), 1)
    alpha, sigma = PROCESS.alpha(torch.cat((t, tau[None]))), PROCESS.sigma(torch.cat((t, tau[None])))
    with_tau = alpha[2] / alpha[:2] * sigma[:2] ** 2  # Cov(z_t, z_tau | x)
    expected = torch.diag(sigma**2)
    expected[:2, 2] = expected[2, :2] = with_tau
    expected[0, 1] = expected[1, 0] = with_tau.prod() / sigma[2] ** 2
    torch.testing.assert_close(z.mean(0), 0.4 * alpha, atol=0.01, rtol=0)
    torch.testing.assert_close(z.T.cov(), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("rows", [2, 4])
def test_micro_batches_of_shared_contexts_add_up(rows):
    method, data = shared(2), batch(8)
    whole = method.loss(data, 0, Draws(0, data.sample))
    parts = [data[slice(i, i + rows)] for i in range(0, 8, rows)]
    losses = [method.loss(part, 0, Draws(0, part.sample)) for part in parts]
    torch.testing.assert_close(sum(rows / 8 * loss.total for loss in losses), whole.total)
    for name, value in whole.logs.items():
        torch.testing.assert_close(sum(rows / 8 * loss.logs[name] for loss in losses), value)


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
    times, cond = method.times(draws), method.condition(data, draws)
    _, z_tau = method.pair(data.x, times.t, times.tau, draws)
    kept = times.kept
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
    label = method.condition(data, Draws(0, data.sample)).label
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
            x_hat = model.denoise(z_t, times.t, Context(), method.condition(data, draws))
        return method.weighted_error(data.x, x_hat, times.t)

    slope = (per_row(1e-4) - per_row(-1e-4)) / 2e-4
    standard_error = slope.std() / rows**0.5
    assert slope.mean().abs() < 3.5 * standard_error
    slope_away = (per_row(0.3) - per_row(0.2)) / 0.1
    assert slope_away.mean() > 10 * standard_error


@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("k", [1, 2])
def test_targets_are_a_mixture_of_the_teacher_at_the_same_states_and_the_data(share, k):
    """The teacher sees (z_t, t, label) of every draw and gets no gradient; the encoder's own target is the data."""
    torch.manual_seed(4)
    teacher, data = UViT(NET).double(), batch()
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.2)
    without = shared(k)
    method = replace(without, targets=Targets(Plain(teacher, PROCESS), share))
    draws, image = Draws(0, data.sample), torch.arange(8 * k) // k
    times, cond = method.times(draws), method.condition(data, draws)
    z_t, _ = method.pair(data.x, times.t, times.tau, draws)
    taught = Plain(teacher, PROCESS).denoise(z_t, times.t, Context(), Cond(cond.label[image])).detach()
    target = share * taught + (1 - share) * data.x[image]

    def error(of):
        return without.weighted_error(of, x_hat, times.t).mean()

    x_hats = []
    spied = replace(without, model=Spy(without.model, x_hats))
    plain, loss = spied.loss(data, 0, draws), method.loss(data, 0, draws)
    (x_hat,) = x_hats
    torch.testing.assert_close(plain.total, error(data.x[image]) + plain.logs["encoder_loss"])
    torch.testing.assert_close(loss.total, error(target) + plain.logs["encoder_loss"])
    torch.testing.assert_close(loss.logs["data_loss"], error(data.x[image]).detach())
    loss.total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


class Spy:
    """A denoiser that keeps the x_hat it returned."""

    def __init__(self, inner, kept: list) -> None:
        self.encode, self.inner, self.kept = inner.encode, inner, kept

    def denoise(self, *call):
        self.kept.append(self.inner.denoise(*call))
        return self.kept[-1]


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_an_exact_teacher_keeps_the_expected_gradient_and_takes_variance_away(share):
    """Of x_hat = (1 + b) E[x | z_t]: the slope of a row is -2 w (target - x_hat) m / d, m = E[x | z_t], so what the
    targets take away of it has mean 0 and variance share^2 E[4 w^2 m Cov[x | z_t] m] / d^2, apart from what is left.
    """
    rows, bias = 40_000, 0.3
    mixture = GaussianMixture.isotropic(torch.tensor([[-1.0, 0.5], [0.8, -0.2]], dtype=torch.float64), 0.1)
    oracle = OracleDenoiser(mixture, PROCESS)
    model = Biased(oracle)
    method = Denoising(nn.ModuleDict({"model": model}), model, PROCESS, Sigmoid(), SingleTime())
    draws = Draws(3, torch.arange(rows))
    x, times = mixture.sample(draws.uniform("component"), draws.normal("x", 2).double()), method.times(draws)
    z_t, _ = method.pair(x, times.t, times.tau, draws)
    mean = oracle.denoise(z_t, times.t, Context(), Cond())
    targets = Targets(oracle, share)(x, z_t, times.t, Cond())

    def slopes(target: torch.Tensor) -> torch.Tensor:
        low, high = (method.weighted_error(target, (1 + b) * mean, times.t) for b in (bias - 1e-3, bias + 1e-3))
        return (high - low) / 2e-3  # exact: the loss is a parabola

    of_data, of_teacher = slopes(x), slopes(targets)
    difference = of_data - of_teacher
    assert difference.mean().abs() < 3.5 * difference.std() / rows**0.5
    assert of_teacher.mean() > 10 * of_data.std() / rows**0.5  # far from the optimum: there is something to keep
    weight = x_loss_weight(Sigmoid(), PROCESS.schedule, times.t)
    spread = mixture.posterior_covariance(z_t, PROCESS.schedule.log_snr(times.t))
    noise = 4 * weight**2 * torch.einsum("bi,bij,bj->b", mean, spread, mean) / 2**2
    assert float(difference.var()) == pytest.approx(float(share**2 * noise.mean()), rel=0.05)
    noisy = times.t > 0.5
    assert of_teacher[noisy].var() < (1 - 0.7 * share) * of_data[noisy].var()
