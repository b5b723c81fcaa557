"""Batches are a function of the iteration; augmentation is a function of (seed, sample number)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dualrate.data.images import ImageSet, to_float, to_uint8
from dualrate.data.loader import Augment, Batches
from dualrate.diffusion.random import Draws

N = 23


def image_set(count: int = N, shape: tuple[int, int, int] = (1, 5, 6)) -> ImageSet:
    """Image i has label i; its first pixel says i as well."""
    pixels = np.random.default_rng(1).integers(0, 256, (count, *shape)).astype(np.uint8)
    pixels[:, 0, 0, 0] = np.arange(count)
    return ImageSet(pixels, np.arange(count), tuple(str(i) for i in range(count)), "numbered")


def labels(batches: Batches, iterations: range) -> list[int]:
    found: list[int] = []
    for iteration in iterations:
        label = batches.batch(iteration).label
        assert label is not None
        found += label.tolist()
    return found


@pytest.mark.parametrize("batch_size", [1, 7, N, 50])
def test_every_image_exactly_once_per_epoch(batch_size: int) -> None:
    seen = labels(Batches(image_set(), batch_size, seed=3), range(-(-4 * N // batch_size)))
    epochs = [seen[i * N : (i + 1) * N] for i in range(4)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_orders_are_uniform() -> None:
    """Each image is as likely in each place: 2,000 epochs of 4 images, counts within five standard deviations."""
    seen = np.array(labels(Batches(image_set(4), 400, seed=0), range(20))).reshape(2000, 4)
    counts = np.array([[np.sum(seen[:, place] == image) for image in range(4)] for place in range(4)])
    assert np.abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_the_batch_size_does_not_change_the_stream() -> None:
    images = image_set()
    assert labels(Batches(images, 4, seed=5), range(15)) == labels(Batches(images, 10, seed=5), range(6))
    assert labels(Batches(images, 4, seed=5), range(15)) != labels(Batches(images, 4, seed=6), range(15))


def test_a_batch_does_not_depend_on_earlier_calls() -> None:
    images, augment = image_set(), Augment(flip=True, translate=2)
    straight = Batches(images, 8, seed=7, augment=augment)
    expected = [straight.batch(k) for k in range(30)]
    jumping = Batches(images, 8, seed=7, augment=augment)
    for k in [29, 3, 17, 0, 29, 12]:
        batch = jumping.batch(k)
        assert torch.equal(batch.x, expected[k].x)
        assert torch.equal(batch.sample, expected[k].sample)
        assert batch.label is not None
        assert torch.equal(batch.label, torch.as_tensor(expected[k].label))
    resumed = Batches(images, 8, seed=7, augment=augment)
    assert all(torch.equal(resumed.batch(k).x, expected[k].x) for k in range(20, 30))


def test_values_and_types() -> None:
    images = image_set(shape=(3, 5, 6))
    batch = Batches(images, 8, seed=0).batch(2)
    assert (batch.x.dtype, batch.x.shape) == (torch.float32, (8, 3, 5, 6))
    assert batch.label is not None
    assert batch.label.dtype == batch.sample.dtype == torch.int64
    assert batch.sample.tolist() == list(range(16, 24))
    assert torch.equal(batch.x, to_float(images.images[batch.label.numpy()]))
    assert Batches(ImageSet(images.images, None, (), "x"), 8, seed=0).batch(0).label is None


def test_refusals() -> None:
    with pytest.raises(ValueError, match="batch_size 0"):
        Batches(image_set(), 0, seed=0)
    with pytest.raises(ValueError, match="iteration -1"):
        Batches(image_set(), 4, seed=0).batch(-1)
    for translate, told in ((-1, "from 0 to 4,096"), (5, "expected 0 to 4")):
        with pytest.raises(ValueError, match=told):
            Batches(image_set(), 4, seed=0, augment=Augment(translate=translate)).batch(0)


def test_augmentation_depends_only_on_seed_and_sample() -> None:
    images, augment = torch.rand(1, 1, 5, 6).expand(40, 1, 5, 6), Augment(flip=True, translate=2)
    whole = augment(images, Draws(1, torch.arange(40)))
    for rows in (torch.tensor([7]), torch.tensor([30, 2, 11])):
        assert torch.equal(augment(images[rows], Draws(1, rows)), whole[rows])
    assert not torch.equal(augment(images, Draws(2, torch.arange(40))), whole)


def test_batches_are_augmented_by_global_sample_number() -> None:
    images, augment = image_set(), Augment(flip=True, translate=2)
    for iteration in (0, 5):
        batch = Batches(images, 8, seed=9, augment=augment).batch(iteration)
        assert batch.label is not None
        plain = to_float(images.images[batch.label.numpy()])
        assert torch.equal(batch.x, augment(plain, Draws(9, torch.arange(8) + 8 * iteration)))


def padded(image: Tensor, margin: int) -> Tensor:
    return torch.nn.functional.pad(image[None], (margin,) * 4, mode="reflect")[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_every_shift_and_mirror_occurs_and_nothing_else(channels: int) -> None:
    image = torch.rand(channels, 5, 6, dtype=torch.float64)
    expected = {}
    for mirrored in (False, True):
        for down in range(-2, 3):
            for right in range(-2, 3):
                window = padded(image, 2)[:, 2 - down : 7 - down, 2 - right : 8 - right]
                key = (window.flip(-1) if mirrored else window).numpy().tobytes()
                expected[key] = (mirrored, down, right)
    assert len(expected) == 50
    out = Augment(flip=True, translate=2)(image.expand(2000, -1, -1, -1), Draws(0, torch.arange(2000)))
    counts = dict.fromkeys(expected.values(), 0)
    for row in out:
        counts[expected[row.contiguous().numpy().tobytes()]] += 1
    values = np.array(list(counts.values()))
    assert np.abs(values - 40).max() < 5 * np.sqrt(40)
    mirrored = sum(count for key, count in counts.items() if key[0])
    assert abs(mirrored - 1000) < 5 * np.sqrt(2000 * 0.25)


def test_flip_alone_and_nothing_at_all() -> None:
    images = torch.rand(50, 1, 4, 4)
    draws = Draws(0, torch.arange(50))
    assert torch.equal(Augment()(images, draws), images)
    out = Augment(flip=True)(images, draws)
    same = torch.tensor([torch.equal(a, b) for a, b in zip(out, images, strict=True)])
    assert torch.equal(torch.where(same[:, None, None, None], images, images.flip(-1)), out)
    assert 10 < int(same.sum()) < 40


def test_pixels_stay_exact_under_augmentation() -> None:
    images = image_set()
    batch = Batches(images, N, seed=0, augment=Augment(flip=True, translate=3)).batch(0)
    assert batch.label is not None
    for out, label in zip(to_uint8(batch.x), batch.label.tolist(), strict=True):
        assert set(out.unique().tolist()) <= set(np.unique(images.images[label]).tolist())


@pytest.mark.parametrize("count", [1, 2**13, 2**13 + 1, 300_000])
def test_the_order_is_that_of_sorted_draws(count: int) -> None:
    """Runs of before go on in it. Of 300,000 draws of 32 bits some are equal: these stay in their order."""
    images = ImageSet(np.zeros((count, 1, 1, 1), np.uint8), None, (), "none")
    drawn = Draws(5, torch.arange(count)).uniform("order of epoch 2", 1)[:, 0]
    assert (count < 300_000) == (len(drawn.unique()) == count)
    order = Batches(images, 1, seed=5)._permutation(2)
    assert order.dtype == torch.int64
    assert torch.equal(order, drawn.argsort(stable=True))


def test_bytes_become_the_floats_of_the_batch() -> None:
    batches = Batches(image_set(), 7, seed=0, augment=Augment(flip=True))
    for number in range(5):
        made, batch = batches.bytes(number), batches.batch(number)
        assert made.x.dtype == torch.uint8
        assert torch.equal(batch.x, made.x.float() / 127.5 - 1)
        assert torch.equal(made.sample, batch.sample)
