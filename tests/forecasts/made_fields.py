"""Small fields, and all frames of a training set."""

from __future__ import annotations

import numpy as np

from dualrate.forecasts.fields import Fields

SHAPE = (20, 6, 2, 3, 5)
ARRAY = np.random.default_rng(0).normal(3, 2, SHAPE).astype(np.float32)
LINE = np.random.default_rng(1).normal(0, 1, (20, 6, 1, 8)).astype(np.float32)  # (S, T, C, X)
STRINGS = np.array([f"2001-01-{day:02}" for day in range(1, 7)])  # days, as no file should have them


def all_of(fields: Fields) -> np.ndarray:
    return np.stack([fields.frames(i, 0, one.shape[0]) for i, one in enumerate(fields.trajectories)])
