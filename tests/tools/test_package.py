"""What users install: nothing of an extra is needed, and the wheel has all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.house import modules
from tools.try_package import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
OF_AN_EXTRA = {"dualrate.pipelines.export", "dualrate.pipelines.hub", "dualrate.integrations.diffusers"}
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


@pytest.mark.slow
def test_wheel_and_sdist_work_in_a_fresh_environment(tmp_path) -> None:
    script = [sys.executable, ROOT / "tools" / "try_package.py", "--out", tmp_path / "dist"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in (tmp_path / "dist").iterdir()} == {".whl", ".gz"}
