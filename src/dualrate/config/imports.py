"""Names of the form `package.module:name`, of any installed package.

A command line imports what it names (`imported`). A name may also come from a file, and files import nothing: what
looks it up (`look_up`) sees only modules that are imported already.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from types import ModuleType


def import_module(name: str) -> ModuleType:
    """Import a module. Raises ValueError where it cannot be imported, whatever it fails with."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"a name is written package.module:name, a module package.module, got {name!r}")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} cannot be imported: {error}; is its folder on PYTHONPATH?") from error
    except Exception as error:  # whatever a module of the user's raises
        *_, at = traceback.extract_tb(error.__traceback__)
        what = f"{type(error).__name__}: {error} ({at.filename}, line {at.lineno})"
        raise ValueError(f"{name} cannot be imported: {what}") from error


def imported(text: str) -> object:
    """The object of this name. Raises ValueError for a text of another form, and where there is no such object."""
    return _member(import_module(_module(text)), text)


def import_named(kind: str, text: str | None) -> None:
    """Import what an option names, if it is written package.module:name. kind: what it is to be, for messages.

    Raises ValueError where it cannot be imported.
    """
    if text is not None and ":" in text:
        try:
            imported(text)
        except ValueError as error:
            raise ValueError(f"there is no {kind} {text!r}: {error}") from error


def look_up(text: str) -> object:
    """The object of this name, of a module that is imported already. Runs no code of any module.

    Raises ValueError as `imported`, and for a module that is not imported, which says how to import it.
    """
    return _member(already_imported(_module(text)), text)


def imported_modules(*names: str | None) -> tuple[str, ...]:
    """Modules of these names that are imported already, for another process, which begins without them."""
    modules = [name.partition(":")[0] for name in names if name is not None and ":" in name]
    return tuple(module for module in dict.fromkeys(modules) if module in sys.modules)


def already_imported(module: str) -> ModuleType:
    """The module of this name. Raises ValueError for one that is not imported, which says how to import it."""
    if module not in sys.modules:
        raise ValueError(
            f"{module} is not imported, and files run no code: if you trust it, dualrate --import {module} COMMAND ..."
        )
    return sys.modules[module]


def _module(text: str) -> str:
    module, _, name = text.partition(":")
    if not name.isidentifier():
        raise ValueError(f"a name in another package is written package.module:name, got {text!r}")
    return module


def _member(module: ModuleType, text: str) -> object:
    name = text.partition(":")[2]
    if name not in vars(module):
        where = getattr(module, "__file__", None) or "a folder"
        raise ValueError(f"{module.__name__} has no {name!r}, which {text} names; it is {where}")
    return vars(module)[name]
