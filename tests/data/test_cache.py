"""The image cache on a shared and imperfect machine: permissions, full disks, kills, damage."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trouble import full_disk, unreadable

from dualrate.data.cache import DATASET
from dualrate.data.images import ImageSet, load_images
from dualrate.data.source import hold_out
from dualrate.system.folders import MANIFEST, Damaged

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


@pytest.mark.parametrize("name", ["train-00000.bin", "train-labels.npy", DATASET, "."])
def test_an_entry_of_somebody_else_is_an_error_and_not_damaged(tmp_path, load, name):
    load()
    with (
        unreadable(entry(tmp_path) / name, tmp_path / "cache"),
        pytest.raises(PermissionError, match=entry(tmp_path).name),
    ):
        _ = load().images[0]
    assert len(load()) == 18


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_a_system_that_does_not_give_it_is_an_error_and_names_the_file(tmp_path, load, monkeypatch, number):
    load()

    def fails(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("numpy.memmap", fails)
    with pytest.raises(OSError, match=r"train-00000\.bin'") as caught:
        _ = load().images[0]
    assert caught.value.errno == number


@pytest.mark.parametrize("name", ["train-00000.bin", "train-labels.npy", DATASET, MANIFEST])
@pytest.mark.parametrize("content", [b"garbage", None])
def test_an_entry_that_is_not_whole_is_made_again(tmp_path, load, name, content):
    first = load()
    file = entry(tmp_path) / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    again = load()
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.images, first.images)
    assert np.array_equal(again.labels, first.labels)


def test_an_entry_of_before_there_were_shards_is_made_again(tmp_path, load):
    load()
    old = entry(tmp_path)
    shutil.rmtree(old)
    old.mkdir()
    for name in ("images.npy", "labels.npy", "info.json"):
        (old / name).write_bytes(b"of v0.1")
    assert len(load()) == 18
    assert not (entry(tmp_path) / "images.npy").exists()


def test_a_flipped_bit_is_found_before_anything_is_used(tmp_path, load):
    load()
    file = entry(tmp_path) / "train-00000.bin"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(Damaged, match=r"train-00000\.bin is not what was written .* remove it, then run the same"):
        _ = load().images[0]
    file.unlink()
    assert np.array_equal(load().images, IMAGES[hold_out([str(i) for i in range(20)], "train")][:, None])


def test_no_pixel_is_read_for_the_fingerprint_of_an_entry(load, monkeypatch):
    first = load()
    assert first.fingerprint == replace(first, hashed="").fingerprint
    monkeypatch.setattr("numpy.memmap", lambda *of, **how: pytest.fail("read again"))
    assert load().fingerprint == first.fingerprint


def test_images_go_to_another_process_as_the_place_where_they_are(load):
    images = load()
    sent = pickle.dumps(images)
    assert len(sent) < 2000 + images.labels.nbytes
    assert np.array_equal(pickle.loads(sent).images, images.images)


def test_another_archive_of_the_same_size_and_date_is_another_one(tmp_path, load):
    """As `cp -p`, `rsync -t` and `tar` leave it."""
    found = []
    for value in (0, 200):
        np.savez(tmp_path / "x.npz", images=np.full((20, 8, 8, 1), value, np.uint8))
        os.utime(tmp_path / "x.npz", (1e9, 1e9))
        found.append(load(tmp_path / "x.npz").images[:].mean())
    assert found == [0, 200]


@pytest.mark.parametrize("size", [64, 300])
def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, load, size):
    with full_disk(size), pytest.raises(OSError, match=r"too large: '.*train-00000\.bin'"):
        load()
    assert list((tmp_path / "cache" / "images").iterdir()) == []
    assert len(load()) == 18


def test_a_full_disk_at_the_last_file_names_it_too(tmp_path):
    """Thirty classes with long names take more than their images."""
    for i in range(30):
        folder = tmp_path / "data" / f"a class whose name is long {i:02}"
        folder.mkdir(parents=True)
        Image.new("L", (2, 2)).save(folder / "0.png")
    with full_disk(800), pytest.raises(OSError, match=r"too large: '.*dataset\.json"):
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
    from dualrate.data import images as module

    load()
    done, kept = entry(tmp_path), tmp_path / "kept"
    done.rename(kept)
    write = module._pack

    def slow(*arguments, **options):
        write(*arguments, **options)
        shutil.copytree(kept, done)
        return {}

    monkeypatch.setattr(module, "_pack", slow)
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
    from dualrate.data import finding as module

    source = module.npz_source(tmp_path / "all.npz", "train")

    class Broken(list):
        def __getitem__(self, part):
            return Broken(super().__getitem__(part))

        def __iter__(self):
            yield self[:1].pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(
        module,
        "npz_source",
        lambda *_: replace(source, read=lambda: replace(source.read(), items=Broken(source.read().items))),
    )
    with pytest.raises(OSError, match="Input/output error: 'all/train'"):
        load()
