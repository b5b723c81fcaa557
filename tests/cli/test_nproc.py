"""`dualrate train --nproc 2` in processes of its own: one is killed, then a signal, then one process goes on alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli.command import call
from training.toy import same_bits

from dualrate.cli import train as cli_train
from dualrate.training import checkpoint

RECIPE = """
import dualrate as dr
from dualrate.experiments.experiment import DataConfig
from dualrate.training.config import FitConfig
LEVELS = (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1))
NET = dr.UViTConfig(8, 1, LEVELS, 4, patch=2, embedding=16, head_dim=16)
def tiny():
    fit = FitConfig(100_000, batch_size=8, precision="float32", log_every=5, checkpoint_every=5, sample_every=100_000)
    return dr.Experiment("tiny", dr.OneNetwork(NET), dr.DenoisingConfig(), fit, DataConfig("images.npz"))
"""


def newest(run: Path) -> int:
    paths = checkpoint.saved_paths(run / "checkpoints")
    return int(paths[-1].name.partition("-")[2]) if paths else 0


def until(happened, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)


def processes_of(run: Path) -> dict[int, int]:
    """The numbers of the processes that train here, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(run) in (folder / "cmdline").read_text() and "\0RANK=" in (folder / "environ").read_text():
                settings = (folder / "environ").read_text().split("\0")
                found[int(next(one for one in settings if one.startswith("RANK="))[5:])] = int(folder.name)
        except OSError:  # it has ended
            continue
    return found


@pytest.fixture
def tiny(tmp_path):
    """Its training in `tmp_path / name`: a command, and where it runs."""
    (tmp_path / "mine.py").write_text(RECIPE)
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(64) % 4)
    environment = {**os.environ, "DUALRATE_CACHE": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    def command(name: str, *options: str) -> list[str]:
        return [sys.executable, "-m", "dualrate_command", "train", "mine:tiny", "--out", str(tmp_path / name), *options]

    return command, {"cwd": tmp_path, "env": environment, "text": True}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_that_is_killed_changes_no_bit(tmp_path, tiny):
    command, where = tiny
    ends = ("--nproc", "2", "--fit.iterations", "300")
    straight = subprocess.run(command("straight", *ends), capture_output=True, **where)
    assert straight.returncode == 0, straight.stderr
    run = tmp_path / "run"
    supervisor = subprocess.Popen(command("run", *ends), stderr=subprocess.PIPE, **where)
    until(lambda: newest(run) >= 5)
    os.kill(processes_of(run)[1], signal.SIGKILL)
    said = supervisor.communicate(timeout=300)[1]
    assert supervisor.returncode == 0
    assert "process 1 of 2 was ended by SIGKILL" in said
    found = [checkpoint.load(checkpoint.path_of(tmp_path / name / "checkpoints", 300)) for name in ("straight", "run")]
    assert same_bits(*(dict(one.tensors) for one in found))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_started_again_stopped_and_gone_on_with_alone(tmp_path, tiny):
    command, where = tiny
    run = tmp_path / "run"
    supervisor = subprocess.Popen(command("run", "--nproc", "2"), stderr=subprocess.PIPE, **where)
    until(lambda: newest(run) >= 5)
    os.kill(processes_of(run)[1], signal.SIGKILL)
    at = newest(run)
    until(lambda: newest(run) >= at + 10)
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(60) == 75
    assert processes_of(run) == {}
    said = supervisor.stderr.read()
    assert "process 1 of 2 was ended by SIGKILL" in said
    assert "start again (1 of 3 times)" in said
    assert "resuming at iteration" in said
    assert "interrupted, saved at iteration" in said
    at = newest(run)
    more = str(at + 3)
    done = subprocess.run(command("run", "--fit.iterations", more), capture_output=True, **where)
    assert done.returncode == 0, done.stderr
    assert "processes was 2, is 1" in done.stderr
    logged = [json.loads(line)["iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert logged == sorted(set(logged))


def test_another_number_than_torchrun_started_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert call(monkeypatch, "train", "fashion-mnist-small", "--nproc", "2") == 2
    assert "--nproc 2, but 4 processes are started: drop --nproc" in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--shard", "2"), ("--nproc", "4", "--shard", "3")])
def test_processes_that_hold_the_weights_together_divide_all_of_them(monkeypatch, capsys, options):
    assert call(monkeypatch, "train", "fashion-mnist-small", *options) == 2
    assert f"--shard {options[-1]} of" in capsys.readouterr().err


def test_several_processes_are_started_with_the_same_command(monkeypatch):
    started = []

    class Recorded:
        def __init__(self, command, processes, note):
            started.append((command, processes))

        def run(self, retries):
            started.append(retries)
            return 75

    monkeypatch.setattr(cli_train, "Supervisor", Recorded)
    arguments = ["train", "fashion-mnist-small", "--nproc", "3", "--retries", "5"]
    assert call(monkeypatch, *arguments) == 75
    assert started == [([sys.executable, "-m", "dualrate_command", *arguments], 3), 5]
