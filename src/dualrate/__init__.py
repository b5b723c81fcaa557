"""Diffusion sampling with two networks: a heavy one now and then, a light one at every step.

These are the names of whoever trains, draws, takes models in and writes samplers and denoisers (docs/api.md). What
methods of one's own need besides is imported from the module that defines it. A name's module is imported when the
name is first used, so that `import dualrate` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dualrate.config.imports import import_module

if TYPE_CHECKING:
    from dualrate.data.images import load_images as load_images
    from dualrate.denoisers.denoiser import Denoiser as Denoiser
    from dualrate.diffusion.plan import StepPlan as StepPlan
    from dualrate.diffusion.process import GaussianProcess as GaussianProcess
    from dualrate.diffusion.values import Cond as Cond
    from dualrate.diffusion.values import Context as Context
    from dualrate.diffusion.values import Reuse as Reuse
    from dualrate.drawing.choice import Choice as Choice
    from dualrate.drawing.choice import sample as sample
    from dualrate.drawing.drawer import Drawer as Drawer
    from dualrate.drawing.drawer import Guidance as Guidance
    from dualrate.experiment.data_config import DataConfig as DataConfig
    from dualrate.experiment.experiment import Experiment as Experiment
    from dualrate.experiment.model import Model as Model
    from dualrate.experiment.network_configs import OneNetwork as OneNetwork
    from dualrate.experiment.network_configs import TwoNetworks as TwoNetworks
    from dualrate.forecasts.forecast import forecast as forecast
    from dualrate.methods.denoising import DenoisingConfig as DenoisingConfig
    from dualrate.methods.denoising import DualRateLoss as DualRateLoss
    from dualrate.methods.times import TimeSampler as TimeSampler
    from dualrate.networks.dis import DiSConfig as DiSConfig
    from dualrate.networks.dit import DiTConfig as DiTConfig
    from dualrate.networks.uvit import Level as Level
    from dualrate.networks.uvit import UViTConfig as UViTConfig
    from dualrate.pipelines.accelerate import accelerate as accelerate
    from dualrate.pipelines.foreign import from_diffusers as from_diffusers
    from dualrate.pipelines.prompts import prompts as prompts
    from dualrate.report.image_grid import save_grid as save_grid
    from dualrate.runs.release import export as export
    from dualrate.runs.store import load as load
    from dualrate.runs.train import train as train
    from dualrate.sampling.ancestral import Ancestral as Ancestral
    from dualrate.sampling.ddim import DDIM as DDIM
    from dualrate.sampling.solvers import SDEDPMSolver2M as SDEDPMSolver2M
    from dualrate.sampling.step import Step as Step
    from dualrate.sampling.trajectory import sample_batches as sample_batches
    from dualrate.training.config import FitConfig as FitConfig

__version__ = "0.1.0"

_MODULES = {
    "dualrate.data.images": ("load_images",),
    "dualrate.denoisers.denoiser": ("Denoiser",),
    "dualrate.diffusion.plan": ("StepPlan",),
    "dualrate.diffusion.process": ("GaussianProcess",),
    "dualrate.diffusion.values": ("Cond", "Context", "Reuse"),
    "dualrate.drawing.choice": ("Choice", "sample"),
    "dualrate.drawing.drawer": ("Drawer", "Guidance"),
    "dualrate.experiment.data_config": ("DataConfig",),
    "dualrate.experiment.experiment": ("Experiment",),
    "dualrate.experiment.model": ("Model",),
    "dualrate.experiment.network_configs": ("OneNetwork", "TwoNetworks"),
    "dualrate.forecasts.forecast": ("forecast",),
    "dualrate.methods.denoising": ("DenoisingConfig", "DualRateLoss"),
    "dualrate.methods.times": ("TimeSampler",),
    "dualrate.networks.dis": ("DiSConfig",),
    "dualrate.networks.dit": ("DiTConfig",),
    "dualrate.networks.uvit": ("Level", "UViTConfig"),
    "dualrate.pipelines.accelerate": ("accelerate",),
    "dualrate.pipelines.foreign": ("from_diffusers",),
    "dualrate.pipelines.prompts": ("prompts",),
    "dualrate.report.image_grid": ("save_grid",),
    "dualrate.runs.release": ("export",),
    "dualrate.runs.store": ("load",),
    "dualrate.runs.train": ("train",),
    "dualrate.sampling.ancestral": ("Ancestral",),
    "dualrate.sampling.ddim": ("DDIM",),
    "dualrate.sampling.solvers": ("SDEDPMSolver2M",),
    "dualrate.sampling.step": ("Step",),
    "dualrate.sampling.trajectory": ("sample_batches",),
    "dualrate.training.config": ("FitConfig",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]  # which reads the imports above


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})


if not TYPE_CHECKING:  # which would let every name pass

    def __getattr__(name: str) -> Any:
        """A public name, imported when it is first used."""
        if name not in _WHERE:
            raise AttributeError(f"module 'dualrate' has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(_WHERE[name]), name)
        return value
