"""Things that users install: nothing of an extra is needed, and the wheel has all of it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import dualrate
from tools.house import modules
from tools.try_package import EXTRAS, PARTS

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_AN_EXTRA = {
    f"dualrate.{name}"
    for name in ("forecasts.output", "pipelines.export", "pipelines.hub", "pipelines.parts", "integrations.diffusers")
}
WITHOUT = """
import importlib, sys
sys.modules.update(dict.fromkeys({extras!r}))  # None: importing it fails
import dualrate
for name in dualrate.__all__:
    getattr(dualrate, name)
for name in {modules!r}:
    importlib.import_module(name)
try:
    import diffusers
except ImportError:
    print("imported", len({modules!r}))
"""


def test_everything_imports_without_any_extra() -> None:
    """In a process of its own, where each extra is refused."""
    names = [name.removesuffix(".__init__") for name in modules(ROOT / "src")]
    names = [name for name in names if name not in OF_AN_EXTRA and not name.endswith("__main__")]
    assert len(names) > 100
    code = WITHOUT.format(extras=EXTRAS, modules=names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"imported {len(names)}\n"


def test_importing_the_package_imports_nothing_heavy_and_names_come_when_they_are_used() -> None:
    code = """
import sys, dualrate as dr
assert set(dr.__all__) <= set(dir(dr))
assert not {"torch", "numpy", "dualrate.runs"} & set(sys.modules), "import dualrate is lazy"
assert dr.StepPlan.uniform(4).num_steps == 4 and dr.StepPlan is vars(dr)["StepPlan"]
assert "dualrate.diffusion.plan" in sys.modules and "dualrate.runs" not in sys.modules
from dualrate import Choice, drawing
try:
    dr.no_such_name
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "module 'dualrate' has no attribute 'no_such_name'\n", done.stderr


@pytest.mark.slow
def test_wheel_and_sdist_work_in_a_fresh_environment(tmp_path) -> None:
    script = [sys.executable, ROOT / "tools" / "try_package.py", "--out", tmp_path / "dist"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in (tmp_path / "dist").iterdir()} == {".whl", ".gz"}


# What stands beside the package


def read_yaml(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def test_there_is_one_version() -> None:
    assert PROJECT["version"] == dualrate.__version__ == str(read_yaml("CITATION.cff")["version"])


def test_what_publishes_waits_for_its_owner() -> None:
    """A job that may prove who it is, or write, runs where a variable says so, after the one that checks."""
    workflow = read_yaml(".github/workflows/release.yml")
    jobs = workflow["jobs"]
    publishing = {name: job for name, job in jobs.items() if "write" in job.get("permissions", {}).values()}
    assert publishing.keys() == {"package", "site"}
    for job in publishing.values():
        assert re.fullmatch(r"vars\.PUBLISH_[A-Z]+ == 'yes'", job["if"])
        assert job["needs"] == "build"
    assert workflow["permissions"] == {"contents": "read"}
    assert "pipx run twine check --strict dist/*" in [step.get("run") for step in jobs["build"]["steps"]]


def test_environments_for_others_have_the_parts_and_extras_of_the_package() -> None:
    docker = (ROOT / "Dockerfile").read_text()
    copied = {part for line in re.findall(r"^COPY (.*) \S+$", docker, re.MULTILINE) for part in line.split()}
    assert copied == set(PARTS)
    assert (ROOT / ".dockerignore").read_text().split() == ["*", *(f"!{part}" for part in sorted(PARTS))]
    for text in (docker, (ROOT / "environment.yml").read_text()):
        (extras,) = re.findall(r"(?:\.|dualrate)\[([a-z,]+)\]", text)
        assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
        (python,) = re.findall(r"python[:=](3\.\d+)", text)
        assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]
