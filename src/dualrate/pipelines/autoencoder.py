"""Codecs of diffusers: which numbers normalise the latents of a class, by a rule for each class and never by guess.

    x = (z_raw - mean) / std

    AutoencoderKL                    mean = shift_factor or 0, std = 1 / scaling_factor; where it has latents_mean and
                                     latents_std: mean = latents_mean, std = latents_std / scaling_factor
    AutoencoderTiny                  mean = shift_factor, std = 1 / scaling_factor; deterministic
    AutoencoderDC                    mean = 0, std = 1 / scaling_factor; deterministic
    AutoencoderKLWan, ...QwenImage   mean = latents_mean, std = latents_std; an image is a video of one frame
    AutoencoderRAE                   none: it normalises inside. Its images are in [0, 1]; deterministic

A class without a rule is refused. Tested against diffusers 0.42.1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dualrate.codecs.codec import Codec, CodecConfig, Moments
from dualrate.diffusion.context import Shape
from dualrate.diffusion.random import Draws
from dualrate.pipelines.folder import NETWORK, check_config, check_files, class_named, read_weights, settings_in
from dualrate.system.device import pick_device
from dualrate.system.files import blaming, shown

RULES_VERSION = 1  # part of every fingerprint: a rule that changes makes other latents


Config = Mapping[str, Any]


@dataclass(frozen=True)
class Normalisation:
    """x = (z_raw - mean) / std. mean, std: one number per channel, or one for all."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.mean or not self.std or not all(std > 0 for std in self.std):
            raise ValueError(f"latents are normalised by numbers above 0, got mean {self.mean} and std {self.std}")

    def forward(self, raw: Moments) -> Moments:
        """Moments of a codec's own latents -> those that networks see."""
        mean, std = self._per_channel(raw.mean)
        return Moments((raw.mean - mean) / std, None if raw.log_var is None else raw.log_var - 2 * std.log())

    def inverse(self, x: Tensor) -> Tensor:
        """(B, C, H, W) latents that networks see -> a codec's own."""
        mean, std = self._per_channel(x)
        return x * std + mean

    def _per_channel(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std, each (1, C or 1, 1, 1)."""
        if {len(self.mean), len(self.std)} - {1, z.shape[1]}:
            raise ValueError(
                f"latents have {z.shape[1]} channels, their normalisation is of {len(self.mean)} and "
                f"{len(self.std)} means and deviations: one, or one for each channel, is expected"
            )
        mean, std = (z.new_tensor(part)[:, None, None] for part in (self.mean, self.std))
        return mean, std


@dataclass(frozen=True)
class Rule:
    """How latents of a class are made and normalised, by what its config says.

    scale:    the normalisation
    factor:   pixels of an image's side for one of the latent's
    channels: of a latent
    colours:  channels of an image
    output:   the field of what `encode` returns: a distribution, or the latent itself
    frames:   whether images get an axis of frames
    unit:     whether its images are in [0, 1]
    side:     the one side of images that it takes, if it takes no other
    """

    scale: Callable[[Config], Normalisation]
    factor: Callable[[Config], int]
    channels: Callable[[Config], int] = lambda config: config["latent_channels"]
    colours: Callable[[Config], int] = lambda config: config["in_channels"]
    output: str = "latent_dist"
    frames: bool = False
    unit: bool = False
    side: Callable[[Config], int] | None = None


def _scaled(config: Config) -> Normalisation:
    """A normalisation by one factor, and a shift if any; or by numbers for each channel, and the factor."""
    factor, shift = config.get("scaling_factor"), config.get("shift_factor")
    if not isinstance(factor, (int, float)) or not factor > 0:
        raise ValueError(f"its scaling_factor is {factor!r}, expected a number above 0")
    if config.get("latents_mean") is None and config.get("latents_std") is None:
        return Normalisation((float(shift or 0),), (1 / factor,))
    if shift:
        raise ValueError("it has both a shift_factor and latents_mean, and only one of them can hold")
    normalisation = _per_channel(config)
    return Normalisation(normalisation.mean, tuple(std / factor for std in normalisation.std))


def _per_channel(config: Config) -> Normalisation:
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        raise ValueError(f"it has latents_mean {mean} and latents_std {std}: both are needed")
    return Normalisation(tuple(map(float, mean)), tuple(map(float, std)))


def _halvings(name: str) -> Callable[[Config], int]:
    """A level of the encoder halves the one before; patches come first, where there are any."""
    return lambda config: 2 ** (len(config[name]) - 1) * _patch(config)


def _patch(config: Config) -> int:
    return config.get("patch_size") or 1


_VIDEO = Rule(
    _per_channel,
    _halvings("dim_mult"),
    channels=lambda config: config["z_dim"],
    colours=lambda config: config.get("in_channels", 3) // _patch(config) ** 2,
    frames=True,
)
RULES = {
    "AutoencoderKL": Rule(_scaled, _halvings("block_out_channels")),
    "AutoencoderTiny": Rule(_scaled, _halvings("encoder_block_out_channels"), output="latents"),
    "AutoencoderDC": Rule(_scaled, _halvings("encoder_block_out_channels"), output="latent"),
    "AutoencoderKLWan": _VIDEO,
    "AutoencoderKLQwenImage": replace(_VIDEO, colours=lambda config: config.get("input_channels", 3)),
    "AutoencoderRAE": Rule(
        lambda config: Normalisation(),
        _patch,
        channels=lambda config: config["encoder_hidden_size"],
        colours=lambda config: config["num_channels"],
        output="latent",
        unit=True,
        side=lambda config: config["patch_size"] * (config["encoder_input_size"] // config["encoder_patch_size"]),
    ),
}


class Autoencoder:
    """An autoencoder of diffusers as a `Codec`: in eval(), without gradient, in its own dtype, where it is.

    Raises ValueError for a class without a rule, and for a config whose rule has no normalisation.
    """

    log_snr: float | None = None

    def __init__(self, module: nn.Module, config: Config, name: str) -> None:
        kind = type(module).__name__
        if kind not in RULES:
            raise ValueError(f"{name} is a codec of class {kind}, which has no rule; known are {', '.join(RULES)}")
        self.name, self.rule, self.config = f"{kind} {name}", RULES[kind], dict(config)
        try:
            self.normalisation = self.rule.scale(self.config)
        except ValueError as error:
            raise ValueError(f"the latents of {self.name} cannot be normalised: {error}") from error
        self.module = module.eval().requires_grad_(False)

    @cached_property
    def _hash(self) -> str:
        settings = {name: value for name, value in sorted(self.config.items()) if not name.startswith("_")}
        rule = [RULES_VERSION, type(self.module).__name__, settings]
        digest = hashlib.sha256(json.dumps(rule, default=str).encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        return self._hash

    latents = fingerprint

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def latent_shape(self, image: Shape) -> Shape:
        factor, colours = self.rule.factor(self.config), self.rule.colours(self.config)
        side = self.rule.side(self.config) if self.rule.side else 0
        if image[1] % factor or image[2] % factor or (side and image[1:] != (side, side)):
            expected = f"of side {side}" if side else f"whose sides are multiples of {factor}"
            raise ValueError(f"{self.name} encodes images {expected}, got {image[1]} x {image[2]}: --size, or crop")
        if image[0] != colours:
            raise ValueError(f"{self.name} encodes images of C = {colours}, got {image[0]}: --channels {colours}")
        return self.rule.channels(self.config), image[1] // factor, image[2] // factor

    def image_shape(self, latent: Shape) -> Shape:
        if latent[0] != self.rule.channels(self.config):
            raise ValueError(f"{self.name} decodes {self.rule.channels(self.config)} channels, got {latent[0]}")
        factor = self.rule.factor(self.config)
        return self.rule.colours(self.config), latent[1] * factor, latent[2] * factor

    def encode(self, images: Tensor) -> Moments:
        images = images.to(self._dtype)
        images = (images + 1) / 2 if self.rule.unit else images
        images = images[:, :, None] if self.rule.frames else images
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            output = getattr(self.module.encode(images), self.rule.output)  # pyright: ignore[reportCallIssue]
        parts = (output,) if isinstance(output, Tensor) else (output.mean, output.logvar)
        return self.normalisation.forward(Moments(*(part[:, :, 0] if self.rule.frames else part for part in parts)))

    def decode(self, x: Tensor, draws: Draws) -> Tensor:
        raw = self.normalisation.inverse(x.to(self._dtype))
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            images = self.module.decode(raw[:, :, None] if self.rule.frames else raw).sample  # pyright: ignore[reportCallIssue]
        images = images[:, :, 0] if self.rule.frames else images
        return (2 * images - 1 if self.rule.unit else images).to(x.dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype


def read_autoencoder(folder: Path, device: torch.device | str | None = None) -> Codec:
    """The autoencoder that `save_pretrained` wrote to a folder. device: as of `pick_device`

    Raises ValueError for a class without a rule; also what `class_named` and `read_weights` raise.
    """
    check_files(folder)
    config = settings_in(folder / NETWORK)
    check_config(folder, config)
    if (name := str(config.get("_class_name"))) not in RULES:
        raise ValueError(
            f"{folder} holds a {shown(name, 60)}, for which there is no rule; known are {', '.join(RULES)}"
        )
    module: Any = read_weights(class_named(name, RULES), folder)
    with blaming(folder / NETWORK):
        autoencoder = Autoencoder(module.float().to(pick_device(device)), module.config, str(folder))
        autoencoder.image_shape((autoencoder.rule.channels(autoencoder.config), 1, 1))
        return autoencoder


@dataclass(frozen=True)
class HeldCodec(CodecConfig):
    """A codec in memory, such as that of a pipeline, for models that are not written as runs."""

    codec: Codec

    @property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.codec.latents

    def build(self, networks: nn.ModuleDict, device: torch.device | str) -> Codec:
        return self.codec
