"""Public names, and where each is defined: for type checkers, and for `dualrate/__init__.py`, which reads this file."""

from typing import Final

from dualrate.comparison.compare import compare as compare
from dualrate.comparison.evaluate import evaluate as evaluate
from dualrate.data.images import load_images as load_images
from dualrate.denoisers.denoiser import Denoiser as Denoiser
from dualrate.diffusion.context import Cond as Cond
from dualrate.diffusion.context import Context as Context
from dualrate.diffusion.context import Reuse as Reuse
from dualrate.diffusion.plan import StepPlan as StepPlan
from dualrate.diffusion.process import GaussianProcess as GaussianProcess
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

__version__: Final[str]
