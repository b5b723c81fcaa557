"""Networks that fit one's own images: for every side, in every size, in grey and colour, with classes and without."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from dualrate.data.images import Look
from dualrate.data.source import Raw
from dualrate.diffusion.schedule import Cosine, Interpolated
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import SingleTime
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes import cifar10, fashion_mnist
from dualrate.recipes.auto import SIDES, TIERS, account, experiment, name_of, network, rates
from dualrate.recipes.tasks import reduced
from dualrate.sampling.cost import call_cost, macs_of

DATA = DataConfig("photos")


def look(*shapes: tuple[int, int, int], classes: int = 0, count: int | None = None) -> Look:
    items = [(str(i), np.zeros(shape, np.uint8)) for i, shape in enumerate(shapes)]
    names = tuple(f"class {i}" for i in range(classes))
    return Look("photos/train", Raw(items, count or len(items), None, names))


def square(side: int, channels: int = 3, classes: int = 0) -> Look:
    return look((channels, side, side), classes=classes)


@pytest.mark.parametrize("size", TIERS)
@pytest.mark.parametrize("side", SIDES)
def test_there_are_networks_for_every_side(size, side):
    """The middle has 4 to 8 positions a side, and the finest level holds all numbers of a patch."""
    made = experiment(square(side), replace(DATA, size=side), size)
    assert isinstance(made.networks, TwoNetworks)
    assert made.shape == (3, side, side)
    for config in (made.networks.encoder, made.networks.light):
        assert 4 <= config.sides(len(config.levels) - 1)[0] <= 8
        assert config.levels[0].channels >= 3 * config.patch**2
        assert len(config.levels) >= 2
    assert [config.levels[-1].kind for config in (made.networks.encoder, made.networks.light)] == [
        "transformer",
        "conv",
    ]


@pytest.mark.parametrize("size", TIERS)
@pytest.mark.parametrize("rate", ["dual", "single"])
def test_networks_run_on_what_they_were_made_for(size, rate):
    made = experiment(square(20, channels=1, classes=3), DATA, size, rate)
    _, denoiser = made.build()
    cost = call_cost(denoiser, made.shape, 2)
    assert cost.light > 0
    assert (cost.heavy > 2 * cost.light) == (rate == "dual")
    assert isinstance(made.method.times, SingleTime) == (rate == "single")
    assert made.num_classes == 3


@pytest.mark.parametrize(
    ("shapes", "size", "side"),
    [
        ([(3, 28, 28)], "small", 28),
        ([(3, 36, 48)], "small", 32),
        ([(3, 48, 48)], "tiny", 48),
        ([(3, 50, 50)], "tiny", 48),
        ([(3, 100, 100)], "tiny", 64),
        ([(3, 100, 100)], "base", 96),
        ([(3, 2000, 3000)], "base", 128),
        ([(3, 9, 30), (3, 70, 41), (3, 500, 64)], "tiny", 40),  # the middle short side is 41
        ([(3, 8, 9)], "tiny", 8),
    ],
)
def test_the_side_is_the_middle_short_side_rounded_down_within_the_size_s_reach(shapes, size, side):
    made = experiment(look(*shapes), DATA, size)
    assert made.data.size == made.shape[1] == side


def test_a_side_of_one_s_own_holds_beyond_that_reach():
    assert experiment(square(300), replace(DATA, size=256), "tiny").shape == (3, 256, 256)


def test_images_too_small_and_sides_without_networks_are_refused():
    with pytest.raises(ValueError, match=r"short side of 7 pixels.*--data\.size 8"):
        experiment(square(7), DATA)
    with pytest.raises(ValueError, match=r"100 x 100.*--data.size, .* one of 8, 10, .* 96, 112"):
        experiment(square(100), replace(DATA, size=100))


def test_grey_needs_all_images_to_be():
    assert experiment(look((1, 8, 8), (1, 8, 8)), DATA).shape[0] == 1
    assert experiment(look((1, 8, 8), (3, 8, 8)), DATA).data.channels == 3
    assert experiment(look((3, 8, 8)), replace(DATA, channels=1)).shape[0] == 1


def test_images_are_not_opened_for_what_is_said_already():
    unread = Look("photos", Raw(iter(()), 5, None, ()))
    made = experiment(unread, replace(DATA, size=32, channels=3))
    assert "5 images, no labels" in account(unread, replace(DATA, size=32, channels=3), made)


@pytest.mark.parametrize(("classes", "expected"), [(0, 0), (1, 0), (2, 2), (1000, 1000)])
def test_one_class_is_none(classes, expected):
    assert experiment(square(16, classes=classes), DATA).num_classes == expected


def test_the_rest_of_the_data_s_options_is_kept():
    asked = replace(DATA, on_bad="skip", augment=replace(DATA.augment, flip=True))
    assert experiment(square(16), asked).data == replace(asked, size=16, channels=3)


def test_noise_is_interpolated_above_32_pixels():
    assert experiment(square(32), DATA).process.schedule == Cosine()
    assert experiment(square(64), DATA).process.schedule == Interpolated.between(32, 64, 64)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/some/where/my photos/", "my-photos"),
        ("a/cifar.v1.npz", "cifar-v1"),
        ("b/train.parquet", "train"),
        ("fashion-mnist", "fashion-mnist"),
        ("/", "images"),
        ("era5/*.nc", "era5"),
        ("era5/**/2000-0[1-4].nc", "era5"),
    ],
)
def test_a_run_is_named_after_its_source(source, name):
    assert name_of(source) == name


def test_what_was_chosen_is_said():
    asked, mixed = DATA, look((3, 36, 48), (3, 60, 40), classes=2, count=3)
    told = account(mixed, asked, experiment(mixed, asked))
    assert "3 images, 2 classes, short sides of 36 to 40 pixels" in told
    assert "each becomes 32 x 32, in colour" in told
    assert "mirrored in training: none" in told
    heavy, light = experiment(mixed, asked).networks.configs.values()
    assert f"{heavy.macs / light.macs:.1f} times the multiply-adds" in rates(experiment(mixed, asked))
    assert rates(experiment(mixed, asked, rate="single")) == "one network at every step"


def test_small_at_28_is_the_heavy_network_of_fashion_mnist():
    assert network(TIERS["small"], 28, 1, 10) == fashion_mnist.HEAVY


def macs(config: UViTConfig) -> int:
    made = Experiment("x", OneNetwork(config), DenoisingConfig(), TIERS["tiny"].fit)
    return call_cost(made.build()[1], made.shape, None).light


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", TIERS)
@pytest.mark.parametrize("side", SIDES)
def test_a_light_network_is_light_at_every_side(size, side, channels):
    """An unconditional pair, and one of a task."""
    heavy = network(TIERS[size], side, channels, 0)
    for light in (heavy.lighter(), reduced(heavy, "light")):
        assert heavy.macs >= 3 * light.macs
        TwoNetworks(heavy, light)  # refuses what does not fit


@pytest.mark.parametrize("size", ["light", "medium"])
@pytest.mark.parametrize("channels", [1, 3, 9, 12])
def test_every_number_of_a_patch_passes_through_a_smaller_network_as_through_its_heavy_one(channels, size):
    levels = Level("conv", 32, 1), Level("conv", 64, 3)
    heavy = UViTConfig(64, channels, levels, patch=2, height=32)  # that of three variables and three frames has 9
    smaller = reduced(heavy, size)
    assert smaller.levels[0].channels >= min(4 * channels, 32)
    assert heavy.macs >= 3 * smaller.macs
    TwoNetworks(heavy, smaller)


@pytest.mark.parametrize(("side", "size"), [(32, "tiny"), (64, "small"), (128, "tiny"), (256, "tiny")])
def test_multiply_adds_of_a_configuration_are_those_that_are_counted(side, size):
    heavy = network(TIERS[size], side, 3, 0)
    for config in (heavy, heavy.lighter(), replace(heavy, head=False)):
        with torch.device("meta"):
            inputs = torch.empty(1, 3, side, side), torch.empty(1), None
            counted = macs_of(partial(config.network().features, *inputs))
        assert config.macs == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    "heavy",
    [
        fashion_mnist.HEAVY,
        cifar10.NETWORKS["heavy"],
        UViTConfig(8, 1, (Level("transformer", 24, 1),), patch=2, head_dim=24),
        UViTConfig(8, 3, (Level("conv", 8, 1), Level("transformer", 48, 5, 0.1)), patch=2, head_dim=16),
    ],
)
def test_a_light_network_of_any_heavy_one_is_lighter_and_runs(heavy):
    light = heavy.lighter()
    assert macs(light) < macs(heavy)
    assert not any(level.dropout for level in light.levels)
    TwoNetworks(heavy, light).build(Experiment("x", OneNetwork(heavy), DenoisingConfig(), TIERS["tiny"].fit).process)


@pytest.mark.parametrize("height", [None, 1])
def test_the_middle_of_a_light_network_costs_what_half_the_heavy_one_s_transformers_do(height):
    heavy = UViTConfig(64, 1, (Level("conv", 16, 1), Level("transformer", 384, 4)), head_dim=32, height=height)
    light = heavy.lighter()
    halved, wider = (
        replace(light, levels=(light.levels[0], middle))
        for middle in (Level("transformer", 192, 2), replace(light.levels[1], channels=light.levels[1].channels + 16))
    )
    assert macs(light) < 1.02 * macs(halved) < macs(wider)  # the embedding's share differs


def test_a_finest_level_is_never_narrower_than_its_patch():
    wide = UViTConfig(64, 3, (Level("conv", 48, 1), Level("transformer", 64, 1)), patch=4)
    assert wide.lighter().levels[0].channels == 48
    assert replace(wide, levels=(Level("conv", 16, 1), *wide.levels[1:])).lighter().levels[0].channels == 16


def test_the_choice_is_the_same_every_time():
    assert experiment(square(48, classes=2), DATA) == experiment(square(48, classes=2), DATA)
    assert torch.equal(*(next(iter(experiment(square(16), DATA, "tiny").build()[0].parameters())) for _ in range(2)))
