"""Images to files and back: no pixel changes on the way, whatever its value."""

import numpy as np
import pytest
import torch
from PIL import Image
from trouble import full_disk

from dualrate.data.images import load_images, to_float, to_uint8
from dualrate.report.files import write_images
from dualrate.report.grid import save_grid


def constant_images(channels: int) -> np.ndarray:
    """(256, channels, 4, 4): image k is k everywhere."""
    return np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, channels, 4, 4)).copy()


@pytest.mark.parametrize("channels", [1, 3])
def test_constant_images_survive_floats_pngs_and_the_npz_of_the_reference_evaluators(channels, tmp_path):
    images = constant_images(channels)
    back = to_uint8(to_float(images)).numpy()
    assert np.array_equal(back, images)
    write_images(back, range(256), None, tmp_path, npz=True)
    (tmp_path / "grid.png").unlink()
    with np.load(tmp_path / "images.npz") as archive:
        assert np.array_equal(archive["arr_0"].transpose(0, 3, 1, 2), images)
    for k in (0, 1, 127, 128, 255):
        with Image.open(tmp_path / f"{k:06d}.png") as picture:
            assert np.array_equal(np.asarray(picture).reshape(4, 4, channels), images[k].transpose(1, 2, 0))


def test_pngs_are_read_again_by_the_data_source_as_they_were_written(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 3, 5, 5), dtype=np.uint8)
    write_images(noise, range(20), None, tmp_path / "png")
    (tmp_path / "png" / "grid.png").unlink()
    parts = [load_images(tmp_path / "png", split=split, cache=tmp_path / "cache").images for split in ("train", "test")]
    found = {image.tobytes() for part in parts for image in part}
    assert found == {image.tobytes() for image in noise}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_value_k_of_255_becomes_the_pixel_k(dtype):
    """Of data in [0, 1]: x = 2 k / 255 - 1, give or take rounding, which truncation would not survive."""
    k = torch.arange(256)
    x = 2 * (k.to(dtype) / 255) - 1
    for rounding in (-1e-6, 0, 1e-6):
        assert torch.equal(to_uint8(x + rounding).long(), k)


def test_rounding_is_to_the_nearest_level_not_down():
    """On average over a level's width: nearest keeps the mean, truncation would lose half a level."""
    x = torch.linspace(-1, 1, 100_001, dtype=torch.float64)
    error = to_uint8(x).double() - (127.5 * x + 127.5)
    assert error.abs().max() <= 0.5 + 1e-4
    assert abs(error.mean()) < 1e-3


def test_a_grid_on_a_full_disk_is_an_error_with_its_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    with full_disk(100), pytest.raises(OSError, match=r"too large: '.*grid\.png'"):
        save_grid(noise, tmp_path / "grid.png")
