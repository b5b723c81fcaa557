"""Draws again what the golden files hold: samples and frames in float32 of each run, from a folder that has GOLDEN.

GOLDEN is a link to this folder, by which runs name their sources: what they are called is the same on every machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import dualrate as dr
from dualrate.data.condition_rows import Given
from dualrate.data.conditions import SuperResolution
from dualrate.drawing import samples
from dualrate.experiment.model import Model
from dualrate.forecasts import folder as forecast_folder
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.starts import held_out_starts
from dualrate.pipelines.condition import Prompts
from dualrate.pipelines.retrofitted import prompts_of
from dualrate.sampling.catalogue import SAMPLERS

HERE = Path(__file__).resolve().parent
GOLDEN = Path("GOLDEN")
HEAVY = {"single": 8, "dual": 4}  # calls of the runs that every sampler draws from
STEPS, SEEDS, FRAMES, STARTS = 8, range(4), 4, 3
PROMPT = "a red circle"
RELEASED = ("../../weights/fashion-mnist-dual-25", "../../weights/fashion-mnist-light-10")  # of the repository
KILLED = {"channels": 10, "rolling": 11, "dual": 3}  # frames, or images, after which a folder was left


def link(folder: Path) -> None:
    """Put GOLDEN into a folder, which then is to be the current one."""
    (folder / GOLDEN).symlink_to(HERE)


def of_sampler(run: str, sampler: str) -> np.ndarray:
    """(20, 1, 8, 8): 8 calls of the single network, or 8 steps with 4 heavy calls of the pair."""
    model = dr.load(GOLDEN / run)
    step, plan = SAMPLERS[sampler].build(model.process, {}), dr.StepPlan.uniform(8, HEAVY[run])
    label = [i % 3 for i in range(20)]
    batches = dr.sample_batches(model.denoiser, step, plan, model.shape, range(20), label, batch_size=20)
    return torch.cat(list(batches)).numpy()


def drawer_of(model: Model) -> dr.Drawer:
    """Drawer of two rows at a time by the recommended sampler and plan, in float32; of prompts guided, of other
    conditions with two members each. Windows that roll are drawn by the sampler that their folder records.
    """
    condition, given = model.experiment.condition, model.experiment.networks.given
    if isinstance(condition, SuperResolution):
        y = torch.rand(len(SEEDS), *given, generator=torch.Generator().manual_seed(1))
        model = model.with_given(Given(2 * y - 1))
    members = 1 if given is None or isinstance(condition, Prompts) else 2
    guidance = dr.Guidance(2.0 if isinstance(condition, Prompts) else 1.0)
    sampler = None if model.process.one_time else "ancestral"
    choice = dr.Choice(steps=STEPS if model.serves.any_plan else None, sampler=sampler)
    return choice.drawer(model, batch_size=2, precision="float32", members=members, guidance=guidance)


def forecast(run: str, out: Path, **more) -> forecast_folder.ForecastWritten:
    """Write a forecast of held-out starts."""
    model = dr.load(GOLDEN / run)
    starts = held_out_starts(model, FRAMES, STARTS)
    return forecast_folder.write_forecast(drawer_of(model), starts, FRAMES, out, **more)


def images(run: str, out: Path, **more) -> samples.Written:
    """Write six images."""
    return samples.write_samples(drawer_of(dr.load(GOLDEN / run)), range(6), out, **more)


def interrupted(after: int) -> Callable[[int, int], None]:
    """Progress during which somebody presses Ctrl-C once so much is there."""

    def progress(done: int, total: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    return progress


def drawn(name: str) -> np.ndarray:
    """Samples, or frames, that images.npz holds by this name: a run, maybe with a sampler, or `text`."""
    run, _, how = name.partition(" ")
    if run in HEAVY:
        return of_sampler(run, how)
    model = dr.load(GOLDEN / run)
    if isinstance(model.experiment.condition, Forecast):
        frames = forecast(run, Path("forecast")).x.copy()
        shutil.rmtree("forecast")
        return frames
    if how == "text":
        model = model.with_given(prompts_of(model.experiment, PROMPT, "cpu"))
    return torch.cat(list(drawer_of(model).states(SEEDS))).numpy()
