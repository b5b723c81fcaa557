"""`dualrate doctor` of an installation and a machine, and the command: every finding can be provoked."""

import json
import os
import shutil
from collections import namedtuple
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from cli.command import call
from doctor.findings import levels, only
from runs.made import ONE, saved

from dualrate.cli.doctor import Doctor
from dualrate.doctor import examine
from dualrate.doctor import machine as disk
from dualrate.doctor import machine as hardware
from dualrate.doctor import machine as installation
from dualrate.doctor.finding import Finding, ok, problem, warning

CPU = torch.device("cpu")
Usage = namedtuple("Usage", "total used free")


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


def test_a_gpu_that_cannot_be_used_is_a_problem_and_the_rest_is_looked_at(monkeypatch, capsys):
    def unusable(asked):
        raise ValueError("the GPU is in use")

    monkeypatch.setattr("dualrate.cli.doctor.pick_device", unusable)
    monkeypatch.setattr("dualrate.doctor.examine.checks", lambda target, device: {"one": lambda: [ok(f"on {device}")]})
    with pytest.raises(SystemExit):
        Doctor().run()
    assert "the GPU is in use" in (said := capsys.readouterr().out)
    assert "on cpu" in said
    with pytest.raises(ValueError, match="in use"):
        Doctor(device="cuda").run()


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


def test_a_run_and_images_are_told_apart(tmp_path):
    run = saved(ONE, tmp_path / "run")
    assert {"run", "images"} & set(examine.checks(str(run), CPU)) == {"run"}
    assert {"run", "images"} & set(examine.checks(str(tmp_path / "none"), CPU)) == {"images"}
    assert not {"run", "images"} & set(examine.checks(None, CPU))
