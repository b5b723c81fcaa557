"""A frozen model of diffusers beside a light network: what it starts as, what trains, and that it pays on a toy."""

import json
import math
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from cli.command import call
from pipelines.models import (
    check_pipeline,
    diffusers,
    dit,
    flux,
    ovis_image,
    pixart,
    prompted,
    qwen_image,
    randomised,
    sana,
    sd3,
    unet,
    unet_text,
)
from torch import nn
from torch.nn import functional as F

import dualrate as dr
from dualrate.denoisers.denoiser import DualRate, condition_of, posterior_mean
from dualrate.diffusion.context import Batch
from dualrate.diffusion.prediction import REPA, v_from_x
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Sigmoid
from dualrate.experiment.experiment import Start
from dualrate.methods.denoising import Denoising
from dualrate.networks.dual import LightBody
from dualrate.pipelines import recipe as retrofit
from dualrate.pipelines.classes import catalogue as kinds
from dualrate.pipelines.classes.kind import NetworkSpec, by_place
from dualrate.pipelines.export import DualRatePipeline
from dualrate.pipelines.folder import read_folder
from dualrate.pipelines.foreign import adopted
from dualrate.pipelines.network import ForeignNetwork
from dualrate.pipelines.retrofitted import (
    Projection,
    Retrofitted,
    Tap,
    TappedEncoder,
    outputs,
    taps_of,
)
from dualrate.sampling.cost import macs_of
from dualrate.system.progress import Silent
from dualrate.training.config import FitConfig, OptimConfig

pytestmark = pytest.mark.filterwarnings("ignore:at the noise end x_hat follows z")
FIT = FitConfig(iterations=4, batch_size=4, optim=OptimConfig(lr=1e-2), checkpoint_every=2, sample_every=4)


def saved(folder: Path, net: nn.Module, role: str, scheduler=None, **more) -> Path:
    scheduler = scheduler or diffusers.DDPMScheduler(clip_sample=False)
    net.save_pretrained(folder / role)
    scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": "P", role: ["diffusers", type(net).__name__], "scheduler": ["diffusers", "a scheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index | more))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A DiT and a UNet2D as pipelines, and images for them."""
    place, random = tmp_path_factory.mktemp("retrofit"), np.random.default_rng(0)
    saved(place / "dit", randomised(dit(in_channels=1, out_channels=2, num_embeds_ada_norm=3)), "transformer")
    saved(place / "unet", randomised(unet(in_channels=1, out_channels=1)), "unet")
    np.savez(place / "images.npz", images=random.integers(0, 255, (16, 8, 8, 1), np.uint8), labels=np.arange(16) % 3)
    return place


def tiny_recipe(patch: pytest.MonkeyPatch) -> None:
    """The recipe at sizes of the models here, with `FIT`."""
    for name, value in {"BLOCKS": 1, "HEAD": 8, "NARROWEST": 1, "FIT": FIT}.items():
        patch.setattr(retrofit, name, value)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_recipe(monkeypatch)


def made(place: Path, model: str, **options) -> dr.Experiment:
    recipe = retrofit.RetrofitRecipe(dr.DataConfig(str(place / "images.npz")), share=1.0, **options)
    return recipe(place / model, Silent())


def test_images_of_another_size_than_the_models_are_refused_and_not_resized(place):
    data = dr.DataConfig(str(place / "images.npz"))
    for wrong in ({"size": 16}, {"channels": 3}):
        with pytest.raises(ValueError, match=r"takes 1 channel of side 8: drop --data.size and --data.channels"):
            retrofit.RetrofitRecipe(replace(data, **wrong), share=1.0)(place / "dit", Silent())
    same = retrofit.RetrofitRecipe(replace(data, size=8, channels=1), share=1.0)(place / "dit", Silent())
    assert same == made(place, "dit")


@dataclass(frozen=True)
class Stale:
    """x_hat of the latest heavy call, whatever came after."""

    inner: dr.Denoiser
    reuse: dr.Reuse = dr.Reuse.MARKOV

    def encode(self, z, t, cond):
        x_hat = posterior_mean(self.inner, z, t, cond)
        return dr.Context((x_hat,), tau=t, x_hat=x_hat)

    def denoise(self, z, t, context, cond):
        return context.features[0]


@pytest.mark.parametrize("model", ["dit", "unet"])
def test_untrained_it_is_the_model_at_heavy_steps_and_its_x_hat_between(place, model):
    experiment, teacher = made(place, model), dr.load(place / model)
    networks, denoiser = experiment.build()
    networks["encoder"].net.load_state_dict(teacher.networks["model"].state_dict())
    label, step = ([0, 1, 2] if teacher.num_classes else None), dr.Ancestral(experiment.process)

    def images(of, heavy):
        return next(dr.sample_batches(of, step, dr.StepPlan.uniform(8, heavy), (1, 8, 8), [5, 6, 7], label))

    torch.testing.assert_close(images(denoiser, 8), images(teacher.denoiser, 8), rtol=1e-6, atol=1e-6)
    scale = float(images(Stale(teacher.denoiser), 3).abs().max())
    error = (images(denoiser, 3) - images(Stale(teacher.denoiser), 3)).abs().max()
    assert error < 1e-5 * scale


@pytest.mark.parametrize("net", [dit, unet, unet_text, sd3, pixart, sana, flux, qwen_image, ovis_image])
def test_every_block_of_every_class_can_be_tapped(net):
    net = randomised(net())
    denoiser, cond = prompted(net)
    wrapped = denoiser.network
    shape = (wrapped.kind.channels(net.config), 8, 8)
    taps = taps_of(wrapped, shape, range(len(wrapped.blocks)))
    assert len(taps) >= 2
    with pytest.raises(ValueError, match=f"has blocks 0 to {len(taps) - 1}, got"):
        taps_of(wrapped, shape, [len(taps)])
    light = dr.UViTConfig(8, shape[0], (dr.Level("transformer", 8, 1),), patch=2, head_dim=8)
    encoder = TappedEncoder(wrapped, light, taps)
    z, log_snr, order = torch.randn(3, *shape), torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([2, 0, 1])
    (feature, x_hat), v = encoder(z, log_snr, *condition_of(cond))
    (moved, x_moved), v_moved = encoder(z[order], log_snr[order], *condition_of(cond[order]))
    assert feature.shape == (3, 8, 4, 4)
    for one, other in ((feature, moved), (x_hat, x_moved), (v, v_moved)):
        torch.testing.assert_close(one[order], other, rtol=1e-4, atol=1e-4)
    assert not any(block._forward_hooks for block in wrapped.blocks)
    for tap, projection in zip(taps, encoder.projections, strict=True):  # each of them arrives
        assert projection.conv.weight.shape[1] == tap.channels
    grads = torch.autograd.grad(feature.square().sum(), [part.conv.weight for part in encoder.projections])
    assert all(grad.abs().max() > 0 for grad in grads)


def test_a_feature_is_of_normalised_taps_and_x_hat():
    net = dr.from_diffusers(randomised(dit(num_layers=6)), diffusers.DDPMScheduler()).network
    taps = taps_of(net, (4, 8, 8))
    assert [tap.block for tap in taps] == [1, 3, 5]
    light = dr.UViTConfig(8, 4, (dr.Level("transformer", 8, 1),), patch=2, head_dim=8)
    encoder, z, log_snr = TappedEncoder(net, light, taps), torch.randn(2, 4, 8, 8), torch.tensor([-1.0, 2.0])
    label = torch.tensor([0, 1])
    with torch.no_grad(), outputs(net.blocks) as seen:
        (feature, x_hat), _ = encoder(z, log_snr, label)
        expected = F.conv2d(x_hat, encoder.pixels.weight, stride=2)
        for tap, projection in zip(taps, encoder.projections, strict=True):
            tokens = F.layer_norm(seen[tap.block], (16,))
            expected += (tokens @ projection.conv.weight[:, :, 0, 0].T).mT.reshape(2, 8, 4, 4)
    torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)


def test_outputs_are_of_one_call():
    layer = nn.Linear(2, 2)
    with outputs([layer]) as seen:
        out = layer(torch.ones(1, 2))
    assert seen[0] is out
    layer(torch.zeros(1, 2))
    assert seen[0] is out
    tokens = torch.arange(8.0).view(1, 4, 2)
    assert NetworkSpec(by_place).tapped(tokens)[0, 0].tolist() == [[0, 2], [4, 6]]


def test_training_leaves_the_model_as_it_is_and_goes_on_bit_for_bit(place, tmp_path):
    experiment, teacher = made(place, "dit"), dr.load(place / "dit")
    experiment = replace(experiment, fit=replace(FIT, iterations=2))
    assert dr.train(experiment, tmp_path / "run", progress=Silent()).iteration == 2
    run = dr.load(tmp_path / "run")
    for name, weight in teacher.networks["model"].state_dict().items():
        assert torch.equal(run.networks["encoder"].net.state_dict()[name], weight), name
    half = replace(experiment, fit=replace(FIT, iterations=1))
    dr.train(half, tmp_path / "half", progress=Silent())
    dr.train(experiment, tmp_path / "half", progress=Silent())
    assert dr.load(tmp_path / "half").weights_hash == run.weights_hash
    assert run.experiment == experiment
    assert run.experiment.networks.encoder.fingerprint == read_folder(place / "dit").fingerprint
    dr.export(tmp_path / "run", tmp_path / "weights")
    assert dr.load(tmp_path / "weights").call_cost.denoised
    DualRatePipeline.of(run, dr.Choice(steps=4, heavy=2)).save_pretrained(tmp_path / "pipeline")
    check_pipeline(tmp_path / "pipeline", run)


def test_training_goes_on_where_the_model_s_folder_moved(place, tmp_path):
    """Under the new folder's name; another model's folder is refused."""
    first = made(place, "dit")
    dr.train(replace(first, fit=replace(FIT, iterations=1)), tmp_path / "run", progress=Silent())
    shutil.copytree(place / "dit", tmp_path / "moved")
    moved = made(place, tmp_path / "moved")
    assert dr.train(moved, tmp_path / "run", progress=Silent()).iteration == 4
    other = randomised(dit(in_channels=1, out_channels=2, num_embeds_ada_norm=3))
    other.proj_out_2.bias.data += 1
    saved(tmp_path / "other", other, "transformer")
    with pytest.raises(ValueError, match=r"(?s)encoder.source: .*moved -> .*other.*encoder_from: .*moved -> .*other"):
        dr.train(made(place, tmp_path / "other"), tmp_path / "run", progress=Silent())


def test_a_light_network_may_start_as_a_run_of_its_layout(place, tmp_path):
    experiment, run = made(place, "dit"), str(tmp_path / "light")
    alone = replace(experiment, networks=dr.OneNetwork(experiment.networks.light), method=dr.DenoisingConfig())
    dr.train(replace(alone, fit=replace(FIT, iterations=2)), tmp_path / "light", progress=Silent())
    started = replace(experiment, method=replace(experiment.method, light_from=run))
    start = Start(True, torch.device("cpu"), False, dr.load, None, print)
    pair, light = started.method.prepare(started, start).method.denoiser(), dr.load(run).denoiser
    z, t, cond = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.7]), dr.Cond(torch.tensor([0, 2]))
    with torch.no_grad():
        x_hat = pair.denoise(z, t, pair.encode(z, t, cond).aged(), cond)
        torch.testing.assert_close(x_hat, light.denoise(z, t, dr.Context(), cond))


def test_released_the_model_trains_too(place, tmp_path):
    experiment = made(place, "unet")
    experiment = replace(experiment, method=replace(experiment.method, freeze_encoder=False))
    assert experiment.method.label_dropout == 0  # it has no null class
    assert made(place, "dit").method.label_dropout == 0.1
    dr.train(replace(experiment, fit=replace(FIT, iterations=2)), tmp_path / "run", progress=Silent())
    net = dr.load(tmp_path / "run").networks["encoder"].net
    own = dr.load(place / "unet").networks["model"].state_dict()
    assert any(not torch.equal(weight, own[name]) for name, weight in net.state_dict().items())


def test_a_model_without_a_null_class_is_not_guided(place, tmp_path):
    folder, plan = saved(tmp_path / "classes", unet(num_class_embeds=4), "unet"), dr.StepPlan.uniform(2)
    model = dr.load(folder)
    assert model.num_classes == 4
    with pytest.raises(ValueError, match="no null class"):
        dr.Drawer(model, dr.DDIM(model.process), plan, dr.Guidance(2.0))
    known = dr.load(place / "dit")
    drawer = dr.Drawer(known, dr.DDIM(known.process), plan, dr.Guidance(2.0))
    assert drawer.draw(range(2)).images.shape == (2, 1, 8, 8)


def test_the_direction_of_a_flow_is_asked_where_a_folder_is_loaded(tmp_path, monkeypatch):
    """As SiT's: time and u of this network both run another way than its scheduler says."""
    net = unet(in_channels=1, out_channels=1)
    folder = saved(tmp_path / "flow", net, "unet", diffusers.FlowMatchEulerDiscreteScheduler())

    def call(net, state, time, label, given):
        x, r = state, (1 - time / 1000)[:, None, None, None]
        return -(r - (1 - r) * 0.05) / (r**2 + (1 - r) ** 2 * 0.05) * x  # the exact -u of data N(0, 0.05)

    monkeypatch.setitem(kinds.KINDS, "UNet2DModel", replace(kinds.KINDS["UNet2DModel"], call=call))
    with pytest.raises(ValueError, match="noise_at=0, predicts='x - eps'"):
        dr.load(folder)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_light_call_costs_what_is_said(patch):
    light = dr.UViTConfig(8, 3, (dr.Level("transformer", 16, 2),), 3, patch=patch, embedding=12, head_dim=8)
    network, label = LightBody(light, residual=True), torch.tensor([1])
    z, log_snr, added = torch.randn(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, 16, 8 // patch, 8 // patch)
    assert macs_of(lambda: network(z, log_snr, label, (added, z), log_snr)) == retrofit.macs_of_light(light)


def test_the_light_network_fits_its_share():
    light = retrofit.light_of((3, 32, 32), 10, 2, 200e6)
    assert retrofit.macs_of_light(light) <= 200e6
    wider = replace(light, levels=(replace(light.levels[0], channels=light.levels[0].channels + retrofit.HEAD),))
    assert retrofit.macs_of_light(wider) > 200e6
    assert retrofit.light_of((3, 32, 32), 10, 2, 1e6).patch > 2
    with pytest.raises(ValueError, match="pass --share ") as refused:
        retrofit.light_of((3, 32, 32), 10, 2, 10e6, 0.01)
    share = float(re.search(r"--share ([0-9.]+) or more", str(refused.value))[1])
    assert retrofit.macs_of_light(retrofit.light_of((3, 32, 32), 10, 2, 10e6, share)) <= share * 10e6
    with pytest.raises(ValueError, match="no share does"):
        retrofit.light_of((3, 32, 32), 10, 2, 1e3, 0.2)
    assert retrofit.light_of((3, 8, 8), 10, 4, 1e9).patch == 4  # as coarse as the model itself is


@pytest.mark.parametrize(
    ("side", "cells"),
    [
        (2, [[0], [0], [1], [1]]),
        (3, [[0], [0, 1], [1, 2], [2]]),
        (7, [[0, 1], [1, 2, 3], [3, 4, 5], [5, 6]]),  # of a UNet2D of 28 pixels, whose light network has patches of 7
    ],
)
def test_a_tap_that_is_no_multiple_is_averaged_where_positions_overlap(side, cells):
    project = Projection(Tap(0, 3, side), 5, 4)
    h = torch.randn(2, 3, side, side)
    whole = project.conv(torch.nn.functional.layer_norm(h.movedim(1, -1), (3,)).movedim(-1, 1))
    for i, rows in enumerate(cells):
        for j, columns in enumerate(cells):
            mean = whole[:, :, rows][:, :, :, columns].mean((2, 3))
            torch.testing.assert_close(project(h)[:, :, i, j], mean)


def test_what_cannot_be_retrofitted_is_refused_with_the_reason(place, tmp_path):
    config, data = made(place, "dit").networks, dr.DataConfig(str(place / "images.npz"))
    with pytest.raises(ValueError, match=r"differ in \(C, H, W\) and classes: .*3\) and .*0\)"):
        Retrofitted(config.encoder, replace(config.light, num_classes=0), ())
    latents = saved(tmp_path / "latents", dit(), "transformer")
    with pytest.raises(ValueError, match=r"of latents \(its channels: 4\), and .* are images: encode them first"):
        retrofit.RetrofitRecipe(data)(latents)
    with pytest.raises(FileNotFoundError, match=r"no data at .*nowhere"):
        retrofit.RetrofitRecipe(dr.DataConfig(str(tmp_path / "nowhere")))(latents)
    with pytest.warns(UserWarning, match="draws 4 channels: latents, it seems, which nothing decodes"):
        dr.load(latents)
    weights = latents / "transformer" / "diffusion_pytorch_model.safetensors"
    kept = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({**kept, "extra.weight": torch.ones(1)}, weights)
    with pytest.warns(UserWarning, match=r"does not have, extra.weight the first of 1: they are left out"):
        adopted(latents).weights()
    safetensors.torch.save_file(dict(list(kept.items())[1:]), weights)
    with pytest.raises(ValueError, match=r"lacks weights of its DiTTransformer2DModel, .* the first of 1"):
        adopted(latents).weights()
    weights = shutil.copytree(place / "dit", tmp_path / "none") / "transformer" / weights.name
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        retrofit.RetrofitRecipe(data)(tmp_path / "none")
    words = saved(tmp_path / "words", sana(), "transformer")
    with pytest.raises(ValueError, match=r"are images: encode them first .*--prompts CAPTIONS"):
        retrofit.RetrofitRecipe(data)(words)
    with pytest.raises(ValueError, match="nothing to release"):
        dr.export(place / "dit", tmp_path / "weights")
    with pytest.raises(ValueError, match="so it needs them"):
        retrofit.RetrofitRecipe()(place / "dit")


def test_the_command(place, tmp_path, monkeypatch, capsys):
    out, data = tmp_path / "run", f"{place / 'images.npz'}"
    options = ["--data.source", data, "--out", str(out), "--share", "1", "--fit.iterations", "2", "--device", "cpu"]
    assert call(monkeypatch, "retrofit", str(place / "dit"), *options) == 0
    assert "a light call costs" in capsys.readouterr().err
    how = ("--num", "2", "--steps", "4", "--heavy", "2", "--device", "cpu", "--out", str(tmp_path / "images"))
    assert call(monkeypatch, "sample", str(out), *how) == 0
    assert call(monkeypatch, "retrofit", str(place), *options) == 2
    assert "no folder of diffusers" in capsys.readouterr().err


# A toy: ten components in 256 dimensions, the model exact, a light network too small to know them all.

SIDE, VARIANCE, COMPONENTS = 16, 0.1, 10
MEANS = 0.5 * torch.randn(COMPONENTS, SIDE**2, generator=torch.Generator().manual_seed(0))
PROCESS = dr.GaussianProcess(Cosine(-10, 10))


def exact(z, log_snr):
    """E[x | z]."""
    alpha, total = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(log_snr) * VARIANCE + torch.sigmoid(-log_snr)
    flat = z.flatten(1)
    far = (flat[:, None] - alpha[:, None, None] * MEANS).square().sum(-1)
    mean = (-far / (2 * total[:, None])).softmax(1) @ MEANS
    return (mean + (alpha * VARIANCE / total)[:, None] * (flat - alpha[:, None] * mean)).view_as(z)


class Exact(ForeignNetwork):
    def __init__(self) -> None:
        super().__init__(nn.Identity(), NetworkSpec(by_place), REPA)

    def forward(self, z, log_snr, label):
        return v_from_x(z, exact(z, log_snr), log_snr)


def drawn(rows):
    draws = Draws(11, rows)
    component = (draws.uniform("component") * COMPONENTS).long()
    x = MEANS[component] + math.sqrt(VARIANCE) * draws.normal("x", SIDE**2)
    return draws, x.view(-1, 1, SIDE, SIDE)


@torch.no_grad()
def excess(denoiser, mode, heavy=4, steps=32, rows=2000):
    """Weighted square error over that of the exact x_hat, at the steps of an even plan, heavy ones included."""
    draws, x = drawn(torch.arange(10**6, 10**6 + rows))
    i = (draws.uniform("step") * steps).long()
    t, tau = 1 - i.double() / steps, 1 - (i // (steps // heavy) * (steps // heavy)).double() / steps
    z_t, z_tau = PROCESS.pair(x, t, tau, draws.normal("tau", *x.shape[1:]), draws.normal("t", *x.shape[1:]))
    context = denoiser.encode(z_tau, tau, dr.Cond())
    log_snr = PROCESS.log_snr(t).float()
    used = dr.Context() if mode == "alone" else context.aged()
    x_hat = context.x_hat if mode == "stale" else denoiser.denoise(z_t, t, used, dr.Cond())
    error = (x_hat - exact(z_t, log_snr)).square().flatten(1).mean(1) * Sigmoid().snr_weight(log_snr)
    return float(error.mean()), float(error.std() / rows**0.5)


def trained(seed, iterations, rate=1e-2):
    torch.manual_seed(seed)
    light = dr.UViTConfig(SIDE, 1, (dr.Level("conv", 24, 1),), patch=4, embedding=32)
    encoder = TappedEncoder(Exact(), light, ())
    networks = nn.ModuleDict({"encoder": encoder, "light": LightBody(light, residual=True)})
    denoiser = DualRate(networks["encoder"], networks["light"], PROCESS)
    method = Denoising(networks, denoiser, PROCESS, Sigmoid(), dr.TimeSampler(heavy=(2, 16)))
    stale, reuse = excess(denoiser, "stale")[0], excess(denoiser, "dual")[0]
    assert reuse == pytest.approx(stale, rel=1e-4)
    optimizer = torch.optim.Adam(networks.parameters(), lr=rate)
    for i in range(iterations):
        optimizer.param_groups[0]["lr"] = rate * min(1, (i + 1) / 20) * (1 - i / iterations)
        rows = torch.arange(i * 64, (i + 1) * 64)
        batch = Batch(drawn(rows)[1], None, rows)
        method.loss(batch, i, batch.draws(seed)).total.backward()
        nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return stale, excess(denoiser, "alone"), excess(denoiser, "dual")[0]


def test_context_and_light_network_beat_both_alone():
    """3 s of a core, since it must learn something. Longer, the same by a larger factor: the slow test below."""
    stale, (alone, error), dual = trained(0, 60)
    assert alone > 5 * error  # or the model would not be needed
    assert dual < 0.6 * stale
    assert dual < 0.3 * alone


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_context_and_light_network_beat_both_alone_by_a_factor(seed):
    stale, (alone, error), dual = trained(seed, 1200)
    assert alone > 5 * error
    assert dual < 0.35 * stale
    assert dual < 0.3 * alone
