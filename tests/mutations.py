"""JSON with one value changed: each in turn by values of other types, too large, nested, or gone."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GONE = object()  # a key, or an item, that is missing
NESTED: list[Any] = [[]]
for _ in range(300):
    NESTED = [NESTED]
VALUES = (
    None, True, 0, -1, 2.5, 10**400, float("nan"), float("inf"), "", "x", "1", "\ud800", "\0", "a" * 5000, "../x",
    [], {}, [None], [[]], ["x"], {"type": "x"}, {"_class_name": 1}, NESTED, GONE,
)  # fmt: skip
DEEP = "[" * 100_000 + "]" * 100_000


def places(plain: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value, the whole first."""
    yield at
    parts = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for key, value in parts:
        yield from places(value, (*at, key))


def changed(plain: Any, at: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at this place."""
    if not at:
        return None if value is GONE else value
    whole = copy.deepcopy(plain)
    *way, last = at
    place = whole
    for key in way:
        place = place[key]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    return whole


def mutations(file: Path, values: tuple[Any, ...] = VALUES) -> Iterator[tuple[str, str]]:
    """(what was changed, the text) of a JSON file."""
    plain = json.loads(file.read_text())
    for at in places(plain):
        for value in values:
            yield (
                f"{file.name} {at} -> {str(value)[:40] if value is not GONE else 'gone'}",
                json.dumps(changed(plain, at, value)),
            )
    yield f"{file.name} nested", DEEP
