"""`dualrate doctor`: every finding can be provoked."""

import json
import os
import shutil
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cli.command import call
from PIL import Image
from runs.made import ONE, saved

from dualrate.data.cache import cache_dir
from dualrate.doctor import disk, examine, hardware, images, installation, pair, processes, stored, trial
from dualrate.doctor.finding import Finding, ok, problem, warning
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


# Installation


@pytest.mark.parametrize(
    ("version", "wanted", "met"),
    [
        ("2.13.0+cpu", ">=2.10,<3", True), ("2.9.1", ">=2.10,<3", False), ("3.0.0", "<3,>=2.10", False),
        ("2.13.0", "==2.13", True), ("2.13.1", "==2.13.0", False), ("1.0", "", True), ("8.3", "!=8.3.0", False),
        ("2.10", "<=2.10", True), ("2.10", ">2.10", False),
    ],
)  # fmt: skip
def test_versions_are_compared_by_number(version, wanted, met):
    assert installation.satisfies(version, wanted) == met


def installed(monkeypatch, **packages) -> None:
    """Packages as name=(version, requirements)."""

    def of(name, part):
        if name not in packages:
            raise PackageNotFoundError(name)
        return packages[name][part]

    monkeypatch.setattr(installation, "version", lambda name: of(name, 0))
    monkeypatch.setattr(installation, "requires", lambda name: of(name, 1))


def test_packages_that_are_missing_or_too_old_are_a_problem(monkeypatch):
    needs = ["torch<3,>=2.10", "numpy>=1.26", "rich", 'scipy>=1; extra == "dev"']
    installed(monkeypatch, dualrate=("1", needs), torch=("2.9", []), rich=("1", []))
    found = only(installation.check_installation(), "problem")
    assert "torch<3,>=2.10 (found 2.9), numpy>=1.26 (none)" in found.what


def test_what_is_installed_here_is_ok():
    assert "problem" not in levels(installation.check_installation())


def test_a_torchvision_of_another_torch_is_a_warning(monkeypatch):
    installed(monkeypatch, dualrate=("1", None), torch=("2.9", []), torchvision=("1", ["torch==2.13.0"]))
    assert "torch==2.13.0 (found 2.9)" in only(installation.check_installation(), "warning").what


def test_a_source_that_is_not_installed_is_a_warning(monkeypatch):
    installed(monkeypatch)
    only(installation.check_installation(), "warning")


@pytest.mark.parametrize(
    ("driver", "built", "visible", "level"),
    [
        (False, None, None, "ok"),
        (True, None, None, "problem"),
        (True, "13.0", "", "warning"),
        (True, "13.0", None, "problem"),
    ],
)
def test_a_gpu_that_torch_does_not_see(driver, built, visible, level, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(installation, "gpu_driver", lambda: driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert levels(installation.check_torch()) == [level]


# The machine


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        (90, ["sm_80", "sm_90"], True), (86, ["sm_80"], True), (90, ["sm_80"], False), (90, ["compute_80"], True),
        (75, ["sm_80", "compute_80"], False), (90, ["sm_90a"], True), (100, ["sm_90", "sm_100"], True),
    ],
)  # fmt: skip
def test_which_code_a_gpu_runs(capability, built, runs):
    assert hardware._runs(capability, built) == runs


@pytest.mark.parametrize(
    ("capability", "free", "level"),
    [((9, 0), 70, "ok"), ((9, 0), 7, "warning"), ((7, 5), 70, "warning"), ((5, 0), 70, "problem")],
)
def test_a_gpu_that_is_too_old_or_in_use(capability, free, level, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90"])
    assert levels(hardware._gpu(torch.device("cuda"))) == [level]


def test_a_device_that_computes_wrongly_is_a_problem(monkeypatch):
    monkeypatch.setattr(hardware, "pays", lambda device: True)
    assert levels(hardware.check_device(CPU)) == ["ok", "ok"]
    right = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda left, other: right(left, other) + 0.25)
    assert "off by 0.25" in only(hardware.check_device(CPU), "problem").what


@pytest.mark.parametrize(
    ("threads", "load", "waiting", "level"),
    [(1, 0, "", "ok"), (10**6, 0, "PASSIVE", "warning"), (1, 10**6, "PASSIVE", "warning"), (2, 0, "ACTIVE", "warning")],
)
def test_threads_and_load(threads, load, waiting, level, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0, 0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    monkeypatch.setenv("OMP_WAIT_POLICY", waiting)
    assert levels(hardware.check_threads()) == [level]


def test_no_compiler_is_a_warning(monkeypatch):
    monkeypatch.setattr(hardware, "compiles", lambda device: "InvalidCxxCompiler: none")
    assert "InvalidCxxCompiler" in only(hardware.check_compiler(CPU), "warning").what
    monkeypatch.setattr(hardware, "compiles", lambda device: None)
    assert levels(hardware.check_compiler(CPU)) == ["ok"]


# Disks


@pytest.mark.parametrize(("gib", "level"), [(100, "ok"), (1, "warning")])
def test_a_disk_with_room_and_with_little(gib, level, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, gib * 2**30))
    assert levels(disk.check_disk([("runs", tmp_path / "to" / "come")])) == [level]
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 2**20))
    assert str(tmp_path) in only(disk.check_disk([("runs", tmp_path)]), "problem").what


def test_a_disk_that_cannot_sync_is_a_problem_and_nothing_is_left(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 2**40))
    assert "Invalid argument" in only(disk.check_disk([("runs", tmp_path)]), "problem").what
    assert not list(tmp_path.iterdir())


def test_little_shared_memory_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "SHARED", tmp_path)
    for total, level in ((2**26, "warning"), (2**33, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, total=total: Usage(total, 0, total))
        assert levels(disk.check_shared_memory()) == [level]
    monkeypatch.setattr(disk, "SHARED", tmp_path / "none")
    assert not list(disk.check_shared_memory())


# Processes


def test_processes_that_fail_are_a_problem(monkeypatch):
    monkeypatch.setattr(processes, "PAIR", "no_such_module_at_all")
    assert "exit code 1" in only(processes.check_processes(CPU), "problem").what


def test_processes_that_are_slow_are_a_warning(monkeypatch):
    monkeypatch.setattr(processes.Supervisor, "run", lambda self, retries: 0)
    assert levels(processes.check_processes(CPU)) == ["ok"]
    monkeypatch.setattr(processes, "SLOW", -1.0)
    only(processes.check_processes(CPU), "warning")


def test_within_a_training_of_several_processes_none_are_started(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(processes, "PAIR", "no_such_module_at_all")
    assert levels(processes.check_processes(CPU)) == ["ok"]
    assert pair.main("cpu") == 0


@pytest.mark.slow
def test_two_processes_meet():
    assert "problem" not in levels(processes.check_processes(CPU))


# Runs


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """Two checkpoints; fashion-mnist is nowhere."""
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stored.fashion_mnist, "INSTALLED", tmp_path / "none")
    return saved(ONE, tmp_path / "run", 5, 7)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_an_intact_run_without_its_images(run):
    found = list(stored.check_stored(run))
    assert "fashion-mnist is not on this machine" in only(found, "warning").what
    assert any("load reads iteration 7" in finding.what for finding in found)
    assert not cache_dir().exists()


def test_a_flipped_bit_is_named_and_an_older_checkpoint_is_loaded(run):
    flip(run / "checkpoints/step-00000007/model.safetensors")
    found = list(stored.check_stored(run))
    assert "problem" not in levels(found)
    assert any(finding.level == "warning" and "step-00000007/model.safetensors" in finding.what for finding in found)
    assert any("load reads iteration 5" in finding.what for finding in found)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000005", "step-00000007"]


def test_no_intact_checkpoint_is_a_problem(run):
    for name in ("step-00000005", "step-00000007"):
        flip(run / "checkpoints" / name / "model.safetensors")
    assert levels(stored.check_stored(run)) == ["ok", "warning", "warning", "problem", "warning"]


def test_what_was_set_aside_and_an_experiment_that_is_gone(run):
    (run / "checkpoints/step-00000007").rename(run / "checkpoints/step-00000007.corrupt")
    assert any("set aside" in finding.what for finding in stored.check_stored(run))
    (run / "experiment.json").unlink()
    assert stored.is_stored(run)
    only(stored.check_stored(run), "problem")


def test_a_checkpoint_of_another_format_is_a_problem(run, monkeypatch):
    monkeypatch.setattr(stored.checkpoint, "FORMAT", 2)
    assert "problem" in levels(stored.check_stored(run))


def test_released_weights(run, tmp_path):
    released = tmp_path / "released"
    export(run, released, lambda text: None)
    assert levels(stored.check_stored(released)) == ["ok", "ok", "warning"]  # the images
    (released / "MANIFEST.json").unlink()
    assert levels(stored.check_stored(released)) == ["ok", "warning", "ok", "warning"]


def test_images_of_a_run_that_are_gone_are_a_warning(tmp_path):
    assert "no data at" in only(stored.check_source(str(tmp_path / "gone")), "warning").what


# Images


def folder_of(path: Path, sizes=(16,), classes=("cat", "dog")) -> Path:
    for name in classes:
        (path / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (sizes[i % len(sizes)], 16), (i, i, i)).save(path / name / f"{i}.png")
    return path


def test_a_good_folder_is_counted(tmp_path):
    found = list(images.check_images(str(folder_of(tmp_path))))
    assert set(levels(found)) == {"ok"}
    assert "15 images, 2 class(es)" in found[0].what
    assert "7 to 8 images a class" in found[1].what


def test_a_folder_without_images_is_a_problem(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    found = list(images.check_images(str(tmp_path)))
    assert set(levels(found)) == {"problem"}
    assert "no images in" in found[0].what


def test_rejected_files_are_named(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "cat" / "broken.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes()[:40])
    found = [finding for finding in images.check_images(str(tmp_path)) if finding.level != "ok"]
    assert levels(found) == ["problem"]
    assert "cat/broken.png" in found[0].what
    assert "--data.on-bad skip" in found[0].remedy


def test_no_image_that_can_be_decoded_is_a_problem(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(b"none")
    assert any("none of" in finding.what for finding in images.check_images(str(tmp_path)))


def test_images_of_several_shapes_are_a_warning(tmp_path):
    found = list(images.check_images(str(folder_of(tmp_path, sizes=(16, 20)))))
    assert "problem" not in levels(found)
    assert any(finding.level == "warning" and "--data.size" in finding.remedy for finding in found)


def test_an_archive_with_a_class_of_no_image(tmp_path):
    pixels = np.zeros((40, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(40) % 2 * 2)
    found = list(images.check_images(str(tmp_path / "a.npz")))
    assert "problem" not in levels(found)
    assert any(finding.level == "warning" and "1 class(es): 1" in finding.what for finding in found)


def test_parquet_is_read(tmp_path):
    file = folder_of(tmp_path / "images") / "cat" / "0.png"
    rows = [{"image": {"bytes": file.read_bytes(), "path": None}, "label": i % 2} for i in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = list(images.check_images(str(tmp_path / "a.parquet")))
    assert set(levels(found)) == {"ok"}
    assert "18 images, 2 class(es)" in found[0].what


def test_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path))
    monkeypatch.setattr(images.fashion_mnist, "INSTALLED", tmp_path / "none")
    only(images.check_images("fashion-mnist"), "warning")
    assert not list(tmp_path.iterdir())


# Training


def test_three_steps_saved_and_resumed():
    assert levels(trial.check_trial(CPU)) == ["ok"]


def test_a_resume_to_other_weights_is_a_problem(monkeypatch):
    weights = iter(torch.tensor([1.0, 2.0, 3.0]))
    monkeypatch.setattr(trial, "trained", lambda *of: {"weight": next(weights)})
    assert "differ by 2" in only(trial.check_trial(CPU), "problem").what


# The command


@pytest.mark.parametrize(
    ("findings", "code"), [([ok("a"), warning("b", "do")], 0), ([problem("c", "mend"), ok("a")], 1)]
)
def test_exit_codes_and_lines(findings, code, monkeypatch, capsys):
    monkeypatch.setattr(examine, "checks", lambda target, device: {"all": lambda: iter(findings)})
    assert call(monkeypatch, "doctor") == code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == levels(findings)
    assert [line.partition(" -> ")[2] for line in lines] == [finding.remedy for finding in findings]
    assert call(monkeypatch, "doctor", "--json") == code
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == code
    assert [Finding(**finding) for finding in told["findings"]] == findings


def test_a_check_that_fails_is_a_problem_and_the_others_go_on():
    def fail():
        raise RuntimeError("the driver is gone\nand more")

    found = list(examine.examine({"device": fail, "other": lambda: iter([ok("fine")])}))
    assert levels(found) == ["problem", "ok"]
    assert found[0].what == "device: RuntimeError: the driver is gone"


def test_a_run_and_images_are_told_apart(run, tmp_path):
    assert {"run", "images"} & set(examine.checks(str(run), CPU)) == {"run"}
    assert {"run", "images"} & set(examine.checks(str(tmp_path / "none"), CPU)) == {"images"}
    assert not {"run", "images"} & set(examine.checks(None, CPU))
