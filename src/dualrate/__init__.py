"""Diffusion sampling with two networks: a heavy one now and then, a light one at every step.

These are the names of whoever trains, draws, takes models in and writes samplers and denoisers (docs/api.md). What
methods of one's own need besides is imported from the module that defines it. A name's module, which
`__init__.pyi` says, is imported when the name is first used, so that `import dualrate` costs nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dualrate.config.imports import import_module

__version__ = "0.2.0"

_STUB = Path(__file__).with_suffix(".pyi").read_text("utf-8")
_WHERE = {name: module for module, name in re.findall(r"^from (dualrate\.\S+) import (\w+) as", _STUB, re.MULTILINE)}
__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]  # which reads the stub


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module 'dualrate' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_WHERE[name]), name)
    return value
