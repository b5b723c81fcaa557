"""The image cache on a shared and imperfect machine: permissions, full disks, kills, damage."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trouble import full_disk, unreadable

from dualrate.data.images import ImageSet, load_images

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 6), dtype=np.uint8)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., ImageSet]:
    """The training images of an archive of twenty."""
    np.savez(tmp_path / "all.npz", images=IMAGES, labels=np.arange(20) % 2)
    return lambda source=tmp_path / "all.npz", **options: load_images(
        source, split="train", cache=tmp_path / "cache", **options
    )


def entry(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "cache" / "images").iterdir()
    return found


@pytest.mark.parametrize(("umask", "folder", "file"), [(0o022, 0o755, 0o644), (0o027, 0o750, 0o640)])
def test_who_may_read_an_entry_the_umask_says(tmp_path, load, umask, folder, file):
    before = os.umask(umask)
    try:
        load()
    finally:
        os.umask(before)
    assert stat.S_IMODE(entry(tmp_path).stat().st_mode) == folder
    assert {stat.S_IMODE(path.stat().st_mode) for path in entry(tmp_path).iterdir()} == {file}
    assert len(list(entry(tmp_path).iterdir())) == 3


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "info.json", "."])
def test_an_entry_of_somebody_else_is_an_error_and_not_damaged(tmp_path, load, name):
    load()
    with (
        unreadable(entry(tmp_path) / name, tmp_path / "cache"),
        pytest.raises(PermissionError, match=entry(tmp_path).name),
    ):
        load()
    assert len(load()) == 18


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM])
def test_a_system_that_does_not_give_it_is_an_error_and_names_the_file(tmp_path, load, monkeypatch, number):
    load()

    def fails(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("numpy.load", fails)
    with pytest.raises(OSError, match=r"images\.npy'") as caught:
        load()
    assert caught.value.errno == number


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "info.json"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"[" * 100_000, None])
def test_damage_is_named_with_the_way_out(tmp_path, load, name, content):
    load()
    file = entry(tmp_path) / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged .*; delete that folder and run again"):
        load()
    shutil.rmtree(entry(tmp_path))
    assert len(load()) == 18


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "info.json"])
def test_a_flipped_bit_is_found_before_anything_is_used(tmp_path, load, name):
    load()
    file = entry(tmp_path) / name
    content = bytearray(file.read_bytes())
    at = content.index(b'"1"') + 1 if name == "info.json" else len(content) - 3
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged \(its images are not .*; delete that folder and run again"):
        load()


def test_an_entry_is_read_through_once_in_a_process(tmp_path, load, monkeypatch):
    first = load()
    assert first.fingerprint == replace(first, hashed="").fingerprint
    monkeypatch.setattr("dualrate.data.cache.fingerprint_of", lambda *of: pytest.fail("read again"))
    assert load().fingerprint == first.fingerprint


def test_another_archive_of_the_same_size_and_date_is_another_one(tmp_path, load):
    """As `cp -p`, `rsync -t` and `tar` leave it."""
    found = []
    for value in (0, 200):
        np.savez(tmp_path / "x.npz", images=np.full((20, 8, 8, 1), value, np.uint8))
        os.utime(tmp_path / "x.npz", (1e9, 1e9))
        found.append(load(tmp_path / "x.npz").images.mean())
    assert found == [0, 200]


@pytest.mark.parametrize("info", [[], {}, {"labelled": False}, {"labelled": False, "class_names": 3, "skipped": ""}])
def test_an_info_that_is_none_is_damage(tmp_path, load, info):
    load()
    (entry(tmp_path) / "info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"is damaged .*; delete that folder and run again"):
        load()


@pytest.mark.parametrize("size", [64, 300])
def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, load, size):
    with full_disk(size), pytest.raises(OSError, match=r"too large: '.*images\.npy'"):
        load()
    assert list((tmp_path / "cache" / "images").iterdir()) == []
    assert len(load()) == 18


def test_a_full_disk_at_the_last_file_names_it_too(tmp_path):
    """Thirty classes with long names take more than their images."""
    for i in range(30):
        folder = tmp_path / "data" / f"a class whose name is long {i:02}"
        folder.mkdir(parents=True)
        Image.new("L", (2, 2)).save(folder / "0.png")
    with full_disk(800), pytest.raises(OSError, match=r"too large: '.*info\.json'"):
        load_images(tmp_path / "data", split="train", cache=tmp_path / "cache")
    assert list((tmp_path / "cache" / "images").iterdir()) == []


def test_what_a_killed_decoding_left_goes_with_the_next(tmp_path, load):
    load()
    done = entry(tmp_path)
    left = done.with_name(f".tmp-{done.name}-0a1b2c3d")
    done.rename(left)
    load()
    assert entry(tmp_path) == done


def test_another_process_may_publish_the_same_entry_first(tmp_path, load, monkeypatch):
    from dualrate.data import cache as module

    load()
    done, kept = entry(tmp_path), tmp_path / "kept"
    done.rename(kept)
    write = module._write

    def slow(*arguments):
        write(*arguments)
        shutil.copytree(kept, done)

    monkeypatch.setattr(module, "_write", slow)
    assert len(load()) == 18
    assert entry(tmp_path) == done


# The images that are decoded


@pytest.mark.parametrize("on_bad", ["fail", "skip"])
def test_an_image_that_cannot_be_read_is_no_bad_image(tmp_path, on_bad):
    for i in range(4):
        for split in ("train", "test"):
            (tmp_path / "data" / split).mkdir(exist_ok=True, parents=True)
            Image.new("L", (4, 4), i).save(tmp_path / "data" / split / f"{i}.png")
    (tmp_path / "cache").mkdir()
    with (
        unreadable(tmp_path / "data" / "train" / "2.png", tmp_path),
        pytest.raises(PermissionError, match=r"train/2\.png"),
    ):
        load_images(tmp_path / "data", split="train", cache=tmp_path / "cache", on_bad=on_bad)
    assert list((tmp_path / "cache" / "images").iterdir()) == []


def test_trouble_with_a_source_is_not_that_of_the_cache(tmp_path, monkeypatch, load):
    from dualrate.data import images as module

    source = module.npz_source(tmp_path / "all.npz", "train")

    def broken():
        raw = source.read()
        yield next(iter(raw.items))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(
        module, "npz_source", lambda *_: replace(source, read=lambda: replace(source.read(), items=broken()))
    )
    with pytest.raises(OSError, match="Input/output error: 'all/train'"):
        load()
