"""Tiny autoencoders of diffusers with random weights, whose latents are brought to unit size by their own config."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor, nn

SIDE = 16
KL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
TINY = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
}
DC = {
    "latent_channels": 8,
    "attention_head_dim": 8,
    "encoder_block_out_channels": (8, 16),
    "decoder_block_out_channels": (8, 16),
    "encoder_layers_per_block": (1, 1),
    "decoder_layers_per_block": (1, 1),
    "encoder_qkv_multiscales": ((), ()),
    "decoder_qkv_multiscales": ((), ()),
}
FRAMES = {"base_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [False]}


class AutoencoderRAE(nn.Module):
    """Like diffusers' class of this name, which needs one library more: it normalises inside, images are in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        sides = {"patch_size": 2, "encoder_input_size": SIDE, "encoder_patch_size": 2}
        self.config = {**sides, "encoder_hidden_size": 12, "num_channels": 3}
        self.there, self.back = nn.Conv2d(3, 12, 2, 2), nn.ConvTranspose2d(12, 3, 2, 2)

    def encode(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(latent=(self.there(images) - 0.2) / 3)

    def decode(self, z: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.back(3 * z + 0.2))


def autoencoder(kind: str, **config: Any) -> nn.Module:
    """By its name, with the same weights every time."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        match kind:
            case "kl":
                return diffusers.AutoencoderKL(**KL, scaling_factor=0.7, shift_factor=0.3, **config)
            case "kl per channel":
                own = {"latent_channels": 2, "latents_mean": (0.1, -0.2), "latents_std": (2.0, 3.0)}
                return diffusers.AutoencoderKL(**KL, scaling_factor=0.7, **own, **config)
            case "tiny":
                return diffusers.AutoencoderTiny(**TINY, scaling_factor=0.5, shift_factor=0.1, **config)
            case "dc":
                return diffusers.AutoencoderDC(**DC, scaling_factor=0.41, **config)
            case "wan":
                return diffusers.AutoencoderKLWan(**FRAMES, **config)
            case "qwen":
                return diffusers.AutoencoderKLQwenImage(**FRAMES, **config)
            case _:
                return AutoencoderRAE()


def photos(count: int, side: int = SIDE) -> np.ndarray:
    """(N, 3, side, side) uint8: smooth, as photographs are."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, 4, 4)))
    return nn.functional.interpolate(coarse, size=side, mode="bilinear").round().byte().numpy()


def unit_size(module: nn.Module, images: Tensor) -> nn.Module:
    """An AutoencoderKL whose config says what brings the latents of these images to mean 0 and size 1."""
    with torch.no_grad():
        raw = module.encode(images).latent_dist.sample(torch.Generator().manual_seed(0))
    own = {"latents_mean": raw.mean((0, 2, 3)).tolist(), "latents_std": raw.std((0, 2, 3)).tolist()}
    module.register_to_config(scaling_factor=1.0, shift_factor=None, **own)
    return module


def saved(folder: Path, images: np.ndarray) -> Path:
    """The folder of an AutoencoderKL of unit size."""
    x = torch.from_numpy(images[:32]).float() / 127.5 - 1
    unit_size(autoencoder("kl"), x).save_pretrained(folder)
    return folder
