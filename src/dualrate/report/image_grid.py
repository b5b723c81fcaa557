"""Images to files and back: PNGs, grids of them, and the npz layout of the reference evaluators."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dualrate.config.ranges import Side, as_path, checked
from dualrate.data.images import to_uint8
from dualrate.diffusion.context import Shape
from dualrate.system.device import own_defaults
from dualrate.system.files import check_regular, whole

Ending = Literal[".png", ".txt"]
Images = np.ndarray | Tensor
GRID_PNG = "grid.png"
BLOCK = 3900  # bytes of pixels that take a block of a disk, packed or not
GAP = 2  # white pixels between the images of a grid
_COLOUR_TYPE = {1: 0, 3: 2}  # of a PNG: grey, RGB
_END = b"\0\0\0\0IEND\xaeB`\x82"


def image_grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """(N, C, H, W) uint8 -> one (rows, columns) picture, (H', W') or (H', W', 3) uint8, white between the images."""
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    page = np.full((channels, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        page[:, top : top + height, left : left + width] = image
    return page[0] if channels == 1 else page.transpose(1, 2, 0)


def side_by_side(clips: Any, frames: int) -> Any:
    """Clips (N, T C, H, W) -> their frames from left to right, (N, C, H, T W): arrays, or tensors."""
    count, channels, height, width = clips.shape
    apart = clips.reshape(count, frames, channels // frames, height, width)
    return apart.swapaxes(1, 2).swapaxes(2, 3).reshape(count, channels // frames, height, frames * width)


@own_defaults()
def save_grid(images: Images | Iterable[Images], path: Path | str, columns: int | None = None, scale: int = 1) -> None:
    """Writes a grid, every pixel `scale` times enlarged, in the format that the name ends with; whole or not at all.

    images: (N, C, H, W) of 1 or 3 channels, or batches of them, as `sample` yields: uint8, or floats in [-1, 1], which
            become uint8 by the 8-bit rule
    columns, scale: 1 or more; None: columns of a square
    Raises ValueError for other images, none, and an ending that names no format of pictures; OSError that names the
    file.
    """
    path = as_path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path} has no ending that names a format of pictures: .png will do")
    columns, scale = checked("columns", columns, Side | None), checked("scale", scale, Side)
    picture = Image.fromarray(image_grid(_pixels(images), columns).repeat(scale, 0).repeat(scale, 1))
    with whole(path) as partial:
        picture.save(partial, kind)


def _pixels(images: Images | Iterable[Images]) -> np.ndarray:
    """Pixels of images or batches of them, (N, C, H, W) uint8."""
    if not isinstance(images, (np.ndarray, Tensor)):
        listed = isinstance(images, Iterable) and not isinstance(images, str)
        parts = [_pixels(batch) for batch in images] if listed else []
        if len({part.shape[1:] for part in parts}) != 1:
            raise ValueError(
                f"images are an array (N, C, H, W), or batches of one shape, got {type(images).__name__}: pass the "
                "images that it holds"
            )
        return np.concatenate(parts)
    pixels = images.detach() if isinstance(images, Tensor) else torch.tensor(images)  # a copy: maps are read-only
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or not pixels.numel():
        way = "add a channel axis, images[:, None]" if pixels.ndim == 3 else "decode latents first"
        raise ValueError(f"images are (N, C, H, W) of 1 or 3 channels, got {tuple(pixels.shape)}: {way}")
    if pixels.is_floating_point() and not (pixels.min() >= 0 and pixels.max() > 2):  # else they are bytes
        pixels = to_uint8(pixels)
    if pixels.dtype != torch.uint8:
        raise ValueError(f"images are uint8, or floats in [-1, 1], got {pixels.dtype}: convert bytes by x / 127.5 - 1")
    return pixels.cpu().numpy()


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """(C, H, W) uint8, C = 1 or 3, as the content of a PNG file, from BLOCK bytes on packed fast, not well."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=int(image.nbytes > BLOCK))
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


@dataclass(frozen=True)
class Pictures:
    """Files of samples (C, H, W) uint8: a PNG file each, unless overridden.

    shown: how many the overview has, at most; None: all
    """

    shape: Shape
    ending: ClassVar[Ending] = ".png"
    shown: ClassVar[int | None] = 100

    def content(self, sample: NDArray[np.uint8]) -> bytes:
        return png_bytes(sample)

    def is_whole(self, file: Path) -> bool:
        """Whether it is one of these, to its end. Raises OSError where it cannot be read."""
        return is_whole_png(file, self.shape)

    def read(self, file: Path) -> NDArray[np.uint8]:
        """Read a sample, (C, H, W). Raises OSError for a damaged one."""
        return read_png(file)

    def show(self, samples: NDArray[np.uint8], directory: Path, columns: int | None) -> None:
        """Writes the overview."""
        save_grid(samples, directory / GRID_PNG, columns, scale=2 if self.shape[-1] < 64 else 1)

    def texts(self, files: Iterable[Path]) -> list[str] | None:
        """Texts that the files hold; None: they are pictures."""
        return None


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
