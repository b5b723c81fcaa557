"""Things that users install: nothing of an extra is needed, and the wheel has all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.house import modules
from tools.try_package import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
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
