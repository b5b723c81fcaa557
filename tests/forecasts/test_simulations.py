"""The solvers of simulations.py, against closed forms, symmetries, conserved numbers and their order in dt."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from torch import Tensor

from dualrate.diffusion.random import Draws
from dualrate.forecasts.simulations import SIMULATIONS, Kolmogorov, KuramotoSivashinsky
from dualrate.forecasts.sphere import Barotropic
from dualrate.forecasts.systems import AT_A_TIME, SIMULATING, Simulation, etdrk4

KS = KuramotoSivashinsky()
FREE = Kolmogorov(points=32, viscosity=0.0, drag=0.0, waves=0)  # neither force nor friction
SEEDS = torch.arange(3)


def cosine(points: int, waves: int, size: float) -> Tensor:
    return size * torch.cos(waves * torch.arange(points, dtype=torch.float64) * (2 * math.pi / points))


@pytest.mark.parametrize("waves", [1, 3, 5, 8])
def test_a_small_wave_grows_by_the_linear_law(waves: int) -> None:
    u, k = cosine(KS.points, waves, 1e-8)[None, None, None], 2 * math.pi * waves / KS.length
    after = KS.advance(u, 2.0)
    torch.testing.assert_close(after, u * math.exp(2 * (k**2 - k**4)), rtol=1e-6, atol=1e-15)


def test_the_mean_is_conserved() -> None:
    u = KS.start(Draws(0, SEEDS)) + 0.25
    assert KS.advance(u, 30.0).mean((1, 2, 3)) == pytest.approx(0.25, abs=1e-12)


def test_translations_and_reflections_commute_with_time() -> None:
    u = KS.start(Draws(1, SEEDS))
    after = KS.advance(u, 5.0)
    torch.testing.assert_close(KS.advance(u.roll(7, -1), 5.0), after.roll(7, -1), rtol=0, atol=1e-10)
    torch.testing.assert_close(KS.advance(-u.flip(-1), 5.0), -after.flip(-1), rtol=0, atol=1e-10)


def test_a_steady_mean_flow_carries_the_field_along() -> None:
    """Galilean invariance: it fixes the factor of u u_x."""
    u, speed = KS.start(Draws(2, SEEDS)), 4 * KS.length / KS.points
    fine = KuramotoSivashinsky(dt=0.01)
    exact, moved = fine.advance(u, 1.0), fine.advance(u + speed, 1.0) - speed
    torch.testing.assert_close(moved, exact.roll(4, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("system", [KuramotoSivashinsky(points=24), Kolmogorov(points=16, viscosity=0.05)])
def test_the_order_in_time_is_four(system: Simulation) -> None:
    """On grids so coarse that no mode is stiff at these steps."""
    u = system.advance(system.start(Draws(0, SEEDS)), 3.0)
    exact, *found = (replace(system, dt=1 / steps).advance(u, 1.0) for steps in (512, 16, 32))
    error = [(one - exact).abs().max().item() for one in found]
    assert math.log2(error[0] / error[1]) == pytest.approx(4, abs=0.1)


def test_a_constant_force_is_integrated_exactly() -> None:
    """u_t = L u + f has u(h) = e^{L h} u + (e^{L h} - 1) f / L, also where L h is tiny or large."""
    rate = torch.tensor([-1e-9, -0.5, -300.0], dtype=torch.float64)
    u, force = torch.ones(3, dtype=torch.float64), torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64)
    found = etdrk4(rate, lambda u: force.to(u), 0.1)(u)
    torch.testing.assert_close(found, u * torch.exp(0.1 * rate) + force * torch.expm1(0.1 * rate) / rate)


@pytest.mark.parametrize("along", [-1, -2])
def test_a_single_vortex_wave_decays_by_viscosity_and_drag(along: int) -> None:
    system = Kolmogorov(points=32, viscosity=0.03, drag=0.2, waves=0)
    wave = cosine(32, 3, 5.0)
    w = (wave[:, None].expand(32, 32) if along == -2 else wave.expand(32, 32))[None, None]
    torch.testing.assert_close(system.advance(w, 2.0), w * math.exp(-2 * (0.03 * 9 + 0.2)), rtol=1e-10, atol=1e-12)


def test_the_laminar_flow_stays() -> None:
    system = Kolmogorov(points=32)
    laminar = cosine(32, 4, -4 / (0.01 * 16 + 0.1))[:, None].expand(1, 1, 32, 32)
    torch.testing.assert_close(system.advance(laminar, 2.0), laminar, rtol=1e-9, atol=1e-9)


def test_the_velocity_has_no_divergence_and_the_vorticity_that_was_given() -> None:
    modes = FREE.spectrum(FREE.start(Draws(0, SEEDS)))
    along_x, along_y = torch.fft.rfft2(FREE.velocity(modes)).unbind(1)
    rows, columns = FREE.wavenumbers
    assert (columns * along_x + rows * along_y).abs().max() < 1e-9
    torch.testing.assert_close(1j * (columns * along_y - rows * along_x), modes[:, 0], rtol=0, atol=1e-9)


def test_enstrophy_and_energy_are_conserved_without_force_and_friction() -> None:
    w = FREE.field(FREE.spectrum(FREE.start(Draws(0, SEEDS))))

    def drift(dt: float) -> Tensor:
        after = Kolmogorov(points=32, viscosity=0.0, drag=0.0, waves=0, dt=dt).advance(w, 0.5)
        speed = [FREE.velocity(FREE.spectrum(one)) for one in (w, after)]
        return torch.stack([(b.square().mean() / a.square().mean() - 1).abs() for a, b in ((w, after), speed)])

    coarse, fine = drift(0.025), drift(0.0125)
    assert (coarse < 1e-4).all()
    assert (fine < coarse / 12).all()  # of order 4 at least


def test_products_are_free_of_aliases() -> None:
    """On a finer grid the same modes have the same rate."""
    coarse, fine = Kolmogorov(points=24), Kolmogorov(points=72)
    modes = coarse.spectrum(coarse.start(Draws(0, SEEDS)))
    wide = torch.zeros(3, 1, 72, 37, dtype=torch.complex128)
    wide[:, :, :8, :8], wide[:, :, -8:, :8] = 9 * modes[:, :, :8, :8], 9 * modes[:, :, -8:, :8]
    rate = fine.nonlinear(wide) / 9
    torch.testing.assert_close(coarse.nonlinear(modes)[:, :, :8, :8], rate[:, :, :8, :8], rtol=0, atol=1e-9)


@pytest.mark.parametrize("system", [KuramotoSivashinsky(burn_in=2), Kolmogorov(points=16, burn_in=0.5)])
def test_a_trajectory_is_a_function_of_seed_and_number(system: Simulation) -> None:
    many = system.simulate(AT_A_TIME + 2, 3, 5)
    assert (many.dtype, many.shape) == (np.float32, (AT_A_TIME + 2, 3, 1, *system.grid))
    np.testing.assert_array_equal(system.simulate(3, 2, 5), many[:3, :2])
    assert not np.allclose(system.simulate(1, 1, 6)[0, 0], many[0, 0])
    assert len(np.unique(many[:, -1].reshape(len(many), -1), axis=0)) == len(many)


def test_frames_are_apart_by_what_was_asked_for() -> None:
    frames = torch.from_numpy(KuramotoSivashinsky(every=2.0).simulate(2, 3, 0)).double()
    torch.testing.assert_close(KS.advance(frames[:, 0], 2.0), frames[:, 1], rtol=0, atol=1e-4)


def test_progress_counts_frames() -> None:
    seen: list[tuple[int, int, str]] = []
    KuramotoSivashinsky(burn_in=0.1, every=0.1).simulate(AT_A_TIME + 1, 2, 0, lambda *what: seen.append(what))
    total = 2 * AT_A_TIME + 2
    assert seen == [(done, total, SIMULATING) for done in (AT_A_TIME, 2 * AT_A_TIME, total - 1, total)]


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="0 trajectories of 3 frames; expected at least one"):
        KS.simulate(0, 3, 0)
    with pytest.raises(ValueError, match="points is a whole number"):
        KuramotoSivashinsky(points=2)
    with pytest.raises(ValueError, match=r"a force of 8 waves is above the third of 24 points"):
        Kolmogorov(points=24, waves=8)
    assert (Kolmogorov(points=25, waves=8)._force * Kolmogorov(points=25, waves=8).unaliased).abs().max() > 1
    with pytest.raises(FloatingPointError, match="smaller dt"):
        Kolmogorov(points=16, dt=20.0, every=20.0).simulate(1, 2, 0)


@pytest.mark.parametrize(
    ("package", "system", "file", "message"),
    [
        ("torch_harmonics", "barotropic-t21", "flow.npz", r'pip install "dualrate\[sphere\]".* --no-deps'),
        ("h5netcdf", "kuramoto-sivashinsky", "u.nc", r'pip install "dualrate\[forecast\]"'),
    ],
)
def test_a_package_that_is_missing_is_named_in_a_line_with_a_way_out(
    package: str,
    system: str,
    file: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(SIMULATIONS, "barotropic-t21", (Barotropic(), 1, 2))  # without transforms of another test
    out = tmp_path / file
    assert call(monkeypatch, "data", "simulate", system, "--out", out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not out.exists()


def measured_lyapunov_time(system: Simulation, trajectories: int = 16, times: int = 200, seed: int = 0) -> float:
    """1 / the largest Lyapunov exponent: of pairs of trajectories, 1e-6 of their size apart, that grow apart.

    The difference is scaled back after each `every` (Benettin and others, Meccanica 15, 1980); the exponent is the mean
    logarithm of its growth over `times` of them, after as many again for the difference to find its direction / 4.
    """
    draws = Draws(seed, torch.arange(trajectories))
    u = system.advance(system.start(draws), system.burn_in)
    size = 1e-6 * u.square().mean((1, 2, 3), keepdim=True).sqrt()
    apart = draws.normal("apart", *u.shape[1:]).double()
    logs, forget = [], times // 4
    for _ in range(forget + times):
        apart = apart * size / apart.square().mean((1, 2, 3), keepdim=True).sqrt()
        both = system.advance(torch.cat([u, u + apart]), system.every)
        u, other = both.chunk(2)
        apart = other - u
        logs.append((apart.square().mean((1, 2, 3)).sqrt() / size.flatten()).log().mean())
    return system.every / torch.stack(logs[forget:]).mean().item()


def test_the_default_systems_are_chaotic_at_the_stated_time() -> None:
    system, *_ = SIMULATIONS["kuramoto-sivashinsky"]
    assert measured_lyapunov_time(system, trajectories=16, times=80) == pytest.approx(system.lyapunov_time, rel=0.25)
