"""The loss of early exits against its closed form, in float64: of heads and probes that are wrong by known amounts."""

import math

import torch
from theory.common import f64
from torch import Tensor, nn

from dualrate.denoisers.early_exit import EarlyExit
from dualrate.diffusion.context import Batch
from dualrate.diffusion.prediction import eps_from_v, eps_from_x, v_from_eps, x_from_v
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Elbo
from dualrate.methods.early_exit import EarlyExitTraining

SCHEDULE = Cosine()
PROCESS = GaussianProcess(SCHEDULE)
X, ROWS = 0.3, 64
ESTIMATES = f64(0.2, 0.45)


class Wrong(nn.Module):
    """v of images that are all X, wrong by `by` at each block; and estimates of that."""

    def __init__(self) -> None:
        super().__init__()
        self.by, self.estimates = nn.Parameter(f64(0.9, -0.5, 0.1)), nn.Parameter(ESTIMATES)
        self.log_snr = f64()

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        self.log_snr = log_snr
        alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        v = (alpha.view(-1, 1, 1, 1) * z - X) / sigma.view(-1, 1, 1, 1)
        return v + self.by.view(-1, 1, 1, 1, 1), self.estimates[:, None].expand(-1, len(z))


def losses() -> tuple[Wrong, Tensor, dict[str, Tensor]]:
    network = Wrong()
    networks = nn.ModuleDict({"exits": network})
    denoiser = EarlyExit(network, PROCESS)
    method = EarlyExitTraining(networks, denoiser, PROCESS, Elbo())
    sample = torch.arange(ROWS)
    batch = Batch(torch.full((ROWS, 1, 2, 2), X, dtype=torch.float64), None, sample)
    loss = method.loss(batch, 0, Draws(0, sample))
    return network, loss.total, dict(loss.logs)


def test_the_loss_and_its_gradient_are_as_by_hand():
    """v is wrong by c: x by sigma c, eps by alpha c; with e^log_snr sigma^2 = alpha^2, and of the cosine schedule
    dlog_snr/dt = -4 (b - a) cosh(log_snr / 2), the weight of c^2 is 2 (b - a) cosh(log_snr / 2) alpha^2.
    """
    network, total, logs = losses()
    log_snr, wrong = network.log_snr, f64(0.9, 0.5)[:, None]
    a, b = (math.atan(math.exp(-end / 2)) for end in (SCHEDULE.log_snr_max, SCHEDULE.log_snr_min))
    alpha = torch.sigmoid(log_snr).sqrt()
    weight = 2 * (b - a) * torch.cosh(log_snr / 2) * alpha**2
    heads, errors = (weight * wrong**2).sum(0).mean(), torch.tanh(alpha * wrong)
    probes = (ESTIMATES[:, None] - errors).square().sum(0).mean()
    torch.testing.assert_close(total, heads + probes)
    torch.testing.assert_close(logs["heads"], heads)
    torch.testing.assert_close(logs["probes"], probes)
    torch.testing.assert_close((logs["first_error"], logs["last_error"]), (errors[0].mean(), errors[1].mean()))
    total.backward()
    assert network.by.grad is not None
    assert network.estimates.grad is not None
    signs = f64(1, -1)
    torch.testing.assert_close(network.by.grad[:-1], 2 * signs * wrong[:, 0] * weight.mean())  # of the heads alone
    assert network.by.grad[-1] == 0  # the network itself is never trained
    torch.testing.assert_close(network.estimates.grad, 2 * (ESTIMATES - errors.mean(1)))


def test_eps_of_v_is_that_of_x_and_gives_v_back():
    z, v, log_snr = (torch.randn(5, 3, dtype=torch.float64) for _ in range(3))
    log_snr = log_snr[:, 0]
    eps = eps_from_v(z, v, log_snr)
    torch.testing.assert_close(eps, eps_from_x(z, x_from_v(z, v, log_snr), log_snr))
    torch.testing.assert_close(v_from_eps(z, eps, log_snr), v)
