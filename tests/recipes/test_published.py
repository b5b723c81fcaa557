"""The paper's form of a dual-rate experiment: each of its parts, in configuration, training and sampling."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dualrate.cli.train import parse_train
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.drawing.choice import Choice
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.model import Model
from dualrate.experiment.network_configs import TwoNetworks
from dualrate.experiment.summary import on_paper
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.networks.concatenated import ConcatenatedConfig
from dualrate.networks.sid2 import SiD2Config
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes import cifar10, fashion_mnist, imagenet
from dualrate.recipes.published import as_published, as_sid2, listed_costs
from dualrate.runs.store import read_experiment, write_experiment
from dualrate.training.config import FitConfig

LIGHT = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), embedding=16, head_dim=8)
HEAVY = UViTConfig(8, 1, (Level("conv", 16, 1), Level("transformer", 32, 1)), embedding=16, head_dim=8)
SMALL = Experiment("small", TwoNetworks(HEAVY, LIGHT), DenoisingConfig(TimeSampler((2, 4))), FitConfig(2))


def randomised(network):
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return network.double()


def test_features_are_concatenated_and_then_projected():
    """W [h; e] by one convolution of both, against W_h h in the network and W_e e from the encoder, in float64."""
    torch.manual_seed(0)
    network = randomised(ConcatenatedConfig(**vars(LIGHT)).network())
    heavy = [torch.randn(3, 16, 8, 8).double(), torch.randn(3, 32, 4, 4).double()]  # e
    projections = [torch.randn(8, 16, 1, 1).double(), torch.randn(16, 32, 1, 1).double()]  # W_e
    whole = [torch.cat((part[1].weight, projections[i]), 1) for i, part in enumerate((network.stem, network.shrink[0]))]
    z, emb = torch.randn(3, 1, 8, 8).double(), torch.randn(3, 16).double()
    plain = network.stem[0](z)
    first = network.down[0](F.conv2d(torch.cat((plain, heavy[0]), 1), whole[0]), emb)
    plain = network.shrink[0][0](F.avg_pool2d(first, 2))
    middle_input = F.conv2d(torch.cat((plain, heavy[1]), 1), whole[1])
    added = [F.conv2d(e, w) for e, w in zip(heavy, projections, strict=True)]
    h, ((before, _),) = network.descend(network.patches(z), emb, added)
    torch.testing.assert_close(before, first)
    torch.testing.assert_close(h, middle_input)


def test_it_begins_as_where_features_are_added():
    torch.manual_seed(0)
    added, network = LIGHT.network(), ConcatenatedConfig(**vars(LIGHT)).network()
    weights = network.state_dict().items()
    plain = {name.replace("stem.0", "stem").replace("shrink.0.0", "shrink.0"): weight for name, weight in weights}
    added.load_state_dict({name: weight for name, weight in plain.items() if name in added.state_dict()})
    z, emb = torch.randn(2, 1, 8, 8), torch.randn(2, 16)
    features = [torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)]
    for level, same in zip(network.trunk(z, emb, features), added.trunk(z, emb, features), strict=True):
        torch.testing.assert_close(level, same)


def test_each_part_of_the_paper_is_there():
    for recipe in (cifar10.dual(), fashion_mnist.dual(), imagenet.dual(64), SMALL):
        paper = as_published(recipe)
        networks, times = paper.networks, paper.method.times
        assert isinstance(networks.light, ConcatenatedConfig)
        assert not networks.encoder.head
        assert (times.dropout, times.phase, times.first, times.heavy) == (0.5, 0, None, recipe.method.times.heavy)
        assert replace(networks.encoder, head=True) == recipe.networks.encoder
        assert (paper.fit, paper.data, paper.process) == (recipe.fit, recipe.data, recipe.process)


def test_training_looks_back_to_an_even_grid_and_drops_half():
    times = as_published(SMALL).method.times(Draws(0, torch.arange(4096)))
    grids = [(times.tau * heavy - (times.tau * heavy).round()).abs() < 1e-9 for heavy in (2, 3, 4)]
    assert torch.stack(grids).any(0).all()
    assert (times.tau - times.t).min() >= 0
    assert len(times.heavy_rows) == 2048


def test_it_is_drawn_on_the_even_grid_from_t_1_by_the_ancestral_sampler(tmp_path):
    """And the light network runs at every step."""
    paper = as_published(SMALL)
    write_experiment(tmp_path, paper)
    assert read_experiment(tmp_path) == paper
    model = Model("paper", paper, *paper.build(), 0, "")
    drawer = Choice(steps=8, heavy=2).drawer(model)
    assert drawer.plan == StepPlan.uniform(8, 2)
    assert Choice().settled(model).sampler == "ancestral"
    assert (drawer.cost.heavy_calls, drawer.cost.light_calls) == (2, 8)
    assert Choice(steps=8, heavy=2, places="late").step_plan(model) == StepPlan.late(drawer.plan.t, 2, 2)
    added = Model("added", SMALL, *SMALL.build(), 0, "")
    assert Choice(steps=8, heavy=2).step_plan(added) != drawer.plan


def test_costs_of_both_forms_are_printed():
    """A light call costs one projection of a level more: the squares of its channels, at its positions."""
    paper = as_published(SMALL)
    (_, theirs), (_, ours) = on_paper(paper), on_paper(SMALL)
    assert theirs.light - ours.light == 8 * 8 * 64 + 16 * 16 * 16
    says = listed_costs(paper, SMALL).splitlines()
    assert says[::2] == ["small-as-paper", "small"]
    assert all("a heavy call" in line and "a light call" in line for line in says[1::2])


def test_one_word_of_a_recipe_asks_for_it(capsys):
    """And prints what both forms cost."""
    experiment = parse_train(["cifar10-dual", "--as", "paper", "--fit.iterations", "9"]).experiment
    assert experiment == replace(as_published(cifar10.dual()), fit=experiment.fit)
    assert (experiment.name, experiment.fit.iterations) == ("cifar10-dual-as-paper", 9)
    assert capsys.readouterr().err == listed_costs(as_published(cifar10.dual()), cifar10.dual()) + "\n"
    parse_train(["cifar10-dual"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cifar10-heavy"], "cifar10-heavy is a single-rate model"),
        (["fashion-mnist-tokens-dual"], "fashion-mnist-tokens-dual has a TokensConfig"),
        (["cifar10-dual", "--method=consistency"], "trained by ConsistencyConfig"),
        (["fashion-mnist-flat", "--body", "dit", "--rate", "dual"], "has a DiTConfig"),
    ],
)
def test_other_models_have_no_such_form(words, says):
    with pytest.raises(ValueError, match=says):
        parse_train([*words, "--as=paper"])


def test_sid2_asks_for_its_parts_of_one_network_or_two(tmp_path, capsys):
    for recipe in (cifar10.dual(), SMALL):
        configs = as_sid2(recipe).networks.configs
        assert {name: type(config) for name, config in configs.items()} == dict.fromkeys(configs, SiD2Config)
        assert {config.norm for config in configs.values()} == {"group"}
    words = ["imagenet256-heavy", "--as=sid2", "--networks.model.downsampling", "5/3"]
    experiment = parse_train(words).experiment
    assert experiment.networks.model.downsampling == "5/3"
    assert capsys.readouterr().err.splitlines()[::2] == ["imagenet256-heavy-as-sid2", "imagenet256-heavy"]
    write_experiment(tmp_path, experiment)
    assert read_experiment(tmp_path) == experiment
    with pytest.raises(ValueError, match="fashion-mnist-tokens has no U-ViT"):
        parse_train(["fashion-mnist-tokens", "--as", "sid2"])
