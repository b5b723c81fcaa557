"""Garments that bounce in a frame: inside it, as step by step reflection says, and the same from the same key."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dualrate.diffusion.random import Draws
from studies import garments
from studies.garments import MovingGarments


class Pictures:
    """Twenty garments, of one shade each."""

    images = np.repeat(np.arange(20, dtype=np.uint8), 28 * 28).reshape(20, 1, 28, 28) * 10 + 50


@pytest.fixture(autouse=True)
def _garments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garments, "load_images", lambda *what, **how: Pictures)


@pytest.mark.parametrize("system", [MovingGarments(), MovingGarments(side=64, shrink=1, garments=3, speed=50.0)])
def test_a_path_is_straight_and_turns_at_the_edges(system: MovingGarments) -> None:
    draws, room, count = Draws(3, torch.arange(40)), system.room, system.garments
    found, place = system.paths(draws, 30), draws.uniform("place", count, 2) * system.room
    angle = draws.uniform("direction", count) * (2 * math.pi)
    velocity = system.speed * torch.stack((angle.sin(), angle.cos()), -1)
    assert (found >= 0).all()
    assert (found <= room).all()
    turns = torch.zeros_like(place)
    for t in range(30):
        torch.testing.assert_close(place, found[:, :, t], rtol=0, atol=1e-9)
        place = place + velocity
        for _ in range(3):  # a fast one meets both edges in a step
            beyond = torch.where(place < 0, place, (place - room).clamp(min=0))
            place, velocity = place - 2 * beyond, torch.where(beyond != 0, -velocity, velocity)
            turns += beyond != 0
    assert (turns.sum((1, 2)) > 0).all()


def test_speed_is_kept_between_the_edges() -> None:
    found = MovingGarments().paths(Draws(0, torch.arange(100)), 20)
    step = (found[:, :, 1:] - found[:, :, :-1]).square().sum(-1).sqrt()
    assert step.max() == pytest.approx(2.0)
    assert ((step - 2).abs() < 1e-9).double().mean() > 0.7


def test_frames_show_the_garments_where_they_are() -> None:
    system = MovingGarments(garments=1)
    made, draws = system.simulate(5, 8, 7), Draws(7, torch.arange(5))
    corners = system.paths(draws, 8).round().long()
    assert (made.dtype, made.shape) == (np.float32, (5, 8, 1, 32, 32))
    shades = set()
    for s in range(5):
        for t in range(8):
            rows, columns = np.nonzero(made[s, t, 0])
            assert [rows.min(), columns.min()] == corners[s, 0, t].tolist()
            assert (len(rows), rows.max() - rows.min()) == (14 * 14, 13)
        (shade,) = np.unique(made[s][made[s] > 0])
        shades.add(round(float(shade) * 255))
    assert shades <= {50 + 10 * i for i in range(20)}
    assert len(shades) > 1


def test_two_garments_in_one_place_show_the_brighter_pixel() -> None:
    both = MovingGarments(garments=2, speed=1e-9).simulate(60, 2, 0)
    assert both.max() <= 1
    shown = [len(np.unique(one[one > 0])) for one in both[:, 0]]
    assert set(shown) == {1, 2}  # of one shade where both are the same garment


def test_a_trajectory_is_a_function_of_seed_and_number() -> None:
    many = MovingGarments().simulate(20, 4, 5)
    np.testing.assert_array_equal(MovingGarments().simulate(3, 2, 5), many[:3, :2])
    assert not np.array_equal(MovingGarments().simulate(3, 2, 6), many[:3, :2])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="garments of 28 pixels do not move in 28: give a larger side"):
        MovingGarments(side=28, shrink=1)
    with pytest.raises(ValueError, match="0 trajectories of 3 frames"):
        MovingGarments().simulate(0, 3, 0)
