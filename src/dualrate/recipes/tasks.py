"""Conditional models of one's own images: networks at two rates and at one, and how each is trained.

    dual     the heavy network on the condition, once for all its samples; the light one at every step
    both     as dual, and the medium one on the state now and then
    single   the heavy one at every step;  medium, light: a smaller one at every step

The light network is of convolutions alone: what is far apart in an image meets in the heavy network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from dualrate.config.ranges import is_whole
from dualrate.data.conditions import Colour, Condition, Inpainting, OfPicture, SuperResolution
from dualrate.data.pairs import Pairs
from dualrate.diffusion.context import Shape
from dualrate.experiment.experiment import MethodConfig
from dualrate.experiment.network_configs import NetworksConfig, OneConditional, ThreeConditional, TwoConditional
from dualrate.methods.crps import OneCallConfig, ScoreName
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.residual import ResidualConfig, ResidualNetworks
from dualrate.methods.times import BothTimes, GivenTimes, SingleTime, TimeSource
from dualrate.networks.uvit import LIGHT, Level, UViTConfig

Rate = Literal["dual", "both", "single", "medium", "light"]
TrainedBy = Literal["diffusion", "residual", "corrdiff", "crps", "energy", "regression"]
Method = Callable[[TimeSource], MethodConfig]  # of networks on a condition, by its times
SHARES = {"medium": (5 / 8, 2 / 3, 1 / 2), "light": (1 / 2, 1 / 2, 1 / 6)}  # of channels, widths, blocks of the middle
DRAWS = 4  # light calls of a sample in training, for each heavy one
ALONE = ("single", *SHARES)  # rates of one network
OF_A_TASK = ("both", *SHARES)  # rates that models of noise alone do not have


TASKS: dict[str, Callable[..., OfPicture]] = {
    "super-resolution": SuperResolution,
    "inpainting": Inpainting,
    "colour": Colour,
}


def task_named(text: str) -> OfPicture:
    """super-resolution:4, inpainting:16, colour, pairs:SOURCE.

    Without a number: the usual one. Raises ValueError for a name that is none, or a number it cannot have.
    """
    name, _, number = text.partition(":")
    if name == "pairs" and number:
        return Pairs(number)
    if name not in TASKS or (number and not is_whole(number)) or (number and name == "colour"):
        raise ValueError(f"a task is super-resolution:4, inpainting:16, colour or pairs:SOURCE, got {text!r}")
    return TASKS[name](*[int(number)] if number else [])


def reduced(heavy: UViTConfig, size: str) -> UViTConfig:
    """A network of about a third (medium) or a sixth to a twentieth (light) of the multiply-adds of a heavy one.

    All that a network sees passes through its finest level. So there it has a channel for each number of a patch, or
    as many as the heavy one. A light network that is wider for that, and costs more than a part in `LIGHT` of the
    heavy one, has no block there (docs/results/forecasts.md#on-a-sphere).
    """
    conv, width, depth = SHARES[size]
    step = math.gcd(32, *(level.channels for level in heavy.levels if level.kind == "transformer"))

    def of(level: Level, last: bool) -> Level:
        share, unit = (conv, 8) if level.kind == "conv" else (width, step)
        channels = max(unit, round(level.channels * share / unit) * unit)
        blocks = max(1, round(level.blocks * depth)) if last else 1
        kind = "conv" if size == "light" else level.kind
        return replace(level, kind=kind, channels=channels, blocks=blocks, dropout=0.0)

    finest, *coarser = (of(level, i == len(heavy.levels) - 1) for i, level in enumerate(heavy.levels))
    wide = max(finest.channels, min(heavy.levels[0].channels, -(-heavy.numbers // 8) * 8))
    network = replace(heavy, levels=(replace(finest, channels=wide), *coarser), head_dim=step)
    if wide == finest.channels or not coarser or LIGHT * network.macs <= heavy.macs:
        return network
    return replace(network, levels=(replace(finest, channels=wide, blocks=0), *coarser))


def conditional_networks(
    task: Condition, image: Shape, heavy: UViTConfig, rate: Rate, trained_by: TrainedBy | Method, parts: int = 1
) -> tuple[NetworksConfig, MethodConfig]:
    """Networks for samples of a condition, and how they train. image: (C, H, W); parts: light calls of one.

    trained_by: or a method of the caller's, of one network or two
    Raises ValueError for images that the condition cannot be made of, and for a method that is one of two networks.
    """
    condition_shape, times = task.shape(image), GivenTimes(draws=max(1, DRAWS // parts))
    if rate == "both":
        if isinstance(trained_by, str) and trained_by != "diffusion":
            raise ValueError(f"{trained_by} has no state that a second heavy network would see: drop --rate {rate}")
        networks = ThreeConditional(heavy, reduced(heavy, "medium"), reduced(heavy, "light"), condition_shape)
        return networks, _method(trained_by, BothTimes() if trained_by == "diffusion" else times)
    if trained_by in ("residual", "corrdiff"):
        if rate in ALONE:
            raise ValueError(f"{trained_by} is a regression once and a light network at every step: drop --rate {rate}")
        networks = ResidualNetworks(heavy, reduced(heavy, "light"), condition_shape, features=trained_by == "residual")
        return networks, ResidualConfig()
    if rate in ALONE:
        model = reduced(heavy, rate) if rate in SHARES else heavy
        return OneConditional(model, condition_shape), _method(trained_by, SingleTime())
    return TwoConditional(heavy, reduced(heavy, "light"), condition_shape), _method(trained_by, times)


def _method(trained_by: ScoreName | Literal["diffusion"] | Method, times: TimeSource) -> MethodConfig:
    if callable(trained_by):
        return trained_by(times)
    return DenoisingConfig(times, label_dropout=0.0) if trained_by == "diffusion" else OneCallConfig(score=trained_by)
