"""Images as tokens from one end to the other: trained, read again, drawn; and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dualrate as dr
from dualrate.codecs.codec import round_trip
from dualrate.comparison.candidates import RunRequest, candidates_of
from dualrate.diffusion.categorical import Masked, Uniform
from dualrate.diffusion.random import Draws
from dualrate.drawing.likelihood import bits_per_token
from dualrate.experiment.experiment import Experiment
from dualrate.runs.store import load
from dualrate.sampling.ancestral import Reverse
from dualrate.sampling.catalogue import make_step
from dualrate.serving.offer import Offer
from dualrate.texts.codec import ColourLevels, GreyLevels
from dualrate.texts.networks import OneTransformer, TwoTransformers
from dualrate.texts.transformer import TokensConfig
from dualrate.training.config import FitConfig

NET = TokensConfig(5, 8, 8, channels=16, blocks=1, embedding=16, head_dim=16)
FIT = FitConfig(iterations=2, batch_size=4, precision="float32", sample_every=2, checkpoint_every=1)
ONE = Experiment("one", OneTransformer(NET), dr.DenoisingConfig(), FIT, process=Masked(), codec=GreyLevels(4))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dr.Model:
    root = tmp_path_factory.mktemp("tokens")
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    np.savez(root / "images.npz", images=images)
    networks, method = (
        TwoTransformers(NET, replace(NET, channels=8, head_dim=8)),
        dr.DenoisingConfig(dr.TimeSampler()),
    )
    experiment = replace(
        ONE, name="two", networks=networks, method=method, data=dr.DataConfig(str(root / "images.npz"))
    )
    dr.train(experiment, Path(root / "two"))
    return load(root / "two")


def test_a_run_draws_images_of_its_levels_by_the_step_of_tokens(model):
    drawer = dr.Choice(steps=4).drawer(model, batch_size=2)
    assert drawer.step == Reverse(Masked())
    images = drawer.draw(range(3)).images
    assert images.shape == (3, 1, 8, 8)
    assert set(np.unique(images)) <= {0, 85, 170, 255}
    assert len(np.unique(images)) > 1
    assert np.array_equal(drawer.draw([2]).images[0], images[2])
    assert (drawer.cost.heavy_calls, drawer.cost.light_calls) == (4, 0)  # of at least 4 heavy calls


def test_comparing_and_serving_try_the_step_of_tokens_alone(model):
    request = RunRequest.parse(str(model.path))
    models = {request.run: model}
    found = candidates_of([request], models)
    assert {one.sampler for one in found} == {"ancestral"}
    assert len({one.plan for one in found}) > 3
    assert found[0].drawer(model).step == Reverse(Masked())
    assert Offer(model).offered.samplers == {"ancestral": True}
    for asked in ("ddim", "sde-dpm++2m"):
        with pytest.raises(ValueError, match=r"is for a Gaussian(Process|Noise), not Masked"):
            candidates_of([RunRequest.parse(f"{model.path}@{asked}")], models)


def test_bits_of_a_token_are_bounded(model):
    drawer = dr.Choice(steps=4).drawer(model, batch_size=2)
    found = bits_per_token(drawer, model.experiment.data.images("test"), count=2)
    assert 1 < found.total.value < 4  # of 4 levels, by a model that is hardly trained
    assert found.steps == found.total


def test_samplers_of_other_processes_are_refused(model):
    with pytest.raises(ValueError, match=r"DDIM is for a Gaussian(Process|Noise), not Masked.*: use ancestral"):
        dr.Choice(sampler="ddim").drawer(model)
    with pytest.raises(ValueError, match="gamma mean nothing to Masked"):
        make_step("ancestral", Masked(), gamma=0.3)


def test_levels_are_kept_and_others_go_to_the_nearest():
    codec = GreyLevels(4).build(torch.nn.ModuleDict(), "cpu")
    images = torch.tensor([-1.0, -0.7, -0.6, 1.0]).view(1, 1, 2, 2)
    tokens = codec.encode(images).mean
    assert tokens.shape == (1, *codec.latent_shape((1, 2, 2)))
    assert tokens.argmax(1).flatten().tolist() == [0, 0, 1, 3]
    assert tokens.sum(1).flatten().tolist() == [1] * 4
    again = round_trip(codec, images, Draws(0, torch.arange(1)))
    torch.testing.assert_close(again.flatten(), torch.tensor([-1, -1, -1 / 3, 1]))
    assert codec.image_shape((5, 2, 2)) == (1, 2, 2)
    with pytest.raises(ValueError, match="set --data"):
        codec.latent_shape((3, 2, 2))
    with pytest.raises(ValueError, match="5 categories"):
        codec.image_shape((4, 2, 2))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"process": Uniform()}, "mask False"),
        ({"process": dr.GaussianProcess(Masked().schedule)}, "categorical process"),
        ({"codec": GreyLevels(5)}, "6 categories"),
    ],
)
def test_what_does_not_fit_is_refused(change, problem):
    with pytest.raises(ValueError, match=problem):
        replace(ONE, **change)
    assert replace(ONE, process=Uniform(), codec=GreyLevels(5, mask=False)).shape == (5, 8, 8)


def test_colours_are_tokens_that_come_back():
    """A token is a channel of a pixel: V categories, three times the rows; 256 levels lose nothing."""
    pixels = torch.randint(0, 256, (2, 3, 4, 8), generator=torch.Generator().manual_seed(0))
    images = pixels.double() / 127.5 - 1
    codec = ColourLevels(256).build(torch.nn.ModuleDict(), "cpu")
    assert codec.latent_shape((3, 4, 8)) == (257, 12, 8)
    assert codec.image_shape((257, 12, 8)) == (3, 4, 8)
    tokens = codec.encode(images).mean
    assert tokens.shape == (2, 257, 12, 8)
    assert bool((tokens.sum(1) == 1).all())
    for channel in range(3):
        assert torch.equal(tokens.argmax(1)[:, 4 * channel : 4 * channel + 4], pixels[:, channel])
    torch.testing.assert_close(codec.decode(tokens, Draws(0, torch.arange(2))), images.float())


@pytest.mark.parametrize("two", [False, True])
def test_a_run_of_colours_draws_colours(tmp_path, two):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    net = replace(NET, height=24, patch=2)
    networks = TwoTransformers(net, net.lighter()) if two else OneTransformer(net)
    method = dr.DenoisingConfig(dr.TimeSampler()) if two else dr.DenoisingConfig()
    colours = replace(ONE, networks=networks, method=method, codec=ColourLevels(4))
    dr.train(replace(colours, data=dr.DataConfig(str(tmp_path / "images.npz"))), tmp_path / "run")
    images = dr.Choice(steps=4).drawer(load(tmp_path / "run"), batch_size=2).draw(range(3)).images
    assert images.shape == (3, 3, 8, 8)
    assert set(np.unique(images)) <= {0, 85, 170, 255}
    assert len(np.unique(images[:, 0] != images[:, 1])) == 2  # channels have tokens of their own


def test_what_is_not_of_colours_is_refused():
    grey, colour = (codec.build(torch.nn.ModuleDict(), "cpu") for codec in (GreyLevels(4), ColourLevels(4)))
    with pytest.raises(ValueError, match=r"GreyLevels are tokens of 1 channel.*got 3"):
        grey.latent_shape((3, 8, 8))
    with pytest.raises(ValueError, match=r"ColourLevels are tokens of 3 channel.*got 1"):
        colour.latent_shape((1, 8, 8))
    with pytest.raises(ValueError, match="a multiple of 3"):
        replace(ONE, codec=ColourLevels(4))
