"""ImageNet's recipes: the layouts of every size, how noise and loss follow the size, and one step of a small copy."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from dualrate.cli import distill, train
from dualrate.config.serial import from_plain, to_plain
from dualrate.data.loader import Augment
from dualrate.diffusion.context import Batch
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Interpolated, Truncated
from dualrate.experiment.experiment import Experiment
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.em_distillation import Langevin
from dualrate.networks.uvit import UViTConfig
from dualrate.recipes import imagenet
from dualrate.runs.store import write_experiment

RECIPES = {
    name: recipe
    for name, recipe in train.RECIPES.items()
    if name.startswith("imagenet") and "latents" not in name and "decoder" not in name
}


def tiny(config: UViTConfig) -> UViTConfig:
    """The same levels and patches with a 32nd of the channels and one block each, at 2 x 2 positions in the middle."""
    levels = tuple(replace(level, channels=level.channels // 32, blocks=1) for level in config.levels)
    side = config.patch * 2 ** len(levels)
    return replace(config, image_size=side, levels=levels, num_classes=5, embedding=16, head_dim=4)


def test_every_layout_has_its_three_recipes_and_its_students():
    names = ["imagenet64", "imagenet128", "imagenet256", "imagenet512"]
    assert list(RECIPES) == [f"{name}-{kind}" for name in names for kind in ("heavy", "light", "dual")]
    for name in names:
        assert distill.RECIPES[name]().light == RECIPES[f"{name}-light"]().networks.configs["model"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_read_again_as_it_is(name):
    experiment = RECIPES[name]()
    assert experiment.name == name
    assert from_plain(Experiment, json.loads(json.dumps(to_plain(experiment)))) == experiment


@pytest.mark.parametrize("name", RECIPES)
def test_levels_have_the_stated_positions(name):
    """At the coarsest 16 a side, or 32 where the finest level has 256."""
    for config in RECIPES[name]().networks.configs.values():
        assert config.image_size == int(name.removeprefix("imagenet").partition("-")[0])
        sides = [config.sides(i)[0] for i in range(len(config.levels))]
        assert sides[0] == config.image_size // config.patch
        assert sides[-1] == {64: 16, 128: 16, 256: 32}[sides[0]]
        assert [level.kind for level in config.levels[-3:]] == ["conv", "transformer", "transformer"]


@pytest.mark.parametrize(("size", "millions"), [(64, (315.9, 67.6)), (256, (319.3, 71.0)), (512, (323.2, 73.0))])
def test_networks_can_be_made_without_their_weights(size, millions):
    with torch.device("meta"):
        networks, _ = imagenet.dual(size).build()
    counted = tuple(sum(p.numel() for p in network.parameters()) / 1e6 for network in networks.values())
    assert counted == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_larger_images_get_more_noise_and_less_weight_on_detail(size):
    """Half the way the log-SNR is half of 2 log(32 / size) below the plain cosine's, which is 0 there."""
    experiment = imagenet.dual(size)
    half = torch.tensor(0.5, dtype=torch.float64)
    expected = torch.log(torch.tensor(32 / size, dtype=torch.float64))
    assert experiment.process.schedule.log_snr(half) == pytest.approx(float(expected), abs=0.05)  # the end points stay
    ends = experiment.process.schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([15, -15])
    assert isinstance(experiment.method, DenoisingConfig)
    assert experiment.method.weighting.bias == {64: 0, 128: 0, 256: -1, 512: -3}[size]


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith(("heavy", "dual"))])
def test_a_small_copy_trains_a_step(name):
    recipe = RECIPES[name]()
    parts = {role: tiny(config) for role, config in recipe.networks.configs.items()}
    data = replace(recipe.data, augment=replace(recipe.data.augment, translate=0))
    experiment = replace(recipe, networks=replace(recipe.networks, **parts), data=data)
    assert isinstance(experiment.method, DenoisingConfig)
    (phase,) = experiment.method.build(experiment).phases(0)
    batch = Batch(torch.rand(4, *experiment.shape) * 2 - 1, torch.arange(4), torch.arange(4))
    optimizer = torch.optim.AdamW(phase.parameters, lr=1e-3)
    losses = []
    for _ in range(3):  # zero-initialised blocks let gradients through from the second step on
        loss = phase.loss(batch, 0, Draws(0, batch.sample)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(parameter).all() for parameter in phase.parameters)


def test_the_three_recipes_of_a_size_differ_in_their_networks_alone():
    """A comparison of them is one of networks, not of augmentation (random translation: 1.30 to 1.26 in the paper)."""
    for size in imagenet.SIZES:
        heavy, light, dual = (recipe(size) for recipe in (imagenet.heavy, imagenet.light, imagenet.dual))
        assert heavy.data == light.data == dual.data
        assert heavy.data.augment == Augment(flip=True, translate=4)
        assert heavy.fit == light.fit == dual.fit


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """The experiment of a student of an ImageNet teacher, of 64 pixels if not of others, by some options."""
    root = tmp_path_factory.mktemp("teachers")
    for size in (64, 128):
        (root / str(size)).mkdir()
        write_experiment(root / str(size), imagenet.heavy(size))

    def student(*options, size: int = 64) -> Experiment:
        teacher = root / str(size)
        return distill.parse_distill([f"imagenet{size}", "--teacher", str(teacher), *options]).of(teacher)

    return student


def test_students_have_the_settings_of_papers_where_the_command_does_not_say(student):
    moments, instant = student(), student("--version", "instant")
    assert (moments.method.student_rate, instant.method.student_rate) == (1.0, 1.0)
    assert (moments.fit.batch_size, moments.fit.optim.decay) == (2048, "linear")
    for size in (64, 128):  # c = 1e-4 in the norm of all numbers of an image
        found = student("--method", "consistency", "--steps", "2", size=size).method.huber
        assert found * (3 * size * size) ** 0.5 == pytest.approx(1e-4)
    em = student("--method", "em").method
    assert (em.langevin, em.student_rate) == (Langevin(16, 0.16, 0.01), 1.0)
    assert student("--student-rate", "0.3").method.student_rate == 0.3
    assert student("--method", "consistency", "--huber", "0.5").method.huber == 0.5
    assert student("--method", "em", "--langevin-steps", "1", "--latent-step", "0").method.langevin == Langevin(
        1, 0.16, 0
    )


@pytest.mark.parametrize("by", ["moments", "consistency", "em"])
def test_a_student_s_schedule_is_shifted_further(student, by):
    """By 2 log(1 / 2), noise is set at half the resolutions: the setting that papers report for 2 steps."""
    schedule = student("--method", by, "--shift", str(2 * math.log(1 / 2)), size=128).process.schedule
    schedule = schedule.whole if isinstance(schedule, Truncated) else schedule
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(schedule.log_snr(t), Interpolated.between(16, 64, 128).log_snr(t))


def test_training_by_consistency_from_data_has_the_loss_and_the_decay_of_the_paper():
    made = train.parse_train(["imagenet64-heavy", "--method", "consistency", "--method.steps", "2"]).experiment
    assert made.method.huber * (3 * 64 * 64) ** 0.5 == pytest.approx(1e-4)
    assert (made.method.steps, made.fit.optim.decay) == (2, "linear")
    other = train.parse_train(["cifar10-heavy", "--method", "consistency"]).experiment
    assert (other.method.huber, other.fit.optim.decay) == (None, "cosine")
