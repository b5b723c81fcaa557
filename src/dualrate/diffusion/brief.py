"""Values on a line, for whoever prints them: arrays by their shapes, dataclasses by what is not as usual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

import numpy as np
from torch import Tensor

SHOWN = 6  # entries of a sequence


class Brief:
    """Base of a dataclass (made with repr=False) that prints its fields but for those that hold their defaults."""

    def __repr__(self) -> str:
        values = ((field, getattr(self, field.name)) for field in fields(self) if field.repr)  # pyright: ignore[reportArgumentType]
        parts = [f"{field.name}={brief(value)}" for field, value in values if not _is_default(field, value)]
        return f"{type(self).__name__}({', '.join(parts)})"


def brief(value: Any) -> str:
    """The value on a line: an array by its numbers' kind and shape, a long sequence by its ends."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        return repr(value)
    parts = [brief(item) for item in value]
    if len(parts) > SHOWN:
        parts[SHOWN - 2 : -1] = ["..."]
    return f"[{', '.join(parts)}]"


def _is_default(field: Field[Any], value: Any) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return False
    return value == (field.default if field.default_factory is MISSING else field.default_factory())
