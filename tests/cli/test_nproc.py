"""`dualrate train --nproc 2` in processes of its own: one is killed, all are stopped, one goes on alone; torchrun."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli.command import call
from training.toy import final, same_bits

from dualrate.training import checkpoint

RECIPE = """
import dualrate as dr
from dualrate.experiment.data_config import DataConfig
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
    ends = ("--nproc", "2", "--retries", "1", "--fit.iterations", "300")
    straight = subprocess.run(command("straight", *ends), capture_output=True, **where)
    assert straight.returncode == 0, straight.stderr
    run = tmp_path / "run"
    supervisor = subprocess.Popen(command("run", *ends), stderr=subprocess.PIPE, **where)
    until(lambda: newest(run) >= 5)
    os.kill(processes_of(run)[1], signal.SIGKILL)
    said = supervisor.communicate(timeout=300)[1]
    assert supervisor.returncode == 0, said
    assert "resuming at iteration" in said
    assert same_bits(final(tmp_path / "straight"), final(run))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_under_torchrun_it_is_the_same_training(tmp_path, tiny):
    """As docs/commands.md spells it; the port is its own, since others may use torchrun here."""
    command, where = tiny
    ends = ("--fit.iterations", "20")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--master-port", port, "--nproc-per-node", "2"]
    _, _, _, *arguments = command("torchrun", *ends)
    for whole in (command("nproc", "--nproc", "2", *ends), [*torchrun, "-m", "dualrate", *arguments]):
        done = subprocess.run(whole, capture_output=True, **where)
        assert done.returncode == 0, done.stderr
    assert same_bits(final(tmp_path / "nproc"), final(tmp_path / "torchrun"))
    record = checkpoint.load(checkpoint.path_of(tmp_path / "torchrun" / "checkpoints", 20)).state
    assert record["surroundings"]["processes"] == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_started_again_stopped_and_gone_on_with_alone(tmp_path, tiny):
    command, where = tiny
    run = tmp_path / "run"
    supervisor = subprocess.Popen(command("run", "--nproc", "2", "--retries", "3"), stderr=subprocess.PIPE, **where)
    until(lambda: newest(run) >= 5)
    os.kill(processes_of(run)[1], signal.SIGKILL)
    at = newest(run)
    until(lambda: newest(run) >= at + 10)
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(60) == 75
    assert processes_of(run) == {}
    said = supervisor.stderr.read()
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


@pytest.mark.parametrize("command", ["sample", "evaluate", "compare", "plan", "cost", "data"])
def test_what_is_one_process_is_refused_under_torchrun(monkeypatch, capsys, command):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert call(monkeypatch, command, "weights/fashion-mnist-light") == 2
    assert f"{command} is one process, here are 4 that would each do all of it" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "processes"), [("doctor", "4"), ("sample", "1")])
def test_what_may_be_launched_is_not_refused(monkeypatch, capsys, command, processes):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", processes)
    assert call(monkeypatch, command, "--help") == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.slow
def test_a_mistake_in_the_processes_is_the_exit_code_of_the_command(tmp_path, tiny):
    command, where = tiny
    done = subprocess.run(command("run", "--nproc", "2", "--data.source", "none.npz"), capture_output=True, **where)
    assert done.returncode == 2
    assert "none.npz" in done.stderr
