"""Commands that take a recipe's name first, whose fields the options then override."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import is_dataclass
from typing import TypeVar

from dualrate.cli.options import parse, parse_known

Command = TypeVar("Command")
Recipe = TypeVar("Recipe", bound=Callable[[], object])
HELP = ("-h", "--help")


def recipe_name(arguments: list[str], recipes: Collection[str], usage: str, of: str = "") -> str:
    """The first argument; the recipes' names are told where it is none.

    Raises ValueError for a name that is no recipe's, SystemExit after telling.
    """
    name, names = arguments[0] if arguments else "--help", ", ".join(recipes)
    if name in HELP:
        print(f"usage: dualrate {usage}\n\nrecipes: {names}")
        raise SystemExit(0 if arguments else 2)
    if name not in recipes:
        raise ValueError(f"there is no recipe {name!r}{of}; choose one of {names}")
    return name


def with_own_options(recipe: Recipe, arguments: list[str], command: str) -> tuple[Recipe, list[str]]:
    """A recipe, and the arguments without its own options: a recipe that is a dataclass has its fields for such.

    --help alone tells these; beside other options it is left for `override`, which knows what the recipe made of them.
    """
    if not is_dataclass(type(recipe)):
        return recipe, arguments
    name, *options = arguments
    asked = [option for option in options if option in HELP]
    others = [option for option in options if option not in HELP]
    kind: type[Recipe] = type(recipe)
    own, rest = parse_known(kind, others or asked, f"dualrate {command} {name}", recipe)
    return own, [name, *rest, *asked]


def override(default: Command, arguments: list[str], command: str) -> Command:
    """The command with the options that follow the recipe's name."""
    return parse(type(default), arguments[1:], f"dualrate {command} {arguments[0]}", default)
