"""The decisions of tools/set_up.py: where torch comes from, and what it refuses to install. No network, no pip."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("set_up", ROOT / "tools" / "set_up.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


boot = load()
CPU = boot.Torch("2.13.0+cpu", None, "python", [])
CUDA = boot.Torch("2.11.0+cu130", "13.0", "python", [])


@pytest.mark.parametrize(
    ("version", "good"),
    [
        ("2.10.0", True),
        ("2.13.0+cpu", True),
        ("2.15.1+cu132", True),
        ("2.11.0a0+gitabc", True),
        ("2.10.0a0+b5.nv25.11", False),
        ("2.10.0.dev20251101", False),
        ("2.9.1", False),
        ("1.13.1", False),
        ("3.0.0", False),
        ("unknown", False),
    ],
)
def test_usable_versions(version: str, good: bool) -> None:
    assert boot.usable(version) is good


@pytest.mark.parametrize(
    ("asked", "kept", "own", "driver", "source"),
    [
        ("", None, None, False, "cpu"),
        ("", None, None, True, "cuda"),
        ("", None, CUDA, True, "own"),
        ("", None, CPU, True, "own"),
        ("", CUDA, None, False, "kept"),
        ("", CPU, CUDA, True, "kept"),
        ("cpu", None, CUDA, True, "cpu"),
        ("cuda", None, None, False, "cuda"),
        ("cpu", CPU, None, True, "kept"),
        ("cuda", CUDA, None, False, "kept"),
    ],
)
def test_torch_source(asked: str, kept: object, own: object, driver: bool, source: str) -> None:
    assert boot.torch_source(asked, kept, own, driver) == source


@pytest.mark.parametrize(
    ("asked", "kept", "said"),
    [("gpu", None, "expected cpu or cuda"), ("cpu", CUDA, "rm -rf .venv"), ("cuda", CPU, "rm -rf .venv")],
)
def test_contradictory_choices_are_refused(asked: str, kept: object, said: str) -> None:
    with pytest.raises(boot.Problem, match=said):
        boot.torch_source(asked, kept, None, False)


def report(*names: str) -> dict:
    """A pip report in the form of `pip install --dry-run --report`, cut to what is read."""
    return {"version": "1", "install": [{"metadata": {"name": name, "version": "1.0"}} for name in names]}


@pytest.mark.parametrize(
    "name", ["nvidia-cublas", "nvidia-cudnn-cu13", "cuda-toolkit", "cuda_bindings", "triton", "NVIDIA-nccl"]
)
def test_cuda_packages_are_refused_on_the_cpu(name: str) -> None:
    with pytest.raises(boot.Problem, match=name):
        boot.refuse_cuda(boot.planned(report("torch", "numpy", name)))


def test_a_cpu_plan_passes() -> None:
    boot.refuse_cuda(boot.planned(report("torch", "numpy", "nvitop", "tritonclient", "pillow")))


@pytest.mark.parametrize("name", ["torch", "nvidia-cublas"])
def test_an_installed_torch_is_not_touched(name: str) -> None:
    with pytest.raises(boot.Problem, match=r"2\.11\.0"):
        boot.refuse_torch(boot.planned(report("numpy", name)), CUDA)
    boot.refuse_torch(boot.planned(report("numpy", "torchmetrics")), CUDA)


@pytest.mark.parametrize(
    ("stamp", "extras", "asked", "done"),
    [
        ({}, set(), "", False),
        ({"key": "k", "extras": [], "cuda": None}, set(), "", True),
        ({"key": "k", "extras": [], "cuda": None}, {"dev"}, "", False),
        ({"key": "k", "extras": ["dev"], "cuda": None}, set(), "", True),
        ({"key": "k", "extras": ["dev"], "cuda": None}, {"docs"}, "", False),
        ({"key": "k", "extras": ["dev", "docs"], "cuda": None}, {"docs"}, "", True),
        ({"key": "old", "extras": ["dev"], "cuda": None}, set(), "", False),
        ({"key": "k", "extras": ["dev"], "cuda": None}, {"dev"}, "cpu", True),
        ({"key": "k", "extras": ["dev"], "cuda": None}, {"dev"}, "cuda", False),
        ({"key": "k", "extras": ["dev"], "cuda": "13.0"}, {"dev"}, "cpu", False),
    ],
)
def test_stamp(stamp: dict, extras: set[str], asked: str, done: bool) -> None:
    assert boot.done(stamp, "k", extras, asked) is done


def test_the_stamp_follows_dependencies_and_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyvenv.cfg").write_text("version = 3.11.2")
    (tmp_path / "cpu.txt").write_text("torch==2.13.0")
    (tmp_path / "pyproject.toml").write_text("[project]")
    for name, value in (("ROOT", tmp_path), ("VENV", tmp_path), ("CONSTRAINTS", tmp_path / "cpu.txt")):
        monkeypatch.setattr(boot, name, value)
    keys = [boot.stamp_key()]
    for name in ("pyvenv.cfg", "cpu.txt", "pyproject.toml"):
        (tmp_path / name).write_text("changed")
        keys.append(boot.stamp_key())
    assert len(set(keys)) == 4


def test_finds_the_torch_of_an_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("__version__ = '2.11.0+cu130'\nclass version:\n    cuda = '13.0'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = boot.find_torch(sys.executable)
    assert (found.version, found.cuda, found.python) == ("2.11.0+cu130", "13.0", sys.executable)
    (tmp_path / "torch.py").write_text("raise ImportError('a broken build')")
    assert boot.find_torch(sys.executable) is None
    assert boot.find_torch("no-such-python") is None


def test_too_little_disk_is_said_before_anything_is_made() -> None:
    with pytest.raises(boot.Problem, match="make room"):
        boot.make_venv(None, need=10**9)


def test_an_old_python_is_told_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    with pytest.raises(boot.Problem, match=r"needs 3\.11"):
        boot.set_up(set())


def test_agrees_with_pyproject_and_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (low, high) = boot.TORCH_RANGE
    assert f"torch>={low[0]}.{low[1]},<{high[0]}" in project["dependencies"]
    assert project["requires-python"] == ">={}.{}".format(*boot.OLDEST_PYTHON)
    constraints = (ROOT / "constraints" / "cpu.txt").read_text()
    assert boot.usable(boot.tested_torch(constraints))
    pinned = {line.split("==")[0] for line in constraints.splitlines() if "==" in line}
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["dev"] + extras["docs"]
    missing = {re.split("[>=[]", text)[0] for text in wanted} - pinned
    assert not missing, f"constraints/cpu.txt pins no tested version of {sorted(missing)}"
