"""Unified Latents (Heek, Hoogeboom, Mensink, Salimans 2026, arXiv 2602.17270): encoder, prior, decoder, in one phase.

    z = E(x)                                                       without noise
    z_t = alpha_t z + sigma_t eps, t ~ U(0, 1)                     the prior's process, whose log_snr(0) is 5
    L_z = -1/2 dlog_snr/dt e^log_snr |z - z_hat(z_t)|^2 + KL(q(z_1 | x) | N(0, I))
    z_0 = alpha_0 z + sigma_0 eps_0, anew
    x_t = alpha_t x + sigma_t eps', another t ~ U(0, 1)            the images' process
    L_x = -1/2 dlog_snr/dt e^log_snr w(log_snr) |x - x_hat(x_t, z_0)|^2,   w = c sigmoid(b - log_snr)
    L   = mean over rows of (L_z + L_x) / numel(x)

|.|^2 is a sum over elements: L_z and L_x are nats an image, and L is nats for each number of an image. L_z bounds the
nats that z_0 holds, KL(q(z_0 | x) | p(z_0)), if nothing is weighted: elsewhere the encoder would hide them. A nat of
z_0 pays where it spares the decoder more than one, where w > 1: below log_snr = b + log(c - 1), and nowhere at c = 1.
There is no prior term of x, which nothing that is trained changes.

Ours: L_z trains the encoder from iteration `priced_from` on. At first no decoder reads z yet, so that all of it is
waste to L_z: in a run of small networks the latents were gone within 100 iterations, and did not come back.

Deviates from eq. (4) and the text, which contradict the paper's figures: dlog_snr/dt has the minus sign of the prior's
loss there too. The paper prints the weight sigmoid(log_snr - b). We use sigmoid(b - log_snr), which lowers the weight
of invisible detail; it multiplies the error of eps in the bound.

The codec of such a run is its own (`codecs/diffusion.py`), trained with it. A second stage is an ordinary experiment on
that codec's latents, under a process that ends in noisy latents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualrate.codecs.diffusion import DiffusionDecoding
from dualrate.config.ranges import ClipFrames, FirstIterations, LossWeight, Ranged
from dualrate.denoisers.denoiser import Denoiser, Plain, posterior_mean
from dualrate.diffusion.context import Batch, Cond, expand
from dualrate.diffusion.process import Gaussian, GaussianProcess, Process
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Elbo, Sigmoid, Weighting, x_loss_weight
from dualrate.experiment.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiment.network_configs import NetworksConfig
from dualrate.experiment.plan_support import AnyPlan
from dualrate.methods.times import SILVER, stratified_uniform, to_device
from dualrate.networks.conditional import ConditionalBody
from dualrate.networks.image_encoder import EncoderConfig, ImageEncoder
from dualrate.networks.uvit import UViT, UViTConfig
from dualrate.sampling.bound import divergence
from dualrate.training.method import Loss, OnePhase


@dataclass(frozen=True)
class UnifiedLatents(OnePhase):
    """The loss of the module.

    encoder:        images -> latents
    prior:          of latents, under `process`, whose log_snr(0) is that of z_0
    decoder:        of images, under `images`, given z_0
    weighting:      of the decoder's loss, before the loss factor
    loss_factor:    c, the price of a nat that the decoder lacks in nats of the latent
    priced_from:    iteration from which on the encoder is trained by L_z too; until then nothing limits what z_0 holds
    frames:         of each x, if that is a clip
    """

    encoder: nn.Module
    prior: Denoiser
    decoder: Denoiser
    process: GaussianProcess
    images: GaussianProcess
    weighting: Weighting
    loss_factor: LossWeight
    priced_from: FirstIterations = 0
    frames: ClipFrames = 1

    def denoiser(self) -> Denoiser:
        """The prior."""
        return self.prior

    def loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """The mean over the batch's rows. Every random number is a function of a row's sample number.

        Logs: `bits`, L_z in bits a pixel; `decoder_loss`, L_x for each number of an image; `latent_square`, the mean
        square of z.
        """
        x, cond = batch.x, Cond(batch.label)
        times = stratified_uniform(draws.host), stratified_uniform(draws.host, "t of x", SILVER)
        t_z, t_x = to_device(x.device, *times)
        z = self.encoder(x)

        def normal(stream: str, like: Tensor) -> Tensor:
            return draws.normal(stream, *like.shape[1:]).to(like.dtype)

        priced = z if iteration >= self.priced_from else z.detach()
        nats = bound(self.prior, self.process, priced, t_z, normal("z_t", z), cond, Elbo()) + end(self.process, priced)
        z_0 = self.process.add_noise(z, torch.zeros_like(t_z), normal("z_0", z))
        decoder_cond = Cond(given=z_0)
        decoding = self.loss_factor * bound(
            self.decoder, self.images, x, t_x, normal("x_t", x), decoder_cond, self.weighting
        )
        numbers, pixels = x[0].numel(), self.frames * x[0, 0].numel()
        logs = {
            "bits": nats.detach().mean() / (math.log(2) * pixels),
            "decoder_loss": decoding.detach().mean() / numbers,
            "latent_square": z.detach().square().mean(),
        }
        return Loss((nats + decoding).mean() / numbers, logs)


def bound(
    denoiser: Denoiser, process: GaussianProcess, x: Tensor, t: Tensor, eps: Tensor, cond: Cond, weighting: Weighting
) -> Tensor:
    """(B,) nats: -1/2 dlog_snr/dt e^log_snr w |x - x_hat(z_t)|^2, a sum over elements; its mean over t ~ U(0, 1), for
    w = 1, is the bound's integral over all noise levels.

    x, eps: (B, ...), data and standard normal numbers; t: (B,).
    """
    z_t = process.add_noise(x, t, eps)
    error = (x - posterior_mean(denoiser, z_t, t, cond)).square().flatten(1).sum(1)
    return x_loss_weight(weighting, process.schedule, t).to(error.dtype) * error


def end(process: GaussianProcess, x: Tensor) -> Tensor:
    """(B,) nats: KL(q(z_1 | x) | N(0, I)), of latents that could otherwise be as large as they like."""
    last_time = x.new_ones(len(x), dtype=torch.float64)
    q = Gaussian(expand(process.alpha(last_time), x) * x, expand(process.sigma(last_time) ** 2, x))
    return divergence(q, Gaussian(torch.zeros_like(x), torch.ones_like(q.variance))).to(x.dtype)


@dataclass(frozen=True)
class LatentNetworks(NetworksConfig):
    """An encoder of images, a prior of their latents, and a decoder; what is sampled is the prior."""

    encoder: EncoderConfig
    prior: UViTConfig
    decoder: UViTConfig

    def __post_init__(self) -> None:
        encoder, prior, decoder = self.encoder, self.prior.shape, self.decoder.shape
        if (encoder.latent_shape, encoder.shape) != (prior, decoder):
            sizes = f"the encoder's latents are {encoder.latent_shape} of images {encoder.shape}"
            raise ValueError(f"the prior sees latents of {prior} and the decoder makes images of {decoder}; {sizes}")
        if self.decoder.num_classes:
            raise ValueError(f"a decoder is given latents and no classes, got num_classes {self.decoder.num_classes}")

    @property
    def null_class(self) -> bool:
        """The prior never trains without labels."""
        return False

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        encoder, prior = ImageEncoder(self.encoder), UViT(self.prior)
        decoder = ConditionalBody(self.decoder, self.encoder.latent_shape)
        return nn.ModuleDict({"encoder": encoder, "prior": prior, "decoder": decoder}), Plain(prior, process)

    @property
    def roles(self) -> tuple[str, ...]:
        return "encoder", "prior", "decoder"

    @property
    def kind(self) -> str:
        return f"a first stage of unified latents, of three networks ({', '.join(self.roles)})"

    @property
    def configs(self) -> Mapping[str, UViTConfig]:
        """The prior, which is sampled from, first."""
        return {"prior": self.prior, "decoder": self.decoder}


@dataclass(frozen=True)
class UnifiedLatentsConfig(MethodConfig, Ranged):
    """The first stage of Unified Latents: encoder, prior and decoder together."""

    loss_factor: LossWeight = 1.5
    """Price of a nat that the decoder lacks, in nats of the latent. The higher it is, the more the latent holds."""
    decoder_weighting: Weighting = Sigmoid()
    """Weighting of the decoder's loss over noise levels. A higher bias makes the latent hold finer detail."""
    priced_from: FirstIterations = 0
    """Iteration from which the prior's loss trains the encoder too. Until then nothing limits what latents hold, so
    that the decoder can learn to read them."""

    @property
    def serves(self) -> AnyPlan:
        return AnyPlan()

    def check(self, experiment: Experiment) -> None:
        networks, codec = experiment.networks, experiment.codec
        if not isinstance(networks, LatentNetworks) or not isinstance(codec, DiffusionDecoding):
            raise ValueError(
                "unified latents are an encoder, a prior and a decoder, whose codec is trained with them: expected "
                f"LatentNetworks and DiffusionDecoding, got {type(networks).__name__} and {type(codec).__name__}"
            )
        if experiment.process.end != codec.log_snr:
            end = f"the prior's process ends in latents of log-SNR {experiment.process.end}"
            raise ValueError(
                f"{end}, the decoder takes them at {codec.log_snr:g}: give a NoisyEnd with that log_snr_max"
            )
        if codec.data_shape(networks.shape) != networks.encoder.shape:
            encoder, images = networks.encoder, codec.data_shape(networks.shape)
            raise ValueError(
                f"the encoder takes images of {encoder.shape}, the codec {images}: its factor is {encoder.factor}"
            )

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        codec, (networks, prior) = experiment.codec, experiment.build()
        assert isinstance(codec, DiffusionDecoding)  # of `check`
        roles = networks["encoder"], prior, codec.decoder(networks), experiment.gaussian, codec.process
        settings = self.decoder_weighting, self.loss_factor, self.priced_from, experiment.networks.frames
        return Prepared(UnifiedLatents(networks, *roles, *settings))
