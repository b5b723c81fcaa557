"""A pipeline's folder whose text encoders are a stub: transformers is not wanted."""

import zlib
from pathlib import Path

import pytest
import torch
from latents import autoencoders
from pipelines.models import diffusers, randomised, unet_text
from pipelines.test_retrofit import saved

from dualrate.pipelines import text_encoders as text_folder

TOKENS, WIDTH = 77, 12


def embedding(text: str) -> torch.Tensor:
    """(77, 12) of a text: some numbers that are its own."""
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))


class Encoders:
    """As a StableDiffusionPipeline encodes; it counts the texts."""

    _execution_device = "cpu"

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.components, self.texts = {"text_encoder": folder}, 0

    def to(self, device: str) -> "Encoders":
        return self

    def encode_prompt(self, prompt, negative_prompt=None, **_):
        self.texts += len(prompt)
        made = torch.stack([embedding(text) for text in prompt])
        return made, torch.stack([embedding(text) for text in negative_prompt or [""] * len(prompt)])


def encoders(patch: pytest.MonkeyPatch) -> list[Encoders]:
    """All that are read from now on."""
    read: list[Encoders] = []

    def stub(folder: Path, dtype: torch.dtype) -> Encoders:
        read.append(Encoders(folder, dtype))
        return read[-1]

    text_folder._pipeline.cache_clear()
    patch.setattr(text_folder, "read_pipeline", stub)
    return read


def as_it_is(denoiser, process):
    """A way to call networks, by its name."""
    return denoiser


def text_pipeline(folder: Path, images) -> Path:
    """A pipeline of a text U-Net on latents of 4 x 8 x 8, with a VAE and files of a text encoder."""
    net, parts = randomised(unet_text()), {"vae": ["diffusers", "AutoencoderKL"]}
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    saved(folder, net, "unet", scheduler, **parts, text_encoder=["transformers", "CLIPTextModel"])
    autoencoders.saved(folder / "vae", images)
    for part in ("text_encoder", "tokenizer"):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text("{}")
    return folder
