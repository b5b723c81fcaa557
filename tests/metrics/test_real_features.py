"""Features of real images: those of the net, whoever takes them, and taken once where they are kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.store import PART, real_features, store_in
from dualrate.system.workers import in_turn
from metrics.squares import two_classes

IMAGES = two_classes(PART + 100)


class Rows:
    """The first pixels of an image; asked: how many images at each call. fails: at this call"""

    identity, metric, dim, usual_count = "rows:0", "FD-rows", 4, 100

    def __init__(self, fails=None):
        self.asked, self.fails = [], fails

    def features(self, images):
        self.asked.append(len(images))
        if len(self.asked) == self.fails:
            raise KeyboardInterrupt
        return torch.from_numpy(np.asarray(images)).flatten(1)[:, :4].float()


def backwards(job, blocks):
    for block in reversed(blocks):
        yield block, job(block)


EXPECTED = Rows().features(IMAGES.images)


def test_they_are_those_of_the_net_in_whatever_order(tmp_path):
    net, told = Rows(), []
    how = {"mapper": backwards, "progress": lambda *done: told.append(done)}
    store = store_in(tmp_path, net, IMAGES)
    assert torch.equal(real_features(net, IMAGES.images, store=store, **how), EXPECTED)
    assert net.asked == [100, PART]
    assert torch.equal(real_features(net, IMAGES.images), EXPECTED)
    assert told == [(0, PART + 100), (100, PART + 100), (PART + 100, PART + 100)]


def test_a_kill_loses_a_part(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        real_features(killed := Rows(fails=2), IMAGES.images, store=store_in(tmp_path, killed, IMAGES))
    told = []
    for taken in ([100], []):
        store = store_in(tmp_path, net := Rows(), IMAGES)
        found = real_features(net, IMAGES.images, store=store, progress=lambda *done: told.append(done))
        assert torch.equal(found, EXPECTED)
        assert net.asked == taken
    assert told == [(PART, PART + 100), *2 * [(PART + 100, PART + 100)]]


def test_other_images_nets_and_versions_have_a_place_of_their_own(tmp_path, monkeypatch):
    def place(net, images):
        return store_in(tmp_path, net, images).directory

    other, dark = Rows(), replace(IMAGES, images=IMAGES.images // 2)
    other.identity = "rows:1"
    places = {place(Rows(), IMAGES), place(other, IMAGES), place(Rows(), dark)}
    assert (len(places), place(Rows(), IMAGES) in places) == (3, True)
    monkeypatch.setattr("dualrate.metrics.store.VERSION", 2)
    assert place(Rows(), IMAGES) not in places


def test_an_evaluator_takes_them_once_for_all_calls(tmp_path):
    held_out = two_classes(60, seed=1, split="test")
    first, second = (Evaluator(Rows(), IMAGES, held_out, keep=tmp_path) for _ in range(2))
    assert torch.equal(first.reference_features, EXPECTED)
    floor = first.floor(60)
    second.prepare(backwards)
    assert torch.equal(second.reference_features, EXPECTED)
    assert second.floor(60) == floor
    assert second.net.asked == []


def test_a_place_that_cannot_be_written_is_told_before_anything_is_drawn(tmp_path):
    (tmp_path / "file").touch()
    judge = Evaluator(Rows(), IMAGES, None, keep=tmp_path / "file")
    with pytest.raises(OSError, match="file"):
        judge.prepare(in_turn)
    assert judge.net.asked == []


def test_damaged_ones_are_told(tmp_path):
    store = store_in(tmp_path, Rows(), IMAGES)
    real_features(Rows(), IMAGES.images, store=store)
    next(store.directory.glob("*.safetensors")).write_bytes(b"no tensors")
    with pytest.raises(OSError, match="delete it"):
        real_features(Rows(), IMAGES.images, store=store)
