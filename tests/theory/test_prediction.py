"""Conversions through x, and the weights that make the losses of different predictions equal."""

import pytest
import torch

from dualrate.diffusion import prediction
from dualrate.diffusion.schedule import alpha, sigma
from theory.common import f64, normals

LOG_SNR = f64(-12, -3, 0, 2, 9)
X, EPS, GUESS = normals(0, 5, 2, 3), normals(1, 5, 2, 3), normals(2, 5, 2, 3)
ALPHA, SIGMA = alpha(LOG_SNR)[:, None, None], sigma(LOG_SNR)[:, None, None]
Z = ALPHA * X + SIGMA * EPS


def test_definitions_of_v_and_eps():
    torch.testing.assert_close(prediction.v_from_x(Z, X, LOG_SNR), ALPHA * EPS - SIGMA * X)
    torch.testing.assert_close(prediction.eps_from_x(Z, X, LOG_SNR), EPS)
    torch.testing.assert_close(prediction.score_from_x(Z, X, LOG_SNR), -EPS / SIGMA)


@pytest.mark.parametrize(
    ("there", "back"),
    [(prediction.v_from_x, prediction.x_from_v), (prediction.eps_from_x, prediction.x_from_eps)],
)
def test_round_trips(there, back):
    torch.testing.assert_close(back(Z, there(Z, GUESS, LOG_SNR), LOG_SNR), GUESS)
    torch.testing.assert_close(there(Z, back(Z, GUESS, LOG_SNR), LOG_SNR), GUESS)


def test_the_same_loss_in_x_eps_and_v():
    in_x = (LOG_SNR.exp()[:, None, None] * (X - GUESS) ** 2).sum((1, 2))
    in_eps = (prediction.eps_from_x(Z, X, LOG_SNR) - prediction.eps_from_x(Z, GUESS, LOG_SNR)).square().sum((1, 2))
    in_v = (prediction.v_from_x(Z, X, LOG_SNR) - prediction.v_from_x(Z, GUESS, LOG_SNR)).square().sum((1, 2))
    torch.testing.assert_close(in_x, in_eps)
    torch.testing.assert_close(in_x, alpha(LOG_SNR) ** 2 * in_v)
