"""What is named on a command line as `package.module:name`, of any installed package."""

from __future__ import annotations

import importlib


def import_module(name: str) -> None:
    """For what it defines. Raises ValueError where it cannot be imported."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} cannot be imported: {error}; put its folder on PYTHONPATH") from error


def imported(text: str) -> object:
    """The object of this name. Raises ValueError for a text of another form, and where there is no such object."""
    module, _, name = text.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ValueError(f"a name in another package is written package.module:name, got {text!r}")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{module} of {text} cannot be imported: {error}; install its package, or put its folder on PYTHONPATH"
        ) from error
    if not hasattr(found, name):
        where = getattr(found, "__file__", None)
        raise ValueError(f"{module}{f' ({where})' if where else ''} has no {name!r}, which {text} names")
    return getattr(found, name)
