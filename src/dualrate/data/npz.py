"""Images in a NumPy archive: `images` (or `arr_0`), uint8 NHWC, NCHW or NHW, and optional `labels` (or `arr_1`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dualrate.data.archives import read_arrays
from dualrate.data.source import Raw, Source, Split, class_numbers, hold_out, printable

_NAMES = (("images", "arr_0"), ("labels", "arr_1"))  # of each, the first that there is


def npz_source(path: Path, split: Split) -> Source:
    """The images of a .npz file, a tenth of them held out as the test split (`hold_out`).

    Classes are named by their numbers. Raises ValueError for other array names, types or shapes, for what
    `read_arrays` refuses, and for labels that `class_numbers` refuses.
    """
    name = printable(path.name)

    def read() -> Raw:
        images, labels = _arrays(path)
        positions = hold_out([str(i) for i in range(len(images))], split, str(path))
        items = [(f"{name}[{i}]", images[i]) for i in positions]
        if labels is None:
            return Raw(items, len(positions), None, ())
        numbers, class_names = class_numbers(labels, str(path), len(images))
        return Raw(items, len(positions), numbers[positions], class_names)

    return Source(f"{printable(path.stem)}/{split}", (path,), read)


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """(N, C, H, W) uint8 images, and labels as they are stored."""

    def wanted(found: list[str]) -> list[str]:
        if not set(_NAMES[0]) & set(found):
            raise ValueError(
                f"{path} has the arrays {', '.join(found) or 'none'}; expected images (or arr_0) and maybe labels "
                "(or arr_1)"
            )
        firsts = (next((name for name in names if name in found), None) for names in _NAMES)
        return [name for name in firsts if name is not None]

    images, *labels = read_arrays(path, wanted).values()
    if images.dtype != np.uint8:
        raise ValueError(f"images in {path} are {images.dtype}; expected uint8, 0 to 255")
    return _channels_first(images, path), labels[0] if labels else None


def _channels_first(images: np.ndarray, path: Path) -> np.ndarray:
    if 0 not in images.shape:
        if images.ndim == 3:
            return images[:, None]
        if images.ndim == 4 and images.shape[3] in (1, 3):
            return images.transpose(0, 3, 1, 2)
        if images.ndim == 4 and images.shape[1] in (1, 3):
            return images
    raise ValueError(
        f"images in {path} have shape {images.shape}; expected (N, H, W), (N, H, W, C) or (N, C, H, W), C = 1 or 3, "
        "none of them 0"
    )
