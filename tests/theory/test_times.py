"""A plan's times: coefficients are as of any times, made once, and no step waits for the device to learn one."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dualrate as dr
from dualrate.denoisers.denoiser import Plain
from dualrate.diffusion.context import Cond, cached_for_shared_time, shared_time
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine
from dualrate.sampling.catalogue import SAMPLERS, make_step

PROCESS = GaussianProcess(Cosine())
PLAN = dr.StepPlan.uniform(4)
ROWS = 3
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def made(name: str) -> dr.Step:
    return make_step(name, PROCESS)


def test_a_formula_is_evaluated_once_for_a_plan_and_every_time_for_rows():
    asked = []

    @cached_for_shared_time
    def double(of: str, t: torch.Tensor) -> torch.Tensor:
        asked.append(of)
        return 2 * t

    for rows in (2, 5):
        assert double("a", shared_time(0.3)).shape == ()
        assert double("b", torch.full((rows,), 0.3, dtype=torch.float64)).shape == (rows,)
    with torch.inference_mode():
        assert double("c", shared_time(0.4)) == 0.8
    weight = torch.ones((), requires_grad=True)
    (weight * double("c", shared_time(0.4))).backward()  # not a tensor of inference
    asked_for = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(double("d", asked_for), asked_for)[0] == 2
    assert asked == ["a", "b", "b", "c", "d"]
    assert double("e", t=shared_time(0.3)) == PROCESS.log_snr(t=shared_time(0.3)) * 0 + 0.6


class Stepping(TorchDispatchMode):
    """Writes down the operators that read or make a float64 tensor of ROWS rows."""

    def __init__(self) -> None:
        super().__init__()
        self.wide: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [part for part in (result, *args) if isinstance(part, torch.Tensor)]
        if any(part.dtype == torch.float64 and part.shape[:1] == (ROWS,) and any(part.stride()) for part in tensors):
            self.wide.append(str(func))
        return result


@every_sampler
def test_a_step_along_a_plan_has_no_rows_of_float64(name):
    """On a GPU these would be kernels, or waits: what is left in float64 are a plan's numbers on the host."""
    step, z = made(name), torch.randn(ROWS, 1, 8, 8)
    before, t, s = (shared_time(time) for time in PLAN.t[:3])
    carry = step(lambda z, t: 0.5 * z, z, before, t, lambda: z, step.start())[1]
    with Stepping() as watched:
        step(lambda z, t: 0.5 * z, z, t, s, lambda: z, carry)
    assert watched.wide == []


@every_sampler
def test_a_plan_s_times_step_as_the_same_times_one_a_row(name):
    step, z = made(name), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    ends = {}
    for kind, time in (("plan", shared_time), ("rows", lambda t: torch.full((3,), t, dtype=torch.float64))):
        carry, state = step.start(), z
        for t, s in zip(PLAN.t, PLAN.t[1:], strict=False):
            state, carry = step(lambda z, t: 0.5 * z, state, time(t), time(s), lambda: z.flip(0), carry)
        ends[kind] = state
    torch.testing.assert_close(ends["plan"], ends["rows"], rtol=1e-6, atol=1e-6)


def test_denoisers_give_networks_a_number_a_row():
    seen = []

    def network(z, log_snr, label):
        seen.append(log_snr)
        return torch.zeros_like(z)

    z, cond = torch.randn(3, 1, 8, 8), Cond(torch.zeros(3, dtype=torch.int64))
    denoiser = Plain(network, PROCESS)  # pyright: ignore[reportArgumentType]
    x = [denoiser.denoise(z, t, dr.Context(), cond) for t in (shared_time(0.3), shared_time(0.3).expand(3))]
    assert [(row.shape, row.dtype) for row in seen] == [((3,), torch.float32)] * 2
    torch.testing.assert_close(*seen, rtol=0, atol=0)
    torch.testing.assert_close(*x)
