"""`dualrate doctor`: every finding can be provoked."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from PIL import Image
from runs.made import ONE, saved

from dualrate.cli import doctor
from dualrate.cli.doctor import Finding, check_images, check_run, ok, problem, warning
from dualrate.data.cache import cache_dir
from dualrate.runs.release import export

CPU = torch.device("cpu")
Usage = namedtuple("Usage", "total used free")


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


def only(findings, level: str) -> Finding:
    """The one finding that is not ok; it says what to do."""
    (found,) = [finding for finding in findings if finding.level != "ok"]
    assert found.level == level, found
    assert found.remedy
    return found


# The machine


@pytest.mark.parametrize(("driver", "level"), [(None, "ok"), ("/usr/bin/nvidia-smi", "problem")])
def test_a_gpu_that_torch_does_not_see_is_a_problem(driver, level, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: driver)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert levels(doctor.check_installation())[-1] == level


def test_a_device_that_computes_wrongly_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "pays", lambda device: True)
    monkeypatch.setattr(doctor, "compiles", lambda device: None)
    assert levels(doctor.check_device(CPU)) == ["ok", "ok", "ok"]
    right = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda left, other: right(left, other) + 0.25)
    assert "off by 0.25" in only(doctor.check_device(CPU), "problem").what


def test_more_threads_than_processors_and_no_compiler_are_warnings(monkeypatch):
    monkeypatch.setattr(doctor, "compiles", lambda device: "InvalidCxxCompiler: none")
    assert "InvalidCxxCompiler" in only(doctor.check_device(CPU), "warning").what
    monkeypatch.setattr(doctor, "compiles", lambda device: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10**6)
    only(doctor.check_device(CPU), "warning")


@pytest.mark.parametrize(("gib", "level"), [(100, "ok"), (1, "warning"), (0.001, "problem")])
def test_a_disk_with_room_and_with_little(gib, level, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, gib * 2**30))
    assert levels(doctor.check_disk({"runs": tmp_path / "to" / "come"})) == [level]
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_sync_is_a_problem_and_nothing_is_left(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 2**40))
    assert "Invalid argument" in only(doctor.check_disk({"runs": tmp_path}), "problem").what
    assert not list(tmp_path.iterdir())


# The command


@pytest.mark.parametrize(
    ("findings", "code"), [([ok("a"), warning("b", "do")], 0), ([problem("c", "mend"), ok("a")], 1)]
)
def test_exit_codes_and_lines(findings, code, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "checks", lambda target, device: {"all": lambda: iter(findings)})
    assert call(monkeypatch, "doctor") == code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == levels(findings)
    assert [line.partition(" -> ")[2] for line in lines] == [finding.remedy for finding in findings]
    assert call(monkeypatch, "doctor", "--json") == code
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == code
    assert [Finding(**finding) for finding in told["findings"]] == findings


def test_a_check_that_fails_is_a_problem_and_the_others_go_on(monkeypatch):
    def fail():
        raise RuntimeError("the driver is gone\nand more")

    found = list(doctor.examine({"device": fail, "other": lambda: iter([ok("fine")])}))
    assert levels(found) == ["problem", "ok"]
    assert found[0].what == "device: RuntimeError: the driver is gone"


def test_a_gpu_that_cannot_be_used_is_a_problem_and_the_rest_is_looked_at(monkeypatch):
    def unusable(asked):
        raise ValueError("the GPU is in use")

    monkeypatch.setattr(doctor, "pick_device", unusable)
    assert levels(doctor.checks(None, None)["GPU"]()) == ["problem"]
    with pytest.raises(ValueError, match="in use"):
        doctor.checks(None, "cuda")


def test_a_run_and_images_are_told_apart(tmp_path):
    run = saved(ONE, tmp_path / "run")
    assert {"run", "images"} & set(doctor.checks(str(run), "cpu")) == {"run"}
    assert {"run", "images"} & set(doctor.checks(str(tmp_path / "none"), "cpu")) == {"images"}
    assert not {"run", "images"} & set(doctor.checks(None, "cpu"))


# Runs


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """Two checkpoints; fashion-mnist is nowhere."""
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor.fashion_mnist, "INSTALLED", tmp_path / "none")
    return saved(ONE, tmp_path / "run", 5, 7)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_an_intact_run_without_its_images(run):
    found = list(check_run(run))
    assert "fashion-mnist is not on this machine" in only(found, "warning").what
    assert any("load reads iteration 7" in finding.what for finding in found)
    assert not cache_dir().exists()


def test_a_flipped_bit_is_named_and_an_older_checkpoint_is_loaded(run):
    flip(run / "checkpoints/step-00000007/model.safetensors")
    found = list(check_run(run))
    assert "problem" not in levels(found)
    assert any(finding.level == "warning" and "step-00000007/model.safetensors" in finding.what for finding in found)
    assert any("load reads iteration 5" in finding.what for finding in found)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000005", "step-00000007"]
    flip(run / "checkpoints/step-00000005/model.safetensors")
    assert levels(check_run(run)) == ["ok", "warning", "warning", "problem", "warning"]


def test_what_was_set_aside_and_an_experiment_that_is_gone(run):
    (run / "checkpoints/step-00000007").rename(run / "checkpoints/step-00000007.corrupt")
    assert any("set aside" in finding.what for finding in check_run(run))
    (run / "experiment.json").unlink()
    assert doctor.is_stored(run)
    only(check_run(run), "problem")


def test_released_weights(run, tmp_path):
    released = tmp_path / "released"
    export(run, released, lambda text: None)
    assert levels(check_run(released)) == ["ok", "ok", "warning"]  # the images
    flip(released / "model.safetensors")
    assert "problem" in levels(check_run(released))


# Images


def folder_of(path: Path, sizes=(16,)) -> Path:
    for name in ("cat", "dog"):
        (path / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (sizes[i % len(sizes)], 16), (i, i, i)).save(path / name / f"{i}.png")
    return path


def test_a_good_folder_is_counted(tmp_path):
    found = list(check_images(str(folder_of(tmp_path))))
    assert set(levels(found)) == {"ok"}
    assert "15 images, 2 class(es) of 7 to 8 images" in found[0].what


def test_a_folder_without_images_and_a_missing_one_are_problems(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    assert "no images in" in only(check_images(str(tmp_path)), "problem").what
    assert "no data at" in only(check_images(str(tmp_path / "gone")), "problem").what


def test_rejected_files_are_named(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "cat" / "broken.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes()[:40])
    found = only(check_images(str(tmp_path)), "problem")
    assert "cat/broken.png" in found.what
    assert "--data.on-bad skip" in found.remedy


def test_images_of_several_shapes_are_a_warning(tmp_path):
    found = list(check_images(str(folder_of(tmp_path, sizes=(16, 20)))))
    assert "problem" not in levels(found)
    assert any(finding.level == "warning" and "--data.size" in finding.remedy for finding in found)


def test_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor.fashion_mnist, "INSTALLED", tmp_path / "none")
    only(check_images("fashion-mnist"), "problem")
    assert not list(tmp_path.iterdir())


def test_an_archive_is_counted(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((40, 8, 8, 1), np.uint8), labels=np.arange(40) % 2)
    assert set(levels(check_images(str(tmp_path / "a.npz")))) == {"ok"}
