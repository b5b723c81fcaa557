"""ImageNet by Unified Latents: sizes of the paper, what the stages share, and calls counted without numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dualrate.cli import train
from dualrate.config.serial import from_plain, to_plain
from dualrate.denoisers.denoiser import Conditional
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneConditional
from dualrate.networks.image_encoder import EncoderConfig, ImageEncoder
from dualrate.recipes import imagenet as recipes
from dualrate.sampling.cost import call_cost, macs_of

GIGA = 132.05, 120.90, 356.96, 105.89  # multiply-adds of encoder, prior, decoder, base


def test_the_stages_fit_together_and_are_read_again_as_they_are():
    stages = train.STAGES["imagenet512-latents"]()
    assert stages.first.shape == stages.base.shape == (32, 32, 32)
    assert stages.first.codec.data_shape(stages.first.shape) == (3, 512, 512)
    for kind, experiment in (("first", stages.first), ("base", stages.base)):
        assert train.RECIPES[experiment.name]() == experiment
        assert experiment.name == f"{stages.name}-{kind}"
        assert from_plain(Experiment, json.loads(json.dumps(to_plain(experiment)))) == experiment


def test_the_last_level_of_an_encoder_may_have_blocks_of_its_own():
    config = EncoderConfig(16, 1, 2, (4, 4, 4), blocks=2, last_blocks=3)
    assert config.blocks_of_levels == (2, 2, 3)
    assert [len(level) for level in ImageEncoder(config).levels] == [2, 2, 3]
    assert EncoderConfig(16, 1, 2, (4, 4)).blocks_of_levels == (2, 2)


def test_calls_cost_what_the_page_says():
    """The prior by hand: 8 blocks of 12 x 1024 x 1024 weights at 1,024 positions, and 2 x 1,024 x 1,024 x 1024 each."""
    first, base = recipes.first(), recipes.base()
    with torch.device("meta"):
        (networks, prior), (_, model) = (one.networks.build(one.process) for one in (first, base))
        images, latent = torch.zeros(1, 3, 512, 512), first.shape
        decoder = Conditional(networks["decoder"], first.process)
        found = [
            macs_of(lambda: networks["encoder"](images)),
            call_cost(prior, latent, None, "meta").light,
            call_cost(decoder, (3, 512, 512), None, "meta", given=latent).light,
            call_cost(model, latent, 0, "meta").light,
        ]
    assert [one / 1e9 for one in found] == pytest.approx(GIGA, rel=1e-3)
    assert GIGA[1] * 1e9 == pytest.approx(8 * (12 * 1024**3 + 2 * 1024**3), rel=0.01)


def test_decoders_are_of_the_first_stages_latents(monkeypatch):
    first, made = recipes.first(), SimpleNamespace(latents="a" * 64, latent_shape=lambda image: (32, 32, 32))
    monkeypatch.setattr("dualrate.codecs.codec.read_codec", lambda folder, *how: made)
    heavy, light, dual = (recipes.ImageNetDecoder(kind, Path("here"))() for kind in ("heavy", "light", "dual"))
    assert heavy.networks.model == dual.networks.encoder == first.networks.decoder
    assert light.networks.model == dual.networks.light
    for one in (heavy, light, dual):
        assert one.networks.given == first.shape
        assert (one.shape, one.process) == ((3, 512, 512), first.codec.process)
        assert one.data == first.data
    assert dual.serves.default_heavy(16) == 1


def test_a_light_decoder_costs_what_the_page_says():
    with torch.device("meta"):
        decoder = OneConditional(recipes.LIGHT_DECODER, (32, 32, 32)).build(recipes.IMAGE_PROCESS)[1]
        cost = call_cost(decoder, (3, 512, 512), None, "meta", given=(32, 32, 32)).light
        assert cost / 1e9 == pytest.approx(47.5, rel=0.01)
