"""Runs and released weights: loading, exporting, starting an encoder."""

from dataclasses import replace

import pytest
import torch
from runs.made import NET, ONE, TWO, saved

from dualrate.experiment import OneNetwork, TwoNetworks
from dualrate.models.dual import ContextConfig
from dualrate.runs.store import load, start_from, write_experiment
from dualrate.types import Cond, Context


def test_loads_the_averaged_weights(tmp_path):
    model = load(saved(ONE, tmp_path / "run", ema=0.25))
    assert all((p == 0.25).all() for p in model.networks.parameters())
    assert model.iteration == 7
    assert not any(p.requires_grad for p in model.networks.parameters())


def test_weights_of_another_network_are_refused(tmp_path):
    run = saved(ONE, tmp_path / "run")
    write_experiment(run, replace(ONE, networks=OneNetwork(replace(NET, embedding=32))))
    with pytest.raises(ValueError, match="do not fit"):
        load(run)


def test_no_run_and_no_checkpoint_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match="is no run"):
        load(tmp_path)
    write_experiment(tmp_path, ONE)
    with pytest.raises(ValueError, match="no checkpoint yet"):
        load(tmp_path)


def test_an_encoder_starts_from_a_single_rate_run(tmp_path):
    run = saved(ONE, tmp_path / "run")
    networks, _ = TWO.build()
    start_from(networks, run, None)
    for name, tensor in load(run).networks["model"].state_dict().items():
        torch.testing.assert_close(networks["encoder"].get_submodule("net").state_dict()[name], tensor)
    with pytest.raises(ValueError, match="takes a single-rate one"):
        start_from(networks, saved(TWO, tmp_path / "two"), None)
    with pytest.raises(ValueError, match="is no run"):
        start_from(networks, tmp_path / "nowhere", None)
    other = replace(TWO, networks=TwoNetworks(replace(NET, embedding=32), NET))
    with pytest.raises(ValueError, match="is not this experiment's encoder"):
        start_from(other.build()[0], run, None)


@pytest.mark.parametrize("width", [None, 2])
def test_a_light_network_starts_from_a_single_rate_run_with_the_context_of_no_effect(tmp_path, width):
    run = saved(ONE, tmp_path / "run")
    networks, model = replace(TWO, networks=TwoNetworks(NET, NET, ContextConfig(width=width))).build()
    for parameter in networks.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    told = start_from(networks, None, run)
    assert told.keys() == {"light"}
    assert str(run) in told["light"]
    alone = load(run).denoiser
    z, t, cond = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.7]), Cond(torch.tensor([0, 1]))
    with torch.no_grad():
        context = model.encode(torch.randn(2, 1, 8, 8), torch.tensor([0.5, 0.9]), cond).aged()
        torch.testing.assert_close(model.denoise(z, t, context, cond), alone.denoise(z, t, Context(), cond))
    last = [list(way.parameters())[-1] for way in networks["encoder"].get_submodule("projections").children()]
    gradients = torch.autograd.grad(model.denoise(z, t, model.encode(z, t, cond).aged(), cond).sum(), last)
    assert all(gradient.abs().max() > 0 for gradient in gradients)  # it can learn to use it


def test_an_encoder_without_a_head_starts_from_a_run_with_one(tmp_path):
    run = saved(ONE, tmp_path / "run")
    networks, _ = replace(TWO, networks=TwoNetworks(replace(NET, head=False), NET)).build()
    start_from(networks, run, None)
    stem = load(run).networks.get_submodule("model.stem").state_dict()
    torch.testing.assert_close(networks.get_submodule("encoder.net.stem").state_dict(), stem)


def test_networks_are_drawn_from_the_seed_alone():
    torch.manual_seed(1)
    first = ONE.build()[0].state_dict()
    torch.manual_seed(2)
    second = ONE.build()[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
