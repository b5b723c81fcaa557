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
from trouble import children

from dualrate.cli.main import parsed
from dualrate.system.launch import Lost
from dualrate.training import checkpoint

TRAINING = "train", "fashion-mnist-small"

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


@pytest.mark.parametrize("command", [("train", "fashion-mnist-small"), ("sample", "run", "--out", "out")])
def test_another_number_than_torchrun_started_is_refused(monkeypatch, capsys, command):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert call(monkeypatch, *command, "--nproc", "2") == 2
    assert "--nproc 2, but 4 processes are started: drop --nproc" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["cost", "data codec", "data simulate", "export", "serve"])
def test_what_is_one_process_is_refused_under_torchrun(monkeypatch, capsys, command):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert call(monkeypatch, *command.split(), "weights/fashion-mnist-light") == 2
    assert f"{command} is one process, here are 4 that would each do all of it" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["--bound", "--images=x.npz"])
def test_what_evaluate_does_in_one_process_is_refused_too(monkeypatch, how):
    for name, value in {"RANK": "0", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    name = how.partition("=")[0]
    run = () if "=" in how else ("weights/fashion-mnist-light",)
    with pytest.raises(ValueError, match=f"evaluate {name} is one process, here are 4"):
        parsed(["evaluate", *run, how]).run()


@pytest.mark.parametrize(
    ("raised", "launched", "code"),
    [(Lost("gone"), True, 76), (KeyboardInterrupt(), True, 75), (KeyboardInterrupt(), False, 130)],
)
def test_exit_codes_of_those_who_lose_the_others_and_are_stopped(monkeypatch, capsys, raised, launched, code):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items() if launched else ():
        monkeypatch.setenv(name, value)

    def run(command) -> None:
        raise raised

    for kind, words in (("sample.Sample", ("sample", "run", "--out", "out")), ("train.OfExperiment", TRAINING)):
        monkeypatch.setattr(f"dualrate.cli.{kind}.run", run)
        assert call(monkeypatch, *words) == code
        assert capsys.readouterr().err.splitlines()[-1] in ("dualrate: gone", "interrupted")


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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_samples_of_several_processes_stop_together_and_another_number_goes_on(tmp_path, tiny):
    command, where = tiny
    assert subprocess.run(command("run", "--fit.iterations", "2"), capture_output=True, **where).returncode == 0

    def sampling(out: str, number: int, *more: str) -> list[str]:
        words = ["sample", "run", "--out", out, "--num", str(number), "--batch-size", "2", "--precision", "float32"]
        return [*command("")[:3], *words, *more]

    supervisor = subprocess.Popen(sampling("out", 5000, "--nproc", "2"), stderr=subprocess.PIPE, **where)
    until(lambda: len(list(tmp_path.glob("out/0*.png"))) > 10)
    supervisor.send_signal(signal.SIGTERM)
    said = supervisor.communicate(timeout=60)[1]
    assert supervisor.returncode == 75, said
    assert "of 5000 images are in out; the same command goes on" in said
    supervisor = subprocess.Popen(sampling("out", 5000, "--nproc", "2"), stderr=subprocess.PIPE, **where)
    before = len(list(tmp_path.glob("out/0*.png")))
    until(lambda: len(list(tmp_path.glob("out/0*.png"))) > before)
    follower = next(Path("/proc", str(number)) for number in descendants(supervisor.pid, rank=1))
    os.kill(int(follower.name), signal.SIGKILL)
    assert supervisor.wait(60) == 128 + signal.SIGKILL
    done = subprocess.run(sampling("out", len(list(tmp_path.glob("out/0*.png"))) + 9, "--nproc", "3"), **where)
    assert done.returncode == 0
    number = len(list(tmp_path.glob("out/0*.png")))
    assert subprocess.run(sampling("one", number), **where).returncode == 0
    for file in (tmp_path / "one").glob("0*.png"):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


def descendants(parent: int, rank: int) -> list[int]:
    """Processes of this rank below a process."""
    below = children(parent)
    ranked = [number for number in below if f"\0RANK={rank}\0" in Path(f"/proc/{number}/environ").read_text()]
    return ranked + [number for child in below for number in descendants(child, rank)]
