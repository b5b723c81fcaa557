"""Decoders of a frozen codec's latents: trained, retrofitted, measured as reconstructions, compared, refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from latents.autoencoders import photos
from latents.folding import LOG_SNR, Noisy, NoisyFolder
from torch import Tensor, nn

import dualrate as dr
from dualrate.codecs.codec import CodecFolder, NoCodec, decode_macs, noisy_latents
from dualrate.codecs.diffusion import DECODER
from dualrate.comparison.candidates import RunRequest, candidates_of
from dualrate.data.conditions import Conditioning, Latent, Unconditional
from dualrate.data.images import load_images, to_float, to_uint8
from dualrate.data.loader import ByteBatch
from dualrate.diffusion.context import Batch, Cond
from dualrate.diffusion.random import Draws
from dualrate.drawing.choice import Choice
from dualrate.drawing.cost import cost_report
from dualrate.drawing.latents import nearness
from dualrate.experiment.experiment import Experiment, Start
from dualrate.experiment.model import as_codec
from dualrate.experiment.network_configs import NetworksConfig, OneConditional, TwoConditional
from dualrate.experiment.teaching import check_latent_shape
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import GivenTimes
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes.fashion_mnist_latents import ITERATIONS, SIZES, FashionMnistDecoder
from dualrate.runs.store import load
from dualrate.sampling.cost import call_cost
from dualrate.sampling.trajectory import StepNoise, rollout
from dualrate.texts.codec import GreyLevels
from dualrate.training.config import FitConfig

LATENT = (12, 8, 8)
NET = UViTConfig(16, 3, (Level("conv", 8, 1), Level("transformer", 16, 2)), patch=2, embedding=16, head_dim=16)
LIGHT = replace(NET, levels=(Level("conv", 4, 1), Level("conv", 8, 1)))
FIT = FitConfig(iterations=2, batch_size=4, precision="float32", sample_every=9, checkpoint_every=2)

CODEC = NoisyFolder("a folder", "f" * 64)
GIVEN, PLAIN = Latent(CODEC), DenoisingConfig()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("decoder")
    np.savez(root / "images.npz", images=photos(40).transpose(0, 2, 3, 1))
    return root


def experiment(
    root: Path,
    name: str,
    networks: NetworksConfig,
    method: DenoisingConfig = PLAIN,
    given: Conditioning = GIVEN,
) -> Experiment:
    return Experiment(name, networks, method, FIT, dr.DataConfig(str(root / "images.npz")), condition=given)


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, Path]:
    """A heavy and a light single-rate decoder, and a dual-rate one that was trained from the start."""
    networks = {"heavy": OneConditional(NET, LATENT), "light": OneConditional(LIGHT, LATENT)}
    for name, one in networks.items():
        dr.train(experiment(root, name, one), root / name)
    dual = DenoisingConfig(GivenTimes())
    two = experiment(root, "dual", TwoConditional(NET, LIGHT, LATENT), dual)
    dr.train(replace(two, fit=replace(FIT, sample_every=2)), root / "dual")
    assert (root / "dual" / "samples" / "0000002.png").is_file()
    return {name: root / name for name in ("heavy", "light", "dual")}


def test_a_decoder_is_given_its_images_latents_drawn_anew(root: Path) -> None:
    """z_0 = alpha_0 (mean + spread eps) + sigma_0 eps_0, keyed by sample number."""
    one = experiment(root, "one", OneConditional(NET, LATENT))
    start = Start(True, torch.device("cpu"), False, load, lambda i: pytest.fail("no batch"), lambda text: None)
    method = one.method.prepare(one, start).method
    images = load_images(root / "images.npz", split="train")

    def batch(sample: Tensor) -> Batch:
        seen = one.seen(images)
        return ByteBatch(torch.from_numpy(photos(4)), None, sample, seen.floats, 0, seen.make_conditions).to("cpu")

    x, draws = to_float(photos(4)), Draws(0, torch.tensor([5, 6, 7, 8]))
    one_batch, seen = batch(draws.row), []
    (net,) = method.networks.values()
    net.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[2]))
    method.loss(one_batch, 0, draws)
    (z_0,) = seen
    assert z_0 is one_batch.given
    moments = Noisy("").encode(x)
    alpha, sigma = (torch.sigmoid(torch.tensor(one)).sqrt() for one in (LOG_SNR, -LOG_SNR))
    latent = moments.mean + (moments.log_var / 2).exp() * draws.normal("latent", *LATENT)
    torch.testing.assert_close(z_0, alpha * latent + sigma * draws.normal("z_0", *LATENT))
    again = batch(draws.row + 40).given
    assert (z_0 - again).std().item() == pytest.approx(float(sigma) * 2**0.5, rel=0.1)


def test_what_a_seed_draws_is_the_reconstruction_of_its_image(runs: dict[str, Path], root: Path) -> None:
    """One heavy call on z_0 of held-out image number `seed`, the same for every decoder, however images are batched."""
    model = load(runs["dual"])
    drawer = Choice(4, sampler="dpm++2m").drawer(model, batch_size=2, precision="float32")
    assert [refresh.value for refresh in drawer.plan.refresh] == ["full", "keep", "keep", "keep"]
    assert (drawer.cost.heavy_calls, drawer.cost.light_calls) == (1, 4)
    images = drawer.draw(range(2, 7)).images
    test = load_images(root / "images.npz", split="test")
    seeds = torch.arange(2, 7)
    originals = test.images[(seeds % len(test)).numpy()]
    assert np.array_equal(model.given.originals(seeds), originals)
    z_0 = noisy_latents(Noisy(""), to_float(originals), Draws(0, seeds))
    torch.testing.assert_close(load(runs["light"]).given(seeds), z_0)
    noise = Draws(0, seeds).normal("start", *model.shape)
    with torch.no_grad():
        x = rollout(model.denoiser, drawer.step, drawer.plan, noise, Cond(given=z_0), lambda i, j: noise)
    assert np.abs(images.astype(int) - to_uint8(x).numpy()).max() <= 1

    square = ((images.astype(float) - originals) ** 2).mean((1, 2, 3))
    near = nearness([originals], [images])
    assert near.value == pytest.approx(np.mean(10 * np.log10(255**2 / square)))


def test_a_decoder_stands_in_a_codec_of_the_same_latents(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latents keep their name, and images of a base model have another: features that are kept are not mixed up."""
    codecs = {name: as_codec(load(run)) for name, run in runs.items()}
    assert {codec.latents for codec in codecs.values()} == {CODEC.fingerprint}
    assert len({CODEC.fingerprint, *(codec.fingerprint for codec in codecs.values())}) == 4
    dual, model, seeds = codecs["dual"], load(runs["dual"]), torch.arange(3)
    z_0 = model.given(seeds)
    drawn = Draws(DECODER, seeds)
    with torch.no_grad():
        start, plan = drawn.normal("start", *model.shape), dr.StepPlan.spread(dual.decoding.plan.t, 1)
        noise = StepNoise(model.process, drawn, plan.num_steps, model.shape)
        x = rollout(model.denoiser, dual.decoding.step, plan, start, Cond(given=z_0), noise)
    assert dual.decoding.step == dr.SDEDPMSolver2M(model.process, gamma=0.1)
    torch.testing.assert_close(dual.decode(z_0, Draws(0, seeds)), x)
    assert decode_macs(dual, LATENT) == model.call_cost.heavy + 16 * model.call_cost.light
    base = Experiment(
        "base", dr.OneNetwork(replace(NET, image_size=8, image_channels=12)), DenoisingConfig(), FIT, codec=CODEC
    )
    networks, denoiser = base.build()
    own = dr.Model("base", base, networks, denoiser, 0, "weights")
    monkeypatch.setattr("dualrate.codecs.codec.read_codec", lambda folder, *how: codecs[folder])
    others = [own.with_codec(name) for name in runs]
    drawers = [dr.Drawer(one, dr.DDIM(one.process), dr.StepPlan.uniform(2)) for one in (own, *others)]
    assert len({drawer.origin("net").digest for drawer in drawers}) == 4
    assert drawers[1].draw(range(2)).images.shape == (2, 3, 16, 16)
    monkeypatch.setattr("dualrate.codecs.codec.read_codec", lambda folder, *how: Noisy("e" * 64))
    with pytest.raises(ValueError, match="is another one"):
        _ = own.with_codec("other").codec


def test_the_recipe_makes_decoders_of_a_codecs_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(latents="a" * 64, latent_shape=lambda image: (4, 7, 7))
    monkeypatch.setattr("dualrate.codecs.codec.read_codec", lambda folder, *how: made)
    recipes = {kind: FashionMnistDecoder(kind, codec=Path("here"))() for kind in ITERATIONS}
    assert {one.networks.given for one in recipes.values()} == {(4, 7, 7)}
    assert recipes["dual"].serves.default_heavy(16) == 1
    assert recipes["dual"].networks.encoder == SIZES["heavy"]
    assert FashionMnistDecoder("dual", encoder="medium")().networks.encoder == SIZES["medium"]
    macs = {kind: call_cost(recipes[kind].build()[1], (1, 28, 28), None, given=(4, 7, 7)).light for kind in SIZES}
    assert macs["medium"] / macs["heavy"] == pytest.approx(0.45, abs=0.01)
    assert macs["light"] / macs["heavy"] == pytest.approx(0.11, abs=0.01)


def test_costs_are_one_heavy_call_and_n_light_ones(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    heavy, light, dual = (load(run) for run in runs.values())
    assert (heavy.call_cost.heavy, light.call_cost.heavy) == (0, 0)
    maps = sum(LATENT[0] * level.channels * math.prod(LIGHT.sides(i)) for i, level in enumerate(LIGHT.levels))
    maps += (4 - 1) * LATENT[0] * LIGHT.levels[1].channels * math.prod(LIGHT.sides(1))  # 2 x 2 positions to one
    assert light.call_cost.light - dual.call_cost.light == maps  # of z_0, which the dual-rate one maps once
    drawer = Choice(8).drawer(dual)
    assert drawer.cost.macs == dual.call_cost.heavy + 8 * dual.call_cost.light
    assert drawer.macs_by_step[-1] == drawer.cost.macs
    monkeypatch.setattr("dualrate.drawing.cost.seconds_per_call", lambda call, **how: float(call() is not None))
    assert cost_report(drawer)["macs_per_image"] == drawer.cost.macs


def test_a_retrofit_begins_as_the_light_decoder_and_with_the_heavy_one(runs: dict[str, Path], root: Path) -> None:
    of = {"encoder_from": str(runs["heavy"]), "light_from": str(runs["light"])}
    method = DenoisingConfig(GivenTimes(), freeze_encoder=True, **of)
    one = experiment(root, "retrofit", TwoConditional(NET, LIGHT, LATENT), method)
    start = Start(True, torch.device("cpu"), False, load, lambda i: pytest.fail("no batch"), lambda text: None)
    prepared = one.method.prepare(one, start)
    light, heavy = load(runs["light"]), load(runs["heavy"])
    seeds, t = torch.arange(3), torch.full((3,), 0.4, dtype=torch.float64)
    z, cond = torch.randn(3, *NET.shape), Cond(given=light.given(seeds))
    denoiser = prepared.method.denoiser()
    with torch.no_grad():
        x_hat = denoiser.denoise(z, t, denoiser.encode(z, t, cond), cond)
        torch.testing.assert_close(x_hat, light.denoiser.denoise(z, t, dr.Context(), cond))
    its = prepared.method.networks["encoder"].net.state_dict()
    of_heavy = heavy.networks["model"].state_dict()
    assert all(torch.equal(part, of_heavy[name]) for name, part in its.items())
    dr.train(one, root / "retrofit")
    found = load(root / "retrofit").networks["encoder"].net.state_dict()
    assert all(torch.equal(part, found[name]) for name, part in its.items())  # frozen
    other = replace(one, condition=Latent(NoisyFolder("another", "e" * 64)))
    with pytest.raises(ValueError, match=r"encoder_from, .*heavy, are given .*eee'.* and .*fff'.*: they must be given"):
        other.method.prepare(other, start)


def test_a_comparison_gives_every_decoder_the_times_that_drawing_gives_it(runs: dict[str, Path]) -> None:
    for run in runs.values():
        model = load(run)
        for sampler in ("sde-dpm++2m", "dpm++2m", "ddim"):
            (made,) = RunRequest.parse(f"{run}:4@{sampler}").candidates(model, ())
            plan = made.plan
            assert plan == Choice(4, sampler=sampler).step_plan(model)
            assert plan.num_heavy == model.serves.default_heavy(4)


def test_decoders_are_compared_at_equal_cost(runs: dict[str, Path]) -> None:
    """The usual plans of a dual-rate decoder have one heavy call, and as many light ones as the rung pays for."""
    requests = [RunRequest.parse(f"{run}@ddim") for run in runs.values()]
    models = {run: load(run) for run in runs.values()}
    found = candidates_of(requests, models)
    assert {one.plan.num_heavy for one in found if one.network == "dual"} == {1}
    most = models[runs["heavy"]].call_cost.light
    for run in runs.values():
        last = [one for one in found if one.run == run][-1]
        assert last.drawer(models[run]).macs_by_step[-1] == pytest.approx(32 * most, rel=0.05)


def test_what_does_not_fit_is_refused(runs: dict[str, Path], root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="networks of one take a condition: give one"):
        experiment(root, "one", OneConditional(NET, LATENT), given=Unconditional())
    with pytest.raises(ValueError, match="networks of one take no condition: drop it"):
        experiment(root, "one", dr.OneNetwork(NET))
    with pytest.raises(ValueError, match="set num_classes of one to 0"):
        experiment(root, "one", OneConditional(replace(NET, num_classes=3), LATENT))
    other = experiment(root, "one", OneConditional(NET, (12, 4, 4)))
    with pytest.raises(ValueError, match=r"latents of \(12, 8, 8\) by the codec, .* take \(12, 4, 4\)"):
        dr.train(other, tmp_path / "run")
    tokens = GreyLevels(4).build(nn.ModuleDict(), "cpu")
    grey = replace(other, networks=OneConditional(replace(NET, image_channels=1), (5, 16, 16)))
    with pytest.raises(ValueError, match=r"latents of \(5, 16, 16\) by the codec: it compresses nothing"):
        check_latent_shape(grey, tokens)
    model = load(runs["dual"])
    with pytest.raises(ValueError, match=r"context that never grows old, of one call: drop heavy \(3\),"):
        Choice(6, 3).drawer(model)
    moved = model.with_codec("elsewhere").experiment
    assert (moved.condition, moved.codec) == (Latent(CodecFolder("elsewhere", CODEC.fingerprint)), NoCodec())
