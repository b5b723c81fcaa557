"""Latents of clips: the exact bits of a linear-Gaussian clip, pieces that make the whole, two rates, and the recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dualrate as dr
from dualrate.codecs.codec import round_trip
from dualrate.codecs.diffusion import Decoding, DiffusionDecoding
from dualrate.comparison.yardstick import Yardstick
from dualrate.data.images import ImageSet, load_images, to_float
from dualrate.data.latent_set import read_latents
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.context import Cond
from dualrate.diffusion.process import NoisyEnd
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Elbo
from dualrate.drawing.samples import write_samples
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Stages, on_codec_of_data
from dualrate.experiment.modality import maker_of
from dualrate.forecasts.clip_networks import (
    ClipEncoderConfig,
    ClipLatents,
    ClipPrior,
    OneClipDecoder,
    TwoClipDecoders,
    TwoClipPriors,
    leads_of,
)
from dualrate.forecasts.clip_recipe import ClipBase, ClipDecoder, ClipStages, of_latent, piece_decoder
from dualrate.forecasts.clip_set import Cut, prepare_clips
from dualrate.methods.unified_latents import bound, end
from dualrate.recipes import fashion_mnist
from dualrate.recipes.students import StudentRecipe, dual_student
from dualrate.runs.store import load
from dualrate.runs.train import in_stages, train
from dualrate.sampling.trajectory import StepNoise, rollout
from dualrate.serving.offer import Offer
from dualrate.training.config import FitConfig

SIDE, FRAMES, PIECES, COLOURS, CHANNELS = 16, 4, 2, 3, 2
OF_PIECE = FRAMES // PIECES * COLOURS


# Exact bits


@dataclass(frozen=True)
class Jointly(Denoiser):
    """The exact E[z | z_t] of latents z = (z^1 ... z^K) ~ N(0, covariance), one number each."""

    process: dr.GaussianProcess
    covariance: Tensor
    reuse: dr.Reuse = dr.Reuse.FREE

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> dr.Context:
        return dr.Context()

    def denoise(self, z: Tensor, t: Tensor, context: dr.Context, cond: Cond) -> Tensor:
        scale, noise = (part[:, None, None] for part in self.process.scales(t))
        spread = scale**2 * self.covariance + noise**2 * torch.eye(len(self.covariance), dtype=torch.float64)
        flat = z.flatten(1)[..., None]
        return (scale * self.covariance @ torch.linalg.solve(spread, flat))[..., 0].view_as(z)


def nats_of(covariance: Tensor, seen: Tensor) -> float:
    """The bound of latents of this covariance by the exact prior of another, whatever was drawn: errors are quadratic,
    so signs stand for normal numbers."""
    process, count = NoisyEnd(Cosine(-12.0, 5.0)), 2000
    size = len(covariance)
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    signs = torch.stack(torch.meshgrid(*[ends] * (2 * size), indexing="ij"), -1).view(-1, 2 * size).repeat(count, 1)
    t = ((torch.arange(count, dtype=torch.float64) + 0.5) / count).repeat_interleave(4**size)
    z = (signs[:, :size] @ torch.linalg.cholesky(covariance).T)[..., None, None]
    nats = bound(Jointly(process, seen), process, z, t, signs[:, size:, None, None], Cond(), Elbo())
    return float((nats + end(process, z)).mean())


def capacity(covariance: Tensor) -> float:
    """I(z_0; z) = 1/2 log det(1 + e^5 S)"""
    return 0.5 * float(torch.logdet(torch.eye(len(covariance)) + math.exp(5.0) * covariance))


def test_bits_of_a_linear_gaussian_clip_are_exact_and_fewer_than_latent_by_latent() -> None:
    """Frames of a process that forgets a half each; a latent is the mean of two. By a prior of each latent alone the
    bound is the sum of their own, more by what latents tell of each other."""
    frames = 0.5 ** (torch.arange(4)[:, None] - torch.arange(4)).abs().double()
    encoder = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.float64) / math.sqrt(3)
    latents = encoder @ frames @ encoder.T
    torch.testing.assert_close(latents.diagonal(), torch.ones(2, dtype=torch.float64))
    assert nats_of(latents, latents) == pytest.approx(capacity(latents), rel=1e-4)
    alone = torch.diag(latents.diagonal())
    assert nats_of(latents, alone) == pytest.approx(capacity(alone), rel=1e-4)
    assert capacity(alone) - capacity(latents) > 0.05


# Pieces and rates


def of_clips(pieces: int, frames: int) -> ClipLatents:
    encoder = ClipEncoderConfig(SIDE, OF_PIECE, CHANNELS, (24,), frames=frames, pieces=pieces)
    return ClipLatents(encoder, of_latent(CHANNELS, 96, 1), piece_decoder(SIDE, OF_PIECE, "light"))


def alive(network: nn.Module) -> None:
    """Parameters away from 0, where heads begin."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)


PROCESS = NoisyEnd(Cosine(log_snr_max=5.0))


@pytest.mark.parametrize("side", [16, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 4, 12, 48, 96])
def test_a_decoder_has_room_for_every_number_that_it_sees(side: int, channels: int) -> None:
    """Less leaves noise in what it makes, however long it trains."""
    heavy, light = (piece_decoder(side, channels, size) for size in ("heavy", "light"))
    assert all(config.levels[0].channels >= config.numbers for config in (heavy, light))
    assert [heavy.sides(i) for i in range(heavy.num_levels)] == [light.sides(i) for i in range(light.num_levels)]
    assert light.sides(light.num_levels - 1) == (8, 8)
    assert of_latent(channels, 48, 1).levels[0].channels >= channels


def test_a_clip_that_is_decoded_in_pieces_is_the_whole() -> None:
    whole, _ = of_clips(PIECES, FRAMES).build(PROCESS)
    piece, _ = of_clips(1, FRAMES // PIECES).build(PROCESS)
    alive(whole)
    for name in ("encoder", "decoder"):
        piece[name].load_state_dict(whole[name].state_dict())
    clips = torch.randn(3, FRAMES * COLOURS, SIDE, SIDE)
    latents = whole["encoder"](clips)
    parts = [piece["encoder"](part) for part in clips.chunk(PIECES, 1)]
    torch.testing.assert_close(latents, torch.cat(parts, 1))
    assert latents.shape == (3, PIECES * CHANNELS, 8, 8)

    def decoded(networks: nn.ModuleDict, channels: int, start: Tensor, z_0: Tensor) -> Tensor:
        config = DiffusionDecoding(channels=channels, factor=2)
        decoding = Decoding.by(config.decoder(networks), config.process, "dpm++2m", 4)
        shape = (channels, SIDE, SIDE)
        noise = StepNoise(config.process, Draws(0, torch.arange(len(start))), 4, shape)
        with torch.no_grad():
            return rollout(decoding.decoder, decoding.step, decoding.plan, start, Cond(given=z_0), noise)

    start = torch.randn(3, FRAMES * COLOURS, SIDE, SIDE)
    made = decoded(whole, FRAMES * COLOURS, start, latents)
    by_piece = zip(start.chunk(PIECES, 1), latents.chunk(PIECES, 1), strict=True)
    torch.testing.assert_close(made, torch.cat([decoded(piece, OF_PIECE, *part) for part in by_piece], 1))
    torch.testing.assert_close(made.chunk(PIECES, 1)[0].shape, (3, OF_PIECE, SIDE, SIDE))


def test_latents_see_each_other_in_the_prior_alone() -> None:
    networks, prior = of_clips(PIECES, FRAMES).build(PROCESS)
    alive(networks)
    z = torch.randn(2, PIECES * CHANNELS, 8, 8, requires_grad=True)
    t = torch.full((2,), 0.5, dtype=torch.float64)
    x_hat = prior.denoise(z, t, prior.encode(z, t, Cond()), Cond())
    (gradient,) = torch.autograd.grad(x_hat[:, :CHANNELS].sum(), z)
    assert (gradient[:, CHANNELS:] != 0).any()
    y = torch.randn(2, PIECES * CHANNELS, 8, 8, requires_grad=True)
    x = torch.randn(2, FRAMES * COLOURS, SIDE, SIDE)
    (gradient,) = torch.autograd.grad(networks["decoder"](x, torch.zeros(2), y, None)[:, :OF_PIECE].sum(), y)
    assert (gradient[:, :CHANNELS] != 0).any()
    assert not gradient[:, CHANNELS:].any()


def test_either_network_of_a_pair_is_that_of_one_rate() -> None:
    """The heavy one by its head, and the light one without a context, have the bits of single-rate models with their
    weights; a context is of all latents, and each of them counts for every other."""
    heavy, light, leads = of_latent(CHANNELS, 96, 1, 3), of_latent(CHANNELS, 48, 1, 3), leads_of(PIECES)
    pair = TwoClipPriors(heavy, light, leads, FRAMES)
    networks, dual = pair.build(PROCESS)
    alive(networks)
    z, t, tau = (
        torch.randn(3, PIECES * CHANNELS, 8, 8),
        *torch.tensor([[0.3], [0.6]], dtype=torch.float64).expand(-1, 3),
    )
    cond = Cond(torch.tensor([0, 1, 2]))
    assert pair.shape == z.shape[1:]

    def alone(role: str, t: Tensor) -> Tensor:
        single = ClipPrior(getattr(pair, role), leads, FRAMES)
        model, prior = single.build(PROCESS)
        model["model"].load_state_dict(pair.backbone(networks, role).state_dict())
        return prior.denoise(z, t, prior.encode(z, t, cond), cond)

    with torch.no_grad():
        torch.testing.assert_close(dual.encode(z, tau, cond).x_hat, alone("encoder", tau))
        torch.testing.assert_close(dual.denoise(z, t, dr.Context(), cond), alone("light", t))
        context = dual.encode(z, tau, cond)
        rows = [Cond(torch.tensor([i])) for i in range(3)]
        one_by_one = [dual.encode(z[i : i + 1], tau[:1], rows[i]) for i in range(3)]
        together = dual.denoise(z, t, context.aged(), cond)
        for i, each in enumerate(one_by_one):
            x_hat = dual.denoise(z[i : i + 1], t[:1], each.aged(), rows[i])
            torch.testing.assert_close(together[i : i + 1], x_hat, atol=1e-5, rtol=1e-4)
    seen = z.clone().requires_grad_()
    x_hat = dual.denoise(z, t, dual.encode(seen, tau, cond).aged(), cond)
    (gradient,) = torch.autograd.grad(x_hat[:, :CHANNELS].sum(), seen)
    assert (gradient[:, CHANNELS:] != 0).any()
    assert isinstance(ClipPrior(heavy, leads, FRAMES).beside(None, "base"), TwoClipPriors)


LATENTS = PIECES * CHANNELS, 8, 8


def decoders_of(kind: str) -> OneClipDecoder | TwoClipDecoders:
    """Decoders of clips at one rate or two."""
    of_clip: Any = {"frames": FRAMES, "leads": leads_of(PIECES)}
    light, heavy = piece_decoder(SIDE, OF_PIECE, "light"), piece_decoder(SIDE, OF_PIECE, "heavy")
    if kind == "one":
        return OneClipDecoder(light, LATENTS, **of_clip)
    return TwoClipDecoders(heavy, light, LATENTS, **of_clip)


@pytest.mark.parametrize("kind", ["one", "two"])
def test_networks_of_decoders_predict_x(kind: str) -> None:
    """Their heads are 0 at first, and so is x_hat, whatever the noise."""
    _, decoder = decoders_of(kind).build(dr.GaussianProcess(Cosine()))
    y, z = torch.randn(2, *LATENTS), torch.randn(2, FRAMES * COLOURS, SIDE, SIDE)
    for time in (0.0, 0.3, 1.0):
        t = torch.full((2,), time, dtype=torch.float64)
        x_hat = decoder.denoise(z, t, decoder.encode(z, t, Cond(given=y)), Cond(given=y))
        torch.testing.assert_close(x_hat, torch.zeros_like(z), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["one", "two"])
def test_members_of_a_clip_are_those_of_its_latents(kind: str) -> None:
    """Two samples of each of two clips, in a call and one by one; the heavy network is called once a latent."""
    config, process = decoders_of(kind), dr.GaussianProcess(Cosine())
    networks, decoder = config.build(process)
    alive(networks)
    y, z = torch.randn(2, *LATENTS), torch.randn(4, FRAMES * COLOURS, SIDE, SIDE)
    assert config.shape == z.shape[1:]

    def made(z: Tensor, y: Tensor) -> Tensor:
        t = torch.full((len(z),), 0.5, dtype=torch.float64)
        context = decoder.encode(z, t, Cond(given=y))
        assert all(len(level) == len(y) for level in context.features)
        with torch.no_grad():
            return decoder.denoise(z, t, context, Cond(given=y))

    together = made(z, y)
    for member in range(2):
        torch.testing.assert_close(together[member::2], made(z[member::2], y), atol=1e-5, rtol=1e-4)


# The recipe


def packed(tmp_path: Path) -> ImageSet:
    prepare_clips("moving-sprites", tmp_path / "clips", Cut(FRAMES, stride=16), size=SIDE)
    return load_images(tmp_path / "clips", split="train")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


FIT = FitConfig(2, 4, sample_every=2, checkpoint_every=2)


def test_two_stages_and_a_decoder_train_draw_and_go_there_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualrate.forecasts.clip_recipe.SIZES", dict.fromkeys(("heavy", "light"), (8, 1, 48, 1)))
    clips = packed(tmp_path)
    stages = ClipStages(DataConfig(str(tmp_path / "clips")), each=2, latent_channels=CHANNELS)()
    assert isinstance(stages, Stages)
    large: Any = stages.base.networks
    small: Any = replace(large, model=of_latent(CHANNELS, 48, 1))
    stages = replace(stages, first=replace(stages.first, fit=FIT), base=replace(stages.base, networks=small, fit=FIT))
    for experiment, out in in_stages(stages, tmp_path / "run"):
        train(experiment, out)
        assert (out / "samples").is_dir()
    assert read_latents(tmp_path / "run" / "latents", "train").frames_each == FRAMES
    recipe = ClipDecoder(DataConfig(str(tmp_path / "clips")), codec=tmp_path / "run" / "first")
    train(replace(recipe(), fit=FIT), tmp_path / "decoder")
    both = ClipBase(DataConfig(str(tmp_path / "run" / "latents")))()
    of_two: Any = both.networks
    assert ClipStages(DataConfig(str(tmp_path / "clips")), each=2, rate="dual")().base.networks.roles == of_two.roles
    of_two = replace(of_two, encoder=of_latent(CHANNELS, 48, 1), light=of_latent(CHANNELS, 48, 0))
    train(on_codec_of_data(replace(both, networks=of_two, fit=FIT)), tmp_path / "pair")
    train(dual_student(StudentRecipe(None, None, FIT), str(tmp_path / "run" / "base"), 2, 1), tmp_path / "student")
    base, decoder, pair = (load(tmp_path / name) for name in ("run/base", "decoder", "pair"))
    assert base.image_shape == decoder.image_shape == pair.image_shape == (FRAMES * COLOURS, SIDE, SIDE)
    assert {maker_of(model.experiment).noun for model in (base, decoder, pair)} == {"clip"}
    images = to_float(clips.images[:2])
    assert round_trip(base.codec, images, Draws(0, torch.arange(2))).shape == images.shape
    for model, name in ((base, "drawn"), (decoder, "again"), (pair, "by two"), (load(tmp_path / "student"), "few")):
        drawer = dr.Choice(2).drawer(model)
        write_samples(drawer, range(2), tmp_path / name)
        written = {file.name for file in (tmp_path / name).iterdir()}
        assert {"000000.png", "000001.png", "grid.png", "grid.webp"} <= written
        with pytest.raises(ValueError, match="is a clip model, the page shows images"):
            Offer(model)
    shown = Yardstick.samples(object.__new__(Yardstick), dr.Choice(2).drawer(base), 2)
    assert (shown["images"].shape, shown["columns"]) == ((2, COLOURS, SIDE, FRAMES * SIDE), 1)
    assert dr.Choice(2).drawer(base).draw(range(2))._repr_html_().count("data:image") == 1


def test_what_is_no_clip_is_refused_with_the_way(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, SIDE, SIDE, 3), np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=images)
    for source in ("", str(tmp_path / "images.npz")):
        with pytest.raises(ValueError, match="data prepare CLIPS FOLDER --frames 16"):
            ClipStages(DataConfig(source))()
    with pytest.raises(ValueError, match="holds no latents: name the folder latents of a run of clip-latents"):
        ClipBase(DataConfig(str(tmp_path / "images.npz")))()
    packed(tmp_path)
    of_images = replace(fashion_mnist.single("heavy"), data=DataConfig(str(tmp_path / "clips")))
    with pytest.raises(ValueError, match=r"has 4 frames in an image, .* make 1: train clip-latents"):
        train(of_images, tmp_path / "run")
    with pytest.raises(ValueError, match="a number of frames that divides by --each 3"):
        ClipStages(DataConfig(str(tmp_path / "clips")), each=3)()
