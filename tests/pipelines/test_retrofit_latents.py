"""A model of diffusers with a VAE: it draws images, is retrofitted on its own latents, and is a pipeline again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli.command import call
from latents import autoencoders
from latents.autoencoders import photos
from pipelines.models import check_pipeline, dit, randomised
from pipelines.test_retrofit import saved, tiny_recipe

import dualrate as dr
from dualrate.codecs.codec import CodecFolder
from dualrate.pipelines import recipe as retrofit
from dualrate.pipelines.folder import read_folder
from dualrate.system.progress import Silent

PLAN = ("--steps", "4", "--heavy", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of a DiT on latents of 4 x 8 x 8, images of 3 classes, and their latents by its VAE and another."""
    root, images = tmp_path_factory.mktemp("retrofit-latents"), photos(40)
    np.savez(root / "images.npz", images=images.transpose(0, 2, 3, 1), labels=np.arange(40) % 3)
    net = randomised(dit(num_embeds_ada_norm=3))
    saved(root / "model", net, "transformer", vae=["diffusers", "AutoencoderKL"])
    autoencoders.saved(root / "model" / "vae", images)
    autoencoders.autoencoder("kl").save_pretrained(root / "other")
    with pytest.MonkeyPatch.context() as patch:
        for name, codec in (("latents", root / "model" / "vae"), ("by-other", root / "other")):
            how = ("--codec", codec, "--no-mirrored", "--device", "cpu")
            assert call(patch, "data", "encode", root / "images.npz", root / name, *how) == 0
    return root


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_recipe(monkeypatch)


def recipe(root: Path, data: str) -> retrofit.RetrofitRecipe:
    return retrofit.RetrofitRecipe(dr.DataConfig(str(root / data)), share=1.0)


def test_a_folder_with_a_vae_draws_images(root: Path) -> None:
    model = dr.load(root / "model")
    assert model.experiment.codec == CodecFolder.at(root / "model" / "vae")
    assert read_folder(root / "model").codec == root / "model" / "vae"
    assert (model.shape, model.image_shape, model.experiment.data.size) == ((4, 8, 8), (3, 16, 16), 16)
    drawer = dr.Drawer(model, dr.DDIM(model.process), dr.StepPlan.uniform(2))
    assert drawer.draw([0, 1]).images.shape == (2, 3, 16, 16)
    assert drawer.cost.calls.decode > 0


def test_retrofitted_on_its_latents_it_is_a_run_and_a_pipeline(root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out, pipe = tmp_path / "run", tmp_path / "pipe"
    options = ("--data.source", root / "latents", "--share", "1", "--fit.iterations", "2", "--device", "cpu")
    assert call(monkeypatch, "retrofit", root / "model", *options, "--out", out) == 0
    assert call(monkeypatch, "sample", out, "--num", "2", *PLAN, "--out", tmp_path / "images") == 0
    assert call(monkeypatch, "export", out, "--to", "diffusers", pipe, *PLAN[:4]) == 0
    capsys.readouterr()
    run = dr.load(out)
    assert run.image_shape == (3, 16, 16)
    check_pipeline(pipe, run)
    assert run.experiment.codec.fingerprint == CodecFolder.at(root / "model" / "vae").fingerprint


def test_images_and_latents_by_another_codec_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"it has a VAE.* are images: encode them first .*--codec .*vae\)"):
        recipe(root, "images.npz")(root / "model", Silent())
    with pytest.raises(ValueError, match=r"latents by another codec \(.*other\) than the model's, .*vae"):
        recipe(root, "by-other")(root / "model", Silent())
    alone = recipe(root, "by-other")(_without_vae(root), Silent())  # nothing says by which codec
    assert alone.codec == CodecFolder.at(root / "other")


def _without_vae(root: Path) -> Path:
    net = randomised(dit(num_embeds_ada_norm=3))
    return saved(root / "alone", net, "transformer")
