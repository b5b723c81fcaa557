"""Looks at a source, before anything is decoded."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualrate.data import images as module
from dualrate.data.images import Look, look_at
from dualrate.data.source import Raw


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))


def encoded(size: tuple[int, int], mode: str = "RGB", kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind, **options)
    return stream.getvalue()


def test_a_folder_is_looked_at_without_its_held_out_tenth(tmp_path: Path) -> None:
    for i in range(20):
        file = tmp_path / "pets" / ("cat" if i % 2 else "dog") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded((10 + i, 8)))
    look = look_at(tmp_path / "pets")
    assert (look.raw.count, look.num_classes, len(look.shapes)) == (18, 2, 18)
    assert {shape[:2] for shape in look.shapes} == {(3, 8)}
    assert not (tmp_path / "cache" / "images").exists()  # nothing is decoded


def test_arrays_are_looked_at_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((20, 6, 7), np.uint8))
    look = look_at(tmp_path / "x.npz")
    assert (look.raw.count, look.num_classes, set(look.shapes)) == (18, 0, {(1, 6, 7)})


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
