"""Fields in HDF5 of PDEArena and The Well: splits, times, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from forecasts.made_fields import ARRAY, LINE, STRINGS, all_of

from dualrate.forecasts.fields import Statistics, read_fields
from dualrate.forecasts.sources import find_fields, is_fields
from dualrate.forecasts.trajectories import FieldSource, timing_of


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


def test_fields_of_the_well_that_never_change_are_static(tmp_path: Path) -> None:
    write_well(tmp_path / "a.hdf5")
    floor = np.arange(18.0).reshape(3, 6)
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["t0_fields"].attrs["field_names"] = np.array(["density", "still", "floor"], h5py.string_dtype())
        file["t0_fields/floor"] = floor
        file["t0_fields/floor"].attrs["sample_varying"] = file["t0_fields/floor"].attrs["time_varying"] = False
    fields = find_fields(tmp_path / "a.hdf5")[1]
    assert [*fields.statics] == ["floor"]  # the others differ from trajectory to trajectory, or in time
    np.testing.assert_array_equal(fields.statics["floor"](), floor)


def test_static_fields_of_which_pieces_are_missing_are_refused_when_they_are_read(tmp_path: Path) -> None:
    write_well(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["t0_fields"].attrs["field_names"] = np.array(["density", "floor"], h5py.string_dtype())
        file["t0_fields"].create_dataset("floor", (3, 6), "f4", chunks=(1, 6))[:2] = 1.0
        file["t0_fields/floor"].attrs["sample_varying"] = file["t0_fields/floor"].attrs["time_varying"] = False
    fields = find_fields(tmp_path / "a.hdf5")[1]
    with pytest.raises(ValueError, match=r"floor: 1 of 3 piece\(s\).*are not there"):
        fields.statics["floor"]()


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
    with pytest.raises(ValueError, match=r"has the channels u; the statistics are of 2"):
        read_fields(alone, "test", Statistics((1.0, 1.0), (2.0, 1.0), (3.0, 1.0)))


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
    for name in ("empty", "empty.h5", "empty.nc"):
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match=rf"{name} holds no files of fields; .* clips:FOLDER"):
            find_fields(tmp_path / name)
    for split, axes in (("train", "xy"), ("test", "yx")):
        (tmp_path / "axes" / split).mkdir(parents=True)
        with h5py.File(tmp_path / "axes" / split / "a.h5", "w") as file:
            file.create_group("dimensions").attrs["spatial_dims"] = list(axes)
            file["t0_fields/u"] = ARRAY[:, :, 0]
    with pytest.raises(ValueError, match=r"has the axes of space \('y', 'x'\), and .* has .*\('x', 'y'\)"):
        find_fields(tmp_path / "axes")


def test_times_of_the_well_are_those_of_its_frames(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("dimensions").attrs["spatial_dims"] = ["y", "x"]
        file["t0_fields/u"], file["dimensions/time"] = ARRAY[:, :, 0], np.arange(9.0)
    with pytest.raises(ValueError, match=r"dimensions/time is \(9,\); expected \(6,\) or \(20, 6\)"):
        find_fields(tmp_path / "a.h5")


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
    assert [timing_of(one).breaks for one in found.splits["train"][:2]] == [() if each else (3,), (3,)]


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


def test_times_that_say_nothing_are_noted(tmp_path: Path) -> None:
    for name, times, words in (
        ("same", np.full(6, 3.0), "its times are all the same, so that steps between frames and gaps are not known"),
        ("one", np.array(3.0), "train/t is one number, and says nothing of each frame"),
    ):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["train/u"], file["train/t"] = ARRAY[:, :, 0], times
        source = find_fields(tmp_path / f"{name}.h5")[1]
        assert (source.note, source.step) == (words, None)


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


@pytest.mark.parametrize("names", [("tensor",), ("Vx", "density")])
@pytest.mark.parametrize("space", [(16,), (8, 6)])
def test_arrays_of_pdebench(tmp_path: Path, names: tuple[str, ...], space: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(len(names), 5, 7, *space)).astype(np.float32)
    with h5py.File(tmp_path / "a_Train.hdf5", "w") as file:
        for name, values in zip(names, x, strict=True):
            file[name] = values
        file["t-coordinate"] = 0.05 * np.arange(8)  # of the ends of steps, one more than frames
        file["x-coordinate"] = np.linspace(0, 1, space[0])
        file["nu"] = np.zeros((5, 16))
    source = find_fields(tmp_path / "a_Train.hdf5")[1]
    assert (source.variables, source.axes, source.step) == (names, ("x", "y")[: len(space)], pytest.approx(0.05))
    assert [each.name for each in source.metadata.coordinates] == ["x-coordinate"]
    np.testing.assert_allclose(timing_of(source.trajectories[3]).times, 0.05 * np.arange(7))
    assert len(source.trajectories) == 5
    np.testing.assert_array_equal(
        source.trajectories[3][2:6], x[:, 3, 2:6].swapaxes(0, 1).reshape(4, len(names), -1, space[-1])
    )


@pytest.mark.parametrize("space", [(16,), (8, 6)])
def test_groups_of_pdebench_are_trajectories(tmp_path: Path, space: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(4, 7, *space, 2)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number, values in enumerate(x):
            file[f"{number:04}/data"], file[f"{number:04}/grid/t"] = values, np.linspace(0, 3, 7)
            file[f"{number:04}/grid/x"] = np.arange(space[0])
    source = find_fields(tmp_path / "a.h5")[1]
    assert (source.variables, source.step, len(source.trajectories)) == (("u0", "u1"), 0.5, 4)
    expected = np.moveaxis(x[2, 1:4], -1, 1).reshape(3, 2, -1, space[-1])
    np.testing.assert_array_equal(source.trajectories[2][1:4], expected)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        for number in (3, 4):
            file[f"{number}/data"], file[f"{number}/grid/t"] = np.zeros((7, number, 2)), np.arange(7)
    with pytest.raises(ValueError, match=r"3/data \(7, 3, 2\), /4/data \(7, 4, 2\); expected one shape"):
        find_fields(tmp_path / "b.h5")


def test_times_of_pdebench_are_those_of_its_frames(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["tensor"], file["t-coordinate"] = LINE[:, :, 0], np.arange(2.0 * LINE.shape[1])
    with pytest.raises(ValueError, match=r"t-coordinate is \(12,\); expected \(6,\) or \(20, 6\)"):
        find_fields(tmp_path / "a.h5")


def test_groups_of_pdebench_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    def source(**arrays: Any) -> FieldSource:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for number in range(2):
                file[f"{number}/data"], file[f"{number}/grid/x"] = np.zeros((7, 4, 2)), number + np.arange(4.0)
            for place, values in arrays.items():
                file[place] = values
        return find_fields(tmp_path / "a.h5")[1]

    times = {"0/grid/t": np.arange(7.0), "1/grid/t": 2 * np.arange(8.0)}
    assert source(**times).metadata.coordinates == ()  # others in each
    assert [timing_of(each).step for each in source(**times).trajectories] == [1, 2]
    for more, words in (
        ({"1/grid/t": np.arange(5.0)}, r"/1/grid/t is \(5,\); expected \(7,\)"),
        ({"2/data": np.zeros((7, 4, 2))}, "/2/grid/t is no array"),  # else it would be left out
        ({"!/data": 1.0}, r"/!/data \(\).*; expected one shape"),
    ):
        with pytest.raises(ValueError, match=words):
            source(**times | more)


def test_volumes_of_pdebench_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["Vz"], file["t-coordinate"] = np.zeros((2, 3, 4, 4, 4)), np.arange(3.0)
    with pytest.raises(ValueError, match=r"Vz \(2, 3, 4, 4, 4\); expected one shape, \(trajectory, time, x\)"):
        find_fields(tmp_path / "a.h5")


def test_incompressible_flow_of_pdebench(tmp_path: Path) -> None:
    draw = np.random.default_rng(0).normal
    velocity, particles = draw(size=(3, 5, 4, 6, 2)), draw(size=(3, 5, 4, 6, 1))
    with h5py.File(tmp_path / "ns_incom.h5", "w") as file:
        file["velocity"], file["particles"], file["force"] = velocity, particles, draw(size=(3, 4, 6, 2))
        file["t"] = np.tile(0.25 * np.arange(5), (3, 1))
    fields = find_fields(tmp_path / "ns_incom.h5")[1]
    assert (fields.variables, fields.step) == (("velocity_x", "velocity_y", "particles"), 0.25)
    assert (fields.axes, fields.note) == (("x", "y"), "left out, as it has no times: force")
    whole = np.moveaxis(np.concatenate([velocity, particles], -1), -1, 2)
    np.testing.assert_array_equal(np.stack([each[0:5] for each in fields.trajectories]), whole)
    with h5py.File(tmp_path / "volume.h5", "w") as file:
        file["velocity"], file["t"] = np.zeros((3, 5, 4, 4, 6, 3)), np.zeros((3, 5))
    with pytest.raises(ValueError, match=r"velocity \(3, 5, 4, 4, 6, 3\); expected .* `velocity` \(trajectory"):
        find_fields(tmp_path / "volume.h5")
    with h5py.File(tmp_path / "number.h5", "w") as file:
        file["velocity"], file["t"] = 1.0, np.zeros(3)
    with pytest.raises(ValueError, match=r"velocity \(\); expected one shape"):
        find_fields(tmp_path / "number.h5")
