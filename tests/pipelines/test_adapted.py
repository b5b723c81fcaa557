"""Adapters by phase on a folder of diffusers: it stays as it is, and its library reads them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from pipelines.models import diffusers, dit, randomised, unet

from dualrate.codecs.codec import CodecFolder
from dualrate.data.latent_set import encode
from dualrate.networks.adapters import adapter_state, layers_of, merged
from dualrate.recipes.students import AdaptRecipe
from dualrate.runs.store import load


def test_a_folder_of_diffusers_is_adapted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = randomised(dit(in_channels=1, out_channels=1))
    net.save_pretrained(tmp_path / "theirs")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "theirs")
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(8) % 5)
    words = ("--images", tmp_path / "images.npz", "--rank", 2, "--fit.iterations", 2, "--out", tmp_path / "run")
    assert call(monkeypatch, "adapt", tmp_path / "theirs", *words) == 0
    theirs = load(tmp_path / "run").networks["model"].net.net
    bare, before = merged(theirs, None).state_dict(), net.state_dict()
    assert all(torch.equal(bare[name], before[name]) for name in before)
    assert all(layer.update("phase-2").any() for layer in layers_of(theirs).values())
    names = {"transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.2", "transformer_blocks.1.norm1.linear"}
    assert {f"{name}.lora_B.weight" for name in names} <= adapter_state(theirs, "phase-1").keys()
    assert call(monkeypatch, "sample", tmp_path / "run", "--num", 1, "--out", tmp_path / "out") == 0


def test_a_folder_without_a_null_class_drops_no_labels(tmp_path: Path) -> None:
    randomised(unet(in_channels=1, out_channels=1, num_class_embeds=5)).save_pretrained(tmp_path / "theirs")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "theirs")
    found = load(tmp_path / "theirs").experiment
    assert (found.networks.null_class, found.method.drops_labels) == (False, False)
    assert AdaptRecipe(images="images.npz")(tmp_path / "theirs").method.label_dropout == 0


def test_a_folder_of_latents_is_adapted_to_latents(tmp_path: Path) -> None:
    """They have a size of their own, whatever that of the images is."""
    folder, sizes = tmp_path / "theirs", {"in_channels": 1, "out_channels": 1, "latent_channels": 2}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = diffusers.AutoencoderKL(**sizes, **blocks, block_out_channels=(4, 4), norm_num_groups=4, sample_size=16)
    vae.save_pretrained(folder / "vae")
    randomised(unet(in_channels=2, out_channels=2)).save_pretrained(folder / "unet")
    diffusers.DDPMScheduler().save_pretrained(folder / "scheduler")
    parts = {"unet": "UNet2DModel", "vae": "AutoencoderKL", "scheduler": "DDPMScheduler"}
    index = {"_class_name": "LDMPipeline", **{name: ["diffusers", kind] for name, kind in parts.items()}}
    (folder / "model_index.json").write_text(json.dumps(index))
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    encode(tmp_path / "images.npz", tmp_path / "latents", CodecFolder.at(folder / "vae"), device="cpu", batch_size=8)
    made = AdaptRecipe(images=str(tmp_path / "latents"))(folder)
    assert len(made.data.load("train")) == 18
