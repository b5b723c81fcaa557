"""Cached latents: the same bits whatever was killed and however many processes there were, and draws keyed by rows."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
import torch
from data.pickled import by_pickle
from latents.folding import Folding, FoldingFolder
from PIL import Image

from dualrate.codecs.codec import Moments
from dualrate.data.cache import DATASET, verify
from dualrate.data.images import ImageSet, load_images, to_float
from dualrate.data.latent_set import LatentSet, encode, encoded_images, is_encoded, moments_of, read_latents
from dualrate.data.loader import Augment, Batches
from dualrate.diffusion.random import Draws
from dualrate.experiment.data_config import DataConfig
from dualrate.system.folders import Damaged
from dualrate.system.workers import in_turn

ROW = 2 * 2 * 12 * 4 * 4 * 2  # bytes of an image: 2 views, 2 moments, float16
CODEC = FoldingFolder("a folder", "f" * 64)


def write_images(path: Path, count: int = 30, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(count) % 3)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "images.npz")


@pytest.fixture(scope="module")
def straight(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents") / "straight"
    made(source, folder)
    return folder


def made(source: Path, folder: Path, **options) -> None:
    encode(source, folder, options.pop("codec", CODEC), **({"shard_bytes": 4 * ROW, "batch_size": 3} | options))


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".bin", ".npy", ".json")}


def test_what_is_cached_is_what_the_codec_says(source: Path, straight: Path) -> None:
    images, latents = load_images(source, split="test"), read_latents(straight, "test")
    x = to_float(images.images[:])
    codec = Folding("")
    for flip, view in ((False, x), (True, x.flip(-1))):
        expected = codec.encode(view).stacked()
        draws = Draws(0, torch.arange(len(images)))
        assert (latents.shape, len(latents), latents.name) == ((12, 4, 4), len(images), images.name)
        assert np.array_equal(latents.labels, images.labels)
        rows = latents.packed.rows[np.arange(len(images)) * 2 + flip]
        assert torch.equal(torch.from_numpy(rows), expected.half())
        drawn = latents.floats(torch.from_numpy(rows), draws)
        assert torch.equal(drawn, Moments.of(expected.half()).sample(draws.normal("latent", 12, 4, 4)))


def test_batches_draw_view_and_noise_by_sample_number(straight: Path) -> None:
    latents, flip = read_latents(straight, "train"), Augment(flip=True)
    batch, again = (Batches(latents, 9, 5, flip).batch(4) for _ in range(2))
    assert torch.equal(batch.x, again.x)
    assert batch.x.shape == (9, 12, 4, 4)
    part = Batches(latents, 9, 5, flip, torch.tensor([2, 7])).batch(4)
    assert torch.equal(part.x, batch.x[[2, 7]])
    epoch = [Batches(latents, len(latents), 5).batch(k) for k in range(2)]
    order = [one.label.argsort(stable=True) for one in epoch]
    assert not torch.equal(epoch[0].x[order[0]], epoch[1].x[order[1]])  # fresh noise, for one thing
    still = Batches(latents, 9, 5).batch(4)
    mirrored = flip.mirrors(Draws(5, batch.sample))
    assert 0 < mirrored.sum() < 9
    same = (batch.x == still.x).flatten(1).all(1)
    assert torch.equal(same, ~mirrored)


@pytest.mark.parametrize(
    "by",
    [in_turn, by_pickle],
    ids=["in turn", "by pickle"],
)
def test_a_killed_encoding_goes_on_to_the_same_bits(source: Path, straight: Path, tmp_path: Path, by) -> None:
    def dying(job, blocks):
        for i, done in enumerate(in_turn(job, blocks)):
            if i == 3:
                (tmp_path / "out" / "train-00004.bin").write_bytes(b"half a shard")
                raise KeyboardInterrupt
            yield done

    with pytest.raises(KeyboardInterrupt, match=r"interrupted: .* goes on"):
        made(source, tmp_path / "out", mapper=dying)
    with pytest.raises(ValueError, match="not finished"):
        read_latents(tmp_path / "out", "train")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("train-0000[0-2].bin")}
    made(source, tmp_path / "out", mapper=by)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert content(tmp_path / "out") == content(straight)
    one, other = (Batches(read_latents(at, "train"), 7, 1).batch(2) for at in (straight, tmp_path / "out"))
    assert torch.equal(one.x, other.x)


def test_other_images_another_codec_and_other_settings_are_refused(
    source: Path, straight: Path, tmp_path: Path
) -> None:
    again = partial(made, source, straight)
    with pytest.raises(ValueError, match=r"codec fff.*now eee"):
        again(codec=replace(CODEC, fingerprint="e" * 64))
    with pytest.raises(ValueError, match="mirrored True, now False"):
        again(mirrored=False)
    with pytest.raises(ValueError, match="made from other files"):
        made(write_images(tmp_path / "images.npz", seed=1), straight)
    with pytest.raises(ValueError, match="not empty"):
        made(source, source.parent)
    with pytest.raises(ValueError, match="latents already"):
        made(straight, tmp_path / "twice")
    again()  # the same is nothing to do


def test_the_images_that_latents_were_made_of_are_found_and_held_to(source: Path, tmp_path: Path) -> None:
    own = write_images(tmp_path / "images.npz", 12)
    made(own, tmp_path / "out")
    data = DataConfig(str(tmp_path / "out"))
    assert isinstance(data.images("test"), ImageSet)
    assert isinstance(data.load("test"), LatentSet)
    assert np.array_equal(encoded_images(tmp_path / "out", "train").images, load_images(own, split="train").images)
    with pytest.raises(ValueError, match="holds latents: name the images"):
        load_images(tmp_path / "out", split="train")
    with pytest.raises(ValueError, match=r"drop --data.size"):
        replace(data, size=8).load("train")
    write_images(own, 12, seed=2)
    with pytest.raises(ValueError, match="other images than"):
        data.images("train")


def test_what_latents_cannot_do_is_refused(source: Path, tmp_path: Path) -> None:
    made(source, tmp_path / "out", mirrored=False)
    latents = read_latents(tmp_path / "out", "train")
    with pytest.raises(ValueError, match=r"drop --data.augment.translate"):
        Batches(latents, 2, 0, Augment(translate=1)).batch(0)
    with pytest.raises(ValueError, match="--mirrored"):
        Batches(latents, 2, 0, Augment(flip=True)).batch(0)

    class Large(Folding):
        def encode(self, images: torch.Tensor) -> Moments:
            return Moments(1e5 * super().encode(images).mean)

    with pytest.raises(ValueError, match="too large for float16"):
        moments_of(Large(""), np.zeros((1, 3, 8, 8), np.uint8), "cpu", mirrored=False)


def test_splits_of_two_shapes_are_refused(tmp_path: Path) -> None:
    for split, side in (("train", 8), ("test", 12)):
        (tmp_path / "images" / split / "a").mkdir(parents=True)
        Image.new("RGB", (side, side)).save(tmp_path / "images" / split / "a" / "one.png")
    with pytest.raises(ValueError, match=r"\(3, 8, 8\) \(train\) and \(3, 12, 12\) \(test\): give --size"):
        made(tmp_path / "images", tmp_path / "out")
    made(tmp_path / "images", tmp_path / "out", size=8)


def test_a_folder_among_the_images_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "one.png")
    with pytest.raises(ValueError, match=f"c is in {tmp_path}, whose images are read: give a folder elsewhere"):
        made(tmp_path, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_the_home_of_nobody_holds_no_latents() -> None:
    with pytest.raises(ValueError, match="the data source '~nobody-here/x' is no path"):
        is_encoded("~nobody-here/x")


def test_damage_is_found(source: Path, tmp_path: Path) -> None:
    made(source, tmp_path / "out")
    assert verify(tmp_path / "out", in_turn, lambda *_: None) == 30
    shard = tmp_path / "out" / "train-00001.bin"
    shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
    with pytest.raises(Damaged, match=r"train-00001\.bin"):
        verify(tmp_path / "out", in_turn, lambda *_: None)
    shard.write_bytes(b"")
    with pytest.raises(Damaged, match="has 0 bytes"):
        read_latents(tmp_path / "out", "train")
    (tmp_path / "out" / DATASET).write_text(json.dumps({}))
    assert is_encoded(tmp_path / "out")
    with pytest.raises(Damaged):
        read_latents(tmp_path / "out", "train")


def test_shards_that_other_machines_wrote_may_be_seen_late(source: Path, straight: Path, tmp_path: Path) -> None:
    def seen_late(job, blocks):
        for block in blocks:
            Timer(0.1, job, (block,)).start()
            yield block, None

    made(source, tmp_path / "late", mapper=seen_late)
    assert content(tmp_path / "late") == content(straight)
