"""Features at a time, forecast from those kept at earlier ones: polynomials in u = log-SNR.

Of F_0, F_1, ..., F_m, kept at u_0 (the latest), u_1, ..., u_m, with D_0[k] = F_k:

    newton      D_i[k] = (D_i-1[k] - D_i-1[k+1]) / (u_k - u_k+i)     F(u) = sum_i D_i[0] (u - u_0) ... (u - u_i-1)
    published   D_i[k] = (D_i-1[k] - D_i-1[k+1]) / (u_k - u_k+1)     F(u) = sum_i D_i[0] (u - u_0)^i / i!

The first is the polynomial through all of them, exact for features that are a polynomial of degree m in u, at any
spacing. The second puts differences, which belong between the times, in the place of derivatives at the latest one: it
is exact for straight lines alone, at equal spacing too.

Source: TaylorSeer (Liu et al. 2025, arXiv 2503.06923), the second; as in its code a difference is divided by the
distance of the latest two times at which it was taken. It counts steps where u stands here. The first is Newton's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dualrate.diffusion.schedule import Schedule
from dualrate.diffusion.times import expand, once
from dualrate.diffusion.values import Context

Form = Literal["newton", "published"]


def forecast(context: Context, t: Tensor, schedule: Schedule, form: Form) -> tuple[Tensor, ...]:
    """The features of a context and of those before it, carried on to t; of a single one as they are.

    t: (B,). Raises ValueError for contexts without a time.
    """
    held = (context, *context.earlier)
    times = [one.tau for one in held if one.tau is not None]
    if len(times) < len(held):
        raise ValueError("features are forecast from their times, and a context here has none (tau): pass encode's")
    if not context.earlier:
        return context.features
    weights = forecast_weights(form, schedule, t, *times)
    return tuple(_mixed(weights, same) for same in zip(*(one.features for one in held), strict=True))


@once
def forecast_weights(form: Form, schedule: Schedule, t: Tensor, *times: Tensor) -> tuple[Tensor, ...]:
    """What each of F_0, ..., F_m counts in F(u), as t. times: of the features, the latest first."""
    u, *nodes = (schedule.log_snr(time) for time in (t, *times))
    size = len(nodes)
    differences = [[torch.full_like(u, float(j == k)) for j in range(size)] for k in range(size)]  # D_i[k], of F_j
    weights, factor = differences[0], torch.ones_like(u)
    for i in range(1, size):
        gaps = [nodes[k] - nodes[k + (i if form == "newton" else 1)] for k in range(size - i)]
        differences = [
            [(a - b) / gap for a, b in zip(differences[k], differences[k + 1], strict=True)]
            for k, gap in enumerate(gaps)
        ]
        factor = factor * (u - nodes[i - 1] if form == "newton" else (u - nodes[0]) / i)
        weights = [weight + factor * part for weight, part in zip(weights, differences[0], strict=True)]
    return tuple(weights)


def _mixed(weights: tuple[Tensor, ...], features: tuple[Tensor, ...]) -> Tensor:
    """The weighted sum, in float32 at least, since weights may be large and of both signs; in the features' dtype."""
    wide = [feature.to(torch.promote_types(feature.dtype, torch.float32)) for feature in features]
    total = expand(weights[0], wide[0]) * wide[0]
    for weight, feature in zip(weights[1:], wide[1:], strict=True):
        total = total + expand(weight, feature) * feature
    return total.to(features[0].dtype)
