"""Roll-outs: a heavy call shared by members once, closed forms after many windows, and the same bits after a kill."""

import gc
import io
import itertools
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forecasts.made_forecasts import CHANNELS, WIDTH, drawer_of, experiment_of, model_of, rolled, written
from matplotlib.figure import Figure
from PIL import Image
from runs.made import saved_random
from torch import Tensor

from dualrate.denoisers.denoiser import Denoiser, Metered, given_of
from dualrate.diffusion.context import Cond, Context, Refresh, Reuse
from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.choice import Choice
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.model import Model
from dualrate.experiment.network_configs import OneNetwork, ThreeConditional
from dualrate.forecasts import folder as forecast_folder
from dualrate.forecasts import pictures as field_pictures
from dualrate.forecasts import rollout as module
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.fields import read_fields
from dualrate.forecasts.folder import ForecastArray, write_forecast
from dualrate.forecasts.model import costs, window_cost, with_stride
from dualrate.forecasts.rolling import RollingConfig, roll
from dualrate.forecasts.rolling_process import Rolling, SharedNoise
from dualrate.forecasts.rollout import FrameBlock, roll_out
from dualrate.forecasts.starts import Starts, held_out_starts
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import GivenTimes
from dualrate.networks.blocks import add_shared
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs.store import load
from dualrate.runs.train import save_samples
from dualrate.sampling.grids import grid_times
from dualrate.sampling.solvers import SDEDPMSolver2M
from dualrate.system.workers import packed, unpacked
from dualrate.training.config import FitConfig

MEMBER, WINDOW = 2**40, 2**20


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
    starts, held = held_out_starts(model, 1, 2), []
    for number, _ in enumerate(roll_out(drawer_of(last_frame, 64, 64, 1), starts, 50)):
        if number in (10, 40, 90):
            gc.collect()
            held.append(sum(one.numel() for one in gc.get_objects() if isinstance(one, Tensor)))
    assert (number, held) == (99, held[:1] * 3)  # two starts, 64 members of each at a time


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("pieces", "often", "error"),
    [(0, 0.0, Killed), *itertools.product((2, 4), (0.0, 1000.0), (Killed, KeyboardInterrupt))],
)
def test_a_forecast_goes_on_with_the_bits_of_an_uninterrupted_one(model, tmp_path, monkeypatch, pieces, often, error):
    monkeypatch.setattr(forecast_folder, "SAVED_EVERY", often)
    straight = written(model, tmp_path / "straight")
    count, write = 0, ForecastArray.write

    def dies(store, piece):
        nonlocal count
        if count == pieces:
            raise error
        write(store, piece)
        count += 1

    with monkeypatch.context() as patch, suppress(Killed, KeyboardInterrupt):
        patch.setattr(ForecastArray, "write", dies)
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
        patch.setattr(ForecastArray, "save", lambda store, save=ForecastArray.save: dying(store, save))
        written(model, tmp_path / "out")
    again = written(model, tmp_path / "out", batch_size=2)
    assert 0 < again.drawn < straight.drawn
    np.testing.assert_allclose(again.x, straight.x, rtol=3e-6)


def test_a_batch_cut_otherwise_leaves_no_mixture_behind_a_kill(model, tmp_path, monkeypatch):
    """Frames say which drawing they are of. Each member's are of one drawing after another, and never go back."""
    drawing = [0]

    def marked(drawer, starts, frames, *, earlier, **_):
        for some, members in module.rolled_together(len(starts), drawer):
            for first in range(earlier(some, members).shape[2], frames, 2):
                x = np.full((len(some), len(members), 2, CHANNELS, 1, WIDTH), drawing[0], np.float32)
                yield module.FrameBlock(some, members, range(first, first + 2), x)

    def dying_after(pieces: int | None, write=ForecastArray.write):
        numbers = itertools.count()

        def write_or_die(store: ForecastArray, piece) -> None:
            if next(numbers) == pieces:
                raise Killed
            write(store, piece)

        return write_or_die

    monkeypatch.setattr(forecast_folder, "roll_out", marked)
    monkeypatch.setattr(forecast_folder, "SAVED_EVERY", 1e9)
    for number, (size, after) in enumerate(((3, 4), (9, 1), (3, None)), 1):
        drawing[0] = number
        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(ForecastArray, "write", dying_after(after))
            found = written(model, tmp_path / "out", batch_size=size)
    frames = found.x[..., 0, 0, 0]
    assert (np.diff(frames, axis=2) >= 0).all()


@pytest.mark.parametrize("place", [0, 1, 5])  # of a start's first frame, of another member, of a later frame
def test_a_flipped_bit_is_seen_and_drawn_again(model, tmp_path, monkeypatch, place):
    straight = written(model, tmp_path / "straight")
    monkeypatch.setattr(forecast_folder, "SAVED_EVERY", 0.0)
    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(ForecastArray, "save", lambda store, save=ForecastArray.save: dying(store, save))
        written(model, tmp_path / "out")
    frames = int(np.prod(straight.x.shape[3:])) * 4
    file, at = tmp_path / "out" / "forecast.npy", 128 + {0: 0, 1: 6 * frames, 5: 3 * frames}[place]
    content = bytearray(file.read_bytes())
    content[at + 2] ^= 1
    file.write_bytes(content)
    messages = []
    again = written(model, tmp_path / "out", note=messages.append)
    np.testing.assert_array_equal(again.x, straight.x)
    assert messages == [f"{file}: 1 member not as written, to be drawn again"]
    content = bytearray(file.read_bytes())
    content[-1] ^= 128  # of a forecast that was whole
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="1 member not as written"):
        np.testing.assert_array_equal(written(model, tmp_path / "out").x, straight.x)
    assert written(model, tmp_path / "out", note=messages.append).drawn == 0
    assert len(messages) == 1


def test_frames_of_several_batches_may_come_by_turns(tmp_path, monkeypatch):
    """As those of several processes do; what is there is noted of all of them, and hashed once."""
    shape, read = (2, 1, 3, CHANNELS, 1, WIDTH), []
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    array, hashed = ForecastArray(tmp_path, shape), ForecastArray._hash
    monkeypatch.setattr(ForecastArray, "_hash", lambda *of: read.append(of[2]) or hashed(*of))
    for frame, start in ((0, 0), (0, 1), (1, 1), (1, 0), (2, 0)):
        place = range(start, start + 1), range(1), range(frame, frame + 1)
        array.write(FrameBlock(*place, x[tuple(slice(part.start, part.stop) for part in place)]))
    array.save()
    again = ForecastArray(tmp_path, shape)
    assert read == [0, 0, 3, 2]  # at the first frames, and by who goes on
    assert (again.done.tolist(), again.damaged) == ([[3], [2]], 0)
    assert np.array_equal(again.earlier(range(1, 2), range(1)), x[1:, :, :2])


def test_a_flipped_bit_of_the_header_is_an_error_that_names_the_file(model, tmp_path):
    """numpy reads a header as Python, whose tokens may not end."""
    straight, file = written(model, tmp_path / "out"), tmp_path / "out" / "forecast.npy"
    content, messages = file.read_bytes(), []
    for bit in range(0, 8 * 128, 3):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            ForecastArray(tmp_path / "out", straight.x.shape)  # a bit may not matter
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 300
    assert all(str(file) in message and "delete it, and it is drawn again" in message for message in messages)
    file.write_bytes(content)
    journal = tmp_path / "out" / "forecast.journal"
    journal.write_text(journal.read_text().replace('"frames": 6', '"frames": 7'))
    with pytest.raises(ValueError, match="line 1 does not say which frames are there: remove that line"):
        ForecastArray(tmp_path / "out", straight.x.shape)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match="a named pipe; expected a file: delete it"):
        ForecastArray(tmp_path / "out", straight.x.shape)


def test_a_journal_without_hashes_is_believed(model, tmp_path):
    straight, journal = written(model, tmp_path / "out"), tmp_path / "out" / "forecast.journal"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    journal.write_text("".join(f"{json.dumps({name: one[name] for name in ('rows', 'frames')})}\n" for one in lines))
    again = written(model, tmp_path / "out")
    assert again.drawn == 0
    np.testing.assert_array_equal(again.x, straight.x)


@pytest.mark.parametrize("kind", ["npz", "netcdf"])
def test_other_files_of_a_forecast_are_written_anew(model, tmp_path, kind):
    written(model, tmp_path / "out", format=kind)
    file = tmp_path / "out" / {"npz": "forecast.npz", "netcdf": "forecast.nc"}[kind]
    content, changed = file.read_bytes(), bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 4
    file.write_bytes(changed)
    written(model, tmp_path / "out", format=kind)
    if kind == "npz":
        np.testing.assert_array_equal(np.load(file)["fields"], np.load(io.BytesIO(content))["fields"])
    else:
        assert file.read_bytes() == content


def dying(store: ForecastArray, save: Callable[[ForecastArray], None]) -> None:
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
    assert np.isnan(np.load(out / "forecast.npz")["step"])  # the time of the data is not known
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
    """States of `methods.rolling.roll` have the same bits from a frame on; a heavy call a start, then one a member."""
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
    later = list(roll_out(drawer, held, 5, seed=7, earlier=lambda starts, members: whole[:, :, :3]))
    assert [piece.frames for piece in later] == [range(3, 4), range(4, 5)]
    assert all(np.array_equal(piece.x[:, :, 0], whole[:, :, piece.frames.start]) for piece in later)
    uneven = replace(drawer, step=SDEDPMSolver2M(model.process), plan=StepPlan.at((1, 0.6, 0.3, 0), [0]))
    frames, how = rolled(uneven, held.past, 2, seed=7), {"step": uneven.step}
    windows = roll(drawer.denoiser, model.process, forecast, past, keys, uneven.plan.t, **how)
    for k, window in zip(range(2), windows, strict=False):
        assert np.array_equal(forecast.statistics.restored(window.frame).unflatten(0, (2, 3)), frames[:, :, k])
    assert not np.allclose(frames, whole[:, :, :2])
    with pytest.raises(ValueError, match=r"a roll goes from the clock 1 to 0, got 0.9 to 0"):
        rolled(replace(drawer, plan=StepPlan.at((0.9, 0), [0])), held.past, 2)
    usual, chosen = Choice(steps=4).drawer(model), Choice(steps=4, gamma=0.2, grid="blend:0.5").drawer(model)
    assert (usual.step, usual.plan.t) == (SDEDPMSolver2M(model.process), StepPlan.uniform(4).t)
    assert (chosen.step, chosen.plan.t) == (
        SDEDPMSolver2M(model.process, 0.2),
        grid_times("blend:0.5", model.process.pace, 4),
    )
    calls = model.call_cost
    record = write_forecast(drawer, held, 2, tmp_path / "out").record
    with pytest.raises(ValueError, match=r"they differ in sampler \(reverse; now SDE-DPM-Solver\+\+ 2M\)"):
        write_forecast(replace(drawer, step=usual.step), held, 2, tmp_path / "out")
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
    assert calls.denoised
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
    sent = unpacked(packed(some))  # as to another process, which loads all leads
    assert np.array_equal(rolled(drawer_of(sent, 4, 12), starts.past, 2), found)
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
    with pytest.raises(ValueError, match=r"makes several frames together: drop the stride, or train with window leads"):
        with_stride(model, 2)
    some = with_stride(by_lead(source, tmp_path / "run", past=2), 2)
    past = held_out_starts(some, 1, 1).past
    assert rolled(drawer_of(some), past, 2).shape[2] == 2
    with pytest.raises(ValueError, match=r"frames 2 apart, from which it cannot go on: ask for 2 frame"):
        rolled(drawer_of(some), past, 3)
    with pytest.raises(ValueError, match="makes frames 1 to 5 of a window, got a stride of 6"):
        with_stride(by_lead(source, tmp_path / "other"), 6)
