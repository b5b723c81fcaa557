"""Forecasts in latents of clips: by a codec that changes nothing those in pixels; trained, killed, decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forecasts.made_forecasts import rolled
from PIL import Image
from runs.made import saved_random
from torch import Tensor

import dualrate as dr
from dualrate.cli.main import parsed
from dualrate.codecs.codec import CodecFolder
from dualrate.diffusion.random import Draws
from dualrate.drawing.cost import cost_report
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.model import Model
from dualrate.forecasts.clip_recipe import ClipStages
from dualrate.forecasts.clip_set import Cut, prepare_clips
from dualrate.forecasts.comparison import check_same_starts
from dualrate.forecasts.condition import Coder
from dualrate.forecasts.evaluation import window_members
from dualrate.forecasts.folder import write_forecast
from dualrate.forecasts.latent_forecast import ClipCoder, LatentForecast
from dualrate.forecasts.model import costs, forecast_of, window_cost, with_stride
from dualrate.forecasts.recipe import TIERS, Clips, ForecastTier
from dualrate.forecasts.service import ForecastService
from dualrate.forecasts.starts import held_out_starts, read_starts
from dualrate.options.acting import refusal
from dualrate.recipes.students import StudentRecipe, consistency_student, plain_student
from dualrate.runs.store import load
from dualrate.runs.train import train
from dualrate.training.config import FitConfig

SIDE, EACH, CHANNELS = 16, 2, 2
FIT = FitConfig(2, 4, sample_every=2, checkpoint_every=2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Grey clips in `clips`, far from black and white, and in `codec` a run of random weights that encodes them."""
    root = tmp_path_factory.mktemp("latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUALRATE_CACHE", str(root / "cache"))
        patch.setitem(TIERS, "mini", ForecastTier((8, 8), (1, 1), FIT, embedding=16, patch=2))
        patch.setattr("dualrate.forecasts.clip_recipe.SIZES", dict.fromkeys(("heavy", "light"), (8, 1, 48, 1)))
        random = np.random.default_rng(0)
        for clip in range(12):
            frames = 128 + np.cumsum(random.normal(scale=2, size=(20, SIDE, SIDE)), 0).clip(-40, 40)
            (root / "clips" / str(clip)).mkdir(parents=True)
            for i, frame in enumerate(frames.round().astype(np.uint8)):
                Image.fromarray(frame).save(root / "clips" / str(clip) / f"{i}.png")
        prepare_clips(str(root / "clips"), root / "packed", Cut(4), size=SIDE, channels=1)
        stages = ClipStages(DataConfig(str(root / "packed")), each=EACH, latent_channels=CHANNELS)()
        saved_random(replace(stages.first, fit=FIT), root / "codec")
        yield root


def recipe(place: Path, **more: Any) -> Any:
    data = DataConfig(str(place / "clips"), channels=1, size=SIDE)
    return Clips(data, **{"past": 2, "frames": 4, "window": "attention", "size": "mini", **more})


class Same(Coder):
    """A codec whose latents are the frames, which are not on disk."""

    exact = False

    def delivered(self, frames: Tensor, rows: Tensor, number: int) -> Tensor:
        return frames.clamp(0, 255)


@pytest.mark.parametrize("how", [{"window": "attention"}, {"window": "causal", "trained_by": "rolling"}])
def test_latents_that_are_the_frames_are_forecast_as_these_are(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    """To the bit, over three windows, and where a forecast goes on after frames that are there."""
    monkeypatch.setattr(LatentForecast, "coder", lambda self, device: Same())
    experiment: Any = recipe(place, frames=2, **how)()
    forecast: Any = experiment.condition
    fields = {name: getattr(forecast, name) for name in ("past", "frames", "lead", "statistics", "scale")}
    latents = LatentForecast(**fields, clips=forecast, latents=CodecFolder("", ""), image=(1, SIDE, SIDE))
    ours, theirs = (
        load(saved_random(each, tmp_path / name))
        for name, each in (("latents", replace(experiment, condition=latents)), ("pixels", experiment))
    )
    past = held_out_starts(theirs, 6, 2).past
    drawers = [dr.Choice(2).drawer(model, members=2, precision="float32") for model in (theirs, ours)]
    expected, made = (rolled(drawer, past, 6) for drawer in drawers)
    assert 0 < expected.min() < expected.max() < 255
    np.testing.assert_array_equal(made, expected)
    earlier: Any = lambda starts, members: expected[starts.start : starts.stop, members.start : members.stop, :3]  # noqa: E731
    np.testing.assert_array_equal(rolled(drawers[1], past, 6, earlier=earlier)[:, :, 3:], expected[:, :, 3:])


def test_a_latent_is_of_its_frames_alone_wherever_they_are(place: Path) -> None:
    """Two frames that are two apart have the latent of these in a whole clip, and that which is kept for training."""
    experiment = recipe(place, lead=2, codec=place / "codec")()
    forecast: Any = experiment.condition
    assert (forecast.past, forecast.frames, forecast.lead, forecast.each) == (1, 2, 4, EACH)
    coder: Any = forecast.coder("cpu")
    latents, clips = forecast.items(experiment.data, "train"), forecast.clips.read_fields(experiment.data, "train")
    assert [each.shape[0] for each in latents.trajectories] == [20 - 2] * len(clips.trajectories)
    clip = torch.from_numpy(clips.frames(3, 5, 7)[::2])
    pieces = coder.encoded(clip.unflatten(0, (2, EACH)))
    torch.testing.assert_close(torch.from_numpy(latents.frames(3, 5, 5)[::4]), pieces)
    whole = coder.codec.encode(clip.flatten(0, 1)[None] / 127.5 - 1).mean
    torch.testing.assert_close(whole, pieces.flatten(0, 1)[None])
    torch.testing.assert_close(coder.received(clip[None]), pieces[None])
    drawn = coder.decoded(pieces, Draws(3, torch.tensor([1, 2])))
    torch.testing.assert_close(drawn[1:], coder.decoded(pieces[1:], Draws(3, torch.tensor([2]))), atol=1e-2, rtol=0)


def test_clips_are_encoded_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = recipe(place, codec=place / "codec")()
    before = experiment.condition.items(experiment.data, "train")
    monkeypatch.setattr(ClipCoder, "encoded", lambda self, frames: pytest.fail("encoded again"))
    after = experiment.condition.items(experiment.data, "train")
    assert after.fingerprint == before.fingerprint
    np.testing.assert_array_equal(after.frames(0, 0, 9), before.frames(0, 0, 9))


@pytest.fixture(scope="module")
def model(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Windows of two latents, of two frames each, after one latent."""
    return load(saved_random(recipe(place, codec=place / "codec")(), tmp_path_factory.mktemp("run") / "ahead"))


def write(model: Model, out: Path, **more: Any) -> Any:
    drawer = dr.Choice(2).drawer(model, members=2, batch_size=2, precision="float32")
    return write_forecast(drawer, held_out_starts(model, 9, 2), 9, out, **more)


@pytest.mark.parametrize("trained_by", ["diffusion", "rolling"])
def test_a_forecast_is_of_frames_and_goes_on_after_a_kill_with_the_same_bits(
    model: Model, place: Path, tmp_path: Path, trained_by: str
) -> None:
    if trained_by == "rolling":
        rolling = recipe(place, codec=place / "codec", window="causal", trained_by=trained_by)()
        model = load(saved_random(rolling, tmp_path / "rolling"))
    straight = write(model, tmp_path / "straight")
    assert straight.x.shape == (2, 2, 9, 1, SIDE, SIDE)
    assert {"forecast.png", "forecast.webp", "truth.npy"} <= {file.name for file in (tmp_path / "straight").iterdir()}
    assert straight.record.lead_times == forecast_of(model).lead_times(9)
    assert not np.array_equal(straight.x[0, 0], straight.x[0, 1])

    def killed(done: int, total: int) -> None:
        if done > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="of 36 frames are in"):
        write(model, tmp_path / "out", progress=killed)
    again = write(model, tmp_path / "out")
    assert 0 < again.drawn < straight.drawn == 36
    np.testing.assert_array_equal(again.x, straight.x)


def test_it_is_compared_with_a_forecast_in_pixels(model: Model, place: Path, tmp_path: Path) -> None:
    pixels = load(saved_random(recipe(place)(), tmp_path / "pixels"))
    check_same_starts([model, pixels])
    with pytest.raises(ValueError, match="they differ in frames"):
        check_same_starts([model, load(saved_random(recipe(place, frames=2)(), tmp_path / "other"))])


def test_a_start_is_what_was_encoded_and_a_frame_costs_its_decoding(model: Model, place: Path) -> None:
    drawer = dr.Choice(2).drawer(model, members=4)
    forecast: Any = model.experiment.condition
    coder, cost = forecast.coder("cpu"), costs(drawer)
    assert (coder.reading > 0, coder.writing > 0, cost["frames"]) == (True, True, 2 * EACH)
    assert cost["first_window"] == round(drawer.cost.macs + coder.reading / 4 + 2 * coder.writing)
    assert cost["later_window"] == replace(drawer, members=1).cost.macs + 2 * coder.writing
    starts = read_starts(place / "clips" / "0", model)
    assert starts.past.shape == (1, EACH, 1, SIDE, SIDE)
    starts, x = window_members(drawer, 2)
    assert x.shape == (2, 4, 2 * EACH, 1, SIDE, SIDE)
    assert (x >= 0).all()
    assert (x <= 255).all()


@pytest.mark.parametrize("members", [1, 2])
def test_a_window_costs_as_much_wherever_it_is_counted(model: Model, members: int) -> None:
    drawer = dr.Choice(2).drawer(model, members=members)
    report = cost_report(drawer)
    assert report["macs_per_image"] == window_cost(drawer) > drawer.cost.macs
    assert "seconds_per_image_without_codec" in report


def test_another_decoder_makes_another_forecast(model: Model, tmp_path: Path) -> None:
    fewer = model.with_codec(None, None, 2)
    mine, theirs = (costs(dr.Choice(2).drawer(each)) for each in (fewer, model))
    assert mine["later_window"] < theirs["later_window"]
    first = write(model, tmp_path / "out")
    with pytest.raises(ValueError, match="holds other forecasts"):
        write(fewer, tmp_path / "out")
    other = write(fewer, tmp_path / "other")
    assert not np.array_equal(other.x, first.x)
    with pytest.raises(ValueError, match="holds no codec"):
        recipe(tmp_path, codec=tmp_path)()


def test_commands_take_the_codec_where_it_acts(place: Path, model: Model) -> None:
    words = f"--codec {place / 'codec'} --data.source {place / 'clips'} --trained-by rolling --no-difference --frames 4"
    command: Any = parsed(["train", "clips", *words.split(), "--window", "causal", "--size", "mini"])
    assert isinstance(command.experiment.condition, LatentForecast)
    assert command.experiment.data == DataConfig(f"clips:{place / 'clips'}", size=SIDE, channels=1)
    assert refusal("forecast", [str(model.path), "--codec-steps", "2", "--members", "3"]) is None
    assert "--region: only for" in (refusal("forecast", [str(model.path), "--region", "tropics"]) or "")


def test_latents_of_several_frames_take_no_stride_and_say_the_way(place: Path, tmp_path: Path) -> None:
    leads = load(saved_random(recipe(place, codec=place / "codec", window="leads")(), tmp_path / "leads"))
    with pytest.raises(ValueError, match="makes several frames together: drop the stride, or leave out frames of the"):
        with_stride(leads, 2)


def test_a_server_draws_the_same_first_window(model: Model) -> None:
    drawer = dr.Choice(2).drawer(model, members=2, precision="float32")
    work = ForecastService(model).work(None, 0, 1, 2, 10)
    frames = work.draw(drawer, drawer.denoiser, lambda state: None)
    np.testing.assert_array_equal(frames, rolled(drawer, held_out_starts(model, 4).past[:1], 4))
    shown = work.answer(drawer, frames).pictures
    assert shown.shape[1:] == (1, 4 * SIDE, SIDE)


@pytest.mark.parametrize("codec", [True, False], ids=["latents", "pixels"])
def test_training_and_students_of_few_steps(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, codec: bool
) -> None:
    more = {"codec": place / "codec"} if codec else {}
    with monkeypatch.context() as patch:
        if codec:
            patch.setattr("dualrate.runs.train.sample_batches", lambda *of, **how: pytest.fail("samples are drawn"))
        train(recipe(place, difference=True, **more)(), tmp_path / "teacher")
    grids = list((tmp_path / "teacher" / "samples").glob("*.png"))
    assert bool(grids) != codec  # whose channels show nothing
    students = StudentRecipe(None, None, FIT)
    teacher = str(tmp_path / "teacher")
    for name, student in (("moments", plain_student), ("consistency", consistency_student)):
        train(student(students, teacher, 2), tmp_path / name)
        ahead = dr.forecast(load(tmp_path / name), 2, frames=5, members=2)
        assert ahead.ensemble.shape == (2, 2, 5, 1, SIDE, SIDE)
        assert ahead.scores is not None


def test_what_a_codec_does_not_encode_is_refused_with_the_way(place: Path) -> None:
    ready = recipe(place, codec=place / "codec")
    for data in (DataConfig(str(place / "clips"), size=32), DataConfig("moving-sprites")):
        with pytest.raises(ValueError, match=r"encodes frames of \(1, 16, 16\) .* drop --data.size"):
            replace(ready, data=data)()
    with pytest.raises(ValueError, match="forecast without --every: drop that"):
        replace(ready, every=2)()
    single = replace(ready, frames=2)  # one latent of two frames, which attends to none
    assert single().networks == replace(single, window="channels")().networks
    with pytest.raises(ValueError, match="give --frames 8"):
        replace(ready, trained_by="rolling", difference=False, frames=2)()
