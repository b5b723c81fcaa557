"""Natural images of 16 x 16: means of 2 x 2 pixels, networks of stated shares of heavy's cost, one protocol for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dualrate.config.serial import to_plain
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.networks import OneNetwork, TwoNetworks
from dualrate.recipes import natural16
from dualrate.sampling.cost import call_cost

EXPERIMENTS = [*map(natural16.single, natural16.NETWORKS), natural16.dual()]


def test_pixels_are_means_of_two_by_two_with_the_stated_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(20) % 10)
    data = natural16.data(str(tmp_path / "images.npz"))
    found = np.concatenate([data.load("train").images, data.load("test").images])
    wide = images.astype(int).transpose(0, 3, 1, 2)
    pairs = (wide[..., 0::2] + wide[..., 1::2] + 1) // 2
    expected = (pairs[:, :, 0::2] + pairs[:, :, 1::2] + 1) // 2
    assert sorted(map(bytes, found)) == sorted(map(bytes, expected.astype(np.uint8)))
    above = expected - wide.reshape(20, 3, 16, 2, 16, 2).mean((3, 5))
    assert above.min() == 0
    assert above.max() == 1
    assert above.mean() == pytest.approx(0.5, abs=0.02)


def test_the_identity_of_a_run_knows_the_size():
    experiment = natural16.single("heavy", "cifar10")
    whole = replace(experiment, data=replace(experiment.data, size=32))
    assert to_plain(experiment) != to_plain(whole)


def test_costs_are_the_stated_shares_of_heavy():
    macs = {}
    for name, network in natural16.NETWORKS.items():
        _, denoiser = OneNetwork(network).build(GaussianProcess(Cosine()))
        macs[name] = call_cost(denoiser, network.shape, 0).light
    assert 100e6 <= macs["heavy"] <= 170e6
    for name, share in {"medium-45": 0.45, "medium-25": 0.25, "light": 0.17, "light-10": 0.09}.items():
        assert macs[name] / macs["heavy"] == pytest.approx(share, rel=0.06)


def test_the_pair_is_of_the_two_networks_that_it_says() -> None:
    networks = natural16.dual().networks
    assert isinstance(networks, TwoNetworks)
    assert (networks.encoder, networks.light) == (natural16.NETWORKS["medium-25"], natural16.NETWORKS["light-10"])


def test_all_are_trained_alike_but_for_the_number_of_iterations():
    assert [experiment.name for experiment in EXPERIMENTS] == [f"natural16-{name}" for name in natural16.ITERATIONS]
    fits = {replace(experiment.fit, iterations=1) for experiment in EXPERIMENTS}
    (fit,) = fits
    assert fit.optim.decay == "cosine"
    assert {experiment.data for experiment in EXPERIMENTS} == {natural16.data("cifar10")}
