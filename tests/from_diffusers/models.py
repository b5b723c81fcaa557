"""Tiny networks of diffusers' own classes, with random weights that no part of them ignores."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dualrate as dr

diffusers = pytest.importorskip("diffusers")

TEXTS = 3  # and the empty one


def randomised(net: nn.Module) -> nn.Module:
    """With weights from a seed of its own; they start with layers of zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.15, generator=generator)
    return net


def dit(**settings) -> nn.Module:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "norm_num_groups": 4}
    return diffusers.DiTTransformer2DModel(
        **sizes | {"in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 5} | settings
    )


def unet(**settings) -> nn.Module:
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return diffusers.UNet2DModel(**blocks | sizes | {"attention_head_dim": 8} | settings)


def sd3() -> nn.Module:
    sizes = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "sample_size": 8, "in_channels": 4}
    texts = {"joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 10}
    return diffusers.SD3Transformer2DModel(**sizes | texts, out_channels=4, pos_embed_max_size=8)


def pixart(**settings) -> nn.Module:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "sample_size": 8, "in_channels": 4}
    texts = {"cross_attention_dim": 24, "caption_channels": 12}
    return diffusers.PixArtTransformer2DModel(**sizes | texts | {"out_channels": 8, "norm_num_groups": 4} | settings)


def sana(**settings) -> nn.Module:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "in_channels": 4}
    texts = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16}
    return diffusers.SanaTransformer2DModel(**sizes | texts, out_channels=4, caption_channels=12, **settings)


def texts(*names: str) -> dict[str, torch.Tensor]:
    shapes = {"encoder_hidden_states": (6, 12), "pooled_projections": (10,), "encoder_attention_mask": (6,)}
    generator = torch.Generator().manual_seed(2)
    made = {name: torch.randn(TEXTS + 1, *shapes[name], generator=generator) for name in names}
    if "encoder_attention_mask" in made:
        made["encoder_attention_mask"] = torch.arange(6).expand(TEXTS + 1, 6).lt(torch.tensor([[6], [4], [5], [1]])) * 1
    return made


def check_pipeline(folder: Path, run: dr.Model) -> None:
    """The pipeline in a folder, of 4 steps with 2 heavy calls, draws the run's images."""
    from dualrate.integrations.diffusers import DualRatePipeline

    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    images = DualRatePipeline.from_pretrained(folder)(class_labels=1, generator=seeds, output_type="np").images
    drawer = replace(dr.Choice(steps=4, heavy=2).drawer(run), label=1, precision="float32")
    np.testing.assert_allclose(images.transpose(0, 3, 1, 2), drawer.draw([0, 1]).images / 255, atol=1 / 255)
