"""An experiment: every choice of a training run, as frozen dataclasses. Recipes are functions that return one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from dualrate.config.ranges import LossWeight, Probability, Ranged, Side
from dualrate.data.loader import Augment
from dualrate.denoisers.denoiser import Denoiser, DualRate, Plain
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine, Interpolated
from dualrate.diffusion.weighting import Sigmoid
from dualrate.experiments.serves import Continuous, Grid
from dualrate.methods.denoising import Denoising
from dualrate.methods.times import SingleTime, TimeSampler
from dualrate.networks.dual import ContextConfig, ContextEncoder, LightUViT, check_pair
from dualrate.networks.uvit import UViT, UViTConfig
from dualrate.training.config import FitConfig


@dataclass(frozen=True)
class DataConfig(Ranged):
    """Images."""

    source: str = "fashion-mnist"
    """fashion-mnist, a folder, or a .parquet or .npz file."""
    size: Side | None = None
    """Side that images are brought to; their own if not given."""
    channels: Literal[1, 3] | None = None
    """1 grey, 3 colours; the images' own if not given."""
    on_bad: Literal["fail", "skip"] = "fail"
    """What an image that cannot be read does: end the program, or be left out."""
    augment: Augment = Augment()


@dataclass(frozen=True)
class OneNetwork:
    """A single-rate model."""

    model: UViTConfig

    def build(self, process: GaussianProcess) -> tuple[nn.ModuleDict, Denoiser]:
        network = UViT(self.model)
        return nn.ModuleDict({"model": network}), Plain(network, process)

    @property
    def grid(self) -> UViTConfig:
        return self.model


@dataclass(frozen=True)
class TwoNetworks:
    """A dual-rate model. encoder.head: whether the encoder denoises by itself where it is called."""

    encoder: UViTConfig
    light: UViTConfig
    context: ContextConfig = ContextConfig()

    def __post_init__(self) -> None:
        check_pair(self.encoder, self.light, self.context)

    def build(self, process: GaussianProcess) -> tuple[nn.ModuleDict, Denoiser]:
        encoder, light = ContextEncoder(self.encoder, self.light, self.context), LightUViT(self.light)
        return nn.ModuleDict({"encoder": encoder, "light": light}), DualRate(encoder, light, process)

    @property
    def grid(self) -> UViTConfig:
        return self.light


@dataclass(frozen=True)
class Experiment(Ranged):
    """Every choice of a run. times: of training; of a distilled student the plans that it serves."""

    name: str
    """Of the run: letters, digits, _ . and -."""
    networks: OneNetwork | TwoNetworks
    fit: FitConfig
    data: DataConfig = DataConfig()
    schedule: Cosine | Interpolated = Cosine()
    weighting: Sigmoid = Sigmoid()
    times: SingleTime | TimeSampler | Continuous | Grid = SingleTime()
    label_dropout: Probability = 0.1
    """Share of the images that train without their label, for classifier-free guidance."""
    encoder_weight: LossWeight = 1.0
    """Weight of the encoder's own loss, where it denoises by itself."""
    encoder_from: str | None = None
    """A single-rate run whose averaged weights the encoder starts from."""
    freeze_encoder: bool = False
    """Leave the encoder's weights as they are: the light network and the projections into it are trained."""
    light_from: str | None = None
    """A single-rate run whose averaged weights the light network starts from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.augment.translate >= self.shape[1]:
            raise ValueError(
                f"images of side {self.shape[1]} are shifted by at most {self.shape[1] - 1} pixels, got translate "
                f"{self.data.augment.translate}"
            )
        if self.freeze_encoder and not self.encoder_from:
            raise ValueError("a frozen encoder keeps the weights of a trained model: say which, with encoder_from")
        if (self.encoder_from or self.light_from) and not isinstance(self.networks, TwoNetworks):
            raise ValueError(
                f"{self.name} has a single network; encoder_from and light_from start the parts of a dual-rate model"
            )

    @property
    def process(self) -> GaussianProcess:
        return GaussianProcess(self.schedule)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        grid = self.networks.grid
        return grid.image_channels, grid.image_size, grid.image_size

    @property
    def num_classes(self) -> int:
        """0 for an unconditional model."""
        return self.networks.grid.num_classes

    def build(self) -> tuple[nn.ModuleDict, Denoiser]:
        """Networks with weights drawn from the run's seed, and their denoiser."""
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(self.fit.seed)
            networks, denoiser = self.networks.build(self.process)
        return networks.to(memory_format=torch.channels_last), denoiser  # pyright: ignore[reportCallIssue]

    def method(self) -> Denoising:
        """Raises ValueError for a student, which a teacher trains."""
        if isinstance(self.times, (Continuous, Grid)):
            raise ValueError(f"{self.name} is a distilled student, which has no loss of its own: use dualrate distill")
        networks, denoiser = self.build()
        if self.freeze_encoder:
            networks.get_submodule("encoder.net").eval().requires_grad_(False)
        return Denoising(
            networks,
            denoiser,
            self.process,
            self.weighting,
            self.times,
            null=self.num_classes,
            label_dropout=self.label_dropout,
            encoder_weight=self.encoder_weight,
        )
