"""A first stage of Unified Latents of a few channels, and runs that nobody trained."""

from __future__ import annotations

from pathlib import Path

import dualrate as dr
from dualrate.codecs.diffusion import DiffusionDecoding
from dualrate.diffusion.process import NoisyEnd
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.experiment import Experiment
from dualrate.methods.unified_latents import LatentNetworks, UnifiedLatentsConfig
from dualrate.networks.image_encoder import EncoderConfig
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs.store import write_experiment
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig

PROCESS = NoisyEnd(Cosine(log_snr_max=5.0))
LATENT = UViTConfig(4, 2, (Level("transformer", 16, 1),), embedding=16, head_dim=16)
NETWORKS = LatentNetworks(
    EncoderConfig(16, 3, 2, (8, 8), blocks=1),
    LATENT,
    UViTConfig(16, 3, (Level("conv", 8, 1), Level("transformer", 16, 1)), patch=4, embedding=16, head_dim=16),
)
CODEC = DiffusionDecoding(channels=3, factor=4, steps=3)
FIT = FitConfig(iterations=2, batch_size=4, precision="float32", sample_every=2, checkpoint_every=1)


def first_stage(source: Path) -> Experiment:
    """On images of 16 x 16 in colours."""
    return Experiment("first", NETWORKS, UnifiedLatentsConfig(), FIT, dr.DataConfig(str(source)), PROCESS, CODEC)


def untrained(experiment: Experiment, path: Path) -> Path:
    """A run as its training begins."""
    write_experiment(path, experiment)
    checkpoint.save(path / "checkpoints", 1, {"model": experiment.build()[0].state_dict()}, {"iteration": 1})
    return path
