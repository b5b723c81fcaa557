"""Fields from every kind of source on small made files: shapes, splits, statistics, and what is refused."""

from __future__ import annotations

import builtins
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, get_args, get_type_hints

import h5py
import numpy as np
import pytest
import torch
import xarray
from cli.command import call
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dualrate.cli.data import Simulate
from dualrate.data.loader import Augment, Batches
from dualrate.data.source import by_number
from dualrate.diffusion.random import Draws
from dualrate.forecasts import sources as fields
from dualrate.forecasts.fields import Fields, Statistics, read_fields, survey
from dualrate.forecasts.simulations import KuramotoSivashinsky
from dualrate.forecasts.sources import SIMULATIONS, find_fields, is_fields, write_fields

SHAPE = (20, 6, 2, 3, 5)
ARRAY = np.random.default_rng(0).normal(3, 2, SHAPE).astype(np.float32)
LINE = np.random.default_rng(1).normal(0, 1, (20, 6, 1, 8)).astype(np.float32)  # (S, T, C, X)


def all_of(fields: Fields) -> np.ndarray:
    return np.stack([fields.frames(i, 0, one.shape[0]) for i, one in enumerate(fields.trajectories)])


def write_well(path: Path, seed: int = 0) -> np.ndarray:
    """(S, T, C, H, W): a scalar, one that is the same for all, and a vector of two components."""
    draw = np.random.default_rng(seed).normal
    density, common, velocity = draw(size=(4, 5, 3, 6)), draw(size=(5, 3, 6)), draw(size=(4, 5, 3, 6, 2))
    with h5py.File(path, "w") as file:
        file.create_group("dimensions").attrs["spatial_dims"] = ["x", "y"]
        file["dimensions/time"] = np.arange(5) * 0.25
        for group, names in (
            ("t0_fields", ["density", "common", "still"]),
            ("t1_fields", ["velocity"]),
            ("t2_fields", []),
        ):
            file.create_group(group).attrs["field_names"] = np.array(names, h5py.string_dtype())
        for name, data, samples, times in (
            ("t0_fields/density", density, True, True), ("t0_fields/common", common, False, True),
            ("t0_fields/still", draw(size=(4, 3, 6)), True, False), ("t1_fields/velocity", velocity, True, True),
        ):  # fmt: skip
            file[name] = data.astype(np.float32)
            file[name].attrs["sample_varying"], file[name].attrs["time_varying"] = samples, times
    parts = [density, np.broadcast_to(common, density.shape), velocity[..., 0], velocity[..., 1]]
    return np.stack(parts, 2).astype(np.float32)


def written(folder: Path, kind: str) -> tuple[Path, np.ndarray, tuple[str, ...], float | None]:
    """A source of this kind; its trajectories, variables and step."""
    path, names = folder / f"made.{kind}", ("u0", "u1")
    if kind == "npz":
        write_fields(path, ARRAY, ("a", "b"), 0.5)
        return path, ARRAY, ("a", "b"), 0.5
    if kind == "npy":
        np.save(path, ARRAY)
        return path, ARRAY, names, None
    if kind == "nc":
        write_fields(path, ARRAY, ("a", "b"), 0.5)
        return path, ARRAY, ("a", "b"), 0.5
    if kind == "zarr":
        dims = ("x", "sample", "time", "channel")
        line = xarray.DataArray(np.moveaxis(LINE, 3, 0), dims=dims, coords={"channel": [7], "time": np.arange(6)})
        line.to_dataset(name="u").to_zarr(path, consolidated=False)
        return path, LINE[:, :, :, None], ("7",), 1.0
    assert kind == "h5"
    with h5py.File(path, "w") as file:
        file["train/pde_6-8"], file["train/dt"] = LINE[:18, :, 0], np.full(18, 0.2)
        file["valid/pde_6-8"], file["valid/dt"] = LINE[18:, :, 0], np.full(2, 0.2)
    return path, LINE[:, :, :, None], ("u",), 0.2


@pytest.mark.parametrize("kind", ["npz", "npy", "nc", "zarr", "h5"])
def test_every_layout_gives_the_same(tmp_path: Path, kind: str) -> None:
    path, array, variables, step = written(tmp_path, kind)
    assert is_fields(path)
    train, test = read_fields(path, "train"), read_fields(path, "test")
    np.testing.assert_array_equal(all_of(train), array[:18])
    np.testing.assert_array_equal(all_of(test), array[18:])
    assert (train.shape, train.variables, len(train), len(test)) == (array.shape[2:], variables, 108, 12)
    assert train.step == (step and pytest.approx(step))
    hashed, statistics = survey("", list(array[:18]), variables)
    assert train.fingerprint == hashed != test.fingerprint  # the content, not the file
    assert train.statistics == test.statistics == statistics


@given(st.integers(2, 5), st.integers(2, 9), st.integers(1, 3), st.floats(-1e4, 1e4), st.integers(0, 99))
def test_statistics_are_those_of_numpy_in_float64(
    count: int, frames: int, channels: int, mean: float, seed: int
) -> None:
    array = (np.random.default_rng(seed).normal(size=(count, frames, channels, 2, 3)) + mean).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dualrate.forecasts.fields.AT_A_TIME", 3 * array[0, 0].size)  # in parts of three frames
        _, found = survey("", list(array), tuple("abc"[:channels]))
    wide, axes = array.astype(np.float64), (0, 1, 3, 4)
    np.testing.assert_allclose(found.mean, wide.mean(axes), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.std, wide.std(axes), rtol=1e-9)
    np.testing.assert_allclose(found.difference, np.diff(wide, axis=1).std(axes), rtol=1e-9)


def test_a_constant_channel_has_deviations_of_one() -> None:
    array = np.full((3, 4, 1, 2, 2), 0.1, np.float32)
    assert survey("", list(array), ("land",))[1] == Statistics((float(np.float32(0.1)),), (1.0,), (1.0,))


def test_normalised_frames_are_the_rows_of_a_training_set(tmp_path: Path) -> None:
    train = read_fields(written(tmp_path, "npz")[0], "train")
    batch = Batches(train, len(train), 0).batch(0)
    assert batch.label is None
    torch.testing.assert_close(batch.x.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(batch.x.std((0, 2, 3), unbiased=False), torch.ones(2))
    rows = train.rows(np.array([7, 0, 107]), Draws(0, torch.arange(3)), Augment())
    raw = train.statistics.restored(rows)
    np.testing.assert_allclose(raw, ARRAY[[1, 0, 17], [1, 0, 5]], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"drop --data\.augment"):
        Batches(train, 2, 0, Augment(flip=True)).batch(0)


def test_windows_are_all_runs_of_frames_that_follow_one_another() -> None:
    parts = [ARRAY[0], ARRAY[1, :3], ARRAY[2, :2]]
    hashed, statistics = survey("", parts, ("a", "b"))
    fields = Fields("some", parts, ("a", "b"), None, statistics, hashed)
    assert fields.windows(3).tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0]]
    assert fields.windows(3).dtype == np.int64
    np.testing.assert_array_equal(fields.frames(0, 2, 3), ARRAY[0, 2:5])
    with pytest.raises(ValueError, match="windows of 7 frames, expected 1 to 6"):
        fields.windows(7)
    with pytest.raises(IndexError, match="frames 1 to 3 of 3 in trajectory 1"):
        fields.frames(1, 1, 3)


def test_a_npy_file_is_mapped_and_only_read(tmp_path: Path) -> None:
    train = read_fields(written(tmp_path, "npy")[0], "train")
    first = train.trajectories[0]
    assert isinstance(first, np.memmap)
    assert not first.flags.writeable
    train.frames(0, 0, 2)[:] = 0  # a copy
    np.testing.assert_array_equal(train.frames(0, 0, 2), ARRAY[0, :2])


def test_of_a_single_trajectory_the_last_tenth_of_its_frames_is_held_out(tmp_path: Path) -> None:
    long = np.random.default_rng(2).normal(size=(1, 40, 1, 8))
    np.save(tmp_path / "long.npy", long)
    train, test = (read_fields(tmp_path / "long.npy", split) for split in ("train", "test"))  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(np.concatenate([all_of(train), all_of(test)], 1)[:, :, :, 0], long.astype(np.float32))
    assert len(test) == 4
    np.save(tmp_path / "short.npy", long[:, :3])
    with pytest.raises(ValueError, match="one trajectory of 3 frames; expected 4 or more"):
        read_fields(tmp_path / "short.npy", "train")


def test_the_well_is_read_field_by_field(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "valid", "test")):
        (tmp_path / "data" / split).mkdir(parents=True)
        write_well(tmp_path / "data" / split / "flow.hdf5", i)
    array = write_well(tmp_path / "alone.hdf5", 2)
    assert is_fields(tmp_path / "data")
    test = read_fields(tmp_path / "data", "test")
    np.testing.assert_array_equal(all_of(test), array)
    assert test.variables == ("density", "common", "velocity_x", "velocity_y")
    assert (test.step, test.shape) == (0.25, (4, 3, 6))
    np.testing.assert_array_equal(all_of(read_fields(tmp_path / "alone.hdf5", "train")), array[:3])


def test_files_whose_names_say_their_split(tmp_path: Path) -> None:
    for split, part in (("train", LINE[:18]), ("test", LINE[18:])):
        with h5py.File(tmp_path / f"KS_{split}_20.h5", "w") as file:
            file[f"{split}/pde_6-8"] = part[:, :, 0]
    np.testing.assert_array_equal(all_of(read_fields(tmp_path, "test")), LINE[18:, :, :, None])
    alone = tmp_path / "KS_test_20.h5"
    with pytest.raises(ValueError, match="only the split test"):
        read_fields(alone, "train")
    with pytest.raises(ValueError, match="holds no training fields"):
        read_fields(alone, "test")
    given_ = Statistics((1.0,), (2.0,), (3.0,))
    assert read_fields(alone, "test", given_).statistics == given_
    with pytest.raises(ValueError, match=r"has 1 channels \(u\); the statistics are of 2"):
        read_fields(alone, "test", Statistics((1.0, 1.0), (2.0, 1.0), (3.0, 1.0)))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pictures_in_folders_are_trajectories(tmp_path: Path, mode: str) -> None:
    channels = len(mode)
    pixels = np.random.default_rng(0).integers(0, 256, (11, 3, 4, 5, channels)).astype(np.uint8)
    for i, clip in enumerate(pixels):
        (tmp_path / f"clip{i:02}").mkdir()
        for j, frame in enumerate(clip):
            Image.fromarray(frame.squeeze(-1) if channels == 1 else frame).save(tmp_path / f"clip{i:02}" / f"{j}.png")
    source = f"frames:{tmp_path}"
    assert is_fields(source)
    assert not is_fields(tmp_path)  # classes of images look the same
    train = read_fields(source, "train")
    assert train.shape == (channels, 4, 5)
    expected = np.moveaxis(pixels[:10], -1, 2) / 127.5 - 1
    np.testing.assert_allclose(all_of(train), expected, rtol=0, atol=1e-6)
    Image.new(mode, (5, 3)).save(tmp_path / "clip00" / "9.png")
    with pytest.raises(ValueError, match="is not 5 x 4 pixels"):
        read_fields(source, "train")


def test_pictures_come_in_the_order_of_the_numbers_in_their_names(tmp_path: Path) -> None:
    for clip in range(11):
        (tmp_path / f"clip{clip}").mkdir()
        for j in range(12):
            Image.new("L", (2, 2), 20 * clip + j).save(tmp_path / f"clip{clip}" / f"frame_{j}.png")
    train, test = (read_fields(f"frames:{tmp_path}", split) for split in ("train", "test"))
    expected = 20 * np.arange(11)[:, None] + np.arange(12)
    found = np.concatenate([all_of(train), all_of(test)])[..., 0, 0, 0]
    np.testing.assert_allclose(found, expected / 127.5 - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "names",
    [
        ("f1.5", "f2", "f10"),
        ("-1", "0", "1"),
        ("t=-10", "t=-1.5", "t=-1", "t=0"),
        ("f-1", "f0", "f1"),  # no name has a dash before all numbers
        ("frame-1", "frame-2", "frame-10"),
        ("2020-1-9", "2020-1-10", "2020-10-1"),
        ("2020.1.9", "2020.1.10", "2020.10.1"),
        ("v1.8", "v1.9", "v1.10", "v1.11"),  # a point between numbers
        ("s2.0001", "s2.0002", "s2.0010"),
        ("t0.5", "t1", "t1.25", "t1.5"),
        ("f1700000000000000001", "f1700000000000000002"),
        ("a2/b10", "a10/b1"),
    ],
)
def test_the_order_of_the_numbers_in_names(names: tuple[str, ...]) -> None:
    for ending in ("", ".png"):
        mixed = [f"{name}{ending}" for name in reversed(names)]
        assert [mixed[i] for i in by_number(mixed)] == [f"{name}{ending}" for name in names]


@pytest.mark.parametrize(
    ("stored", "channels"),
    [
        (["L", "RGB", "RGB"], 3),
        (["RGB", "L", "L"], 3),
        (["L", "L", "RGBA"], 3),
        (["I;16", "L", "L"], 1),
        (["I;16", "P", "L"], 3),
        (["P grey", "L", "I;16"], 1),
        (["LA", "1", "L"], 1),
    ],
)
def test_all_pictures_decide_the_channels_of_a_sequence(tmp_path: Path, stored: list[str], channels: int) -> None:
    for i, kind in enumerate(stored):
        picture = Image.new("RGB", (3, 2), (40, 40, 40))
        if kind in ("RGB", "RGBA", "P"):
            picture.putpixel((0, 0), (200, 10, 0))
        deep = Image.fromarray(np.full((2, 3), 40 * 257, np.uint16))
        (tmp_path / str(i // 2)).mkdir(exist_ok=True)
        saved = deep if kind == "I;16" else picture.quantize(2) if kind[0] == "P" else picture.convert(kind)
        saved.save(tmp_path / str(i // 2) / f"{i}.png")
    source = find_fields(f"frames:{tmp_path}")[1]
    colours = sum(kind in ("RGB", "RGBA", "P") for kind in stored)
    assert source.variables == (("grey",) if channels == 1 else ("red", "green", "blue"))
    assert source.note == (f"{3 - colours} of its 3 pictures are grey, and read as colours" if channels == 3 else "")
    first = source.trajectories[0][0:1]
    assert first.shape == (1, channels, 2, 3)
    if "1" not in stored:
        np.testing.assert_allclose(first[0, :, 1, 1], 40 / 127.5 - 1, rtol=0, atol=1e-6)


def test_a_dimension_that_nobody_knows_is_no_space(tmp_path: Path) -> None:
    def saved(name: str, *dims: str) -> Path:
        made = xarray.Dataset({"u": (dims, ARRAY[:, :, 0, 0] if len(dims) == 3 else ARRAY[:, :, 0])})
        made.to_netcdf(tmp_path / name, engine="h5netcdf")
        return tmp_path / name

    np.testing.assert_array_equal(
        all_of(read_fields(saved("a.nc", "ensemble", "time", "x"), "train"))[:, :, 0, 0], ARRAY[:18, :, 0, 0]
    )
    for dims in (("ic", "time", "x"), ("x", "y", "time"), ("ic", "time", "y", "x")):
        with pytest.raises(ValueError, match=r"with one or two of space, after time; trajectories are called"):
            read_fields(saved(f"{''.join(dims)}.nc", *dims), "train")
    with pytest.raises(ValueError, match=r"several dimensions of time \(time, step\), expected one"):
        read_fields(saved("b.nc", "time", "step", "x"), "train")


@pytest.mark.parametrize(
    ("times", "step"),
    [(np.arange(6.0), 1.0), (np.zeros(6), None), (np.array(3.0), None), (None, None), (-np.arange(6.0), "do not rise")],
)
def test_time_axes_of_the_well(tmp_path: Path, times: np.ndarray | None, step: float | str | None) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_group("dimensions").attrs["spatial_dims"] = ["x", "y"]
        if times is not None:
            file["dimensions"]["time"] = times
        file["t0_fields/u"] = ARRAY[:, :, 0]
    if isinstance(step, str):
        with pytest.raises(ValueError, match=step):
            read_fields(tmp_path / "data.h5", "train")
    else:
        assert read_fields(tmp_path / "data.h5", "train").step == step


def test_no_window_spans_a_gap_in_time(tmp_path: Path) -> None:
    """Frames 0 .. 99 that are 6 hours apart, with 4 of them missing before frame 30, and one before frame 94."""
    hours = 6 * (np.arange(100) + 4 * (np.arange(100) >= 30) + (np.arange(100) >= 94))
    frames = np.arange(100.0)[:, None] + (np.arange(100) >= 30)[:, None] * 50 + np.zeros(8)
    data = xarray.Dataset({"u": (("time", "x"), frames)}, coords={"time": np.datetime64("2020-01-01", "ns") + hours})
    data["time"] = np.datetime64("2020-01-01", "ns") + hours * np.timedelta64(1, "h")
    data.to_netcdf(tmp_path / "gap.nc", engine="h5netcdf")
    found = find_fields(tmp_path / "gap.nc")[1]
    assert "has 2 gap(s)" in found.note
    assert "6 apart, and frames 29 and 30 are 30" in found.note
    train, test = (read_fields(tmp_path / "gap.nc", split) for split in ("train", "test"))
    assert train.step == 6
    assert train.windows(4)[:, 1].tolist() == [*range(27), *range(30, 87)]
    assert test.windows(4)[:, 1].tolist() == [0, 4, 5, 6]  # frames 90 to 99
    assert train.statistics.difference == (1.0,)  # all differ by 1, but for the jump: its deviation is 0, so 1
    with pytest.raises(ValueError, match=r"windows of 61 frames, expected 1 to 60, the most in a row"):
        train.windows(61)


@pytest.mark.parametrize("steps", [[31, 28, 31, 30, 31, 30, 31, 31, 30], [1] * 9])
def test_months_are_no_gaps(tmp_path: Path, steps: list[int]) -> None:
    times = np.concatenate([[0], np.cumsum(steps)])
    data = xarray.Dataset({"u": (("time", "x"), np.random.default_rng(0).normal(size=(10, 8)))}, {"time": times})
    data.to_netcdf(tmp_path / "months.nc", engine="h5netcdf")
    found = find_fields(tmp_path / "months.nc")[1]
    assert (found.note, found.step) == ("", 1.0 if steps[0] == 1 else None)


def test_fields_in_two_dimensions_of_pdearena(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "flow.h5", "w") as file:
        for split, rows in (("train", ARRAY[:18]), ("valid", ARRAY[18:])):
            file[f"{split}/vx"], file[f"{split}/u"], file[f"{split}/dt"] = (
                rows[:, :, 1],
                rows[:, :, 0],
                [0.5] * len(rows),
            )
            file[f"{split}/x"], file[f"{split}/buo_y"] = np.zeros((len(rows), 5)), np.zeros(len(rows))
    train, test = (read_fields(tmp_path / "flow.h5", split) for split in ("train", "test"))
    assert (train.variables, train.step) == (("u", "vx"), 0.5)
    np.testing.assert_array_equal(all_of(train), ARRAY[:18])
    np.testing.assert_array_equal(all_of(test), ARRAY[18:])
    np.testing.assert_array_equal(test.frames(1, 2, 3), ARRAY[19, 2:5])
    with h5py.File(tmp_path / "mixed.h5", "w") as file:
        file["train/u"], file["train/v"], file["valid/v"] = ARRAY[:, :, 0], ARRAY[:, :, 1], ARRAY[:, :, 1]
    with pytest.raises(ValueError, match=r"its splits have the variables \('u', 'v'\) and \('v',\)"):
        read_fields(tmp_path / "mixed.h5", "train")
    with h5py.File(tmp_path / "deep.h5", "w") as file:
        file["train/u"], file["train/v"] = ARRAY[:, :, 0], ARRAY
    with pytest.raises(ValueError, match=r"train/u \(20, 6, 3, 5\), train/v \(20, 6, 2, 3, 5\); expected one shape"):
        read_fields(tmp_path / "deep.h5", "train")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["train/flow"], file["notes"] = np.zeros((2, 3)), np.zeros(3)
    with pytest.raises(ValueError, match=r"holds notes, train, train/flow; expected the groups train"):
        read_fields(tmp_path / "other.h5", "train")
    with h5py.File(tmp_path / "bare.h5", "w") as file:
        file["train"], file["valid"] = ARRAY[:18], ARRAY[18:]
    with pytest.raises(ValueError, match=r"holds train, valid; expected the groups train"):
        read_fields(tmp_path / "bare.h5", "train")


def test_hdf5_that_could_be_read_in_two_ways_is_refused(tmp_path: Path) -> None:
    def saved(name: str, **arrays: np.ndarray) -> Path:
        with h5py.File(tmp_path / name, "w") as file:
            for place, array in arrays.items():
                file[place.replace("__", "/")] = array
        return tmp_path / name

    line = LINE[:, :, 0]
    with pytest.raises(ValueError, match="train holds pde_a, pde_b; expected one of them"):
        find_fields(saved("two.h5", train__pde_a=line, train__pde_b=line))
    twice = saved("twice.h5", train__pde_a=line, training__pde_a=line, test__pde_a=line)
    with pytest.raises(ValueError, match=r"names a split twice \(test, train, training\)"):
        read_fields(twice, "train")
    with pytest.raises(ValueError, match=r"complex/train holds complex64; expected real"):
        read_fields(saved("complex.h5", train__pde_a=line + 1j, test__pde_a=line + 1j), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no HDF5 files: name .* frames:FOLDER"):
        find_fields(tmp_path / "empty")
    for split, axes in (("train", "xy"), ("test", "yx")):
        (tmp_path / "axes" / split).mkdir(parents=True)
        with h5py.File(tmp_path / "axes" / split / "a.h5", "w") as file:
            file.create_group("dimensions").attrs["spatial_dims"] = list(axes)
            file["t0_fields/u"] = ARRAY[:, :, 0]
    with pytest.raises(ValueError, match=r"has the axes of space \('x', 'y'\), another file of .* has \('y', 'x'\)"):
        find_fields(tmp_path / "axes")


def test_times_of_the_well_are_those_of_its_frames(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("dimensions").attrs["spatial_dims"] = ["y", "x"]
        file["t0_fields/u"], file["dimensions/time"] = ARRAY[:, :, 0], np.arange(9.0)
    with pytest.raises(ValueError, match=r"dimensions/time is \(9,\); expected \(6,\) or \(20, 6\)"):
        find_fields(tmp_path / "a.h5")


def test_names_of_variables_differ(tmp_path: Path) -> None:
    for names in (["a", "a"], ["a", "a", "b"], ["a"]):
        np.savez(tmp_path / "a.npz", fields=ARRAY, variables=names)
        with pytest.raises(ValueError, match=rf"has the variables {', '.join(names)} and 2 channels: expected a name"):
            find_fields(tmp_path / "a.npz")


@pytest.mark.parametrize("each", [False, True])
def test_times_of_pdearena(tmp_path: Path, each: bool) -> None:
    """`t` of a file, or of each of its trajectories: gaps, and the step where `dt` does not say it."""
    times = np.array([0, 0.5, 1, 4, 4.5, 5])
    with h5py.File(tmp_path / "flow.h5", "w") as file:
        for split, rows in (("train", ARRAY[:18]), ("valid", ARRAY[18:])):
            file[f"{split}/u"], own = rows[:, :, 0], np.tile(times, (len(rows), 1))
            own[0] = 0.5 * np.arange(6)
            file[f"{split}/t"] = own if each else times
    found = find_fields(tmp_path / "flow.h5")[1]
    assert found.step == 0.5
    assert "has 1 gap(s), which no window spans: frames are 0.5 apart, and frames 2 and 3 are 3" in found.note
    assert [fields.timing_of(one).breaks for one in found.splits["train"][:2]] == [() if each else (3,), (3,)]


@pytest.mark.parametrize(
    ("times", "step", "breaks"),
    [
        (np.cumsum([0, *[6, 18] * 20]), 6, 20),  # frames at 0 and 6 o'clock
        (np.cumsum([0, *[6, 18] * 19, 6]), 6, 19),
        (np.cumsum([0, *[18, 6] * 19, 18]), 6, 20),  # most steps are gaps
        (np.cumsum([0, *[1, 10] * 20]), 1, 20),
        (np.cumsum([0, *[10] * 20, 1, *[10] * 20]), 10, 1),  # a step that is too short
        ([datetime(2001, 1, 1 + day) for day in (0, 1, 2, 6, 7)], 24, 1),
        ([0, 0, 1, 2], "comes twice", 0),
        ([0, 1, np.nan, 3], "one is missing", 0),
        (np.array(["2001-01-01", "NaT", "2001-01-03"], "M8[ns]"), "one is missing", 0),
    ],
)
def test_the_usual_step_and_gaps(times: Any, step: float | str, breaks: int) -> None:
    if isinstance(step, str):
        with pytest.raises(ValueError, match=step):
            fields._timing(Path("made"), np.array(times))
    else:
        found = fields._timing(Path("made"), np.array(times))
        assert (found.step, len(found.breaks)) == (step, breaks)


STRINGS = np.array([f"2001-01-{day:02}" for day in range(1, 7)])
BAD_TIMES = [
    (STRINGS, r"its times are .*, the first is .*2001-01-01.*; expected numbers or dates"),
    (np.arange(5.0), r"is \(5,\); expected \(6,\) or \(20, 6\)"),
    (np.zeros((6, 2)), r"is \(6, 2\); expected"),
    (np.arange(6) > 2, "its times are bool, the first is 'False'; expected numbers or dates"),
    (np.arange(6) * 1j, "its times are complex128, .*expected numbers or dates"),
]


@pytest.mark.parametrize("layout", ["arena", "well"])
@pytest.mark.parametrize(("times", "words"), BAD_TIMES)
def test_times_of_hdf5_that_are_not_understood_are_refused(
    tmp_path: Path, times: np.ndarray, words: str, layout: str
) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        place = "train/t" if layout == "arena" else "dimensions/time"
        file[place] = times.astype(h5py.string_dtype()) if times.dtype.kind == "U" else times
        file["train/u" if layout == "arena" else "t0_fields/u"] = ARRAY[:, :, 0]
        if layout == "well":
            file["dimensions"].attrs["spatial_dims"] = ["y", "x"]
    with pytest.raises(ValueError, match=words):
        find_fields(tmp_path / "data.h5")


@pytest.mark.parametrize("bad", [np.zeros(20), np.full(20, np.nan), -1.0, b"day"])
def test_steps_of_pdearena_are_above_0(tmp_path: Path, bad: Any) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["train/u"], file["train/dt"] = ARRAY[:, :, 0], bad
    with pytest.raises(ValueError, match=r"train/dt is .*expected numbers above 0, the time between frames"):
        find_fields(tmp_path / "data.h5")


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (("time", STRINGS), "expected numbers or dates"),
        (("time", np.array(list(STRINGS), object)), "expected numbers or dates"),
        (("time", np.arange(6) > 2), "expected numbers or dates"),
        ((("time", "x"), np.zeros((6, 5))), r"valid_time is over \('time', 'x'\); expected times over time alone"),
    ],
)
def test_times_of_netcdf_that_are_not_understood_are_refused(tmp_path: Path, times: Any, words: str) -> None:
    name = "valid_time" if len(times[1].shape) == 2 else "time"
    data = xarray.Dataset({"u": (("time", "y", "x"), ARRAY[0, :, 0])}, {name: times})
    data.to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=words):
        find_fields(tmp_path / "data.nc")


def test_times_that_say_nothing_are_noted(tmp_path: Path) -> None:
    for name, times, words in (
        ("same", np.full(6, 3.0), "its times are all the same, so that steps between frames and gaps are not known"),
        ("one", np.array(3.0), "train/t is one number, and says nothing of 6 frames"),
    ):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["train/u"], file["train/t"] = ARRAY[:, :, 0], times
        source = find_fields(tmp_path / f"{name}.h5")[1]
        assert (source.note, source.step) == (words, None)


def test_times_of_netcdf_under_other_names(tmp_path: Path) -> None:
    hours = np.datetime64("2020-01-01", "ns") + np.array([0, 6, 12, 18, 48, 54]) * np.timedelta64(1, "h")
    frames = ARRAY[0, :, 0]
    each = np.stack([hours, hours + np.timedelta64(1, "h")])
    for name, data in {
        "era5": xarray.Dataset({"u": (("valid_time", "y", "x"), frames)}, {"valid_time": hours}),
        "dates": xarray.Dataset({"u": (("date", "y", "x"), frames)}, {"date": hours}),
        "named": xarray.Dataset(
            {"u": (("when", "y", "x"), frames)}, {"when": ("when", [0, 6, 12, 18, 48, 54], {"standard_name": "time"})}
        ),
        "beside": xarray.Dataset({"u": (("frame", "y", "x"), frames)}, {"valid_time": ("frame", hours)}),
        "each": xarray.Dataset(
            {"u": (("sample", "time", "y", "x"), ARRAY[:2, :, 0])}, {"valid_time": (("sample", "time"), each)}
        ),
    }.items():  # fmt: skip
        data.to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
        source = find_fields(tmp_path / f"{name}.nc")[1]
        assert (source.step, source.variables) == (6, ("u",))
        assert [fields.timing_of(one).breaks for one in source.trajectories] == [(4,)] * len(source.trajectories)


@pytest.mark.parametrize("format", [2, 3])
@pytest.mark.parametrize("listed", ["abcd", "dcba"])
def test_variables_of_a_store_have_one_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: int, listed: str
) -> None:
    """zarr lists the arrays of a store as its tasks end."""
    coordinates = {"x": np.arange(5.0), "q": ("y", np.arange(3.0)), "p": ("y", np.arange(3.0))}
    arrays = {name: (("time", "y", "x"), np.full((6, 3, 5), i, np.float32)) for i, name in enumerate(listed)}
    data = xarray.Dataset(arrays, coordinates)
    data.to_zarr(tmp_path / "data.zarr", zarr_format=format, consolidated=False)
    monkeypatch.setattr(xarray, "open_dataset", lambda *place, **how: data)
    source = find_fields(tmp_path / "data.zarr")[1]
    assert source.variables == ("a", "b", "c", "d")
    assert source.trajectories[0][0:1][0, :, 0, 0].tolist() == [listed.index(name) for name in "abcd"]
    assert [each.name for each in source.metadata.coordinates] == ["p", "q", "x"]


@pytest.mark.parametrize("kind", ["bounds", "climatology"])
def test_bounds_of_coordinates_are_left_out(tmp_path: Path, kind: str) -> None:
    data = xarray.Dataset({"u": (("time", "y", "x"), ARRAY[0, :, 0])}, {"time": np.arange(6.0)})
    data["cells"] = ("time", "nv"), np.zeros((6, 2))
    data["time"].attrs[kind] = "cells"
    data.to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    source = find_fields(tmp_path / "data.nc")[1]
    assert (source.variables, source.note) == (("u",), "left out, as they bound coordinates: cells")
    del data["time"].attrs[kind]
    data.to_netcdf(tmp_path / "unnamed.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"u \{'time': 6, 'y': 3, 'x': 5\}; cells .*drop those that are no fields"):
        find_fields(tmp_path / "unnamed.nc")


def test_a_calendar_that_cannot_be_read_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = {"units": "days since 0001-01-01", "calendar": "noleap"}
    data = xarray.Dataset({"u": (("time", "y", "x"), ARRAY[0, :, 0])}, {"time": ("time", np.arange(6.0), units)})
    data.to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    monkeypatch.setitem(sys.modules, "cftime", None)
    with pytest.raises(
        ValueError, match=r"data.nc: its times cannot be read .*noleap.*: .*pip install cftime"
    ) as error:
        find_fields(tmp_path / "data.nc")
    assert "decode_times" not in str(error.value)


def test_trajectories_of_the_well_have_gaps_of_their_own(tmp_path: Path) -> None:
    times = np.tile(np.arange(6.0), (20, 1))
    times[1, 3:] += 10
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_group("dimensions").attrs["spatial_dims"] = ["x", "y"]
        file["dimensions/time"], file["t0_fields/u"] = times, ARRAY[:, :, 0]
    train = read_fields(tmp_path / "data.h5", "train")
    assert train.axes == ("x", "y")
    windows = train.windows(4)
    assert [int((windows[:, 0] == i).sum()) for i in range(3)] == [3, 0, 3]


def test_a_file_without_the_dimensions_of_the_well(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["t0_fields/u"] = ARRAY[:, :, 0]
    with pytest.raises(ValueError, match="no `dimensions` with `spatial_dims`"):
        read_fields(tmp_path / "data.h5", "train")


def test_the_step_of_an_archive_is_one_number(tmp_path: Path) -> None:
    for step in (0.5, [0.5]):
        np.savez(tmp_path / "a.npz", fields=ARRAY, step=step)
        assert read_fields(tmp_path / "a.npz", "train").step == 0.5
    for bad in ([1.0, 2.0], -1.0, "day"):
        np.savez(tmp_path / "a.npz", fields=ARRAY, step=bad)
        with pytest.raises(ValueError, match="expected a number above 0, the time between frames"):
            read_fields(tmp_path / "a.npz", "train")


def test_what_float32_would_round_away_is_refused(tmp_path: Path) -> None:
    wave = 0.3 * np.sin(np.arange(20 * 6 * 16.0)).reshape(20, 6, 1, 16)
    for name, array, refused in (
        ("large", 1e7 + wave, True),
        ("near", 1e4 + wave, False),  # rounded by 0.0003, of a deviation of 0.2
        ("single", (1e7 + wave).astype(np.float32), False),  # nothing is lost by reading it
        ("constant", np.full_like(wave, 0.1) + 1e-17 * wave, False),
        ("noise", 0.1 + np.spacing(0.1) * np.round(3 * wave), False),  # constant but for rounding
    ):
        np.save(tmp_path / f"{name}.npy", array)
        if refused:
            with pytest.raises(ValueError, match=r"u has the mean 1e\+07 and the standard deviation 0\.21.* 1 apart"):
                read_fields(tmp_path / f"{name}.npy", "train")
        else:
            read_fields(tmp_path / f"{name}.npy", "train")


def test_dates_are_in_hours_and_three_dimensions_are_refused(tmp_path: Path) -> None:
    times = np.datetime64("2020-01-01", "ns") + np.arange(6) * np.timedelta64(12, "h")
    data = xarray.Dataset({"t2m": (("time", "lat", "lon"), ARRAY[0, :, 0])}, coords={"time": times})
    data.to_netcdf(tmp_path / "era.nc", engine="h5netcdf")
    assert read_fields(tmp_path / "era.nc", "train").step == 12
    xarray.Dataset({"w": (("time", "z", "y", "x"), ARRAY[0])}).to_netcdf(tmp_path / "deep.nc", engine="h5netcdf")
    with pytest.raises(
        ValueError, match=r"have the dimensions \{'time': 6, 'z': 2.*trajectories are called trajectory"
    ):
        read_fields(tmp_path / "deep.nc", "train")
    xarray.Dataset({"w": (("when", "x"), ARRAY[0, :, 0, 0])}).to_netcdf(tmp_path / "no.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="none with a dimension called time"):
        read_fields(tmp_path / "no.nc", "train")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_numbers_that_are_not_finite_are_refused_with_their_place(tmp_path: Path, bad: float) -> None:
    array = ARRAY.astype(np.float64)
    array[3, 4, 1, 2, 2] = bad
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(
        ValueError, match=r"trajectory 3, frame 4, channel 1 \(u1\) holds (nan|inf).*fill what is missing"
    ):
        read_fields(tmp_path / "bad.npy", "train")
    np.save(tmp_path / "held.npy", np.roll(array, -4, 0))
    with pytest.raises(ValueError, match=r"held/test: trajectory 19, frame 4, channel 1"):
        read_fields(tmp_path / "held.npy", "test")  # held/train is of the first 18
    np.save(tmp_path / "one.npy", np.concatenate(np.roll(array, -4, 0))[None])
    with pytest.raises(ValueError, match=r"one/test: trajectory 0, frame 118, channel 1"):
        read_fields(tmp_path / "one.npy", "test")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (ARRAY[0, 0, 0], r"is float32 \(3, 5\); expected numbers \(trajectory, time, channel, space\)"),
        (ARRAY[0, 0], r"is float32 \(2, 3, 5\).* give array\[None\], without channels array\[None, :, None\]"),
        (ARRAY[:0], r"is float32 \(0, 6, 2, 3, 5\); expected"),
        (ARRAY.astype(np.complex64), r"is complex64 .* expected numbers"),
        (ARRAY[:, :1], r"trajectory 0 is \(time, channel, y, x\) = \(1, 2, 3, 5\); expected two frames or more"),
    ],
)
def test_other_shapes_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(ValueError, match=message):
        read_fields(tmp_path / "bad.npy", "train")


def test_what_is_no_source_of_fields(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((4, 8, 8), np.uint8))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("images.npz", "text.npz", "absent.npz", "cifar10", "."):
        assert not is_fields(tmp_path / name)
    assert not is_fields("fashion-mnist")
    with pytest.raises(ValueError, match="has the arrays images; expected fields"):
        read_fields(tmp_path / "images.npz", "train")
    with pytest.raises(FileNotFoundError, match=r"there are no fields .*kuramoto-sivashinsky or kolmogorov"):
        read_fields(tmp_path / "absent.npz", "train")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"is no source of fields; expected a file that ends with \.npz"):
        read_fields(tmp_path / "notes.txt", "train")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["something"] = np.zeros(3)
    with pytest.raises(ValueError, match="holds something; expected the groups train"):
        read_fields(tmp_path / "other.h5", "train")
    (tmp_path / "broken.h5").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"broken\.h5 cannot be read as HDF5"):
        read_fields(tmp_path / "broken.h5", "train")
    with pytest.raises(ValueError, match=r"expected \.npz or \.nc"):
        write_fields(tmp_path / "made.txt", ARRAY, ("a", "b"))
    for names in (("a", "time"), ("a", "b/s")):
        with pytest.raises(ValueError, match=f"no variable of NetCDF can be called {names[1]}"):
            write_fields(tmp_path / "made.nc", ARRAY, names)
    with pytest.raises(ValueError, match="with 3 variables"):
        write_fields(tmp_path / "made.npz", ARRAY, ("a", "b", "c"))
    with pytest.raises(ValueError, match="is there already: name a new file"):
        write_fields(tmp_path / "images.npz", ARRAY, ("a", "b"))


@pytest.mark.parametrize("kind", ["nc", "h5"])
def test_a_missing_package_is_an_error_that_names_the_extra(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, usual = written(tmp_path, kind)[0], builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name in ("h5py", "xarray"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return usual(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"dualrate\[forecast\]\""):
        read_fields(path, "train")


def test_a_simulation_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path))
    small = KuramotoSivashinsky(burn_in=1.0)
    monkeypatch.setitem(SIMULATIONS, "kuramoto-sivashinsky", (small, 10, 3))
    seen: list[str] = []
    train = read_fields("kuramoto-sivashinsky", "train", progress=lambda done, total, what: seen.append(what))
    assert "simulating" in seen
    seen.clear()
    test = read_fields("kuramoto-sivashinsky", "test", progress=lambda done, total, what: seen.append(what))
    assert set(seen) == {"reading fields"}
    np.testing.assert_array_equal(np.concatenate([all_of(train), all_of(test)]), small.simulate(10, 3, 0))
    assert (train.variables, train.step, train.shape) == (("u",), 1.0, (1, 1, 64))


def test_the_command_makes_a_file_of_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "made.npz"
    command = ["data", "simulate", "kuramoto-sivashinsky", "--trajectories", "3", "--frames", "4", "--seed", "7"]
    assert call(monkeypatch, *command, "--out", file, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["fields"], told["step"]) == ("3x4x1x1x64", 1.0)
    made = read_fields(file, "train")
    np.testing.assert_array_equal(all_of(made), KuramotoSivashinsky().simulate(2, 4, 7))
    for out, message in ((file, "is there already"), (tmp_path / "made.txt", "expected .npz or .nc")):
        assert call(monkeypatch, *command, "--out", out) == 2
        assert message in capsys.readouterr().err


def test_the_command_makes_every_simulation() -> None:
    assert set(get_args(get_type_hints(Simulate)["system"])) == SIMULATIONS.keys()
