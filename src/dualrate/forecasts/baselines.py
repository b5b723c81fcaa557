"""Forecasts without a model: the start's last frame again, random training frames, and a linear regression."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dualrate.drawing.drawer import spread
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.fields import Fields

NUMBERS, LEAST, MOST = 2**24, 20, 512  # of all targets of a regression; windows that it is fit to, at least and at most
PENALTIES = tuple(10.0**power for power in range(-5, 3))  # of its coefficients, in mean squares of the inputs
TRIED = 4096  # targets by which the penalty is chosen, at most


def persistence(past: Tensor, leads: int) -> Tensor:
    """(N, 1, T, C, H, W), a view: the last frame of the past (N, P, C, H, W) at each of T = `leads` lead times."""
    return past[:, -1:, None].expand(-1, -1, leads, -1, -1, -1)


def climatology(frames: Tensor, starts: int, members: int, leads: int, seed: int) -> Iterator[Tensor]:
    """(N, M, C, H, W) of each of T = `leads` lead times: random training frames (F, C, H, W), none twice in it.

    For N = `starts` starts; take few at a time, each time with another seed.
    Raises ValueError for more members than frames.
    """
    if members > len(frames):
        raise ValueError(f"got {members} members from {len(frames)} frames; a climatology needs as many frames or more")
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(len(frames), generator=generator) for _ in range(starts)]).to(frames.device)
    places = ((torch.arange(members) + members * lead) % len(frames) for lead in range(leads))
    return (frames[orders[:, place]] for place in places)


@dataclass(frozen=True, eq=False)
class Ridge:
    """A ridge regression of targets (K, B) on inputs (K, A), by the dual form; the least error of left-out rows decides
    the penalty.

    With centred inputs X, targets Y and the hat matrix H = X X' (X X' + l)^-1 + 1 / K, the error of row i without it is
    (Y - H Y)_i / (1 - H_ii).

    coefficients: (K, B); errors: (K, B) of left-out rows
    """

    inputs: Tensor
    center: Tensor
    level: Tensor
    coefficients: Tensor
    errors: Tensor

    @staticmethod
    def of(inputs: Tensor, targets: Tensor) -> Ridge:
        """Fit the regression."""
        center, level, count = inputs.mean(0), targets.mean(0), len(inputs)
        x, y = inputs - center, targets - level
        values, vectors = torch.linalg.eigh((x @ x.T).double())
        values = values.clamp(min=0)

        def left_out(penalty: Tensor, y: Tensor) -> Tensor:
            share = values / (values + penalty)
            leverage = (vectors.square() @ share + 1 / count).to(y)
            return (y - (vectors * share @ vectors.T).to(y) @ y) / (1 - leverage)[:, None].clamp(min=1e-6)

        some = y[:, spread(min(y.shape[1], TRIED), y.shape[1])]
        penalties = [values.mean().clamp(min=1e-12) * part for part in PENALTIES]
        best = min(penalties, key=lambda penalty: float(left_out(penalty, some).square().mean()))
        coefficients = (vectors / (values + best) @ vectors.T).to(y) @ y
        return Ridge(x, center, level, coefficients, left_out(best, y))

    def __call__(self, inputs: Tensor) -> Tensor:
        """Predictions (N, B) of inputs (N, A)."""
        return self.level + (inputs - self.center) @ self.inputs.T @ self.coefficients


def regression_of(data: Fields, forecast: Forecast, leads: int) -> Ridge | None:
    """The regression of so many frames on the past ones, normalised, in training data; None if that holds too few
    windows, or these too many numbers."""
    size, past = int(np.prod(data.shape)), forecast.past_steps
    most = min(MOST, NUMBERS // (size * max(leads, forecast.past)))
    span = past + leads * forecast.ahead
    fitting = sum(max(0, trajectory.shape[0] - span + 1) for trajectory in data.trajectories)
    if min(most, fitting) < LEAST:
        return None
    try:
        windows = data.windows(span)
    except ValueError:  # gaps in time
        return None
    some = windows[spread(min(len(windows), most), len(windows))].tolist()
    steps = [*range(0, past, forecast.lead), *range(past - 1 + forecast.ahead, span, forecast.ahead)]
    frames = torch.from_numpy(np.stack([data.frames(i, first, span)[steps] for i, first in some]))
    frames = forecast.statistics.normalised(frames)
    return Ridge.of(frames[:, : forecast.past].flatten(1), frames[:, forecast.past :].flatten(1))


def regressed(ridge: Ridge, forecast: Forecast, past: Tensor, members: int, leads: int, seed: int) -> Iterator[Tensor]:
    """(N, M, C, H, W) of each lead time: predictions of a past (N, P, C, H, W) with errors of left-out windows."""
    generator = torch.Generator().manual_seed(seed)
    count, shape = len(ridge.errors), (leads, *past.shape[2:])
    orders = torch.stack([torch.randperm(count, generator=generator)[:members] for _ in past])
    predicted = ridge(forecast.statistics.normalised(past).flatten(1)).unflatten(1, shape)
    errors = ridge.errors.unflatten(1, shape)
    return (forecast.statistics.restored(predicted[:, None, lead] + errors[:, lead][orders]) for lead in range(leads))
