"""Diffusers' autoencoders by their rules: latents as their class says, images as by the direct path; the check."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from latents.autoencoders import autoencoder, photos, saved, unit_size
from torch import Tensor

from dualrate.cli.data import HIGH, LOW, size_of_latents
from dualrate.codecs.codec import CodecFolder, read_codec
from dualrate.data.images import ImageSet
from dualrate.diffusion.random import Draws
from dualrate.pipelines.autoencoder import RULES, Autoencoder

DRAWS = Draws(0, torch.arange(2))
KINDS = {
    "kl": (4, 0.3, 0.7),
    "tiny": (4, 0.1, 0.5),
    "dc": (8, 0.0, 0.41),
    "rae": (12, 0.0, 1.0),
}  # channels, shift, scale


def codec(kind: str) -> Autoencoder:
    """In float64, where only a wrong formula shows."""
    module = autoencoder(kind)
    made = Autoencoder(module, module.config, kind)
    made.module.double()
    return made


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.from_numpy(photos(2)).double() / 127.5 - 1


def raw_mean(kind: str, x: Tensor) -> Tensor:
    """A codec's own latent, as its class gives it."""
    output = codec(kind).module.encode((x + 1) / 2 if kind == "rae" else x)
    return {"kl": lambda: output.latent_dist.mode(), "tiny": lambda: output.latents}.get(kind, lambda: output.latent)()


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_normalised_as_the_class_says(kind: str, x: Tensor) -> None:
    channels, shift, scale = KINDS[kind]
    found = codec(kind).encode(x)
    assert torch.allclose(found.mean, (raw_mean(kind, x) - shift) * scale, rtol=0, atol=1e-9)
    assert (found.log_var is not None) == (kind == "kl")
    assert codec(kind).latent_shape((3, 16, 16)) == (channels, 8, 8) == tuple(found.mean.shape[1:])
    assert codec(kind).image_shape((channels, 8, 8)) == (3, 16, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_the_direct_path(kind: str, x: Tensor) -> None:
    made = codec(kind)
    direct = made.module.decode(raw_mean(kind, x)).sample
    direct = 2 * direct - 1 if kind == "rae" else direct
    back = made.decode(made.encode(x).mean, DRAWS)
    assert back.shape == x.shape
    assert torch.allclose(back, direct, rtol=1e-9, atol=1e-9)
    assert (made.decode(1.01 * made.encode(x).mean, DRAWS) - direct).norm() > 1e-4 * direct.norm()


def test_numbers_for_each_channel(x: Tensor) -> None:
    """raw = x std / scale + mean, as the pipelines of diffusers undo it."""
    made = codec("kl per channel")
    moments = made.encode(x)
    raw = made.module.encode(x).latent_dist
    mean, std = (x.new_tensor(one)[:, None, None] for one in ((0.1, -0.2), (2.0, 3.0)))
    assert torch.allclose(moments.mean * std / 0.7 + mean, raw.mean, atol=1e-9)
    assert moments.log_var is not None
    assert torch.allclose((moments.log_var / 2).exp() * std / 0.7, raw.std, atol=1e-9)


@pytest.mark.parametrize("kind", ["wan", "qwen"])
def test_an_image_is_a_video_of_one_frame(kind: str, x: Tensor) -> None:
    made = codec(kind)
    mean, std = (x.new_tensor(made.config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
    raw = made.module.encode(x[:, :, None]).latent_dist.mode()
    assert torch.allclose(made.encode(x).mean, (raw[:, :, 0] - mean) / std, atol=1e-9)
    direct = made.module.decode(raw).sample[:, :, 0]
    assert torch.allclose(made.decode(made.encode(x).mean, DRAWS), direct, rtol=1e-9, atol=1e-9)
    assert made.latent_shape((3, 16, 16)) == (16, 8, 8)


@pytest.mark.parametrize(
    ("name", "config", "factor", "colours"),
    [
        ("AutoencoderKL", {"block_out_channels": [128, 256, 512, 512], "in_channels": 3}, 8, 3),
        ("AutoencoderDC", {"encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024], "in_channels": 3}, 32, 3),
        ("AutoencoderKLWan", {"dim_mult": [1, 2, 4, 4], "patch_size": None, "in_channels": 3}, 8, 3),
        ("AutoencoderKLWan", {"dim_mult": [1, 2, 4, 4], "patch_size": 2, "in_channels": 12}, 16, 3),
    ],
)
def test_sides_and_colours_of_what_is_published(name: str, config: dict, factor: int, colours: int) -> None:
    """Sides of Stable Diffusion, DC-AE f32, Wan 2.1 and Wan 2.2, by what their configurations hold."""
    assert (RULES[name].factor(config), RULES[name].colours(config)) == (factor, colours)


def test_what_a_codec_cannot_take_is_refused() -> None:
    made = codec("kl")
    with pytest.raises(ValueError, match="multiples of 2, got 15 x 16"):
        made.latent_shape((3, 15, 16))
    with pytest.raises(ValueError, match="of C = 3, got 1"):
        made.latent_shape((1, 16, 16))
    with pytest.raises(ValueError, match="decodes 4 channels, got 8"):
        made.image_shape((8, 8, 8))
    with pytest.raises(ValueError, match="of side 16, got 32 x 32"):
        codec("rae").latent_shape((3, 32, 32))
    for wrong in ({"scaling_factor": None}, {"scaling_factor": 0}, {"latents_mean": (0.0,) * 4}):
        with pytest.raises(ValueError, match="cannot be normalised"):
            Autoencoder(autoencoder("kl"), {**autoencoder("kl").config, "shift_factor": None, **wrong}, "kl")
    with pytest.raises(ValueError, match="both a shift_factor and latents_mean"):
        Autoencoder(autoencoder("kl"), {**autoencoder("kl").config, "latents_mean": (0.0,), "latents_std": (1.0,)}, "")
    with pytest.raises(ValueError, match=r"class Linear.*AutoencoderKL"):
        Autoencoder(torch.nn.Linear(1, 1), {}, "x")


def test_a_folder_is_read_and_held_to_its_fingerprint(x: Tensor, tmp_path: Path) -> None:
    folder = saved(tmp_path / "vae", photos(32))
    found = CodecFolder.at(folder)
    read = found.read("cpu")
    original = unit_size(autoencoder("kl"), torch.from_numpy(photos(32)).float() / 127.5 - 1)
    assert read.fingerprint == Autoencoder(original, original.config, "").fingerprint
    assert not any(p.requires_grad for p in read.module.parameters())
    assert not read.module.training
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "scaling_factor": 2.0}))
    with pytest.raises(ValueError, match="is another one"):
        found.read("cpu")
    (folder / "config.json").write_text(json.dumps({**config, "latent_channels": None}))
    with pytest.raises(ValueError, match=r"config\.json: TypeError: unsupported operand"):
        found.read("cpu")
    (folder / "config.json").write_text(json.dumps(config))
    assert found.read("cpu").fingerprint == found.fingerprint
    weights = safetensors.torch.load_file(folder / "diffusion_pytorch_model.safetensors")
    safetensors.torch.save_file(
        {name: 1.01 * one for name, one in weights.items()}, folder / "diffusion_pytorch_model.safetensors"
    )
    with pytest.raises(ValueError, match="is another one"):
        found.read("cpu")
    weights.popitem()
    safetensors.torch.save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="lacks weights"):
        read_codec(folder)


def test_the_size_of_latents_shows_a_wrong_factor() -> None:
    images = ImageSet(photos(48), None, (), "photos")
    module = unit_size(autoencoder("kl"), torch.from_numpy(images.images).float() / 127.5 - 1)
    made = Autoencoder(module, module.config, "kl")
    right, scale = size_of_latents(made, images, 48), made.normalisation
    assert LOW < right < HIGH
    for factor in (0.5, 0.75, 1.33, 2.0):
        made.normalisation = replace(scale, std=tuple(factor * std for std in scale.std))
        assert size_of_latents(made, images, 48) == pytest.approx(right / factor, rel=0.05)
    made.normalisation = replace(scale, mean=tuple(mean + 2 for mean in scale.mean))
    assert size_of_latents(made, images, 48) > HIGH
