"""Image diffusion at two rates: a heavy network now and then, a light one at every step."""

from dualrate.adjusted_ddim import AdjustedDDIM, TabulatedVariance
from dualrate.bands import Bands
from dualrate.caching.sharing import SharedEncoder
from dualrate.combinators import Guided, Meter, Metered
from dualrate.covariance import NoiseCovariance, ProbedCovariance, TabulatedCovariance
from dualrate.data.images import ImageSet, load_images, to_float, to_uint8
from dualrate.denoiser import Denoiser, DualRate, Plain
from dualrate.distillation import Distillation
from dualrate.draws import Draws
from dualrate.experiment import DataConfig, Experiment, OneNetwork, TwoNetworks
from dualrate.methods.denoising import Denoising
from dualrate.methods.moment_matching import InstantMomentMatching, MomentMatching
from dualrate.models.dual import ContextEncoder, LightUViT
from dualrate.models.uvit import Level, UViT, UViTConfig
from dualrate.oracle import GaussianMixture, OracleDenoiser
from dualrate.process import GaussianProcess
from dualrate.report.grid import save_grid
from dualrate.runs.distill import distill
from dualrate.runs.release import export
from dualrate.runs.samples import write_samples
from dualrate.runs.store import Model, load
from dualrate.runs.train import train
from dualrate.sampling import rollout, sample, trajectory
from dualrate.schedule import Cosine, Interpolated, shifted
from dualrate.solvers import DPMSolver2M, DPMSolver3M, Heun, SDEDPMSolver2M
from dualrate.steps import DDIM, Ancestral, Step
from dualrate.student_states import ForwardPairs, FromData, FullRollout, SegmentRollout
from dualrate.timing import SingleTime, StepPlan, TimeSampler
from dualrate.types import Batch, Cond, Context, Refresh, Reuse
from dualrate.weighting import Elbo, Sigmoid

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "AdjustedDDIM",
    "Ancestral",
    "Bands",
    "Batch",
    "Cond",
    "Context",
    "ContextEncoder",
    "Cosine",
    "DPMSolver2M",
    "DPMSolver3M",
    "DataConfig",
    "Denoiser",
    "Denoising",
    "Distillation",
    "Draws",
    "DualRate",
    "Elbo",
    "Experiment",
    "ForwardPairs",
    "FromData",
    "FullRollout",
    "GaussianMixture",
    "GaussianProcess",
    "Guided",
    "Heun",
    "ImageSet",
    "InstantMomentMatching",
    "Interpolated",
    "Level",
    "LightUViT",
    "Meter",
    "Metered",
    "Model",
    "MomentMatching",
    "NoiseCovariance",
    "OneNetwork",
    "OracleDenoiser",
    "Plain",
    "ProbedCovariance",
    "Refresh",
    "Reuse",
    "SDEDPMSolver2M",
    "SegmentRollout",
    "SharedEncoder",
    "Sigmoid",
    "SingleTime",
    "Step",
    "StepPlan",
    "TabulatedCovariance",
    "TabulatedVariance",
    "TimeSampler",
    "TwoNetworks",
    "UViT",
    "UViTConfig",
    "distill",
    "export",
    "load",
    "load_images",
    "rollout",
    "sample",
    "save_grid",
    "shifted",
    "to_float",
    "to_uint8",
    "train",
    "trajectory",
    "write_samples",
]
