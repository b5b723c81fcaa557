"""Glance: the published times, the loss in the words of rectified flow, and phases that are picked by time."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import dualrate as dr
from dualrate.diffusion.context import Batch, Cond, Context
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine, RectifiedFlow, sigma
from dualrate.experiment.experiment import Start
from dualrate.experiment.plan_support import steps_at
from dualrate.methods.glance import FAST, SLOW, AdaptedNetwork, ByPhase, Glance, GlanceConfig
from dualrate.sampling.ddim import DDIM
from dualrate.sampling.trajectory import trajectory
from dualrate.training.config import FitConfig

LEVELS = (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1))
NET = dr.UViTConfig(8, 1, LEVELS, 3, patch=2, embedding=16, head_dim=16)
STARTS = (1.0, 0.8)


def of(process: dr.GaussianProcess) -> tuple[torch.nn.ModuleDict, ByPhase]:
    """With adapters that matter, in double precision."""
    networks, denoiser = AdaptedNetwork(dr.OneNetwork(NET), rank=2).build(process)
    generator = torch.Generator().manual_seed(0)
    for weight in networks.double().eval().parameters():
        weight.data.normal_(std=0.2, generator=generator)
    return networks, replace(denoiser, starts=STARTS)


PROCESS = dr.GaussianProcess(Cosine())


def states(rows: int) -> Tensor:
    return torch.randn(rows, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def no_draw(step: int, draw: int) -> Tensor:
    raise AssertionError("DDIM draws nothing")


def test_the_times_are_those_that_were_published() -> None:
    """Times of FLUX, whose shift is e^1.15; in thousandths, as the authors' code lists them."""
    slow, fast = (1000.00, 986.98, 973.20, 958.61, 943.12), (926.65, 825.70, 677.99, 441.20, 60.55)
    schedule = RectifiedFlow(shift=math.exp(1.15))
    for times, published in ((SLOW, slow), (FAST, fast)):
        log_snr = schedule.log_snr(torch.tensor(times, dtype=torch.float64))
        found = 1000 * torch.sigmoid(-log_snr / 2)
        torch.testing.assert_close(found, torch.tensor(published).double(), atol=0.006, rtol=0)


def test_a_step_calls_the_adapter_of_its_phase() -> None:
    _, model = of(PROCESS)
    asked, serves = [], GlanceConfig("run").serves
    model.network.register_forward_pre_hook(lambda module, given: asked.append(given[0]))
    list(trajectory(model, DDIM(PROCESS), serves.default_plan(), states(2), Cond(torch.tensor([0, 1])), no_draw))
    assert asked == ["phase-1"] * 5 + ["phase-2"] * 5


def test_rows_of_several_phases_are_those_of_each() -> None:
    _, model = of(PROCESS)
    z, label, t = states(6), torch.arange(6) % 3, torch.tensor([1, 0.1, 0.9, 0.8, 0.5, 0.81], dtype=torch.float64)
    found = model.denoise(z, t, Context(), Cond(label))
    for i, phase in enumerate((0, 1, 0, 1, 1, 0)):
        alone = model.called(phase, z[i : i + 1], t[i : i + 1], Cond(label[i : i + 1]))
        torch.testing.assert_close(found[i : i + 1], alone)


def test_samplings_that_take_turns_do_not_disturb_each_other() -> None:
    """One is in the slow phase while the other is in the fast one."""
    _, model = of(PROCESS)
    plan, label = GlanceConfig("run").serves.default_plan(), Cond(torch.tensor([0, 1]))

    def begin(sign: float):
        return trajectory(model, DDIM(PROCESS), plan, sign * states(2), label, no_draw)

    alone = [[state.z for state in begin(sign)] for sign in (1, -1)]
    first, second = begin(1), begin(-1)
    found: tuple[list[Tensor], list[Tensor]] = ([next(first).z for _ in range(6)], [])
    for ahead, behind in zip(first, second, strict=False):
        found[0].append(ahead.z)
        found[1].append(behind.z)
    for taken, whole in zip(found, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(taken, whole, strict=False))


@pytest.mark.parametrize("process", [PROCESS, dr.GaussianProcess(RectifiedFlow(shift=2.0))])
@pytest.mark.parametrize("phase", [0, 1])
def test_the_loss_is_the_error_of_the_velocity(process: dr.GaussianProcess, phase: int) -> None:
    """u = eps - x, u_hat of rectified flow's own state y = (1 - r) x + r eps: x_hat = y - r u_hat."""
    networks, model = of(process)
    method = Glance(networks, model, process, (SLOW, FAST), label_dropout=0.0)
    x, label, sample = states(64).clamp(-1, 1), torch.arange(64) % 3, torch.arange(64)
    draws = Draws(5, sample)
    loss = method.loss(phase, Batch(x, label, sample), 0, draws)
    times = torch.tensor((SLOW, FAST)[phase], dtype=torch.float64)
    t = times[draws.integer("time", 5)]
    assert set(t.tolist()) == set(times.tolist())
    eps, log_snr = draws.normal("z_t", 1, 8, 8).double(), process.log_snr(t)
    r = torch.sigmoid(-log_snr / 2)[:, None, None, None]
    y = (1 - r) * x + r * eps
    z = y * (sigma(log_snr)[:, None, None, None] / r)
    x_hat = model.called(phase, z, t, Cond(label))
    expected = ((y - x_hat) / r - (eps - x)).square().mean()
    torch.testing.assert_close(loss.total, expected)
    assert not torch.allclose(loss.total, method.loss(1 - phase, Batch(x, label, sample), 0, draws).total)


def test_a_phase_of_training_touches_its_own_adapter() -> None:
    networks, model = of(PROCESS)
    method = Glance(networks, model, PROCESS, (SLOW, FAST))
    batch = Batch(states(4), torch.arange(4) % 3, torch.arange(4))
    first, second = method.phases(0)
    first.loss(batch, 0, Draws(0, batch.sample)).total.backward()
    assert all(weight.grad is not None for weight in first.parameters)
    assert all(weight.grad is None for weight in second.parameters)


def test_its_own_steps_are_served_alone() -> None:
    serves = steps_at((1.0, 0.5, 0.1))
    plan = serves.default_plan()
    assert (plan.t, plan.num_heavy, serves.ladder([4, 8])) == ((1.0, 0.5, 0.1, 0.0), 3, [plan])
    serves.check(plan)
    for other in (dr.StepPlan.uniform(3), dr.StepPlan.uniform(4)):
        with pytest.raises(ValueError, match="3 steps at times of its own, and no others"):
            serves.check(other)


def experiment(method: GlanceConfig, **networks) -> dr.Experiment:
    return dr.Experiment("x", AdaptedNetwork(dr.OneNetwork(NET), **networks), method, FitConfig(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GlanceConfig("run", times=(0.9, 0.5)), "times go from 1 down and stay above 0"),
        (lambda: GlanceConfig("run", times=(1.0, 0.5, 0.5), calls=(3,)), "times go from 1 down"),
        (lambda: GlanceConfig("run", calls=(5, 6)), r"make \(5, 6\) steps, and there are 10 times"),
        (lambda: experiment(GlanceConfig("run"), adapters=1), "1 adapters, and steps of 2 phases"),
        (
            lambda: dr.Experiment("x", dr.OneNetwork(NET), GlanceConfig("run"), FitConfig(1)),
            "adapters go onto a single",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_activations_that_would_be_kept_all_the_same_are_not_asked_to_be_computed_again() -> None:
    adapted = experiment(GlanceConfig("run"))
    start = Start(
        True, torch.device("cpu"), False, lambda run: pytest.fail("loaded"), lambda i: pytest.fail("read"), print
    )
    with pytest.raises(ValueError, match=r"drop --fit\.recompute-from; --fit.micro-batch needs less memory"):
        adapted.method.prepare(replace(adapted, fit=FitConfig(1, recompute_from=1)), start)
