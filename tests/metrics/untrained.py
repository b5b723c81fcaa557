"""Judges that nobody trained, the same at every call: for tests of what is done with features."""

import hashlib

import torch

from dualrate.metrics.features import Architecture, Card, FeatureNet
from dualrate.metrics.trained_network import weight_bytes


def untrained(architecture: Architecture, name: str = "noise", accuracy: float | None = None) -> FeatureNet:
    """As torch initialises it from the seed 0; FD-<name>."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = architecture.build().eval().requires_grad_(False)
    identity = hashlib.sha256(weight_bytes(module)).hexdigest()
    return FeatureNet(Card(name, identity, architecture, "", accuracy, 0, 1), module)
