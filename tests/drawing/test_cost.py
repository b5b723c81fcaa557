"""Bytes of tensors, counted while samples are drawn."""

import pytest
import torch
from runs.made import ONE, TWO, saved_random

import dualrate as dr
from dualrate.drawing.cost import TensorBytes, drawing_bytes


def test_tensors_are_counted_while_they_live():
    before = torch.zeros(500)
    with TensorBytes() as counted:
        first = before + 1
        view = first[:10]
        second = first.double()
        assert counted.now == 500 * 4 + 500 * 8
        del first
        assert counted.now == 6000, "a view keeps what it is of"
        del view
        second.add_(1)
        third = torch.cat([second, second])
        assert counted.now == 4000 + 8000
        del second, third
    assert (counted.now, counted.most) == (0, 12000)


def test_what_was_there_before_is_not_counted():
    before = torch.zeros(500)
    with TensorBytes() as counted:
        before[:10].view(2, 5).add_(1)
        torch.empty(0)
    assert counted.most == 0


@pytest.mark.parametrize("experiment", [ONE, TWO], ids=["one", "two"])
def test_samples_together_take_more_and_the_same_each_time(tmp_path, experiment):
    saved_random(experiment, tmp_path / "run")
    drawer = dr.Choice(steps=2).drawer(dr.load(tmp_path / "run"), batch_size=8)
    one, eight = drawing_bytes(drawer), drawing_bytes(drawer, range(8))
    assert eight > 4 * one
    assert drawing_bytes(drawer) == one
