import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualrate.training.ema import RAMP, Ema


def make(value: float, halflife: float = 100.0) -> tuple[torch.Tensor, Ema]:
    live = torch.full((3,), value, dtype=torch.float64)
    return live, Ema({"w": live}, halflife)


def test_constant_weights_are_their_own_average():
    _, ema = make(0.7)
    for _ in range(50):
        ema.update(8)
    assert torch.equal(ema.average["w"], torch.full((3,), 0.7, dtype=torch.float64))


def test_two_steps_by_hand():
    """After 40 and then 80 images the half-life is RAMP times that: decays 0.5^20 and 0.5^10."""
    assert RAMP == 0.05
    live, ema = make(0.0)
    live.fill_(1.0)
    ema.update(40)
    first = 1 - 0.5**20
    live.fill_(3.0)
    ema.update(40)
    torch.testing.assert_close(ema.average["w"], torch.full_like(live, first + (1 - 0.5**10) * (3 - first)))


@given(batches=st.integers(1, 40))
def test_the_past_halves_every_halflife_whatever_the_batch(batches):
    """With the ramp behind it, a step of the weights is forgotten by half in `halflife` images."""
    live, ema = make(0.0, halflife=64.0 * batches)
    ema.images = 10**9
    live.fill_(1.0)
    for _ in range(batches):
        ema.update(64)
    torch.testing.assert_close(ema.average["w"], torch.full_like(live, 0.5))


def test_the_initial_weights_are_forgotten_at_once():
    live, ema = make(1e6, halflife=1e9)
    live.fill_(1.0)
    for _ in range(100):
        ema.update(64)
    assert (ema.average["w"] - 1).abs().max() < 1e-3


def test_swapped_puts_the_average_in_and_restores_even_after_an_exception():
    live, ema = make(1.0)
    ema.update(8)
    live.fill_(5.0)
    inside = live.clone()

    def fail_inside() -> None:
        with ema.swapped():
            inside.copy_(live)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert torch.equal(inside, torch.ones_like(live))
    assert torch.equal(live, torch.full_like(live, 5.0))
    assert torch.equal(ema.average["w"], torch.ones_like(live))


def test_saved_averages_continue_exactly():
    live, ema = make(1.0)
    live.fill_(2.0)
    ema.update(8)
    other_live, other = make(0.0)
    other.load({"w": ema.average["w"].clone()}, ema.images)
    other_live.copy_(live)
    for one in (ema, other):
        one.update(8)
    assert torch.equal(ema.average["w"], other.average["w"])
    assert ema.images == other.images == 16


def test_other_names_are_refused():
    _, ema = make(1.0)
    with pytest.raises(ValueError, match="'v', 'w'"):
        ema.load({"v": torch.zeros(3)}, 0)
