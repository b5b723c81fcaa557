"""`dualrate train auto`: from a folder to a run in one line, its options, and what a mistake looks like."""

import json
from dataclasses import replace

import numpy as np
import pytest
from cli.command import call
from PIL import Image

from dualrate.recipes import auto
from dualrate.runs.store import load, read_experiment

QUICK = ("--fit.iterations", 2, "--fit.batch-size", 4)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with photos/ (no labels, several sizes) and pets/ (two classes); tiny is tinier."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    tier = replace(auto.TIERS["tiny"], conv=8, transformers=(None, 64), blocks=(1, 1), embedding=16)
    monkeypatch.setitem(auto.TIERS, "tiny", tier)
    rng = np.random.default_rng(0)
    for i in range(24):
        for name, size in ((f"photos/{i}.jpg", (36, 40 + i, 3)), (f"pets/{'ab'[i % 2]}/{i}.png", (48, 48))):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(tmp_path / name)
    return tmp_path


def train(monkeypatch, *options) -> int:
    return call(monkeypatch, "train", "auto", "--size", "tiny", *options)


def test_one_line_trains_and_says_what_it_chose_before_it_starts(here, monkeypatch, capsys):
    assert train(monkeypatch, "--data.source", "photos", "--rate", "dual", *QUICK) == 0
    told = capsys.readouterr().err
    chosen, cost = told.index("each becomes 32 x 32, in colour"), told.index("million MACs")
    assert chosen < cost < told.index("finished at iteration 2")
    assert "encoder 0.07 M parameters" in told
    model = load(here / "runs" / "photos-tiny-dual")
    assert (model.shape, model.num_classes) == ((3, 32, 32), 0)


def test_the_same_line_resumes(here, monkeypatch, capsys):
    for iterations in (1, 2):
        assert train(monkeypatch, "--data.source", "pets", "--fit.batch-size", 4, "--fit.iterations", iterations) == 0
    assert "resuming at iteration 1" in capsys.readouterr().err
    assert load(here / "runs" / "pets-tiny-single").shape == (1, 48, 48)


def test_every_other_option_overrides_what_was_chosen(here, monkeypatch):
    options = ["--out", "out", "--networks.model.levels.0.channels", 16, "--fit.optim.lr", 1e-4, "--name", "mine"]
    assert train(monkeypatch, *options, "--rate", "single", "--data.source", "pets", "--data.augment.flip", *QUICK) == 0
    made = read_experiment(here / "out")
    assert made.networks.configs["model"].levels[0].channels == 16
    assert (made.name, made.fit.optim.lr, made.data.augment.flip, made.num_classes) == ("mine", 1e-4, True, 2)


def test_labels_that_are_not_wanted_are_left_aside(here, monkeypatch):
    assert train(monkeypatch, "--data.source", "pets", "--networks.model.num-classes", 0, *QUICK) == 0
    assert load(here / "runs" / "pets-tiny-single").num_classes == 0


def test_a_student_has_a_light_network_in_proportion_and_its_teacher_s_name(here, monkeypatch):
    assert train(monkeypatch, "--data.source", "pets", *QUICK) == 0
    teacher = here / "runs" / "pets-tiny-single"
    options = ["--teacher", teacher, "--pretraining", 1, *QUICK]
    assert call(monkeypatch, "distill", "auto", *options) == 0
    student = json.loads((here / "runs" / "pets-tiny-single-dual-8-4" / "experiment.json").read_text())
    light = student["networks"]["light"]["levels"][1]
    assert (light["kind"], light["channels"]) == ("conv", 24)
    assert student["networks"]["encoder"]["levels"][1]["channels"] == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--data.source FOLDER"),
        (["--data.source", "nowhere"], "no data at "),
        (["--data.source", "~nobody-here/x"], "the data source '~nobody-here/x' is no path"),
        (["--data.source", "."], "directly or in sub-folders"),
        (["--data.source", "photos", "--data.size", 33], "a side is one of 8, 10"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(here, options, message, monkeypatch, capsys):
    (here / "empty").mkdir()
    monkeypatch.chdir(here / "empty")
    options = ["../photos" if option == "photos" else option for option in options]
    assert train(monkeypatch, *options) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("dualrate: ")
    assert message in error
    assert len(error.splitlines()) == 1


def test_help_tells_its_own_options_and_with_a_source_all_with_what_was_chosen(here, monkeypatch, capsys):
    assert call(monkeypatch, "train", "auto", "--help") == 0
    own = capsys.readouterr().out
    assert "--rate" in own
    assert "--fit.iterations" not in own
    assert train(monkeypatch, "--data.source", "pets", "--help") == 0
    all_of_them = capsys.readouterr().out
    assert "--fit.iterations" in all_of_them
    assert "(default: pets-tiny-single)" in all_of_them
    assert not (here / "runs").exists()


def test_a_run_that_is_another_one_is_gone_on_with_by_the_options_that_are_named(here, monkeypatch, capsys):
    """One that was begun when another rate was usual; by another size; with another setting; without a task."""
    words = ["train", "auto", "--data.source", "pets", "--size", "tiny", "--fit.iterations", "1", "--out", "run"]
    words += ["--fit.batch-size", "2"]
    assert call(monkeypatch, *words, "--rate", "dual") == 0
    for options, way in [
        ([], "give --rate dual"),
        (["--rate", "dual", "--size", "small"], "give --size tiny"),
        (["--rate", "dual", "--fit.batch-size", "4"], "give --fit.batch-size 2"),
        (["--rate", "dual", "--method.label-dropout", "0.5", "--fit.no-compile"], "give --method.label-dropout 0.1"),
        (["--task", "super-resolution:2"], "give --rate dual and drop --task"),
        (["--rate", "dual", "--data.augment.flip"], "give --data.augment.no-flip"),
    ]:
        capsys.readouterr()
        assert call(monkeypatch, *words, *options) == 2
        *_, line = capsys.readouterr().err.splitlines()
        assert line.endswith(
            f"was trained with another configuration: to go on with it, {way}; or choose another --out"
        )
        assert line.startswith("dualrate: run/checkpoints/step-00000001 ")
    assert call(monkeypatch, *words, "--rate", "dual") == 0
