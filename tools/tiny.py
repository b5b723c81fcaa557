"""The recipes of the GPU queue with a few channels, and made-up images for them: its pieces in seconds of a CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes import cifar10
from dualrate.recipes.students import StudentRecipe
from dualrate.training.config import FitConfig


def network(channels: int) -> UViTConfig:
    levels = (Level("conv", channels, 1), Level("transformer", channels, 1))
    return UViTConfig(32, 3, levels, num_classes=10, patch=4, embedding=16, head_dim=8)


def tiny(experiment: Experiment) -> Experiment:
    return replace(experiment, fit=quick(experiment.fit))


def quick(fit: FitConfig) -> FitConfig:
    return replace(fit, batch_size=4, compile=False)


def heavy() -> Experiment:
    return tiny(replace(cifar10.single("heavy"), networks=OneNetwork(network(32))))


def medium() -> Experiment:
    return tiny(replace(cifar10.single("medium"), networks=OneNetwork(network(24))))


def light() -> Experiment:
    return tiny(replace(cifar10.single("light"), networks=OneNetwork(network(16))))


def dual() -> Experiment:
    return tiny(replace(cifar10.dual(), networks=TwoNetworks(network(32), network(16))))


def dual_45() -> Experiment:
    return tiny(replace(cifar10.dual_45(), networks=TwoNetworks(network(24), network(16))))


def distilled() -> StudentRecipe:
    recipe = cifar10.distilled()
    return replace(recipe, light=network(16), fit=quick(recipe.fit))


def make_images(folder: Path, count: int = 640) -> None:
    """Noise around a colour of its class, as PNG files in a folder a class and split."""
    rng = np.random.default_rng(0)
    for index in range(count):
        label, split = index % 10, "test" if index % 3 == 0 else "train"
        pixels = np.clip(rng.normal(25 * label, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
        place = folder / split / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index:04}.png")
