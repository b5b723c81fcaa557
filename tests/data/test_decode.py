"""Odd image modes against values worked out by hand; broken files against clear refusals."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dualrate.data.conditions import Inpainting
from dualrate.data.decode import ORIENTATION, _webp_size, decode, resize, sides_of


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def plain(mode: str, colour: object, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def palette_with_transparency() -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    return encoded(image, transparency=0)


def two_frames() -> bytes:
    return encoded(plain("RGB", (0, 0, 255)), "GIF", save_all=True, append_images=[plain("RGB", (255, 0, 0))])


def png(depth: int, colours: int, row: bytes, key: bytes = b"", width: int = 1) -> bytes:
    """A PNG of one row, of a kind that Pillow does not write. key: the chunk tRNS"""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, 1, depth, colours, 0, 0, 0)
    parts = [
        (b"IHDR", header),
        *([(b"tRNS", key)] if key else []),
        (b"IDAT", zlib.compress(b"\0" + row)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def deep_grey_with_alpha(value: int, alpha: int) -> bytes:
    """1 x 1 pixel of 16 bits."""
    return png(16, 4, struct.pack(">HH", value, alpha))


@pytest.mark.parametrize(
    ("data", "first_pixel"),
    [
        (encoded(plain("L", 70)), [70]),
        (encoded(plain("1", 1)), [255]),
        (encoded(plain("RGB", (1, 2, 3))), [1, 2, 3]),
        (encoded(plain("LA", (100, 51))), [round((100 * 51 + 255 * 204) / 255)]),
        (encoded(plain("LA", (100, 0))), [255]),
        (deep_grey_with_alpha(100 * 257, 65535), [100]),
        (deep_grey_with_alpha(100 * 257, 51 * 257), [round((100 * 51 + 255 * 204) / 255)]),
        (encoded(plain("RGBA", (255, 0, 0, 102))), [255, 153, 153]),
        (encoded(plain("RGBA", (9, 9, 9, 0))), [255, 255, 255]),
        (encoded(plain("L", 7), transparency=7), [255]),
        (palette_with_transparency(), [255, 255, 255]),
        (encoded(plain("I;16", 30000)), [117]),
        (encoded(plain("I;16", 65535)), [255]),
        (encoded(plain("I;16", 128)), [0]),
        (encoded(plain("I;16", 129)), [1]),
        (encoded(plain("I;16", 30000), transparency=30000), [255]),
        (encoded(plain("I;16", 30001), transparency=30000), [117]),
        (encoded(plain("CMYK", (0, 0, 0, 0)), "JPEG"), [255, 255, 255]),
        (encoded(plain("CMYK", (0, 255, 255, 0)), "JPEG", quality=100, subsampling=0), [255, 0, 0]),
        (encoded(plain("RGB", (1, 2, 3)), "BMP"), [1, 2, 3]),
        (encoded(plain("RGB", (1, 2, 3)), "WEBP", lossless=True), [1, 2, 3]),
        (two_frames(), [0, 0, 255]),
    ],
)
def test_modes(data: bytes, first_pixel: list[int]) -> None:
    array = decode(data, "x")
    assert array.dtype == np.uint8
    assert array.shape[0] == len(first_pixel)
    assert np.abs(array[:, 0, 0].astype(int) - first_pixel).max() <= (1 if data[:2] == b"\xff\xd8" else 0)


def test_a_colour_key_is_as_wide_as_the_pixels() -> None:
    four, two = png(4, 0, b"\x05\x5f", b"\0\x05", width=4), png(2, 0, b"\x1b", b"\0\x01", width=4)
    assert decode(four, "x").tolist() == [[[0, 255, 255, 255]]]
    assert decode(two, "x").tolist() == [[[0, 255, 170, 255]]]
    assert decode(png(4, 0, b"\x05\x5f", width=4), "x").tolist() == [[[0, 85, 85, 255]]]
    assert Inpainting(1).read(four, "x", 2)[1].tolist() == [[1, 0, 0, 1]]
    with pytest.raises(ValueError, match="a transparent colour of 16 bits"):
        decode(png(16, 2, b"\1\7\2\7\3\7", b"\1\7\2\7\3\7"), "x")


def test_opaque_palette_entry_keeps_its_colour() -> None:
    assert decode(palette_with_transparency(), "x")[:, 0, 1].tolist() == [200, 100, 50]


def test_exif_rotation_is_applied() -> None:
    image = plain("L", 0, (4, 2))  # wide
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: top left goes to top right
    array = decode(encoded(image, exif=exif), "x")
    assert array.shape == (1, 4, 2)
    assert np.argwhere(array[0] == 255).tolist() == [[0, 1]]


def test_channels() -> None:
    grey, colour = encoded(plain("L", 70)), encoded(plain("RGB", (255, 0, 0)))
    assert decode(grey, "x", channels=3)[:, 0, 0].tolist() == [70, 70, 70]
    assert decode(colour, "x", channels=1)[:, 0, 0].tolist() == [76]  # 0.299 * 255


def test_box_halving_is_the_mean_of_blocks() -> None:
    blocks = np.repeat(np.repeat(np.array([[10, 20], [30, 40]]), 4, 0), 4, 1)
    checker = 8 * (np.indices((8, 8)).sum(0) % 2) - 4  # averages out in every block of 2 x 2
    array = decode(encoded(Image.fromarray((blocks + checker).astype(np.uint8))), "x", size=2)
    assert array[0].tolist() == [[10, 20], [30, 40]]


def test_crop_is_central() -> None:
    wide = np.zeros((4, 10), np.uint8)
    wide[:, 3:7] = 200
    assert (decode(encoded(Image.fromarray(wide)), "x", size=4) == 200).all()
    assert (decode(encoded(Image.fromarray(wide.T.copy())), "x", size=4) == 200).all()


def test_the_centre_is_taken_after_halving() -> None:
    """As ADM does: of ten columns five are left, of which the middle ones are those of columns 2 to 5, not 3 to 6."""
    ramp = np.tile(10 * np.arange(10, dtype=np.uint8), (4, 1))
    for turned in (False, True):
        array = decode(encoded(Image.fromarray(ramp.T.copy() if turned else ramp)), "x", size=2)[0]
        assert (array.T if turned else array).tolist() == [[25, 45], [25, 45]]


def test_a_side_beyond_eight_times_the_other_is_cropped_first() -> None:
    wide = np.full((1, 4000), 255, np.uint8)
    wide[:, 1996:2004] = 7
    assert (decode(encoded(Image.fromarray(wide)), "x", size=32) == 7).all()
    sizes: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "PIL.Image.Image.resize", lambda image, size, *how: sizes.append(size) or image.crop((0, 0, *size))
        )
        decode(encoded(Image.fromarray(wide)), "x", size=32)
    assert sizes == [(256, 32)]


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (31, 33), (64, 64), (200, 70)])
def test_any_shape_is_brought_to_the_size_and_constants_stay(shape: tuple[int, int]) -> None:
    array = decode(encoded(plain("RGB", (9, 90, 190), shape)), "x", size=32)
    assert array.shape == (3, 32, 32)
    assert (array == np.array([9, 90, 190]).reshape(3, 1, 1)).all()


@pytest.mark.parametrize(("size", "channels"), [(None, None), (8, None), (5, 1), (16, 3), (None, 1)])
@pytest.mark.parametrize("shape", [(3, 9, 12), (1, 8, 8)])
def test_arrays_and_files_take_the_same_path(shape: tuple[int, ...], size: int | None, channels: int | None) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    file = encoded(Image.fromarray(array[0] if shape[0] == 1 else array.transpose(1, 2, 0)))
    expected = decode(file, "x", size=size, channels=channels)
    assert np.array_equal(resize(array, size=size, channels=channels), expected)


def png_with_header(width: int, height: int, rows: bytes = zlib.compress(bytes(100))) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not an image", "not a JPEG, PNG"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:-200], "truncated"),
        (encoded(Image.effect_noise((64, 64), 50))[:1500], "truncated"),
        (encoded(plain("RGB", (1, 2, 3)), "TIFF"), "not a JPEG, PNG"),
        (encoded(plain("RGB", (1, 2, 3)), "PPM"), "not a JPEG, PNG"),
        (png_with_header(12_000, 12_000), "12000 x 12000 pixels"),
        (png_with_header(7_072, 7_072), "pixels, more than the 50,000,000"),
        (png_with_header(100_000, 100_000), "pixels"),
    ],
)
def test_bad_files_are_refused_by_name(data: bytes, reason: str, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(ValueError, match=rf"^cat\.jpg: .*{reason}"):
        decode(data, "cat.jpg")
    assert len(recwarn) == 0


def turned(kind: str, value: int, where: str = "exif") -> bytes:
    """A picture of 3 x 5 pixels whose orientation is said in EXIF, as ImageMagick writes it in a PNG, or in XMP."""
    exif, said, image = Image.Exif(), PngInfo(), Image.new("L", (5, 3))
    exif[ORIENTATION] = value
    if where == "exif":
        return encoded(image, kind, exif=exif)
    if where == "profile":
        content = exif.tobytes()
        said.add_text("Raw profile type exif", f"\nexif\n{len(content):8}\n{content.hex()}\n", zip=True)
    else:
        said.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{value}"/>')
    return encoded(image, kind, pnginfo=said)


@pytest.mark.parametrize("value", [0, 1, 4, 5, 8, 9])
@pytest.mark.parametrize(
    ("kind", "where"), [("JPEG", "exif"), ("WEBP", "exif"), ("PNG", "exif"), ("PNG", "profile"), ("PNG", "xmp")]
)
def test_sides_are_those_of_the_decoded_picture(kind: str, where: str, value: int) -> None:
    data = turned(kind, value, where)
    height, width = (5, 3) if value in (5, 8) else (3, 5)
    assert sides_of(data) == decode(data, "x").shape[1:] == (height, width)


def test_the_sides_of_what_is_refused_are_not_known() -> None:
    assert sides_of(encoded(Image.new("L", (5, 3)), "PNG")) == (3, 5)
    for data in (b"", b"not an image", png_with_header(7_072, 7_072)):
        assert sides_of(data) is None


def bombs() -> dict[str, bytes]:
    """Small files, in five formats, whose headers promise 64 million pixels; PNG and WEBP can be decoded to them."""
    side = 8000
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    bmp, gif, jpeg = (bytearray(encoded(plain("RGB", (1, 2, 3)), kind)) for kind in ("BMP", "GIF", "JPEG"))
    webp = bytearray(encoded(plain("RGB", (0, 0, 0)), "WEBP", lossless=True))
    bmp[18:26] = struct.pack("<ii", side, side)
    gif[6:10] = struct.pack("<HH", side, side)
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", side, side)
    webp[21:25] = struct.pack("<I", (side - 1) | (side - 1) << 14)
    headers = {"WEBP": bytes(webp), "BMP": bytes(bmp), "GIF": bytes(gif), "JPEG": bytes(jpeg)}
    return headers | {"PNG": png_with_header(side, side, rows)}


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}, {"quality": 80, "exif": b"Exif\x00\x00"}])
def test_the_size_in_a_webp_header_is_the_picture_s(options) -> None:
    data = encoded(Image.new("RGB", (300, 17)), "WEBP", **options)
    assert _webp_size(data) == Image.open(io.BytesIO(data)).size == (300, 17)


def peak_memory(*, reset: bool = False) -> float:
    """Return the peak of this process in MB, on Linux; `reset` starts anew from what it has now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e3


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_decompression_bombs_are_refused_before_they_are_decoded() -> None:
    files = bombs()
    assert max(map(len, files.values())) < 400_000
    for kind, data in files.items():
        before = peak_memory(reset=True)
        with pytest.raises(ValueError, match="8000 x 8000 pixels, more than the 50,000,000 accepted"):
            decode(data, kind)
        assert peak_memory() < before + 20, f"{kind} was decoded first"


def test_every_truncation_is_refused_or_whole() -> None:
    data = encoded(Image.effect_noise((16, 16), 50).convert("RGB"), "WEBP")
    for length in range(0, len(data) - 1, 7):
        with pytest.raises(ValueError, match=r"^x\.webp: "):
            decode(data[:length], "x.webp")
