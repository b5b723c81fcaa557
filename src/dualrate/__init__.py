"""Image diffusion at two rates: a heavy network now and then, a light one at every step."""

from dualrate.data.images import ImageSet, load_images, to_float, to_uint8
from dualrate.denoisers.denoiser import Denoiser, DualRate, Plain
from dualrate.denoisers.exact import GaussianMixture, OracleDenoiser
from dualrate.denoisers.guidance import Guided
from dualrate.denoisers.metered import Meter, Metered
from dualrate.denoisers.shared_encoder import SharedEncoder
from dualrate.diffusion.betas import Betas
from dualrate.diffusion.draws import Draws
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine, Interpolated, RectifiedFlow, shifted
from dualrate.diffusion.values import Batch, Cond, Context, Refresh, Reuse
from dualrate.diffusion.weighting import Elbo, Sigmoid
from dualrate.experiments.denoising import DenoisingConfig
from dualrate.experiments.experiment import DataConfig, Experiment, MethodConfig, Model, Prepared, Start
from dualrate.experiments.latents import on_codec_of_data
from dualrate.experiments.moment_matching import MomentMatchingConfig
from dualrate.experiments.networks import NetworksConfig, OneNetwork, TwoNetworks
from dualrate.experiments.serves import AnyPlan, AtLeast, OnePlan, Serves
from dualrate.foreign.from_diffusers import from_diffusers
from dualrate.measuring.choosing import Choice
from dualrate.measuring.drawer import Drawer, Guidance
from dualrate.measuring.samples import write_samples
from dualrate.methods.denoising import Denoising
from dualrate.methods.moment_matching.alternating import MomentMatching
from dualrate.methods.moment_matching.instant import InstantMomentMatching
from dualrate.methods.moment_matching.states import ForwardPairs, FromData, FullRollout, SegmentRollout
from dualrate.methods.times import SingleTime, TimeSampler
from dualrate.networks.dual import ContextEncoder, LightUViT
from dualrate.networks.uvit import Level, UViT, UViTConfig
from dualrate.report.image_grid import save_grid
from dualrate.runs.release import export
from dualrate.runs.store import load
from dualrate.runs.train import train
from dualrate.sampling.adjusted_ddim import AdjustedDDIM, TabulatedVariance
from dualrate.sampling.ancestral import DDIM, Ancestral
from dualrate.sampling.bands import Bands
from dualrate.sampling.covariance import NoiseCovariance, ProbedCovariance, TabulatedCovariance
from dualrate.sampling.solvers import DPMSolver2M, DPMSolver3M, Heun, SDEDPMSolver2M
from dualrate.sampling.step import Step
from dualrate.sampling.trajectory import rollout, sample, trajectory

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "AdjustedDDIM",
    "Ancestral",
    "AnyPlan",
    "AtLeast",
    "Bands",
    "Batch",
    "Betas",
    "Choice",
    "Cond",
    "Context",
    "ContextEncoder",
    "Cosine",
    "DPMSolver2M",
    "DPMSolver3M",
    "DataConfig",
    "Denoiser",
    "Denoising",
    "DenoisingConfig",
    "Drawer",
    "Draws",
    "DualRate",
    "Elbo",
    "Experiment",
    "ForwardPairs",
    "FromData",
    "FullRollout",
    "GaussianMixture",
    "GaussianProcess",
    "Guidance",
    "Guided",
    "Heun",
    "ImageSet",
    "InstantMomentMatching",
    "Interpolated",
    "Level",
    "LightUViT",
    "Meter",
    "Metered",
    "MethodConfig",
    "Model",
    "MomentMatching",
    "MomentMatchingConfig",
    "NetworksConfig",
    "NoiseCovariance",
    "OneNetwork",
    "OnePlan",
    "OracleDenoiser",
    "Plain",
    "Prepared",
    "ProbedCovariance",
    "RectifiedFlow",
    "Refresh",
    "Reuse",
    "SDEDPMSolver2M",
    "SegmentRollout",
    "Serves",
    "SharedEncoder",
    "Sigmoid",
    "SingleTime",
    "Start",
    "Step",
    "StepPlan",
    "TabulatedCovariance",
    "TabulatedVariance",
    "TimeSampler",
    "TwoNetworks",
    "UViT",
    "UViTConfig",
    "export",
    "from_diffusers",
    "load",
    "load_images",
    "on_codec_of_data",
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
