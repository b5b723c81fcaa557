"""Clips: read to the pixel from what people have, at a rate, refused by name; trained on, gone on with, and shown."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs.made import saved_random

from dualrate.cli.main import parsed
from dualrate.data.decode import resize
from dualrate.diffusion.context import Cond
from dualrate.diffusion.random import Draws
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Start
from dualrate.forecasts import clips
from dualrate.forecasts.clips import ClipReading, read_clips
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.film import BLUE, BORDER, Film, pixels_of, write_video
from dualrate.forecasts.forecast import forecast
from dualrate.forecasts.recipe import TIERS, Clips, Forecasting, ForecastTier
from dualrate.forecasts.simulations import SIMULATIONS
from dualrate.forecasts.sources import is_fields
from dualrate.forecasts.sprites import MovingSprites
from dualrate.runs.store import load
from dualrate.training.config import FitConfig

COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [10, 200, 250]], np.uint8)
WHOLE = ClipReading()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))


def drawn(count: int, height: int = 6, width: int = 8, seed: int = 0) -> np.ndarray:
    """Frames (T, H, W, 3) of four colours, no two alike, as animations would merge those."""
    chosen = np.random.default_rng(seed).integers(0, len(COLOURS), (count, height, width))
    chosen[:, 0, :3] = np.arange(count)[:, None] // [1, 4, 16] % 4
    return COLOURS[chosen]


def save(path: Path, frames: np.ndarray, milliseconds: int | Sequence[int] = 100) -> Path:
    """Frames as an animation, or in a folder as pictures 0.png, 1.png, ..."""
    first, *rest = pictures = [Image.fromarray(frame) for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        how: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
        durations = milliseconds if isinstance(milliseconds, int) else list(milliseconds)
        first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, **how)
    else:
        path.mkdir()
        for i, picture in enumerate(pictures):
            picture.save(path / f"{i}.png")
    return path


def content(place: Path, how: ClipReading = WHOLE) -> list[np.ndarray]:
    return [np.asarray(each[0 : each.shape[0]]) for each in read_clips(place, how).trajectories]


@pytest.mark.parametrize("kind", [".gif", ".webp", ""])
def test_a_clip_is_time_channel_y_x_from_0_to_255(tmp_path: Path, kind: str) -> None:
    frames = drawn(12)
    source = read_clips(save(tmp_path / f"clip{kind}", frames, 40), WHOLE)
    (whole,) = source.trajectories
    np.testing.assert_array_equal(whole[0:12], frames.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(whole[3:5], frames[3:5].transpose(0, 3, 1, 2))
    assert source.step == (pytest.approx(0.04) if kind else None)
    assert (source.variables, source.metadata.time) == (("red", "green", "blue"), "seconds")


def test_a_folder_holds_clips_of_all_kinds_at_any_depth_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["2/frames", "2.gif", "10.webp", "a/b/1.gif"]
    for i, name in enumerate(names):
        save(tmp_path / "in" / name, drawn(3 + i))
    save(tmp_path / "in" / ".hidden" / "x.gif", drawn(3))
    for cover in ("cover.png", "still.gif"):
        Image.fromarray(drawn(1)[0]).save(tmp_path / "in" / cover)
    source = read_clips(tmp_path / "in", WHOLE)
    assert sorted(each.shape[0] for each in source.trajectories) == [3, 4, 5, 6]
    assert source.note.startswith("pictures beside clips are left out: cover.png, still.gif")
    lengths = {3 + i: name for i, name in enumerate(names)}
    assert [lengths[each.shape[0]] for each in source.trajectories][-1] == "a/b/1.gif"


def test_folders_named_after_splits_are_these(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "train", "test")):
        save(tmp_path / "in" / split / f"{i}.gif", drawn(4 + i))
    lengths = {
        name: [each.shape[0] for each in part] for name, part in read_clips(tmp_path / "in", WHOLE).splits.items()
    }
    assert lengths == {"train": [4, 5], "test": [6]}


def test_at_a_rate_the_frames_are_those_that_are_shown_then(tmp_path: Path) -> None:
    frames, lasts = drawn(5), [200, 100, 300, 100, 100]
    begins = np.cumsum([0, *lasts[:-1]]) / 1000
    file = save(tmp_path / "uneven.gif", frames, lasts)
    uneven = read_clips(file, WHOLE)
    assert uneven.step is None
    assert uneven.note == "clips of a rate that changes are read frame by frame: --data.fps brings them to one"
    for rate in (10.0, 5.0, 2.5, 3.0):
        times = np.arange(np.floor(begins[-1] * rate + 1e-9) + 1) / rate
        shown = np.searchsorted(begins, times + 1e-9, side="right") - 1
        source = read_clips(file, replace(WHOLE, rate=rate, least=1))
        np.testing.assert_array_equal(source.trajectories[0][0:99], frames[shown].transpose(0, 3, 1, 2))
        assert source.step == pytest.approx(1 / rate)
    folder = save(tmp_path / "frames", frames)
    np.testing.assert_array_equal(content(folder, replace(WHOLE, rate=4.0))[0], frames.transpose(0, 3, 1, 2))
    assert read_clips(folder, replace(WHOLE, rate=4.0)).step == 0.25


def test_a_clip_has_so_many_frames_at_a_rate_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures that are shown for a second each are few, and many at a high rate."""
    monkeypatch.setattr(clips, "LONGEST", 50)
    file = save(tmp_path / "slow.gif", drawn(3), 1000)
    assert content(file, replace(WHOLE, rate=20.0))[0].shape[0] == 41
    with pytest.raises(ValueError, match=r"slow.gif has more than 50 frames, at 100 a second: .*--data.fps"):
        read_clips(file, replace(WHOLE, rate=100.0))


def test_the_bar_below_a_film_is_whole_at_its_last_frame(tmp_path: Path) -> None:
    film = Film.of(np.zeros((2, 1, 32, 32)), np.zeros((1, 4, 1, 32, 32)), None, None)
    blue = (film.moving() == BLUE).all(-1).any(1).sum(1)  # pixels across of each frame
    assert blue.tolist() == [0, 0, 32, 64, 96, 128]


def test_frames_that_are_years_apart_are_shown(tmp_path: Path) -> None:
    """Neither a WEBP nor a video has room for such times."""
    past = np.zeros((1, 3, 16, 16), np.float32)
    film = Film.of(past, past[None] + 200, None, 1e8)
    with Image.open(io.BytesIO(film.animation())) as moving:
        assert getattr(moving, "n_frames", 0) == 2
    video(tmp_path / "slow.mp4", film.moving(), 1 / film.seconds)


def test_clips_of_other_rates_are_named_until_one_is_asked_for(tmp_path: Path) -> None:
    for milliseconds in (50, 100):
        save(tmp_path / "in" / f"{milliseconds}.gif", drawn(4), milliseconds)
    source = read_clips(tmp_path / "in", WHOLE)
    assert source.step is None
    assert source.note == "clips of other frame rates (10 to 20) are read frame by frame: --data.fps brings them to one"
    assert not read_clips(tmp_path / "in", replace(WHOLE, rate=10.0)).note


@pytest.mark.parametrize("kind", [".gif", ".webp", ""])
def test_frames_are_cropped_resized_and_grey_as_images_are(tmp_path: Path, kind: str) -> None:
    frames = drawn(3, 12, 20)
    file = save(tmp_path / f"clip{kind}", frames)
    for channels in (1, 3):
        (made,) = content(file, replace(WHOLE, size=5, channels=channels))
        expected = [resize(frame.transpose(2, 0, 1), size=5, channels=channels) for frame in frames]
        np.testing.assert_array_equal(made, np.stack(expected))


def test_a_clip_that_cannot_be_used_is_refused_or_skipped_by_name(tmp_path: Path) -> None:
    place = tmp_path / "in"
    good = save(place / "0good.gif", drawn(4))
    bad = {
        "short": (save(place / "short.gif", drawn(2)), r"short.gif has 2 frame\(s\), expected 3 or more"),
        "wide": (save(place / "wide.gif", drawn(4, 6, 10)), r"wide.gif has frames of 10 x 6 pixels, .* of 8 x 6"),
        "cut": (save(place / "cut.gif", drawn(4, 40, 40)), r"cut.gif.*cannot be decoded"),
        "frames": (save(place / "frames", drawn(4)), r"2.png.*cannot be decoded"),
        "mixed": (save(place / "mixed", drawn(4)), r"mixed has another size from its frame 2 on"),
    }
    cut, broken = bad["cut"][0], bad["frames"][0] / "2.png"
    cut.write_bytes(cut.read_bytes()[:-900])
    broken.write_bytes(broken.read_bytes()[:60])
    Image.new("RGB", (3, 3)).save(bad["mixed"][0] / "1.png")
    how = replace(WHOLE, least=3)
    for path, says in bad.values():
        alone = [good] if "wide" in path.name else []
        for entry in (path, *alone):
            (tmp_path / "alone").mkdir(exist_ok=True)
            (tmp_path / "alone" / entry.name).symlink_to(entry)
        with pytest.raises(ValueError, match=rf"{says}.*or leave such clips out by --data.on-bad skip"):
            read_clips(tmp_path / "alone" if alone else path, how)
        for entry in (path, *alone):
            (tmp_path / "alone" / entry.name).unlink()
    source = read_clips(place, replace(how, on_bad="skip"))
    assert len(source.trajectories) == 1
    assert source.note.startswith("skipped 5 of 6 clips: ")
    with pytest.raises(ValueError, match=r"holds no clip that can be used, skipped: short\.gif"):
        read_clips(bad["short"][0], replace(how, on_bad="skip"))


def test_links_are_followed_and_one_to_nowhere_is_a_clip_that_is_broken(tmp_path: Path) -> None:
    save(tmp_path / "disk" / "0.gif", drawn(4))
    place = tmp_path / "in"
    place.mkdir()
    (place / "a").symlink_to(tmp_path / "disk")
    assert read_clips(place, WHOLE).trajectories[0].shape[0] == 4
    (place / "b.gif").symlink_to(tmp_path / "gone.gif")
    with pytest.raises(ValueError, match=r"No such file .*b.gif.*--data.on-bad skip"):
        read_clips(place, WHOLE)
    source = read_clips(place, replace(WHOLE, on_bad="skip"))
    assert len(source.trajectories) == 1
    assert source.note.startswith("skipped 1 of 2 clips: b.gif")
    (place / "up").symlink_to(place)
    with pytest.raises(ValueError, match="up is a link to a folder above it"):
        read_clips(place, WHOLE)


@pytest.mark.parametrize("beside", ["more/2.gif", "2.gif", "0.png"])
def test_clips_beside_folders_of_splits_are_refused(tmp_path: Path, beside: str) -> None:
    for split in ("train", "test"):
        save(tmp_path / "in" / split / "0.gif", drawn(4))
    if beside == "0.png":
        Image.fromarray(drawn(1)[0]).save(tmp_path / "in" / beside)
    else:
        save(tmp_path / "in" / beside, drawn(4))
    with pytest.raises(
        ValueError, match=r"in holds folders of splits \(.*train.*\) and others \(.*\): move the others"
    ):
        read_clips(tmp_path / "in", replace(WHOLE, on_bad="skip"))


def test_files_that_are_no_clips_are_counted(tmp_path: Path) -> None:
    for name in ("in/a.mpg", "in/b.tif", "in/c.tif", "talk.ts"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"content")
    with pytest.raises(ValueError, match=r"in holds no clips: expected GIF.*\.jpg.*; there are 2 x \.tif, 1 x \.mpg"):
        read_clips(tmp_path / "in", WHOLE)
    with pytest.raises(ValueError, match=r"talk.ts holds no clips: expected GIF.*\.mp4.*; there are 1 x \.ts"):
        read_clips(tmp_path / "talk.ts", WHOLE)
    save(tmp_path / "in" / "0.gif", drawn(4))
    assert read_clips(tmp_path / "in", WHOLE).note == "skipped the files 2 x .tif, 1 x .mpg, which are no clips"


def test_numbers_that_are_missing_in_a_folder_of_pictures_are_said(tmp_path: Path) -> None:
    for name, numbers in {"gap": (0, 1, 2, 3, 7, 8), "second": (0, 2, 4, 6), "clock": (0, 33, 67, 100, 190)}.items():
        folder = tmp_path / "in" / name
        folder.mkdir(parents=True)
        for number, frame in zip(numbers, drawn(8), strict=False):
            Image.fromarray(frame).save(folder / f"cam1_{number}.png")
    source = read_clips(tmp_path / "in", WHOLE)
    assert source.note == "the numbers of pictures jump, and clips go on there: gap after 3"
    assert [each.shape[0] for each in source.trajectories] == [5, 6, 4]


def test_places_without_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there are no clips .*gone"):
        read_clips(tmp_path / "gone", WHOLE)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match="in holds no clips: expected GIF"):
        read_clips(tmp_path / "in", WHOLE)


def test_a_clip_is_decoded_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = clips.frames_of
    monkeypatch.setattr(clips, "frames_of", lambda path, **how: calls.append(path.name) or real(path, **how))
    file = save(tmp_path / "clip.gif", drawn(3))
    before = content(file)
    np.testing.assert_array_equal(content(file), before)
    assert calls == ["clip.gif"]
    save(file, drawn(5, seed=1))
    assert content(file)[0].shape[0] == 5


def test_other_sources_take_no_options_of_clips(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 1, 4, 4), np.float32))
    with pytest.raises(ValueError, match=r"drop --data.size and --data.fps"):
        Forecast().read_fields(DataConfig(str(tmp_path / "a.npy"), size=8, fps=4.0), "train")
    with pytest.raises(ValueError, match=r"images.*drop --data.fps"):
        DataConfig("fashion-mnist", fps=4.0).images("test")
    with pytest.raises(ValueError, match=r"drop --data.label"):
        Forecast().read_fields(DataConfig(f"clips:{save(tmp_path / 'a.gif', drawn(4))}", label="x"), "train")


def test_of_a_single_clip_enough_frames_for_a_window_are_held_out(tmp_path: Path) -> None:
    data = DataConfig(f"clips:{save(tmp_path / 'a.gif', drawn(20))}")
    forecast = Forecast(past=2, frames=3)
    train, test = (forecast.read_fields(data, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (15, 5)
    with pytest.raises(ValueError, match="one trajectory, of length 20; expected 22 or more, of which the last 11 are"):
        replace(forecast, frames=9).read_fields(data, "train")


def test_frames_of_clips_are_not_copied_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualrate.forecasts.fields.room_for", None)
    data = DataConfig(f"clips:{save(tmp_path / 'a.gif', drawn(20))}")
    assert Forecast(past=2, frames=3).read_fields(data, "train").frames(0, 1, 2).shape[0] == 2


# Videos


def video(path: Path, frames: np.ndarray, rate: float = 25.0) -> Path:
    pytest.importorskip("av")
    assert write_video(frames, rate, path)
    return path


def test_a_video_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Frames of a codec that loses something: within a few levels, in frames of one colour each."""
    shades = np.linspace(20, 230, 10).astype(np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (10, 32, 48, 3))
    file = video(tmp_path / "clip.mp4", frames)
    source = read_clips(file, WHOLE)
    whole = source.trajectories[0][0:99]
    assert whole.shape == (10, 3, 32, 48)
    np.testing.assert_allclose(whole[:, :, 8, 8], np.repeat(shades[:, None], 3, 1), atol=6)
    assert source.step == pytest.approx(1 / 25)
    half = read_clips(file, replace(WHOLE, rate=12.5, size=16))
    assert (half.trajectories[0].shape, half.step) == ((5, 3, 16, 16), pytest.approx(0.08))
    np.testing.assert_allclose(half.trajectories[0][0:5][:, 0, 8, 8], shades[::2], atol=6)


ONE = 1 << 16
TURNS: dict[str, tuple[tuple[int, ...], Any]] = {  # a, b, c, d of x' = a x + c y, y' = b x + d y, and what is shown
    "clockwise": ((0, ONE, -ONE, 0), lambda frame: np.rot90(frame, -1)),
    "counter": ((0, -ONE, ONE, 0), lambda frame: np.rot90(frame)),
    "half": ((-ONE, 0, 0, -ONE), lambda frame: np.rot90(frame, 2)),
    "mirror": ((-ONE, 0, 0, ONE), lambda frame: frame[:, ::-1]),
    "flip": ((ONE, 0, 0, -ONE), lambda frame: frame[::-1]),
    "across": ((0, ONE, ONE, 0), lambda frame: frame.transpose(1, 0, 2)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_a_video_that_was_taken_on_its_side_or_in_a_mirror_is_upright(tmp_path: Path, turn: str) -> None:
    """As the matrix of its track says."""
    frame = np.zeros((32, 48, 3), np.uint8)
    frame[:16, :24], frame[:16, 24:], frame[16:, :24] = 200, 140, 70
    file = video(tmp_path / "clip.mp4", np.stack([frame] * 4))
    (a, b, c, d), shown = TURNS[turn]
    words = (ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30), (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    as_stored, turned = (np.array(each, ">i4").tobytes() for each in words)
    head, _, rest = file.read_bytes().partition(b"tkhd")
    assert as_stored in rest[:100]
    file.write_bytes(head + b"tkhd" + rest.replace(as_stored, turned, 1))
    whole = read_clips(file, WHOLE).trajectories[0][0:4]
    np.testing.assert_allclose(whole[0].transpose(1, 2, 0).astype(int), shown(frame).astype(int), atol=40)


def test_a_damaged_video_is_refused_by_name(tmp_path: Path) -> None:
    file = video(tmp_path / "clip.mp4", np.zeros((10, 32, 32, 3), np.uint8))
    whole = file.read_bytes()
    playlists = b"#EXTM3U\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n", b"ffconcat version 1.0\nfile other.mp4\n"
    for content in (whole[: len(whole) // 2], b"", *playlists):
        (tmp_path / "other.mp4").write_bytes(whole)
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"clip.mp4: cannot be decoded .*--data.on-bad skip"):
            read_clips(file, WHOLE)


def test_a_video_that_ends_too_soon_is_refused_by_name(tmp_path: Path) -> None:
    av: Any = pytest.importorskip("av")
    file = tmp_path / "clip.mkv"
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for frame in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert read_clips(file, WHOLE).trajectories[0].shape == (20, 3, 32, 32)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    with pytest.raises(ValueError, match=r"clip.mkv: cannot be decoded .*ends after \d frame"):
        read_clips(file, WHOLE)


def test_a_video_may_begin_late(tmp_path: Path) -> None:
    av: Any = pytest.importorskip("av")
    file = tmp_path / "late.mkv"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 100 + i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    source = read_clips(file, WHOLE)
    assert (source.trajectories[0].shape[0], source.step) == (8, pytest.approx(0.1))


def test_a_video_may_stand_still_at_its_end(tmp_path: Path) -> None:
    av: Any = pytest.importorskip("av")
    file = tmp_path / "talk.mp4"
    with av.open(str(file), "w") as container:
        stream, packets = container.add_stream("mpeg4", rate=10), []
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for shade in range(0, 250, 50):
            frame = np.full((32, 32, 3), shade, np.uint8)
            packets += stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
        packets += stream.encode()
        packets[-1].duration = round(10 / packets[-1].time_base)  # ten seconds
        for packet in packets:
            container.mux(packet)
    with av.open(str(file)) as container:
        assert container.duration > 4e6
    assert read_clips(file, WHOLE).trajectories[0].shape == (5, 3, 32, 32)


def test_a_video_without_its_reader_says_which_extra_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"video")
    with pytest.raises(ModuleNotFoundError, match=r"clip.mp4 is a video.*dualrate\[video\].*pictures in a folder"):
        read_clips(tmp_path / "clip.mp4", replace(WHOLE, on_bad="skip"))
    assert not write_video(np.zeros((2, 8, 8, 3), np.uint8), 10, tmp_path / "out.mp4")


# From clips to a continuation


def test_a_newcomers_clip_becomes_a_continuation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TIERS, "mini", ForecastTier((8, 8), (1, 1), FitConfig(iterations=1), embedding=16, patch=2))
    recipe = Clips(DataConfig(str(save(tmp_path / "mine.gif", drawn(20, 10, 12), 80)), size=8), past=2, frames=2)
    experiment = replace(recipe, window="causal", size="mini", difference=True)()
    assert experiment.data == DataConfig(f"clips:{tmp_path / 'mine.gif'}", size=8)
    assert is_fields(experiment.data.source)
    assert experiment.shape == (6, 8, 8)
    model = load(saved_random(experiment, tmp_path / "run"))
    result = forecast(model, frames=5, members=3, out=tmp_path / "out")
    assert result.ensemble.shape[1:] == (3, 5, 3, 8, 8)
    assert result.page.count("data:image/webp;base64,") == 1
    assert "truth, member 0, member 1, member 2" in result.page
    assert result.written.record.known < 5
    assert "Grey: the truth is not known." in result.page
    with Image.open(tmp_path / "out" / "forecast.webp") as moving:
        moving.seek(6)
        moving.load()
        assert (getattr(moving, "n_frames", 0), moving.info["duration"]) == (2 + 5, 80)
    film = result.written.film
    assert film is not None
    np.testing.assert_array_equal(film.panels["truth"][:2], result.written.starts.past[0])
    assert (result.ensemble.min(), result.ensemble.max()) == (0, 255)  # random networks go beyond both
    shown = result.ensemble[0, 1].round()
    np.testing.assert_array_equal(film.panels["member 1"][2:], shown)
    with Image.open(tmp_path / "out" / "forecast.png") as sheet:
        pixels = np.asarray(sheet)
    side, left = 48 + 2, sheet.width - (7 * 50 + 6 * 2)  # enlarged and with a border, beside the names
    assert sheet.height == 4 * side + 3 * 2
    assert [(pixels[i * 52 : i * 52 + side, :left] < 128).any() for i in range(4)] == [True] * 4  # a name in each row
    assert (pixels[0, left : left + side] == BORDER).all()
    blue = (pixels == BLUE).all((0, 2)).nonzero()[0] - left
    assert blue.tolist() == [2 * 52 - 2, 2 * 52 - 1]  # after the two frames that were given
    other = save(tmp_path / "other.webp", drawn(9, 16, 16), 40)  # of another size and rate, which become the run's
    ahead = forecast(model, other, frames=2)
    assert ahead.truth is None
    expected = [resize(frame.transpose(2, 0, 1), size=8) for frame in drawn(9, 16, 16)[[6, 8]]]
    np.testing.assert_array_equal(ahead.written.starts.past[0], np.stack(expected))


@pytest.mark.parametrize("window", ["attention", "causal"])
def test_windows_that_attend_may_roll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: Any) -> None:
    monkeypatch.setitem(TIERS, "mini", ForecastTier((8, 8), (1, 1), FitConfig(iterations=1), embedding=16, patch=2))
    data = DataConfig(f"clips:{save(tmp_path / 'mine.gif', drawn(20, 8, 8))}")
    experiment = Forecasting(data, past=2, frames=3, size="mini", window=window, trained_by="rolling")()
    model = load(saved_random(experiment, tmp_path / "run"))
    past = np.asarray(read_clips(tmp_path / "mine.gif", WHOLE).trajectories[0][0:2])
    ensemble = forecast(model, past, frames=4, members=2).ensemble
    assert ensemble.shape == (1, 2, 4, 3, 8, 8)
    assert np.isfinite(ensemble).all()
    assert not np.array_equal(ensemble[0, 0], ensemble[0, 1])


@pytest.mark.parametrize("window", ["attention", "causal"])
def test_a_single_frame_attends_to_none_and_does_not_roll(tmp_path: Path, window: Any) -> None:
    recipe = Clips(DataConfig(str(save(tmp_path / "mine.gif", drawn(20, 8, 8)))), past=2, window=window, size="mini")
    alone = recipe()
    assert alone.networks == replace(recipe, window="channels")().networks
    assert not getattr(alone.networks, "leads", None)
    with pytest.raises(ValueError, match=r"two frames or more .* --frames 4"):
        replace(recipe, trained_by="rolling")()


@pytest.mark.parametrize(("recipe", "prefix"), [("clips", ""), ("clips", "clips:"), ("forecast", "clips:")])
def test_a_training_takes_the_options_that_are_documented_for_clips(recipe: str, prefix: str, tmp_path: Path) -> None:
    file = save(tmp_path / "mine.gif", drawn(20, 8, 8))
    words = "--data.size 8 --data.channels 1 --data.fps 10 --data.on-bad skip --size mini"
    command: Any = parsed(["train", recipe, "--data.source", f"{prefix}{file}", *words.split()])
    data = command.experiment.data
    assert data == DataConfig(f"clips:{file}", size=8, channels=1, fps=10, on_bad="skip")


def test_without_data_the_recipe_of_clips_has_sprites() -> None:
    from dualrate.forecasts.recipe import RECIPES

    recipe: Any = RECIPES["clips"][1]
    assert isinstance(recipe, Clips)
    assert recipe.data.source in SIMULATIONS
    assert isinstance(recipe, Forecasting)


def test_a_film_shows_what_is_not_known_in_grey_and_rounds_into_the_range() -> None:
    np.testing.assert_array_equal(pixels_of(np.array([-3.0, 0.5, 1.5, 254.6, 300.0, np.nan])), [0, 0, 2, 255, 255, 217])
    members = np.zeros((2, 3, 1, 4, 4))
    film = Film.of(np.full((1, 1, 4, 4), 9.0), members, np.full((2, 1, 4, 4), 7.0), None)
    assert film.panels["truth"][:, 0, 0, 0].tolist() == [9, 7, 7, 217]
    moving = film.moving()
    assert moving.shape[0] == 4
    assert moving.shape[1] % 2 == moving.shape[2] % 2 == 0
    bars = (moving == (36, 99, 235)).all(-1).sum((1, 2))
    assert bars[0] == 0
    assert (np.diff(bars) > 0).all()


def test_a_network_of_one_frame_is_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The light network's weights; attention over time, leads and the heavy network then add nothing."""
    monkeypatch.setitem(TIERS, "mini", ForecastTier((8, 8), (1, 1), FitConfig(iterations=1), embedding=16, patch=2))
    data = DataConfig(f"clips:{save(tmp_path / 'mine.gif', drawn(20, 8, 8), 80)}")
    of_one = Forecasting(data, past=2, size="mini", rate="light")()
    run = saved_random(of_one, tmp_path / "one")
    several: Any = Forecasting(data, past=2, frames=3, size="mini", window="causal")()
    several = replace(several, method=replace(several.method, light_from=str(run)))
    start = Start(True, torch.device("cpu"), False, load, lambda i: pytest.fail("no batch"), lambda text: None)
    model, t = several.method.prepare(several, start).method.denoiser(), torch.tensor([0.3, 0.8], dtype=torch.float64)
    one, z, y = load(run).denoiser, torch.randn(2, 3, 3, 8, 8), torch.randn(2, 6, 8, 8)
    with torch.no_grad():
        cond, rows = Cond(given=y), Cond(given=y.repeat_interleave(3, 0))
        x_hat = model.denoise(z.flatten(1, 2), t, model.encode(z.flatten(1, 2), t, cond), cond)
        each, times = z.flatten(0, 1), t.repeat_interleave(3)
        alone = one.denoise(each, times, one.encode(each, times, rows), rows)
    torch.testing.assert_close(x_hat.view_as(each), alone, rtol=1e-4, atol=1e-4)


# Sprites


def test_sprites_move_straight_on_inside_the_frame_and_turn_at_its_edges() -> None:
    system = MovingSprites(side=32, radius=4.0, speed=2.0)
    paths = system.paths(Draws(0, torch.arange(50)), 30)
    assert paths.min() >= 4
    assert paths.max() <= 31 - 4
    step = (paths[:, :, 1:] - paths[:, :, :-1]).square().sum(-1).sqrt()
    assert step.max() == pytest.approx(2.0)
    assert ((step - 2).abs() < 1e-9).double().mean() > 0.7


def test_frames_show_sprites_where_they_are_the_same_from_the_same_key() -> None:
    system = MovingSprites(side=32, sprites=1, radius=4.0)
    made = system.simulate(6, 5, 7)
    assert (made.dtype, made.shape) == (np.uint8, (6, 5, 3, 32, 32))
    np.testing.assert_array_equal(made[:2], system.simulate(2, 5, 7))
    brightness = made.astype(float).sum(2)
    places = np.arange(32)
    down, across = (np.einsum(f"sthw,{axis}->st", brightness, places) for axis in "hw")
    centres = np.stack((down, across), -1) / brightness.sum((2, 3))[..., None]
    np.testing.assert_allclose(centres, system.paths(Draws(7, torch.arange(6)), 5)[:, 0].numpy(), atol=0.05)


def test_sprites_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="radius 8 do not move in 17 pixels"):
        MovingSprites(side=17)
    system, *_ = SIMULATIONS["moving-sprites"]
    assert system.simulate(1, 2, 0).shape == (1, 2, 3, 64, 64)
