"""The study of models of diffusers: its plain loop goes on where it was, and its shared encoder is the network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from from_diffusers.models import dit, randomised, unet

import dualrate as dr
from dualrate.denoisers.denoiser import posterior_mean
from dualrate.sampling.cost import call_cost

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "studies"))

import diffusers_models
import shared_blocks

SHAPE = (1, 8, 8)


def tiny() -> torch.nn.Module:
    return unet(in_channels=1, out_channels=1, num_class_embeds=3)


def test_training_goes_on_and_saves_what_loads(tmp_path, capsys):
    x, y = torch.rand(6, *SHAPE) * 2 - 1, torch.arange(6) % 3
    counts, seconds = [], 0.0
    for _ in range(2):
        diffusers_models.train(tiny(), tmp_path, x, y, (seconds + 0.05) / 60, 2)
        counts.append(json.loads((tmp_path / "training.json").read_text()))
        seconds = counts[-1]["seconds"]
    assert counts[1]["iteration"] > counts[0]["iteration"] > 0
    assert counts[1]["seconds"] >= counts[0]["seconds"] + 0.05
    capsys.readouterr()
    model = dr.load(tmp_path)
    assert model.num_classes == 3
    z = torch.randn(2, *SHAPE)
    assert posterior_mean(model.denoiser, z, torch.tensor(0.5), dr.Cond(y[:2])).shape == z.shape


def test_a_state_is_put_back_as_it_was():
    def parts(seed: int):
        torch.manual_seed(seed)
        model = tiny()
        return model, torch.optim.AdamW(model.parameters()), diffusers_models.EMAModel(model.parameters())

    model, optimizer, ema = parts(0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    ema.step(model.parameters())
    state = diffusers_models.state_of(model, optimizer, ema, [7, 1.5, 2.5])
    other = parts(1)
    assert diffusers_models.restore(state, *other) == (7, 1.5, 2.5)
    again = diffusers_models.state_of(*other, [7, 1.5, 2.5])
    assert set(state) == set(again)
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert other[2].optimization_step == 7


@pytest.mark.parametrize("net", [tiny, lambda: dit(in_channels=1, out_channels=1, num_layers=5)])
def test_a_shared_encoder_is_the_network_where_it_was_refreshed(net):
    plain = dr.from_diffusers(randomised(net()), diffusers_models.DDPMScheduler(clip_sample=False))
    shared = shared_blocks.Shared(plain, plain.process)
    z, t, cond = torch.randn(2, *SHAPE), torch.tensor(0.5), dr.Cond(torch.tensor([0, 2]))
    with torch.no_grad():
        own = plain.denoise(z, t, dr.Context(), cond)
        context = shared.encode(z, t, cond)
        torch.testing.assert_close(context.x_hat, own)
        torch.testing.assert_close(shared.denoise(z, t, context.aged(), cond), own)
        torch.testing.assert_close(shared.denoise(z, t, dr.Context(), cond), own)  # and the blocks run again
        later = shared.denoise(z.roll(1, -1), t * 0.9, context.aged(), cond)
        assert not torch.allclose(later, own)
        assert torch.isfinite(later).all()
    cost = call_cost(shared, SHAPE, 0, "cpu")
    assert 0 < cost.light < cost.heavy == call_cost(plain, SHAPE, 0, "cpu").light
    with pytest.raises(ValueError, match="a UNet2DModel or a DiT alone"):
        shared_blocks.Shared(shared, plain.process)
