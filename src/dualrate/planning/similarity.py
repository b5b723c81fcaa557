"""Where a shared encoder is refreshed: at the steps from which its features resemble those of the steps they serve.

    maximise over 0 = r_1 < ... < r_H < N:   sum over steps i of  S[i, latest refresh r <= i]

S is the mean cosine similarity of the kept features along a trajectory that refreshes at every step. The best steps
come from dynamic programming, in O(H N^2): best[h, i], the most that steps 0..i-1 reach with h refreshes, is the
greatest best[h - 1, j] + S[j, j] + ... + S[i - 1, j] over j < i.

Source: "statistical dynamic programming" of the decoupled diffusion transformer (Wang et al. 2025, arXiv 2504.05741).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Cond
from dualrate.sampling.step import Step
from dualrate.sampling.trajectory import StepNoise, first_state, trajectory


def similarities(
    denoiser: Denoiser,
    step: Step,
    times: int | Sequence[float],
    shape: Sequence[int],
    seeds: Sequence[int],
    label: Sequence[int] | None = None,
    *,
    device: torch.device | str = "cpu",
) -> NDArray[np.float64]:
    """(N, N): [i, j], mean cosine of the kept features of steps i and j, over images and positions.

    times: of the plan, or their number N as in `StepPlan.at`; seeds, label: of a few images, as in `sample`
    """
    plan = StepPlan.at(times, range(times if isinstance(times, int) else len(times) - 1))
    draws = Draws(0, torch.tensor(list(seeds), dtype=torch.int64, device=device))
    cond = Cond(None if label is None else torch.tensor(list(label), dtype=torch.int64, device=device))
    with torch.no_grad():
        noise = StepNoise(step.process, draws, plan.num_steps, shape)
        states = trajectory(denoiser, step, plan, first_state(step.process, draws, shape), cond, noise)
        next(states)  # before the first step: no features yet
        features = [state.context.features[0].double() for state in states]
    axis = 1 if features[0].ndim == 4 else -1  # of channels: (B, C, H, W), or tokens (B, n, C)
    kept = torch.stack([F.normalize(feature, dim=axis) for feature in features])
    positions = features[0].numel() // features[0].shape[axis]
    flat = kept.flatten(1)
    return (flat @ flat.T / positions).cpu().numpy()


def best_refreshes(similarity: NDArray[np.float64], heavy: int) -> list[int]:
    """The H = `heavy` refresh steps, the first step 0, that maximise the summed similarity to the latest refresh.

    similarity: (N, N), [step, refresh]. Raises ValueError for another shape, numbers not finite, or H not in 1..N.
    """
    size = len(similarity)
    if similarity.shape != (size, size) or not np.isfinite(similarity).all():
        raise ValueError(f"similarities are finite and of shape (N, N), got {similarity.shape}: see `similarities`")
    if not 1 <= heavy <= size:
        raise ValueError(f"{size} steps have 1 to {size} refreshes, the first at step 0, got {heavy}")
    gain = np.full((size, size + 1), -np.inf)  # [j, i]: steps j..i-1 with the features of step j
    for refresh in range(size):
        gain[refresh, refresh + 1 :] = np.cumsum(similarity[refresh:, refresh])
    value, origins = gain[0], []  # value[i]: the most that steps 0..i-1 reach with the refreshes made so far
    for _ in range(heavy - 1):
        reached = value[:-1, None] + gain
        origins.append(reached.argmax(0))
        value = reached.max(0)
    end, refreshes = size, []
    for origin in reversed(origins):
        end = int(origin[end])
        refreshes.append(end)
    return [0, *reversed(refreshes)]
