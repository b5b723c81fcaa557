"""The table of classes that files may name: whole, and all that a file can have imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from dualrate.config.classes import CLASSES, MOVED, OF_MODULES
from dualrate.config.serial import from_plain
from dualrate.training.method import Method
from tools.house import modules

ROOT = Path(__file__).resolve().parents[2]
AFTER = """
import sys
from dualrate.config.serial import from_plain, to_plain
from dualrate.experiment.experiment import Experiment, MethodConfig
from dualrate.diffusion.process import Process
print(sorted(name for name in sys.modules if name.startswith("dualrate.")))
print(to_plain(from_plain({kind}, {plain!r})))
print(sorted(name for name in sys.modules if name.startswith("dualrate.")))
"""
WALK = """
import importlib, inspect, sys, typing
from dataclasses import fields, is_dataclass
from dualrate.experiment.experiment import Experiment
early = set(sys.modules)
for name in {modules!r}:
    importlib.import_module(name)
named = {{}}
def walk(hint):
    for part in typing.get_args(hint):
        walk(part)
    if not isinstance(hint, type) or hint in named or not (inspect.isabstract(hint) or is_dataclass(hint)):
        return
    named[hint] = hint.__module__
    for kind in hint.__subclasses__():
        walk(kind)
    for part in typing.get_type_hints(hint).values() if is_dataclass(hint) else ():
        walk(part)
walk(Experiment)
print({{kind.__name__: module for kind, module in named.items()
       if is_dataclass(kind) and not inspect.isabstract(kind) and module not in early}})
"""


def printed(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_table_has_every_class_that_reading_an_experiment_does_not_bring() -> None:
    """In a process of its own: here other tests have imported everything."""
    names = [name.removesuffix(".__init__") for name in modules(ROOT / "src") if name.startswith("dualrate.")]
    optional = ("__main__", "export", "hub", "diffusers", "app", "parquet")  # of extras, without such classes
    names = [name for name in names if not name.endswith(optional)]
    (line,) = printed(WALK.format(modules=names))
    wanted = ast.literal_eval(line)
    # parts of one type each, which come with the class that has them, and what no file names
    fields = {
        "Statistics",
        "Metadata",
        "Description",
        "Coordinate",
        "Langevin",
        "Tap",
        "ForeignConfig",
        "FirstFrame",
    } | {"Geometry", "Order", "HeldCodec"}
    assert not {name for name in wanted.keys() - fields if CLASSES.get(name) != wanted[name]}


@pytest.mark.parametrize(
    ("kind", "plain", "module"),
    [
        ("MethodConfig", {"type": "RollingConfig"}, "dualrate.forecasts.rolling"),
        ("MethodConfig", {"type": "ConsistencyConfig", "teacher": "run"}, "dualrate.methods.consistency"),
        ("Process", {"type": "Rolling"}, "dualrate.forecasts.rolling_process"),
    ],
)
def test_a_class_is_imported_when_a_file_names_it(kind: str, plain: dict, module: str) -> None:
    before, read, after = map(ast.literal_eval, printed(AFTER.format(kind=kind, plain=plain)))
    assert read["type"] == plain["type"]
    assert module not in before
    assert module in after


def test_every_module_of_the_table_is_ours_and_defines_its_classes() -> None:
    for module, names in OF_MODULES.items():
        path = modules(ROOT / "src")[module]
        defined = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)}
        assert set(names) <= defined, module
    assert sum(map(len, OF_MODULES.values())) == len(CLASSES), "a bare name means one class"
    assert set(MOVED.values()) <= set(modules(ROOT / "src"))


@pytest.mark.parametrize("name", ["antigravity", "dualrate.cli.main", "dualrate.forecasts.rolling", "this:that"])
def test_no_other_module_is_imported_for_a_file(name: str) -> None:
    before = set(sys.modules)
    with pytest.raises(ValueError, match=r"there is no|of another package|expected"):
        from_plain(Method, {"type": name})
    assert name.partition(":")[0] in before or name.partition(":")[0] not in sys.modules
