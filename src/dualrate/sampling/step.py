"""Update rules of samplers: z_t -> z_s, by a denoiser. Each is a small class in one of the files beside this one.

A class declares facts about itself, such as its order. Such a fact has no annotation, so that it is no field of a
dataclass (`order = 2`), or is a property where it depends on a field.

`markovian`: whether the chain keeps the forward law of pairs (z_s, z_t), which a reused dual-rate context needs.
Noise alone is not enough: any DDIM kernel breaks it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dualrate.diffusion.context import cached_for_shared_time, expand
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import alpha, sigma

Denoise = Callable[[Tensor, Tensor], Tensor]  # (z, t) -> x_hat
Draw = Callable[[], Tensor]  # this step's next random numbers, of the process's `noise`
Carry = Any  # what a multistep solver remembers: a value threaded by the loop, () for most
Stepped = tuple[Tensor, Carry]  # z_s and the next carry


class Step(ABC):
    """An update rule. A step is stateless. Times s < t are (), on the host, along a plan, or (B,), one for each row.

    process:           whose paths it goes back along; `sample` begins where it does, and draws its random numbers
    of:                the processes that it is for
    order:             of its error, which falls with the number of steps N as N^-order
    calls_per_step:    calls of the network that a step makes; a forward-mode derivative counts as another one
    single_call_steps: steps of a plan, at its ends, that make one call whatever `calls_per_step` is
    markovian:         whether (z_s, z_t) keeps the law of the forward process, to the method's order
    draws_noise:       whether any step draws random numbers, so that the path is not smooth
    grid, reusing:     names of its usual times (grids.py): of one network, and where a context is reused
    `markovian` and `draws_noise` are on the safe side by default: no dual-rate context is reused, and a shared encoder
    warns.
    """

    process: Any  # a Process
    of: Any = GaussianProcess
    order: Any = 1  # Any: a property serves as well
    calls_per_step: int = 1
    single_call_steps: int = 0
    markovian: Any = False
    draws_noise: Any = True
    grid: str = "t"
    reusing: str = "t"
    title: str = ""

    def __str__(self) -> str:
        """The name in tables: the title, or the class and its settings."""
        settings = (f"{name} {value}" for name, value in settings_of(self).items() if name != "process")
        return self.title or ", ".join((type(self).__name__, *settings))

    @classmethod
    def most_steps(cls, calls: int) -> int:
        """The most steps of a plan that makes at most `calls` calls of the network."""
        return (calls + cls.single_call_steps * (cls.calls_per_step - 1)) // cls.calls_per_step

    def start(self) -> Carry:
        """The carry before the first step."""
        return ()

    @abstractmethod
    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        """z_s and the next carry. z: (B, ...)."""


def settings_of(step: Step) -> dict[str, Any]:
    """Fields and attributes that tell a step from others of its class, without what it computes and caches."""
    names = [field.name for field in fields(step)] if is_dataclass(step) else []
    names += [name for name in vars(step) if not isinstance(getattr(type(step), name, None), cached_property)]
    return {name: getattr(step, name) for name in names}


class MarkovStep(Step):
    """A step with a kernel of known form: calling it samples p(z_s | z_t), a likelihood bound integrates it."""

    @abstractmethod
    def kernel(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor) -> Any:
        """p(z_s | z_t), a `Distribution` of the process, at s = 0 too: of a Gaussian process of finite variance."""


def move(process: GaussianProcess, z: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """z_s on the probability-flow ODE if x_hat were x all the way from z_t. z, x: (B, ...); t, s: (B,) or ()."""
    from_z, from_x = move_weights(process, t, s)
    return expand(from_z, z) * z + expand(from_x, z) * x


@cached_for_shared_time
def move_weights(process: GaussianProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of z and x in `move`: sigma_s / sigma_t and alpha_s - alpha_t sigma_s / sigma_t."""
    log_snr_t, log_snr_s = process.schedule.log_snr(t), process.schedule.log_snr(s)
    from_x = -torch.expm1((log_snr_t - log_snr_s) / 2) * alpha(log_snr_s)
    return sigma(log_snr_s) / sigma(log_snr_t), from_x
