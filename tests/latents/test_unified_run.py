"""Unified Latents from images to images: a first stage, which is the codec of a second; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from latents.autoencoders import photos
from latents.tiny_stage import CODEC, FIT, LATENT, NETWORKS, PROCESS

import dualrate as dr
from dualrate.cli.data import size_of_latents
from dualrate.codecs.codec import Codec, CodecFolder, NoCodec, decoded, read_codec, round_trip, with_noise
from dualrate.codecs.diffusion import DiffusionCodec
from dualrate.config.serial import from_plain, to_plain
from dualrate.data.images import load_images, to_float, to_uint8
from dualrate.data.latent_set import encode
from dualrate.diffusion.process import GaussianProcess, NoisyEnd
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.experiment import Experiment, on_codec_of_data
from dualrate.experiment.teaching import teachers_network
from dualrate.methods.unified_latents import UnifiedLatentsConfig
from dualrate.networks.image_encoder import EncoderConfig, ImageEncoder
from dualrate.recipes import fashion_mnist_latents
from dualrate.runs.release import export
from dualrate.runs.store import load
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.cost import macs_of
from dualrate.sampling.trajectory import sample_batches


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("unified")
    np.savez(root / "images.npz", images=photos(40).transpose(0, 2, 3, 1))
    return root


@pytest.fixture(scope="module")
def experiment(root: Path) -> Experiment:
    data = dr.DataConfig(str(root / "images.npz"))
    return Experiment("first", NETWORKS, UnifiedLatentsConfig(), FIT, data, PROCESS, CODEC)


@pytest.fixture(scope="module")
def run(root: Path, experiment: Experiment) -> Path:
    dr.train(experiment, root / "first")
    return root / "first"


@pytest.fixture(scope="module")
def codec(run: Path) -> Codec:
    return read_codec(run)


@pytest.fixture(scope="module")
def images(root: Path) -> torch.Tensor:
    return to_float(load_images(root / "images.npz", split="train").images[:4])


@pytest.fixture(scope="module")
def latents(root: Path, run: Path) -> Path:
    encode(root / "images.npz", root / "latents", CodecFolder.at(run), mirrored=False)
    return root / "latents"


def test_a_first_stage_trains_all_of_its_networks_and_goes_on_as_if_it_had_not_stopped(
    root: Path, run: Path, experiment: Experiment
) -> None:
    assert (run / "samples" / "0000002.png").is_file()
    dr.train(replace(experiment, fit=replace(FIT, iterations=1)), root / "stopped")
    dr.train(experiment, root / "stopped")
    one, other = (load(path).networks.state_dict() for path in (run, root / "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    new = experiment.build()[0].state_dict()
    for network in ("encoder", "prior", "decoder"):
        assert any(not torch.equal(one[name], new[name]) for name in new if name.startswith(network))
    assert from_plain(Experiment, to_plain(experiment)) == experiment


def test_what_is_drawn_are_noisy_latents_decoded(run: Path) -> None:
    model = load(run)
    drawer = Drawer(model, Ancestral(model.process), dr.StepPlan.uniform(3), batch_size=2, precision="float32")
    drawn = drawer.draw(range(3)).images  # in batches of 2, each row with its own numbers
    z_0 = torch.cat(list(sample_batches(model.denoiser, drawer.step, drawer.plan, (2, 4, 4), range(3))))
    expected = to_uint8(model.codec.decode(z_0, Draws(0, torch.arange(3))))
    assert np.abs(drawn.astype(int) - expected.numpy()).max() <= 1
    cost = drawer.cost.calls
    z = torch.zeros(1, 2, 4, 4)
    call = macs_of(lambda: model.networks["decoder"](torch.zeros(1, 3, 16, 16), torch.zeros(1), z, None))
    assert cost.decode == 3 * call  # one call a step


def test_a_round_trip_noises_what_the_encoder_gives(codec: Codec, images: torch.Tensor) -> None:
    draws, mean = Draws(5, torch.arange(4)), codec.encode(images).mean
    assert codec.encode(images).log_var is None
    noisy = with_noise(codec, mean, draws)
    eps = (noisy - mean * 0.99665) / 0.08182  # sqrt of sigmoid(5) and of sigmoid(-5)
    torch.testing.assert_close(eps, draws.normal("z_0", 2, 4, 4), rtol=1e-3, atol=1e-3)
    assert torch.equal(round_trip(codec, images, draws), decoded(codec, noisy, draws))
    assert not torch.equal(codec.decode(mean, draws), codec.decode(noisy, draws))
    other = codec.decode(noisy, Draws(6, torch.arange(4)))
    assert not torch.equal(codec.decode(noisy, draws), other)  # the decoder draws


def test_the_decoder_draws_other_numbers_than_what_drew_the_latent(run: Path) -> None:
    seen: list[torch.Tensor] = []
    codec = load(run).codec
    assert isinstance(codec, DiffusionCodec)
    codec.networks["decoder"].register_forward_hook(lambda _, taken, out: seen.append(taken[0]))
    assert codec.decoding.plan.num_heavy == 1  # of z_0, whatever the steps
    draws = Draws(0, torch.arange(2))
    codec.decode(torch.zeros(2, 2, 4, 4), draws)
    assert not torch.isclose(seen[0], draws.normal("start", 3, 16, 16)).any()


@pytest.mark.parametrize("networks", [dr.OneNetwork(LATENT), dr.TwoNetworks(LATENT, LATENT)])
def test_latents_of_the_first_stage_train_a_second(root: Path, run: Path, latents: Path, networks) -> None:
    kind = type(networks).__name__
    base = Experiment(kind, networks, dr.DenoisingConfig(dr.TimeSampler()), FIT, dr.DataConfig(str(latents)), PROCESS)
    base = on_codec_of_data(base)
    dr.train(base, root / kind)
    first, model = load(run), load(root / kind)
    assert model.codec.fingerprint == first.codec.fingerprint
    assert model.image_shape == (3, 16, 16)
    drawer = Drawer(model, Ancestral(model.process), dr.StepPlan.uniform(2, 1), precision="float32")
    assert drawer.draw(range(2)).images.shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"log-SNR 5\.0, .* ends at None .*: give a NoisyEnd"):
        dr.train(replace(base, process=GaussianProcess(Cosine())), root / "clean")


def test_released_weights_are_the_same_codec_but_for_their_rounding(root: Path, run: Path, images) -> None:
    export(run, root / "released")
    one, other = (read_codec(path).encode(images).mean for path in (run, root / "released"))
    torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


def test_another_state_of_the_run_is_another_codec(root: Path, run: Path) -> None:
    found = CodecFolder.at(run)
    changed = replace(load(run), networks=load(run).networks)
    with torch.no_grad():
        next(changed.networks["decoder"].parameters()).add_(1)
    assert changed.codec.fingerprint != found.fingerprint
    with torch.no_grad():
        next(load(run).networks["prior"].parameters()).add_(1)  # which is no part of it
    assert load(run).codec.fingerprint == found.fingerprint


def test_its_codec_is_looked_at_as_any_other(root: Path, codec: Codec) -> None:
    photographs = load_images(root / "images.npz", split="train")
    assert size_of_latents(codec, photographs, 16) > 0


CHANGES: dict[str, tuple[Callable[[Experiment], Experiment], str]] = {
    "another end": (lambda one: replace(one, process=NoisyEnd(Cosine(log_snr_max=10.0))), "log-SNR 10.0.* at 5"),
    "no noisy end": (lambda one: replace(one, process=GaussianProcess(Cosine())), "log-SNR None"),
    "another factor": (lambda one: replace(one, codec=replace(CODEC, factor=8)), "its factor is 4"),
    "no codec": (lambda one: replace(one, codec=NoCodec()), "NoCodec"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_parts_that_do_not_belong_together_are_refused(experiment: Experiment, change, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        change(experiment)


def test_a_first_stage_teaches_nobody_and_is_called_what_it_is(experiment: Experiment) -> None:
    with pytest.raises(ValueError, match=r"is a first stage of unified latents, of three networks \(encoder, prior"):
        teachers_network(experiment, "run")


def test_networks_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prior sees latents of \(4, 4, 4\)"):
        replace(NETWORKS, prior=replace(LATENT, image_channels=4))
    with pytest.raises(ValueError, match=r"decoder makes images of \(1, 16, 16\)"):
        replace(NETWORKS, decoder=replace(NETWORKS.decoder, image_channels=1))
    with pytest.raises(ValueError, match="no classes, got num_classes 3"):
        replace(NETWORKS, decoder=replace(NETWORKS.decoder, num_classes=3))
    with pytest.raises(ValueError, match="do not divide by 4"):
        replace(NETWORKS.encoder, image_size=18)


def test_other_shapes_are_no_images_and_no_latents_of_it(codec: Codec) -> None:
    assert codec.latent_shape((3, 16, 16)) == (2, 4, 4)
    with pytest.raises(ValueError, match=r"images of \(3, 16, 16\).*got \(1, 16, 16\)"):
        codec.latent_shape((1, 16, 16))
    with pytest.raises(ValueError, match=r"latents of \(2, 4, 4\).*got \(4, 4, 4\)"):
        codec.image_shape((4, 4, 4))


@pytest.mark.parametrize("patch", [1, 2])
def test_an_encoder_halves_at_every_level(patch: int) -> None:
    config = EncoderConfig(8, 1, 3, (4, 8), blocks=1, patch=patch)
    z = ImageEncoder(config)(torch.zeros(2, 1, 8, 8))
    assert z.shape[1:] == config.latent_shape == (3, 4 // patch, 4 // patch)


def test_the_recipes_fit_together() -> None:
    first, base, dual = fashion_mnist_latents.first(), fashion_mnist_latents.base(), fashion_mnist_latents.base_dual()
    assert first.shape == base.shape == dual.shape == (4, 7, 7)
    assert dual.networks.encoder == base.networks.model
    assert first.process == base.process
    assert first.codec.data_shape(first.shape) == (1, 28, 28)
