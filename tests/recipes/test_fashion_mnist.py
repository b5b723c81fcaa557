"""Fashion-MNIST: single networks and pairs of stated shares of heavy's cost."""

from __future__ import annotations

from functools import cache

import pytest

from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.networks.uvit import UViTConfig
from dualrate.recipes import fashion_mnist
from dualrate.sampling.cost import call_cost

SHARES: dict[fashion_mnist.Single, float] = {
    "heavy": 1.0,
    "medium-45": 0.45,
    "medium-25": 0.25,
    "light": 0.17,
    "light-10": 0.1,
    "light-05": 0.05,
}
PAIRS: dict[fashion_mnist.Pair, tuple[float, float]] = {
    "dual-45": (0.45, 0.17),
    "dual-25": (0.25, 0.1),
    "dual-17": (0.17, 0.05),
}


@cache
def macs(network: UViTConfig) -> int:
    _, denoiser = OneNetwork(network).build(GaussianProcess(Cosine()))
    return call_cost(denoiser, network.shape, 0).light


def share(network: UViTConfig) -> float:
    return macs(network) / macs(fashion_mnist.HEAVY)


@pytest.mark.parametrize("name", fashion_mnist.NETWORKS)
def test_a_single_network_costs_the_stated_share(name: fashion_mnist.Single) -> None:
    networks = fashion_mnist.single(name).networks
    assert isinstance(networks, OneNetwork)
    assert isinstance(networks.model, UViTConfig)
    assert share(networks.model) == pytest.approx(SHARES[name], rel=0.09)


@pytest.mark.parametrize("name", fashion_mnist.PAIRS)
def test_a_pair_is_of_networks_of_the_stated_shares(name: fashion_mnist.Pair) -> None:
    networks = fashion_mnist.dual(name).networks
    assert isinstance(networks, TwoNetworks)
    assert (share(networks.encoder), share(networks.light)) == pytest.approx(PAIRS[name], rel=0.09)
