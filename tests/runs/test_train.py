"""Training a run: a frozen encoder stays what it was."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from dualrate.experiments.denoising import DenoisingConfig
from dualrate.experiments.experiment import DataConfig, Experiment
from dualrate.experiments.networks import OneNetwork, TwoNetworks
from dualrate.experiments.upgrade import OF_THE_METHOD
from dualrate.methods.times import TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs.store import load
from dualrate.runs.train import train
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1, 0.5)), patch=2, embedding=16, head_dim=16)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A heavy run, and a dual-rate experiment that retrofits it."""
    root = tmp_path_factory.mktemp("runs")
    np.savez(root / "images.npz", images=np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8))
    fit = FitConfig(iterations=3, batch_size=8, precision="float32", sample_every=100)
    data = DataConfig(str(root / "images.npz"))
    train(Experiment("heavy", OneNetwork(NET), DenoisingConfig(), fit, data), root / "heavy")
    retrofit = Experiment(
        "retrofit",
        TwoNetworks(NET, NET),
        DenoisingConfig(times=TimeSampler(), encoder_from=str(root / "heavy"), freeze_encoder=True),
        fit,
        data,
    )
    return root, retrofit


def test_a_frozen_encoder_keeps_its_weights_and_the_rest_trains(runs):
    root, retrofit = runs
    train(retrofit, root / "frozen")
    heavy, after = load(root / "heavy").networks["model"], load(root / "frozen").networks
    for name, weight in heavy.state_dict().items():
        assert torch.equal(after.get_submodule("encoder.net").state_dict()[name], weight), name
    start = retrofit.build()[0].state_dict()
    moved = {name for name, weight in after.state_dict().items() if not torch.equal(weight, start[name])}
    assert any(name.startswith("light.") for name in moved)
    assert {"encoder.pixels.weight", "encoder.projections.0.weight", "encoder.projections.1.weight"} <= moved


def test_a_frozen_encoder_has_no_optimiser_state_and_no_average(runs):
    root, retrofit = runs
    train(retrofit, root / "state")
    saved = checkpoint.recover(root / "state" / "checkpoints", print)
    assert saved is not None
    for stem in ("optim-model", "ema-model"):
        assert saved.tensors[stem]
        assert not [name for name in saved.tensors[stem] if name.startswith("encoder.net.")], stem


def test_a_frozen_encoder_runs_without_dropout(runs):
    _, retrofit = runs
    networks = retrofit.method.build(retrofit).networks
    assert not networks.get_submodule("encoder.net").training
    assert networks["light"].training
    assert replace(retrofit.method, freeze_encoder=False).build(retrofit).networks.get_submodule("encoder.net").training


def test_a_run_that_an_earlier_version_wrote_goes_on(runs):
    """Its checkpoint says what the run is in that version's words."""
    root, _ = runs
    experiment = replace(
        load(root / "heavy").experiment, fit=replace(load(root / "heavy").experiment.fit, iterations=4)
    )
    shutil.copytree(root / "heavy", root / "earlier")
    saved = checkpoint.recover(root / "earlier" / "checkpoints", print)
    assert saved is not None
    identity = dict(saved.state["config"])
    method, process = identity.pop("method"), identity.pop("process")
    then = {name: method[name] for name in OF_THE_METHOD} | {"schedule": process["schedule"]}
    state = saved.state | {"config": identity | then}
    shutil.rmtree(saved.path)
    checkpoint.save(root / "earlier" / "checkpoints", 3, saved.tensors, state)
    assert train(experiment, root / "earlier").iteration == 4
    with pytest.raises(ValueError, match="trained with another configuration"):
        train(replace(experiment, method=DenoisingConfig(label_dropout=0.2)), root / "earlier")


def test_other_images_are_another_run(runs):
    root, _ = runs
    shutil.copytree(root / "heavy", root / "moved")
    np.savez(root / "others.npz", images=np.random.default_rng(1).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8))
    content = (root / "images.npz").read_bytes()
    try:
        shutil.copy(root / "others.npz", root / "images.npz")
        with pytest.raises(ValueError, match="images"):
            train(load(root / "heavy").experiment, root / "moved")
    finally:
        (root / "images.npz").write_bytes(content)


def test_freezing_nothing_trained_is_refused():
    with pytest.raises(ValueError, match="single network"):
        Experiment(
            "one", OneNetwork(NET), DenoisingConfig(encoder_from="x", freeze_encoder=True), FitConfig(iterations=1)
        )
    with pytest.raises(ValueError, match="encoder_from"):
        Experiment(
            "two",
            TwoNetworks(NET, NET),
            DenoisingConfig(times=TimeSampler(), freeze_encoder=True),
            FitConfig(iterations=1),
        )
