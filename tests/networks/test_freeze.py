"""Each promise of `frozen`: no gradient, no optimiser state, no drift, flags put back, parameters left as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dualrate.networks.blocks import eval_mode, frozen
from dualrate.training.ema import Ema


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4))
    net[0].bias.requires_grad_(False)
    return net


def flags(module: nn.Module) -> list[bool]:
    return [p.requires_grad for p in module.parameters()]


def test_no_gradient_no_optimiser_state_no_drift():
    """Over whole updates with weight decay and an average, beside a module that trains; inputs get a gradient."""
    net, after = network(), nn.Linear(4, 1)
    both = nn.ModuleList([net, after])
    optimizer = torch.optim.AdamW(both.parameters(), lr=0.1, weight_decay=0.5)
    average = Ema(dict(both.named_parameters()), halflife=2)
    before = [p.clone() for p in net.parameters()]
    for _ in range(3):
        x = torch.randn(2, 4, requires_grad=True)
        with frozen(net):
            after(net(x)).sum().backward()
        optimizer.step()
        average.update(2)
        optimizer.zero_grad()
    assert x.grad is not None
    assert x.grad.any()
    assert all(p.grad is None and p not in optimizer.state for p in net.parameters())
    assert len(optimizer.state) == 2
    for p, same, mean in zip(net.parameters(), before, average.average.values(), strict=False):
        assert torch.equal(p, same)
        assert torch.equal(mean, same)


def test_flags_are_put_back_exactly_whatever_happens():
    net, other = network(), network()
    before = flags(net)
    assert not all(before)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), frozen(net, other):
            raise error if not any(flags(net) + flags(other)) else AssertionError("not frozen")
        assert flags(net) == flags(other) == before
    with frozen(net, other, but=net[2].parameters()):
        assert flags(net) == [False, False, True, True]
        assert not any(flags(other))
    with frozen(net):
        with frozen(net[2]):
            pass
        assert not any(flags(net))
    assert flags(net) == before


def test_parameters_stay_the_same_objects_and_values():
    net = network().to(torch.bfloat16)
    before = [(id(p), p.data_ptr(), p.dtype, p.clone()) for p in net.parameters()]
    with frozen(net):
        assert [(id(p), p.data_ptr(), p.dtype) for p in net.parameters()] == [entry[:3] for entry in before]
    assert [(id(p), p.data_ptr(), p.dtype) for p in net.parameters()] == [entry[:3] for entry in before]
    assert all(torch.equal(p, entry[3]) for p, entry in zip(net.parameters(), before, strict=True))


def test_a_graph_made_before_keeps_its_gradient():
    net = network()
    loss = net(torch.ones(1, 4)).sum()
    with frozen(net):
        pass
    loss.backward()
    assert net[2].weight.grad is not None


def test_under_autocast_before_the_first_forward():
    """One autocast region, as in training: the frozen pass comes first, the pass with gradients after it."""
    net = network()
    with torch.autocast("cpu", torch.bfloat16):
        with frozen(net), torch.no_grad():
            net(torch.ones(1, 4))
        net(torch.ones(1, 4)).sum().backward()
    assert [p.grad is not None for p in net.parameters()] == flags(net)


def test_at_rest_nothing_drops_out_and_every_mode_is_put_back():
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5))).train()
    net[2].eval()
    modes, was = [part.training for part in net.modules()], flags(net)
    x = torch.randn(8, 4)
    with eval_mode(net):
        assert not any(flags(net))
        assert torch.equal(net(x), net[0](x))
    assert [part.training for part in net.modules()] == modes
    assert flags(net) == was
