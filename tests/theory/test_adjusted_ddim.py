"""AdjustedDDIM: the norm that it puts back, its analytic variance."""

import pytest
import torch

from dualrate.diffusion.context import Cond
from dualrate.sampling.ddim import DDIM, AdjustedDDIM, analytic_variance
from dualrate.sampling.step import move
from dualrate.sampling.trajectory import trajectory
from theory.common import PROCESS, f64, gaussian, normals, uniform_log_snr
from theory.exact import GaussianMixture, OracleDenoiser


def no_noise(*_):
    raise AssertionError("a deterministic step must not draw noise")


def stepped(step, x, z, t, s):
    return step(lambda *_: x, z, t, s, no_noise, ())[0]


@pytest.mark.parametrize("variance", [analytic_variance, lambda log_snr: (15 - log_snr) / 60])
def test_the_squared_norm_grows_by_the_missing_variance(variance):
    """Where x_hat and eps_hat are orthogonal, exactly; each row by its own times."""
    rows, dimensions = 3, 12
    basis = torch.linalg.qr(normals(0, rows, dimensions, 2)).Q
    x, eps = (basis[..., i].reshape(rows, 3, 2, 2) * f64(0.5, 3.0, 7.0)[:, None, None, None] for i in (0, 1))
    t, s = f64(1.0, 0.7, 0.2), f64(0.8, 0.3, 0.1)
    z = PROCESS.add_noise(x, t, eps)
    ddim, adjusted = stepped(DDIM(PROCESS), x, z, t, s), stepped(AdjustedDDIM(PROCESS, variance), x, z, t, s)
    slope = move(PROCESS, z, x + 1, t, s) - move(PROCESS, z, x, t, s)  # what an error of x_hat does to DDIM's z_s
    missing = variance(PROCESS.schedule.log_snr(t)) * slope.square().flatten(1).sum(1)
    grown = adjusted.square().flatten(1).sum(1) - ddim.square().flatten(1).sum(1)
    torch.testing.assert_close(grown, missing)
    along_x = ((adjusted * x).flatten(1).sum(1), (ddim * x).flatten(1).sum(1))
    torch.testing.assert_close(*along_x)  # only eps_hat is stretched


def test_no_variance_is_ddim():
    z, x, t, s = normals(0, 4, 3, 2), normals(1, 4, 3, 2), f64(1.0, 0.9, 0.5, 0.1), f64(0.9, 0.2, 0.4, 0.05)
    step = AdjustedDDIM(PROCESS, torch.zeros_like)
    assert torch.equal(stepped(step, x, z, t, s), stepped(DDIM(PROCESS), x, z, t, s))


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
def test_few_steps_come_nearer_to_the_variance_of_a_gaussian(steps):
    """Whose variance is in an eighth of its directions, so that x_hat and eps_hat are nearly orthogonal."""
    variances = torch.where(torch.arange(64) < 8, f64(1.0), f64(0.01))
    data = GaussianMixture(f64(1.0), torch.zeros(1, 64, dtype=torch.float64), variances.diag()[None])
    denoiser, plan, start = OracleDenoiser(data, PROCESS), uniform_log_snr(steps, -8, 8), normals(0, 200, 64)
    t = torch.tensor(plan.t[1:], dtype=torch.float64)
    truth = PROCESS.alpha(t) ** 2 * variances.mean() + PROCESS.sigma(t) ** 2

    def worst(step):
        states = list(trajectory(denoiser, step, plan, start, Cond(), no_noise))[1:]
        made = torch.stack([state.z.square().mean() for state in states]) / start.square().mean()
        return float((made / truth).log().abs().max())

    def exact(log_snr):
        return (variances / (1 + variances * torch.exp(log_snr)[..., None])).mean(-1)

    assert worst(AdjustedDDIM(PROCESS, exact)) < 0.6 * worst(DDIM(PROCESS))


def posterior_variance(c):
    """Return the variance of x ~ N(0, c) given z_t."""
    return lambda log_snr: c / (1 + c * torch.exp(log_snr))


def test_many_steps_are_ddim():
    c, start = 0.09, normals(0, 4, 64)

    def apart(steps):
        ends = []
        for step in (AdjustedDDIM(PROCESS, posterior_variance(c)), DDIM(PROCESS)):
            denoiser, plan = OracleDenoiser(gaussian(c, 64), PROCESS), uniform_log_snr(steps, -8, 8)
            *_, end = trajectory(denoiser, step, plan, start, Cond(), no_noise)
            ends.append(end.z)
        return float((ends[0] - ends[1]).abs().mean())

    assert apart(256) == pytest.approx(apart(64) / 4, rel=0.2)


def test_the_analytic_variance():
    assert analytic_variance(f64(-40.0, 0.0)).tolist() == pytest.approx([0.05, 0.1 / 3])
    assert float(analytic_variance(f64(8.0).log())) == pytest.approx(0.01)
