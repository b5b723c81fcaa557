"""Fields from every kind of source on small made files: shapes, splits, statistics, and what is refused."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import h5py
import numpy as np
import pytest
import torch
import xarray
from cli.command import call
from forecasts.made_fields import ARRAY, LINE, all_of
from forecasts.made_globes import experiment, saved, waves
from hypothesis import given
from hypothesis import strategies as st

from dualrate.data.folders import by_number
from dualrate.data.loader import Augment, Batches
from dualrate.diffusion.random import Draws
from dualrate.forecasts.command import Simulate
from dualrate.forecasts.fields import Fields, Statistics, read_fields, survey
from dualrate.forecasts.netcdf import write_fields
from dualrate.forecasts.simulations import SIMULATIONS, KuramotoSivashinsky
from dualrate.forecasts.sources import find_fields, is_fields


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
        patch.setattr("dualrate.forecasts.statistics.AT_A_TIME", 3 * array[0, 0].size)  # in parts of three frames
        _, found = survey("", list(array), tuple("abc"[:channels]))
    wide, axes = array.astype(np.float64), (0, 1, 3, 4)
    np.testing.assert_allclose(found.mean, wide.mean(axes), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.std, wide.std(axes), rtol=1e-9)
    np.testing.assert_allclose(found.difference, np.diff(wide, axis=1).std(axes), rtol=1e-9)


@pytest.mark.parametrize("kind", ["npz", "npy", "nc", "zarr", "h5"])
def test_the_case_of_an_ending_does_not_count(tmp_path: Path, kind: str) -> None:
    path, *_ = written(tmp_path, kind)
    before = all_of(read_fields(path, "train"))
    other = path.rename(path.with_suffix(f".{kind.upper()}"))
    assert is_fields(other)
    np.testing.assert_array_equal(all_of(read_fields(other, "train")), before)


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
    with pytest.raises(ValueError, match="one trajectory, of length 3; expected 4 or more"):
        read_fields(tmp_path / "short.npy", "train")


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


def test_names_of_variables_differ(tmp_path: Path) -> None:
    for names in (["a", "a"], ["a", "a", "b"], ["a"]):
        np.savez(tmp_path / "a.npz", fields=ARRAY, variables=names)
        with pytest.raises(ValueError, match=rf"has the variables {', '.join(names)}: expected 2, a name"):
            find_fields(tmp_path / "a.npz")


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


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_numbers_that_are_not_finite_are_refused_with_their_place(tmp_path: Path, bad: float) -> None:
    array = ARRAY.astype(np.float64)
    array[3, 4, 1, 2, 2] = bad
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(ValueError, match=r"trajectory 3, frame 4, channel 1 \(u1\) holds (nan|inf).*fill them"):
        read_fields(tmp_path / "bad.npy", "train")
    np.save(tmp_path / "held.npy", np.roll(array, -4, 0))
    with pytest.raises(ValueError, match=r"held/test: trajectory 19, frame 4, channel 1"):
        read_fields(tmp_path / "held.npy", "test")  # held/train is of the first 18
    np.save(tmp_path / "one.npy", np.concatenate(np.roll(array, -4, 0))[None])
    with pytest.raises(ValueError, match=r"one/test: trajectory 0, frame 118, channel 1"):
        read_fields(tmp_path / "one.npy", "test")


@pytest.mark.parametrize("kind", ["as it is", "south first", "curved"])
def test_a_missing_number_is_named_by_its_date_and_coordinates(tmp_path: Path, kind: str) -> None:
    data = waves("ts")
    data.s[7, 2, 3:5] = np.nan
    place = "2020-01-02T18:00, lat 33.75, lon 67.5"
    if kind == "south first":
        data = data.isel(lat=slice(None, None, -1))
    if kind == "curved":
        lat, lon = xarray.broadcast(data.lat, data.lon)
        data = data.rename(lat="y", lon="x").drop_vars(["y", "x"])
        data = data.assign_coords(lat=(("y", "x"), lat.values + 1), lon=(("y", "x"), lon.values))
        place = "2020-01-02T18:00, lat 34.75, lon 67.5"
    words = rf"frame 7, channel 1 \(s\) holds nan at {place} \(in these frames not finite in float32: 2\).*--mask auto"
    with pytest.raises(ValueError, match=words):
        experiment(saved(data, tmp_path / "a.nc"))


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
    with pytest.raises(
        FileNotFoundError, match=r"no such file or folder of fields.*kuramoto-sivashinsky or kolmogorov"
    ):
        read_fields(tmp_path / "absent.npz", "train")
    np.savez(tmp_path / "with-times.npz", fields=ARRAY, variables=["a", "b"], time=np.arange(6), lat=np.zeros(3))
    assert "its arrays time, lat are not read" in find_fields(tmp_path / "with-times.npz")[1].note
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
    with pytest.raises(ValueError, match=r"expected \.npz, \.nc or \.zarr"):
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


def test_a_folder_of_two_kinds_of_files_is_refused_with_a_pattern(tmp_path: Path) -> None:
    for name in ("a.h5", "b.nc"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds \S*a\.h5 and \S*b\.nc: name one kind, such as '.*/\*\.nc'"):
        read_fields(tmp_path, "train")


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
    for out, message in ((file, "is there already"), (tmp_path / "made.txt", "expected .npz, .nc or .zarr")):
        assert call(monkeypatch, *command, "--out", out) == 2
        assert message in capsys.readouterr().err


def test_the_command_makes_every_simulation_and_the_options_name_no_other() -> None:
    assert set(get_args(get_type_hints(Simulate)["system"])) == SIMULATIONS.keys()
    options = json.loads(Path("src/dualrate/options/options.json").read_text())
    text = json.dumps(options).split("of such files, ")[1].split(". Clips")[0]
    assert set(text.replace(" or ", ", ").split(", ")) == SIMULATIONS.keys()


def test_parts_of_a_mapped_array_stay_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.random.default_rng(0).normal(size=(1, 40, 1, 8)).astype(np.float32))
    (trajectory,) = read_fields(tmp_path / "one.npy", "test").trajectories
    assert isinstance(trajectory, np.memmap)
    assert trajectory.shape == (4, 1, 1, 8)
