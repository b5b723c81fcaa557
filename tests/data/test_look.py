"""What a look at a source tells before anything is decoded."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualrate.data import images as module
from dualrate.data.decode import decode, shape_of
from dualrate.data.images import Look, look_at
from dualrate.data.source import Raw


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))


def encoded(size: tuple[int, int], mode: str = "RGB", kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind, **options)
    return stream.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    return encoded((5, 9), kind="JPEG", exif=exif)


@pytest.mark.parametrize(
    "data",
    [
        encoded((5, 9)),
        encoded((5, 9), "L"),
        encoded((5, 9), "LA"),
        encoded((5, 9), "RGBA"),
        encoded((5, 9), "P"),
        encoded((5, 9), "1"),
        encoded((5, 9), "I;16"),
        encoded((5, 9), "CMYK", "JPEG"),
        encoded((5, 9), kind="WEBP"),
        encoded((5, 9), "L", "GIF"),
        turned(),
    ],
)
def test_a_header_tells_the_shape_that_decoding_gives(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(data)
    assert shape_of(data, "image") == shape_of(file, "image") == decode(data, "image").shape


@pytest.mark.parametrize("data", [b"", b"text", encoded((8000, 8000), "1")])
def test_what_is_no_image_by_its_header_is_named(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="that one"):
        shape_of(data, "that one")


def test_a_folder_is_looked_at_without_its_held_out_tenth(tmp_path: Path) -> None:
    for i in range(20):
        file = tmp_path / "pets" / ("cat" if i % 2 else "dog") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded((10 + i, 8)))
    look = look_at(tmp_path / "pets")
    assert (look.count, look.num_classes, len(look.shapes)) == (18, 2, 18)
    assert {shape[:2] for shape in look.shapes} == {(3, 8)}
    assert not (tmp_path / "cache" / "images").exists()  # nothing is decoded


def test_arrays_are_looked_at_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((20, 6, 7), np.uint8))
    look = look_at(tmp_path / "x.npz")
    assert (look.count, look.num_classes, set(look.shapes)) == (18, 0, {(1, 6, 7)})


def test_of_many_images_some_are_looked_at_spread_over_all(monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST", 7)
    items = [(str(i), np.zeros((1, 8, i), np.uint8)) for i in range(20)]
    assert [shape[2] for shape in Look("x", Raw(items, 20, None, ())).shapes] == [0, 3, 6, 9, 12, 15, 18]


def test_files_that_are_no_images_are_passed_over_unless_all_are(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(encoded((8, 8)) if i == 1 else b"text")
    assert set(look_at(tmp_path).shapes) == {(3, 8, 8)}
    (tmp_path / "1.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"no image of .* can be opened.*\.png: not a"):
        _ = look_at(tmp_path).shapes
