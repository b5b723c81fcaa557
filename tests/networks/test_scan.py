"""Selective scans: their backends agree; time-invariant ones are convolutions; nothing overflows; their cost."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import dlsim, lfilter
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from dualrate.networks.scan import CHUNK, OPERATIONS, selective_scan
from dualrate.sampling.cost import macs_of

ROWS, CHANNELS, STATES, LENGTH = 2, 6, 4, 2 * CHUNK + 5


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def inputs(decays: int, groups: int, length: int = LENGTH) -> list[Any]:
    """decays: channels of a decay, or heads; of heads A is (H,)."""
    A = -numbers(decays, STATES).exp() if decays == CHANNELS else -numbers(decays).exp()
    of_state = (ROWS, groups, STATES, length) if groups > 1 else (ROWS, STATES, length)
    one = [numbers(ROWS, CHANNELS, length), numbers(ROWS, decays, length), A, numbers(*of_state), numbers(*of_state)]
    return [*one, numbers(decays)]


@pytest.mark.parametrize(
    ("decays", "groups", "others"),
    [
        (CHANNELS, 1, ["chunked", None]),
        (CHANNELS, 2, ["chunked"]),
        (2, 2, ["matrix", "chunked"]),
        (3, 1, ["matrix", None]),
    ],
)
def test_backends_agree_forward_and_backward(decays: int, groups: int, others: list[Any]) -> None:
    given = [part.requires_grad_() for part in inputs(decays, groups)]
    weight = numbers(ROWS, CHANNELS, LENGTH)

    def both(backend: Any) -> tuple[Tensor, ...]:
        y = selective_scan(*given, backend=backend)
        return y, *torch.autograd.grad((y * weight).sum(), given)

    expected = both("loop")
    for backend in others:
        for found, right in zip(both(backend), expected, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


def test_the_recurrence_is_what_it_says() -> None:
    """By hand, of one channel and three tokens, with D."""
    u, delta, A, B, C, D = inputs(CHANNELS, 1, 3)
    dt = F.softplus(delta)
    h = torch.zeros(STATES, dtype=torch.float64)
    for i in range(3):
        h = torch.exp(dt[1, 2, i] * A[2]) * h + dt[1, 2, i] * B[1, :, i] * u[1, 2, i]
        expected = (C[1, :, i] * h).sum() + D[2] * u[1, 2, i]
        found = selective_scan(u, delta, A, B, C, D, "loop")[1, 2, i]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", ["loop", "chunked"])
def test_a_time_invariant_scan_is_a_convolution_a_filter_and_a_linear_system(backend: Any) -> None:
    """Kernel C exp(k dt A) dt B; scipy's lfilter state by state, and dlsim of all states."""
    u, A = numbers(1, 1, LENGTH), -numbers(1, STATES).exp()
    dt, b, c = 0.3, numbers(STATES), numbers(STATES)
    same = torch.full((1, 1, LENGTH), dt, dtype=torch.float64).expm1().log()  # softplus makes dt of it
    B, C = (part[None, :, None].expand(1, STATES, LENGTH) for part in (b, c))
    found = selective_scan(u, same, A, B, C, backend=backend)[0, 0]
    lags = torch.arange(LENGTH, dtype=torch.float64)[:, None]
    kernel = (c * torch.exp(lags * dt * A[0]) * dt * b).sum(1)
    causal = F.conv1d(F.pad(u, (LENGTH - 1, 0)), kernel.flip(0)[None, None])[0, 0]
    torch.testing.assert_close(found, causal, rtol=1e-12, atol=1e-12)
    a = torch.exp(dt * A[0]).tolist()
    filtered = np.sum([lfilter([dt * b[n] * c[n]], [1, -a[n]], u[0, 0]) for n in range(STATES)], axis=0)
    torch.testing.assert_close(found, torch.as_tensor(filtered), rtol=1e-12, atol=1e-12)
    of_next = torch.diag(torch.tensor(a, dtype=torch.float64))  # y_l = C (a h + dt B u_l): the system of h_l = x_(l+1)
    system = (of_next.numpy(), (dt * b[:, None]).numpy(), (c @ of_next)[None].numpy(), [[float(dt * (c @ b))]], 1)
    y = dlsim(system, u[0, 0].numpy())[1]
    torch.testing.assert_close(found, torch.as_tensor(y[:, 0]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("backend", "heads"), [("loop", 0), ("chunked", 0), ("matrix", 3)])
def test_nothing_overflows_where_decays_add_up_to_far_more_than_88(backend: Any, heads: int) -> None:
    """dt |A| L = 64,000 in float32: each state forgets at once, so y is that of its own token."""
    length, decays = 64, heads or CHANNELS
    u, B, C = (torch.randn(ROWS, of, length) for of in (CHANNELS, STATES, STATES))
    delta = torch.full((ROWS, decays, length), 10.0, requires_grad=True)
    A = torch.full((decays,) if heads else (decays, STATES), -100.0, requires_grad=True)
    y = selective_scan(u, delta, A, B, C, backend=backend)
    torch.testing.assert_close(y, F.softplus(delta[:1, :1, :1]) * u * (B * C).sum(1, keepdim=True))
    y.sum().backward()
    assert delta.grad is not None
    assert A.grad is not None
    assert torch.isfinite(delta.grad).all()
    assert (A.grad == 0).all()


def test_a_token_reaches_those_behind_it_alone() -> None:
    u, delta, A, B, C, *_ = inputs(CHANNELS, 1)
    other = torch.cat((u[..., :7], u[..., 7:8] + 1, u[..., 8:]), -1)
    gap = selective_scan(other, delta.abs(), A, B, C) - selective_scan(u, delta.abs(), A, B, C)
    assert (gap[..., :7] == 0).all()
    assert (gap[..., 7:9] != 0).all()


def test_half_precision_is_computed_in_float32_and_given_back() -> None:
    whole = [part.float() for part in inputs(CHANNELS, 1)]
    halves = [part.bfloat16() for part in whole]
    with torch.autocast("cpu", torch.bfloat16):
        found = selective_scan(*halves)
    assert found.dtype == torch.bfloat16
    expected = selective_scan(*(half.float() for half in halves))
    torch.testing.assert_close(found.float(), expected, rtol=8e-3, atol=1e-6)


def test_a_derivative_is_carried_forward() -> None:
    u, *others = inputs(CHANNELS, 1)
    along = numbers(*u.shape)
    with forward_ad.dual_level():
        y = selective_scan(forward_ad.make_dual(u, along), *others)
        found = forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(found, selective_scan(along, *others))  # linear in u


def test_the_operation_is_right_for_compilers_and_without_a_device() -> None:
    A, B = -numbers(3, 1, 1, 2).exp(), numbers(5, 3, 2, 1, 1)
    dt, x = numbers(5, 2, 1, 2).exp(), numbers(5, 2, 1, 2)
    given = tuple(part.requires_grad_() for part in (A, dt, x, B, numbers(5, 3, 2, 1, 1)))
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(OPERATIONS.recurrence.default, given, test_utils=quick)


def test_multiply_adds_are_those_of_the_recurrence_and_of_the_matrix_form() -> None:
    per_channel, per_head = inputs(CHANNELS, 2)[:5], inputs(3, 1)[:5]
    tokens = ROWS * LENGTH
    recurrence, products = 2 * tokens * CHANNELS * STATES, tokens * LENGTH * (STATES + CHANNELS)
    assert macs_of(lambda: selective_scan(*per_channel)) == recurrence
    assert macs_of(lambda: selective_scan(*per_head)) == products
    assert macs_of(lambda: selective_scan(*per_head, backend="chunked")) == recurrence
