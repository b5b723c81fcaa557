"""Training exits beside a run's network: that stays as it is, a run goes on with the same bits, others are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from runs.made import saved
from training.toy import Recorder, final, same_bits

from dualrate.diffusion.categorical import Masked
from dualrate.drawing.choice import Choice
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.early_exit import EarlyExitConfig, EarlyExitNetwork
from dualrate.methods.times import TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs.release import export
from dualrate.runs.store import load
from dualrate.runs.train import train
from dualrate.texts.codec import GreyLevels
from dualrate.texts.networks import OneTransformer
from dualrate.texts.transformer import TokensConfig
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 3, 0.5)), patch=2, embedding=16, head_dim=16)
FIT = FitConfig(iterations=3, batch_size=8, precision="float32", sample_every=100, checkpoint_every=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of one network, and an experiment of exits beside it."""
    root = tmp_path_factory.mktemp("runs")
    np.savez(root / "images.npz", images=np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8))
    one = Experiment("one", OneNetwork(NET), DenoisingConfig(), FIT, DataConfig(str(root / "images.npz")))
    train(one, root / "one", progress=Recorder())
    method = EarlyExitConfig(str(root / "one"))
    return root, replace(one, name="exits", networks=EarlyExitNetwork(NET), method=method)


def test_exits_are_trained_beside_a_network_that_stays_as_it_is(runs, tmp_path):
    root, exits = runs
    train(exits, tmp_path / "straight", progress=Recorder())
    train(replace(exits, fit=replace(FIT, iterations=2)), tmp_path / "again", progress=Recorder())
    train(exits, tmp_path / "again", progress=Recorder())
    straight = final(tmp_path / "straight")
    assert same_bits(straight, final(tmp_path / "again"))
    assert all(name.startswith("exits.exits.") for name in straight["ema-model"])
    one, model = load(root / "one"), load(tmp_path / "straight")
    net, before = model.networks.get_submodule("exits.net"), one.networks["model"].state_dict()
    assert all(torch.equal(before[name], weight) for name, weight in net.state_dict().items())
    start = exits.build()[0].state_dict()
    moved = {name for name, weight in model.networks.state_dict().items() if not torch.equal(weight, start[name])}
    assert {"exits.exits.0.head.linear.weight", "exits.exits.1.probe.linear.bias"} <= moved
    whole = Choice(4).drawer(model.with_denoiser("dualrate.denoisers.early_exit:whole"))
    assert (whole.draw(range(3)).images == Choice(4).drawer(one).draw(range(3)).images).all()
    export(tmp_path / "straight", tmp_path / "weights")
    assert Choice(4).drawer(load(tmp_path / "weights")).draw(range(2)).images.shape == (2, 1, 8, 8)


def test_the_network_has_no_dropout_while_exits_train(runs):
    network = runs[1].build()[0]["exits"]
    assert network.training
    assert not any(part.training for part in network.net.modules())


def test_runs_without_such_a_network_are_refused(runs, tmp_path):
    root, exits = runs
    one = load(root / "one").experiment
    tokens = TokensConfig(5, 8, 8, channels=16, blocks=1, embedding=16, head_dim=16)
    other = replace(NET, levels=(NET.levels[0], replace(NET.levels[1], blocks=2)))
    for name, source, message in (
        ("two", replace(one, networks=TwoNetworks(NET, NET), method=DenoisingConfig(TimeSampler())), "is a dual-rate"),
        ("exits", exits, "is a model with early exits; a teacher is a single-rate one"),
        (
            "tokens",
            replace(one, networks=OneTransformer(tokens), process=Masked(), codec=GreyLevels(4)),
            "expected a single-rate U-ViT, got OneTransformer",
        ),
        ("other", replace(one, networks=OneNetwork(other)), "its network is not that of exits"),
    ):
        saved(source, tmp_path / name)
        with pytest.raises(ValueError, match=message):
            train(replace(exits, method=EarlyExitConfig(str(tmp_path / name))), tmp_path / "run", progress=Recorder())
    with pytest.raises(ValueError, match=r"name its run, --method.backbone-from RUN"):
        train(replace(exits, method=EarlyExitConfig()), tmp_path / "run", progress=Recorder())
    with pytest.raises(ValueError, match=r"expected networks with exits .EarlyExitNetwork., got a single-rate model"):
        replace(one, method=EarlyExitConfig())
