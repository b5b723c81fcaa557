"""Properties of a denoiser before it is called: its labels, and where its networks are."""

import gc
import weakref

import pytest
import torch
from runs.made import ONE, TWO
from torch import nn

import dualrate as dr
from dualrate.denoisers.denoiser import check_labels, device_of


class Table(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.num_classes, self.null = classes, False


class Walked(nn.Sequential):
    """Counts how often its modules are looked through."""

    walks = 0

    def modules(self, *of):
        self.walks += 1
        return super().modules(*of)


def test_labels_are_looked_for_once_a_network_and_refused_at_every_draw():
    net = Walked(nn.Linear(1, 1), Table(3))
    for _ in range(3):
        check_labels(net, [0, 2])
        with pytest.raises(ValueError, match="know are 0 to 2, got 3"):
            check_labels(net, [0, 3])
    assert net.walks == 1


def test_a_draw_does_not_look_through_the_networks_again(monkeypatch):
    networks, denoiser = ONE.build()
    how = dr.DDIM(ONE.process), dr.StepPlan.uniform(1), (1, 8, 8), [0]
    (first,) = dr.sample_batches(denoiser, *how, [1])
    monkeypatch.setattr(type(networks["model"]), "modules", lambda net: pytest.fail("walked"))
    (second,) = dr.sample_batches(denoiser, *how, [1])
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match="know are 0 to 3, got 9"):
        next(dr.sample_batches(denoiser, *how, [9]))


def test_labels_are_those_of_the_networks_as_they_are_now():
    net = nn.Sequential(nn.Linear(1, 1), Table(3))
    check_labels(net, [2])
    net[1].num_classes = 2
    with pytest.raises(ValueError, match="know are 0 to 1, got 2"):
        check_labels(net, [2])
    net[1] = Table(5)
    check_labels(net, [4])


def test_a_network_that_is_a_table_itself_is_not_kept():
    net = Table(3)
    check_labels(net, [2])
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_a_denoiser_is_called_where_its_networks_are_whatever_else_is_here(monkeypatch):
    _, denoiser = TWO.build()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(denoiser, None) == torch.device("cpu")
    assert device_of(denoiser, "cuda:3") == torch.device("cuda:3")
    (x,) = dr.sample_batches(denoiser, dr.Ancestral(TWO.process), dr.StepPlan.uniform(2), (1, 8, 8), [0], [1])
    assert x.device == torch.device("cpu")
