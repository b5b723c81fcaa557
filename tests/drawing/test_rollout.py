"""Roll-outs: a heavy call shared by members once, closed forms after many windows, and the same bits after a kill."""

import gc
import itertools
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from runs.made import saved_random
from torch import Tensor

from dualrate.data.forecast import Forecast, read_fields
from dualrate.denoisers.denoiser import Denoiser, Metered, given_of
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import SharedNoise
from dualrate.diffusion.rolling import Rolling
from dualrate.diffusion.values import Cond, Context, Refresh, Reuse
from dualrate.drawing import forecast as module
from dualrate.drawing import forecast_folder
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.forecast import (
    Starts,
    costs,
    have_names,
    held_out_starts,
    read_starts,
    roll_out,
    window_cost,
    with_stride,
)
from dualrate.drawing.forecast_folder import Store, write_forecast
from dualrate.experiment.experiment import DataConfig, Experiment, Model
from dualrate.experiment.network_configs import OneConditional, OneNetwork, ThreeConditional, TwoConditional
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.rolling import RollingConfig, roll
from dualrate.methods.times import GivenTimes
from dualrate.networks.blocks import add_shared
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.report import field_pictures
from dualrate.runs.store import load
from dualrate.runs.train import save_samples
from dualrate.sampling.ancestral import Ancestral
from dualrate.training.config import FitConfig

WIDTH, CHANNELS = 16, 2
MEMBER, WINDOW = 2**40, 2**20


def experiment_of(source: Path, task: Forecast, channels: int = CHANNELS) -> Experiment:
    """Two small networks for the fields of a file."""
    made = task.of(read_fields(source, "train"))
    channels, height, width = made.target((channels, 1, WIDTH))
    net = UViTConfig(width, channels, (Level("conv", 8, 1), Level("conv", 8, 1)), embedding=16, height=height)
    networks = TwoConditional(net, net, made.shape((channels, height, width)))
    method = DenoisingConfig(GivenTimes(), label_dropout=0.0)
    return Experiment("ahead", networks, method, FitConfig(iterations=1), DataConfig(str(source)), condition=made)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Twenty trajectories of 12 time steps of two channels, far from 0; two are held out."""
    path, random = tmp_path_factory.mktemp("data") / "fields.npz", np.random.default_rng(0)
    walk = random.normal(size=(20, 12, CHANNELS, WIDTH)).cumsum(1)
    np.savez(path, fields=(100 + 3 * walk).astype(np.float32))
    return path


def model_of(source: Path, path: Path, channels: int = CHANNELS, **task) -> Model:
    return load(saved_random(experiment_of(source, Forecast(**task), channels), path))


@pytest.fixture(scope="module")
def model(source, tmp_path_factory) -> Model:
    """Two past frames, observed in part and with noise; windows of two, as differences."""
    task = {"past": 2, "frames": 2, "lead": 2, "difference": True, "every": 2, "noise": 0.1}
    return model_of(source, tmp_path_factory.mktemp("runs") / "ahead", **task)


def drawer_of(model: Model, members: int = 3, batch_size: int = 6, steps: int = 2) -> Drawer:
    plan = StepPlan.uniform(steps, 1)
    how = {"members": members, "batch_size": batch_size, "precision": "float32"}
    return Drawer(model, Ancestral(model.process), plan, **how)


def rolled(drawer: Drawer, past, frames: int, **more) -> np.ndarray:
    """(N, M, T, C, H, W)."""
    shape = len(past), drawer.members, frames, *past.shape[2:]
    whole = np.full(shape, np.nan, np.float32)
    for piece in roll_out(drawer, past, frames, **more):
        place = [slice(part.start, part.stop) for part in (piece.starts, piece.members, piece.frames)]
        assert np.isnan(whole[tuple(place)]).all()
        whole[tuple(place)] = piece.x
    return whole


@dataclass
class Counting(Denoiser):
    """Notes the rows of each call."""

    inner: Denoiser
    heavy: list[int] = field(default_factory=list)
    light: list[int] = field(default_factory=list)

    @property
    def reuse(self):
        return self.inner.reuse

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        self.heavy.append(len(given_of(cond)))
        return self.inner.encode(z, t, cond)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        self.light.append(len(z))
        return self.inner.denoise(z, t, context, cond)


@dataclass
class Exact(Denoiser):
    """E[x | z_t, y] of x | y ~ N(mean of y, spread^2); of no spread: the mean itself."""

    process: object
    mean: Callable[[Tensor], Tensor]
    spread: float = 0.0
    reuse: Reuse = Reuse.FREE

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return Context((self.mean(given_of(cond)),))

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        alpha, sigma = self.process.scales(t)
        (mean,) = context.features
        gain = alpha * self.spread**2 / (alpha**2 * self.spread**2 + sigma**2)
        return add_shared(gain * add_shared(z, -alpha * mean), mean)


def test_the_first_window_is_what_a_drawer_draws(model):
    held = held_out_starts(model, 2)  # every window there is
    drawer, forecast = drawer_of(model), model.experiment.condition
    found = rolled(drawer, held.past, 2)
    x = torch.cat(list(drawer.states(range(len(held))))).unflatten(0, (len(held), 3))
    last = forecast.statistics.normalised(torch.from_numpy(held.past))[:, -1]
    for member in range(3):
        expected = forecast.statistics.restored(forecast.frames_of(x[:, member], last))
        np.testing.assert_array_equal(found[:, member], expected.numpy())


@pytest.mark.parametrize(
    ("batch_size", "heavy"),
    [(8, [2, 8, 8, 1, 4, 4]), (3, 3 * [1, 3, 3, 1, 1, 1]), (1, 12 * [1, 1, 1])],
)
def test_a_start_costs_one_heavy_call_and_then_each_member_one_a_window(model, batch_size, heavy):
    counting = Counting(model.denoiser)
    drawer = drawer_of(replace(model, denoiser=counting), 4, batch_size)
    rolled(drawer, held_out_starts(model, 2, 3).past, 5)  # three windows of two frames
    assert counting.heavy == heavy
    assert sum(counting.light) == 3 * 4 * 3 * 2  # starts, members, windows, steps
    assert max(counting.light) <= batch_size


def test_no_two_rows_of_a_forecast_share_their_noise(model, monkeypatch):
    keys, draw = [], module.sample_batches

    def noted(denoiser, step, plan, shape, seeds, *, members, first_member, **more):
        keys.extend(seed + MEMBER * (first_member + m) for seed in seeds for m in range(members))
        return draw(denoiser, step, plan, shape, seeds, members=members, first_member=first_member, **more)

    monkeypatch.setattr(module, "sample_batches", noted)
    rolled(drawer_of(model, 5, 3), held_out_starts(model, 2, 2).past, 6, seed=7)
    expected = {start + WINDOW * w + MEMBER * m for start in (7, 8) for w in range(3) for m in range(5)}
    assert (len(keys), set(keys)) == (len(expected), expected)


def test_a_member_does_not_depend_on_the_batch_nor_on_how_many_there_are(model):
    past = held_out_starts(model, 2, 3).past
    one = rolled(drawer_of(model, 5, 15), past, 6)
    for members, batch_size in ((5, 4), (5, 1), (2, 100)):
        other = rolled(drawer_of(model, members, batch_size), past, 6)
        np.testing.assert_allclose(other, one[:, :members], rtol=3e-6)
    np.testing.assert_allclose(rolled(drawer_of(model, 5), past[1:], 6, seed=1), one[1:], rtol=3e-6)


@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_linear_law_rolls_out_to_its_closed_form(source, tmp_path, difference, frames):
    """u_k = a^k u_0 of normalised frames, made of the last frame given; with differences these add up to it."""
    a, model = 0.8, model_of(source, tmp_path / "run", past=2, frames=frames, difference=difference)
    forecast: Forecast = model.experiment.condition

    def mean(y: Tensor) -> Tensor:
        last = y.unflatten(1, (2, CHANNELS))[:, -1]
        following = torch.stack([a ** (k + 1) * last for k in range(frames)], 1)
        return forecast.sample_of(last, following)

    drawer = drawer_of(replace(model, denoiser=Exact(model.process, mean)), members=2)
    past = held_out_starts(model, 1, 2).past
    found, std = rolled(drawer, past, 10), np.array(forecast.statistics.std)[:, None, None]
    start = (past[:, None, -1:] - np.array(forecast.statistics.mean)[:, None, None]) / std
    power = a ** np.arange(1, 11)[:, None, None, None]
    expected = np.array(forecast.statistics.mean)[:, None, None] + std * power * start
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-5)


def test_members_of_an_autoregression_spread_as_its_law_says(source, tmp_path):
    """Mean a^k u_0, variance v (1 - a^2k) / (1 - a^2), with v that of a window: its noise is fresh, of each member."""
    a, s, model = 0.9, 0.5, model_of(source, tmp_path / "run")
    forecast: Forecast = model.experiment.condition
    exact = Exact(model.process, lambda y: a * y, s)
    drawer = drawer_of(replace(model, denoiser=exact), members=500, batch_size=200, steps=20)
    past = held_out_starts(model, 1, 2).past
    u = forecast.statistics.normalised(torch.from_numpy(rolled(drawer, past, 4))).double()
    start = forecast.statistics.normalised(torch.from_numpy(past)).double()[:, -1:]
    left = torch.stack([u[:, :, k] - a ** (k + 1) * start for k in range(4)])
    v = left[0].square().mean()
    assert 0.5 * s**2 < v < 1.1 * s**2  # of so few steps
    expected = torch.tensor([[a ** abs(i - j) * (1 - a ** (2 * min(i, j) + 2)) for i in range(4)] for j in range(4)])
    found = torch.cov(left.flatten(1))
    torch.testing.assert_close(found, v * expected.double() / (1 - a**2), rtol=0.04, atol=0.02 * s**2)
    assert (left.flatten(1).mean(1).abs() < 4 * (found.diagonal() / left[0].numel()).sqrt()).all()


def test_memory_does_not_grow_with_frames(source, tmp_path):
    model = model_of(source, tmp_path / "run", past=2)
    last_frame = replace(model, denoiser=Exact(model.process, lambda y: y[:, CHANNELS:]))
    past, held = held_out_starts(model, 1, 2).past, []
    for number, _ in enumerate(roll_out(drawer_of(last_frame, 64, 64, 1), past, 50)):
        if number in (10, 40, 90):
            gc.collect()
            held.append(sum(one.numel() for one in gc.get_objects() if isinstance(one, Tensor)))
    assert (number, held) == (99, held[:1] * 3)  # two starts, 64 members of each at a time


class Killed(Exception):
    pass


def written(model: Model, out: Path, frames: int = 6, **more):
    drawer = drawer_of(model, **{name: more.pop(name) for name in ("members", "batch_size") if name in more})
    return write_forecast(drawer, more.pop("starts", held_out_starts(model, frames, 3)), frames, out, **more)


@pytest.mark.parametrize(
    ("pieces", "often", "error"),
    [(0, 0.0, Killed), *itertools.product((2, 4), (0.0, 1000.0), (Killed, KeyboardInterrupt))],
)
def test_a_forecast_goes_on_with_the_bits_of_an_uninterrupted_one(model, tmp_path, monkeypatch, pieces, often, error):
    monkeypatch.setattr(forecast_folder, "SAVED_EVERY", often)
    straight = written(model, tmp_path / "straight")
    count, write = 0, Store.write

    def dies(store, piece):
        nonlocal count
        if count == pieces:
            raise error
        write(store, piece)
        count += 1

    with monkeypatch.context() as patch, suppress(Killed, KeyboardInterrupt):
        patch.setattr(Store, "write", dies)
        written(model, tmp_path / "out")
    again = written(model, tmp_path / "out")
    np.testing.assert_array_equal(again.x, straight.x)
    assert (tmp_path / "out" / "forecast.npy").read_bytes() == (tmp_path / "straight" / "forecast.npy").read_bytes()
    whole = 3 * 3 * 6  # starts, members, frames; a batch has two starts, whose windows are two frames
    there = {0: 0, 2: 2 * 2 * 3 * 2 if error is KeyboardInterrupt or not often else 0, 4: 2 * 3 * 6 + 3 * 2}[pieces]
    if pieces == 4 and often and error is Killed:
        there = 2 * 3 * 6  # the first batch of rows was finished
    assert (straight.drawn, again.drawn) == (whole, whole - there)
    assert written(model, tmp_path / "out").drawn == 0


def test_another_batch_size_goes_on_too(model, tmp_path, monkeypatch):
    straight = written(model, tmp_path / "straight")
    monkeypatch.setattr(forecast_folder, "SAVED_EVERY", 0.0)
    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(Store, "save", lambda store, save=Store.save: dying(store, save))
        written(model, tmp_path / "out")
    again = written(model, tmp_path / "out", batch_size=2)
    assert 0 < again.drawn < straight.drawn
    np.testing.assert_allclose(again.x, straight.x, rtol=3e-6)


def dying(store: Store, save: Callable[[Store], None]) -> None:
    save(store)
    if store.done.max() == 4:
        raise Killed


def test_a_folder_says_what_it_holds_and_takes_nothing_else(model, tmp_path):
    out = tmp_path / "out"
    told = []
    done = written(model, out, 5, format="npz", progress=lambda *now: told.append(now), command="dualrate forecast")
    assert (told[0], told[-1]) == ((0, 45), (45, 45))
    record = json.loads((out / "forecast.json").read_text())
    assert (record["starts"], record["members"], record["frames"], record["known"]) == (3, 3, 5, 4)
    assert (record["lead_times"], record["unit"]) == ([2, 4, 6, 8, 10], "time steps")
    assert tuple(record["variables"]) == model.experiment.condition.variables
    assert record["origin"]["weights"] == model.weights_hash
    assert record["cost"]["first_window"] < record["cost"]["later_window"]
    np.testing.assert_array_equal(np.load(out / "forecast.npz")["fields"], done.x.reshape(9, 5, CHANNELS, 1, WIDTH))
    for other, what in (
        (lambda: written(model, out, 4), "frames"),
        (lambda: written(model, out, 5, members=2), "members"),
        (lambda: written(model, out, 5, seed=1), "seed"),
        (lambda: written(model, out, 5, starts=Starts(held_out_starts(model, 5, 3).past + 1, "mine.npy")), "mine.npy"),
    ):
        with pytest.raises(ValueError, match=rf"holds other forecasts.*{what}.*choose another --out"):
            other()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(ValueError, match=r"holds mine\.txt but no forecast\.json"):
        written(model, tmp_path / "full", 5)


def test_the_truth_is_kept_beside(source, model, tmp_path):
    starts = held_out_starts(model, 4, 2)
    done, data = written(model, tmp_path / "out", 4, starts=starts), read_fields(source, "test")
    (first, k), (last, n) = data.windows(11)[[0, -1]]  # (2 + 4 frames - 1) * 2 + 1 time steps
    for start, (trajectory, begin) in enumerate(((first, k), (last, n))):
        frames = data.frames(trajectory, begin, 11)[::2]
        np.testing.assert_array_equal(starts.past[start], frames[:2])
        np.testing.assert_array_equal(done.truth[start], frames[2:])
    changed = replace(starts, truth=lambda i: starts.truth(i)[:3] + 1, known=3)  # as a source that was written anew
    again = written(model, tmp_path / "out", 4, starts=changed)
    assert again.drawn == 0
    np.testing.assert_array_equal(again.truth, done.truth[:, :3] + 1)


def test_starts_are_those_whose_truth_is_known_and_no_more_than_there_are(model):
    assert (len(held_out_starts(model, 4)), held_out_starts(model, 4).known) == (2 * 2, 4)
    assert (len(held_out_starts(model, 99)), held_out_starts(model, 99).known) == (2 * 2, 4)
    with pytest.raises(ValueError, match=r"has 4 starts of which 4 frame.* got 5"):
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


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_starts_from_a_file_are_its_latest_time_steps(model, tmp_path, suffix):
    array, path = np.random.default_rng(0).normal(size=(4, 7, CHANNELS, WIDTH)).astype(np.float32), tmp_path / suffix
    path = tmp_path / f"starts{suffix}"
    for own in (array, array[1], array[:, :, :, None]):
        np.save(path, own) if suffix == ".npy" else np.savez(path, mine=own)
        expected = array[1:2] if own.ndim == 3 else array
        np.testing.assert_array_equal(read_starts(path, model).past, expected[:, [-3, -1], :, None])


def test_starts_that_do_not_fit_are_refused_with_what_was_expected(model, tmp_path):
    good = np.zeros((4, 7, CHANNELS, WIDTH), np.float32)
    bad = good.copy()
    bad[2, 6, 1, 3] = np.nan
    for array, words in (
        (good[..., :8], r"\(4, 7, 2, 8\).*\(time, 2, 16\) or \(start, time, 2, 16\)"),
        (good[:, :2], r"4 start\(s\) of 2 time step\(s\).*starts from 3: 2 frame\(s\), 2"),
        (bad, r"1 value\(s\) that are not finite, the first in start 2, frame 1, channel 1"),
    ):
        np.save(tmp_path / "starts.npy", array)
        with pytest.raises(ValueError, match=words):
            read_starts(tmp_path / "starts.npy", model)
    named = replace(model.experiment.condition, variables=("density", "speed"))
    other = replace(model, experiment=replace(model.experiment, condition=named))
    np.savez(tmp_path / "starts.npz", fields=good, variables=["speed", "density"])
    with pytest.raises(ValueError, match="variables speed, density, and ahead was trained on density, speed, in this"):
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


def test_names_of_a_file_are_taken_by_a_model_that_knows_none(model, tmp_path):
    told, good = [], np.zeros((4, 7, CHANNELS, WIDTH), np.float32)
    np.savez(tmp_path / "starts.npz", fields=good, variables=["speed", "density"])
    assert len(read_starts(tmp_path / "starts.npz", model, told.append)) == 4
    assert "ahead does not: speed, density are taken in this order" in told[0]


def test_what_is_not_there_is_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*gone: name one of a folder"):
        read_starts(Path(f"frames:{tmp_path / 'gone'}"), model)
    for name in ("gone.npy", "gone.nc"):
        with pytest.raises(FileNotFoundError, match=rf"there (is no file|are no fields) .*{name}"):
            read_starts(tmp_path / name, model)


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
    for own, noisy in ((array, False), (array[..., ::4], False), (array, True)):
        np.save(tmp_path / "mine.npy", own)
        starts = read_starts(tmp_path / "mine.npy", model)
        assert starts.observed
        given.clear()
        _ = rolled(drawer_of(model, batch_size=12), starts.past, 2, observed=not noisy)
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
    """Of three past frames two are left after one was made: the first channels of what the second window is given."""
    model = model_of(source, tmp_path / "run", past=3, frames=frames, noise=0.5)
    if rolling:
        experiment = replace(model.experiment, method=RollingConfig(), process=Rolling(frames=frames))
        model = load(saved_random(experiment, tmp_path / "rolling"))
    np.save(tmp_path / "mine.npy", np.load(source)["fields"][:4])
    starts, given = read_starts(tmp_path / "mine.npy", model), []
    statistics, observe = model.experiment.condition.statistics, Forecast.observe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forecast, "observe", lambda *of: given.append(y := observe(*of)) or y)
        _ = rolled(drawer_of(model, members=1, batch_size=4), starts.past, 4, observed=True)
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


@pytest.mark.parametrize("names", [(), ("speed", "depth")])
def test_a_netcdf_file_has_the_axes_start_member_time_and_space(source, tmp_path, names):
    xarray = pytest.importorskip("xarray")
    np.savez(
        tmp_path / "fields.npz", fields=np.load(source)["fields"], step=0.5, **({"variables": names} if names else {})
    )
    model = model_of(tmp_path / "fields.npz", tmp_path / "run", lead=2, past=2)
    starts = held_out_starts(model, 6, 3)
    done = written(model, tmp_path / "out", 6, starts=starts, format="netcdf")
    with xarray.open_dataset(tmp_path / "out" / "forecast.nc", engine="h5netcdf") as found:
        whole = ("start", "member", "time", *([] if names else ["channel"]), "x")
        for i, name in enumerate(names or ["forecast"]):
            assert found[name].dims == whole
            own = done.x[:, :, :, i, 0] if names else done.x[:, :, :, :, 0]
            np.testing.assert_array_equal(found[name], own)
            truth = done.truth[:, :, i, 0] if names else done.truth[:, :, :, 0]
            np.testing.assert_array_equal(found[f"{name}_truth"][:, :4], truth)
            assert np.isnan(found[f"{name}_truth"][:, 4:]).all()
        np.testing.assert_array_equal(found["time"], np.arange(1, 7) * 2 * 0.5)
        np.testing.assert_array_equal(found["start"], range(3))
        assert {"start", "time", "start_trajectory", "start_time_step"} <= set(found.coords)
        held = np.load(source)["fields"][18:]
        for n in range(3):
            i, k = int(found["start_trajectory"][n]), int(found["start_time_step"][n])
            np.testing.assert_array_equal(held[i, k], starts.past[n, -1, :, 0])
    with pytest.raises(ValueError, match=r"several dimensions of trajectories \(start, member\)|different dimensions"):
        read_fields(tmp_path / "out" / "forecast.nc", "train")


def test_a_model_of_images_is_no_forecast(tmp_path):
    net = UViTConfig(8, 1, (Level("conv", 8, 1),), embedding=16)
    one = load(saved_random(Experiment("one", OneNetwork(net), DenoisingConfig(), FitConfig(iterations=1)), tmp_path))
    with pytest.raises(ValueError, match="is no forecast: `dualrate sample`"):
        held_out_starts(one, 2)


def test_pictures_show_the_first_start(model, tmp_path, monkeypatch):
    monkeypatch.setattr(field_pictures, "Figure", Figure)  # laid out, as in use (tests/conftest.py)
    written(model, tmp_path / "out", 6, pictures=True)
    with Image.open(tmp_path / "out" / "forecast.webp") as moving, Image.open(tmp_path / "out" / "forecast.png") as one:
        assert (moving.n_frames, moving.info["loop"]) == (6, 0)
        assert min(one.size) > 200


def test_rolling_diffusion_makes_a_frame_at_a_time_and_goes_on(source, tmp_path):
    """What `methods.rolling.roll` yields, the same bits from a frame on; a heavy call a start, then one a member."""
    plain = experiment_of(source, Forecast(past=2, frames=3, noise=0.1))
    rolling = {"process": Rolling(frames=3), "method": RollingConfig(GivenTimes())}
    model = load(saved_random(replace(plain, **rolling), tmp_path / "rolling"))
    held, drawer, forecast = held_out_starts(model, 5, 2), drawer_of(model, steps=4), model.experiment.condition
    whole = rolled(drawer, held.past, 5, seed=7)
    keys = ((7 + torch.arange(2))[:, None] + MEMBER * torch.arange(3)).flatten()
    past = forecast.statistics.normalised(torch.from_numpy(held.past)).flatten(1, 2)
    for k, window in zip(range(5), roll(drawer.denoiser, model.process, forecast, past, keys, 4), strict=False):
        frame = forecast.statistics.restored(window.frame).unflatten(0, (2, 3))
        assert np.array_equal(frame.numpy(), whole[:, :, k])
    later = list(roll_out(drawer, held.past, 5, seed=7, earlier=lambda starts, members: whole[:, :, :3]))
    assert [piece.frames for piece in later] == [range(3, 4), range(4, 5)]
    assert all(np.array_equal(piece.x[:, :, 0], whole[:, :, piece.frames.start]) for piece in later)
    uneven = replace(drawer, plan=StepPlan.at((1, 0.6, 0.3, 0), [0]))
    with pytest.raises(ValueError, match="rolls its windows in even steps: drop times, grid"):
        rolled(uneven, held.past, 2)
    calls = model.call_cost
    record = write_forecast(drawer, held, 2, tmp_path / "out").record
    assert record.cost == {
        "frames": 1,
        "first_window": round(calls.heavy / 3 + 3 * 4 * calls.light),
        "later_window": round(calls.heavy + 4 * calls.light),
    }
    assert window_cost(drawer) == record.cost["first_window"] + 2 * record.cost["later_window"]


def test_windows_of_both_rates_cost_what_their_calls_do_and_are_drawn_by_rolls(source, tmp_path):
    plain = experiment_of(source, Forecast(frames=3))
    net = plain.networks.light
    three = ThreeConditional(net, replace(net, head=True), net, plain.networks.given_shape)
    rolling = {"process": Rolling(frames=3), "method": RollingConfig(GivenTimes()), "networks": three}
    model = load(saved_random(replace(plain, **rolling), tmp_path / "rolling"))
    metered = Metered(model.denoiser)
    starts, drawer = held_out_starts(model, 2, 2), drawer_of(replace(model, denoiser=metered), steps=4)
    calls = model.call_cost
    assert calls.own
    assert min(calls.read, calls.heavy, calls.light) > 0

    def spent() -> float:
        return sum(getattr(calls, kind) * getattr(metered.meter, kind) for kind in ("read", "heavy", "light"))

    rolled(drawer, starts.past, 1)
    first = spent()
    metered.meter.__init__()
    rolled(drawer, starts.past, 2)
    found, members = costs(drawer_of(model, steps=4)), 2 * 3
    assert found["first_window"] == pytest.approx(first / members)
    assert found["later_window"] == pytest.approx((spent() - first) / members)
    with pytest.raises(ValueError, match=r"draws a window by 1 in 4 steps: roll it out, dualrate forecast RUN"):
        list(drawer_of(model, steps=4).states([0]))
    save_samples(model, tmp_path / "grid.png")  # by a heavy call in each roll
    plan = model.process.served(StepPlan.uniform(10, 1))
    clocks = model.process.clock(torch.tensor(plan.t, dtype=torch.float64))
    heavy = [clock for clock, refresh in zip(clocks.tolist(), plan.refresh, strict=False) if refresh is Refresh.FULL]
    assert heavy == [3, 2, 1, 0, -1]


def by_lead(source: Path, path: Path, frames: int = 5, **task) -> Model:
    """Each frame by itself."""
    plain = experiment_of(source, Forecast(frames=1, **task))
    made = replace(plain.condition, frames=frames, scale=tuple(float(k + 1) for k in range(frames * CHANNELS)))
    networks = replace(plain.networks, leads=tuple(range(1, frames + 1)))
    process = SharedNoise(plain.process.schedule, frames)
    return load(saved_random(replace(plain, networks=networks, condition=made, process=process), path))


def test_any_lead_is_made_alone_as_among_all_of_one_heavy_call(source, tmp_path):
    """Every second of five: frames 2 and 4, then of a second window those after frame 4."""
    model = by_lead(source, tmp_path / "run", noise=0.1)
    some, starts = with_stride(model, 2), held_out_starts(model, 5, 3)
    counting = [Counting(one.denoiser) for one in (model, some)]
    whole, fewer = (
        drawer_of(replace(one, denoiser=counted), 4, 12) for one, counted in zip((model, some), counting, strict=True)
    )
    found = rolled(fewer, starts.past, 2)
    np.testing.assert_allclose(found, rolled(whole, starts.past, 5)[:, :, 1::2], rtol=1e-5)
    assert [one.heavy for one in counting] == [[3], [3]]  # of three starts, four members of each
    rolled(fewer, starts.past, 4)
    assert counting[1].heavy == [3, 3, 12]
    assert some.experiment.condition.lead_times(4) == (2.0, 4.0, 6.0, 8.0)
    costs = [one.call_cost for one in (model, some)]
    assert costs[0].heavy == costs[1].heavy
    assert costs[1].light == pytest.approx(0.4 * costs[0].light, rel=0.02)
    truth = held_out_starts(some, 2, 1)
    assert np.array_equal(truth.truth(0), held_out_starts(model, 4, 1).truth(0)[1::2])
    record = [written(one, tmp_path / str(i), 2, starts=starts).record for i, one in enumerate((model, some))]
    assert record[0].origin.experiment != record[1].origin.experiment


def test_what_makes_no_lead_alone_says_so(source, model, tmp_path):
    with pytest.raises(ValueError, match=r"makes the 2 frame.* of a window together: drop --stride"):
        with_stride(model, 2)
    some = with_stride(by_lead(source, tmp_path / "run", past=2), 2)
    past = held_out_starts(some, 1, 1).past
    assert rolled(drawer_of(some), past, 2).shape[2] == 2
    with pytest.raises(ValueError, match=r"frames 2 apart, from which it cannot go on: ask for 2 frame"):
        rolled(drawer_of(some), past, 3)
    with pytest.raises(ValueError, match="makes 5 frames, got a stride of 6: give 1 to 5"):
        with_stride(by_lead(source, tmp_path / "other"), 6)


@pytest.mark.parametrize("names", [("500", "850"), ("u10", "u100"), ("t",)])
def test_levels_are_names_and_numbers_of_channels_are_none(names):
    assert have_names(names)
    assert not any(map(have_names, (None, (), ("u",), ("u0", "u1"), ("0", "1"))))
