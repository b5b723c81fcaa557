"""Commands in several processes that were launched together: the bits of one, also gone on with after a death."""

import json
import re
import signal
from pathlib import Path

import launched
import numpy as np
import pytest
import torch
from forecasts.made_forecasts import CHANNELS, WIDTH, experiment_of
from latents.folding import FoldingFolder
from metrics.untrained import untrained
from runs.made import NET, saved_random
from safetensors.numpy import load_file

from dualrate.data.latent_set import encode
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import TwoNetworks
from dualrate.forecasts.condition import Forecast
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.metrics.features import Architecture
from dualrate.system.launch import LOST
from dualrate.system.workers import mapper
from dualrate.training.config import FitConfig
from tools.soak import timeless

COMMANDS = {
    "sample": "sample two --out OUT --num 22 --batch-size 3 --steps 3 --heavy 2 --precision float32 --npz",
    "evaluate": "evaluate two --keep OUT --num 400 --batch-size 5 --steps 2 --heavy 1 --features judge --json",
    "compare": "compare a=two:4/2 b=two:3/1 --screen 20 --count 300 --features judge --out OUT.html",
    "compare forecasts": "compare a=ahead:2/1 b=ahead:3/1 --members 100 --count 3 --out OUT.html",
    "forecast": "forecast ahead --out OUT --members 3 --frames 4 --steps 2 --batch-size 3 --precision float32 --json",
}
UNLIKE = ("calls", "ran_on", "environment", "headline")
FIRST_BLOCK = 2  # messages: when its process is killed, one block has come, and another one is in its hand


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With runs `two`, of images, and `ahead`, of forecasts; and `judge`, a net of features."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (70, 8, 8, 1), dtype=np.uint8)
    np.savez(folder / "images.npz", images=noise, labels=np.arange(70) % 3)
    data = DataConfig(str(folder / "images.npz"))
    of = "two", TwoNetworks(NET, NET), DenoisingConfig(times=TimeSampler()), FitConfig(iterations=1), data
    saved_random(Experiment(*of), folder / "two")
    walk = rng.normal(size=(10, 12, CHANNELS, WIDTH)).cumsum(1).astype(np.float32)
    np.savez(folder / "fields.npz", fields=walk)
    saved_random(experiment_of(folder / "fields.npz", Forecast(noise=0.1)), folder / "ahead")
    untrained(Architecture(1, 8, 2, features=4)).save(folder / "judge")
    return folder


def run_of(folder: Path, name: str, out: Path):
    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr("dualrate.forecasts.forecast.forecast_page", lambda *of: "a page")  # its figures take seconds
            launched.command(*COMMANDS[name].replace("OUT", str(out)).split())()

    return run


def alike(value: dict[str, object]) -> dict[str, object]:
    """The fields of JSON that do not say who made it, or how long it took."""
    return {name: field for name, field in value.items() if name not in UNLIKE}


def made(out: Path) -> dict[str, object]:
    """The bits of a command's files, and the numbers of its JSON but for those of a clock."""
    content: dict[str, object] = {}
    for file in filter(Path.is_file, out.parent.rglob("*")):
        name = str(file.relative_to(out.parent))
        if "-times-" in name:
            continue
        if file.suffix == ".json":
            content[name] = timeless(json.loads(file.read_text(), object_hook=alike))
        elif file.suffix == ".safetensors":  # beside features stands how long drawing took
            content[name] = {key: array.tobytes() for key, array in load_file(file).items()}
        elif file.suffix not in (".journal", ".html", ".csv", ".svg") and file.name != ".lock":
            content[name] = file.read_bytes()
    return content


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_bits_of_one_process_also_where_one_died_and_another_number_goes_on(folder, tmp_path, name):
    outs = {size: tmp_path / str(size) / "out" for size in (1, 2, 3)}
    assert launched.ended(launched.start(run_of(folder, name, outs[1]), 1, tmp_path / "log")) == [0]
    expected = made(outs[1])
    victim = run_of(folder, name, outs[3])
    codes = launched.ended(launched.start(launched.dying(victim, 1, FIRST_BLOCK), 3, tmp_path / "log"))
    assert codes == [LOST, -signal.SIGKILL, LOST]
    assert re.search("process 1 of 3 was lost", (tmp_path / "log").read_text())
    assert launched.ended(launched.start(victim, 2, tmp_path / "log")) == [0, 0]
    assert launched.ended(launched.start(run_of(folder, name, outs[2]), 3, tmp_path / "log")) == [0, 0, 0]
    for out in (outs[3], outs[2]):
        assert made(out).keys() == expected.keys()
        for file, content in made(out).items():
            assert content == expected[file], file


def test_latents_have_the_bits_of_one_process_also_where_one_died(folder, tmp_path):
    """The codec is one of the tests', which no command names."""
    pictures = np.random.default_rng(1).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "pictures.npz", images=pictures, labels=np.arange(60) % 3)

    def encoding(out: Path):
        def work() -> None:
            how = {"shard_bytes": 2 * 1536, "batch_size": 2, "mapper": mapper(torch.device("cpu"))}
            encode(tmp_path / "pictures.npz", out, FoldingFolder("a folder", "f" * 64), **how)

        return launched.team(work)

    one, several = tmp_path / "one" / "out", tmp_path / "several" / "out"
    assert launched.ended(launched.start(encoding(one), 1, tmp_path / "log")) == [0]
    dying = launched.dying(encoding(several), 2, FIRST_BLOCK)
    assert launched.ended(launched.start(dying, 3, tmp_path / "log")) == [LOST, LOST, -signal.SIGKILL]
    left = len([*several.glob("*.bin")])
    assert 0 < left < len([*one.glob("*.bin")])
    assert launched.ended(launched.start(encoding(several), 2, tmp_path / "log")) == [0, 0]
    assert made(several) == made(one)


def test_a_killed_leader_is_followed_by_the_same_command_of_another_number(folder, tmp_path):
    outs = [tmp_path / name / "out" for name in ("one", "several")]
    assert launched.ended(launched.start(run_of(folder, "forecast", outs[0]), 1, tmp_path / "log")) == [0]
    several = run_of(folder, "forecast", outs[1])
    codes = launched.ended(launched.start(launched.dying(several, 0, 6), 3, tmp_path / "log"))
    assert codes == [-signal.SIGKILL, LOST, LOST]
    assert launched.ended(launched.start(several, 2, tmp_path / "log")) == [0, 0]
    assert made(outs[1]) == made(outs[0])
