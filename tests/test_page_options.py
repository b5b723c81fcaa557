"""Every option that a page, an example, a docstring or a message names is there."""

import importlib
import re
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import pytest

from dualrate.cli import train as cli_train
from dualrate.config.classes import import_classes
from dualrate.experiment.experiment import Experiment
from dualrate.options.acting import OPTIONS, option_name
from dualrate.pipelines.recipe import RetrofitRecipe
from dualrate.recipes.students import AdaptRecipe
from dualrate.system.files import read_json
from dualrate_command import answer

ROOT = Path(__file__).parent.parent
PAGES = [
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*", "weights/**/*.md", "src/**/*.md", "src/**/*.py")
    for path in sorted(ROOT.glob(pattern))
    if path.is_file() and path.name != "CHANGELOG.md"  # what was there once
]
OPTION = re.compile(r"(?<![\w-])--(?!jp-|xr-|pst-)[A-Za-z][\w.-]*")  # but for styles of notebooks
PROGRAM = re.compile(r"python (?:-m )?((?:studies|tools|benchmarks|examples)[\w./]*)")
FOREIGN = {  # of torchrun, srun, pip, hf and git
    *("--nproc-per-node", "--max-restarts", "--gpus-per-task", "--extra-index-url", "--force-reinstall", "--no-deps"),
    *("--local-dir", "--revision", "--error-unmatch", "--always", "--dirty", "--exclude", "--depth"),
}
BEFORE = {"--import", "--version", "--help", "--help-all", "--list"}  # the parser, and not its list, knows these
STAGES = ("first", "base")  # of a recipe of two


@cache
def listed() -> frozenset[str]:
    """Options of all commands, and of the recipes that look at a model first."""
    commands = read_json(OPTIONS).values()
    names = {name for command in commands for part in ("options", "required") for name in command.get(part, {})}
    recipes = [AdaptRecipe, RetrofitRecipe, *filter(is_dataclass, (cli_train.RECIPES | cli_train.STAGES).values())]
    words = {f"--{field.name.replace('_', '-')}" for recipe in recipes for field in fields(recipe)}
    return frozenset(names | words | FOREIGN | BEFORE)


def leaves(kind: object) -> Iterator[type]:
    """The classes in a type: of `tuple[Level, ...] | None` Level and NoneType."""
    if parts := typing.get_args(kind):
        for part in parts:
            yield from leaves(part)
    elif isinstance(kind, type):
        yield kind


def heirs(kind: type) -> Iterator[type]:
    yield kind
    for heir in kind.__subclasses__():
        yield from heirs(heir)


def leads(kind: object, path: list[str]) -> bool:
    """Whether a path of fields starts at a type, or at a class that stands for it. Numbers are places in a tuple."""
    if not path:
        return True
    name, *rest = path
    if name in ("N", "n"):
        return leads(kind, rest)
    name = name.removeprefix("no-").replace("-", "_")
    return any(
        leads(typing.get_type_hints(heir)[name], rest)
        for leaf in leaves(kind)
        for heir in heirs(leaf)
        if is_dataclass(heir) and name in {field.name for field in fields(heir)}
    )


def programs(text: str) -> str:
    """Source of the programs beside the package that a page runs."""
    places = [ROOT / name.removesuffix(".py").replace(".", "/") for name in PROGRAM.findall(text)]
    files = [path for place in places for path in (place.with_suffix(".py"), *place.glob("*.py")) if path.is_file()]
    return "".join(path.read_text() for path in files)


def exists(option: str, text: str) -> bool:
    """Whether there is an option of this name, or one that begins so. text: of the page, which may declare some"""
    beginnings = (f"{option}.", f"{option}-")  # `--fit.` and `--no-`
    if option in listed() or any(name.startswith(beginnings) for name in listed()) or f'"{option}"' in programs(text):
        return True
    path = option.removeprefix("--").split(".")
    path = path[path[0] in STAGES :]
    return leads(Experiment, path) or bool(re.search(rf"^ +{path[-1]}: ", text, re.MULTILINE))


@pytest.fixture(scope="module", autouse=True)
def classes() -> None:
    import_classes()
    importlib.import_module("examples.own_networks")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_that_a_page_names_exist(page):
    text = re.sub("^#SBATCH.*", "", page.read_text(), flags=re.MULTILINE)
    names = {option_name(word.rstrip(".-")) for word in OPTION.findall(text)}
    assert not [name for name in sorted(names) if not exists(name, text)]


def test_an_option_that_is_gone_is_missed():
    """Names like these were on a page when they were no options any more."""
    gone = ("--networks.context.join", "--networks.model.resample-kernel", "--networks.model.nor")
    assert not [name for name in gone if exists(name, "")]
    for name in ("--networks.model.decay", "--networks.light.levels.N.channels", "--first.method.loss-factor", "--fit"):
        assert exists(name, "")


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=lambda page: page.stem)
def test_commands_on_a_page_have_their_options(page):
    """Commands of its blocks, and within its lines."""
    text = page.read_text().replace("\\\n", " ")
    refused = []
    for line in re.findall(r"\bdualrate ((?:[a-z]+ )[^`|#\n]*)", text):
        words = re.sub(r"\(.*?\)|\[|\]|'|\"", "", line).split()
        code, says = answer(words) or (0, "")
        refused += [says] if code and "there is no option" in says else []
    assert not refused
