"""Draws and measurements by several processes: what is sent to them, and that it is what one process does."""

import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawing.stand import Stand
from metrics.untrained import untrained
from runs.made import saved_random
from torch import nn

from dualrate.cli.main import main
from dualrate.codecs.codec import CodecFolder
from dualrate.data.images import ImageSet
from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer, Guidance, plain_step
from dualrate.drawing.measure import measure
from dualrate.drawing.planning import measured_errors
from dualrate.drawing.samples import write_samples
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.model import Model
from dualrate.experiment.network_configs import TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.metrics import pretrained
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.features import Architecture
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs import store
from dualrate.runs.store import load
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.catalogue import SAMPLERS
from dualrate.system.workers import in_turn, leading, packed
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16)
SEEDS = range(5, 45)


class Quiet:
    def __init__(self):
        self.told = []

    def update(self, iteration, total, logs):
        self.told.append((iteration, total))

    def note(self, text): ...
    def close(self): ...


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    path, source = (tmp_path_factory.mktemp("runs") / name for name in ("two", "images.npz"))
    noise = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 1), dtype=np.uint8)
    np.savez(source, images=noise, labels=np.arange(70) % 3)
    method, data = DenoisingConfig(times=TimeSampler()), DataConfig(str(source))
    experiment = Experiment("two", TwoNetworks(NET, NET), method, FitConfig(iterations=1), data)
    return load(saved_random(experiment, path))


@pytest.fixture(scope="module")
def drawer(model) -> Drawer:
    plan = StepPlan.uniform(3, 2)
    return Drawer(model, Ancestral(model.process, 0.2), plan, Guidance(1.5), batch_size=6, precision="float32")


@pytest.fixture(scope="module")
def images(model) -> ImageSet:
    return model.experiment.data.load("train")


@pytest.fixture(scope="module")
def judge(images) -> Evaluator:
    return Evaluator(untrained(Architecture(1, 8, 2, features=4)), images, None)


def test_a_score_is_the_same_kept_or_not_and_kept_features_are_found_with_any_number(drawer, judge, tmp_path):
    one, two = measure(drawer, SEEDS, judge), Stand()
    told = []
    over = measure(drawer, SEEDS, judge, progress=lambda *counts: told.append(counts), mapper=two)
    assert torch.equal(over.features[judge.metric], one.features[judge.metric])
    assert over.row.score == one.row.score
    assert (len(told), told[-1]) == (9, (40, 40))
    how = {"keep": tmp_path, "shard_size": 9}
    kept = measure(drawer, range(5, 27), judge, mapper=two, **how)
    more = measure(drawer, SEEDS, judge, **how)
    assert torch.equal(kept.features[judge.metric], more.features[judge.metric][:22])
    alone = measure(drawer, SEEDS, judge, keep=tmp_path / "one", shard_size=9)
    assert torch.equal(more.features[judge.metric], alone.features[judge.metric])


def few(monkeypatch, rows: int) -> None:
    """Images at a time."""
    monkeypatch.setattr("dualrate.drawing.planning.ROWS", rows)


def test_errors_are_measured_the_same(model, images, monkeypatch, tmp_path):
    """Packed as for another process."""
    few(monkeypatch, rows=4)
    two, progress, found = Stand(), Quiet(), []
    for name, over in {"one": in_turn, "two": two}.items():
        monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / name))
        found.append(measured_errors(model, grid=3, images=6, progress=progress, mapper=over).errors)
        done, total = progress.told[-1]
        assert done == total > 0
    assert np.array_equal(*found)


def test_a_model_of_no_directory_or_of_other_weights_is_refused(drawer, tmp_path):
    two = Stand()
    with pytest.raises(ValueError, match="was not loaded from a directory"):
        write_samples(replace(drawer, model=replace(drawer.model, path=None)), SEEDS, tmp_path / "a", mapper=two)
    other = replace(drawer, model=replace(drawer.model, weights_hash="f" * 64))
    with pytest.raises(ValueError, match="has other weights by now, of iteration 1: if it is being trained"):
        write_samples(other, SEEDS, tmp_path / "b", mapper=two)


def test_every_sampler_and_a_shared_encoder_are_what_they_were_in_another_process(model):
    """Sent and received in this process, which finds the model where it was."""
    for name in SAMPLERS:
        drawer = Choice(steps=4, heavy=4, sampler=name).drawer(model).resolved
        sent = pickle.loads(packed(drawer))
        assert (plain_step(sent.step), sent.plan, sent.origin("x")) == (
            plain_step(drawer.step),
            drawer.plan,
            drawer.origin("x"),
        )
    assert pickle.loads(packed(model)).path == model.path


@pytest.mark.parametrize("kind", pretrained.PRETRAINED)
def test_a_large_feature_net_is_loaded_by_another_process_once(kind, monkeypatch):
    net, loaded = pretrained.PhotoNet(kind, nn.Identity(), "x", 8, torch.device("cpu"), batch_size=7), []
    monkeypatch.setattr(pretrained, f"load_{kind}", lambda device, **_: loaded.append(net) or net)
    first, again = (pickle.loads(packed(net)) for _ in range(2))
    assert first is again
    assert first == net
    assert len(loaded) == 1


@pytest.mark.parametrize(
    ("command", "blocks"),
    [
        ("sample RUN --out OUT --num 7 --batch-size 3", 3),
        ("evaluate RUN --num 20 --batch-size 8 --features NET", 3),
        ("evaluate RUN --num 130 --features NET --keep OUT", 2),
        ("plan RUN --budget 0.5x --grid 8 --steps 4 --images 4 --out plan.json", 2),
    ],
)
def test_every_command_that_measures_hands_its_blocks_to_the_team(
    command, blocks, model, judge, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    few(monkeypatch, rows=2)
    judge.net.save(tmp_path / "net")
    places = {"RUN": str(model.path), "OUT": "out", "NET": "net"}
    words = [places.get(word, word) for word in command.split()]
    monkeypatch.setattr(sys, "argv", ["dualrate", *words])
    with leading(two := Stand()):
        main()
    assert two.blocks == blocks


def test_a_process_tells_models_apart_that_decode_otherwise(model):
    """One that has loaded a model keeps it: another codec of the same weights is another model."""
    other = replace(model, experiment=replace(model.experiment, codec=CodecFolder("elsewhere", "0")))
    (load_it, (one,)), (_, (two,)) = store._placed(model), store._placed(other)
    assert one != two
    assert [load_it(place).experiment.codec for place in (one, two, one)] == [
        model.experiment.codec,
        other.experiment.codec,
        model.experiment.codec,
    ]
