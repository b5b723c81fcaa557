"""A light network of a DiT's own blocks: the model where it was refreshed, its last blocks between, and it trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pipelines.models import check_pipeline, dit, randomised, unet
from pipelines.test_retrofit import FIT, saved, tiny_recipe

import dualrate as dr
from dualrate.denoisers.denoiser import DualRate
from dualrate.experiment.experiment import Start
from dualrate.pipelines import recipe as retrofit
from dualrate.pipelines.export import DualRatePipeline
from dualrate.pipelines.retrofitted import OwnBlocks, of_shorter
from dualrate.sampling.cost import call_cost
from dualrate.system.progress import Silent

DEPTH, BLOCKS = 6, 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, random = tmp_path_factory.mktemp("own-blocks"), np.random.default_rng(0)
    net = dit(in_channels=1, out_channels=2, num_embeds_ada_norm=3, num_layers=DEPTH)
    saved(root / "dit", randomised(net), "transformer")
    np.savez(root / "images.npz", images=random.integers(0, 255, (16, 8, 8, 1), np.uint8), labels=np.arange(16) % 3)
    return root


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_recipe(monkeypatch)


def recipe(root: Path, **options) -> retrofit.RetrofitRecipe:
    return retrofit.RetrofitRecipe(dr.DataConfig(str(root / "images.npz")), **{"own_blocks": BLOCKS, **options})


@pytest.fixture
def pair(root: Path) -> tuple[DualRate, dr.Model]:
    """The pair as training starts from it, and the model."""
    made, model = recipe(root)(root / "dit", Silent()), dr.load(root / "dit")
    start = Start(True, torch.device("cpu"), False, lambda run: dr.load(run), None, print)
    return made.method.prepare(made, start).method.denoiser(), model


def test_at_the_time_of_its_context_it_is_the_model(pair) -> None:
    denoiser, model = pair
    z, t, cond = torch.randn(3, 1, 8, 8), torch.tensor([0.2, 0.5, 0.9]), dr.Cond(torch.arange(3))
    with torch.no_grad():
        own = model.denoiser.denoise(z, t, dr.Context(), cond)
        context = denoiser.encode(z, t, cond)
        torch.testing.assert_close(context.x_hat, own)
        torch.testing.assert_close(denoiser.denoise(z, t, context.aged(), cond), own, rtol=1e-4, atol=1e-4)
        alone = denoiser.denoise(z, t, dr.Context(), cond)
    assert (alone - own).norm() > 0.01 * own.norm()


def test_between_it_is_its_first_and_last_blocks_with_what_was_between(pair) -> None:
    """By hand: the blocks, one after another."""
    denoiser, model = pair
    network, label, seen = model.networks["model"], torch.arange(3), {}
    (z, later), t, s = torch.randn(2, 3, 1, 8, 8), torch.full((3,), 0.7), torch.full((3,), 0.5)

    def run(state, time, kept=None):
        step = network.convention.time(model.process.log_snr(time))
        h = network.net.pos_embed(state)
        for place, block in enumerate(network.net.transformer_blocks):
            if kept is None or not 0 < place <= DEPTH - BLOCKS:
                h = block(h, timestep=step, class_labels=label)
                seen[place] = h
            h = h + kept if kept is not None and place == 0 else h
        return h

    with torch.no_grad():
        run(z, t)
        kept = seen[DEPTH - BLOCKS] - seen[0]
        expected = run(later, s, kept)
        context = denoiser.encode(z, t, dr.Cond(label))
        torch.testing.assert_close(context.features[0], kept, rtol=1e-4, atol=1e-4)
        hook = denoiser.light.net.blocks[-1].register_forward_hook(lambda *of: seen.__setitem__("light", of[-1]))
        denoiser.denoise(later, s, context.aged(), dr.Cond(label))
        hook.remove()
    torch.testing.assert_close(seen["light"], expected, rtol=1e-4, atol=1e-4)
    assert not any(block._forward_pre_hooks for block in denoiser.light.net.blocks)


def test_it_trains_is_counted_and_is_a_pipeline(root: Path, tmp_path: Path) -> None:
    made = recipe(root)(root / "dit", Silent())
    assert made.networks == OwnBlocks(made.networks.encoder, BLOCKS)
    dr.train(replace(made, fit=replace(FIT, iterations=2)), tmp_path / "run", progress=Silent())
    run, own = dr.load(tmp_path / "run"), dr.load(root / "dit").networks["model"].state_dict()
    trained, started = run.networks["light"].net.state_dict(), of_shorter(own, DEPTH, BLOCKS)
    assert trained.keys() == started.keys()
    assert any(not torch.equal(trained[name], started[name]) for name in trained)
    assert all(torch.equal(weight, own[name]) for name, weight in run.networks["encoder"].net.state_dict().items())
    cost = call_cost(run.denoiser, run.shape, 0, "cpu")
    assert BLOCKS / DEPTH < cost.light / cost.heavy < BLOCKS / DEPTH + 0.2
    DualRatePipeline.of(run, dr.Choice(steps=4, heavy=2)).save_pretrained(tmp_path / "pipe")
    check_pipeline(tmp_path / "pipe", run)


def test_rows_without_a_context_are_its_blocks_alone(pair) -> None:
    denoiser, _ = pair
    torch.nn.init.normal_(denoiser.light.tau.mlp[-1].weight)
    z, log_snr, label = torch.randn(2, 1, 8, 8), torch.zeros(2), torch.tensor([0, 1])
    with torch.no_grad():
        alone = denoiser.light(z, log_snr, label)
        mixed = denoiser.light(z, log_snr, label, (torch.zeros(2, 16, 16),), log_snr + 1, torch.tensor([True, False]))
    torch.testing.assert_close(mixed[1], alone[1])
    assert not torch.allclose(mixed[0], alone[0])


def test_what_has_no_such_blocks_is_refused(root: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "unet", randomised(unet(in_channels=1, out_channels=1)), "unet")
    with pytest.raises(ValueError, match="known for DiTTransformer2DModel, got UNet2DModel"):
        recipe(root)(folder, Silent())
    with pytest.raises(ValueError, match=r"of 6 blocks 2 to 5 make a light network, got 6"):
        recipe(root, own_blocks=6)(root / "dit", Silent())
