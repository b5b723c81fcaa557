"""Where forecasts start: in held-out data, or at what a file of one's own says, which is checked."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray
from forecasts.made_forecasts import CHANNELS, WIDTH, drawer_of, model_of, rolled, written
from forecasts.made_globes import saved, untrained, waves
from runs.made import saved_random
from torch import Tensor

from dualrate.denoisers.denoiser import Denoiser, given_of
from dualrate.diffusion.context import Cond, Context, Reuse
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneConditional
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.fields import read_fields
from dualrate.forecasts.folder import write_forecast
from dualrate.forecasts.rolling import RollingConfig
from dualrate.forecasts.rolling_process import Rolling
from dualrate.forecasts.simulations import SIMULATIONS, KuramotoSivashinsky
from dualrate.forecasts.start_checks import have_names
from dualrate.forecasts.starts import held_out_starts, read_starts
from dualrate.methods.denoising import DenoisingConfig
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs.store import load
from dualrate.training.config import FitConfig


def test_starts_are_those_whose_truth_is_known_and_no_more_than_there_are(model):
    assert (len(held_out_starts(model, 4)), held_out_starts(model, 4).known) == (2 * 2, 4)
    assert (len(held_out_starts(model, 99)), held_out_starts(model, 99).known) == (2 * 2, 4)
    with pytest.raises(
        ValueError, match=r"has 4 start.* of which 4 of the 4 frame.* got 5 as .* count\): .* frames 3 at most"
    ):
        held_out_starts(model, 4, 5)


def test_of_trajectories_of_other_lengths_those_of_half_of_the_frames_are_starts(tmp_path):
    """Held out: of 12, 5, 4, 8 and 2 frames; a start and a frame need 2."""
    walk = np.random.default_rng(0).normal(size=(31, CHANNELS, 1, WIDTH))
    for split, lengths in (("train", [30]), ("test", [12, 5, 4, 8, 2])):
        (tmp_path / split).mkdir()
        for i, length in enumerate(lengths):
            with h5py.File(tmp_path / split / f"{i}.h5", "w") as file:
                file.create_group("dimensions").attrs["spatial_dims"] = ["y", "x"]
                file["t0_fields/a"], file["t0_fields/b"] = walk[None, :length, 0], walk[None, :length, 1]
    starts = held_out_starts(model_of(tmp_path, tmp_path / "run"), 100)
    assert starts.known == 7  # those of 12 and 8 frames hold half of 31
    assert starts.source.endswith("/test, without 3 of its 5 pieces, too short")
    assert sorted(set(starts.places[:, 0].tolist())) == [0, 3]
    assert held_out_starts(model_of(tmp_path, tmp_path / "wide", frames=9), 100).known == 9  # a whole window


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".NPY", ".NPZ"])
def test_starts_from_a_file_are_its_latest_time_steps(model, tmp_path, suffix):
    array, path = np.random.default_rng(0).normal(size=(4, 7, CHANNELS, WIDTH)).astype(np.float32), tmp_path / suffix
    path = tmp_path / f"starts{suffix}"
    for own in (array, array[1], array[:, :, :, None]):
        with path.open("wb") as opened:
            np.save(opened, own) if suffix.lower() == ".npy" else np.savez(opened, mine=own)
        expected = array[1:2] if own.ndim == 3 else array
        np.testing.assert_array_equal(read_starts(path, model).past, expected[:, [-3, -1], :, None])


def test_starts_that_do_not_fit_are_refused_with_what_was_expected(model, tmp_path):
    good = np.zeros((4, 7, CHANNELS, WIDTH), np.float32)
    bad = good.copy()
    bad[2, 6, 1, 3] = np.nan
    for array, words in (
        (good[..., :8], r"\(4, 7, 2, 8\).*\(time, 2, 16\) or \(start, time, 2, 16\)"),
        (good[:, :2], r"4 start\(s\) of 2 time step\(s\).*starts from 3: 2 frame\(s\), 2"),
        (
            bad,
            r"start 2, frame 1, channel 1 \(u1\) holds nan \(in these frames not finite in float32: 1\)",
        ),
    ):
        np.save(tmp_path / "starts.npy", array)
        with pytest.raises(ValueError, match=words):
            read_starts(tmp_path / "starts.npy", model)
    named = replace(model.experiment.condition, variables=("density", "speed"))
    other = replace(model, experiment=replace(model.experiment, condition=named))
    np.savez(tmp_path / "starts.npz", fields=good, variables=["speed", "rain"])
    with pytest.raises(ValueError, match="variables speed, rain, and ahead was trained on density, speed: bring them"):
        read_starts(tmp_path / "starts.npz", other)
    np.savez(tmp_path / "starts.npz", one=good, other=good)
    with pytest.raises(ValueError, match="has the arrays one, other: name the one to start from `fields`"):
        read_starts(tmp_path / "starts.npz", model)
    with pytest.raises(ValueError, match=r"starts are \(N, 2, 2, 1, 16\), got \(4, 7, 2, 16\)"):
        rolled(drawer_of(model), good, 4)
    with pytest.raises(ValueError, match="at most 1,048,576 starts"):
        written(model, tmp_path / "out", seed=2**20 - 1)
    assert not (tmp_path / "out").exists()


def test_four_axes_of_a_field_of_one_dimension(source, model, tmp_path):
    """(time, channel, 1, x) as a forecast is written; of one channel and one past frame they may be starts, too."""
    path, random = tmp_path / "mine.npy", np.random.default_rng(0)
    np.save(path, random.normal(size=(7, CHANNELS, 1, WIDTH)).astype(np.float32))
    np.testing.assert_array_equal(read_starts(path, model).past, np.load(path)[None, [-3, -1]])
    fields = np.load(source)["fields"][:, :, :1]
    np.savez(tmp_path / "one.npz", fields=fields)
    one = model_of(tmp_path / "one.npz", tmp_path / "run", channels=1)
    for array in (fields[0], fields[:, :, :, None], fields[:1, :1]):
        np.save(path, array)
        assert len(read_starts(path, one)) == (20 if array.ndim == 5 else 1)
    np.save(path, fields[0][:, :, None])
    with pytest.raises(ValueError, match=r"12 starts of one time step, or 12 time steps of one start. Make it"):
        read_starts(path, one)


def test_complex_starts_and_names_of_other_numbers_are_refused(model, tmp_path):
    good = np.zeros((4, 7, CHANNELS, WIDTH), np.complex64)
    np.save(tmp_path / "starts.npy", good)
    with pytest.raises(ValueError, match=r"starts.npy holds complex64; expected real numbers"):
        read_starts(tmp_path / "starts.npy", model)
    np.savez(tmp_path / "starts.npz", fields=good.real, variables=["a", "b", "c"])
    with pytest.raises(ValueError, match="has the variables a, b, c: expected 2, a name for each"):
        read_starts(tmp_path / "starts.npz", model)


def test_only_the_steps_that_a_start_takes_are_checked(model, tmp_path):
    """Each trajectory has a file of its own in PDEArena's; a forecast starts from the last three time steps."""
    task = replace(model.experiment.condition, step=1.0)
    model = replace(model, experiment=replace(model.experiment, condition=task))
    even = np.arange(7.0)

    def saved(*times: float) -> Path:
        with h5py.File(tmp_path / "p.h5", "w") as file:
            file["test/pde_a"] = np.zeros((3, 7, CHANNELS, WIDTH))
            file["test/t"] = np.stack([even, np.array(times), even])
        return tmp_path / "p.h5"

    for old in ((-0.3, 1, 2, 3, 4, 5, 6), (-9, 1, 2, 3, 4, 5, 6)):  # uneven; a gap
        assert len(read_starts(saved(*old), model)) == 3
    with pytest.raises(ValueError, match=r"has 1.3 between its time steps, and ahead was trained on 1"):
        read_starts(saved(0, 1, 2, 3, 4, 5, 6.3), model)


def test_names_of_a_file_are_taken_by_a_model_that_knows_none(model, tmp_path):
    told, good = [], np.zeros((4, 7, CHANNELS, WIDTH), np.float32)
    np.savez(tmp_path / "starts.npz", fields=good, variables=["speed", "density"])
    assert len(read_starts(tmp_path / "starts.npz", model, told.append)) == 4
    assert "ahead does not: speed, density are taken in this order" in told[0]


@pytest.mark.parametrize("kind", ["npz", "nc", "zarr"])
def test_variables_are_found_by_their_names(tmp_path, kind):
    """No store of zarr has an order of its arrays that a user could change."""
    walk = np.random.default_rng(0).normal(size=(10, 8, CHANNELS, WIDTH)).cumsum(1).astype(np.float32)
    units = {"warmth": {"units": "K"}, "speed": {"units": "m s-1"}}
    saved = {}
    for name, order in (("data", ("warmth", "speed")), ("starts", ("speed", "warmth")), ("other", ("speed", "heat"))):
        arrays = {each: walk[:, :, int(each == "speed")] for each in order}
        along, saved[name] = ("sample", "time", "x"), tmp_path / f"{name}.{'nc' if name == 'data' else kind}"
        if saved[name].suffix == ".npz":
            np.savez(saved[name], fields=np.stack([*arrays.values()], 2), variables=order)
            continue
        data = xarray.Dataset({each: (along, array, units.get(each, {})) for each, array in arrays.items()})
        data.to_netcdf(saved[name], engine="h5netcdf") if saved[name].suffix == ".nc" else data.to_zarr(saved[name])
    model = model_of(saved["data"], tmp_path / "run")
    assert model.experiment.condition.variables == ("warmth", "speed")
    starts = read_starts(saved["starts"], model)
    np.testing.assert_array_equal(starts.past, walk[:, -1:, :, None])
    assert [each.units for each in starts.metadata.variables] == ([] if kind == "npz" else ["K", "m s-1"])
    with pytest.raises(ValueError, match="was trained on warmth, speed: bring them to that"):
        read_starts(saved["other"], model)


def test_what_is_not_there_is_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there are no clips .*gone: name a file or folder of them"):
        read_starts(Path(f"clips:{tmp_path / 'gone'}"), model)
    for name in ("gone.npy", "gone.nc"):
        with pytest.raises(FileNotFoundError, match=rf"(there is no file|no such file or folder).*{name}"):
            read_starts(tmp_path / name, model)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".nc", ".zarr"])
def test_a_pipe_is_no_start(model, tmp_path, suffix):
    os.mkfifo(tmp_path / f"a{suffix}")
    with pytest.raises(ValueError, match=r"is a named pipe; expected a file|is no folder"):
        read_starts(tmp_path / f"a{suffix}", model)


def test_fields_that_changed_since_the_training_are_refused(source, tmp_path):
    fields = np.load(source)["fields"]
    np.savez(tmp_path / "fields.npz", fields=fields)
    model = model_of(tmp_path / "fields.npz", tmp_path / "run")
    expected = model.experiment.condition.fingerprint
    assert len(expected) == 64
    fields[0, 0] += 1
    np.savez(tmp_path / "fields.npz", fields=fields)
    with pytest.raises(
        ValueError, match=rf"changed since run was trained.*the run {expected[:12]}.*--from .*fields.npz"
    ):
        held_out_starts(model, 2)
    assert len(read_starts(tmp_path / "fields.npz", model)) == 20
    old = replace(model.experiment.condition, fingerprint="")
    assert old.identity == model.experiment.condition.identity
    assert len(held_out_starts(replace(model, experiment=replace(model.experiment, condition=old)), 2, 3)) == 3


def test_a_simulation_that_another_machine_rounded_in_another_way_is_no_other_data(tmp_path, monkeypatch):
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    small = KuramotoSivashinsky(points=WIDTH, burn_in=1.0)
    monkeypatch.setitem(SIMULATIONS, "kuramoto-sivashinsky", (small, 20, 6))
    model = model_of("kuramoto-sivashinsky", tmp_path / "run", 1)
    starts = held_out_starts(model, 2)
    rounded = replace(model.experiment.condition, fingerprint=model.experiment.condition.fingerprint[::-1])
    elsewhere = replace(model, experiment=replace(model.experiment, condition=rounded))
    np.testing.assert_array_equal(held_out_starts(elsewhere, 2).past, starts.past)


def test_a_forecast_from_a_file_needs_no_training_data(source, tmp_path):
    np.savez(tmp_path / "fields.npz", fields=np.load(source)["fields"])
    model = model_of(tmp_path / "fields.npz", tmp_path / "run")
    (tmp_path / "fields.npz").unlink()
    starts = read_starts(source, model)
    for drawn in (20 * 3 * 2, 0):
        assert write_forecast(drawer_of(model), starts, 2, tmp_path / "out").drawn == drawn


def test_starts_of_another_step_or_of_other_axes_are_refused(tmp_path):
    xarray, array = pytest.importorskip("xarray"), np.random.default_rng(0).normal(size=(30, 16, 16))

    def saved(name: str, dims: str = "tyx", step: float = 2.0, falling: bool = True, gap: int = 0) -> Path:
        axes = {"t": "time", "y": "lat", "x": "lon"}
        y = np.linspace(80, -80, 16) if falling else np.linspace(-80, 80, 16)
        coordinates = {"time": step * np.arange(30) + gap * (np.arange(30) > 28), "lat": y, "lon": np.arange(16.0)}
        xarray.Dataset({"u": ([axes[one] for one in dims], array)}, coordinates).to_netcdf(tmp_path / name)
        return tmp_path / name

    net = UViTConfig(16, 1, (Level("conv", 8, 1), Level("conv", 8, 1)), embedding=16, height=16)
    task = Forecast(past=2).of(read_fields(saved("train.nc"), "train"))
    assert task.axes == ("lat (falling)", "lon (rising)")
    assert task.identity == replace(task, axes=()).identity  # runs of before knew no axes
    one = OneConditional(net, task.shape((1, 16, 16)))
    data = DataConfig(str(tmp_path / "train.nc"))
    made = Experiment("ahead", one, DenoisingConfig(label_dropout=0.0), FitConfig(iterations=1), data, condition=task)
    model = load(saved_random(made, tmp_path / "run"))
    np.testing.assert_array_equal(
        read_starts(tmp_path / "train.nc", model).past[0, :, 0], array[-2:].astype(np.float32)
    )
    for other, words in (
        (saved("step.nc", step=3.0), "has 3 between its time steps, and run was trained on 2"),
        (
            saved("swapped.nc", "txy"),
            r"axes of space lon \(rising\), lat \(falling\), and run .* lat \(falling\), lon \(rising\)",
        ),
        (saved("rising.nc", falling=False), r"axes of space lat \(rising\), lon \(rising\), and run"),
        (saved("gap.nc", gap=9), "has 11 between its time steps, and run was trained on 2"),
        (saved("near.nc", gap=1), "has 3 between its time steps"),  # no gap, and still another step
    ):
        with pytest.raises(ValueError, match=words):
            read_starts(other, model)
    plain = xarray.open_dataset(tmp_path / "train.nc")
    plain.drop_vars(["lat", "lon"]).to_netcdf(tmp_path / "plain.nc")
    assert len(read_starts(tmp_path / "plain.nc", model)) == 1  # says nothing of its coordinates
    plain.rename(lat="y", lon="x").transpose("time", "x", "y").to_netcdf(tmp_path / "renamed.nc")
    with pytest.raises(ValueError, match=r"axes of space x \(rising\), y \(falling\)"):
        read_starts(tmp_path / "renamed.nc", model)
    untimed = replace(model, experiment=replace(model.experiment, condition=replace(task, step=None)))
    with pytest.raises(ValueError, match="gap in time before its time step 29 of 30, and run starts from the last 2"):
        read_starts(tmp_path / "gap.nc", untimed)
    np.savez(tmp_path / "step.npz", fields=array[None, :, None], step=1.0)
    with pytest.raises(ValueError, match="has 1 between its time steps"):
        read_starts(tmp_path / "step.npz", model)
    np.savez(tmp_path / "step.npz", fields=array[None, :, None], step=np.nan)
    assert len(read_starts(tmp_path / "step.npz", model)) == 1


@pytest.mark.parametrize("rolling", [False, True])
def test_what_was_observed_gets_no_more_noise(source, tmp_path, rolling):
    """At all points or at the observed ones alone, it is what the networks are given; held-out starts are not."""
    task, given = {"past": 2, "frames": 2, "every": 4, "noise": 0.5}, []
    model = model_of(source, tmp_path / "run", **task)
    if rolling:
        experiment = replace(model.experiment, method=RollingConfig(), process=Rolling(frames=2))
        model = load(saved_random(experiment, tmp_path / "rolling"))

    @dataclass
    class Noting(Denoiser):
        reuse: Reuse = Reuse.FREE

        def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
            given.append(given_of(cond))
            return Context(())

        def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
            return z

    model = replace(model, denoiser=Noting())
    array = np.load(source)["fields"][:4, -2:]
    np.save(tmp_path / "odd.npy", array[..., :8])
    with pytest.raises(ValueError, match=r"\(start, time, 2, 16\) or, as observed, \(time, 2, 4\) or"):
        read_starts(tmp_path / "odd.npy", model)
    for own, noisy in ((array, False), (array[..., ::4], False), (array, True)):
        np.save(tmp_path / "mine.npy", own)
        starts = read_starts(tmp_path / "mine.npy", model)
        assert starts.observed
        given.clear()
        _ = rolled(drawer_of(model, batch_size=12), replace(starts, observed=not noisy), 2)
        expected = model.experiment.condition.statistics.normalised(torch.from_numpy(array[..., ::4])[:, :, :, None])
        apart = (given[0] - expected.flatten(1, 2)).std().item()
        assert apart == pytest.approx(0.5 if noisy else 0, abs=0.1 if noisy else 1e-6)
    given.clear()
    drawer = drawer_of(model, batch_size=12)
    assert write_forecast(drawer, starts, 2, tmp_path / "out").drawn == 4 * 3 * 2
    with pytest.raises(ValueError, match="holds other forecasts"):
        write_forecast(drawer, replace(starts, observed=False), 2, tmp_path / "out")
    torch.testing.assert_close(next(one for one in given if len(one) == 4), expected.flatten(1, 2))


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("rolling", [False, True])
def test_frames_that_were_observed_get_no_noise_as_long_as_they_are_in_the_past(source, tmp_path, rolling, frames):
    """Two of three past frames are left after one was made: the first channels of what the second window is given."""
    model = model_of(source, tmp_path / "run", past=3, frames=frames, noise=0.5)
    if rolling:
        experiment = replace(model.experiment, method=RollingConfig(), process=Rolling(frames=frames))
        model = load(saved_random(experiment, tmp_path / "rolling"))
    np.save(tmp_path / "mine.npy", np.load(source)["fields"][:4])
    starts, given = read_starts(tmp_path / "mine.npy", model), []
    statistics, observe = model.experiment.condition.statistics, Forecast.observe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forecast, "observe", lambda *of: given.append(y := observe(*of)) or y)
        _ = rolled(drawer_of(model, members=1, batch_size=4), starts, 4)
    own = statistics.normalised(torch.from_numpy(starts.past)).flatten(1, 2)
    made = 1 if rolling else frames
    torch.testing.assert_close(given[0], own)
    left = CHANNELS * (3 - made)
    torch.testing.assert_close(given[1][:, :left], own[:, CHANNELS * made :])
    held_out = held_out_starts(model, 1, 4)
    given.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forecast, "observe", lambda *of: given.append(y := observe(*of)) or y)
        _ = rolled(drawer_of(model, members=1, batch_size=4), held_out.past, 1)
    apart = given[0] - statistics.normalised(torch.from_numpy(held_out.past)).flatten(1, 2)
    assert apart.std().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("names", [("500", "850"), ("u10", "u100"), ("t",)])
def test_levels_are_names_and_numbers_of_channels_are_none(names):
    assert have_names(names)
    assert not any(map(have_names, ((), ("u",), ("u0", "u1"), ("0", "1"))))


def test_starts_in_another_unit_that_is_not_said_are_refused(tmp_path):
    model = untrained(saved(waves(), tmp_path / "a.nc"), tmp_path / "run")
    for shift, units, says in (
        (273.15, "", "units of t, which look like another unit"),
        (0, "", ""),
        (273.15, "K", ""),
    ):
        data = waves(seed=1, frames=2)
        data["t"] = (data.t - shift).drop_attrs().assign_attrs({"units": units} if units else {})
        file = saved(data, tmp_path / f"{shift}{units}.nc")
        if says:
            with pytest.raises(ValueError, match=rf"{says}.*trained on 28\d.* \+- .* K.*set the attribute `units`"):
                read_starts(file, model)
        else:
            assert ("in another unit" in read_starts(file, model).strange) is bool(shift)


def test_names_then_coordinates_are_looked_at_before_shapes(tmp_path):
    model = untrained(saved(waves("ts"), tmp_path / "a.nc"), tmp_path / "run")
    other = waves("t", frames=2)
    with pytest.raises(ValueError, match="missing: s"):
        read_starts(saved(other, tmp_path / "less.nc"), model)
    region = waves("ts", frames=2).isel(lat=slice(2, 6))
    with pytest.raises(ValueError, match=r"lat of length 4 from .* trained on lat of length 8 from"):
        read_starts(saved(region, tmp_path / "region.nc"), model)


def test_a_start_says_where_it_lacks_a_number(tmp_path):
    model = untrained(saved(waves("ts"), tmp_path / "a.nc"), tmp_path / "run", past=2)
    holes = waves("ts", frames=4)
    holes.t[3, 1, 2:4] = np.nan
    words = r"frame 1, channel 0 \(t\) holds nan at 2020-01-01T18:00, lat 56.25, lon 45 .*: 2.*--mask auto"
    with pytest.raises(ValueError, match=words):
        read_starts(saved(holes.isel(lat=slice(None, None, -1)), tmp_path / "holes.nc"), model)
