"""Networks of whole clips and of their latents: a clip of T frames is an image of T C channels, in K pieces.

    z^k = E(x^k)                                    an encoder of T / K frames: a latent of fewer frames and pixels
    z_hat = prior(z_t), z_t = (z_t^1 ... z_t^K)     its latents attend to each other, as frames do (`ByLead`); at two
                                                    rates those of either network, whose context is of all latents
    x_hat^k = D(x_t^k, z_0^k)                       a decoder, at one rate, or at two: heavy once a latent

Networks of decoders predict x, not v: the noise of a patch of several frames is more than their narrow levels carry
(Li and He 2025, arXiv 2511.13720). Pieces share weights, and none sees another but in the prior. So the bound of
methods/unified_latents.py is of whole clips, and encoder and decoder take clips of any number of pieces, which their
channels say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dualrate.config.ranges import ClipFrames, Lead, Ranged
from dualrate.denoisers.denoiser import Conditional, Denoiser, DualRate, DualRateConditional, Plain
from dualrate.diffusion.context import Shape
from dualrate.diffusion.prediction import v_from_x
from dualrate.diffusion.process import Process
from dualrate.experiment.network_configs import OneConditional, OneNetwork, TwoConditional, TwoNetworks, of_kind
from dualrate.methods.unified_latents import LatentNetworks
from dualrate.networks.body import BodyConfig
from dualrate.networks.conditional import ByLead, ConditionalBody, ConditionEncoder
from dualrate.networks.dual import ContextEncoder, Features, LightBody
from dualrate.networks.image_encoder import EncoderConfig, ImageEncoder
from dualrate.networks.uvit import UViTConfig


def parted(x: Tensor, pieces: int) -> Tensor:
    """(B, K c, H, W) -> (B K, c, H, W)"""
    return x.unflatten(1, (pieces, -1)).flatten(0, 1)


def rejoined(x: Tensor, pieces: int) -> Tensor:
    """The inverse of `parted`."""
    return x.unflatten(0, (-1, pieces)).flatten(1, 2)


def of_pieces(shape: Shape, pieces: int) -> Shape:
    """(K C, H, W)"""
    return pieces * shape[0], shape[1], shape[2]


@dataclass(frozen=True)
class ClipEncoderConfig(EncoderConfig):
    """An encoder of clips; its channels are those of a piece and of its latent."""

    frames: ClipFrames = 1
    """Frames of a clip, T."""
    pieces: ClipFrames = 1
    """Pieces of a clip, K, which are encoded each by itself."""

    @property
    def shape(self) -> Shape:
        return of_pieces(super().shape, self.pieces)

    @property
    def latent_shape(self) -> Shape:
        return of_pieces(super().latent_shape, self.pieces)


class ClipEncoder(ImageEncoder):
    """forward: clips (B, T C, H, W) -> latents (B, K c, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        pieces = x.shape[1] // self.config.image_channels
        return rejoined(super().forward(parted(x, pieces)), pieces)


def _rows(y: Tensor, like: Tensor, pieces: int) -> Tensor:
    """The pieces of y: (B, K c, ...), for each of the M samples that z: (B M, ...) has of it."""
    return parted(y.repeat_interleave(len(like) // len(y), 0), pieces)


class PieceDecoder(ConditionalBody):
    """forward: (z_t, log_snr, y, label) -> v, by x of each piece by itself. shape: of a piece of y."""

    def forward(self, z_t: Tensor, log_snr: Tensor, y: Tensor, label: Tensor | None) -> Tensor:
        count = z_t.shape[1] // self.config.shape[0]
        y = _rows(y, z_t, count)
        x = rejoined(super().forward(parted(z_t, count), log_snr.repeat_interleave(count), y, label), count)
        return v_from_x(z_t, x.to(z_t.dtype), log_snr)


class PieceReader(ConditionEncoder):
    """forward: (log_snr at t = 1, y, label) -> features of all pieces, (B, K C_i, H_i, W_i). shape: of a piece of y."""

    def __init__(self, config: BodyConfig, light: BodyConfig, shape: Shape) -> None:
        super().__init__(config, light, shape)
        self.channels = shape[0]

    def forward(self, log_snr: Tensor, y: Tensor, label: Tensor | None) -> tuple[Tensor, ...]:
        count = y.shape[1] // self.channels
        features = super().forward(log_snr.repeat_interleave(count), parted(y, count), label)
        return tuple(rejoined(level, count) for level in features)


class PieceLight(nn.Module):
    """forward: (z_t, log_snr, label, features) -> v, by x of each piece by itself."""

    def __init__(self, config: BodyConfig) -> None:
        super().__init__()
        self.net, self.channels = config.network(), config.shape[0]

    def forward(self, z_t: Tensor, log_snr: Tensor, label: Tensor | None, features: Sequence[Tensor]) -> Tensor:
        count = z_t.shape[1] // self.channels
        levels = tuple(_rows(level, z_t, count) for level in features)
        x = rejoined(self.net(parted(z_t, count), log_snr.repeat_interleave(count), label, levels), count)
        return v_from_x(z_t, x.to(z_t.dtype), log_snr)


class LatentRows(ByLead):
    """A network of latents that attend to each other, whose rows are latents: those of each sample in turn."""

    def __init__(self, config: UViTConfig, leads: Sequence[int]) -> None:
        super().__init__(config, leads, attention=True)

    def embedding(self, log_snr: Tensor, label: Tensor | None) -> Tensor:
        count = len(self.leads)
        return self.net.embedding(log_snr, label) + self.lead(self.leads).repeat(len(log_snr) // count, 1)

    def called(self, z: Tensor, log_snr: Tensor, emb: Tensor, added: Sequence[Tensor] = ()) -> Tensor:
        return self.net.called(z, log_snr, emb, added)

    def features(self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Sequence[Tensor] = ()) -> Any:
        levels = self.net.trunk(z, self.embedding(log_snr, label), added)
        return levels, None if self.net.head is None else self.net.predict(levels[0])

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Sequence[Tensor] = ()) -> Tensor:
        return self.called(z, log_snr, self.embedding(log_snr, label), added)


def _each(row: Tensor | None, count: int) -> Tensor | None:
    """(B,) -> (B K,): the number of a clip for each of its latents."""
    return None if row is None else row.repeat_interleave(count)


class LatentsContext(ContextEncoder):
    """A context of all latents of a clip: features (B, K C_i, H_i, W_i), and v, as z."""

    def __init__(self, config: UViTConfig, light: UViTConfig, leads: Sequence[int]) -> None:
        super().__init__(config, light)
        self.net, self.pieces = LatentRows(config, leads), len(leads)

    def forward(
        self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Features = ()
    ) -> tuple[Features, Tensor | None]:
        noise, kind = log_snr.repeat_interleave(self.pieces), _each(label, self.pieces)
        features, v = super().forward(parted(z, self.pieces), noise, kind, added)
        joined = tuple(rejoined(level, self.pieces) for level in features)
        return joined, None if v is None else rejoined(v, self.pieces)


class LatentsLight(LightBody):
    """A light network of all latents of a clip, with such a context."""

    def __init__(self, config: UViTConfig, leads: Sequence[int]) -> None:
        super().__init__(config)
        self.net, self.pieces = LatentRows(config.with_head(True), leads), len(leads)

    def forward(
        self,
        z: Tensor,
        log_snr: Tensor,
        label: Tensor | None,
        features: Features = (),
        log_snr_tau: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        count, levels = self.pieces, tuple(_rows(level, z, self.pieces) for level in features)
        noise = log_snr.repeat_interleave(count)
        kind, tau, mask = (_each(row, count) for row in (label, log_snr_tau, present))
        return rejoined(super().forward(parted(z, count), noise, kind, levels, tau, mask), count)


class OfClip:
    """Networks whose samples are clips of so many frames. leads: 1 to K, of its pieces"""

    frames: int
    leads: tuple[int, ...]

    @property
    def pieces(self) -> int:
        return len(self.leads)


@dataclass(frozen=True)
class ClipLatents(LatentNetworks, OfClip):
    """An encoder of clips, a prior of all latents of a clip, and a decoder of each."""

    encoder: ClipEncoderConfig

    def __post_init__(self) -> None:
        expected = self.encoder.latent_shape, self.encoder.shape
        if (self.shape, of_pieces(self.decoder.shape, self.pieces)) != expected or self.frames % self.pieces:
            raise ValueError(
                f"clips of {self.frames} frames, {expected[1]}, have {self.pieces} latents, together {expected[0]}; "
                f"the prior is of {self.prior.shape} each, the decoder of {self.decoder.shape}: make them fit"
            )

    @property
    def frames(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.encoder.frames

    @property
    def leads(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return leads_of(self.encoder.pieces)

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        encoder, prior = ClipEncoder(self.encoder), ByLead(self.prior, self.leads, attention=True)
        decoder = PieceDecoder(self.decoder, self.prior.shape)
        return nn.ModuleDict({"encoder": encoder, "prior": prior, "decoder": decoder}), Plain(prior, process)


def leads_of(pieces: int) -> tuple[int, ...]:
    return tuple(range(1, pieces + 1))


@dataclass(frozen=True)
class ClipPrior(OneNetwork, Ranged, OfClip):
    """A single-rate model of the latents of a clip; the network is of one, and they attend to each other."""

    leads: tuple[Lead, ...]
    """Numbers of the latents."""
    frames: ClipFrames
    """Frames of a clip."""

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        network = ByLead(self.model, self.leads, attention=True)
        return nn.ModuleDict({"model": network}), Plain(network, process)

    def beside(self, light: object, name: str) -> TwoClipPriors:
        pair = super().beside(light, name)
        encoder, lighter = (of_kind(UViTConfig, part, name) for part in (pair.encoder, pair.light))
        return TwoClipPriors(encoder, lighter, self.leads, self.frames)


@dataclass(frozen=True)
class TwoClipPriors(TwoNetworks, Ranged, OfClip):
    """A dual-rate model of the latents of a clip; the networks are of one, and those of either attend to each other."""

    encoder: UViTConfig
    light: UViTConfig
    leads: tuple[Lead, ...]
    """Numbers of the latents."""
    frames: ClipFrames
    """Frames of a clip."""

    def __post_init__(self) -> None:
        Ranged.__post_init__(self)
        super().__post_init__()

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        encoder, light = LatentsContext(self.encoder, self.light, self.leads), LatentsLight(self.light, self.leads)
        return nn.ModuleDict({"encoder": encoder, "light": light}), DualRate(encoder, light, process)


@dataclass(frozen=True)
class OneClipDecoder(OneConditional, OfClip):
    """A decoder of clips at one rate; the network is of a piece. leads: of the pieces"""

    frames: ClipFrames = field(kw_only=True)
    """Frames of a clip."""

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        network = PieceDecoder(self.model, piece_of(self.given_shape, self.pieces))
        return nn.ModuleDict({"model": network}), Conditional(network, process)


@dataclass(frozen=True)
class TwoClipDecoders(TwoConditional, OfClip):
    """A decoder of clips at two rates: the heavy network sees each latent once, the light one each state of a piece.
    leads: of the pieces"""

    frames: ClipFrames = field(kw_only=True)
    """Frames of a clip."""

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        encoder = PieceReader(self.encoder, self.light, piece_of(self.given_shape, self.pieces))
        light = PieceLight(self.light)
        return nn.ModuleDict({"encoder": encoder, "light": light}), DualRateConditional(encoder, light, process)


def piece_of(shape: Shape, pieces: int) -> Shape:
    """The inverse of `of_pieces`."""
    return shape[0] // pieces, shape[1], shape[2]
