"""Diffusion sampling with two networks: a heavy one now and then, a light one at every step.

These are the names of whoever trains, draws, takes models in and writes samplers and denoisers (docs/api.md). What
methods of one's own need besides is imported from the module that defines it.
"""

from dualrate.data.images import load_images
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.values import Cond, Context, Reuse
from dualrate.drawing.choice import Choice, sample
from dualrate.drawing.drawer import Drawer, Guidance
from dualrate.experiment.experiment import DataConfig, Experiment, Model
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig, DualRateLoss
from dualrate.methods.times import TimeSampler
from dualrate.networks.dis import DiSConfig
from dualrate.networks.dit import DiTConfig
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.pipelines.accelerate import accelerate
from dualrate.pipelines.folder import from_diffusers
from dualrate.pipelines.prompts import prompts
from dualrate.report.image_grid import save_grid
from dualrate.runs.release import export
from dualrate.runs.store import load
from dualrate.runs.train import train
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.ddim import DDIM
from dualrate.sampling.solvers import SDEDPMSolver2M
from dualrate.sampling.step import Step
from dualrate.sampling.trajectory import sample_batches
from dualrate.training.config import FitConfig

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "Ancestral",
    "Choice",
    "Cond",
    "Context",
    "DataConfig",
    "Denoiser",
    "DenoisingConfig",
    "DiSConfig",
    "DiTConfig",
    "Drawer",
    "DualRateLoss",
    "Experiment",
    "FitConfig",
    "GaussianProcess",
    "Guidance",
    "Level",
    "Model",
    "OneNetwork",
    "Reuse",
    "SDEDPMSolver2M",
    "Step",
    "StepPlan",
    "TimeSampler",
    "TwoNetworks",
    "UViTConfig",
    "accelerate",
    "export",
    "from_diffusers",
    "load",
    "load_images",
    "prompts",
    "sample",
    "sample_batches",
    "save_grid",
    "train",
]
