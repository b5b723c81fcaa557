"""A file of fields, and models of forecasts of it, for tests."""

from pathlib import Path

import numpy as np
from runs.made import saved_random

from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.model import Model
from dualrate.experiment.network_configs import TwoConditional
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.fields import read_fields
from dualrate.forecasts.folder import write_forecast
from dualrate.forecasts.rollout import roll_out
from dualrate.forecasts.starts import Starts, held_out_starts
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import GivenTimes
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs.store import load
from dualrate.sampling.catalogue import make_step
from dualrate.training.config import FitConfig

WIDTH, CHANNELS = 16, 2


def experiment_of(source: Path, task: Forecast, channels: int = CHANNELS) -> Experiment:
    """Two small networks for the fields of a file."""
    made = task.of(read_fields(source, "train"))
    channels, height, width = made.target((channels, 1, WIDTH))
    net = UViTConfig(width, channels, (Level("conv", 8, 1), Level("conv", 8, 1)), embedding=16, height=height)
    networks = TwoConditional(net, net, made.shape((channels, height, width)))
    method = DenoisingConfig(GivenTimes(), label_dropout=0.0)
    return Experiment("ahead", networks, method, FitConfig(iterations=1), DataConfig(str(source)), condition=made)


def model_of(source: Path, path: Path, channels: int = CHANNELS, **task) -> Model:
    return load(saved_random(experiment_of(source, Forecast(**task), channels), path))


def drawer_of(model: Model, members: int = 3, batch_size: int = 6, steps: int = 2) -> Drawer:
    plan = StepPlan.uniform(steps, 1)
    how = {"members": members, "batch_size": batch_size, "precision": "float32"}
    return Drawer(model, make_step("ancestral", model.process), plan, **how)


def rolled(drawer: Drawer, past, frames: int, **more) -> np.ndarray:
    """(N, M, T, C, H, W). past: Starts, or an array of them."""
    starts = past if isinstance(past, Starts) else Starts(np.asarray(past, np.float32), "an array")
    whole = np.full((len(starts), drawer.members, frames, *starts.past.shape[2:]), np.nan, np.float32)
    for piece in roll_out(drawer, starts, frames, **more):
        place = [slice(part.start, part.stop) for part in (piece.starts, piece.members, piece.frames)]
        assert np.isnan(whole[tuple(place)]).all()
        whole[tuple(place)] = piece.x
    return whole


def written(model: Model, out: Path, frames: int = 6, **more):
    drawer = drawer_of(model, **{name: more.pop(name) for name in ("members", "batch_size") if name in more})
    return write_forecast(drawer, more.pop("starts", held_out_starts(model, frames, 3)), frames, out, **more)
