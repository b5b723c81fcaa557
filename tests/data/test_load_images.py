"""load_images over folders, Parquet and .npz: layouts, splits, bad content, and the cache."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dualrate.data import cache as cache_module
from dualrate.data import decode as decode_module
from dualrate.data.images import ImageSet, every_image, load_images
from dualrate.data.loader import Augment
from dualrate.data.source import NOTED, hold_out
from dualrate.experiment.data_config import DataConfig

Load = Callable[..., ImageSet]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    return lambda source, split="train", **options: load_images(
        source, split=split, cache=tmp_path / "cache", **options
    )


def png(value: int, size: tuple[int, int] = (4, 4), mode: str = "L") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(stream, "PNG")
    return stream.getvalue()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def values(images: ImageSet) -> list[int]:
    """The grey value of each constant image."""
    return images.images[:][:, 0, 0, 0].tolist()


# Folders


def test_class_folders_in_sorted_order_with_a_tenth_held_out(tmp_path: Path, load: Load) -> None:
    for i in range(30):
        put(tmp_path / "data" / ("dog" if i % 3 else "cat") / "deep" / f"{i:02}.PNG", png(i))
    put(tmp_path / "data" / "dog" / "notes.txt", b"ignored")
    train, test = load(tmp_path / "data"), load(tmp_path / "data", "test")
    assert train.class_names == test.class_names == ("cat", "dog")
    assert (len(train), len(test)) == (27, 3)
    assert sorted(values(train) + values(test)) == list(range(30))
    for images in (train, test):
        assert images.labels is not None
        assert images.labels.tolist() == [int(value % 3 > 0) for value in values(images)]
    assert train.name == "data/train"


def test_train_and_test_folders(tmp_path: Path, load: Load) -> None:
    for i, at in enumerate(["train/b/0", "train/a/0", "train/b/1", "val/b/0"]):
        put(tmp_path / "data" / f"{at}.png", png(i))
    train, test = load(tmp_path / "data"), load(tmp_path / "data", "test")
    assert (values(train), values(test)) == ([1, 0, 2], [3])
    assert train.labels is not None
    assert test.labels is not None
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 1], [1])
    put(tmp_path / "data" / "val" / "c" / "0.png", png(9))
    with pytest.raises(ValueError, match=r"labels \['c'\] of .*val do not occur in the training images"):
        load(tmp_path / "data", "test")


def test_a_new_class_renumbers_the_cached_test_split(tmp_path: Path, load: Load) -> None:
    for at in ["train/b/0", "train/c/0", "test/c/0"]:
        put(tmp_path / "data" / f"{at}.png", png(1))
    before = load(tmp_path / "data", "test")
    put(tmp_path / "data" / "train" / "a" / "0.png", png(1))
    after = load(tmp_path / "data", "test")
    assert before.labels is not None
    assert after.labels is not None
    assert (before.labels.tolist(), after.labels.tolist()) == ([1], [2])


def test_train_is_a_class_unless_all_folders_are_splits(tmp_path: Path, load: Load) -> None:
    for i, at in enumerate(["train/0", "train/1", "ship/0"]):
        put(tmp_path / "data" / f"{at}.png", png(i))
    assert load(tmp_path / "data").class_names == ("ship", "train")


def test_a_folder_around_those_of_the_splits_is_no_class(tmp_path: Path, load: Load) -> None:
    for at in ["train/a/0", "train/b/0", "test/a/0"]:
        put(tmp_path / "data" / "pets" / f"{at}.png", png(0))
    with pytest.raises(ValueError, match=r"data holds one folder, of splits \(test, train\): name .*data/pets instead"):
        load(tmp_path / "data")
    assert load(tmp_path / "data" / "pets").class_names == ("a", "b")
    for at in ["train/0", "train/1", "test/0"]:  # kinds of things
        put(tmp_path / "things" / "train" / f"{at}.png", png(0))
    assert load(tmp_path / "things").class_names == ("test", "train")


def test_a_split_with_a_number_is_no_class(tmp_path: Path, load: Load) -> None:
    for i, at in enumerate(["train/0", "train/1", "test1/0"]):
        put(tmp_path / "data" / f"{at}.png", png(i))
    with pytest.raises(ValueError, match=r"others \(test1\): move the others elsewhere, or name one folder"):
        load(tmp_path / "data")


def notes(load: Load, source: Path, **options: Any) -> list[str]:
    """List what is said of a source that is not used, each once."""
    said: dict[str, None] = {}
    for split in ("train", "test"):
        load(source, split, progress=lambda done, total, message: said.setdefault(message), **options)
    return [message for message in said if message.startswith(NOTED)]


@pytest.mark.parametrize(
    ("train", "test", "aside"),
    [
        ("Train", "Test", ""),
        ("training", "testing", ""),
        ("TRAIN", "dev", ""),
        ("train", "eval", ""),
        ("train", "Validation", "unlabeled"),
        ("train", "test", "val"),
        ("train2017", "val2017", ""),
        ("train_2017", "val_2017", ""),
        ("training_set", "test_set", ""),
        ("TrainImages", "val-data", ""),
    ],
)
@pytest.mark.parametrize("classes", [("cat", "dog"), ("",)])
def test_usual_names_of_splits_are_no_classes(
    train: str, test: str, aside: str, classes: tuple[str, ...], tmp_path: Path, load: Load
) -> None:
    for value, split in enumerate(filter(None, (train, test, aside))):
        for kind in classes:
            for i in range(3):
                put(tmp_path / "data" / split / kind / f"{i}.png", png(value))
    for value, split in enumerate(("train", "test")):
        images = load(tmp_path / "data", split)
        assert values(images) == [value] * 3 * len(classes)
        assert images.class_names == (classes if classes[0] else ())
    expected = [f"skipped 1 folder of other splits ({aside})"] if aside else []
    assert notes(load, tmp_path / "data") == expected


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (("test", "val"), r"none to train on: expected one that is named train; .*name it: .*data/test"),
        (("train", "Train", "test"), "Train, train, which are the same split: keep one"),
        (("train", "test", "extra"), r"splits \(test, train\) and others \(extra\): move"),
    ],
)
def test_splits_that_cannot_be_told_are_refused(
    splits: tuple[str, ...], message: str, tmp_path: Path, load: Load
) -> None:
    for split in splits:
        for kind in ("cat", "dog"):
            put(tmp_path / "data" / split / kind / "0.png", png(0))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "data")


@pytest.mark.parametrize("hidden", ["cat/.ipynb_checkpoints", "cat/deep/@eaDir", "__MACOSX", ".cache"])
def test_hidden_folders_are_not_read(hidden: str, tmp_path: Path, load: Load) -> None:
    for i in range(10):
        put(tmp_path / "data" / ("dog" if i % 2 else "cat") / f"{i}.png", png(i))
        put(tmp_path / "data" / hidden / f"{i}.png", png(99))
    put(tmp_path / "data" / "cat" / "._0.png", b"of a Macintosh")
    images = [load(tmp_path / "data", split) for split in ("train", "test")]
    assert sorted(value for split in images for value in values(split)) == list(range(10))
    assert images[0].class_names == ("cat", "dog")


def test_links_are_followed_at_every_depth(tmp_path: Path, load: Load) -> None:
    for i in range(5):
        for at in ("data/cat", "beside", "class"):
            put(tmp_path / at / f"{i}.png", png(i))
    (tmp_path / "data" / "cat" / "more").symlink_to(tmp_path / "beside")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "class")
    (tmp_path / "data" / "eel").symlink_to(tmp_path / "gone")
    (tmp_path / "data" / "self").symlink_to("self")
    images = [load(tmp_path / "data", split) for split in ("train", "test")]
    assert sorted(value for split in images for value in values(split)) == sorted([*range(5)] * 3)
    assert images[0].class_names == ("cat", "dog")
    (tmp_path / "data" / "cat" / "dead.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"No such file or directory: '.*dead\.png'.* cannot be used"):
        load(tmp_path / "data")


@pytest.mark.parametrize("target", [".", "..", "../..", "../../dog/back"])
def test_a_link_to_a_folder_above_is_refused_at_every_depth(target: str, tmp_path: Path, load: Load) -> None:
    for kind in ("cat", "dog"):
        put(tmp_path / "data" / kind / "deep" / "0.png", png(0))
    (tmp_path / "data" / "dog" / "back").symlink_to("../cat")
    (tmp_path / "data" / "cat" / "deep" / "loop").symlink_to(target)
    with pytest.raises(ValueError, match=r"(loop|back) is a link to a folder above it"):
        load(tmp_path / "data")


def test_what_browsers_call_a_jpeg_is_read_in_any_case(tmp_path: Path, load: Load) -> None:
    for name in ("0.jfif", "1.JFIF", "2.jpg", "3.PNG"):
        put(tmp_path / "data" / name, png(0))
    assert len(load(tmp_path / "data")) + len(load(tmp_path / "data", "test")) == 4


def test_flat_folder_has_no_labels(tmp_path: Path, load: Load) -> None:
    for i in range(5):
        put(tmp_path / "data" / f"{i}.png", png(i))
    train, test = load(tmp_path / "data"), load(tmp_path / "data", "test")
    assert train.labels is None
    assert train.class_names == ()
    assert (len(train), len(test)) == (4, 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no images in .*looked for .jpg.*no files at all"),
        (["a/x.tif", "y.txt"], "no images in .*1 x .t"),
        (["train/data-0.arrow", "a.heic"], "no images in .*: convert other pictures, .* write Arrow as Parquet"),
        (["0.png", "a/1.png"], "expected either one sub-folder per class, or images alone"),
        (["a/0.png", "b/1.tif"], "class folders without images .*: b; fill, convert or remove them"),
    ],
)
def test_unusable_folders(files: list[str], message: str, tmp_path: Path, load: Load) -> None:
    (tmp_path / "data").mkdir()
    for name in files:
        put(tmp_path / "data" / name, png(0))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "data")


def test_unknown_sources(tmp_path: Path, load: Load) -> None:
    with pytest.raises(FileNotFoundError, match=r"no data at .*expected 'fashion-mnist', a folder"):
        load(tmp_path / "nothing")
    put(tmp_path / "data.zip", b"PK")
    with pytest.raises(ValueError, match=r"expected \.tar \(not compressed\), \.parquet, \.npz, or a folder"):
        load(tmp_path / "data.zip")


def test_images_that_nobody_knows_are_not_looked_for() -> None:
    with pytest.raises(ValueError, match="does not say which images it was trained on"):
        DataConfig("").images("train")


@pytest.mark.parametrize("options", [{"split": "val"}, {"on_bad": "ignore"}, {"size": 0}, {"channels": 2}])
def test_bad_options(options: dict[str, Any], tmp_path: Path, load: Load) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"^{name} (is .*, got )?{value!r}"):
        load(tmp_path, **options)


# Bad and mixed images


def test_bad_files_fail_or_are_skipped(tmp_path: Path, load: Load) -> None:
    for split in ("train", "test"):
        for i in range(20):
            put(tmp_path / "data" / split / f"c{i % 2}" / f"{i:02}.png", png(i) if i % 3 else png(i)[:42])
    with pytest.raises(ValueError, match=r"7 \(c0/00\.png: .*; \.\.\.\) of 20 images .*--data\.on-bad skip") as caught:
        load(tmp_path / "data")
    assert str(caught.value).count(".png:") == 5
    said: list[str] = []
    for _ in range(2):  # decoded, then from the cache
        said.clear()
        images = load(tmp_path / "data", on_bad="skip", progress=lambda done, total, message: said.append(message))
        assert sorted(values(images)) == [i for i in range(20) if i % 3]
        assert images.labels is not None
        assert images.labels.tolist() == [value % 2 for value in values(images)]
        assert "skipped 7 (c0/00.png: " in said[-1]


def test_every_kind_of_bad_jpeg_among_good_ones(tmp_path: Path, load: Load) -> None:
    """A fifth is bad. A flipped bit that still decodes is no bad file; it only shows in the images' fingerprint."""
    noise = np.random.default_rng(0).integers(0, 256, (25, 8, 8)).astype(np.uint8)
    for i, pixels in enumerate(noise):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG")
        for split in ("train", "test"):
            put(tmp_path / "data" / split / f"{i:02}.jpg", stream.getvalue())
    whole = load(tmp_path / "data")
    folder = tmp_path / "data" / "train"
    good = (folder / "20.jpg").read_bytes()
    put(folder / "20.jpg", good[:-30])
    put(folder / "21.jpg", b"")
    put(folder / "22.jpg", b"not a picture")
    put(folder / "23.jpg", good[: good.index(b"\xff\xda")])  # a header without content
    put(folder / "24.jpg", bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(ValueError, match=r"5 \(20\.jpg: .*; 21\.jpg: the file is empty; 22\.jpg: not a .*\) of 25"):
        load(tmp_path / "data")
    left = load(tmp_path / "data", on_bad="skip")
    assert np.array_equal(left.images, whole.images[:20])
    put(folder / "00.jpg", good[: (at := good.index(b"\xff\xda") + 20)] + bytes([good[at] ^ 2]) + good[at + 1 :])
    other = load(tmp_path / "data", on_bad="skip")
    assert len(other) == 20
    assert other.fingerprint != left.fingerprint


def test_nothing_but_bad_files(tmp_path: Path, load: Load) -> None:
    for i in range(4):
        put(tmp_path / "data" / f"{i}.png", b"")
    with pytest.raises(ValueError, match=r"none of the first images of data/train can be used"):
        load(tmp_path / "data", on_bad="skip")


def test_mixed_shapes_need_a_size(tmp_path: Path, load: Load) -> None:
    for i in range(3):
        put(tmp_path / "data" / "train" / f"{i}.png", png(i, (4, 6)))
        put(tmp_path / "data" / "test" / f"{i}.png", png(i))
    put(tmp_path / "data" / "train" / "3.png", png(3, (8, 8), "RGB"))
    with pytest.raises(ValueError, match=r"3\.png is \(3, 8, 8\) .*\(1, 6, 4\): pass --data\.size .*--data\.channels"):
        load(tmp_path / "data")
    assert load(tmp_path / "data", size=4, channels=1).images.shape == (4, 1, 4, 4)
    assert load(tmp_path / "data", size=2, channels=3).images.shape == (4, 3, 2, 2)


# Parquet


def table(
    numbers: list[int], labels: list[Any] | None, *, plain: bool = False, names: list[str] | None = None
) -> pa.Table:
    cells: list[Any] = [png(i) if plain else {"bytes": png(i), "path": None} for i in numbers]
    kind = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns: dict[str, Any] = {"img" if plain else "image": pa.array(cells, kind)}
    if labels is not None:
        columns["label"] = labels
    result = pa.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        result = result.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return result


def write(path: Path, content: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, row_group_size=2)


def test_hugging_face_folder(tmp_path: Path, load: Load) -> None:
    names = ["ant", "bee", "cow"]
    write(tmp_path / "hf" / "data" / "train-00000-of-00002.parquet", table([0, 1, 2], [0, 1, 0], names=names))
    write(tmp_path / "hf" / "data" / "train-00001-of-00002.parquet", table([3, 4], [1, 0], names=names))
    write(tmp_path / "hf" / "data" / "test-00000-of-00001.parquet", table([5], [1], names=names))
    train, test = load(tmp_path / "hf"), load(tmp_path / "hf", "test")
    assert train.class_names == test.class_names == tuple(names)
    assert train.labels is not None
    assert test.labels is not None
    assert (values(train), train.labels.tolist()) == ([0, 1, 2, 3, 4], [0, 1, 0, 1, 0])
    assert (values(test), test.labels.tolist()) == ([5], [1])


@pytest.mark.parametrize(("labels", "names"), [(None, ()), ("numbers", ("0", "1", "2")), ("words", ("w0", "w1", "w2"))])
@pytest.mark.parametrize("plain", [True, False])
def test_one_file_with_a_tenth_held_out(
    labels: str | None, names: tuple[str, ...], plain: bool, tmp_path: Path, load: Load
) -> None:
    column = {None: None, "numbers": [i % 3 for i in range(25)], "words": [f"w{i % 3}" for i in range(25)]}[labels]
    write(tmp_path / "all.parquet", table(list(range(25)), column, plain=plain))
    train, test = load(tmp_path / "all.parquet"), load(tmp_path / "all.parquet", "test")
    assert (len(train), len(test)) == (23, 2)
    assert sorted(values(train) + values(test)) == list(range(25))
    assert train.class_names == test.class_names == names
    for images in (train, test):
        assert (images.labels is None) == (labels is None)
        assert images.labels is None or images.labels.tolist() == [value % 3 for value in values(images)]


def test_files_without_split_names_are_one_pool(tmp_path: Path, load: Load) -> None:
    write(tmp_path / "data" / "a.parquet", table(list(range(7)), list(range(7))))
    write(tmp_path / "data" / "b.parquet", table(list(range(7, 20)), list(range(7, 20))))
    train, test = load(tmp_path / "data"), load(tmp_path / "data", "test")
    assert (len(train), len(test)) == (18, 2)
    assert sorted(values(train) + values(test)) == list(range(20))
    for images in (train, test):
        assert images.labels is not None
        assert images.labels.tolist() == values(images)


@pytest.mark.parametrize("column", ["label", "target"])
def test_booleans_are_classes(column: str, tmp_path: Path, load: Load) -> None:
    kinds = pa.array([i % 3 == 0 for i in range(20)])
    write(tmp_path / "all.parquet", table(list(range(20)), None).append_column(column, kinds))
    train = load(tmp_path / "all.parquet")
    assert train.class_names == ("false", "true")
    assert train.labels is not None
    assert train.labels.tolist() == [value % 3 == 0 for value in values(train)]


@pytest.mark.parametrize("column", ["labels", "Label", "fine_label", "class", "TARGET"])
@pytest.mark.parametrize("packed", [False, True])
def test_usual_columns_of_labels_are_taken(column: str, packed: bool, tmp_path: Path, load: Load) -> None:
    words = pa.array([f"w{i % 3}" for i in range(20)])
    content = table(list(range(20)), None).append_column(column, words.dictionary_encode() if packed else words)
    write(tmp_path / "all.parquet", content)
    train = load(tmp_path / "all.parquet")
    assert train.class_names == ("w0", "w1", "w2")
    assert train.labels is not None
    assert train.labels.tolist() == [value % 3 for value in values(train)]
    assert notes(load, tmp_path / "all.parquet") == []


@pytest.mark.parametrize("inside", [True, False])
def test_texts_and_bytes_may_be_views(inside: bool, tmp_path: Path, load: Load) -> None:
    """And those of files beside each other of other kinds."""
    for first, kind in ((0, pa.string_view()), (7, pa.large_string())):
        content = pa.array([png(i) for i in range(first, first + 7)], pa.binary_view())
        images = pa.StructArray.from_arrays([content], ["bytes"]) if inside else content
        words = pa.array([f"w{i % 3}" for i in range(first, first + 7)]).cast(kind)
        pq.write_table(pa.table({"image": images, "label": words}), tmp_path / f"{first}.parquet")
    train = load(tmp_path)
    assert train.class_names == ("w0", "w1", "w2")
    assert train.labels is not None
    assert train.labels.tolist() == [value % 3 for value in values(train)]


def test_columns_that_may_be_labels_are_listed_and_one_is_named(tmp_path: Path, load: Load) -> None:
    file = tmp_path / "all.parquet"
    other = {"kind": [i % 4 for i in range(20)], "target": [[i] for i in range(20)], "size": [0.5] * 20}
    features = {"image": {"_type": "Image"}, "kind": {"names": ["a", "b", "c", "d"], "_type": "ClassLabel"}}
    content = table(list(range(20)), None)
    for name, column in other.items():
        content = content.append_column(name, pa.array(column))
    write(file, content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}))
    assert load(file).labels is None
    (said,) = notes(load, file)
    assert said.startswith("without labels: all.parquet has the columns kind (int64), target (list<")
    assert "--data.label COLUMN takes one" in said
    train = load(file, label="kind")  # after it was read without
    assert train.class_names == ("a", "b", "c", "d")
    assert train.labels is not None
    assert train.labels.tolist() == [value % 4 for value in values(train)]
    assert load_images(file, split="train", cache=tmp_path / "cache", label="kind").fingerprint == train.fingerprint
    with pytest.raises(ValueError, match=r"columns image, kind, target, size; --data\.label sort is none of them"):
        load(file, label="sort")


@pytest.mark.parametrize("name", ["label", "y", "targets", "Klasse"])
def test_arrays_that_may_be_labels_are_listed_and_one_is_named(name: str, tmp_path: Path, load: Load) -> None:
    file, images = tmp_path / "x.npz", np.zeros((20, 4, 4), np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None]
    np.savez(file, images=images, **{name: np.arange(20) % 3})  # pyright: ignore[reportArgumentType]
    assert load(file).labels is None
    said = f"without labels: x.npz has the arrays {name}; --data.label NAME takes one of integers"
    assert notes(load, file) == [said]
    train = load(file, label=name)
    assert train.labels is not None
    assert train.labels.tolist() == [value % 3 for value in values(train)]
    assert notes(load, file, label=name) == []
    with pytest.raises(ValueError, match=rf"arrays images, {name}; --data\.label sort is none of them"):
        load(file, label="sort")
    np.savez(tmp_path / "both.npz", images=images, labels=np.arange(20), **{name: np.arange(20)})  # pyright: ignore[reportArgumentType]
    assert notes(load, tmp_path / "both.npz") == [f"skipped 1 array ({name})"]
    assert len(load((tmp_path / "both.npz").rename(tmp_path / "BOTH.NPZ"))) == len(train)


def test_columns_beside_the_labels_are_named(tmp_path: Path, load: Load) -> None:
    content = table(list(range(20)), [i % 2 for i in range(20)]).append_column("coarse_label", pa.array([0] * 20))
    write(tmp_path / "x.parquet", content)
    assert notes(load, tmp_path / "x.parquet") == ["skipped 1 column of x.parquet (coarse_label (int64))"]


def test_files_of_a_folder_that_are_no_images_are_counted(tmp_path: Path, load: Load) -> None:
    for i in range(4):
        put(tmp_path / "pets" / "cat" / f"{i}.png", png(i))
    assert notes(load, tmp_path / "pets") == []
    for name in ("0.heic", "1.HEIC", "0.txt", ".hidden", "LICENSE"):
        put(tmp_path / "more" / "cat" / name, b"")
    put(tmp_path / "more" / "metadata.csv", b"")
    for i in range(4):
        put(tmp_path / "more" / "cat" / f"{i}.png", png(i))
    (said,) = notes(load, tmp_path / "more")
    assert said.startswith("skipped the files 2 x .heic, ")
    assert {"1 x .txt", "1 x .csv", "1 x no suffix"} <= set(said.partition(", which")[0].split(", "))


def test_pictures_beside_a_table_of_captions_are_read(tmp_path: Path, load: Load) -> None:
    """Hugging Face calls a table of captions metadata.parquet, and a folder of images may have one."""
    source = tmp_path / "photos"
    for i in range(4):
        put(source / f"{i}.png", png(i))
    write(source / "metadata.parquet", pa.table({"file_name": [f"{i}.png" for i in range(4)], "text": ["x"] * 4}))
    assert notes(load, source) == ["skipped the files 1 x .parquet, which are no images"]
    assert sorted(values(load(source)) + values(load(source, "test"))) == [0, 1, 2, 3]
    write(tmp_path / "alone" / "metadata.parquet", table(list(range(20)), None))
    assert len(load(tmp_path / "alone")) == 18


def test_pictures_beside_parquet_files_are_named(tmp_path: Path, load: Load) -> None:
    write(tmp_path / "TRAIN.PARQUET", table(list(range(20)), None))
    put(tmp_path / "logo.PNG", png(0))
    put(tmp_path / "._logo.PNG", b"")
    assert notes(load, tmp_path) == ["skipped 1 picture beside Parquet files (logo.PNG)"]
    assert len(load(tmp_path)) == 18


def test_a_folder_called_as_parquet_files_are_is_a_folder(tmp_path: Path, load: Load) -> None:
    (tmp_path / "x.parquet").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*x\.parquet: looked for"):
        load(tmp_path / "x.parquet")
    for i in range(4):
        put(tmp_path / "x.parquet" / f"{i}.png", png(i))
    assert len(load(tmp_path / "x.parquet")) == 3


def test_a_column_of_labels_is_of_parquet_files(tmp_path: Path, load: Load) -> None:
    for i in range(2):
        put(tmp_path / "data" / f"{i}.png", png(i))
    with pytest.raises(ValueError, match=r"--data\.label kind names a column of Parquet files.* none in .*data:"):
        load(tmp_path / "data", label="kind")
    (tmp_path / "x.txt").write_text("a text")
    for given in ({"label": "kind"}, {"channels": 3}, {"augment": Augment(flip=True)}):
        with pytest.raises(ValueError, match=rf"a text, which has .*: drop --data\.{next(iter(given))}"):
            DataConfig(str(tmp_path / "x.txt"), **given).load("train")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("first", [0, 1])
def test_missing_shards_are_refused_by_name(first: int, tmp_path: Path, load: Load) -> None:
    for i in range(4):
        write(tmp_path / "data" / f"train-{i + first:05}-of-00004.parquet", table([i, i], [0, 1]))
    assert len(load(tmp_path)) + len(load(tmp_path, "test")) == 8
    for i in (1, 2):
        (tmp_path / "data" / f"train-{i + first:05}-of-00004.parquet").unlink()
    with pytest.raises(
        ValueError, match=rf"lacks 2 .*: train-0000{1 + first}-of-00004\.parquet, train-0000{2 + first}-"
    ):
        load(tmp_path)
    assert len(load(tmp_path / "data" / f"train-{first:05}-of-00004.parquet")) == 1  # one that is named, alone


def test_of_several_splits_the_training_rows_come_first_and_others_are_told(tmp_path: Path, load: Load) -> None:
    for name, colours in (("validation", [7]), ("extra", [8]), ("train", [3, 1, 2]), ("test", [5, 4])):
        write(tmp_path / f"{name}-0.parquet", table(colours, None))
    assert [int(image[0, 0, 0]) for _, image in every_image(tmp_path)] == [3, 1, 2, 5, 4]
    assert notes(load, tmp_path) == ["skipped 2 files of other splits (extra-0.parquet, validation-0.parquet)"]


@pytest.mark.parametrize("none", [[-1, -1], [None, None], None])
def test_a_test_split_without_labels_is_passed_over(none: list[Any] | None, tmp_path: Path, load: Load) -> None:
    names = ["ant", "bee"]
    write(tmp_path / "data" / "train-0.parquet", table(list(range(10)), [0, 1] * 5, names=names))
    unlabelled = table([20, 21], pa.array(none, pa.int64()) if none else None)  # pyright: ignore[reportArgumentType]
    write(tmp_path / "data" / "test-0.parquet", unlabelled)
    write(tmp_path / "data" / "extra-0.parquet", unlabelled)
    said = "skipped 1 file without labels (test-0.parquet); skipped 1 file of other splits (extra-0.parquet)"
    assert len(load(tmp_path)) == 9  # a tenth is held out
    assert notes(load, tmp_path) == [said]
    write(tmp_path / "data" / "validation-0.parquet", table([30, 31], [1, 0], names=names))
    train, test = load(tmp_path), load(tmp_path, "test")
    assert (values(train), values(test)) == (list(range(10)), [30, 31])
    assert test.labels is not None
    assert test.labels.tolist() == [1, 0]
    assert notes(load, tmp_path) == [said]


def test_names_of_files_are_splits_in_any_case(tmp_path: Path, load: Load) -> None:
    write(tmp_path / "Train-0.parquet", table([0, 1, 2], None))
    write(tmp_path / "Dev-0.parquet", table([3], None))
    assert (values(load(tmp_path)), values(load(tmp_path, "test"))) == ([0, 1, 2], [3])


def test_without_pyarrow_parquet_alone_is_refused(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(2):
        put(tmp_path / "images" / f"{i}.png", png(i))
    write(tmp_path / "hub" / "data" / "train.parquet", table([0, 1], None))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "dualrate.data.parquet", raising=False)
    assert len(load(tmp_path / "images")) == 1
    for source in (tmp_path / "hub", tmp_path / "hub" / "data" / "train.parquet"):
        with pytest.raises(ValueError, match=r"pip install 'dualrate\[parquet\]'"):
            load(source)


def test_unusable_parquet(tmp_path: Path, load: Load) -> None:
    file = tmp_path / "all.parquet"
    put(file, b"garbage")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        load(file)
    write(file, pa.table({"picture": [b"x", b"y"]}))
    with pytest.raises(ValueError, match="has the columns picture; expected image or img"):
        load(file)
    pq.write_table(pa.table({"picture": [b"x"] * 10_000}), file)  # more rows than bytes
    with pytest.raises(ValueError, match="has the columns picture; expected image or img"):
        load(file)
    write(file, pa.table({"image": [[1, 2], [3, 4]]}))
    with pytest.raises(ValueError, match="expected a struct with bytes, or binary"):
        load(file)
    write(file, table([1, 2, 3], [0, None, 1]))
    with pytest.raises(ValueError, match="1 nulls; expected integers or strings"):
        load(file)
    write(file, table([1, 2, 3], [0, 5, 5], names=["ant", "bee"]))
    with pytest.raises(ValueError, match="2 classes allow 0 to 1"):
        load(file)
    write(tmp_path / "folder" / "test.parquet", table([1, 2], None))
    with pytest.raises(ValueError, match=r"no train\*\.parquet"):
        load(tmp_path / "folder")


def test_string_labels_only_the_test_files_have(tmp_path: Path, load: Load) -> None:
    write(tmp_path / "data" / "train.parquet", table([1, 2], ["a", "c"]))
    write(tmp_path / "data" / "test.parquet", table([3, 4], ["c", "b"]))
    assert load(tmp_path / "data").class_names == ("a", "c")
    with pytest.raises(ValueError, match=r"labels \['b'\]"):
        load(tmp_path / "data", "test")


def test_missing_bytes_are_a_bad_image(tmp_path: Path, load: Load) -> None:
    cells = pa.array([{"bytes": png(i) if i else None, "path": "away.png"} for i in range(3)])
    write(tmp_path / "data" / "train.parquet", pa.table({"image": cells}))
    write(tmp_path / "data" / "test.parquet", pa.table({"image": cells}))
    with pytest.raises(ValueError, match=r"1 \(train\.parquet\[0\]: it has no bytes, and a path .*\) of 3"):
        load(tmp_path / "data")
    assert values(load(tmp_path / "data", on_bad="skip")) == [1, 2]


def test_a_row_is_named_by_its_number_within_its_own_file(tmp_path: Path, load: Load) -> None:
    write(tmp_path / "data" / "train-0.parquet", table([1, 2, 3], None, plain=True))
    write(tmp_path / "data" / "train-1.parquet", pa.table({"img": [b"no image", png(4)]}))
    write(tmp_path / "data" / "test.parquet", table([5], None, plain=True))
    with pytest.raises(ValueError, match=r"1 \(train-1\.parquet\[0\]: .*\) of 5"):
        load(tmp_path / "data")


# NumPy archives

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 3, 5, 6)).astype(np.uint8)
LABELS = np.arange(20) % 4


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"images": IMAGES, "labels": LABELS.astype(np.uint8)}, IMAGES),
        ({"images": IMAGES.transpose(0, 2, 3, 1), "arr_1": LABELS}, IMAGES),
        ({"arr_0": IMAGES[:, 0]}, IMAGES[:, :1]),
    ],
)
def test_npz_layouts(arrays: dict[str, np.ndarray], expected: np.ndarray, tmp_path: Path, load: Load) -> None:
    np.savez(tmp_path / "all.npz", **arrays)  # type: ignore[arg-type]
    train, test = load(tmp_path / "all.npz"), load(tmp_path / "all.npz", "test")
    positions = {split: hold_out([str(i) for i in range(20)], split) for split in ("train", "test")}  # type: ignore[arg-type]
    assert np.array_equal(train.images, expected[positions["train"]])
    assert np.array_equal(test.images, expected[positions["test"]])
    if len(arrays) > 1:
        for split, images in (("train", train), ("test", test)):
            assert images.labels is not None
            assert images.labels.tolist() == LABELS[positions[split]].tolist()
            assert images.class_names == ("0", "1", "2", "3")


def test_npz_is_resized_like_files(tmp_path: Path, load: Load) -> None:
    np.savez(tmp_path / "all.npz", images=IMAGES)
    assert load(tmp_path / "all.npz", size=2, channels=1).images.shape == (18, 1, 2, 2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES}, "has the arrays x; expected images"),
        ({"images": IMAGES / 255}, "are float64; expected uint8"),
        ({"images": IMAGES[0, 0]}, "have shape"),
        ({"images": np.array(3, np.uint8), "labels": LABELS}, "have shape"),
        ({"images": IMAGES, "labels": LABELS[1:]}, "expected 20 integers"),
        ({"images": IMAGES, "labels": LABELS - 1}, "labels run from -1"),
        ({"images": np.array([object()] * 3)}, "cannot be read as .npz"),
    ],
)
def test_unusable_npz(arrays: dict[str, np.ndarray], message: str, tmp_path: Path, load: Load) -> None:
    np.savez(tmp_path / "all.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "all.npz")


def test_garbage_npz(tmp_path: Path, load: Load) -> None:
    for content in (b"", b"garbage", b"PK\x03\x04 not a zip"):
        put(tmp_path / "all.npz", content)
        with pytest.raises(ValueError, match=r"cannot be read as \.npz"):
            load(tmp_path / "all.npz")


# The cache


def test_decoded_once_and_again_when_a_file_changes(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        put(tmp_path / "data" / "train" / f"{i}.png", png(i))
        put(tmp_path / "data" / "test" / f"{i}.png", png(i))
    calls: list[str] = []
    original = decode_module.decode

    def counted(data: bytes, name: str, **options: Any) -> np.ndarray:
        calls.append(name)
        return original(data, name, **options)

    monkeypatch.setattr(decode_module, "decode", counted)
    first = load(tmp_path / "data")
    assert len(first) == 4
    assert (values(load(tmp_path / "data")), len(calls)) == ([0, 1, 2, 3], 5)
    load(tmp_path / "data", size=2)
    assert len(calls) == 10
    changed = tmp_path / "data" / "train" / "1.png"
    before = changed.stat()
    put(changed, png(9))
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert changed.stat().st_size == before.st_size
    assert (values(load(tmp_path / "data")), len(calls)) == ([0, 9, 2, 3], 15)


def test_a_failed_decoding_leaves_nothing_behind(tmp_path: Path, load: Load) -> None:
    for i in range(4):
        put(tmp_path / "data" / f"{i}.png", b"bad")
    with pytest.raises(ValueError, match="can be used"):
        load(tmp_path / "data")
    assert list((tmp_path / "cache" / "images").iterdir()) == []


def test_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("DUALRATE_CACHE", raising=False)
    assert cache_module.cache_dir() == tmp_path / "home" / ".cache" / "dualrate"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_module.cache_dir() == tmp_path / "xdg" / "dualrate"
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "own"))
    assert cache_module.cache_dir() == tmp_path / "own"


# Holding out


@pytest.mark.parametrize(("count", "held"), [(2, 1), (9, 1), (19, 1), (20, 2), (1000, 100)])
def test_hold_out_divides(count: int, held: int) -> None:
    keys = [f"image {i}" for i in range(count)]
    train, test = hold_out(keys, "train"), hold_out(keys, "test")
    assert len(test) == held
    assert sorted([*train, *test]) == list(range(count))
    assert (np.diff(train) > 0).all()


def test_a_single_image_is_trained_on_and_none_is_held_out() -> None:
    """Glance trains on one. Of no image there is no split."""
    assert hold_out(["it"], "train").tolist() == [0]
    for keys, split in ((["it"], "test"), ([], "train"), ([], "test")):
        with pytest.raises(ValueError, match=r"images? in .* cannot be divided"):
            hold_out(keys, split)  # pyright: ignore[reportArgumentType]


def test_hold_out_depends_on_keys_and_not_on_their_order() -> None:
    keys = [f"image {i}" for i in range(100)]
    held = {keys[i] for i in hold_out(keys, "test")}
    assert {keys[::-1][i] for i in hold_out(keys[::-1], "test")} == held
    more = [*keys, *(f"new {i}" for i in range(10))]
    assert len(held - {more[i] for i in hold_out(more, "test")}) <= 10
