"""Pairs of images: found by name in folders and in columns of Parquet files, split and changed alike."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dualrate.data.conditions import Conditioned
from dualrate.data.images import ImageSet, load_images, look_at
from dualrate.data.loader import Augment, Batches
from dualrate.data.pairs import Pairs
from dualrate.data.source import SPLITS, Split
from dualrate.recipes.tasks import task_named

COUNT = 30


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))


def encoded(value: int, side: int, kind: str) -> bytes:
    """A picture with the value in its left half, and 0 in its right half."""
    pixels = np.zeros((side, side), np.uint8)
    pixels[:, : side // 2] = value
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def folder(place: Path, side: int, kind: str = "png", names: list[str] | None = None) -> str:
    """Picture number i of a folder, by its name, has the value 8 i."""
    for i, name in enumerate(names or [f"{'ab'[i % 2]}/{i}" for i in range(COUNT)]):
        file = place / f"{name}.{kind}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(8 * i, side, kind))
    return str(place)


def columns(file: Path) -> str:
    table = {name: [encoded(8 * i, side, "png") for i in range(COUNT)] for name, side in (("sharp", 8), ("small", 4))}
    pq.write_table(pa.table(table), file, row_group_size=7)
    return str(file)


def partners(source: str | Path, targets: str | Path, split: Split, size: int) -> ImageSet:
    return Pairs(str(source), size, 1).partners(str(targets), split, label=None, on_bad="fail")


def values(images: ImageSet) -> list[int]:
    return images.images[:][:, 0, 0, 0].tolist()


@pytest.mark.parametrize("kind", ["png", "bmp"])
def test_partners_have_the_names_and_the_split_of_the_targets(tmp_path: Path, kind: str) -> None:
    targets, source = folder(tmp_path / "sharp", 8), folder(tmp_path / "small", 4, kind)
    split: dict[Split, list[int]] = {}
    for part in SPLITS:
        split[part] = values(load_images(targets, split=part))
        found = partners(source, targets, part, 4)
        assert (values(found), found.shape) == (split[part], (1, 4, 4))
    assert (len(split["train"]), len(split["test"])) == (27, 3)


def test_partners_of_folders_of_splits_follow_them(tmp_path: Path) -> None:
    targets = folder(tmp_path / "sharp", 8, names=["train/0", "train/1", "test/0"])
    source = folder(tmp_path / "small", 4, names=["train/0", "train/1", "test/0"])
    for part, expected in zip(SPLITS, ([0, 8], [16]), strict=True):
        assert values(partners(source, targets, part, 4)) == expected


def test_columns_of_the_same_file_make_pairs(tmp_path: Path) -> None:
    file = columns(tmp_path / "photos.parquet")
    for part in SPLITS:
        images = load_images(f"{file}#sharp", split=part)
        found = partners(f"{file}#small", f"{file}#sharp", part, 4)
        assert values(found) == values(images)
        assert (images.shape, found.shape) == ((1, 8, 8), (1, 4, 4))
    with pytest.raises(
        ValueError, match=r"columns sharp, small; expected image or img; name another one .*FILE#COLUMN"
    ):
        load_images(file, split="train")
    with pytest.raises(ValueError, match=r"columns sharp, small; expected blurred$"):
        load_images(f"{file}#blurred", split="train")


def test_a_column_of_no_parquet_file_is_refused(tmp_path: Path) -> None:
    place = folder(tmp_path / "sharp", 8)
    with pytest.raises(ValueError, match="#small names a column of Parquet files, and there are none in"):
        load_images(f"{place}#small", split="train")
    assert len(load_images(folder(tmp_path / "a#b", 8), split="train")) == 27  # a place that exists


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (["0", "1", "2", "3"], ["0", "1"], r"small lacks 2 of the 4 images of .*sharp: 2, 3\. Give the two"),
        (["0", "1"], ["0", "1", "deep/x"], r"sharp lacks 1 of the 3 images of .*small"),
        (["train/0", "train/1", "test/0"], ["0", "1"], r"small lacks 1 of the 3 images of .*sharp: 0\."),
    ],
)
def test_a_missing_partner_is_refused_by_name(tmp_path: Path, theirs, ours, message) -> None:
    targets, source = folder(tmp_path / "sharp", 8, names=theirs), folder(tmp_path / "small", 4, names=ours)
    if "deep/x" in ours:  # images beside folders are no set
        source = folder(tmp_path / "other" / "small", 4, names=["0", "1", "x"])
    with pytest.raises(ValueError, match=message):
        partners(source, targets, "train", 4)


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    for side, place in ((8, "sharp"), (4, "small")):
        for kind in ("png", "bmp"):
            folder(tmp_path / place, side, kind, ["0", "1"])
    with pytest.raises(ValueError, match="several images of one name, without its ending: "):
        partners(tmp_path / "small", tmp_path / "sharp", "train", 4)


def in_both(source: str, targets: str) -> list[ImageSet]:
    return [partners(source, targets, split, 8) for split in SPLITS]


def shaped(place: Path, kind: str, shapes: list[tuple[int, int]], orientation: int = 1) -> str:
    exif = Image.Exif()
    exif[274] = orientation
    for i, (height, width) in enumerate(shapes):
        place.mkdir(exist_ok=True)
        Image.new("L", (width, height), i).save(place / f"{i}.{kind}", exif=exif)
    return str(place)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
@pytest.mark.parametrize("bad", [0, 7, 19])
def test_two_of_another_aspect_ratio_are_refused_whatever_their_endings(tmp_path: Path, kind: str, bad: int) -> None:
    wide = [(8, 16) if i in (bad, 10) else (8, 8) for i in range(20)]
    targets = shaped(tmp_path / "sharp", "png", wide)
    assert len(partners(shaped(tmp_path / "same", kind, wide), targets, "train", 8)) == 18
    swapped = [(8, 16) if i in (bad + 1, 10) else (8, 8) for i in range(20)]  # as many of each shape
    with pytest.raises(
        ValueError, match=r"\d+\.\w+: the pictures of a pair are 8 x \d+ in .* beside 8 x \d+ in .*sharp"
    ):
        in_both(shaped(tmp_path / "swapped", kind, swapped), targets)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_the_aspect_ratio_is_that_of_the_picture_as_it_is_shown(tmp_path: Path, kind: str) -> None:
    targets = shaped(tmp_path / "sharp", "png", [(8, 16)] * 4)
    assert len(partners(shaped(tmp_path / "turned", kind, [(16, 8)] * 4, orientation=6), targets, "train", 8)) == 3
    with pytest.raises(ValueError, match="beside 8 x 16"):
        partners(shaped(tmp_path / "other", kind, [(8, 16)] * 4, orientation=6), targets, "train", 8)


def test_columns_of_another_aspect_ratio_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (16, 8)).save(stream, "png")
    cells = [encoded(8 * i, 8, "png") for i in range(COUNT)]
    pq.write_table(pa.table({"sharp": cells, "small": [*cells[:-1], stream.getvalue()]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet\[29\]: the pictures of a pair are 8 x 16 "):
        in_both(f"{tmp_path}/x.parquet#small", f"{tmp_path}/x.parquet#sharp")


def test_names_of_pairs_compare_however_their_letters_are_composed(tmp_path: Path) -> None:
    names = [f"{i} caf\u00e9" for i in range(4)]
    targets = folder(tmp_path / "sharp", 8, names=[unicodedata.normalize("NFD", name) for name in names])
    source = folder(tmp_path / "small", 4, names=[unicodedata.normalize("NFC", name) for name in names])
    for part in SPLITS:
        assert values(partners(source, targets, part, 4)) == values(load_images(targets, split=part))


def test_both_are_mirrored_and_shifted_alike(tmp_path: Path) -> None:
    targets = folder(tmp_path / "sharp", 8)
    images = load_images(targets, split="train", size=8)
    same, small = (
        Conditioned(images, Pairs(targets, size, 1), partners(targets, targets, "train", size)) for size in (8, 4)
    )
    batch = Batches(same, 16, 0, Augment(flip=True, translate=2)).batch(0)
    assert batch.given is not None
    assert torch.equal(batch.x, batch.given)
    batch = Batches(small, 16, 0, Augment(flip=True)).batch(0)
    assert batch.given is not None
    assert batch.given.shape == (16, 1, 4, 4)
    assert torch.equal(batch.x[:, :, ::2, ::2], batch.given)  # the halves are on the same sides
    assert len({row.argmax().item() for row in batch.x[:, 0, 0]}) == 2  # on both
    again = Batches(small, 4, 0, Augment(flip=True)).batch(2)
    assert again.given is not None
    assert torch.equal(again.given, batch.given[8:12])
    assert len({images.fingerprint, same.fingerprint, small.fingerprint}) == 3


def test_a_shift_of_images_of_two_sizes_is_refused() -> None:
    pairs = Pairs("small", 4, 1)
    pairs.check((1, 4, 4), Augment(translate=1))
    with pytest.raises(ValueError, match="8 x 8 and their partners of 4 x 4 cannot be shifted"):
        pairs.check((1, 8, 8), Augment(translate=1))


@pytest.mark.parametrize(("own", "size"), [(8, 8), (10, 8), (4, 4), (2, 2), (33, 32), (400, 256)])
def test_partners_are_as_large_beside_the_image_as_they_were(tmp_path: Path, own: int, size: int) -> None:
    targets, source = folder(tmp_path / "sharp", 8), folder(tmp_path / "other", own)
    found = task_named(f"pairs:{source}").fitted(look_at(targets), (3, 8, 8))
    assert found == Pairs(source, size, 1)


def test_images_that_are_left_out_have_no_pairs() -> None:
    with pytest.raises(ValueError, match=r"drop --data\.on-bad"):
        Pairs("small").partners("sharp", "train", label=None, on_bad="skip")
