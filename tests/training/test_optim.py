import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from dualrate.training.config import FitConfig, OptimConfig, lr_at
from dualrate.training.state import PhaseState


def test_warmup_is_linear_and_ends_at_the_peak():
    config = FitConfig(100, optim=OptimConfig(lr=2.0, warmup=4))
    assert [lr_at(config, i, 0.0) for i in range(6)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_cosine_goes_from_the_peak_through_half_to_zero():
    config = FitConfig(110, optim=OptimConfig(lr=2.0, warmup=10, decay="cosine"))
    assert lr_at(config, 10, 0.0) == pytest.approx(2.0)
    assert lr_at(config, 60, 0.0) == pytest.approx(1.0)
    assert lr_at(config, 110, 0.0) == pytest.approx(0.0)
    curve = [lr_at(config, i, 0.0) for i in range(10, 111)]
    assert curve == sorted(curve, reverse=True)


def test_a_linear_decay_is_a_line_from_the_peak_to_zero_at_the_last_iteration():
    config = FitConfig(110, optim=OptimConfig(lr=2.0, warmup=10, decay="linear"))
    found = [lr_at(config, i, 0.0) for i in (4, 10, 35, 60, 85, 110)]
    assert found == pytest.approx([1.0, 2.0, 1.5, 1.0, 0.5, 0.0])
    assert lr_at(replace(config, max_seconds=60), 5000, 45.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "given",
    [
        {"max_seconds": 60},
        {"max_seconds": 60, "decay": "cosine"},
        {"max_seconds": 20, "decay_seconds": 60},  # the first part of a longer training
        {"decay_seconds": 60},
    ],
)
def test_a_rate_falls_to_zero_over_the_seconds_that_are_given_whatever_the_iteration(given):
    optim = OptimConfig(lr=2.0, warmup=10, **{name: given[name] for name in given if name != "max_seconds"})
    config = FitConfig(None, optim=optim, max_seconds=given.get("max_seconds"))
    assert config.limit == min(value for value in given.values() if not isinstance(value, str))
    assert lr_at(config, 4, 0.0) == pytest.approx(1.0)  # warming up
    assert lr_at(config, 0, 1.5) == pytest.approx(0.5 * (1 + math.cos(math.pi / 40)))  # half of a twentieth is over
    assert lr_at(config, 0, 30.0) == pytest.approx(1.0)
    for iteration in (10, 5000):
        found = [lr_at(config, iteration, seconds) for seconds in (0.0, 15.0, 30.0, 60.0, 90.0)]
        assert found == pytest.approx([2.0, 1 + math.sqrt(0.5), 1.0, 0.0, 0.0])


def test_without_seconds_or_where_it_is_asked_to_a_rate_stays():
    for config in (FitConfig(10), FitConfig(10, optim=OptimConfig(decay="none"), max_seconds=60)):
        assert lr_at(config, 5000, 59.0) == config.optim.lr


def test_a_resumed_run_may_change_what_its_rate_does_not_fall_with():
    of_decay = {decay: OptimConfig(decay=decay) for decay in ("auto", "none", "cosine")}
    whole = OptimConfig(decay="cosine", decay_seconds=60)
    for config, free in (
        (FitConfig(10), {"iterations", "max_seconds"}),
        (FitConfig(10, optim=of_decay["cosine"]), set()),
        (FitConfig(10, max_seconds=9), {"iterations"}),
        (FitConfig(10, optim=of_decay["none"], max_seconds=9), {"iterations", "max_seconds"}),
        (FitConfig(10, optim=whole, max_seconds=9), {"iterations", "max_seconds"}),
    ):
        assert config.free() & {"iterations", "max_seconds"} == free


def test_a_run_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"give --fit\.iterations or --fit\.max-seconds"):
        FitConfig(None)


def test_seconds_of_a_rate_that_stays_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"add --fit\.optim\.decay cosine"):
        OptimConfig(decay="none", decay_seconds=60)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"clip": -1.0}, {"warmup": -1}, {"decay": "line"}])
def test_a_senseless_configuration_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OptimConfig(**wrong)


def test_the_first_step_is_adamw_by_hand():
    """After one step m/(1-b1) = g and v/(1-b2) = g^2, so the update is lr * (g/(|g|+eps) + weight_decay * p)."""
    p = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    optimizer = PhaseState({"p": p}, OptimConfig(lr=0.1, weight_decay=0.5, eps=1e-8), None).optimizer
    p.grad = torch.tensor([3.0, -0.2], dtype=torch.float64)
    optimizer.step()
    expected = torch.tensor([2.0 - 0.1 * (1 + 0.5 * 2.0), -1.0 - 0.1 * (-1 - 0.5)], dtype=torch.float64)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=0)


def test_state_goes_through_named_tensors_unchanged():
    def train(state, rounds):
        for i in range(rounds):
            for k, parameter in enumerate(state.parameters.values()):
                parameter.grad = torch.sin(parameter.detach() * (i + 2) + k)
            state.optimizer.step()

    straight = PhaseState({name: nn.Parameter(torch.linspace(-1, 1, 5)) for name in ("w", "x.y")}, OptimConfig(), None)
    train(straight, 3)
    copies = {name: nn.Parameter(value.detach().clone()) for name, value in straight.parameters.items()}
    resumed = PhaseState(copies, OptimConfig(), None)
    tensors = {name: value.clone() for name, value in straight.optimizer_tensors().items()}
    resumed.load_optimizer(dict(tensors))
    assert set(tensors) == {f"{n}.{slot}" for n in copies for slot in ("step", "exp_avg", "exp_avg_sq")}
    for state in (straight, resumed):
        train(state, 2)
    for name in copies:
        assert torch.equal(straight.parameters[name], resumed.parameters[name])


def test_state_written_in_another_memory_layout_belongs_to_the_same_elements():
    """Files are contiguous, the weights of convolutions are not, and the fused kernel goes by memory."""
    w = nn.Parameter(torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)))
    last = nn.Parameter(w.detach().clone(memory_format=torch.channels_last))
    tensors = {"w.exp_avg": torch.rand(4, 3, 2, 2), "w.exp_avg_sq": torch.rand(4, 3, 2, 2), "w.step": torch.tensor(3.0)}
    for parameter in (w, last):
        state = PhaseState({"w": parameter}, OptimConfig(), None)
        state.load_optimizer({name: value.clone() for name, value in tensors.items()})
        parameter.grad = torch.zeros_like(parameter)
        state.optimizer.step()
    assert not last.is_contiguous()
    torch.testing.assert_close(last.detach(), w.detach())


def test_state_of_another_network_is_refused():
    p = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"old\.exp_avg"):
        PhaseState({"new": p}, OptimConfig(), None).load_optimizer({"old.exp_avg": torch.zeros(2)})


def test_no_clipping_is_possible():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.full((2,), 1e3)
    nn.utils.clip_grad_norm_([p], OptimConfig(clip=math.inf).clip)
    assert torch.equal(p.grad, torch.full((2,), 1e3))
