"""rFD, PSNR and bits a pixel of latents: closed forms, who is asked for them, and what `evaluate` says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from latents.autoencoders import photos
from latents.folding import Folding
from latents.tiny_stage import NETWORKS, first_stage, untrained
from theory.exact import GaussianMixture, OracleDenoiser

import dualrate as dr
from dualrate.codecs.codec import CodecFolder, Moments
from dualrate.data.condition_rows import HeldOut
from dualrate.data.conditions import Latent
from dualrate.data.images import ImageSet
from dualrate.diffusion.process import NoisyEnd
from dualrate.diffusion.schedule import Cosine
from dualrate.drawing.choice import Choice
from dualrate.drawing.latents import bits_per_pixel, latent_scores, nearness, prior_of
from dualrate.drawing.measure import measure
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneConditional
from dualrate.methods.denoising import DenoisingConfig
from dualrate.metrics.distances import GaussianStats, frechet_distance
from dualrate.metrics.evaluate import Evaluator, round_trips
from dualrate.metrics.features import Architecture, Card, FeatureNet
from dualrate.runs.store import load


def pictures(count: int) -> ImageSet:
    return ImageSet(photos(count), None, (), "photos")


@pytest.mark.parametrize(
    ("size", "nats", "lowest", "frames"), [(1.0, 2.5034, -1.0, 1), (0.5, 1.8202, -15.0, 1), (1.0, 2.5034, -1.0, 5)]
)
def test_bits_of_gaussian_latents_are_the_channels(size: float, nats: float, lowest: float, frames: int) -> None:
    """1/2 log(1 + s^2 e^5) a number of the latent, by the prior that knows them, wherever the schedule starts; of
    clips for each pixel of all frames."""
    generator = torch.Generator().manual_seed(0)

    class Gaussian(Folding):
        def encode(self, images: torch.Tensor) -> Moments:
            return Moments(size * torch.randn(len(images), 3, 4, 4, generator=generator))

    mixture = GaussianMixture.isotropic(torch.zeros(1, 48), size**2)
    process = NoisyEnd(Cosine(log_snr_min=lowest, log_snr_max=5.0))
    images = ImageSet(np.tile(photos(320), (1, frames, 1, 1)), None, (), "clips", frames_each=frames)
    found = bits_per_pixel(OracleDenoiser(mixture, process), process, Gaussian(""), images, 320)
    assert found.value == pytest.approx(48 * nats / math.log(2) / 256 / frames, abs=3 * found.error)
    assert found.error < 0.02 * found.value


def test_a_reconstruction_is_as_near_as_its_error(tmp_path: Path) -> None:
    class Off(Folding):
        def decode(self, x, draws):
            return super().decode(x, draws) + 10 / 127.5

    images = ImageSet(np.full((5, 3, 8, 8), 90, np.uint8), None, (), "grey")
    near = nearness([images.images], round_trips(Off(""), images, torch.arange(5)))
    assert near.value == pytest.approx(20 * math.log10(25.5), abs=0.2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """first, and of its latents base and decoder, all untrained; net: a judge."""
    root = tmp_path_factory.mktemp("scores")
    np.savez(root / "images.npz", images=photos(120).transpose(0, 2, 3, 1))
    first = first_stage(root / "images.npz")
    untrained(first, root / "first")
    codec, data = CodecFolder.at(root / "first"), dr.DataConfig(str(root / "images.npz"))
    decoder, base = OneConditional(NETWORKS.decoder, (2, 4, 4)), dr.OneNetwork(NETWORKS.prior)
    given = Latent(codec)
    untrained(Experiment("decoder", decoder, DenoisingConfig(), first.fit, data, condition=given), root / "decoder")
    untrained(Experiment("base", base, DenoisingConfig(), first.fit, data, first.process, codec), root / "base")
    return root


def test_the_prior_is_that_of_the_run_that_trained_the_codec(root: Path) -> None:
    first = load(root / "first", note=str)
    for name in ("first", "base", "decoder"):
        prior = prior_of(load(root / name, note=str))
        assert prior is not None
        assert prior.weights_hash == first.weights_hash
    moved = prior_of(load(root / "base", note=str).with_codec(root / "decoder"))  # a decoder of the same latents
    assert moved is not None
    assert moved.weights_hash == first.weights_hash


@pytest.fixture(scope="module")
def judge(root: Path) -> Evaluator[FeatureNet]:
    kind = Architecture(3, 16, 2, features=4)
    module = kind.build()
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    net = FeatureNet(Card("noise", "0" * 64, kind, "", None, 0, 1), module.eval().requires_grad_(False))
    given = load(root / "decoder", note=str).given
    assert isinstance(given, HeldOut)
    return Evaluator(net, pictures(20), given.images)


def test_a_model_of_latents_has_the_scores_of_its_codec_and_a_decoder_those_of_what_it_drew(root: Path, judge) -> None:
    seeds, found = range(10), {}
    for name in ("base", "decoder"):
        drawer = Choice(2, sampler="ddim").drawer(load(root / name, note=str), batch_size=4, precision="float32")
        measured = measure(drawer, seeds, judge)
        found[name] = drawer, measured, latent_scores(drawer, seeds, measured, [judge])
    drawer, _, base = found["base"]
    assert base.generated
    assert base.rfd == {"FD-noise": judge.reconstruction(10, drawer.model.codec)}
    assert (base.count, base.bits) == (10, found["decoder"][2].bits)
    drawer, measured, decoder = found["decoder"]
    before = judge.net.features(drawer.model.given.originals(torch.arange(10)))
    stats = [GaussianStats.of(features) for features in (measured.features["FD-noise"], before)]
    assert not decoder.generated
    assert decoder.rfd == {"FD-noise": frechet_distance(*stats)}
    assert measured.row.score.value == decoder.rfd["FD-noise"]
    members = replace(drawer, members=2)
    assert latent_scores(members, seeds, measured, [judge]).nearness == decoder.nearness
    others = Evaluator(judge.net, judge.reference, pictures(12))
    with pytest.raises(
        ValueError, match="decoder makes images of images/test, and FD-noise has the held-out images of"
    ):
        measure(drawer, seeds, others)
    lines = str(decoder).splitlines()
    assert lines[0] == "the table's distances are rFD"
    assert [word in line for word, line in zip(("rFD-noise ", "PSNR ", "bits a pixel"), lines[1:], strict=True)] == [
        True
    ] * 3
    assert "are gFD" in str(base).splitlines()[0]
    assert latent_scores(drawer, seeds, measured, [Evaluator(judge.net, judge.reference, None)]) is None
