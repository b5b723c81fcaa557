"""Prepared shards: the bits of the source read directly, whatever was killed or how many processes there were."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cli.command import call
from data.pickled import by_pickle
from PIL import Image

from dualrate.data import images as images_module
from dualrate.data import shards as shards_module
from dualrate.data.cache import DATASET, PREPARED, is_finished, read_packed, verify
from dualrate.data.images import load_images, look_at, prepare
from dualrate.data.loader import Batches
from dualrate.data.shards import BLOCK, Shards, block_sums
from dualrate.system.folders import MANIFEST, Damaged, Manifest
from dualrate.system.workers import in_turn

SMALL = 2 * 3 * 8 * 8  # bytes of a shard that holds two images


def silent(done: int, total: int, message: str) -> None:
    pass


def jpeg(rng: np.random.Generator, mode: str = "RGB") -> bytes:
    height, width = rng.integers(9, 40, 2)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng, folder = np.random.default_rng(0), tmp_path / "photos"
    for i in range(13):
        file = folder / ("cat", "dog", "eel")[i % 3] / f"{i:02}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(rng))
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Parquet files in row groups of three."""
    rng, folder = np.random.default_rng(1), tmp_path / "table"
    folder.mkdir()
    for name, count in (("train-0", 7), ("train-1", 5), ("test-0", 4)):
        images = [{"bytes": jpeg(rng), "path": "x"} for _ in range(count)]
        rows = pa.table({"image": images, "label": [i % 3 for i in range(count)]})
        pq.write_table(rows, folder / f"{name}.parquet", row_group_size=3)
    return folder


def assert_same(source: Path, folder: Path, tmp_path: Path, **options: Any) -> None:
    for split in ("train", "test"):
        direct = load_images(source, split=split, size=8, cache=tmp_path / "cache", **options)
        ours = load_images(folder, split=split)
        assert np.array_equal(ours.images[:], direct.images)
        assert (ours.labels is None) == (direct.labels is None)
        assert ours.labels is None or np.array_equal(ours.labels, direct.labels)
        assert (ours.class_names, ours.name, ours.fingerprint) == (direct.class_names, direct.name, direct.fingerprint)


def in_files(files: list[Path], counts: Any, shape: tuple[int, ...], sums: list[str] | None = None) -> Shards:
    """Rows of bytes. sums: as the files are now, if not given"""
    known = zip(files, counts, sums or map(block_sums, files), strict=True)
    shards = [{"file": file.name, "images": count, "blocks": blocks} for file, count, blocks in known]
    return Shards(files[0].parent, {"shape": shape, "dtype": "uint8", "each": 1}, shards)


@pytest.mark.parametrize("kind", ["photos", "table"])
def test_prepared_images_are_those_of_the_source(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(kind)
    prepare(source, tmp_path / "out", size=8, shard_bytes=SMALL)
    assert len(list((tmp_path / "out").glob("train-*.bin"))) == 6
    assert_same(source, tmp_path / "out", tmp_path)
    assert verify(tmp_path / "out", in_turn, silent) == {"photos": 13, "table": 16}[kind]


def test_labels_of_a_column_and_a_test_split_without_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Laid out as ImageNet on the Hub: labels of -1 in the test split."""
    rng = np.random.default_rng(2)
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split, count in (("train", 6), ("validation", 3), ("test", 4)):
        images = [{"bytes": jpeg(rng), "path": "x"} for _ in range(count)]
        kinds = [-1 if split == "test" else i % 3 for i in range(count)]
        rows = pa.table({"image": images, "kind": kinds})
        pq.write_table(rows, tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    out, options = tmp_path / "out", ("--size", 8, "--json")
    assert call(monkeypatch, "data", "prepare", tmp_path / "hub", out, *options, "--label", "kind") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["classes"] == 3
    assert json.loads(said.out)["test images"] == 3
    assert said.err.count("skipped 1 file without labels (test-00000-of-00001.parquet)") == 1
    assert_same(tmp_path / "hub", out, tmp_path, label="kind")
    assert look_at(tmp_path / "hub", "kind").num_classes == 3
    assert call(monkeypatch, "data", "prepare", tmp_path / "hub", out, *options) == 2
    assert "label kind, now None" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"was prepared with its labels: leave out --data\.label kind"):
        load_images(out, split="train", label="kind")


def test_flat_folders_have_no_labels(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for i in range(5):
        (tmp_path / "flat" / f"{i}.jpg").write_bytes(jpeg(np.random.default_rng(i)))
    prepare(tmp_path / "flat", tmp_path / "out", size=8)
    assert_same(tmp_path / "flat", tmp_path / "out", tmp_path)


def test_two_processes_make_the_same_files(photos: Path, table: Path, tmp_path: Path) -> None:
    for source in (photos, table):
        one, two = tmp_path / f"one-{source.name}", tmp_path / f"two-{source.name}"
        prepare(source, one, size=8, shard_bytes=SMALL)
        prepare(source, two, size=8, shard_bytes=SMALL, mapper=by_pickle)
        names = sorted(file.name for file in one.iterdir() if file.name != ".lock")
        assert names == sorted(file.name for file in two.iterdir() if file.name != ".lock")
        assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_a_killed_preparation_goes_on_and_makes_no_finished_shard_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    original = images_module._decode_shard

    def killed_at_the_third(folder: Path, *given: Any) -> None:
        if len(made) == 2:
            (folder / f"{given[-1].file}.01234567.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        original(folder, *given)
        made.append(given[-1].file)

    monkeypatch.setattr(images_module, "_decode_shard", killed_at_the_third)
    with pytest.raises(
        KeyboardInterrupt, match=r"interrupted: finished shards are kept in .*; the same command goes on"
    ):
        prepare(photos, tmp_path / "out", size=8, shard_bytes=SMALL)
    with pytest.raises(ValueError, match="not finished"):
        load_images(tmp_path / "out", split="train")
    again: list[str] = []
    monkeypatch.setattr(
        images_module, "_decode_shard", lambda *given: (original(*given), again.append(given[-1].file))[0]
    )
    seen: list[tuple[int, int]] = []
    prepare(photos, tmp_path / "out", size=8, shard_bytes=SMALL, progress=lambda *now: seen.append(now[:2]))
    assert len(made) == 2
    assert len(again) == 5
    assert not set(made) & set(again)
    assert seen[0] == (4, 13)
    assert seen[-1] == (13, 13)
    assert not list((tmp_path / "out").glob("*.partial"))
    prepare(photos, tmp_path / "out", size=8, shard_bytes=SMALL)
    assert len(again) == 5
    assert_same(photos, tmp_path / "out", tmp_path)


def test_a_flipped_bit_is_found_and_that_shard_alone_made_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(photos, out, size=8, shard_bytes=SMALL)
    damaged = out / "train-00002.bin"
    content = bytearray(damaged.read_bytes())
    content[17] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(Damaged, match=r"1 of 7 shards .* train-00002\.bin; remove"):
        verify(out, in_turn, silent)
    damaged.unlink()
    with pytest.raises(Damaged, match=r"train-00002\.bin is missing"):
        load_images(out, split="train")
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.bin")}
    prepare(photos, out, size=8, shard_bytes=SMALL)
    after = {file.name: file.stat().st_mtime_ns for file in out.glob("*.bin")}
    assert {name for name in after if after[name] != before.get(name)} == {"train-00002.bin"}
    assert_same(photos, out, tmp_path)


@pytest.mark.parametrize("rows", [[4], slice(None), [11, 5]])
def test_a_flipped_bit_is_found_before_its_row_is_used(rows: Any, photos: Path, tmp_path: Path) -> None:
    prepare(photos, tmp_path / "out", size=8, shard_bytes=SMALL)
    damaged = tmp_path / "out" / "train-00002.bin"
    content = bytearray(damaged.read_bytes())
    content[17] ^= 1
    damaged.write_bytes(content)
    images = load_images(tmp_path / "out", split="train").images
    assert images[:4].shape == (4, 3, 8, 8)
    with pytest.raises(Damaged, match=r"train-00002\.bin is not what was written .*: remove it, then run the same"):
        _ = images[rows]


def test_blocks_are_checked_once_and_those_alone_that_are_used(tmp_path: Path, monkeypatch) -> None:
    """Rows of 1.5 blocks and a last block that is not full."""
    row = 3 * BLOCK // 2
    file = tmp_path / "rows.bin"
    file.write_bytes(np.random.default_rng(0).bytes(5 * row))
    sums, asked = block_sums(file), []
    shards, sum_of = in_files([file], [5], (row,)), shards_module._sum
    assert len(sums) == 8 * 8
    monkeypatch.setattr(shards_module, "_sum", lambda block: asked.append(len(block)) or sum_of(block))
    expected = np.frombuffer(file.read_bytes(), np.uint8).reshape(5, row)
    for rows, blocks in (([1], 2), ([1], 0), ([0, 4], 3), (slice(None), 3)):
        asked.clear()
        assert np.array_equal(shards[rows], expected[rows])
        assert len(asked) == blocks
    assert asked == [BLOCK] * 3
    with file.open("r+b") as changed:  # in place, behind the map
        changed.seek(BLOCK)
        changed.write(b"another")
    with pytest.raises(Damaged):
        _ = in_files([file], [5], (row,), [sums])[[1]]


def test_images_that_v0_1_prepared_are_read(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(photos, out, size=8, shard_bytes=SMALL)
    expected = load_images(out, split="train").images[:]
    dataset = json.loads((out / DATASET).read_text())
    del dataset["row"]
    for part in dataset["splits"].values():
        del part["notes"]
    (out / DATASET).write_text(json.dumps(dataset))
    Manifest.write(out, json.loads((out / MANIFEST).read_text())["files"])
    assert np.array_equal(load_images(out, split="train").images[:], expected)


@pytest.mark.parametrize("name", [DATASET, "train-labels.npy"])
def test_a_flipped_bit_beside_the_shards_is_found_at_the_start_and_mended(
    name: str, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prepare(photos, out, size=8, shard_bytes=SMALL)
    content = bytearray((out / name).read_bytes())
    content[-9] ^= 1
    (out / name).write_bytes(content)
    with pytest.raises(Damaged, match=name):
        load_images(out, split="train")
    prepare(photos, out, size=8, shard_bytes=SMALL)
    assert_same(photos, out, tmp_path)


def test_a_shard_that_was_cut_off_is_named(photos: Path, tmp_path: Path) -> None:
    prepare(photos, tmp_path / "out", size=8, shard_bytes=SMALL)
    with (tmp_path / "out" / "train-00001.bin").open("r+b") as file:
        file.truncate(5)
    with pytest.raises(Damaged, match=r"train-00001\.bin has 5 bytes, expected 384"):
        load_images(tmp_path / "out", split="train")


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one["row"].update(dtype="O"),
        lambda one: one["row"].update(dtype="nonsense"),
        lambda one: one["row"].update(dtype=3),
        lambda one: one["row"].update(shape=[-3, 8, 8]),
        lambda one: one["row"].update(shape=None),
        lambda one: one["row"].pop("each"),
        lambda one: one["splits"]["train"]["shards"][0].update(file="../photos/cat/00.jpg"),
        lambda one: one["splits"]["train"]["shards"][0].update(file=None),
        lambda one: one["splits"]["train"].update(class_names=3),
        lambda one: one["splits"]["train"].pop("name"),
        lambda one: one.update(splits=[]),
    ],
)
def test_other_contents_of_the_dataset_are_one_line_that_names_it(photos: Path, tmp_path: Path, change: Any) -> None:
    out = tmp_path / "out"
    prepare(photos, out, size=8, shard_bytes=SMALL)
    content = json.loads((out / DATASET).read_text())
    change(content)
    (out / DATASET).write_text(json.dumps(content))
    Manifest.write(
        out, [file.name for file in out.iterdir() if file.suffix in (".json", ".npy") and file.name != MANIFEST]
    )
    with pytest.raises(ValueError, match=r"^\S*out/dataset\.json cannot be read as what dualrate data prepare"):
        read_packed(out, "train")


def test_a_shard_that_is_a_pipe_is_refused(photos: Path, tmp_path: Path) -> None:
    prepare(photos, tmp_path / "out", size=8, shard_bytes=SMALL)
    shard = tmp_path / "out" / "train-00000.bin"
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(ValueError, match=r"train-00000\.bin is a named pipe"):
        read_packed(tmp_path / "out", "train")


def test_bad_images_end_it_or_are_left_out_and_listed(photos: Path, tmp_path: Path) -> None:
    for name in ("dog/10.jpg", "eel/11.jpg"):
        (photos / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"(10|11)\.jpg.*on-bad skip"):
        prepare(photos, tmp_path / "out", size=8, shard_bytes=SMALL)
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.bin")}
    made = prepare(photos, tmp_path / "out", size=8, shard_bytes=SMALL, on_bad="skip")
    assert kept
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time for name, time in kept.items())
    prepare(photos, tmp_path / "skipped", size=8, shard_bytes=SMALL, on_bad="skip")
    for name in (DATASET, PREPARED):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "skipped" / name).read_bytes()
    with pytest.raises(ValueError, match="on_bad skip, now fail"):
        prepare(photos, tmp_path / "out", size=8, shard_bytes=SMALL)
    parts = made["splits"].values()
    assert sum(part["rejected"] for part in parts) == 2
    reasons = [reason for part in parts for shard in part["shards"] for reason in shard["rejects"]]
    assert sorted(reason.split(":")[0] for reason in reasons) == ["dog/10.jpg", "eel/11.jpg"]
    assert_same(photos, tmp_path / "skipped", tmp_path, on_bad="skip")


def test_a_split_of_bad_images_alone_is_told(photos: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (photos / "both" / split).parent.mkdir(exist_ok=True)
    (photos / "cat").rename(photos / "both" / "train")
    for name in ("dog", "eel"):
        shutil.rmtree(photos / name)
    (photos / "both" / "test").mkdir()
    (photos / "both" / "test" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of the images of both/test can be used, 1 in all: 0\.jpg: not a JPEG"):
        prepare(photos / "both", tmp_path / "out", size=8, on_bad="skip")
    for file in (photos / "both" / "train").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the first images of both/train .* the file is empty"):
        prepare(photos / "both", tmp_path / "new", size=8, on_bad="skip")


def test_a_disk_without_room_is_told_before_anything_is_decoded(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """13 images of 192 bytes; once a shard of two is there, 384 fewer are needed."""
    out, usage = tmp_path / "out", shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=13 * 192 - 1))
    with pytest.raises(OSError, match=r"hold 2,496 bytes more, and 2,495 are free there: make room for 1,.*goes on"):
        prepare(photos, out, size=8, shard_bytes=SMALL)
    assert not list(out.glob("*.bin"))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=13 * 192))
    prepare(photos, out, size=8, shard_bytes=SMALL)
    (out / "train-00001.bin").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=384))
    prepare(photos, out, size=8, shard_bytes=SMALL)


def test_a_disk_that_fills_up_leaves_no_half_shard_and_the_same_call_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        with pytest.raises(OSError, match=r"train-00000\.bin"):
            prepare(photos, tmp_path / "out", size=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [".lock", PREPARED]
    prepare(photos, tmp_path / "out", size=8)
    assert_same(photos, tmp_path / "out", tmp_path)


def test_grey_among_colours_needs_channels(photos: Path, tmp_path: Path) -> None:
    (photos / "dog" / "99.jpg").write_bytes(jpeg(np.random.default_rng(5), "L"))
    with pytest.raises(ValueError, match=r"dog/99\.jpg is \(1, 8, 8\).*channels 1 or 3"):
        prepare(photos, tmp_path / "out", size=8, shard_bytes=SMALL)
    prepare(photos, tmp_path / "three", size=8, channels=3, shard_bytes=SMALL)
    assert_same(photos, tmp_path / "three", tmp_path, channels=3)


def test_a_folder_of_something_else_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not empty"):
        prepare(photos / "cat", photos, size=8)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file: give a new folder"):
        prepare(photos, tmp_path / "file", size=8)
    with pytest.raises(ValueError, match="elsewhere"):
        prepare(photos, photos / "out", size=8)
    out = tmp_path / "out"
    prepare(photos, out, size=8)
    with pytest.raises(ValueError, match="size 8, now 9"):
        prepare(photos, out, size=9)
    with pytest.raises(ValueError, match="prepared already"):
        prepare(out, tmp_path / "other", size=8)
    with pytest.raises(ValueError, match=r"size 8 with 3 channels.*leave out --data\.size"):
        load_images(out, split="train", size=16)
    (photos / "cat" / "new.jpg").write_bytes(jpeg(np.random.default_rng(7)))
    with pytest.raises(ValueError, match="other files"):
        prepare(photos, out, size=8)


def test_a_folder_among_the_images_is_refused_however_they_are_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="out is in ~/photos, whose images are read: give a folder elsewhere"):
        prepare("~/photos", photos / "out", size=8)
    assert not (photos / "out").exists()


def test_a_folder_that_was_never_prepared_is_not_verified(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert call(monkeypatch, "data", "verify", photos) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error == f"dualrate: {photos} is no folder that dualrate data prepare or encode wrote"


def test_what_reads_a_source_reads_shards(photos: Path, tmp_path: Path) -> None:
    prepare(photos, tmp_path / "out", size=8, shard_bytes=SMALL)
    direct = load_images(photos, split="train", size=8, cache=tmp_path / "cache")
    ours = load_images(tmp_path / "out", split="train", size=8, channels=3)
    for k in range(3):
        one, other = Batches(ours, 5, seed=3).batch(k), Batches(direct, 5, seed=3).batch(k)
        assert one.label is not None
        assert other.label is not None
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.label, other.label)
    look = look_at(tmp_path / "out")
    assert (look.raw.count, look.num_classes, set(look.shapes)) == (12, 3, {(3, 8, 8)})


def test_shards_are_indexed_as_an_array_is(tmp_path: Path) -> None:
    counts, array = (3, 0, 4, 2), np.random.default_rng(0).integers(0, 256, (9, 1, 2, 2), np.uint8)
    files = [tmp_path / f"{i}.bin" for i in range(4)]
    for file, part in zip(files, np.split(array, np.cumsum(counts)[:-1]), strict=True):
        file.write_bytes(part.tobytes())
    shards = in_files(files, counts, (1, 2, 2))
    for index in (slice(None), slice(2, 8), slice(8, 1, -3), [4, 0, 8, 4, -1], np.array([], np.int64), np.array([6])):
        assert np.array_equal(shards[index], array[index])
    for wrong in ([9], [-10]):
        with pytest.raises(IndexError, match="of 9 images"):
            shards[wrong]


def test_a_block_is_checked_once_however_often_its_file_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{i}.bin" for i in range(3)]
    for file in files:
        file.write_bytes(bytes(range(12)))
    shards, checked, count = in_files(files, [4] * 3, (3,)), [], shards_module._sum
    monkeypatch.setattr(shards_module, "_sum", lambda block: checked.append(1) or count(block))
    monkeypatch.setattr(shards, "_mapped", shards._map)
    for _ in range(3):
        assert np.array_equal(shards[:], np.tile(np.arange(12).reshape(4, 3), (3, 1)))
    assert len(checked) == 3


def test_start_up_from_as_many_images_as_imagenet_has_reads_no_pixel(tmp_path: Path) -> None:
    """Sparse files: 1.28 million images at 64 x 64, 15.7 GB of which none is on the disk."""
    total, each, image = 1_281_167, 2**28 // (3 * 64 * 64), 3 * 64 * 64
    counts = [min(each, total - start) for start in range(0, total, each)]
    zeros = {
        size: shards_module._sum(bytes(size)) for size in (BLOCK, counts[0] * image % BLOCK, counts[-1] * image % BLOCK)
    }
    shards = []
    for i, n in enumerate(counts):
        blocks = zeros[BLOCK] * (n * image // BLOCK) + (zeros[n * image % BLOCK] if n * image % BLOCK else "")
        shards.append({"file": f"train-{i:05}.bin", "images": n, "blocks": blocks, "rejects": []})
    for shard in shards:
        with (tmp_path / shard["file"]).open("wb") as file:
            file.truncate(shard["images"] * image)
    np.save(tmp_path / "train-labels.npy", np.arange(total) % 1000)
    names = [str(i) for i in range(1000)]
    part = {"name": "x/train", "images": total, "labelled": True, "class_names": names, "fingerprint": "f" * 64}
    dataset = {"format": 1, "size": 64, "channels": 3, "splits": {"train": part | {"shards": shards}}}
    (tmp_path / DATASET).write_text(json.dumps(dataset))
    (tmp_path / PREPARED).write_text("{}")
    Manifest.write(tmp_path, [DATASET, "train-labels.npy"])
    start = time.process_time()
    images = load_images(tmp_path, split="train")
    assert images.fingerprint == "f" * 64
    assert len(images) == total
    assert images.num_classes == 1000
    assert not images.images[[0, total // 2, total - 1]].any()
    assert time.process_time() - start < 2


def test_the_commands(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    out = tmp_path / "out"
    assert call(monkeypatch, "data", "prepare", photos, out, "--size", 8, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"train images": 12, "train rejected": 0, "test images": 1, "test rejected": 0} | {
        "classes": 3,
        "size": 8,
        "channels": 3,
    }
    assert call(monkeypatch, "data", "verify", out) == 0
    assert capsys.readouterr().out.split() == ["images", "13", "damaged", "shards", "0"]
    (out / "test-00000.bin").write_bytes(bytes(192))
    assert call(monkeypatch, "data", "verify", out) == 2
    assert "test-00000.bin" in capsys.readouterr().err
    assert call(monkeypatch, "data", "prepare", tmp_path / "none", tmp_path / "new", "--size", 8) == 2
    assert "no data at" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert call(monkeypatch, "data", "pack") == 2
    assert is_finished(out)
    assert read_packed(out, "train").part["name"] == "photos/train"
    assert (out / MANIFEST).is_file()
