"""Clips packed as images: windows to the pixel, classes by folder, what is held out and what is refused; their nets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forecasts.test_clips import drawn, save
from runs.made import saved_random

from dualrate.cli.main import parsed
from dualrate.comparison.evaluate import evaluate
from dualrate.data.images import ImageSet, load_images
from dualrate.experiment.data_config import DataConfig
from dualrate.forecasts.clip_distance import clip_distance, windows_of
from dualrate.forecasts.clip_modality import ClipFiles
from dualrate.forecasts.clip_set import Cut, prepare_clips
from dualrate.forecasts.recipe import Clips, ForecastTier
from dualrate.forecasts.starts import held_out_starts
from dualrate.metrics.distances import GaussianStats, frechet_distance
from dualrate.metrics.features import FeatureNet, train_feature_net, turned
from dualrate.metrics.quality import QualityScore
from dualrate.report.image_grid import side_by_side
from dualrate.runs.store import load
from dualrate.system.progress import PlainReporter
from dualrate.training.config import FitConfig


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))


def packed(source: Path, out: Path, cut: Cut, **how: Any) -> dict[str, ImageSet]:
    prepare_clips(str(source), out, cut, size=8, **how)
    return {split: load_images(out, split=split) for split in ("train", "test")}


@pytest.mark.parametrize("cut", [Cut(2), Cut(2, lead=2), Cut(3, stride=1)])
def test_rows_are_windows_of_frames_to_the_pixel(tmp_path: Path, cut: Cut) -> None:
    clips = [drawn(count, 8, 8, seed=count) for count in (5, 6, 7)]
    for i, frames in enumerate(clips):
        save(tmp_path / "in" / f"{i}.gif", frames)
    sets = packed(tmp_path / "in", tmp_path / "out", cut)
    for split, part in {"train": clips[:2], "test": clips[2:]}.items():
        windows = [
            frames[[first + cut.lead * k for k in range(cut.frames)]]
            for frames in part
            for first in range(0, len(frames) - cut.lead * (cut.frames - 1), cut.stride or cut.span)
        ]
        expected = np.stack(windows).transpose(0, 1, 4, 2, 3).reshape(len(windows), -1, 8, 8)
        np.testing.assert_array_equal(sets[split].images[:], expected)
        assert (sets[split].frames_each, sets[split].labels) == (cut.frames, None)


def test_few_windows_are_said_with_the_way_to_more(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.gif", drawn(20, 8, 8))
    for name, cut in (("apart", Cut(4)), ("all", Cut(4, stride=1))):
        said = dict[str, int]()
        prepare_clips(
            str(tmp_path / "in"),
            tmp_path / name,
            cut,
            size=8,
            progress=lambda i, n, what, said=said: said.update({what: n}),
        )
        (rows,) = {
            len(load_images(tmp_path / name, split="train")),
            *(n for what, n in said.items() if "--stride" in what),
        }
        assert (rows, any("--stride 1" in what for what in said)) == ((4, True) if name == "apart" else (13, False))


def test_folders_are_classes_as_those_of_images_are(tmp_path: Path) -> None:
    for kind, count in {"cat": 3, "dog": 2}.items():
        for i in range(count):
            save(tmp_path / "in" / kind / f"{i}.gif", drawn(4, seed=i))
    sets = packed(tmp_path / "in", tmp_path / "out", Cut(2))
    assert sets["train"].class_names == sets["test"].class_names == ("cat", "dog")
    assert [part.labels.tolist() for part in sets.values() if part.labels is not None] == [
        [0, 0, 0, 0, 1, 1],
        [0, 0, 1, 1],
    ]


def test_splits_have_classes_and_frames_in_folders_too(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind in ("cat", "dog"):
            save(tmp_path / "in" / split / kind / "x.gif", drawn(4))
    (tmp_path / "in" / "train" / "dog").mkdir(exist_ok=True)
    save(tmp_path / "in" / "train" / "dog" / "frames", drawn(4))
    sets = packed(tmp_path / "in", tmp_path / "out", Cut(4), channels=1)
    assert [part.labels.tolist() for part in sets.values() if part.labels is not None] == [[0, 1, 1], [0, 1]]
    assert sets["train"].shape == (4, 8, 8)


def test_one_folder_is_no_class_and_clips_beside_folders_are_refused(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / "in" / "only" / f"{i}.gif", drawn(4, seed=i))
    assert packed(tmp_path / "in", tmp_path / "out", Cut(2))["train"].labels is None
    save(tmp_path / "in" / "other" / "0.gif", drawn(4))
    save(tmp_path / "in" / "0.gif", drawn(4))
    with pytest.raises(ValueError, match=r"has clips in folders \(only, other\) and others beside them"):
        packed(tmp_path / "in", tmp_path / "again", Cut(2))


def test_what_is_packed_is_gone_on_with_and_is_of_these_clips(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "in" / f"{i}.gif", drawn(4, seed=i))
    before = packed(tmp_path / "in", tmp_path / "out", Cut(2))["train"].fingerprint
    assert packed(tmp_path / "in", tmp_path / "out", Cut(2))["train"].fingerprint == before
    with pytest.raises(ValueError, match="made with frames 2, now 4"):
        packed(tmp_path / "in", tmp_path / "out", Cut(4))
    save(tmp_path / "in" / "0.gif", drawn(4, seed=9))
    with pytest.raises(ValueError, match="was made from other files"):
        packed(tmp_path / "in", tmp_path / "out", Cut(2))


def test_what_clips_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "in" / "0.gif", drawn(4))
    with pytest.raises(ValueError, match=r"has 4 frame\(s\), expected 5 or more"):
        packed(tmp_path / "in", tmp_path / "out", Cut(5))
    for named in ("in", "clips:in"):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match="whose images are read: give a folder elsewhere"):
            prepare_clips(named, tmp_path / "in" / "packed", Cut(2), size=8)
    with pytest.raises(ValueError, match="kuramoto-sivashinsky makes fields, which are no clips"):
        prepare_clips("kuramoto-sivashinsky", tmp_path / "out", Cut(2), size=8)
    for words, message in {
        "--fps 10": "are of clips: give --frames",
        "--frames 2 --label kind": "their folders are classes",
        "--frames 2 --nproc 2": "one process",
    }.items():
        with pytest.raises(ValueError, match=message):
            parsed(f"data prepare {tmp_path / 'in'} {tmp_path / 'out'} --size 8 {words}".split()).run()
    (tmp_path / "in" / "1.gif").write_bytes(b"GIF89a and no more")
    with pytest.raises(ValueError, match="leave such clips out by --on-bad skip"):
        parsed(f"data prepare {tmp_path / 'in'} {tmp_path / 'out'} --size 8 --frames 2".split()).run()


def test_notes_on_clips_name_the_options_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "in" / "0.gif", drawn(8))
    save(tmp_path / "in" / "1.gif", drawn(8), [100, 300] * 4)
    save(tmp_path / "in" / "2.gif", drawn(3))
    words = "--size 8 --frames 4 --on-bad skip"
    parsed(f"data prepare {tmp_path / 'in'} {tmp_path / 'out'} {words}".split()).run()
    said = "".join(capsys.readouterr())
    assert "clips of a rate that changes are read frame by frame: --fps brings them to one" in said
    assert "more of them a second (--fps)" in said


def test_a_net_of_clips_without_labels_tells_turns_and_order() -> None:
    """Eight classes: four turns, and the same with the odd frames after the even ones."""
    clip = torch.arange(4 * 3 * 2 * 2).reshape(1, 12, 2, 2)
    x, number = turned(clip.expand(9, -1, -1, -1), 0, frames=4)
    assert number.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    for k in range(8):
        frames = clip[0].reshape(4, 3, 2, 2)[[0, 2, 1, 3] if k >= 4 else [0, 1, 2, 3]]
        torch.testing.assert_close(x[k], torch.rot90(frames, k % 4, (2, 3)).reshape(12, 2, 2))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 4, 8, 8), np.uint8)
    net = train_feature_net(ImageSet(pixels, None, (), "clips/train", frames_each=4), None, epochs=1)
    assert (net.card.task, net.card.architecture.num_classes, net.card.classes) == ("order", 8, 8)
    assert net.metric == "FD-clips-order"
    assert net.features(pixels).shape == (16, 96)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_of_a_clip_is_its_frames_from_left_to_right(tmp_path: Path, channels: int) -> None:
    clips = np.random.default_rng(0).integers(0, 256, (2, 5 * channels, 8, 8), np.uint8)
    files, file = ClipFiles((5 * channels, 8, 8), 5), tmp_path / "0.png"
    file.write_bytes(files.content(clips[0]))
    assert files.is_whole(file)
    np.testing.assert_array_equal(files.read(file), clips[0])
    sheet = side_by_side(clips, 5)[0]
    np.testing.assert_array_equal(sheet[:, :, 16:24], clips[0].reshape(5, channels, 8, 8)[2])
    np.testing.assert_array_equal(side_by_side(torch.from_numpy(clips), 5)[0], sheet)
    files.show(clips, tmp_path, None)
    assert {each.name for each in tmp_path.iterdir()} == {"0.png", "grid.png", "grid.webp"}


def test_members_of_a_forecast_are_measured_with_their_past_beside_windows_of_the_training_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(11):
        save(tmp_path / "in" / f"{i}.gif", drawn(24, 8, 8, seed=i))
    tier: Any = {"mini": ForecastTier((4, 8), (1, 1), FitConfig(2, 4))}
    monkeypatch.setattr("dualrate.forecasts.recipe.TIERS", tier)
    data = DataConfig(f"clips:{tmp_path / 'in'}", size=8)
    model = load(saved_random(Clips(data, past=2, frames=2, size="mini")(), tmp_path / "run"))
    scored = evaluate(model, 2)
    assert scored.plain["clips"].startswith("no Frechet distance: it needs 192 clips, got 2")
    nets: list[FeatureNet] = []

    def untrained(train: ImageSet, test: ImageSet, progress: Any) -> FeatureNet:
        assert (train.shape, train.frames_each, test.frames_each) == ((12, 8, 8), 4, 4)
        nets.append(train_feature_net(train, None, epochs=1))
        return nets[0]

    monkeypatch.setattr("dualrate.forecasts.clip_distance.feature_net", untrained)
    starts = held_out_starts(model, 2)
    assert starts.truth is not None
    truth = np.stack([starts.truth(i) for i in range(len(starts))])[:, None]
    few = clip_distance(model, starts, truth, PlainReporter())
    assert few == f"no Frechet distance: it needs 192 clips, got {len(starts)}: more starts or members"
    score = clip_distance(model, starts, truth.repeat(12, 1), PlainReporter())
    assert isinstance(score, QualityScore)
    experiment: Any = model.experiment
    train, test = (windows_of(experiment.load(split), experiment.condition) for split in ("train", "test"))
    stats = [GaussianStats.of(nets[0].features(part.images)) for part in (train, test)]
    again = GaussianStats.of(nets[0].features(np.asarray(test.images).repeat(12, 0)))
    assert score.value == pytest.approx(frechet_distance(again, stats[0]), rel=1e-6)
    assert score.metric == "FD-in-4-frames-order"
    np.testing.assert_array_equal(test.images[0].reshape(4, 3, 8, 8)[:2], starts.past[0])
