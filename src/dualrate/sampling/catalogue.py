"""Samplers by name: how each is made of a process, and what is usual with it.

Its order, its calls, its usual times, and whether it is Markovian are read off the step itself. A name of the form
`package.module:Class` is a step of another package that is imported already. It is made of the process alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

from dualrate.config.imports import look_up
from dualrate.config.ranges import is_whole
from dualrate.diffusion.process import GaussianProcess, Process
from dualrate.diffusion.schedule import Cosine
from dualrate.sampling.ancestral import Ancestral, Reverse
from dualrate.sampling.covariance import NoiseCovariance
from dualrate.sampling.ddim import DDIM, AdjustedDDIM
from dualrate.sampling.fourier import FourierCovariance
from dualrate.sampling.lanczos import LanczosCovariance
from dualrate.sampling.solvers import DPMSolver2M, DPMSolver3M, Heun, SDEDPMSolver2M
from dualrate.sampling.step import Step
from dualrate.system.terminal import did_you_mean

Setting = Literal["gamma", "eta"]
ANCESTRAL = "ancestral"  # where no sampler is named, and a distilled student's
MEANING = {"gamma": "the noise level", "eta": "the share of fresh noise"}


@dataclass(frozen=True)
class Sampler:
    """A sampler's step, and the settings that it takes.

    step:     its class, which takes a process and settings
    takes:    settings that it has
    other:    its form for processes that `step` is not for; None: it has none
    chosen:   fields of its step that the name stands for
    """

    step: type[Step]
    takes: tuple[Setting, ...] = ()
    other: type[Step] | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def markovian(self) -> bool:
        """Whether a dual-rate context of Gaussian noise may be reused under it, with its default settings."""
        return self.build(GaussianProcess(Cosine()), {}).markovian

    def fits(self, process: Process) -> bool:
        """Whether there is such a step for this process."""
        return any(isinstance(process, step.of) for step in (self.step, self.other or self.step))

    def build(self, process: Any, settings: dict[str, float]) -> Step:
        """The step. Raises ValueError for a process that has none."""
        if not self.fits(process):
            usable = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.fits(process))
            raise ValueError(f"{self.step.__name__} is for a {self.step.of.__name__}, not {process}: use {usable}")
        if self.other is None or isinstance(process, self.step.of):
            return cast(Callable[..., Step], self.step)(process, **settings, **self.chosen)
        if settings:
            raise ValueError(f"{' and '.join(settings)} mean nothing to {process}: drop them")
        return cast(Callable[..., Step], self.other)(process)


SAMPLERS: dict[str, Sampler] = {
    ANCESTRAL: Sampler(Ancestral, takes=("gamma", "eta"), other=Reverse),
    "sde-dpm++2m": Sampler(SDEDPMSolver2M, takes=("gamma",)),
    "ddim": Sampler(DDIM),
    "heun": Sampler(Heun),
    "dpm++2m": Sampler(DPMSolver2M),
    "dpm++3m": Sampler(DPMSolver3M),
    "addim": Sampler(AdjustedDDIM),
    "covariance": Sampler(NoiseCovariance),
    "covariance-ddim": Sampler(NoiseCovariance, chosen={"kernel": "ddim"}),
    "covariance-dct": Sampler(FourierCovariance),
    "covariance-dft": Sampler(FourierCovariance, chosen={"boundary": "periodic"}),
    "lanczos": Sampler(LanczosCovariance),
}


def sampler_named(name: str) -> Sampler:
    """The sampler of a name in SAMPLERS, or of a step's class in another package that is imported already.

    The name may be a file's, so nothing is imported here: a command line does that before (`config/imports.py`).
    Raises ValueError for a name that is neither, which lists those there are.
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(
            f"a sampler is a name such as heun, or package.module:Class, got {name!r}: dr.Drawer(model, step, plan) "
            "takes a step itself"
        )
    if name in SAMPLERS:
        return SAMPLERS[name]
    if ":" not in name:
        raise ValueError(
            f"there is no sampler {name!r}{did_you_mean(name, SAMPLERS)}; there are "
            f"{', '.join(SAMPLERS)}; package.module:Class is a step of your own"
        )
    step = look_up(name)
    if not (isinstance(step, type) and issubclass(step, Step)) or inspect.isabstract(step):
        raise ValueError(f"{name} is no step: expected a class derived from dualrate.Step, with __call__, got {step}")
    try:
        inspect.signature(step).bind(None)
    except TypeError as error:
        raise ValueError(
            f"{name} is made of a process alone, which it refuses: {error}; give its other fields defaults"
        ) from error
    return Sampler(step)


def at_gamma(text: str) -> tuple[str, float | None]:
    """The sampler's name and gamma of NAME:GAMMA; of a NAME alone, no gamma. The name may be nobody's.

    Raises ValueError for a gamma that is none.
    """
    name, _, gamma = text.rpartition(":")
    if name and is_whole(gamma.replace(".", "", 1)):
        return name, float(gamma)
    if name in SAMPLERS:
        raise ValueError(f"there is no noise level {gamma!r}: {name}:0.5 is {name} at gamma 0.5, got {text!r}")
    return text, None


def make_step(name: str, process: Process, gamma: float | None = None, eta: float | None = None) -> Step:
    """The step of this name, with its own settings where none are given.

    Raises ValueError for a name nobody knows, and a setting that the step has no use for.
    """
    sampler, wishes = sampler_named(name), {"gamma": gamma, "eta": eta}
    settings = {setting: value for setting, value in wishes.items() if value is not None}
    for setting, value in settings.items():
        if setting not in sampler.takes:
            raise ValueError(
                f"{setting} is {MEANING[setting]} of {' and '.join(taking(setting))} and means nothing to {name}, got "
                f"{setting} {value:g}: drop it"
            )
    return sampler.build(process, settings)


def taking(setting: str) -> list[str]:
    """The names of the samplers that have a setting."""
    return [name for name, sampler in SAMPLERS.items() if setting in sampler.takes]
