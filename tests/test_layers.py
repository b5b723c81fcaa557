"""Imports point one way between the layers, read from the source of each module without importing it."""

from __future__ import annotations

import ast
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"

# The rooms of the house, each a package right below `dualrate`. A module may import from its own room and from rooms
# before it. A line is a floor: the rooms of a subject.
FLOORS = (
    "machine config",
    "diffusion networks denoisers sampling",
    "planning likelihood",
    "methods training",
    "data metrics report",
    "experiments runs recipes",
    "measuring compare demo",
    "__init__ cli __main__",
)
ROOMS = [room for floor in FLOORS for room in floor.split()]

# Third-party packages that only some parts may import
CONFINED = {
    "tyro": ("cli",),
    "rich": ("cli",),
    "matplotlib": ("report",),
    "pyarrow": ("data",),
    "torch_fidelity": ("metrics",),
    "transformers": ("metrics",),
    "huggingface_hub": ("metrics",),
}
IMPORT_NAMES = {"pillow": "PIL", "torch-fidelity": "torch_fidelity", "huggingface-hub": "huggingface_hub"}


def module_name(path: Path) -> str:
    """src/dualrate/data/images.py -> dualrate.data.images; a package's __init__.py keeps that as its last part."""
    return ".".join(path.relative_to(SRC).with_suffix("").parts)


MODULES = {module_name(path): path for path in sorted(SRC.rglob("*.py"))}


def room(module: str) -> str:
    """The name below `dualrate`; the package itself is `__init__`, the entry point one with `__main__`."""
    if "." in module:
        return module.split(".")[1]
    return "__init__" if module == "dualrate" else "__main__"


def rank(module: str) -> int:
    if room(module) not in ROOMS:
        pytest.fail(f"{module} is in no room: add {room(module)!r} to FLOORS in tests/test_layers.py")
    return ROOMS.index(room(module))


def imports(source: str, module: str, modules: set[str]) -> set[str]:
    """Full names of all that `module` imports, anywhere in its code; `from package import module` names the latter."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level]) if node.level else ""
            package = ".".join(name for name in (base, node.module) if name)
            for alias in node.names:
                inner = f"{package}.{alias.name}"
                found.add(inner if inner in modules or f"{inner}.__init__" in modules else package)
    return found


@cache
def imports_of(module: str) -> set[str]:
    return imports(MODULES[module].read_text(), module, set(MODULES))


def own_imports(module: str) -> set[str]:
    return {name for name in imports_of(module) if name.split(".")[0] == "dualrate"}


def upward(module: str, targets: set[str]) -> list[str]:
    """The imports that point to a later room."""
    return sorted(target for target in targets if rank(target) > rank(module))


def sideways(module: str, targets: set[str]) -> list[str]:
    """The imports of one training method by another; method.py and times.py are what they share."""

    def method(name: str) -> str:
        """A method is a module of `methods`, or a package there."""
        return ".".join(name.split(".")[:3])

    shared = ("dualrate.methods.method", "dualrate.methods.times", method(module))
    of_methods = module.startswith("dualrate.methods.") and method(module) not in shared[:2]
    return sorted(
        name for name in targets if of_methods and name.startswith("dualrate.methods.") and method(name) not in shared
    )


def unconfined(module: str, targets: set[str]) -> list[str]:
    """The third-party packages that this part of the library may not import."""
    packages = {target.split(".")[0] for target in targets}
    return sorted(name for name in packages & set(CONFINED) if room(module) not in CONFINED[name])


def test_the_floors_list_the_rooms_that_exist() -> None:
    assert {room(module) for module in MODULES} == set(ROOMS)
    assert len(ROOMS) == len(set(ROOMS))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_to_earlier_rooms(module: str) -> None:
    wrong = upward(module, own_imports(module))
    assert not wrong, f"{module} imports {wrong} of a later room"


@pytest.mark.parametrize("module", MODULES)
def test_methods_do_not_import_each_other(module: str) -> None:
    assert not sideways(module, own_imports(module))


@pytest.mark.parametrize("module", MODULES)
def test_third_party_packages_stay_where_they_belong(module: str) -> None:
    wrong = unconfined(module, imports_of(module))
    assert not wrong, f"{module} imports {wrong}; allowed in: {[CONFINED[name] for name in wrong]}"


def test_source_needs_only_declared_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["eval"], *extras["dinov2"]]
    names = {text.split(">")[0].split("=")[0].strip() for text in declared}
    allowed = {IMPORT_NAMES.get(name, name) for name in names} | set(sys.stdlib_module_names) | {"dualrate"}
    used = {target.split(".")[0] for module in MODULES for target in imports_of(module)}
    assert used <= allowed, f"not in pyproject's dependencies: {sorted(used - allowed)}"


def test_no_import_cycles() -> None:
    graph = {module: own_imports(module) & set(MODULES) for module in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_the_checks_find_what_they_look_for() -> None:
    modules = {"dualrate.training.loop", "dualrate.training.__init__", "dualrate.methods.other"}
    source = "from dualrate.training import loop\ndef late():\n    import rich.console\n    from . import other\n"
    found = imports(source, "dualrate.methods.denoising", modules)
    assert found == {"dualrate.training.loop", "rich.console", "dualrate.methods.other"}
    own = {name for name in found if name.startswith("dualrate")}
    assert upward("dualrate.methods.denoising", own) == ["dualrate.training.loop"]
    assert sideways("dualrate.methods.denoising", own) == ["dualrate.methods.other"]
    assert unconfined("dualrate.methods.denoising", found) == ["rich"]
    assert not upward("dualrate.cli.train", own)
    assert not unconfined("dualrate.cli.main", found)
