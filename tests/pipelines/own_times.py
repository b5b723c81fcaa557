"""Times of diffusers' schedulers, at which their pipelines call a network."""

import copy
import math
from itertools import pairwise
from typing import Any

import torch

from dualrate.diffusion.prediction import Flow
from dualrate.diffusion.schedule import Schedule
from dualrate.pipelines.schedulers import _mu, read_scheduler

NO_SIGNAL = 4095.0  # of sigmas: a bit below sqrt(2^24 - 1), since classes with sigmas take 2^-24 for an alpha-bar of 0


def own_times(scheduler: Any, schedule: Schedule, steps: int, tokens: int = 0, *, even: bool = False) -> list[float]:
    """The times in [0, 1] of a scheduler's own N steps, N + 1 at most: it may stand still where it is done.

    schedule: as it was read of its configuration, with so many tokens; even: whether its pipeline
    passes 1, 1 - 1/N, ..., 1/N on to it
    """
    fresh, config = copy.deepcopy(scheduler), scheduler.config
    arguments = {"sigmas": [1 - i / steps for i in range(steps)]} if even else {}
    fresh.set_timesteps(
        steps, **arguments, **({"mu": _mu(config, tokens)} if config.get("use_dynamic_shifting") else {})
    )
    sigmas: Any = getattr(fresh, "sigmas", ())
    if len(sigmas) > steps:  # of the noise, over that of the data
        noise = sigmas.double()
        flow = isinstance(read_scheduler({**config, "_class_name": type(fresh).__name__})[1], Flow)
        log_snr = 2 * torch.log((1 - noise) / noise if flow else 1 / noise.where(noise < NO_SIGNAL, math.inf))
        times = schedule.time(log_snr.clamp(-60, 60)).where(noise > 0, 0.0).clamp(0, 1).tolist()
    else:
        last = float(getattr(fresh, "final_alpha_cumprod", 1.0)) < 1  # then it ends at the first step of the table
        total = config["num_train_timesteps"]
        times = [*((int(k) + 1) / total for k in fresh.timesteps), 1 / total if last else 0.0]
    return [times[0], *(later for earlier, later in pairwise(times) if later < earlier)]
