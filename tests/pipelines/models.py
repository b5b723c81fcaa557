"""Tiny networks of diffusers' own classes, with random weights that no part of them ignores."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dualrate as dr
from dualrate.pipelines.classes.catalogue import kind_of
from dualrate.pipelines.foreign import layout_of

diffusers = pytest.importorskip("diffusers")

TEXTS, TOKENS = 3, 6


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


def unet_text(**settings) -> nn.Module:
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "mid_block_type": None}
    ups = {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 12, "attention_head_dim": 2}
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return diffusers.UNet2DConditionModel(**blocks | ups | sizes | settings)


def sdxl() -> nn.Module:
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    return unet_text(**added, projection_class_embeddings_input_dim=10 + 6 * 4, use_linear_projection=True)


def inpainting() -> nn.Module:
    return unet_text(in_channels=9)


ROWS_OF = {"num_attention_heads": 2, "attention_head_dim": 8, "axes_dims_rope": (2, 2, 4), "joint_attention_dim": 12}


def flux(**settings) -> nn.Module:
    sizes = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "pooled_projection_dim": 10}
    return diffusers.FluxTransformer2DModel(**sizes | ROWS_OF | settings)


def qwen_image() -> nn.Module:
    return diffusers.QwenImageTransformer2DModel(**ROWS_OF, in_channels=16, out_channels=4, num_layers=2)


def ovis_image(**settings) -> nn.Module:
    sizes = {"in_channels": 16, "out_channels": 16, "num_layers": 1, "num_single_layers": 1}
    return diffusers.OvisImageTransformer2DModel(**sizes | ROWS_OF | settings)


def texts(net: nn.Module, rows: int = TEXTS, seed: int = 2) -> dict[str, torch.Tensor]:
    """Return what encoders might make of texts, of `TOKENS` tokens."""
    kind, generator = kind_of(type(net).__name__, net.config), torch.Generator().manual_seed(seed)
    made = {}
    for part in layout_of(kind, net.config, TOKENS, 8).parts:
        made[part.name] = torch.randn(rows, *part.shape, generator=generator)
        if part.mask:  # the first has all tokens
            made[part.name] = torch.arange(TOKENS).expand(rows, -1).lt(torch.tensor([[6], [4], [5]])[:rows]) * 1
    if "mask" in made:
        made["mask"] = (made["mask"] > 0) * 1.0
    return made


def prompted(net: nn.Module, scheduler=None, **settings) -> tuple[dr.Denoiser, dr.Cond]:
    """A denoiser, and three prompts for it where it takes such, else three labels."""
    scheduler = scheduler or diffusers.DDPMScheduler(clip_sample=False)
    if not kind_of(type(net).__name__, net.config).tokens:
        denoiser = dr.from_diffusers(net, scheduler, **settings)
        return denoiser, dr.Cond(torch.tensor([2, 0, 1]) if denoiser.network.num_classes else None)
    shape = {} if net.config.get("sample_size") else {"shape": (4, 8, 8)}
    denoiser = dr.from_diffusers(net, scheduler, negative=texts(net, 1, 3), tokens=TOKENS, **shape, **settings)
    return denoiser, dr.prompts(denoiser, texts(net))


class _Absent(ModuleType):
    """In the place of transformers, and of what needs them: classes that texts are read by, of which none is used."""

    def __init__(self, name: str, real: Any = None) -> None:
        super().__init__(name)
        self.real, self.__path__ = real, getattr(real, "__path__", [])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.__dict__[name] = getattr(self.real, name, None) or type(name, (), {})
        return self.__dict__[name]


def pipeline_class(module: str, name: str) -> Any:
    """A pipeline of diffusers, whose module wants transformers, be these here or not. Make a network before: where
    transformers are not here, its class cannot be imported for the first time from within this one.
    """
    module, loaders = f"diffusers.pipelines.{module}", "diffusers.loaders"
    if importlib.util.find_spec("transformers") is None and module not in sys.modules:
        with pytest.MonkeyPatch.context() as patched:
            patched.setitem(sys.modules, loaders, _Absent(loaders, importlib.import_module(loaders)))
            patched.setitem(sys.modules, "transformers", _Absent("transformers"))
            importlib.import_module(module)
    return getattr(importlib.import_module(module), name)


def check_pipeline(folder: Path, run: dr.Model) -> None:
    """The pipeline in a folder, of 4 steps with 2 heavy calls, draws the run's images."""
    from dualrate.pipelines.export import DualRatePipeline

    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    images = DualRatePipeline.from_pretrained(folder)(class_labels=1, generator=seeds, output_type="np").images
    drawer = replace(dr.Choice(steps=4, heavy=2).drawer(run), label=1, precision="float32")
    np.testing.assert_allclose(images.transpose(0, 3, 1, 2), drawer.draw([0, 1]).images / 255, atol=1 / 255)
