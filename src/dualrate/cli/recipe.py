"""Commands that take a recipe's name first, whose fields the options then override."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import TypeVar, cast

from dualrate.cli.options import HELP, parse, parse_known
from dualrate.config.imports import imported

Command = TypeVar("Command")
Made = TypeVar("Made")
Recipe = TypeVar("Recipe", bound=Callable[..., object])


def recipe_named(
    arguments: list[str], recipes: Mapping[str, Callable[[], Made]], made: type[Made], usage: str, of: str = ""
) -> Callable[[], Made]:
    """The recipe that the first argument names: one of ours, or `package.module:function`, which is imported.

    made: what the recipe returns
    Raises ValueError for a name that is no recipe's, SystemExit after telling the recipes' names where there is none.
    """
    name, names = arguments[0] if arguments else "--help", ", ".join(recipes)
    if name in HELP:
        listed = textwrap.fill(f"recipes: {names}, or package.module:function of your own", 100)
        print(f"usage: dualrate {usage} (--help after the recipe for its options)\n\n{listed}")
        raise SystemExit(0 if arguments else 2)
    if ":" not in name:
        if name not in recipes:
            raise ValueError(f"there is no recipe {name!r}{of}; choose one of {names}, or name package.module:function")
        return recipes[name]
    recipe = imported(name)
    if not callable(recipe):
        raise ValueError(f"{name} is no recipe: expected a function that returns {made.__name__}, got {recipe!r}")
    return cast(Callable[[], Made], recipe)


def checked(value: object, made: type[Made], name: str) -> Made:
    """What a recipe returned. Raises ValueError for anything else than it should."""
    if not isinstance(value, made):
        raise ValueError(f"the recipe {name} returns {type(value).__name__}, expected {made.__name__}")
    return value


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
