"""ImageSet's validation and fingerprint, and the 8-bit rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dualrate.data.images import ImageSet, to_float, to_uint8

PIXELS = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
LABELS = np.array([1, 0])


def test_eight_bit_round_trip_is_exact() -> None:
    every = torch.arange(256).to(torch.uint8)
    x = to_float(every)
    assert x.dtype == torch.float32
    assert (x[0], x[255]) == (-1, 1)
    assert torch.equal(to_uint8(x), every)
    assert torch.equal(to_uint8(x.double()), every)
    assert torch.equal(to_float(every.numpy()), x)


def test_eight_bit_rounds_and_clamps() -> None:
    # 127.5 x + 127.5 = 127.5 + d; a half goes to the even neighbour, 128
    assert to_uint8(torch.tensor([-7.0, 7.0, 0.0, 0.9 / 127.5, -0.6 / 127.5])).tolist() == [0, 255, 128, 128, 127]


def test_eight_bit_refuses() -> None:
    with pytest.raises(ValueError, match="2 of 3 values are not finite"):
        to_uint8(torch.tensor([0.0, torch.nan, torch.inf]))
    with pytest.raises(ValueError, match="expected uint8"):
        to_float(torch.zeros(3))
    with pytest.raises(ValueError, match="expected uint8"):
        to_float(np.zeros(3))


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_welcome() -> None:
    pixels = PIXELS.copy()
    pixels.setflags(write=False)
    assert torch.equal(to_float(pixels), to_float(PIXELS))


def test_properties() -> None:
    images = ImageSet(PIXELS, LABELS, ("cat", "dog"), "pets")
    assert (len(images), images.num_classes) == (2, 2)
    assert ImageSet(PIXELS, None, (), "pets").num_classes == 0


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (PIXELS[:0], None, (), "N > 0"),
        (PIXELS[0], None, (), r"expected uint8 \(N, C, H, W\)"),
        (PIXELS.astype(np.float32), None, (), "float32"),
        (PIXELS[:, :2], None, (), "C = 1 or 3"),
        (PIXELS, LABELS[:1], ("cat", "dog"), r"expected int64 \(2,\)"),
        (PIXELS, LABELS.astype(np.int32), ("cat", "dog"), "int32"),
        (PIXELS, LABELS, ("cat",), "labels run from 0 to 1"),
        (PIXELS, LABELS - 1, ("cat", "dog"), "labels run from -1 to 0"),
        (PIXELS, None, ("cat",), "no labels"),
    ],
)
def test_validation(images: np.ndarray, labels: np.ndarray | None, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSet(images, labels, names, "pets")


def test_fingerprint_is_of_the_content() -> None:
    names = ("cat", "dog")
    images = ImageSet(PIXELS, LABELS, names, "pets")
    changed = PIXELS.copy()
    changed[1, 2, 3, 4] ^= 1
    others = [
        ImageSet(changed, LABELS, names, "pets"),
        ImageSet(PIXELS, LABELS[::-1].copy(), names, "pets"),
        ImageSet(PIXELS, LABELS, ("cat", "cow"), "pets"),
        ImageSet(PIXELS, None, (), "pets"),
        ImageSet(PIXELS.reshape(2, 3, 5, 4), LABELS, names, "pets"),
    ]
    assert len({image_set.fingerprint for image_set in [images, *others]}) == 6
    assert images.fingerprint == ImageSet(PIXELS.copy(), LABELS.copy(), names, "renamed").fingerprint
    assert len(images.fingerprint) == 64
