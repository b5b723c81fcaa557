"""Past frames of a field, and the frames that come next: which they are, how they are scaled and observed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import dualrate as dr
from dualrate.config.serial import from_plain, to_plain
from dualrate.data.loader import Augment, Batches
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.network_configs import OneConditional, TwoConditional
from dualrate.forecasts.condition import Forecast, Windows
from dualrate.forecasts.fields import Fields, Statistics, survey
from dualrate.forecasts.recipe import TIERS, Forecasting, heavy_network
from dualrate.forecasts.rolling import RollingConfig
from dualrate.forecasts.rolling_process import Rolling, SharedNoise
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import GivenTimes, SingleTime
from dualrate.system.progress import Silent

CHANNELS, WIDTH = 2, 16


def fields_of(trajectories: list[NDArray[np.float32]], variables: tuple[str, ...]) -> Fields:
    hashed, statistics = survey("made", trajectories, variables)
    return Fields("made", trajectories, variables, None, statistics, hashed)


def known(mean: tuple[float, ...], std: tuple[float, ...]) -> Statistics:
    return Statistics(mean, std, std)


def counted(*lengths: int) -> Fields:
    """Frame t of trajectory i is 100 i + t everywhere, in channel 1 negative."""
    sign = np.array([1, -1], np.float32)[:, None, None]
    made = [
        (100 * i + np.arange(length, dtype=np.float32))[:, None, None, None] * sign * np.ones((1, WIDTH), np.float32)
        for i, length in enumerate(lengths)
    ]
    return fields_of(made, ("up", "down"))


def noise(trajectories: int = 6, frames: int = 40) -> Fields:
    """x_{t+1} = 0.9 x_t + ..., of mean 5 and standard deviations 1 and 3."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(trajectories, frames, CHANNELS, 1, WIDTH))
    for t in range(1, frames):
        x[:, t] = 0.9 * x[:, t - 1] + (1 - 0.81) ** 0.5 * x[:, t]
    scaled = 5 + x * np.array([1, 3])[:, None, None]
    return fields_of(list(scaled.astype(np.float32)), ("a", "b"))


def rows(fields: Fields, forecast: Forecast, *index: int, past: bool = False) -> torch.Tensor:
    some = np.array(index)
    return Windows(fields, forecast, past=past).rows(some, Draws(0, torch.from_numpy(some)), Augment())


def test_a_window_holds_the_frames_that_it_says() -> None:
    """Two given, three made, each two time steps after the one before; windows go through all trajectories."""
    fields, plain = counted(9, 5, 11), Forecast(2, 3, 2)
    forecast = replace(plain, statistics=known((0.0, 0.0), (1.0, 1.0)), scale=(1.0,) * 6)
    assert forecast.span == 9
    assert len(Windows(fields, forecast)) == 1 + 0 + 3
    past, made = (rows(fields, forecast, 0, 3, past=past)[..., 0, 0] for past in (True, False))
    assert past.tolist() == [[0, 0, 2, -2], [202, -202, 204, -204]]
    assert made.tolist() == [[4, -4, 6, -6, 8, -8], [206, -206, 208, -208, 210, -210]]


def test_frames_that_are_made_may_be_further_apart_than_those_given() -> None:
    fields, plain = counted(12), Forecast(2, 2, 2, stride=2)
    forecast = replace(plain, statistics=known((0.0, 0.0), (1.0, 1.0)), scale=(1.0,) * 4)
    past, made = (rows(fields, forecast, 0, past=past)[0, ::2, 0, 0].tolist() for past in (True, False))
    assert (forecast.span, past, made) == (11, [0, 2], [6, 10])


@pytest.mark.parametrize("difference", [False, True])
def test_what_networks_see_has_unit_variance(difference: bool) -> None:
    fields = noise()
    forecast = Forecast(1, 2, 3, difference).of(fields)
    x = rows(fields, forecast, *range(len(Windows(fields, forecast)))).double()
    spread = x.square().mean((0, 2, 3)).sqrt()
    torch.testing.assert_close(spread, torch.ones_like(spread), rtol=0, atol=1e-3 if difference else 0.05)
    expected = [(2 - 2 * 0.9**lag) ** 0.5 for lag in (3, 3, 6, 6)] if difference else [1.0] * 4
    np.testing.assert_allclose(forecast.scale, expected, rtol=0.06)


@pytest.mark.parametrize("difference", [False, True])
def test_frames_are_made_of_samples_and_back(difference: bool) -> None:
    forecast = replace(
        Forecast(2, 3, difference=difference),
        statistics=known((5.0, -1.0), (2.0, 0.5)),
        scale=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
    )
    torch.manual_seed(0)
    last, following = torch.randn(4, CHANNELS, 1, WIDTH), torch.randn(4, 3, CHANNELS, 1, WIDTH)
    back = forecast.frames_of(forecast.sample_of(last, following), last)
    torch.testing.assert_close(back, following)
    statistics = forecast.statistics
    torch.testing.assert_close(statistics.restored(statistics.normalised(following)), following)


def test_a_difference_is_from_the_last_frame_that_is_given() -> None:
    fields = counted(6)
    forecast = replace(
        Forecast(2, 2, difference=True), statistics=known((0.0, 0.0), (0.5, 0.25)), scale=(1.0, 1.0, 2.0, 2.0)
    )
    assert rows(fields, forecast, 0)[0, :, 0, 0].tolist() == [1 / 0.5, -1 / 0.25, 2 / 0.5 / 2, -2 / 0.25 / 2]


def test_a_channel_that_never_changes_has_scale_1() -> None:
    """Such as one that says where there is land, beside one that counts by 1 of deviation d."""
    fields = counted(6, 6)
    still = fields_of([np.stack([one[:, 0], 7 + 0 * one[:, 0]], 1) for one in fields.trajectories], ("up", "land"))
    forecast = Forecast(1, 2, difference=True).of(still)
    d = still.statistics.std[0]
    np.testing.assert_allclose(forecast.scale, [1 / d, 1, 2 / d, 1], rtol=1e-6)


def test_what_is_observed_in_part_and_with_noise() -> None:
    """Noise is a function of the sample's number, and has the standard deviation that was asked for."""
    past, draws = torch.zeros(500, 3, 8, WIDTH), Draws(0, torch.arange(500))
    y = Forecast(every=4, noise=0.3).observe(past, draws)
    assert y.shape[1:] == (3, 2, 4)
    assert float(y.std()) == pytest.approx(0.3, rel=0.03)
    again = Forecast(every=4, noise=0.3).observe(past[7:9], Draws(0, torch.arange(7, 9)))
    assert torch.equal(again, y[7:9])
    line = torch.arange(float(WIDTH)).expand(1, 1, 1, WIDTH)
    assert Forecast(every=5).observe(line, Draws(0, torch.arange(1))).flatten().tolist() == [0, 5, 10, 15]


def test_a_batch_gives_each_sample_its_own_past() -> None:
    """In trajectories that count, what comes next is the last of the past plus the lead."""
    fields = counted(30, 20)
    forecast = replace(Forecast(2, 1, 3), statistics=known((0.0, 0.0), (1.0, 1.0)), scale=(1.0, 1.0))
    batch = Batches(forecast.conditioned(fields), 8, seed=1).batch(5)
    assert batch.given is not None
    assert torch.equal(batch.x[:, 0], batch.given[:, 2] + 3)
    assert torch.equal(batch.given[:, 2], batch.given[:, 0] + 3)


def test_a_batch_reads_each_window_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []

    def noted(fields: Fields, trajectory: int, first: int, count: int) -> NDArray[np.float32]:
        read.append((trajectory, first))
        return frames(fields, trajectory, first, count)

    fields, frames = counted(30, 20), Fields.frames
    forecast = replace(Forecast(2, 1, 3), statistics=known((0.0, 0.0), (1.0, 1.0)), scale=(1.0, 1.0))
    batches = Batches(forecast.conditioned(fields), 8, seed=1)
    monkeypatch.setattr(Fields, "frames", noted)
    for k in range(3):
        _ = batches.batch(k)
    assert len(read) == 3 * 8


def made(fields: Path, **how: object) -> dr.Experiment:
    return Forecasting(dr.DataConfig(str(fields)), **how)(Silent())  # pyright: ignore[reportArgumentType]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    x = np.stack(noise(20).trajectories)
    np.savez(tmp_path / "fields.npz", fields=x[:, :, :, 0])
    return tmp_path / "fields.npz"


def test_a_recipe_keeps_the_statistics_in_the_run(source: Path) -> None:
    found = made(source, past=2, frames=3, every=4, noise=0.1)
    assert isinstance(found.condition, Forecast)
    assert found.shape == (3 * CHANNELS, 1, WIDTH)
    assert found.networks.given == (2 * CHANNELS, 1, WIDTH // 4)
    np.testing.assert_allclose(found.condition.statistics.mean, (5, 5), atol=0.3)
    np.testing.assert_allclose(found.condition.statistics.std, (1, 3), rtol=0.05)
    assert from_plain(dr.Experiment, to_plain(found)) == found


@pytest.mark.parametrize(("space", "size"), [((32,), "tiny"), ((1, 32), "tiny"), ((8, 8), "mini")])
def test_the_size_of_networks_follows_the_dimensions_of_the_data(
    tmp_path: Path, space: tuple[int, ...], size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(4, 6, 1, *space)).astype(np.float32))
    data = dr.DataConfig(str(tmp_path / "a.npy"))
    experiment = Forecasting(data)()
    assert experiment == Forecasting(data, size=size)()  # pyright: ignore[reportArgumentType]
    assert experiment.name == f"a-npy-forecast-{size}-dual"
    assert "for a first look: --fit.max-seconds 480" in capsys.readouterr().err


@pytest.mark.parametrize(("how", "said"), [({}, True), ({"every": 4}, False), ({"noise": 0.1}, False)])
def test_of_a_field_that_is_observed_in_full_a_recipe_says_that_it_has_one_future(
    source: Path, how: dict[str, float], said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    _ = Forecasting(dr.DataConfig(str(source)), **how)()  # pyright: ignore[reportArgumentType]
    says = (
        "a regression is enough (--trained-by regression); several futures are open where starts are uncertain (--noise"
    )
    assert (says in capsys.readouterr().err) is said


@pytest.mark.parametrize("rate", ["dual", "single"])
def test_a_recipe_of_windows_that_roll(source: Path, rate: str) -> None:
    found = made(source, past=2, frames=3, trained_by="rolling", rate=rate)
    assert found.process == Rolling(frames=3)
    assert isinstance(found.method, RollingConfig)
    assert found.method.times == (GivenTimes(4) if rate == "dual" else SingleTime())
    assert found.shape == (3 * CHANNELS, 1, WIDTH)
    assert from_plain(dr.Experiment, to_plain(found)) == found
    for hidden in ({"trained_by": "rolling"}, {"every": 4}, {"noise": 0.1}):
        with pytest.raises(ValueError, match="drop --difference"):
            made(source, frames=3, difference=True, **hidden)


@pytest.mark.parametrize("window", ["leads", "attention", "causal"])
@pytest.mark.parametrize("how", [{}, {"rate": "light"}, {"trained_by": "crps"}])
def test_a_recipe_of_frames_that_are_told_their_lead(source: Path, window: str, how: dict[str, str]) -> None:
    found = made(source, past=2, frames=3, window=window, **how)
    assert isinstance(found.networks, (OneConditional, TwoConditional))
    networks = found.networks
    among = window != "leads", window == "causal"
    assert (networks.leads, networks.attention, networks.causal) == ((1, 2, 3), *among)
    assert found.shape == (3 * CHANNELS, 1, WIDTH)
    plain = GaussianProcess(Cosine())
    assert found.process == (SharedNoise(Cosine(), 3) if window == "leads" else plain)
    assert not isinstance(found.method, DenoisingConfig) or found.method.times.draws == 1
    assert from_plain(dr.Experiment, to_plain(found)) == found
    for other in ({"rate": "both"}, {"trained_by": "residual"}):
        with pytest.raises(ValueError, match=r"--window leads, attention or causal.* by --rate dual, single"):
            made(source, frames=3, window=window, **other)
    with pytest.raises(ValueError, match=f"refiner makes the frames of a window together: drop --window {window}"):
        made(source, frames=3, window=window, trained_by="refiner")
    if window == "leads":
        with pytest.raises(ValueError, match="rolling makes the frames of a window together: drop --window leads"):
            made(source, frames=3, window=window, trained_by="rolling")
    else:
        rolling = made(source, frames=3, window=window, trained_by="rolling").networks
        assert (rolling.leads, rolling.causal) == ((1, 2, 3), window == "causal")


def test_held_out_starts_are_those_of_the_test_split(source: Path) -> None:
    found = made(source, past=1, lead=2)
    held = found.given("cpu")
    assert held is not None
    seeds = torch.tensor([0, 5, len(held.images)])  # round the windows
    given, truth = held(seeds), held.originals(seeds)
    condition = found.condition
    assert isinstance(condition, Forecast)
    raw = np.load(source)["fields"][18:, :, :, None]
    torch.testing.assert_close(given[1], condition.statistics.normalised(torch.from_numpy(raw[0, 5])))
    torch.testing.assert_close(torch.from_numpy(truth[1]), condition.statistics.normalised(torch.from_numpy(raw[0, 7])))
    assert torch.equal(given[0], given[2])


def test_one_frame_of_a_window_is_an_ordinary_forecast(source: Path) -> None:
    """The first frame of a window is what a forecast of one frame makes."""
    one, three = made(source).given("cpu"), made(source, frames=3).given("cpu")
    assert one is not None
    assert three is not None
    seeds = torch.arange(4)
    assert np.array_equal(one.originals(seeds), three.originals(seeds)[:, :CHANNELS])


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((1, 1, 64), [(1, 64), (1, 32)]),
        ((6, 32, 32), [(32, 32), (16, 16)]),
        ((1, 64, 128), [(64, 128), (32, 64), (16, 32)]),
        ((1, 1, 50), [(1, 50), (1, 25)]),
        ((1, 1, 45), [(1, 45)]),
        ((1, 1, 1024), [(1, 256), (1, 128), (1, 64), (1, 32)]),
        ((1, 1, 129), [(1, 129)]),
        ((1, 90, 258), [(45, 129)]),
        ((1, 100, 1), [(100, 1)]),
    ],
)
def test_networks_fit_any_field(shape: tuple[int, int, int], sides: list[tuple[int, int]]) -> None:
    heavy = heavy_network(shape, TIERS["tiny"], periodic=True)
    assert heavy.shape == shape
    assert [heavy.sides(i) for i in range(heavy.num_levels)] == sides


def test_a_misfit_of_every_is_refused_before_frames_are_read(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualrate.forecasts.fields.survey", None)
    with pytest.raises(ValueError, match=r"condition of \(2, 1, 6\).*1 x 16, 1 x 8: .*a forecast's --every"):
        made(source, every=3)


def test_what_a_forecast_cannot_be_of(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="windows of 41 frames, expected 1 to 40"):
        made(source, frames=40)
    still = np.zeros((20, 40, 1, 16), np.float32)
    still[:, :, :, 0] = 1
    np.savez(tmp_path / "still-fields.npz", fields=still)
    with pytest.raises(ValueError, match="never changes from frame to frame"):
        made(tmp_path / "still-fields.npz", difference=True)
    with pytest.raises(ValueError, match="fields are not mirrored"):
        replace(made(source), data=dr.DataConfig(str(source), augment=Augment(flip=True)))
    with pytest.raises(ValueError, match="holds fields, which are no images"):
        dr.DataConfig(str(source)).images("test")
    with pytest.raises(ValueError, match="holds no fields: give"):
        Forecasting(dr.DataConfig(""))()
    with pytest.raises(FileNotFoundError, match="no such file or folder: fashion-mnist, nor is it one of"):
        Forecasting(dr.DataConfig("fashion-mnist"))()


def test_what_training_needs_later_is_looked_at_first(tmp_path: Path) -> None:
    """Training draws samples of the held-out part at its first pictures."""
    x = np.concatenate([np.asarray(one) for one in noise(2, 50).trajectories])[None, :, :, 0]
    np.save(tmp_path / "one.npy", x)
    assert made(tmp_path / "one.npy", frames=3, lead=3).shape == (3 * CHANNELS, 1, WIDTH)
    with pytest.raises(ValueError, match=r"one/test: windows of 13 frames, expected 1 to 10"):
        made(tmp_path / "one.npy", frames=3, lead=4)
    x[0, 95, 1, 3] = np.nan
    np.save(tmp_path / "one.npy", x)
    with pytest.raises(ValueError, match=r"one/test: trajectory 0, frame 95, channel 1"):
        made(tmp_path / "one.npy")


def test_a_recipe_says_how_axes_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.stack(noise(20).trajectories)[:, :, :, 0]  # (trajectory, time, 2, x)
    for array, said in ((x, True), (x[:, :, :, None], False), (x[:, :, :1], False)):
        np.save(tmp_path / "mine.npy", array)
        _ = Forecasting(dr.DataConfig(str(tmp_path / "mine.npy")))()
        assert ("(20, 40, 2, 16) are read as (trajectory, time, channel, x)" in capsys.readouterr().err) is said
