"""`dualrate sample` goes on where it was, says what it did, and stops in one line."""

import json
import shutil
from pathlib import Path

import pytest
from cli.command import call
from training.toy import Recorder

from dualrate.drawing.drawer import Drawer
from dualrate.options import console
from dualrate.options.console import data_progress
from dualrate.runs.store import RELEASED
from dualrate.system.folders import Manifest

WEIGHTS = Path(__file__).parent.parent.parent / "weights" / "fashion-mnist-light"
OPTIONS = ["--steps", 1, "--batch-size", 4, "--precision", "float32"]


@pytest.fixture
def weights(tmp_path):
    """Released weights of the test's own."""
    return shutil.copytree(WEIGHTS, tmp_path / "weights")


def sample(monkeypatch, weights, out, *options) -> int:
    return call(monkeypatch, "sample", weights, "--out", out, *OPTIONS, *options)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_same_command_goes_on_and_more_images_are_added(weights, tmp_path, monkeypatch, capsys):
    reports = []
    for num in (6, 6, 10):
        assert sample(monkeypatch, weights, tmp_path / "out", "--num", num, "--json") == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert [(report["images"], report["drawn"]) for report in reports] == [(6, 6), (6, 0), (10, 6)]
    assert reports[1]["seconds_per_image"] is None
    assert reports[2]["seconds_per_image"] > 0
    assert all(report["macs_per_image"] == reports[0]["macs_per_image"] for report in reports)
    assert names(tmp_path / "out") == [".lock", *(f"{i:06d}.png" for i in range(10)), "grid.png", "sample.json"]
    commands = [entry["command"] for entry in json.loads((tmp_path / "out" / "sample.json").read_text())["calls"]]
    assert [command.split("--num ")[1].split()[0] for command in commands] == ["6", "10"]


def test_the_report_as_text_says_that_nothing_was_drawn(weights, tmp_path, monkeypatch, capsys):
    assert sample(monkeypatch, weights, tmp_path / "out", "--num", 2) == 0
    capsys.readouterr()
    assert sample(monkeypatch, weights, tmp_path / "out", "--num", 2) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert (lines["drawn"], lines["seconds_per_image"]) == ("0", "-")


def test_a_class_is_given_by_its_name(weights, tmp_path, monkeypatch, capsys):
    (weights / "classes.json").write_text(json.dumps([f"class-{number}" for number in range(9)] + ["ankle boot"]))
    Manifest.write(weights, [*RELEASED, "classes.json"])  # a change on purpose
    drawn = []
    for label in (9, "ankle boot"):
        assert sample(monkeypatch, weights, tmp_path / str(label), "--num", 1, "--label", label) == 0
        drawn.append((tmp_path / str(label) / "000000.png").read_bytes())
    assert drawn[0] == drawn[1]
    for label, message in {"boot": "has no class 'boot'", -1: "knows the classes 0 to 9", 10: "got label 10"}.items():
        capsys.readouterr()
        assert sample(monkeypatch, weights, tmp_path / "none", "--label", label) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_control_c_says_how_many_images_are_there_and_the_same_command_goes_on(weights, tmp_path, monkeypatch, capsys):
    straight = Drawer.batches

    def interrupted(drawer, seeds, progress=None):
        if seeds[0] == 4:
            raise KeyboardInterrupt
        return straight(drawer, seeds, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Drawer, "batches", interrupted)
        assert sample(monkeypatch, weights, tmp_path / "out", "--num", 6) == 130
    error = capsys.readouterr().err
    assert f"interrupted: 4 of 6 images are in {tmp_path / 'out'}; the same command goes on" in error
    assert "Traceback" not in error
    assert sample(monkeypatch, weights, tmp_path / "out", "--num", 6) == 0
    assert sample(monkeypatch, weights, tmp_path / "straight", "--num", 6) == 0
    for i in range(6):
        name = f"{i:06d}.png"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_weights_that_have_changed_since_are_refused_in_one_line(weights, tmp_path, monkeypatch, capsys):
    assert sample(monkeypatch, weights, tmp_path / "out", "--num", 2) == 0
    capsys.readouterr()
    medium = WEIGHTS.with_name("fashion-mnist-medium-45")
    assert sample(monkeypatch, medium, tmp_path / "out", "--num", 2) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("dualrate: ")
    assert "holds other samples, they differ in weights (weights at iteration 64000, " in line
    assert "; now fashion-mnist-medium-45 at iteration 27000, " in line
    assert line.endswith("choose another --out")


def test_the_weights_themselves_are_no_place_for_samples(weights, tmp_path, monkeypatch, capsys):
    before = names(weights)
    assert sample(monkeypatch, weights, weights) == 2
    assert "but no sample.json: choose a new directory as --out" in capsys.readouterr().err
    assert names(weights) == before


def test_what_decoding_left_out_is_said_once():
    recorder, left_out = Recorder(), "skipped 1 (0.png: the file is empty) of 4 images"
    show = data_progress(recorder)
    for done in (2, 3, 4):
        show(done, 4, "decoding photos/train" if done == 2 else left_out)
    assert recorder.notes == [left_out]


def test_without_a_compiler_the_networks_run_as_they_are(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console, "compiles", lambda device: "InvalidCxxCompiler: none")
    assert sample(monkeypatch, weights, tmp_path / "out", "--num", 1, "--compile") == 0
    assert "there is no compiler that works here (InvalidCxxCompiler: none)" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "sample.json").read_text())["origin"]["precision"] == "float32"


def test_compiled_and_other_images_are_not_mixed(weights, tmp_path, monkeypatch, capsys):
    assert sample(monkeypatch, weights, tmp_path / "out", "--num", 1) == 0
    monkeypatch.setattr(console, "compiles", lambda device: None)
    capsys.readouterr()
    assert sample(monkeypatch, weights, tmp_path / "out", "--num", 2, "--compile") == 2
    assert "they differ in precision (float32; now float32, compiled)" in capsys.readouterr().err


def test_without_a_gpu_no_calls_are_recorded(weights, tmp_path, monkeypatch, capsys):
    assert sample(monkeypatch, weights, tmp_path / "out", "--num", 1, "--graphs") == 0
    assert "CUDA graphs need a GPU, and this is the cpu: calls are not recorded" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "sample.json").read_text())["origin"]["precision"] == "float32"
