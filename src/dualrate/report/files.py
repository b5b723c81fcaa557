"""Images to files and back: PNGs, and the npz layout of the reference evaluators."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dualrate.machine.files import check_regular, whole

_COLOUR_TYPE = {1: 0, 3: 2}  # of a PNG: grey, RGB
_END = b"\0\0\0\0IEND\xaeB`\x82"


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """(C, H, W) uint8, C = 1 or 3, as the content of a PNG file."""
    picture = image.transpose(1, 2, 0)
    content = io.BytesIO()
    Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(content, "PNG")
    return content.getvalue()


def is_whole_png(path: Path, shape: tuple[int, int, int]) -> bool:
    """Whether a file begins as a PNG of this shape (C, H, W) does, and ends as one. Reads 38 bytes of it."""
    channels, height, width = shape
    start = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBB", width, height, 8, _COLOUR_TYPE[channels])
    check_regular(path)
    with path.open("rb", buffering=0) as file:
        if file.read(len(start)) != start:
            return False
        file.seek(-len(_END), io.SEEK_END)
        return file.read() == _END


def read_png(path: Path) -> NDArray[np.uint8]:
    """(C, H, W) uint8. Raises OSError for a file that is no picture, or a damaged one."""
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise OSError(f"{path} is damaged ({error}): delete it, and it is drawn again") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def write_npz(
    path: Path, images: Iterable[NDArray[np.uint8]], shape: tuple[int, int, int, int], labels: NDArray[np.int64] | None
) -> None:
    """arr_0 (N, H, W, C) uint8 and, if there are any, arr_1 (N,) labels, holding one image at a time.

    images: N of (C, H, W); shape: (N, C, H, W). The file is whole or not there. Raises OSError that names it.
    """
    count, channels, height, width = shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, height, width, channels)}
    with whole(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for image in images:
                member.write(image.transpose(1, 2, 0).tobytes())
        if labels is not None:
            with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, labels, allow_pickle=False)
