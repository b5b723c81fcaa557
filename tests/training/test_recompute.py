"""Blocks that compute their activations again: the same numbers, dropout masks too, and less that is kept."""

import copy

import pytest
import torch
from contracts.test_method_contracts import NET
from torch import nn

import dualrate as dr
from dualrate.networks.blocks import eval_mode
from dualrate.networks.uvit import UViT
from dualrate.training.loop import recompute

LEVELS = (dr.Level("conv", 8, 2, dropout=0.3), dr.Level("transformer", 16, 2, dropout=0.3))


def network(side: int | None = None) -> UViT:
    """Maps of sides 4 and 2, in double precision, every parameter random."""
    net = UViT(dr.UViTConfig(8, 1, LEVELS, NET.num_classes, patch=2, embedding=16, head_dim=16)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    if side is not None:
        recompute([net], side)
    return net


def passed(net: nn.Module) -> tuple[list[torch.Tensor], int]:
    """The output and all gradients, and how many numbers were kept in between."""
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    generator = torch.Generator().manual_seed(1)
    z = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=generator)
    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = net(z, torch.linspace(-2, 2, 3, dtype=torch.float64), torch.arange(3))
    after = torch.rand(1)
    out.square().sum().backward()
    return [out, after, *(parameter.grad for parameter in net.parameters() if parameter.grad is not None)], sum(kept)


def test_tokens_are_as_wide_as_the_square_that_they_fill():
    """Not as their channels are."""
    counts = []
    for side in (None, 4, 5):
        net = dr.DiTConfig(8, 1, 16, 2, num_classes=3, patch=2, head_dim=16).network().double()
        if side is not None:
            recompute([net], side)
        counts.append(passed(net)[1])
    assert counts[1] < counts[0] == counts[2]


@pytest.fixture
def plain():
    return passed(network())


def test_all_numbers_are_the_same_and_fewer_are_kept(plain):
    """Also those that are drawn after it."""
    numbers, kept = plain
    counts = []
    for side in (1, 4, 5):
        again, count = passed(network(side))
        assert len(again) == len(numbers)
        assert all(torch.equal(one, other) for one, other in zip(numbers, again, strict=True))
        counts.append(count)
    assert counts[0] < counts[1] < counts[2] == kept
    assert counts[0] < 0.6 * kept


def test_masks_differ_where_they_may_so_the_test_above_can_fail(plain):
    numbers, _ = plain
    net = network()
    net.eval()
    assert not torch.equal(passed(net)[0][0], numbers[0])


def test_a_block_at_rest_stays_at_rest_in_the_backward_pass():
    """The mode is put back before: a mask would then be drawn."""
    gradients = []
    for net in (network(), network(1)):
        z = torch.ones(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
        with eval_mode(net):
            out = net(z, torch.zeros(2, dtype=torch.float64), torch.arange(2))
        out.square().sum().backward()
        gradients.append(z.grad)
    assert torch.equal(*gradients)


def test_a_copy_is_a_network_of_its_own():
    net = network(1)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert all(torch.equal(one, two) for one, two in zip(passed(other)[0], passed(network())[0], strict=True))
