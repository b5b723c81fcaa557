from pathlib import Path

import numpy as np
import pytest
from forecasts.made_forecasts import CHANNELS, WIDTH, model_of

from dualrate.experiment.model import Model


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Twenty trajectories of 12 time steps of two channels, far from 0; two are held out."""
    path, random = tmp_path_factory.mktemp("data") / "fields.npz", np.random.default_rng(0)
    walk = random.normal(size=(20, 12, CHANNELS, WIDTH)).cumsum(1)
    np.savez(path, fields=(100 + 3 * walk).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def model(source, tmp_path_factory) -> Model:
    """Two past frames, observed in part and with noise; windows of two, as differences."""
    task = {"past": 2, "frames": 2, "lead": 2, "difference": True, "every": 2, "noise": 0.1}
    return model_of(source, tmp_path_factory.mktemp("runs") / "ahead", **task)
