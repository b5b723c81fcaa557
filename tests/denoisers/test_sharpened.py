"""Temperature and top-p of tokens, against the formula."""

import math
from dataclasses import replace

import pytest
import torch
from theory.common import f64

from dualrate.denoisers.denoiser import Denoiser
from dualrate.denoisers.guidance import Sharpened
from dualrate.diffusion.categorical import Masked
from dualrate.diffusion.context import Cond, Context, Reuse
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine

P = f64(0.1, 0.5, 0.25, 0.15, 0)


class Constant:
    reuse = Reuse.FREE

    def encode(self, z, t, cond):
        return Context()

    def denoise(self, z, t, context, cond):
        return P.view(1, 5, 1, 1)


def of(temperature: float = 1.0, top_p: float = 1.0, margin: float = 5.0):
    made = Sharpened(Constant(), Masked(), temperature, top_p, margin)
    return made.denoise(torch.zeros(1, 5, 1, 1), f64(0.5), made.encode(None, None, None), Cond()).flatten()


class Cached(Denoiser):
    """A denoiser that reads conditions, and renews contexts in part."""

    reuse = Reuse.SMOOTH

    def encode(self, z, t, cond):
        return Context((z,))

    def denoise(self, z, t, context, cond):
        return P.view(1, 5, 1, 1)

    def read(self, cond):
        return replace(cond, features=(P,))

    def renew(self, z, t, context, cond):
        return Context((2 * z,))


def test_readings_and_renewals_are_those_of_the_denoiser_within():
    made, z = Sharpened(Cached(), Masked(), 0.5), torch.ones(1, 5, 1, 1)
    cond = made.read(Cond())
    assert cond.features == (P,)
    assert torch.equal(made.renew(z, f64(0.5), made.encode(z, f64(0.5), cond), cond).features[0], 2 * z)


def test_temperature_is_a_power():
    torch.testing.assert_close(of(), P)
    torch.testing.assert_close(of(0.5), P.square() / P.square().sum())


def test_tokens_outside_the_likeliest_lose_a_finite_margin():
    """0.5 + 0.25 hold 0.7; the token that passes it counts, and what is excluded anyway stays so."""
    weight = f64(math.exp(-2), 1, 1, math.exp(-2), 0)
    torch.testing.assert_close(of(top_p=0.7, margin=2), P * weight / (P * weight).sum())
    weight[2] = math.exp(-2)
    torch.testing.assert_close(of(top_p=0.45, margin=2), P * weight / (P * weight).sum())
    found = of(0.5, 0.6)
    assert (found[:4] > 0).all()
    assert found[4] == 0


def test_outside_a_token_is_150_times_less_likely_unless_told_otherwise():
    found = Sharpened(Constant(), Masked(), top_p=0.45).sharpened(P.view(1, 5, 1, 1)).flatten()
    assert found[1] / found[2] == pytest.approx(2 * math.exp(5))


def test_all_of_the_likeliest_are_all_of_them_in_single_precision_too():
    """One token nearly certain: what is likelier sums to 1, rounded, before the others."""
    p = torch.tensor([1 - 3e-8, 2e-8, 1e-8]).view(1, 3, 1, 1)
    made = Sharpened(Constant(), Masked(), 1.0, 1.0)
    torch.testing.assert_close(made.sharpened(p), p / p.sum(), rtol=1e-5, atol=0)


def test_a_revealed_token_stays():
    made = Sharpened(Constant(), Masked(), 0.7, 0.9)
    shown = f64(0, 1, 0, 0, 0).view(1, 5, 1, 1)
    torch.testing.assert_close(made.sharpened(shown), shown)


def test_it_is_of_tokens():
    with pytest.raises(ValueError, match="are of tokens, got GaussianProcess"):
        Sharpened(Constant(), GaussianProcess(Cosine()))
