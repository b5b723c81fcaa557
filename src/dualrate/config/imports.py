"""What is named on a command line as `package.module:name`, of any installed package."""

from __future__ import annotations

import importlib
import traceback
from types import ModuleType


def import_module(name: str) -> ModuleType:
    """Raises ValueError where it cannot be imported, whatever it fails with."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"a name is written package.module:name, a module package.module, got {name!r}")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{name} cannot be imported: {error}; install its package, or put its folder on PYTHONPATH"
        ) from error
    except Exception as error:  # whatever a module of the user's raises
        *_, last = traceback.extract_tb(error.__traceback__)
        raise ValueError(
            f"{name} cannot be imported: {type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
        ) from error


def imported(text: str) -> object:
    """The object of this name. Raises ValueError for a text of another form, and where there is no such object."""
    module, _, name = text.partition(":")
    if not name.isidentifier():
        raise ValueError(f"a name in another package is written package.module:name, got {text!r}")
    found = import_module(module)
    if not hasattr(found, name):
        raise ValueError(f"{module} has no {name!r}, which {text} names; it is {found.__file__ or 'a folder'}")
    return getattr(found, name)
