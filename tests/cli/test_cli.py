"""The command line end to end on a tiny data set: every command, its reports, and what a mistake looks like."""

import errno
import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from cli.command import call
from PIL import Image

import dualrate
from dualrate.cli.plan import Plan
from dualrate.cli.sample import Cost, Sample
from dualrate.cli.train import Train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """64 labelled 28 x 28 images with some structure, as npz."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 4
    images = np.clip(rng.normal(60 * labels[:, None, None], 20, (64, 28, 28)), 0, 255).astype(np.uint8)
    np.savez(path, images=images, labels=labels)
    return path


def train(monkeypatch, data, out, *options, iterations=3, checkpoint_every=2):
    return call(
        monkeypatch, "train", "fashion-mnist-small", "--out", out, "--data.source", data, "--fit.batch-size", 8,
        "--fit.iterations", iterations, "--fit.precision", "float32",
        "--fit.checkpoint-every", checkpoint_every, *options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUALRATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert train(patch, data, out) == 0
    return out


def test_training_leaves_a_run(run):
    assert (run / "experiment.json").is_file()
    assert (run / "metrics.jsonl").is_file()
    assert list((run / "samples").glob("*.png"))
    assert (run / "checkpoints" / "step-00000003" / "MANIFEST.json").is_file()


def test_sample_writes_images_and_says_what_they_cost(run, tmp_path, monkeypatch, capsys):
    options = ["--num", 6, "--steps", 4, "--heavy", 2, "--guidance", 1.5, "--label", 3, "--seed", 7]
    assert call(monkeypatch, "sample", run, "--out", tmp_path / "out", *options, "--npz", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    # the encoder denoises at its own steps: 2 heavy and 2 light calls, each on two guidance branches
    assert (report["heavy_calls_per_image"], report["light_calls_per_image"]) == (4, 4)
    assert report["flops_per_image"] == 2 * report["macs_per_image"]
    assert report["guidance"] == "1.5, calls with and without the label counted"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock",
        *(f"{seed:06d}.png" for seed in range(7, 13)),
        "grid.png",
        "images.npz",
        "sample.json",
    ]
    arrays = np.load(tmp_path / "out" / "images.npz")
    assert arrays["arr_0"].shape == (6, 28, 28, 1)
    assert list(arrays["arr_1"]) == [3] * 6
    assert (np.asarray(Image.open(tmp_path / "out" / "000007.png")) == arrays["arr_0"][0, :, :, 0]).all()


def test_a_sample_depends_on_its_seed_not_on_its_batch(run, tmp_path, monkeypatch):
    common = ["--steps", 4, "--heavy", 2, "--precision", "float32", "--npz"]
    call(monkeypatch, "sample", run, "--out", tmp_path / "a", "--num", 5, "--seed", 0, "--batch-size", 5, *common)
    call(monkeypatch, "sample", run, "--out", tmp_path / "b", "--num", 3, "--seed", 2, "--batch-size", 2, *common)
    a, b = (np.load(tmp_path / name / "images.npz")["arr_0"].astype(int) for name in "ab")
    difference = np.abs(a[2:] - b)
    assert difference.max() <= 2
    assert (difference > 0).mean() < 1e-2


def test_cost_reports_calls_and_latency(run, monkeypatch, capsys):
    assert call(monkeypatch, "cost", run, "--steps", 4, "--heavy", 1, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    alone = report["light_calls_alone_per_image"]  # before the first heavy call
    kept = report["light_calls_per_image"] - alone
    assert (alone, kept) == (1, 2)
    light = kept * report["macs_light_call"] + alone * report["macs_light_call_alone"]
    assert report["macs_per_image"] == report["macs_heavy_call"] + light
    assert report["seconds_heavy_call"] > 0
    assert report["parameters_encoder"] > report["parameters_light"]


def test_export_then_sample_from_released_weights(run, tmp_path, monkeypatch):
    assert call(monkeypatch, "export", run, "--out", tmp_path / "weights") == 0
    names = {path.name for path in (tmp_path / "weights").iterdir()}  # too short a run for a loss curve
    assert names == {"MANIFEST.json", "README.md", "experiment.json", "model.safetensors"}
    card = (tmp_path / "weights" / "README.md").read_text()
    assert "3 iterations of 8 images" in card
    assert "dualrate train fashion-mnist-small" in card
    arguments = ["--out", tmp_path / "out", "--num", 2, "--steps", 2, "--heavy", 1]
    assert call(monkeypatch, "sample", tmp_path / "weights", *arguments) == 0


@pytest.mark.parametrize(("asked", "exactly"), [("auto", True), (None, False)])
def test_a_resumed_run_takes_its_own_number_of_threads_where_that_is_automatic(
    asked, exactly, data, run, tmp_path, monkeypatch, capsys
):
    """A number that OMP_NUM_THREADS named is what torch has; nothing says so then."""
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DUALRATE_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("DUALRATE_THREADS", asked)
    before = torch.get_num_threads()
    shutil.copytree(run, tmp_path / "run")
    torch.set_num_threads(before + 1)
    try:
        assert train(monkeypatch, data, tmp_path / "run", iterations=4) == 0
    finally:
        torch.set_num_threads(before)
    told = capsys.readouterr().err
    assert "resuming at iteration 3" in told
    assert ("not bit for bit: threads was" in told) == (not exactly)
    assert (tmp_path / "run" / "checkpoints" / "step-00000004").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "no-such-recipe"], "no recipe 'no-such-recipe'"),
        (["train", "fashion-mnist-light", "--data.source", "/nowhere/at/all"], "/nowhere/at/all"),
        (["sample", "/nowhere", "--out", "x"], "is no run"),
        (["sample", "RUN", "--out", "x", "--steps", "4", "--heavy", "5"], "between 0 and the number of steps, 4"),
        (["sample", "RUN", "--out", "x", "--num", "0"], "num is a whole number from 1 to 10,000,000, or None, got 0"),
        (["sample", "RUN", "--out", "x", "--label", "10"], "classes 0 to 9"),
        (["sample", "RUN", "--out", "x", "--steps", "4", "--heavy", "2", "--sampler", "ddim"], "Use Ancestral"),
        (["sample", "RUN", "--out", "x", "--gamma", "2"], "gamma"),
        (["sample", "RUN", "--out", "x", "--plan", "/nowhere.json"], "/nowhere.json"),
        (["sample", "RUN", "--out", "x", "--device", "abacus"], "no device 'abacus'"),
        (["cost", "RUN", "--guidance", "2", "--interval", "3", "1"], "guidance interval"),
        (["cost", "RUN", "--interval", "1", "3"], "needs a guidance weight"),
        (
            ["sample", "RUN", "--out", "x", "--interval", "1"],
            "--interval is 2 values, each a number of 0 or more, or None",
        ),
        (
            ["export", "RUN", "--to", "diffusers"],
            '--to is 2 values, "diffusers", then a path, or None',
        ),
        (["cost", "RUN", "--batch-size", "0"], "batch_size is a whole number from 1"),
        (["export", "/nowhere", "--out", "x"], "is no run"),
        (["sample", "RUN", "--out", "x", "--device", "meta"], "no device 'meta' here, only cpu"),
        (["sample", "RUN", "--out", "x", "--steps", "100001"], "steps is a whole number from 1 to 100,000"),
        (["sample", "RUN", "--out", "x", "--num", "10000001"], "num is a whole number from 1 to 10,000,000"),
        (["cost", "RUN", "--batch-size", "100001"], "batch_size is a whole number from 1 to 100,000"),
        (["cost", "RUN", "--guidance", "1e308"], "guidance is a number from -100 to 100, got 1e+308"),
        (
            ["plan", "RUN", "--budget", "inf"],
            "--budget is a number above 0 and its unit, as 0.25x, 3gmacs or 0.05s, got 'inf'",
        ),
        (
            ["plan", "RUN", "--budget", "nanx"],
            "--budget is a number above 0 and its unit, as 0.25x, 3gmacs or 0.05s, got 'nanx'",
        ),
        (
            ["plan", "RUN", "--budget", "0"],
            "--budget is a number above 0 and its unit, as 0.25x, 3gmacs or 0.05s, got '0'",
        ),
        (["plan", "RUN", "--budget", "0x"], "--budget is a number above 0 and its unit"),
        (["plan", "RUN", "--budget", "0.66"], "its unit, as 0.25x, 3gmacs or 0.05s, got '0.66'"),
        (["plan", "RUN", "--budget", "0.5x", "--steps", "0"], "steps is a list of values, each a whole number from 1"),
        (["compare", "RUN:100000000000/8"], "the number of steps is a whole number from 1 to 100,000, got 1000000"),
        (["compare", "RUN:32@ancestral:2"], "gamma is a number from 0 to 1, or None, got 2.0"),
        (["demo", "--minutes", "inf"], "minutes is a number above 0 and at most 1,000,000, or None, got inf"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    arguments = [re.sub("^RUN", str(run), argument) for argument in arguments]
    assert call(monkeypatch, *arguments) == 2
    *told, error = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("dualrate: ")
    assert message in error
    assert told in ([], [f"reading {run} at iteration 3"])


def test_an_unknown_option_is_no_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "sample", "x", "--out", "y", "--stepz", "3") == 2
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    assert "--steps" in told.err + told.out  # tyro suggests the option that was meant


def test_a_start_that_never_saved_does_not_name_the_run(data, tmp_path, monkeypatch):
    """Its experiment.json is replaced by that of the start which trains; refused starts leave no trace."""
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    hopeless = ["--fit.optim.lr", 1000, "--fit.optim.weight-decay", 1000, "--fit.optim.warmup", 0]
    assert train(monkeypatch, data, run, *hopeless, iterations=30, checkpoint_every=100) == 2
    assert train(monkeypatch, data, run, "--fit.seed", 7, iterations=1) == 0
    assert train(monkeypatch, data, run, "--fit.seed", 8, iterations=2) == 2  # another configuration: refused
    experiment = json.loads((run / "experiment.json").read_text())
    assert experiment["fit"]["seed"] == 7
    assert len((run / "history.jsonl").read_text().splitlines()) == 2


def test_other_images_under_the_same_name_are_refused(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    images = tmp_path / "images.npz"
    images.write_bytes(data.read_bytes())
    assert train(monkeypatch, images, tmp_path / "run", iterations=1) == 0
    np.savez(images, images=np.full((64, 28, 28), 7, np.uint8), labels=np.arange(64) % 4)
    assert train(monkeypatch, images, tmp_path / "run", iterations=2) == 2
    assert "images:" in capsys.readouterr().err


def test_the_version_is_told_in_a_line(monkeypatch, capsys):
    assert call(monkeypatch, "--version") == 0
    (line,) = capsys.readouterr().out.splitlines()
    for part in (f"dualrate {dualrate.__version__}", f"torch {torch.__version__}", "Python 3.", "cpu"):
        assert part in line


def test_recipes_are_listed_by_family_and_all_on_demand(monkeypatch, capsys):
    assert call(monkeypatch, "train", "--help") == 0
    listed = capsys.readouterr().out
    assert "usage: dualrate train RECIPE [options]" in listed
    assert call(monkeypatch, "train", "--list") == 0
    assert len(capsys.readouterr().out.splitlines()) > len(listed.splitlines())


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["train", "fashion-mnist-light"], Train),
        (["sample", "x", "--out", "y"], Sample),
        (["plan", "x", "--budget", "1x"], Plan),
    ],
)
@pytest.mark.parametrize("fail", [lambda: torch.empty(2**45), lambda: torch.zeros(2**40, 2**30)])
def test_too_little_memory_is_one_line_with_what_to_lower(arguments, kind, fail, monkeypatch, capsys):
    monkeypatch.setattr(kind, "run", lambda self: fail())
    assert call(monkeypatch, *arguments) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("dualrate: not enough memory (")
    assert "lower --batch-size" in told[0]


def raised(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        (lambda: np.zeros(2**50), "not enough memory (Unable to allocate"),
        (lambda: bytearray(2**62), "not enough memory (an allocation failed): take a smaller part of the data"),
        (lambda: raised(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "x.nc")), "Cannot allocate memory: 'x.nc'"),
        (lambda: raised(OSError(errno.EMFILE, os.strerror(errno.EMFILE), "x.nc")), "Too many open files: 'x.nc'"),
        (lambda: raised(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.nc")), "No space left on device: 'x.nc'"),
    ],
)
def test_what_is_short_beside_a_network_is_not_mended_by_a_smaller_batch(fail, said, monkeypatch, capsys):
    monkeypatch.setattr(Sample, "run", lambda self: fail())
    assert call(monkeypatch, "sample", "x", "--out", "y") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert "batch" not in line


def test_a_fault_of_the_program_is_not_hidden(monkeypatch):
    def fail(self):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Cost, "run", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        call(monkeypatch, "cost", "x")


def test_a_full_disk_behind_standard_output_is_said(run, monkeypatch, capsys):
    """And what is left of it is not tried again at exit, here where the file is closed."""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert call(monkeypatch, "cost", run, "--steps", "2", "--json") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "dualrate: [Errno 28] No space left on device: 'standard output'"
    )
