"""Conversions through x, and the weights that make the losses of different predictions equal."""

import torch

from dualrate.diffusion import prediction
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import RectifiedFlow, alpha, sigma
from dualrate.sampling.step import move
from theory.common import f64, normals

LOG_SNR = f64(-12, -3, 0, 2, 9)
X, EPS, GUESS = normals(0, 5, 2, 3), normals(1, 5, 2, 3), normals(2, 5, 2, 3)
ALPHA, SIGMA = alpha(LOG_SNR)[:, None, None], sigma(LOG_SNR)[:, None, None]
Z = ALPHA * X + SIGMA * EPS


def test_definitions_of_v_and_eps():
    torch.testing.assert_close(prediction.v_from_x(Z, X, LOG_SNR), ALPHA * EPS - SIGMA * X)
    torch.testing.assert_close(prediction.eps_from_x(Z, X, LOG_SNR), EPS)


def test_there_and_back():
    torch.testing.assert_close(prediction.x_from_v(Z, prediction.v_from_x(Z, GUESS, LOG_SNR), LOG_SNR), GUESS)
    torch.testing.assert_close(prediction.v_from_x(Z, prediction.x_from_v(Z, GUESS, LOG_SNR), LOG_SNR), GUESS)


def test_the_same_loss_in_x_eps_and_v():
    in_x = (LOG_SNR.exp()[:, None, None] * (X - GUESS) ** 2).sum((1, 2))
    in_eps = (prediction.eps_from_x(Z, X, LOG_SNR) - prediction.eps_from_x(Z, GUESS, LOG_SNR)).square().sum((1, 2))
    in_v = (prediction.v_from_x(Z, X, LOG_SNR) - prediction.v_from_x(Z, GUESS, LOG_SNR)).square().sum((1, 2))
    torch.testing.assert_close(in_x, in_eps)
    torch.testing.assert_close(in_x, alpha(LOG_SNR) ** 2 * in_v)


def test_rectified_flow_is_variance_preserving():
    """x_r = (1 - r) x + r eps, u = eps - x, against z and v: the same numbers, either way."""
    r, s = prediction.flow_time(LOG_SNR)[:, None, None], prediction.flow_scale(LOG_SNR)[:, None, None]
    near = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(2 * torch.log((1 - r) / r).flatten(), LOG_SNR, **near)
    torch.testing.assert_close(s * Z, (1 - r) * X + r * EPS, **near)
    u, v = EPS - X, ALPHA * EPS - SIGMA * X
    torch.testing.assert_close(prediction.v_from_flow(Z, u, LOG_SNR), v, **near)
    torch.testing.assert_close(s * Z - r * u, X, **near)
    torch.testing.assert_close(s * Z + (1 - r) * u, EPS, **near)
    guess = prediction.v_from_flow(Z, GUESS, LOG_SNR)
    torch.testing.assert_close(prediction.x_from_v(Z, guess, LOG_SNR), s * Z - r * GUESS, **near)
    torch.testing.assert_close(prediction.v_from_eps(Z, EPS, LOG_SNR), v, rtol=0, atol=1e-9)
    errors = [(guess - v).square(), (u - GUESS).square(), (X - s * Z + r * GUESS).square()]
    torch.testing.assert_close(errors[0] / s**2, errors[1])
    torch.testing.assert_close(errors[2] / r**2, errors[1])


def test_an_euler_step_of_the_flow_is_a_ddim_step():
    t, s = f64(0.8), f64(0.35)
    process = GaussianProcess(RectifiedFlow())
    z, u = normals(3, 1, 4), normals(4, 1, 4)
    r_t, r_s = (prediction.flow_time(process.schedule.log_snr(time)) for time in (t, s))
    x_hat = prediction.x_from_v(z, prediction.v_from_flow(z, u, process.log_snr(t)), process.log_snr(t))
    there = move(process, z, x_hat, t, s) * prediction.flow_scale(process.schedule.log_snr(s))
    here = z * prediction.flow_scale(process.schedule.log_snr(t))
    torch.testing.assert_close(there, here + (r_s - r_t) * u, rtol=0, atol=1e-12)
