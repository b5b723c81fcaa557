"""Frozen dataclasses to JSON and back, driven by their type annotations. Nothing in a file names code to run.

An object carries `"type"`: the class's name, or `module:Class` for one of another package. Where an annotation allows
several dataclasses, a union or a class with subclasses, it decides which is read: a member of the union, or a subclass
that is imported already or stands in the table of our own (classes.py). Another package's class that was not imported
is refused, and the message says how to have it imported.
"""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

from dualrate.config.classes import import_class, import_classes
from dualrate.system.files import parse_json, shown


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and scalars as dicts, lists and scalars, ready for `json.dumps`."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type_name(type(value))} | {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    return [to_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def from_plain(kind: Any, value: Any, where: str = "configuration") -> Any:
    """The value of annotation `kind` that `to_plain` wrote as `value`.

    Raises ValueError that names the place, for unknown fields (with a suggestion), missing fields, wrong types, and
    what a dataclass itself refuses, such as a number outside its range.
    """
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _union(get_args(kind), value, where)
    if origin is Literal:
        return _checked(value, value in get_args(kind), where, f"one of {get_args(kind)}")
    if origin is tuple:
        _checked(value, isinstance(value, list), where, "a list")
        kinds = get_args(kind)
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        _checked(value, len(kinds) == len(value), where, f"{len(kinds)} items")
        return tuple(from_plain(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True)))
    if isinstance(kind, type) and (inspect.isabstract(kind) or is_dataclass(kind)):
        return _one_of(kind, value, where)
    if kind is float and type(value) is int:
        with suppress(OverflowError):
            return float(value)
        raise ValueError(f"{where}: expected a number, got one with {len(str(value))} digits")
    return _checked(value, type(value) is kind, where, _expected(kind))


def from_json(
    kind: Any, content: bytes, where: str, upgrade: Callable[[dict[str, Any]], dict[str, Any]] = lambda plain: plain
) -> Any:
    """The value of annotation `kind` in some JSON. Raises ValueError as `from_plain`, and for what is no JSON.

    upgrade: of an object as earlier versions wrote it
    """
    try:
        plain = parse_json(content, where)
        return from_plain(kind, upgrade(plain) if isinstance(plain, dict) else plain, where)
    except RecursionError as error:
        raise ValueError(f"{where}: nested too deeply") from error


def of_package(kind: type) -> bool:
    """Whether a class is this package's own, not a user's."""
    return kind.__module__.split(".")[0] == __name__.split(".")[0]


def type_name(kind: type) -> str:
    """The name of a class in a file."""
    return kind.__name__ if of_package(kind) else f"{kind.__module__}:{kind.__qualname__}"


def _one_of(kind: type, value: Any, where: str) -> Any:
    """The class or the subclass that the value names; a dataclass itself needs no name."""
    _checked(value, isinstance(value, dict), where, f"a {kind.__name__}")
    kinds, name = _readable(kind), value.get("type", type_name(kind))
    _checked(name, isinstance(name, str), f"{where}.type", "a name")
    if name not in kinds:
        import_class(name)
        kinds = _readable(kind)
    if name not in kinds and (type_name(kind) not in kinds or ":" in name):
        module, colon, _ = name.partition(":")
        if colon:
            raise ValueError(
                f"{where}: {shown(name, 100)} is of another package, not imported: if you trust it, dualrate --import "
                f"{shown(module, 100)} COMMAND ..."
            )
        import_classes()
        names = ", ".join(sorted(_readable(kind)))
        raise ValueError(f"{where}: there is no {kind.__name__} {shown(repr(name), 100)}, it is one of {names}")
    chosen = kinds.get(name, kind)
    hints, names = typing.get_type_hints(chosen), [field.name for field in fields(chosen)]
    values = {}
    for key, item in value.items():
        if key in names:
            values[key] = from_plain(hints[key], item, f"{where}.{key}")
        elif key != "type":
            close = difflib.get_close_matches(key, names, 1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names)}"
            raise ValueError(f"{where}: {chosen.__name__} has no field {shown(repr(key), 100)}; {hint}")
    try:
        return chosen(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {shown(error)}") from error


def _readable(kind: type) -> dict[str, type]:
    """The class and its subclasses, as far as they are imported, by their names in files."""
    return {type_name(each): each for each in (kind, *_subclasses(kind)) if not inspect.isabstract(each)}


def _subclasses(kind: type) -> Iterator[type]:
    """The dataclasses among all subclasses."""
    for subclass in kind.__subclasses__():
        yield from (subclass, *_subclasses(subclass)) if is_dataclass(subclass) else _subclasses(subclass)


def _union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if isinstance(value, dict):
        for kind in kinds:
            if is_dataclass(kind) and getattr(kind, "__name__", None) == value.get("type"):
                return from_plain(kind, value, where)
    else:
        for kind in kinds:
            with suppress(ValueError):
                return from_plain(kind, value, where)
    return _checked(value, False, where, " or ".join(map(_expected, kinds)))


def _expected(kind: Any) -> str:
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    names = {int: "an integer", float: "a number", type(None): "null"}
    return " or ".join(map(repr, choices)) or names.get(kind, getattr(kind, "__name__", str(kind)))


def _checked(value: Any, right: bool, where: str, expected: str) -> Any:
    if not right:
        raise ValueError(f"{where}: expected {expected}, got {shown(repr(value), 200)}")
    return value
