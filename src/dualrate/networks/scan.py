"""The scan of a selective state space (Mamba, Gu and Dao 2023, arXiv 2312.00752; Mamba-2, arXiv 2405.21060).

    h_l = exp(dt_l A) h_(l-1) + dt_l B_l u_l        of every channel, h of N states, A < 0
    y_l = C_l h_l + D u_l

with dt = softplus(delta). Three backends compute the same:

    loop     token by token, in operations of torch
    chunked  the same as one operation. Training keeps the state in front of each chunk of tokens, and computes those
             within it again: 1 / CHUNK of the memory
    matrix   y = M u, M_lm = C_l B_m dt_m exp(A (dt_(m+1) + ... + dt_l)), m <= l; of a decay per head alone

No decay is divided by: exponents are sums of dt A <= 0. So nothing overflows, however large dt |A| L is. The shorter
exp(s_l) sum_m exp(-s_m) dt_m B_m u_m, s the sum of dt A, would in float32 from 88 on.

Gradients, with g_l = C_l y'_l + exp(dt_(l+1) A) g_(l+1), y' that of y, and w_l = g_l exp(dt_l A) h_(l-1):

    dt'_l = sum_n w_l A,   A' = sum_l w_l dt_l,   x'_l = sum_n g_l B_l,   B'_l = sum_d g_l x_l,   C'_l = sum_d h_l y'_l

where x_l = dt_l u_l. Multiply-adds: 2 L D N of a sequence of D channels, exp(dt A) h + B x and C h; of the matrix form
those of its products, L^2 (N + D) where all heads share B and C.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dualrate.networks.blocks import no_autocast
from dualrate.system.device import carries_derivative

Backend = Literal["loop", "chunked", "matrix"]
CHUNK = 16  # tokens


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """u: (B, D, L); B, C: (B, N, L), or (B, G, N, L) of G groups of channels in a row -> (B, D, L), in u's dtype.

    A: (D, N), with delta (B, D, L) and D (D,). Or (H,), a decay per head of D / H channels in a row; then delta is
    (B, H, L) and D (H,). Computed in float32 at least.
    backend: "matrix" is of a decay per head alone; None: that where it can be, else "chunked"
    """
    chosen = backend or ("matrix" if A.ndim == 1 else "chunked")
    if chosen == "chunked" and not torch.compiler.is_compiling() and carries_derivative((u, delta, A, B, C)):
        chosen = "loop"
    wide, size = torch.promote_types(u.dtype, torch.float32), u.shape[1] // len(A)
    with no_autocast(u):
        x, dt, A, B, C = u.to(wide), F.softplus(delta.to(wide)), A.to(wide), B.to(wide), C.to(wide)
        B, C = (part[:, None] if part.ndim == 3 else part for part in (B, C))
        if chosen != "matrix" and A.ndim == 1:
            dt, A = dt.repeat_interleave(size, 1), A.repeat_interleave(size)[:, None].expand(-1, B.shape[2])
        y = BACKENDS[chosen](x, dt, A, B, C)
        if D is not None:
            y = y + D.to(wide).repeat_interleave(size)[:, None] * x
    return y.to(u.dtype)


def loop(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The scan, token by token. u, dt: (B, D, L); A: (D, N); B, C: (B, G, N, L) -> (B, D, L), without D."""
    A, *steps = _by_token(u, dt, A, B, C)
    h, y = torch.zeros_like(A * steps[0][0]), []
    for dt_l, x, b, c in zip(*(part.unbind() for part in steps), strict=True):
        h = torch.addcmul(x * b, torch.exp(dt_l * A), h)
        y.append((h * c).sum(0))
    return torch.stack(y).flatten(2).movedim(0, -1)


def chunked(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The scan as one operation. Arguments: of `loop`."""
    return OPERATIONS.recurrence(*_by_token(u, dt, A, B, C))[0].flatten(2).movedim(0, -1)


def _by_token(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A as (N, 1, G, P); by token dt and x = dt u, (L, B, G, P), B and C, (L, N, B, G, 1). Channels are innermost.

    Each is made contiguous last: training keeps them, and torch 2.13 compiles no stored view of any number of rows.
    """
    groups = B.shape[1]
    dt, x = (part.movedim(-1, 0).unflatten(2, (groups, -1)).contiguous() for part in (dt, dt * u))
    B, C = (part.permute(3, 2, 0, 1)[..., None].contiguous() for part in (B, C))
    return A.t().contiguous().unflatten(1, (groups, -1))[:, None], dt, x, B, C


def _recurrence(A: Tensor, dt: Tensor, x: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """y, (L, B, G, P), and the states in front of every chunk, (chunks, N, B, G, P). Arguments: of `_by_token`."""
    h, y, fronts = torch.zeros_like(A * dt[0]), torch.empty_like(dt), []
    work = torch.empty_like(h)
    for i in range(len(dt)):
        if i % CHUNK == 0:
            fronts.append(h.clone())
        torch.mul(dt[i], A, out=work)
        h.mul_(work.exp_()).addcmul_(x[i], B[i])
        torch.sum(torch.mul(h, C[i], out=work), 0, out=y[i])
    return y, torch.stack(fronts)


def _recurrence_backward(
    y: Tensor, fronts: Tensor, A: Tensor, dt: Tensor, x: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of A, per row, and of the other arguments. y: the gradient of y."""
    of_dt, of_x, of_B, of_C = (torch.empty_like(part) for part in (dt, x, B, C))
    g, of_A, work = (torch.zeros_like(fronts[0]) for _ in range(3))
    decay, h = (g.new_empty(CHUNK + more, *g.shape) for more in (0, 1))
    for begin, front in reversed(list(zip(range(0, len(dt), CHUNK), fronts, strict=True))):
        tokens = range(begin, min(begin + CHUNK, len(dt)))
        h[0] = front
        for i, token in enumerate(tokens):
            torch.mul(dt[token], A, out=decay[i]).exp_()
            torch.mul(h[i], decay[i], out=h[i + 1]).addcmul_(x[token], B[token])
        for i, token in reversed(list(enumerate(tokens))):
            torch.sum(torch.mul(h[i + 1], y[token], out=work), -1, keepdim=True, out=of_C[token])
            g.addcmul_(y[token], C[token])
            torch.sum(torch.mul(g, B[token], out=work), 0, out=of_x[token])
            torch.sum(torch.mul(g, x[token], out=work), -1, keepdim=True, out=of_B[token])
            of_A.addcmul_(torch.mul(g.mul_(decay[i]), h[i], out=work), dt[token])
            torch.sum(work.mul_(A), 0, out=of_dt[token])
    return of_A, of_dt, of_x, of_B, of_C


def _saved(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], *inputs)


def _gradients(ctx: Any, y: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    fronts, A, *rest = ctx.saved_tensors
    of_A, *of_rest = OPERATIONS.recurrence_backward(y.contiguous(), fronts, A, *rest)
    return of_A.sum_to_size(A.shape), *of_rest


def matrix(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The scan, by a matrix of each head. u: (B, D, L); dt: (B, H, L); A: (H,); B, C: (B, G, N, L) -> (B, D, L)."""
    mixed = mixing(dt, A, B, C) @ u.unflatten(1, (len(A), -1)).transpose(2, 3)
    return mixed.transpose(2, 3).flatten(1, 2)


def mixing(dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The matrix M of the module docstring, (B, H, L, L). Arguments: of `matrix`."""
    reached = (dt * A[:, None]).cumsum(-1)
    gaps = reached[..., :, None] - reached[..., None, :]
    later = torch.ones(gaps.shape[-2:], dtype=torch.bool, device=gaps.device).triu(1)
    decay = torch.exp(gaps.masked_fill(later, -torch.inf))
    alike = (C.transpose(2, 3) @ B).repeat_interleave(len(A) // B.shape[1], 1)
    return decay * alike * dt[..., None, :]


BACKENDS = {"loop": loop, "chunked": chunked, "matrix": matrix}
LIBRARY, OPERATIONS = torch.library.Library("dualrate", "FRAGMENT"), torch.ops.dualrate
# an operation does the first, and returns what the second does but for its numbers
DEFINED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "recurrence(Tensor A, Tensor dt, Tensor x, Tensor B, Tensor C) -> (Tensor, Tensor)": (
        _recurrence,
        lambda A, dt, *_: (torch.empty_like(dt), dt.new_empty(-(-len(dt) // CHUNK), len(A), *dt.shape[1:])),
    ),
    "recurrence_backward(Tensor y, Tensor fronts, Tensor A, Tensor dt, Tensor x, Tensor B, Tensor C) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)": (
        _recurrence_backward,
        lambda y, fronts, A, *rest: (torch.empty_like(fronts[0]), *(torch.empty_like(part) for part in rest)),
    ),
}
for schema, (called, shaped) in DEFINED.items():
    name = LIBRARY.define(schema)
    LIBRARY.impl(name, called, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dualrate::{name}", shaped, lib=LIBRARY)
torch.library.register_autograd("dualrate::recurrence", _gradients, setup_context=_saved, lib=LIBRARY)
FORMULAS: dict[Any, Callable[..., int]] = {  # FLOPs, as torch counts those of its own operations (sampling/cost.py)
    OPERATIONS.recurrence: lambda A, dt, *_, **more: 4 * len(A) * dt.numel(),
}
