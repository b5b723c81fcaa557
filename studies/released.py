"""Weights that the pages were measured with and that are there no more, or are others by now."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "weights"
RETIRED = {  # the last commit that has them
    **{f"fashion-mnist-{name}": "de2df92" for name in ("heavy-long", "dual-early")},
    **{f"fashion-mnist-{name}": "efc01f7" for name in ("heavy", "medium", "dual", "light-long", "student-full")},
    **{f"fashion-mnist-{name}": "9fcbb8c" for name in ("retrofit", "student-8-4")},
    "fashion-mnist-retrofit-45": "509b5b4",
}


def require_released(*names: str | Path) -> None:
    """Raises ValueError for those that are directories of weights that are there no more; below the repository."""
    for path in (ROOT / name for name in names):
        if path.parent == WEIGHTS and path.name in RETIRED and not path.exists():
            raise ValueError(f"these weights are retired: git checkout {RETIRED[path.name]} -- weights/{path.name}")
