"""Images in a NumPy archive: `images` (or `arr_0`), uint8 NHWC, NCHW or NHW, and optional `labels` (or `arr_1`)."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from dualrate.data.source import Raw, Source, Split, hold_out


def npz_source(path: Path, split: Split) -> Source:
    """The images of a .npz file, a tenth of them held out as the test split (`hold_out`).

    Classes are named by their numbers. Raises ValueError for other array names, types or shapes, and pickled content.
    """

    def read() -> Raw:
        images, labels = _arrays(path)
        positions = hold_out([str(i) for i in range(len(images))], split)
        class_names = () if labels is None else tuple(str(i) for i in range(int(labels.max()) + 1))
        items = ((f"{path.name}[{i}]", images[i]) for i in positions)
        return Raw(items, len(positions), None if labels is None else labels[positions], class_names)

    return Source(f"{path.stem}/{split}", (path,), read)


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an archive")
            images = next((archive[name] for name in ("images", "arr_0") if name in archive), None)
            labels = next((archive[name] for name in ("labels", "arr_1") if name in archive), None)
            found = ", ".join(archive.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}") from error
    if images is None:
        raise ValueError(
            f"{path} has the arrays {found or 'none'}; expected images (or arr_0) and maybe labels (or arr_1)"
        )
    if images.dtype != np.uint8:
        raise ValueError(f"images in {path} are {images.dtype}; expected uint8, 0 to 255")
    images = _channels_first(images, path)
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or not len(labels)):
        raise ValueError(f"labels in {path} are {labels.dtype} {labels.shape}; expected {len(images)} integers")
    return images, None if labels is None else labels.astype(np.int64)


def _channels_first(images: np.ndarray, path: Path) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    raise ValueError(
        f"images in {path} have shape {images.shape}; expected (N, H, W), (N, H, W, C) or (N, C, H, W), C = 1 or 3"
    )
