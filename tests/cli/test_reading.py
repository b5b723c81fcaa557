"""Every command that reads a run says which iteration it reads, and warns if that is not the newest."""

import json
import shutil

import numpy as np
import pytest
from cli.command import call
from training.toy import Recorder

from dualrate.cli import distill as cli_distill
from dualrate.cli import train as cli_train
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes.students import StudentRecipe
from dualrate.runs.train import train
from dualrate.training.config import FitConfig


def net(width: int) -> UViTConfig:
    levels = (Level("conv", 4, 1), Level("transformer", width, 1))
    return UViTConfig(8, 1, levels, num_classes=4, patch=2, embedding=16, head_dim=16)


FIT = FitConfig(iterations=2, batch_size=4, precision="float32", log_every=1, checkpoint_every=1, sample_every=2)
COMMANDS = {  # by name: options, in which DUAL and ONE are runs and OUT is a new place
    "sample": ["sample", "DUAL", "--out", "OUT", "--num", "2", "--steps", "2", "--json"],
    "evaluate": ["evaluate", "DUAL", "--features", "inception", "--json"],
    "bound": ["evaluate", "DUAL", "--bound", "--num", "2", "--steps", "2", "--json"],
    "cost": ["cost", "DUAL", "--steps", "2", "--json"],
    "export": ["export", "DUAL", "--out", "OUT"],
    "plan": ["plan", "DUAL", "--out", "OUT.json", "--grid", "4", "--images", "2", "--steps", "2", "--budget", "1x"],
    "compare": ["compare", "ONE", "--out", "OUT.html", "--features", "inception"],
    "a teacher": ["distill", "tiny", "--out", "OUT", "--teacher", "ONE", "--student", "plain", "--steps", "2"],
    "light_from": ["distill", "tiny", "--out", "OUT", "--teacher", "ONE", "--light-from", "ONE", "--steps", "2"],
    "student_from": ["distill", "tiny", "--out", "OUT", "--teacher", "ONE", "--student-from", "DUAL", "--steps", "2"],
    "encoder_from": ["train", "dual", "--out", "OUT", "--method.encoder-from", "ONE"],
}
STOPPED = {"evaluate", "compare"}  # after reading, before work that takes long


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A single-rate and a dual-rate run of two checkpoints; not to be changed."""
    root = tmp_path_factory.mktemp("runs")
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
    np.savez(root / "images.npz", images=images, labels=np.arange(24) % 4)
    data = DataConfig(str(root / "images.npz"))
    one = Experiment("one", OneNetwork(net(16)), DenoisingConfig(), FIT, data)
    dual = Experiment("dual", TwoNetworks(net(16), net(16)), DenoisingConfig(times=TimeSampler()), FIT, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUALRATE_CACHE", str(root / "cache"))
        for experiment in (one, dual):
            train(experiment, root / experiment.name, progress=Recorder())
    return root


@pytest.fixture
def command(runs, tmp_path, monkeypatch, capsys):
    """Runs a command on copies of the runs; its exit code, lines on standard error, and standard output."""
    monkeypatch.setenv("DUALRATE_CACHE", str(runs / "cache"))
    monkeypatch.setitem(cli_distill.RECIPES, "tiny", lambda: StudentRecipe("tiny", net(16), FIT))
    monkeypatch.setattr(cli_distill.students, "PRETRAINING", 1)
    dual = Experiment(
        "dual", TwoNetworks(net(16), net(16)), DenoisingConfig(TimeSampler()), FIT, DataConfig(str(runs / "images.npz"))
    )
    monkeypatch.setitem(cli_train.RECIPES, "dual", lambda: dual)
    places = {"ONE": str(tmp_path / "one"), "DUAL": str(tmp_path / "dual")}
    for name in ("one", "dual"):
        shutil.copytree(runs / name, tmp_path / name)

    def command(name: str) -> tuple[int, list[str], str]:
        arguments = [places.get(one, one.replace("OUT", str(tmp_path / "out"))) for one in COMMANDS[name]]
        code = call(monkeypatch, *arguments)
        captured = capsys.readouterr()
        return code, captured.err.splitlines(), captured.out

    return command


def read_by(name: str) -> str:
    """The run whose iteration matters."""
    return "dual" if "DUAL" in COMMANDS[name] else "one"


@pytest.mark.parametrize("name", ["sample", "evaluate", "a teacher", "encoder_from"])
def test_a_command_warns_of_nothing_where_the_newest_is_whole(command, tmp_path, name):
    code, errors, output = command(name)
    assert code == (2 if name in STOPPED else 0), errors
    assert f"reading {tmp_path / read_by(name)} at iteration 2" in errors
    assert not any("warning" in line for line in errors)
    if "--json" in COMMANDS[name] and code == 0:
        json.loads(output)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_warns_where_the_newest_is_damaged(command, tmp_path, name):
    run = tmp_path / read_by(name)
    file = run / "checkpoints" / "step-00000002" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    code, errors, output = command(name)
    assert code == (2 if name in STOPPED else 0), errors
    why = f"warning: {file}: its content is not what the manifest says; iteration 1 is read, the newest that is intact"
    assert errors.count(why) >= 1
    assert any(line.endswith(f"reading {run} at iteration 1") for line in errors)
    if "--json" in COMMANDS[name] and code == 0:
        json.loads(output)
