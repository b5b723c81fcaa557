"""Commands that take a recipe's name first, whose fields the options then override."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from dualrate.cli_options import parse

Command = TypeVar("Command")


def recipe_name(arguments: list[str], recipes: Collection[str], usage: str, of: str = "") -> str:
    """The first argument; the recipes' names are told where it is none.

    Raises ValueError for a name that is no recipe's, SystemExit after telling.
    """
    name, names = arguments[0] if arguments else "--help", ", ".join(recipes)
    if name in ("-h", "--help"):
        print(f"usage: dualrate {usage}\n\nrecipes: {names}")
        raise SystemExit(0 if arguments else 2)
    if name not in recipes:
        raise ValueError(f"there is no recipe {name!r}{of}; choose one of {names}")
    return name


def override(default: Command, arguments: list[str], command: str) -> Command:
    """The command with the options that follow the recipe's name."""
    return parse(type(default), arguments[1:], f"dualrate {command} {arguments[0]}", default)
