"""A codec that trains with its run: its networks are the method's, its decoder draws, and nobody else knows of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from latents.autoencoders import photos
from torch import Tensor, nn

import dualrate as dr
from dualrate.codecs.codec import Codec, CodecConfig, Moments, Shape
from dualrate.data.images import to_uint8
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.context import Batch
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiment.network_configs import NetworksConfig, OneNetwork
from dualrate.methods.denoising import Denoising, DenoisingConfig
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs.store import load
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.trajectory import sample_batches
from dualrate.training.config import FitConfig
from dualrate.training.method import Loss

NET = UViTConfig(8, 4, (Level("conv", 8, 1), Level("transformer", 16, 1)), patch=2, embedding=16, head_dim=16)


@dataclass(frozen=True)
class Trained:
    """A convolution there and one back, of the run's networks, and noise in what it decodes."""

    networks: nn.ModuleDict
    device: torch.device
    fingerprint: str = "of its weights"
    latents: str = "of its weights"
    log_snr: float | None = None

    def latent_shape(self, image: Shape) -> Shape:
        return 4, image[1] // 2, image[2] // 2

    def image_shape(self, latent: Shape) -> Shape:
        return 3, 2 * latent[1], 2 * latent[2]

    def encode(self, images: Tensor) -> Moments:
        return Moments(self.networks["there"](images))

    @torch.no_grad()
    def decode(self, x: Tensor, draws: Draws) -> Tensor:
        return self.networks["back"](x) + 0.1 * draws.normal("decoder", 3, 2 * x.shape[2], 2 * x.shape[3])


@dataclass(frozen=True)
class TrainedConfig(CodecConfig):
    def data_shape(self, latent: Shape) -> Shape:
        return 3, 2 * latent[1], 2 * latent[2]

    def build(self, networks: nn.ModuleDict, device: torch.device | str) -> Codec:
        return Trained(networks, torch.device(device))


@dataclass(frozen=True)
class WithCodec(NetworksConfig):
    """The networks of another configuration, and the codec's."""

    inner: OneNetwork

    @property
    def configs(self) -> Mapping[str, UViTConfig]:
        return self.inner.configs

    def build(self, process: GaussianProcess) -> tuple[nn.ModuleDict, Denoiser]:
        networks, denoiser = self.inner.build(process)
        networks.update({"there": nn.Conv2d(3, 4, 2, 2), "back": nn.ConvTranspose2d(4, 3, 2, 2)})
        return networks, denoiser


@dataclass(frozen=True)
class OnEncoded(Denoising):
    """The denoising loss of encoded images, and that of their way there and back."""

    def loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        x = self.networks["there"](batch.x)
        found = super().loss(replace(batch, x=x), iteration, draws)
        return Loss(found.total + (self.networks["back"](x) - batch.x).square().mean(), found.logs)


@dataclass(frozen=True)
class EncodingConfig(DenoisingConfig):
    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        networks, denoiser = experiment.build()
        times, weighting = self.times, self.weighting
        return Prepared(OnEncoded(networks, denoiser, experiment.process, weighting, times))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    file = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(file, images=photos(40).transpose(0, 2, 3, 1))
    fit = FitConfig(iterations=2, batch_size=4, precision="float32", sample_every=2)
    data, method = dr.DataConfig(str(file)), EncodingConfig()
    return Experiment("trained", WithCodec(OneNetwork(NET)), method, fit, data, codec=TrainedConfig())


def test_a_codec_trains_with_its_run_and_decodes_what_is_drawn(experiment: Experiment, tmp_path: Path) -> None:
    assert isinstance(experiment.method, MethodConfig)
    dr.train(experiment, tmp_path / "run")
    assert (tmp_path / "run" / "samples" / "0000002.png").is_file()
    model = load(tmp_path / "run")
    assert not torch.equal(model.networks["there"].weight, experiment.build()[0]["there"].weight)
    drawer = Drawer(model, Ancestral(model.process), dr.StepPlan.uniform(2, 2), batch_size=2, precision="float32")
    z = torch.cat(list(sample_batches(model.denoiser, drawer.step, drawer.plan, (4, 8, 8), range(5))))
    back = nn.functional.conv_transpose2d(z, model.networks["back"].weight, model.networks["back"].bias, 2)
    noise = Draws(0, torch.arange(5)).normal("decoder", 3, 16, 16)
    images = drawer.draw(range(5)).images  # in batches of 2, each row with its own numbers
    assert np.abs(images.astype(int) - to_uint8(back + 0.1 * noise).numpy()).max() <= 1
    assert drawer.cost.calls.decode == 4 * 3 * 16 * 16  # a product at every pixel of every colour and channel
    assert experiment.identity["codec"]["type"].endswith(":TrainedConfig")


def test_images_of_another_shape_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    other = replace(experiment, networks=WithCodec(OneNetwork(replace(NET, image_size=16))))
    with pytest.raises(ValueError, match=r"images of \(3, 16, 16\).*take \(3, 32, 32\)"):
        dr.train(other, tmp_path / "run")
