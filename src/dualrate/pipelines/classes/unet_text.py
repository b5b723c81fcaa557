"""The U-Net of Stable Diffusion 1 and 2, of their inpainting, and of SDXL.

A hole that is filled in stands beside the state: channels of a mask, 1 where the hole is, and of the latents of the
image without it. SDXL takes a pooled embedding and six numbers besides: the size before cropping, the corner at which
the image was cropped, and its size, each (height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dualrate.diffusion.context import Shape
from dualrate.pipelines.classes.kind import TEXT, Config, NetworkSpec, PromptPart, TextInputs

ADDED = ("text_embeds", "time_ids")
HOLE = ("mask", "masked_image_latents")
NUMBERS = 6


def channels(config: Config) -> int:
    """Channels of a state, without a hole beside it. Raises ValueError where something else is beside it."""
    seen, returned = config.get("in_channels", 4), config.get("out_channels", 4)
    if seen not in (returned, 2 * returned + 1):
        raise ValueError(
            f"this UNet2DConditionModel has in_channels {seen} and out_channels {returned}: known are as many, and "
            f"{2 * returned + 1}, with a mask and the latents of a masked image"
        )
    return returned


def prompt(config: Config, tokens: int, shape: Shape) -> tuple[PromptPart, ...]:
    width = config.get("cross_attention_dim", 1280)
    parts = [PromptPart(TEXT, (tokens, width if isinstance(width, int) else width[0]))]
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - NUMBERS * config["addition_time_embed_dim"]
        parts += [PromptPart(ADDED[0], (pooled,)), PromptPart(ADDED[1], (NUMBERS,), stays=True)]
    if config.get("in_channels", 4) != channels(config):
        parts += [PromptPart(HOLE[0], (1, *shape[1:]), stays=True), PromptPart(HOLE[1], shape, stays=True)]
    return tuple(parts)


def call(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, inputs: TextInputs) -> Tensor:
    hole = [inputs[name] for name in HOLE if name in inputs]
    added = {name: inputs[name] for name in ADDED if name in inputs} or None
    seen = torch.cat((state, *hole), 1)
    return net(seen, time, encoder_hidden_states=inputs[TEXT], added_cond_kwargs=added, return_dict=False)[0]


def encode(pipeline: Any, texts: Sequence[str], tokens: int) -> TextInputs:
    embeddings = pipeline.encode_prompt(
        prompt=list(texts),
        device=pipeline._execution_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
    )
    if len(embeddings) == 2:
        return {TEXT: embeddings[0]}
    side = pipeline.default_sample_size * pipeline.vae_scale_factor
    sizes = torch.tensor([[side, side, 0.0, 0.0, side, side]], device=embeddings[0].device)
    return {TEXT: embeddings[0], ADDED[0]: embeddings[2], ADDED[1]: sizes}


def negative(pipeline: Any, text: str | None, tokens: int) -> TextInputs:
    inputs = encode(pipeline, [text or ""], tokens)
    if text is None and ADDED[0] in inputs and pipeline.config.force_zeros_for_empty_prompt:  # SDXL
        return {**inputs, **{name: torch.zeros_like(inputs[name]) for name in (TEXT, ADDED[0])}}
    return inputs


KIND = NetworkSpec(
    call,
    channels=channels,
    prompt=prompt,
    tokens=77,
    encode=encode,
    negative=negative,
    settings={
        "time_embedding_type": ("positional",),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "addition_embed_type": (None, "text_time"),
        "encoder_hid_dim_type": (None,),
        "time_cond_proj_dim": (None,),
    },
    between=(
        "down_block_additional_residuals",
        "mid_block_additional_residual",
        "down_intrablock_additional_residuals",
    ),
)
