"""Ranges of numbers: one beside each field of a dataclass, checked in one place when one is made.

    @dataclass(frozen=True)
    class Sampling(Ranged):
        steps: Steps = 64
        heavy: tuple[Steps, Steps] | None = None
        churn: Annotated[float, Range(0, 10)] = 0.0

A number outside its range, a number of another kind (2.5 or True for a whole number, nan for any) and a value that a
`Literal` does not list raise a ValueError that says which field it is, what it may be and what it got. numpy's numbers
become Python's, lists become tuples, and a path becomes text where the field is text. What a range cannot say, such as
one field below another, a class checks itself in `__post_init__`, after `super().__post_init__()`.

Upper ends are generous: they keep a machine from hanging on a slip, and are no advice.
"""

from __future__ import annotations

import math
import operator
import os
import typing
from collections.abc import Sized
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from dualrate.system.terminal import did_you_mean


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; above, below: without `low`, or `high`, itself. An end may be infinite."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, number: float) -> bool:
        """Whether a number lies in the range; nan lies in none."""
        enough = number > self.low if self.above else number >= self.low
        return enough and (number < self.high if self.below else number <= self.high)

    def __str__(self) -> str:
        low, high = (f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        if self.low == self.high:
            return f"equal to {low}"
        if self.high == math.inf:
            return f"above {low}" if self.above else f"of {low} or more"
        if self.above:
            return f"above {low} and {'below' if self.below else 'at most'} {high}"
        return f"from {low} to {'below ' if self.below else ''}{high}"


Steps = Annotated[int, Range(1, 100_000)]
HeavyCalls = Annotated[int, Range(0, 100_000)]
Iterations = Annotated[int, Range(1, 1_000_000_000)]
FirstIterations = Annotated[int, Range(0, 1_000_000_000)]
BatchSize = Annotated[int, Range(1, 100_000)]
Members = Annotated[int, Range(1, 4_000_000)]
LightDraws = Annotated[int, Range(1, 1024)]
Images = Annotated[int, Range(1, 10_000_000)]
Precision = Literal["auto", "float32", "bfloat16"]  # of matrix products; auto: bfloat16 where it pays
Seed = Annotated[int, Range(0, 2**62)]
Classes = Annotated[int, Range(0, 100_000)]
ClassShare = Annotated[int, Range(0, 1_000_000_000)]
Side = Annotated[int, Range(1, 4096)]
Lead = Annotated[int, Range(1, 256)]
ClipFrames = Annotated[int, Range(1, 4096)]
Channels = Annotated[int, Range(1, 16_384)]
SharedBlocks = Annotated[int, Range(1, 1000)]
OuterLevels = Annotated[int, Range(0, 1000)]
Processes = Annotated[int, Range(1, 1024)]
Retries = Annotated[int, Range(0, 1_000_000)]
Pairs = Annotated[int, Range(1, 1000)]
Rings = Annotated[int, Range(1, 1000)]
Probability = Annotated[float, Range(0, 1)]
Share = Annotated[float, Range(0, 1, above=True)]
BelowOne = Annotated[float, Range(0, 1, below=True)]
LogSNR = Annotated[float, Range(-60, 60)]
NoiseLevel = Annotated[float, Range(0, math.inf)]
GuidanceWeight = Annotated[float, Range(-100, 100)]
TeacherGuidance = Annotated[float, Range(0, 100, above=True)]
LossWeight = Annotated[float, Range(0, 1000)]
Positive = Annotated[float, Range(0, 1e30, above=True)]
Factor = Annotated[float, Range(0, 1000, above=True)]
Minutes = Annotated[float, Range(0, 1_000_000, above=True)]


def as_path(path: str | os.PathLike[str], what: str = "the path") -> Path:
    """The path that a user gives, ~ expanded.

    Raises ValueError, which calls it `what`, for an empty one, and for what no file can be called.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{what} is text or a path, got a {type(path).__name__}: name a file or folder")
    if not str(path):
        raise ValueError(f"{what} is empty: expected the name of a file or folder; . is the current folder")
    try:
        expanded = Path(path).expanduser()
        with suppress(OSError):  # a missing file is an error where it is opened
            os.lstat(expanded)
        return expanded
    except (RuntimeError, ValueError) as error:  # no such home directory, a null character
        raise ValueError(f"{what} {str(path)!r} is no path ({error})") from error


def check_rising(what: str, ends: tuple[float, float] | None) -> None:
    """Raises ValueError, which calls them `what`, for two ends of which the first is the larger."""
    if ends is not None and ends[0] > ends[1]:
        raise ValueError(f"{what}, got {ends}")


def many(count: int, noun: str) -> str:
    """A count and its noun as messages say them: "1 frame", "2,000 frames"."""
    several = noun.removesuffix("y") + ("ies" if noun.endswith("y") else "es" if noun.endswith("s") else "s")
    return f"{count:,} {noun if count == 1 else several}"


def is_whole(text: str) -> bool:
    """Whether a text is a whole number from 0 on, in the digits 0 to 9: `int` takes those of every script."""
    return text.isascii() and text.isdecimal()


class Ranged:
    """Base of a frozen dataclass: its numbers lie in the ranges of their annotations, its choices among theirs."""

    def __post_init__(self) -> None:
        for name, kind in ranges(type(self)).items():
            object.__setattr__(self, name, checked(name, getattr(self, name), kind))


@cache
def ranges(kind: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields, those that restrict a number or a choice."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind) if _restricts(hints[field.name])}


def _restricts(kind: Any) -> bool:
    notes = getattr(kind, "__metadata__", ())
    return (
        get_origin(kind) is Literal
        or kind is str
        or any(isinstance(note, Range) for note in notes)
        or any(_restricts(part) for part in get_args(kind))
    )


def checked(name: str, value: Any, kind: Any) -> Any:
    """The value as its annotation has it. Raises ValueError, which calls it `name`, for one that does not fit."""
    try:
        return _fitting(value, kind)
    except (ValueError, OverflowError):
        parts = [part for part in (kind, *get_args(kind)) if get_origin(part) is Literal]
        listed = [str(choice) for part in parts for choice in get_args(part)]
        near = did_you_mean(value, listed) if isinstance(value, str) else ""
        raise ValueError(f"{name} is {described(kind)}, got {value!r}{near}") from None


def count_or_list(what: str, items: Any) -> Any:
    """So many, as the numbers from 0 on; else the items themselves. Raises TypeError, which calls them `what`, for
    neither a whole number nor a sequence or an array.
    """
    number: Any = items
    if isinstance(items, Sized) and not isinstance(items, (str, bytes)) and getattr(items, "ndim", 1):
        return items
    try:
        return range(operator.index(number))
    except TypeError:
        raise TypeError(f"{what} are a whole number, how many, or a list of them, got {items!r}") from None


def _fitting(value: Any, kind: Any) -> Any:
    """The value as its annotation has it; raises ValueError without a message."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        allowed = [note for note in kind.__metadata__ if isinstance(note, Range)]
        if not allowed:
            return _fitting(value, parts[0])
        right = issubclass(type(value), Integral if parts[0] is int else Real) and type(value) is not bool
        if not right or value not in allowed[0]:
            raise ValueError
        return parts[0](value)
    if origin in (Union, UnionType):
        for part in parts:
            with suppress(ValueError):
                return _fitting(value, part)
        raise ValueError
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise ValueError
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_fitting(item, part) for item, part in zip(value, kinds, strict=True))
    if origin is Literal and not any(type(value) is type(choice) and value == choice for choice in parts):
        raise ValueError
    if kind is NoneType and value is not None:
        raise ValueError
    return str(value) if kind is str and isinstance(value, PurePath) else value


def described(kind: Any) -> str:
    """Allowed values of an annotation, as the end of a sentence."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        allowed = [note for note in kind.__metadata__ if isinstance(note, Range)]
        return f"a {'whole ' if parts[0] is int else ''}number {allowed[0]}" if allowed else described(parts[0])
    if origin in (Union, UnionType):
        return ", or ".join(map(described, parts))
    if origin is tuple:
        if parts[-1] is Ellipsis or len(set(parts)) == 1:
            return f"{'a list of' if parts[-1] is Ellipsis else len(parts)} values, each {described(parts[0])}"
        return f"{len(parts)} values, {', then '.join(map(described, parts))}"
    if origin is Literal:
        return " or ".join(f'"{choice}"' if isinstance(choice, str) else str(choice) for choice in parts)
    if isinstance(kind, type) and issubclass(kind, PurePath):
        return "a path"
    return "None" if kind is NoneType else getattr(kind, "__name__", str(kind))
