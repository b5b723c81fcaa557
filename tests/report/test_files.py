"""Images to files and back: no pixel changes on the way, whatever its value."""

import numpy as np
import pytest
import torch
from PIL import Image
from trouble import full_disk

from dualrate.data.images import load_images, to_float, to_uint8
from dualrate.report.image_grid import is_whole_png, png_bytes, read_png, save_grid, write_npz


def constant_images(channels: int) -> np.ndarray:
    """(256, channels, 4, 4): image k is k everywhere."""
    return np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, channels, 4, 4)).copy()


@pytest.mark.parametrize("channels", [1, 3])
def test_constant_images_survive_floats_pngs_and_the_npz_of_the_reference_evaluators(channels, tmp_path):
    images = constant_images(channels)
    back = to_uint8(to_float(images)).numpy()
    assert np.array_equal(back, images)
    write_npz(tmp_path / "images.npz", iter(back), back.shape, np.arange(256))
    with np.load(tmp_path / "images.npz") as archive:
        assert np.array_equal(archive["arr_0"].transpose(0, 3, 1, 2), images)
        assert np.array_equal(archive["arr_1"], np.arange(256))
    for k in (0, 1, 127, 128, 255):
        file = tmp_path / f"{k}.png"
        file.write_bytes(png_bytes(back[k]))
        assert np.array_equal(read_png(file), images[k])
        with Image.open(file) as picture:
            assert np.array_equal(np.asarray(picture).reshape(4, 4, channels), images[k].transpose(1, 2, 0))


@pytest.mark.parametrize("side", [36, 37, 64])
def test_small_images_are_not_packed_and_take_a_block_of_the_disk_at_most(side, tmp_path):
    file, image = tmp_path / "0.png", np.full((3, side, side), 7, np.uint8)
    file.write_bytes(png_bytes(image))
    assert np.array_equal(read_png(file), image)
    assert is_whole_png(file, (3, side, side))
    size = file.stat().st_size
    assert image.nbytes < size <= 4096 if side == 36 else size < image.nbytes


def test_an_npz_without_labels_has_images_alone(tmp_path):
    write_npz(tmp_path / "images.npz", iter(constant_images(1)), (256, 1, 4, 4), None)
    with np.load(tmp_path / "images.npz") as archive:
        assert archive.files == ["arr_0"]


def test_a_file_that_cannot_be_finished_is_not_there_and_what_was_there_stays(tmp_path, monkeypatch):
    """Both the npz and the grid are written in pieces; the error names the file."""

    def broken():
        yield from constant_images(1)[:5]
        raise OSError(28, "No space left on device")

    (tmp_path / "images.npz").write_text("before")
    with pytest.raises(OSError, match=r"No space left on device: '.*images\.npz'"):
        write_npz(tmp_path / "images.npz", broken(), (256, 1, 4, 4), None)
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    (tmp_path / "grid.png.00000000.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*grid\.png'"):
        save_grid(constant_images(1), tmp_path / "grid.png")
    assert [path.name for path in tmp_path.iterdir()] == ["images.npz"]
    assert (tmp_path / "images.npz").read_text() == "before"
    with pytest.raises(ValueError, match="no ending that names a format"):
        save_grid(constant_images(1), tmp_path / "grid.pnk")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_that_is_cut_off_or_of_another_shape_is_not_whole(channels, tmp_path):
    rng = np.random.default_rng(0)
    content = png_bytes(rng.integers(0, 256, (channels, 4, 6), dtype=np.uint8))
    file = tmp_path / "picture.png"
    for length in range(len(content) + 1):
        file.write_bytes(content[:length])
        assert is_whole_png(file, (channels, 4, 6)) == (length == len(content))
    for shape in ((channels, 6, 4), (4 - channels, 4, 6), (channels, 4, 7)):
        assert not is_whole_png(file, shape)
    file.write_bytes(bytes(len(content)))
    assert not is_whole_png(file, (channels, 4, 6))


def test_a_damaged_png_is_an_error_that_names_it(tmp_path):
    content = bytearray(png_bytes(np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)))
    content[len(content) // 2] ^= 1
    (tmp_path / "picture.png").write_bytes(content)
    assert is_whole_png(tmp_path / "picture.png", (3, 8, 8))
    with pytest.raises(OSError, match=r"picture\.png is damaged .* delete it"):
        read_png(tmp_path / "picture.png")


def test_pngs_are_read_again_by_the_data_source_as_they_were_written(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 3, 5, 5), dtype=np.uint8)
    (tmp_path / "png").mkdir()
    for i, image in enumerate(noise):
        (tmp_path / "png" / f"{i}.png").write_bytes(png_bytes(image))
    parts = [load_images(tmp_path / "png", split=split, cache=tmp_path / "cache").images for split in ("train", "test")]
    found = {image.tobytes() for part in parts for image in part}
    assert found == {image.tobytes() for image in noise}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_value_k_of_255_becomes_the_pixel_k(dtype):
    """Data are in [0, 1]: x = 2 k / 255 - 1, give or take rounding, which truncation would not survive."""
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
