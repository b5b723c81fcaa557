"""A smaller model as the light network: itself alone at first, in its own convention, and then it is told more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from from_diffusers.models import check_pipeline, diffusers, dit, randomised, sd3, texts, unet
from from_diffusers.test_retrofit import FIT, saved, tiny_recipe

import dualrate as dr
from dualrate.denoisers.denoiser import DualRate
from dualrate.diffusion.schedule import Betas
from dualrate.diffusion.values import Cond
from dualrate.experiment.experiment import Start
from dualrate.from_diffusers.retrofitted import SiblingEncoder, SiblingLight, TwoForeign, stem_of
from dualrate.from_diffusers.schedulers import Discrete
from dualrate.integrations.diffusers import DualRatePipeline
from dualrate.integrations.programs import programs_of
from dualrate.recipes import retrofit
from dualrate.sampling.cost import call_cost
from dualrate.system.progress import Silent

pytestmark = pytest.mark.filterwarnings("ignore:at the noise end x_hat follows z")
ONE, CLASSES = {"in_channels": 1, "out_channels": 1}, {"num_embeds_ada_norm": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heavy: a DiT and a UNet2D. Light: a DiT that is a flow, UNet2Ds with and without classes; images of 3 classes."""
    root, random = tmp_path_factory.mktemp("sibling"), np.random.default_rng(0)
    heavy = {"num_layers": 6, "num_attention_heads": 4}
    saved(root / "dit", randomised(dit(**ONE, **CLASSES, **heavy)), "transformer")
    saved(root / "unet", randomised(unet(**ONE, block_out_channels=(16, 32))), "unet")
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    saved(root / "small-dit", randomised(dit(**ONE, **CLASSES, num_layers=1)), "transformer", flow)
    v = diffusers.DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False)
    saved(root / "small-unet", randomised(unet(**ONE)), "unet", v)
    saved(root / "classes", randomised(unet(**ONE, num_class_embeds=4)), "unet", v)
    np.savez(root / "images.npz", images=random.integers(0, 255, (16, 8, 8, 1), np.uint8), labels=np.arange(16) % 3)
    return root


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_recipe(monkeypatch)


def recipe(root: Path, light: str, **options) -> retrofit.Retrofit:
    return retrofit.Retrofit(dr.DataConfig(str(root / "images.npz")), light=str(root / light), **options)


def started(made: dr.Experiment) -> DualRate:
    """The pair as training starts from it."""
    start = Start(True, torch.device("cpu"), False, lambda run: dr.load(run), None, print)
    return made.method.prepare(made, start).method.denoiser()


Z = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
T, LABEL = torch.tensor([0.2, 0.5, 0.9]), torch.arange(3)


def apart(of: DualRate, cond: Cond) -> tuple[torch.Tensor, torch.Tensor]:
    """x_hat at a heavy step, and at the step after it."""
    context = of.encode(Z + 1, T + 0.05, cond)
    return of.denoise(Z + 1, T + 0.05, context, cond), of.denoise(Z, T, context.aged(), cond)


@torch.no_grad()
def test_at_first_it_is_the_smaller_model_alone_in_its_own_convention(root: Path) -> None:
    """A flow beside a model of betas, by hand: x_r = s z and x_hat = x_r - r u."""
    pair, model = started(recipe(root, "small-dit")(root / "dit", Silent())), dr.load(root / "dit")
    heavy, between = apart(pair, Cond(LABEL))
    torch.testing.assert_close(heavy, model.denoiser.denoise(Z + 1, T + 0.05, dr.Context(), Cond(LABEL)))
    log_snr = model.process.log_snr(T)
    r = torch.sigmoid(-log_snr / 2)
    state = ((1 - r) ** 2 + r**2).sqrt()[:, None, None, None] * Z
    net = dr.load(root / "small-dit").networks["model"].net
    u = net(state, timestep=1000 * r, class_labels=LABEL, return_dict=False)[0][:, :1]
    torch.testing.assert_close(between, state - r[:, None, None, None] * u, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("heavy", "light", "classes"), [("unet", "small-unet", None), ("dit", "classes", 3)], ids=["unet", "dit-and-unet"]
)
def test_a_unet_too_also_beside_a_dit(root: Path, heavy: str, light: str, classes: int | None) -> None:
    pair = started(recipe(root, light, num_classes=classes)(root / heavy, Silent()))
    smaller, cond = dr.load(root / light), Cond(LABEL if classes else None)
    own = smaller.process.schedule.time(pair.process.log_snr(T))  # its time of the same noise
    expected = smaller.denoiser.denoise(Z, own, dr.Context(), cond)
    torch.testing.assert_close(apart(pair, cond)[1], expected, rtol=1e-3, atol=1e-4)


def test_what_joins_it_joins_its_stem_and_no_absent_row(root: Path) -> None:
    pair = started(recipe(root, "small-dit")(root / "dit", Silent()))
    light, seen, generator = pair.light, {}, torch.Generator().manual_seed(3)
    feature = torch.randn(2, 16, 4, 4, generator=generator)
    torch.nn.init.normal_(light.tau.mlp[-1].weight, generator=generator)
    z, log_snr, label = Z[:2], torch.zeros(2), torch.tensor([0, 1])
    hook = light.net.blocks[0].register_forward_pre_hook(lambda block, given: seen.setdefault(len(seen), given[0]))
    with torch.no_grad():
        alone = light(z, log_snr, label)
        present = torch.tensor([True, False])
        mixed = light(z, log_snr, label, (feature * present[:, None, None, None],), log_snr + 1, present)
        added = (feature + light.tau(log_snr + 1)[..., None, None])[0].flatten(1).T
    hook.remove()
    torch.testing.assert_close((seen[1] - seen[0])[0], added, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed[1], alone[1])
    assert not torch.allclose(mixed[0], alone[0])
    assert not light.place._forward_hooks


def test_it_trains_goes_on_is_counted_and_is_a_pipeline(root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    made = recipe(root, "small-dit")(root / "dit", Silent())
    assert isinstance(made.networks, TwoForeign)
    dr.train(replace(made, fit=replace(FIT, iterations=1)), tmp_path / "half", progress=Silent())
    dr.train(replace(made, fit=replace(FIT, iterations=2)), tmp_path / "run", progress=Silent())
    options = ("--data.source", root / "images.npz", "--light", root / "small-dit", "--fit.iterations", "2")
    assert call(monkeypatch, "retrofit", root / "dit", *options, "--out", tmp_path / "half", "--device", "cpu") == 0
    assert "taps at blocks 1, 3, 5; a light call costs 0." in capsys.readouterr().err
    run, models = dr.load(tmp_path / "run"), [dr.load(root / name).networks["model"] for name in ("dit", "small-dit")]
    assert dr.load(tmp_path / "half").weights_hash == run.weights_hash
    (heavy, light), (encoder, smaller) = (one.state_dict() for one in models), run.networks.values()
    assert all(torch.equal(weight, heavy[name]) for name, weight in encoder.net.state_dict().items())
    assert any(not torch.equal(weight, light[name]) for name, weight in smaller.net.state_dict().items())
    ways = [encoder.pixels.weight, *encoder.projections.parameters(), *smaller.tau.mlp[-1].parameters()]
    assert all(way.abs().max() > 0 for way in ways)  # each has learned
    cost = call_cost(run.denoiser, run.shape, 0, "cpu")
    assert 0 < cost.light / cost.heavy < 0.4
    dr.export(tmp_path / "run", tmp_path / "weights")
    assert dr.load(tmp_path / "weights").experiment == run.experiment
    DualRatePipeline.of(run, dr.Choice(steps=4, heavy=2)).save_pretrained(tmp_path / "pipe")
    check_pipeline(tmp_path / "pipe", run)


@pytest.mark.slow
@torch.no_grad()
def test_a_pair_of_unets_is_programs_of_as_many_rows_as_they_treat_alike(root: Path) -> None:
    made = recipe(root, "small-unet")(root / "unet", Silent())
    networks, denoiser = made.build()
    found = programs_of(dr.Model("pair", made, randomised(networks.eval()), denoiser, 0, ""))
    assert [most for _, most in found.values()] == [63, 63]  # diffusers' up blocks copy from 64 on
    rows, log_snr, tau = torch.cat((Z, -Z)), torch.linspace(-3, 3, 6), torch.full((6,), -4.0)
    (features, v), present = found["encoder"][0].module()(rows, tau, None), torch.arange(6) > 0
    torch.testing.assert_close(v, networks["encoder"](rows, tau, None)[1], rtol=1e-4, atol=1e-4)
    features = tuple(part * present[:, None, None, None] for part in features)
    given = (rows, log_snr, None, features, tau, present)
    expected = networks["light"](*given)
    torch.testing.assert_close(found["light"][0].module()(*given), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, networks["light"](*given[:3]))


def test_what_is_no_smaller_model_of_the_same_is_refused(root: Path, tmp_path: Path) -> None:
    def refused(light: str | Path, message: str, heavy: str = "dit", **options) -> None:
        with pytest.raises(ValueError, match=message):
            recipe(root, str(light), **options)(root / heavy, Silent())

    refused("small-unet", r"of the same images and classes, got classes 3 and 0")
    refused("classes", "got classes 3 and 4")
    large = saved(tmp_path / "large", randomised(unet(**ONE, sample_size=16)), "unet")
    refused(large, r"got images of \(C, H, W\) \(1, 8, 8\) and \(1, 16, 16\)", "unet")
    refused("dit", "million multiply-adds, the model .* a light network is smaller")
    refused("small-dit", "drop --light, or --own-blocks", own_blocks=2)
    labels = saved(tmp_path / "labels", randomised(unet(**ONE, num_class_embeds=3)), "unet")
    refused(labels, "the encoder has a null class and the light network none")
    noisy = saved(tmp_path / "noisy", unet(**ONE, block_out_channels=(16, 32)), "unet", _flow())
    with pytest.raises(
        ValueError, match=r"predicts eps down to log-SNR -10\.1, the heavy model is trained down to -30,"
    ):
        recipe(root, str(_eps(tmp_path)))(noisy, Silent())
    words = saved(tmp_path / "words", sd3(), "transformer")
    refused(words, "model of texts")
    tables = texts("encoder_hidden_states", "pooled_projections")
    network = dr.from_diffusers(sd3(), _flow(), embeddings=tables).network
    with pytest.raises(ValueError, match="DiTTransformer2DModel and UNet2DModel are known, got SD3Transformer2DModel"):
        SiblingLight(network)


def _flow():
    return diffusers.FlowMatchEulerDiscreteScheduler()


def _eps(folder: Path) -> Path:
    return saved(folder / "eps", randomised(unet(**ONE)), "unet")


def test_beyond_its_table_a_network_is_asked_at_its_last_step() -> None:
    """Where a model's schedule has more noise than a smaller one's."""
    asked = Discrete(Betas(), "v_prediction").time(torch.tensor([-30.0, -11.0, 0.0, 30.0]))
    assert asked.tolist()[:2] == [999, 999]
    assert 0 < asked[2] < 999
    assert asked[3] == 0


def test_an_encoder_of_a_sibling_says_nothing_at_first(root: Path) -> None:
    networks = [dr.load(root / name).networks["model"] for name in ("unet", "small-unet")]
    encoder = SiblingEncoder(networks[0], stem_of(networks[1], 8), ())
    (feature, x_hat), v = encoder(Z, torch.zeros(3), None)
    assert feature.shape == (3, 8, 8, 8)
    assert not feature.any()
    assert x_hat.shape == v.shape == Z.shape
