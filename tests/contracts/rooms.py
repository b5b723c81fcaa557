"""The classes of a room, whether or not anybody imports them."""

import importlib
import inspect
import pkgutil


def in_room(room: str, base: type = object) -> set[type]:
    """The concrete classes derived from `base` that a room's modules define for others."""
    folder = importlib.import_module(f"dualrate.{room}")
    modules = [importlib.import_module(m.name) for m in pkgutil.walk_packages(folder.__path__, f"dualrate.{room}.")]
    values = (vars(module).values() for module in modules)
    found = {value for module in values for value in module if isinstance(value, type) and issubclass(value, base)}
    return {
        kind
        for kind in found
        if kind.__module__.startswith(f"dualrate.{room}.")
        and not kind.__name__.startswith("_")
        and not inspect.isabstract(kind)
    }
