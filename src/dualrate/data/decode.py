"""One encoded image -> (C, H, W) uint8: the same path for training and reference images.

Only JPEG, PNG, WEBP, BMP and GIF are opened, of animations the first frame, and the pixel count is checked in the
header, before any pixel is decoded. Rules for the odd modes
    EXIF            the orientation is applied
    colour profile  not applied: values stay as they are stored
    transparency    alpha, a transparent palette entry or a colour key is composited on white
    16-bit grey     v -> round(v / 257), so that 65535 is 255 (Pillow's own conversion clips at 255); with alpha the
                    upper 8 bits of v and of alpha, as Pillow reads them
    CMYK, palette   Pillow's conversion to RGB
    grey <-> colour ITU-R 601 luma; a grey value repeated three times
Resizing, as that of the ADM ImageNet references (arXiv 2105.05233, released code): halving by box averages while the
shorter side is at least twice too large, bicubic to that side, then the centre. What is longer than LONGEST times its
shorter side is first cropped to that, which bounds the memory that a 1 x 4000 image takes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from dualrate.config.ranges import Ranged, Side
from dualrate.data.source import Content, Member
from dualrate.system.files import ABSENT, check_regular, naming, read_bytes, shown

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 50_000_000
LONGEST = 8
MAX_BYTES = 8 * MAX_PIXELS  # of a file: as many as four channels of 16 bits take
# where the width begins, how many bits after it the height does, of how many bits each is, and what 0 stands for
_WEBP = {b"VP8X": (24, 24, 0xFFFFFF, 1), b"VP8L": (21, 14, 0x3FFF, 1), b"VP8 ": (26, 16, 0x3FFF, 0)}


GREY, RGB = 0, 2  # colour types of PNG


OnBad = Literal["fail", "skip"]


@dataclass(frozen=True)
class Options(Ranged):
    """Options of decoding images, as in `load_images`. Its repr, name and all, is part of every key."""

    size: Side | None
    channels: Literal[1, 3] | None
    on_bad: OnBad


def decode(data: bytes, name: str, *, size: int | None = None, channels: int | None = None) -> np.ndarray:
    """Decode one image file to (C, H, W) uint8.

    data:     the file's bytes; `name` is only for the error
    size:     centre crop and resize to size x size; None: as stored
    channels: 1 or 3; None: 1 for a grey image, else 3
    Raises ValueError, naming the file, for anything that is not a whole image of an accepted format and size.
    """
    if not data:
        raise ValueError(f"{name}: the file is empty")
    if len(data) > MAX_BYTES:
        raise ValueError(f"{name}: the file has {len(data):,} bytes, more than the {MAX_BYTES:,} accepted")
    with _opened(io.BytesIO(data), name) as (image, begins):
        image.load()
        scale_key(image, begins)
        return _pixels(_eight_bit(ImageOps.exif_transpose(image), _is_grey(image, begins)), size, channels)


@contextmanager
def _opened(file: IO[bytes], name: str) -> Iterator[tuple[Image.Image, bytes]]:
    """An image of which the header is read, and its first bytes. Raises as `decode`."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow only warns about sizes that are refused here
            begins = file.read(30)
            _check_size(_webp_size(begins))
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                _check_size(image.size)
                yield image, begins
    except UnidentifiedImageError:
        raise ValueError(f"{name}: not a {', '.join(FORMATS)} image") from None
    except Exception as error:  # decoders raise about ten kinds of exceptions
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"{name}: cannot be decoded ({error})") from error


def frames_of(path: Path, *, size: int | None = None, channels: int = 3) -> Iterator[tuple[np.ndarray, float]]:
    """Frames of an animation as `decode` reads its first, each with the seconds that it is shown; of a still image one.

    A frame that is shown for no time is shown for 0.1 s, as browsers do.
    """
    with naming(path):
        check_regular(path, MAX_BYTES)
        with path.open("rb") as file, _opened(file, str(path)) as (image, _):
            for frame in ImageSequence.Iterator(image):
                pixels = _pixels(_eight_bit(frame, grey=False), size, channels)
                yield pixels, (frame.info.get("duration") or 100) / 1000  # which the last line knows of a WEBP


def _is_grey(image: Image.Image, begins: bytes) -> bool:
    """Whether grey values are stored. begins: the first bytes"""
    # by depth and colour type of the first chunk: 16-bit grey with alpha, which Pillow makes RGBA
    deep = image.format == "PNG" and begins[24:26] == b"\x10\x04"
    return deep or sixteen_bit(image) or image.mode in ("1", "L", "LA")


def resize(image: np.ndarray, *, size: int | None = None, channels: int | None = None) -> np.ndarray:
    """The same crop, resize and channel conversion for an image that is already (C, H, W) uint8, C = 1 or 3."""
    if (size is None or image.shape[1:] == (size, size)) and channels in (None, image.shape[0]):
        return image
    return _pixels(Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)), size, channels)


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than the {MAX_PIXELS:,} accepted")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in a WEBP header (30 bytes), (0, 0) for other files: Pillow opens WEBP by allocating it."""
    kind = data[12:16] if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else b""
    if kind not in _WEBP:
        return 0, 0
    start, bits, mask, least = _WEBP[kind]
    both = int.from_bytes(data[start:], "little")
    return (both & mask) + least, (both >> bits & mask) + least


def sixteen_bit(image: Image.Image) -> bool:
    """Whether Pillow holds grey values of more than 8 bits."""
    return image.mode == "I" or image.mode.startswith("I;16")


def scale_key(image: Image.Image, data: bytes) -> None:
    """Makes the colour key of a PNG (its bytes) as wide as its pixels: Pillow widens grey of 2 and 4 bits, not the key.

    Raises ValueError for a key in colours of 16 bits, which Pillow narrows.
    """
    if image.format != "PNG" or "transparency" not in image.info:
        return
    depth, colours = data[24:26]  # of the first chunk
    if colours == GREY and depth in (2, 4):
        image.info["transparency"] *= 255 // (2**depth - 1)
    if colours == RGB and depth == 16:
        raise ValueError("a transparent colour of 16 bits: save it with 8 bits, or with an alpha channel")


def _eight_bit(image: Image.Image, grey: bool) -> Image.Image:
    """L or RGB."""
    if sixteen_bit(image):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError(f"grey values from {wide.min()} to {wide.max()}, expected 0 to 65535")
        levels = (wide + 128) // 257
        if "transparency" in image.info:
            levels[wide == image.info["transparency"]] = 255
        return Image.fromarray(levels.astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("L" if grey else "RGB")


def _pixels(image: Image.Image, size: int | None, channels: int | None) -> np.ndarray:
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    if size is not None:
        most = LONGEST * min(image.size)
        image = _centre(image, min(image.width, most), min(image.height, most))
        while min(image.size) >= 2 * size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = size / min(image.size)
        if scale != 1:
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        image = _centre(image, size, size)
    array = np.asarray(image)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def image_of(name: str, item: Content, options: Options) -> np.ndarray:
    """The image, (C, H, W) uint8. Raises ValueError for what is no image, OSError for a file that cannot be read."""
    if isinstance(item, np.ndarray):
        return resize(item, size=options.size, channels=options.channels)
    return decode(_file_of(item), name, size=options.size, channels=options.channels)


def _file_of(item: Path | Member | bytes) -> bytes:
    """The bytes of an encoded image. Raises OSError for a file that cannot be read."""
    if isinstance(item, Path):
        return read_bytes(item, MAX_BYTES)
    return item.read() if isinstance(item, Member) else item


ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values by which sides are exchanged
IN_PNG = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}  # where it may be, before the pixels


def sides_of(item: Content) -> tuple[int, int] | None:
    """Height and width of an image as it is shown, by its header; None for what `image_of` refuses."""
    if isinstance(item, np.ndarray):
        return item.shape[1], item.shape[2]
    try:
        with _opened(io.BytesIO(_file_of(item)), "") as (image, _):
            in_header = image.format != "PNG" or IN_PNG & image.info.keys()  # a PNG would be decoded to look for more
            turned = in_header and image.getexif().get(ORIENTATION, 1) in TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:  # decoders raise about ten kinds of exceptions; `image_of` says what is wrong
        return None


def image_or_fault(name: str, item: Content, options: Options) -> np.ndarray | str:
    """`image_of`, or a line that says why the image cannot be used.

    Raises OSError where the system did not give the file: the image may be good.
    """
    try:
        return image_of(name, item, options)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in ABSENT:
            raise
        return shown(error) or type(error).__name__
