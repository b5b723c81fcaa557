"""A pipeline of a model of latents: its vae decodes them, is saved, checked and cast, and may be another one."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported
pytest.importorskip("diffusers")

import torch
from latents.autoencoders import autoencoder, photos, saved
from latents.folding import NoisyFolder
from runs import made
from trouble import flip_each

import dualrate as dr
from dualrate.codecs.codec import CodecFolder
from dualrate.data.conditions import Latent
from dualrate.data.images import to_uint8
from dualrate.diffusion.random import Draws
from dualrate.experiment.network_configs import OneConditional
from dualrate.pipelines.export import DualRatePipeline
from dualrate.pipelines.hub import export_pipeline

SEEDS, CHOICE = [3, 2**40], dr.Choice(steps=4, heavy=2)
NET = replace(made.NET, image_channels=4)


def quiet(pipe: DualRatePipeline) -> DualRatePipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: DualRatePipeline, kind: str):
    return pipe(generator=[torch.Generator().manual_seed(seed) for seed in SEEDS], output_type=kind).images


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on latents of 4 x 8 x 8, and its pipeline; the codec that training found is gone."""
    place = tmp_path_factory.mktemp("latent-pipeline")
    codec = CodecFolder.at(saved(place / "codec", photos(32)))
    networks = replace(made.TWO.networks, encoder=NET, light=NET)
    made.saved(replace(made.TWO, networks=networks, codec=codec), place / "run")
    export_pipeline(place / "run", place / "pipe", CHOICE, note=lambda text: None)
    (place / "codec").rename(place / "vae")
    return place


@pytest.fixture(scope="module")
def pipe(place: Path) -> DualRatePipeline:
    return quiet(DualRatePipeline.from_pretrained(place / "pipe"))


def test_images_are_those_of_the_run(place: Path, pipe: DualRatePipeline) -> None:
    model = dr.load(place / "run", note=lambda text: None).with_codec(place / "vae")
    drawer = CHOICE.drawer(model, precision="float32")
    labels = drawer.labels(SEEDS)
    latents = next(dr.sample_batches(drawer.denoiser, drawer.step, drawer.plan, (4, 8, 8), SEEDS, labels))
    assert torch.equal(drawn(pipe, "latent"), latents)
    images = drawn(pipe, "pt")
    assert images.shape == (2, 3, 16, 16)
    assert torch.equal(to_uint8(2 * images - 1), torch.from_numpy(drawer.draw(SEEDS).images))
    assert drawn(pipe, "pil")[0].size == (16, 16)
    assert torch.equal(pipe(latents=Draws(0, torch.tensor(SEEDS)).normal("start", 4, 8, 8), output_type="latent",
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS]).images, latents)  # fmt: skip


def test_it_says_nothing_of_where_training_was(place: Path, pipe: DualRatePipeline, tmp_path: Path) -> None:
    assert str(place) not in (place / "pipe" / "encoder" / "config.json").read_text()
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    files = {file.relative_to(place / "pipe") for file in (place / "pipe").rglob("*")} - {Path("README.md")}
    assert files == {file.relative_to(tmp_path) for file in tmp_path.rglob("*")}
    assert torch.equal(drawn(quiet(DualRatePipeline.from_pretrained(tmp_path)), "pt"), drawn(pipe, "pt"))


def test_a_flipped_bit_of_the_vae_is_an_error_that_names_the_folder(place: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(place / "pipe", tmp_path / "pipe")
    for file in flip_each([file for file in (damaged / "vae").iterdir() if file.is_file()]):
        with pytest.raises(OSError, match=rf"{file.parent} is damaged \("):
            DualRatePipeline.from_pretrained(damaged)


def test_in_bfloat16_the_vae_stays_in_float32_unless_it_is_cast(place: Path, pipe: DualRatePipeline) -> None:
    half = quiet(DualRatePipeline.from_pretrained(place / "pipe", dtype=torch.bfloat16))
    assert (half.vae.dtype, half.light.dtype) == (torch.float32, torch.bfloat16)
    whole = drawn(pipe, "pt")
    assert (drawn(half, "pt") - whole).abs().mean() < 0.05
    half.to(torch.bfloat16)
    assert half.vae.dtype == torch.bfloat16
    assert (drawn(half, "np") - whole.permute(0, 2, 3, 1).numpy()).__abs__().mean() < 0.05
    assert pipe.vae.dtype == torch.float32  # no pipeline shares its vae


def test_another_vae_is_told_and_one_that_does_not_fit_refused(pipe: DualRatePipeline) -> None:
    with pytest.warns(UserWarning, match="is not the one that made the model's latents"):
        other = quiet(DualRatePipeline(**{**pipe.components, "vae": autoencoder("tiny")}))
    assert torch.equal(drawn(other, "latent"), drawn(pipe, "latent"))
    assert drawn(other, "pt").shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="decodes 8 channels, got 4"):
        DualRatePipeline(**{**pipe.components, "vae": autoencoder("dc")})
    with pytest.raises(ValueError, match="draws latents: a pipeline of it has the vae"):
        DualRatePipeline(**{**pipe.components, "vae": None})


def test_a_pipeline_of_pixels_has_none(tmp_path: Path) -> None:
    pixels = DualRatePipeline.of(dr.load(made.saved(made.ONE, tmp_path / "run"), note=lambda text: None))
    with pytest.raises(ValueError, match="draws pixels: a pipeline of it has no vae"):
        DualRatePipeline(**{**pixels.components, "vae": autoencoder("kl")})


def test_a_decoder_has_no_pipeline(tmp_path: Path) -> None:
    networks = OneConditional(replace(NET, image_channels=3, num_classes=0), (12, 4, 4))
    given = Latent(NoisyFolder("a folder", "f" * 64))
    one = replace(made.ONE, networks=networks, method=dr.DenoisingConfig(), condition=given)
    decoder = dr.load(made.saved(one, tmp_path), note=lambda text: None)
    with pytest.raises(ValueError, match="is a conditional model, and a pipeline draws from noise alone"):
        DualRatePipeline.of(decoder)
