"""Flow on the sphere, against closed forms: harmonics, Rossby-Haurwitz waves, what is conserved, finer grids."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from torch import Tensor

from dualrate.diffusion.random import Draws
from dualrate.forecasts.fields import read_fields
from dualrate.forecasts.simulations import SIMULATIONS
from dualrate.forecasts.sphere import HOUR, RADIUS, ROTATION, Barotropic
from dualrate.forecasts.systems import AT_A_TIME

QUIET = {"drag": 0.0, "hyperviscosity": 0.0, "stirring": 0.0}
FREE = Barotropic(**QUIET)
SMALL = Barotropic(latitudes=16, burn_in=12.0)


@pytest.fixture(scope="module", autouse=True)
def harmonics() -> None:
    """The package; where it is not there, or was built for another torch, these tests are skipped."""
    try:
        FREE._transforms  # noqa: B018
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def points(system: Barotropic) -> tuple[Tensor, Tensor]:
    """Latitudes (H, 1) and longitudes (W,) in radians, as the coordinates say."""
    rows, columns = (torch.tensor(each.values, dtype=torch.float64) for each in system.metadata.coordinates)
    return torch.deg2rad(rows)[:, None], torch.deg2rad(columns)


def states(system: Barotropic, degrees: int, size: float = 1.2e-5, seed: int = 0) -> Tensor:
    """Random modes, (3, N + 1, N + 1), of harmonics up to a degree. size: their root mean square in 1/s"""
    n = system.truncation + 1
    modes = torch.view_as_complex(Draws(seed, torch.arange(3)).normal("states", n, n, 2).double())
    modes = modes.tril()
    modes[:, :, 0].imag = 0
    modes[:, 0] = modes[:, degrees + 1 :] = 0
    return modes * (size / system.fields(modes)[:, 0].square().mean((1, 2), keepdim=True).sqrt())


def advanced(system: Barotropic, modes: Tensor, hours: float, dt: float) -> Tensor:
    step = system.stepper(dt)
    for _ in range(round(hours / dt)):
        modes = step(modes)
    return modes


def mean(field: Tensor, system: Barotropic) -> Tensor:
    """The mean over the sphere of fields (..., H, W)."""
    weights = torch.from_numpy(np.polynomial.legendre.leggauss(system.latitudes)[1])[:, None] / 2
    return (field * weights).sum(-2).mean(-1)


SIN, COS = torch.sin, torch.cos
HARMONICS = {  # psi = g(latitude) cos(m longitude) on the unit sphere: n, m, g, its derivative
    "solid rotation": (1, 0, SIN, COS),
    "n 1, m 1": (1, 1, COS, lambda p: -SIN(p)),
    "n 2, m 1": (2, 1, lambda p: SIN(p) * COS(p), lambda p: COS(2 * p)),
    "n 4, m 4": (4, 4, lambda p: COS(p) ** 4, lambda p: -4 * COS(p) ** 3 * SIN(p)),
    "n 5, m 4": (5, 4, lambda p: SIN(p) * COS(p) ** 4, lambda p: COS(p) ** 5 - 4 * SIN(p) ** 2 * COS(p) ** 3),
}


@pytest.mark.parametrize("name", HARMONICS)
def test_winds_of_a_harmonic_are_the_derivatives_of_its_streamfunction(name: str) -> None:
    n, m, g, slope = HARMONICS[name]
    latitude, longitude = points(FREE)
    vorticity = -n * (n + 1) * g(latitude) * COS(m * longitude) * 1e-6
    field = FREE.fields(FREE.modes(vorticity[None]))[0]
    u = -RADIUS * 1e-6 * slope(latitude) * COS(m * longitude)
    v = -RADIUS * 1e-6 * m * g(latitude) / COS(latitude) * SIN(m * longitude)
    torch.testing.assert_close(field[0], vorticity, rtol=0, atol=1e-18)
    torch.testing.assert_close(field[1:], torch.stack([u.expand_as(v), v]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("rotation", [0.0, 2e-6])
@pytest.mark.parametrize("degree", [2, 5])
def test_rossby_haurwitz_waves_move_at_their_angular_speed(degree: int, rotation: float) -> None:
    """All orders of one degree, on air that rotates faster than the planet by `rotation` in 1/s: each keeps its shape
    and goes round by rotation - 2 (Omega + rotation) / (n (n + 1)), whatever its amplitude."""
    waves = states(FREE, degree)
    waves[:, :degree] = 0
    solid = torch.zeros_like(waves[:1])
    solid[:, 1, 0] = 2 * rotation * math.sqrt(4 * math.pi / 3)
    hours, m = 24.0, torch.arange(FREE.truncation + 1, dtype=torch.float64)
    speed = rotation - 2 * (ROTATION + rotation) / (degree * (degree + 1))
    expected = waves * torch.exp(-1j * m * speed * hours * HOUR) + solid
    error = [(advanced(FREE, waves + solid, hours, dt) - expected).abs().max() / waves.abs().max() for dt in (1, 0.5)]
    assert error[1] < 1e-5
    assert math.log2(error[0] / error[1]) == pytest.approx(4, abs=0.2)


def test_energy_and_enstrophy_drift_by_less_than_a_millionth_a_day_without_friction() -> None:
    """Steps are of half an hour, at the speeds of the stirred flow; it is that of steps in time alone, which falls with
    the fourth power of dt or faster."""
    modes = states(FREE, 12)

    def sizes(modes: Tensor) -> Tensor:
        vorticity, *winds = FREE.fields(modes).square().unbind(1)
        return torch.stack([mean(vorticity, FREE), mean(winds[0] + winds[1], FREE)])

    before = sizes(modes)
    coarse, fine = ((sizes(advanced(FREE, modes, 24.0, dt)) / before - 1).abs().max() for dt in (0.5, 0.25))
    assert coarse < 1e-6
    assert fine < coarse / 12


def test_products_are_free_of_aliases() -> None:
    """The same modes have the same tendency on a grid of three times as many points."""
    fine = Barotropic(latitudes=96, **QUIET)
    modes = states(FREE, FREE.truncation)
    size = FREE.truncation + 1
    wide = torch.zeros(3, fine.truncation + 1, fine.truncation + 1, dtype=modes.dtype)
    wide[:, :size, :size] = modes
    expected = fine.advection(wide)[:, :size, :size]
    torch.testing.assert_close(FREE.advection(modes), expected, rtol=0, atol=1e-12 * expected.abs().max().item())


def test_waves_decay_by_drag_and_hyperviscosity() -> None:
    system = replace(FREE, drag=0.01, hyperviscosity=0.5)
    modes = torch.zeros(1, 22, 22, dtype=torch.complex128)
    modes[0, :, 0] = 1e-6  # zonal flow carries nothing along
    n = torch.arange(22, dtype=torch.float64)
    rate = 0.01 + 0.5 * (n * (n + 1) / (21 * 22)) ** 4
    expected = modes * torch.exp(-24 * rate)[:, None]
    torch.testing.assert_close(advanced(system, modes, 24.0, 6.0)[:, 1:], expected[:, 1:], rtol=1e-10, atol=1e-18)


def test_the_mean_of_vorticity_stays_0() -> None:
    frames = torch.stack([state for state, _ in zip(SMALL.states(Draws(0, torch.arange(2))), range(3), strict=False)])
    vorticity = frames[:, :, 0]
    assert vorticity.square().mean() > 1e-14
    assert mean(vorticity, SMALL).abs().max() < 1e-14 * vorticity.abs().max()
    assert SMALL.modes(torch.ones(16, 32, dtype=torch.float64)).abs().max() < 1e-14


def test_the_stirring_has_its_size_in_the_middle_latitudes() -> None:
    """Where it is largest its standard deviation is `stirring`."""
    noise = Barotropic(stirring=2.4e-5).noise(Draws(0, torch.arange(64)), "noise", 8)
    latitude, _ = points(FREE)
    size = FREE._transforms[1](noise).square().mean((0, 1, 3)).sqrt()
    at = int((torch.rad2deg(latitude[:, 0]) - 45).abs().argmin())
    assert size[at] == pytest.approx(1e-6, rel=0.1)
    assert size[len(size) // 2] < 0.02 * size[at]
    assert noise[..., 0].abs().max() < 1e-12 * noise.abs().max()  # it does not push round the planet


def test_the_stirring_is_forgotten_at_the_rate_of_its_memory() -> None:
    """The air comes to rest at once: the vorticity is what a step stirs."""

    class AtRest(Barotropic):
        def stepper(self, dt: float) -> Callable[[Tensor], Tensor]:
            return torch.zeros_like

    system = AtRest(latitudes=16, every=12.0, burn_in=12.0, dt=2.0, memory=24.0)
    states = system.states(Draws(0, torch.arange(256)))
    first, second, third = (next(states)[:, 0] for _ in range(3))
    for later, apart in ((second, 12), (third, 24)):
        assert (first * later).mean() / first.square().mean() == pytest.approx(math.exp(-apart / 24), abs=0.03)
    assert third.square().mean() == pytest.approx(first.square().mean().item(), rel=0.05)


def test_what_is_stirred_alike_is_alike_and_moves() -> None:
    many = SMALL.simulate(AT_A_TIME + 2, 3, 5)
    assert (many.dtype, many.shape) == (np.float32, (AT_A_TIME + 2, 3, 3, 16, 32))
    np.testing.assert_array_equal(SMALL.simulate(3, 2, 5), many[:3, :2])
    assert not np.allclose(SMALL.simulate(1, 1, 6)[0, 0], many[0, 0])
    assert len(np.unique(many[:, -1].reshape(len(many), -1), axis=0)) == len(many)
    assert (np.abs(many[:, 1] - many[:, 0]).max((0, 2, 3)) > 0).all()


def test_what_the_command_writes_opens_in_xarray_with_coordinates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    xarray = pytest.importorskip("xarray")
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path))
    monkeypatch.setitem(SIMULATIONS, "barotropic-t21", (SMALL, 4, 3))
    file = tmp_path / "flow.nc"
    command = ["data", "simulate", "barotropic-t21", "--trajectories", "4", "--frames", "3", "--out", file, "--json"]
    assert call(monkeypatch, *command) == 0
    assert json.loads(capsys.readouterr().out)["fields"] == "4x3x3x16x32"
    with xarray.open_dataset(file, decode_timedelta=False) as data:
        assert dict(data.sizes) == {"trajectory": 4, "time": 3, "latitude": 16, "longitude": 32}
        units = {name: data[name].attrs["units"] for name in (*data.data_vars, "latitude", "longitude", "time")}
        assert units == {
            "vorticity": "s-1",
            "u": "m s-1",
            "v": "m s-1",
            "latitude": "degrees_north",
            "longitude": "degrees_east",
            "time": "hours",
        }
        assert data.u.attrs["standard_name"] == "eastward_wind"
        np.testing.assert_array_equal(data.time, [0, 6, 12])
        assert float(data.latitude[0]) > 80
        np.testing.assert_array_equal(data.longitude, np.arange(32) * 11.25)
    written, direct = (read_fields(source, "train") for source in (file, "barotropic-t21"))
    np.testing.assert_array_equal(written.trajectories[0][0:3], direct.trajectories[0][0:3])
    assert (written.step, written.axes, written.metadata) == (direct.step, direct.axes, direct.metadata)
