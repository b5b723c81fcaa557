"""The schedule and the convention that a scheduler of diffusers stands for, read from its configuration.

Only what training fixed is read: the noise levels, and what the network predicts. The scheduler's steps are replaced by
our samplers. A scheduler for distilled networks is refused.

A shift may grow with the number n of an image's tokens (Esser et al. 2024): it is e^mu, or mu, with

    mu = base_shift + (n - n_0) / (n_1 - n_0) (max_shift - base_shift)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

import torch

from dualrate.diffusion.prediction import TO_V, Convention, Discrete, Flow
from dualrate.diffusion.schedule import Betas, Kind, RectifiedFlow, Schedule
from dualrate.system.files import shown

DISCRETE = {
    "DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler", "PNDMScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "DEISMultistepScheduler",
    "UniPCMultistepScheduler", "SASolverScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler",
}  # fmt: skip
FLOW = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"}
DISTILLED = {
    "LCMScheduler", "TCDScheduler", "SCMScheduler", "FlowMatchLCMScheduler", "CMStochasticIterativeScheduler",
    "HeliosDMDScheduler", "PiflowScheduler", "FlowMapEulerDiscreteScheduler",
}  # fmt: skip
CLIPPED = ("DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler")
STABLE = (
    "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler",
)  # fmt: skip
OWN: dict[str, Mapping[str, Any]] = {  # what a class takes where its configuration is silent, and others do not
    **{name: {"clip_sample": True} for name in CLIPPED},
    **{name: {"beta_start": 0.00085, "beta_end": 0.012} for name in STABLE},
}
NO_MEAN = (
    "its output is no posterior mean, so samplers of many steps, reuse of a context and training by the denoising loss "
    "are wrong for it: take the model that it was distilled from"
)


def read_scheduler(config: Mapping[str, Any], tokens: int = 0) -> tuple[Schedule, Convention]:
    """The schedule and convention that a scheduler's configuration, with its `_class_name`, or its class tells.

    tokens: of an image, where a shift grows with them; 0: it is that of the smallest images
    Raises ValueError for a scheduler of distilled models, and for one, or settings, that are not known here.
    """
    name = shown(config.get("_class_name", "a scheduler without _class_name"), 60)
    if name in DISTILLED:
        raise ValueError(f"{name} samples a distilled model: {NO_MEAN}")
    if name not in FLOW | DISCRETE:
        way = f"take one that fits the model's training, of {', '.join(sorted(DISCRETE | FLOW))}"
        raise ValueError(f"no schedule is known for {name}: {way}; caches by 'taylor' or 'fora' need none")
    if name in FLOW or config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return _flow(name, config, tokens)
    return _discrete(name, config)


STOCHASTIC = {
    "DDPMScheduler", "DDPMParallelScheduler", "DDPMWuerstchenScheduler", "DPMSolverSDEScheduler", "SASolverScheduler",
    "LCMScheduler", "TCDScheduler", "SCMScheduler", "FlowMatchLCMScheduler", "CMStochasticIterativeScheduler",
}  # fmt: skip


def draws_noise(scheduler: Any) -> bool:
    """Whether a scheduler adds noise at its steps, by its class and configuration."""
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    by_setting = str(config.get("algorithm_type")).startswith("sde-") or bool(config.get("stochastic_sampling"))
    return by_setting or name in STOCHASTIC or "Ancestral" in name


def times_left(times: Any, time: float) -> list[float]:
    """A scheduler's times from the nearest to this one on, of equal ones the last: networks may take bfloat16.

    A solver that calls twice a step repeats times, and begins at the last of them.
    """
    every = [] if times is None else torch.as_tensor(times).tolist()
    return every[min(reversed(range(len(every))), key=lambda i: abs(every[i] - time), default=0) :]


def _flow(name: str, config: Mapping[str, Any], tokens: int) -> tuple[Schedule, Convention]:
    if config.get("invert_sigmas"):
        raise ValueError(f"{name} with invert_sigmas counts time another way")
    if name in DISCRETE and config.get("prediction_type", "epsilon") != "flow_prediction":
        raise ValueError(f"this {name} has use_flow_sigmas, for which prediction_type flow_prediction is known")
    shift = _number(config, "shift" if name in FLOW else "flow_shift", 1.0)  # the other may be left of another class
    if config.get("use_dynamic_shifting"):
        mu = _mu(config, tokens)
        shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
    return RectifiedFlow(shift), Flow(_number(config, "num_train_timesteps", 1000))


def _mu(config: Mapping[str, Any], tokens: int) -> float:
    """The shift mu of an image of so many tokens; 0: of the smallest."""
    low, high = _number(config, "base_shift", 0.5), _number(config, "max_shift", 1.15)
    least, most = (_number(config, f"{end}_image_seq_len", usual) for end, usual in (("base", 256), ("max", 4096)))
    return low + ((tokens or least) - least) / (most - least) * (high - low)


def _discrete(name: str, config: Mapping[str, Any]) -> tuple[Schedule, Convention]:
    config = {**OWN.get(name, {}), **config}
    kind, predicts = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    if config.get("trained_betas") is not None:
        raise ValueError(f"this {name} has betas of its own (trained_betas), of which no formula is known")
    if kind not in get_args(Kind):
        raise ValueError(f"beta_schedule is one of {', '.join(get_args(Kind))}, got {kind!r}")
    if predicts not in TO_V:
        raise ValueError(f"prediction_type is one of {', '.join(TO_V)} or flow_prediction, got {predicts!r}")
    if config.get("thresholding"):
        raise ValueError(f"this {name} clips x_hat by its own quantiles (thresholding): set it to False")
    if config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(f"this {name} gives its network log sigma for the time: timestep_type discrete is known")
    betas = Betas(
        kind,
        _number(config, "beta_start", 1e-4),
        _number(config, "beta_end", 0.02),
        config.get("num_train_timesteps", 1000),
        bool(config.get("rescale_betas_zero_snr", False)),
    )
    clips = config.get("clip_sample") and name in (*CLIPPED, "HeunDiscreteScheduler")  # others may have kept the word
    return betas, Discrete(betas, predicts, _number(config, "clip_sample_range", 1.0) if clips else None)


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name, default)
    if not isinstance(value, (int, float)):
        raise ValueError(f"a scheduler's {name} is a number, got {value!r}")
    return float(value)
