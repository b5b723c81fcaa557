"""Objects that people hold print in a few lines what matters, and in a notebook show the calls of their plan."""

import re
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from runs.made import saved

import dualrate as dr
from dualrate.codecs.codec import CodecFolder
from dualrate.diffusion.context import Batch, Context, Refresh
from dualrate.experiment import model as model_module
from dualrate.experiment.experiment import Stages
from dualrate.methods.early_exit import EarlyExitConfig, EarlyExitNetwork
from dualrate.recipes.fashion_mnist_latents import STAGES
from dualrate.training.config import FitResult

NET = dr.UViTConfig(
    8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 2)), 3, patch=2, embedding=16, head_dim=16
)
FIT = dr.FitConfig(iterations=4000, batch_size=32)
PAIR = dr.Experiment(
    "pair", dr.TwoNetworks(NET, NET), dr.DenoisingConfig(dr.TimeSampler()), FIT, dr.DataConfig("clothes.npz")
)
SINGLE = replace(PAIR, name="single", networks=dr.OneNetwork(NET), method=dr.DenoisingConfig())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dr.Model:
    return dr.load(saved(PAIR, tmp_path_factory.mktemp("runs") / "pair"))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dr.Model:
    return dr.load(saved(SINGLE, tmp_path_factory.mktemp("runs") / "single"))


def lines(value: object) -> list[str]:
    """The lines that it prints: six at most, of a length that can be read."""
    shown = repr(value).splitlines()
    assert len(shown) <= 6, repr(value)
    assert all(len(line) < 200 for line in shown), repr(value)
    return shown


def test_a_model_says_what_it_is_what_a_call_costs_and_where_it_is(pair: dr.Model) -> None:
    first, networks, training, sampling, weights = lines(pair)
    assert "pair" in first
    assert "dual-rate" in first
    assert str(pair.path) in weights
    assert pair.weights_hash[:12] in weights
    for name, count in pair.parameters.items():
        assert f"{name} {count:,}" in networks
    macs = [1000 * float(number) for number in re.findall(r"([\d.]+) kMACs", networks)]
    assert macs == pytest.approx([pair.call_cost.heavy, pair.call_cost.light], rel=0.01)
    assert all(part in training for part in ("clothes.npz", "4,000 iterations", "32", f"iteration {pair.iteration}"))
    assert "32 steps, 8 heavy calls" in sampling


def test_a_large_model_is_counted_without_being_run(pair: dr.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = repr(replace(pair))
    monkeypatch.setattr(model_module, "QUICK", 0)
    assert repr(replace(pair, denoiser=cast(dr.Denoiser, None))) == expected


@pytest.mark.parametrize("name", ["taylor", "toca", "shared-encoder"])
@pytest.mark.parametrize("quick", [0, 10**9])
def test_a_model_under_a_cache_says_so(
    single: dr.Model, name: str, quick: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "QUICK", quick)
    _, networks, _, sampling, _ = lines(single.with_denoiser(name))
    assert f"called by {name}" in sampling
    assert re.search(r"kMACs a heavy call, .* kMACs a light call", networks)


def test_printing_a_model_reads_no_codec_and_no_data(single: dr.Model, tmp_path: Path) -> None:
    latents = replace(SINGLE, codec=CodecFolder(str(tmp_path / "gone"), "0" * 64))
    assert "kMACs" in lines(replace(single, experiment=latents))[1]


def test_an_experiment_says_what_it_will_be() -> None:
    first, networks, training, sampling = lines(PAIR)
    built = PAIR.build()[0]
    for name, network in built.items():
        assert f"{name} {sum(weight.numel() for weight in network.parameters()):,}" in networks
    assert "MACs a heavy call" in networks
    assert all(part in training for part in ("clothes.npz", "4,000 iterations", "batches of 32"))
    assert "pair" in first
    assert "8 heavy calls" in sampling
    assert "heavy" not in repr(SINGLE)
    endless = replace(PAIR, data=dr.DataConfig(""), fit=dr.FitConfig(iterations=None, max_seconds=120))
    assert "no data yet: 120 s" in lines(endless)[2]


def test_a_model_that_was_trained_elsewhere_says_no_training_of_its_own(single: dr.Model) -> None:
    elsewhere = replace(SINGLE, data=dr.DataConfig(""), fit=dr.FitConfig(iterations=1))
    assert lines(replace(single, experiment=elsewhere, iteration=0))[2] == "  training  none here"
    assert "1 iteration, batches" in lines(elsewhere)[2]


def test_an_experiment_of_calls_that_depend_on_numbers_prints_what_can_be_counted() -> None:
    exits = replace(PAIR, networks=EarlyExitNetwork(NET), method=EarlyExitConfig())
    assert re.search(r"parameters: exits [\d,]+$", lines(exits)[1])


def test_printing_draws_no_random_number_and_warns_of_nothing(pair: dr.Model, recwarn: pytest.WarningsRecorder) -> None:
    before = torch.get_rng_state()
    for value in (PAIR, pair, STAGES["fashion-mnist-latents"][1]()):
        repr(value)
    assert torch.equal(torch.get_rng_state(), before)
    assert not list(recwarn)


def test_stages_name_both_trainings() -> None:
    stages = STAGES["fashion-mnist-latents"][1]()
    assert isinstance(stages, Stages)
    assert [name in line for name, line in zip((stages.first.name, stages.base.name), lines(stages)[1:], strict=True)]


def test_a_plan_shows_its_calls() -> None:
    plan = dr.StepPlan.late(8, 2, 2).renewing([Refresh.PARTIAL, Refresh.KEEP])
    (line,) = lines(plan)
    assert "8 steps, 2 heavy calls" in line
    assert line.endswith("..H-+H-+)")
    assert len(lines(dr.StepPlan.uniform(1000, 30))) == 1


def bars(html: str) -> dict[str, int]:
    """How many bars an inline SVG has of each kind of step."""
    return {name: path.count("M") for name, path in re.findall(r'<path class="(\w+)" d="([^"]*)"', html)}


def test_a_notebook_shows_a_bar_for_each_step(pair: dr.Model) -> None:
    plan = dr.StepPlan.late(16, 4, 4)
    expected = {"none": 4, "full": 4, "keep": 8}
    drawer = dr.Choice(plan=plan).drawer(pair)
    for value in (plan, dr.Choice(plan=plan), drawer):
        assert bars(value._repr_html_() or "") == expected
    for value in (PAIR, pair):
        assert bars(value._repr_html_()) == {"full": 8, "keep": 24}
    assert dr.Choice(8)._repr_html_() is None  # whose plan the model decides


def test_html_shows_names_as_they_are(pair: dr.Model) -> None:
    other = replace(pair, path=Path("<b>&"))
    assert "&lt;b&gt;&amp;" in other._repr_html_()
    assert "<b>" not in other._repr_html_()


def test_a_choice_prints_what_was_chosen(pair: dr.Model) -> None:
    assert repr(dr.Choice()) == "Choice()"
    assert repr(dr.Choice(16, 4, sampler="ddim")) == "Choice(steps=16, heavy=4, sampler='ddim')"
    (line,) = lines(Context(tuple(torch.zeros(1, i) for i in range(9))))
    assert "float32 (1, 3), ..., float32 (1, 8)]" in line
    (line,) = lines(dr.Choice(16, 4).settled(pair))
    assert "StepPlan(16 steps, 4 heavy calls" in line


def test_a_drawer_prints_its_model_and_its_plan(pair: dr.Model) -> None:
    drawer = dr.Choice(16, 4).drawer(pair, label=2, batch_size=7)
    first, how, plan = lines(drawer)
    assert str(pair) in first
    assert all(part in how for part in (drawer.sampler, "7 at a time", "class 2"))
    assert "16 steps, 4 heavy calls" in plan


def test_values_that_hold_arrays_print_their_shapes() -> None:
    label, z = torch.tensor([1, 2]), torch.zeros(2, 1, 8, 8)
    assert repr(dr.Cond()) == "Cond()"
    assert repr(dr.Cond(label, z)) == "Cond(label=int64 (2,), given=float32 (2, 1, 8, 8))"
    context = dr.Context((z, z), tau=torch.tensor([0.5, 0.5]), keeps=1, earlier=(dr.Context((z,)),))
    assert repr(context) == (
        "Context(features=[float32 (2, 1, 8, 8), float32 (2, 1, 8, 8)], tau=float32 (2,), keeps=1, "
        "earlier=[Context(features=[float32 (2, 1, 8, 8)])])"
    )
    assert repr(Batch(z, label, label)) == "Batch(x=float32 (2, 1, 8, 8), label=int64 (2,), sample=int64 (2,))"
    assert len(lines(dr.Context((z,) * 40))[0]) < 200


def test_the_end_of_a_training_says_how_and_where() -> None:
    result = FitResult(4000, "done", 812.4, 1000, Path("runs/pair"))
    (line,) = lines(result)
    assert all(part in line for part in ("done", "4,000", "1,000", "812 s", "runs/pair"))
    assert result == FitResult(4000, "done", 812.4, 1000)
