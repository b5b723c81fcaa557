"""Clips: ways to make what comes next are scored on the same frames, and latents beside each other at equal bits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dualrate.experiment.data_config import DataConfig
from dualrate.forecasts import recipe as forecast
from dualrate.forecasts.clips import ClipReading, read_clips
from dualrate.forecasts.film import pixels_of
from dualrate.forecasts.simulations import Kolmogorov
from dualrate.forecasts.sprites import MovingSprites
from dualrate.metrics.features import train_feature_net
from studies import clip_latents, clips, contest, roll_outs
from studies.clip_latents import Latents
from studies.clips import Next

WAYS = ("single", "diffusion-1"), ("dual", "diffusion-2"), ("dual", "rolling-2")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of small clips."""
    tier = replace(forecast.TIERS["mini"], channels=(8, 8), blocks=(1, 1), embedding=8)
    monkeypatch.setitem(forecast.TIERS, "mini", tier)
    system = MovingSprites(side=16, sprites=1, radius=3.0, speed=2.0)
    monkeypatch.setitem(clips.SOURCES, "sprites", clips.Source(system, 16, 6))
    for name, value in {"UPDATES": 1, "ROUNDS": 2}.items():
        monkeypatch.setattr(contest, name, value)
    monkeypatch.setattr(roll_outs, "STEPS", {"diffusion": (2,), "rolling": (1, 2)})
    small = {
        "SIDE": 16, "WAYS": WAYS, "CELLS": clips.CELLS[::3], "BATCHES": (2, 4), "FIRST": (2,), "AHEAD": 3,
        "CHOOSING": 2, "TIMED": 2, "ROUNDS": 1, "MORE_STEPS": 3,
        "feature_net": lambda train, test, progress: train_feature_net(train, test, epochs=1),
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(clips, name, value)
    settings = contest.Setting(2), contest.Setting(2, 1e-3)
    few = {"FACTORS": ("3", "6"), "EACH": ("4",), "SETTINGS": settings, "KEPT": 6, "TOGETHER": 2}
    for name, value in few.items():
        monkeypatch.setattr(clip_latents, name, value)
    clips.simulate("sprites", tmp_path)
    return tmp_path


def test_clips_are_written_without_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = clips.Source(Kolmogorov(points=16, dt=0.05, burn_in=1.0), 2, 1, 2 * clips.WINDOW, (-12.0, 12.0), 1)
    monkeypatch.setitem(clips.SOURCES, "flow", source)
    monkeypatch.setattr(clips, "SIDE", 16)
    clips.simulate("flow", tmp_path)
    simulated = source.system.simulate(3, source.frames, 0).astype(np.float64)
    read = read_clips(tmp_path / "flow", ClipReading(channels=1)).splits
    found = np.stack([clip[:] for name in ("train", "test") for clip in read[name]])
    assert np.array_equal(found, pixels_of((simulated + 12) * (255 / 24)))
    packed = DataConfig(str(tmp_path / "flow-packed")).images("test", lambda *_: None)
    assert np.array_equal(packed.images[np.arange(2)].reshape(32, 1, 16, 16), found[2])
    assert packed.frames_each == clips.WINDOW
    pieces = clips.held_out(Next("flow", tmp_path / "flow-next").data)
    assert np.array_equal(pixels_of(np.concatenate(pieces)), found[2])
    assert [len(piece) for piece in pieces] == [clips.WINDOW] * 2


@pytest.mark.slow
def test_every_way_is_searched_and_scored_on_the_same_frames(tiny: Path) -> None:
    ahead = Next("sprites", tiny / "sprites-next", WAYS)

    def run() -> list[contest.Row]:
        ahead.search_settings(0.01)
        ahead.train_all([0, 1], 0.01)
        ahead.search_samplers(0.01, clips.CELLS)
        ahead.baselines()
        ahead.score([0, 1], 0.01)
        return ahead.rows

    some = replace(ahead, ways=WAYS[:1])
    some.search_settings(0.01)
    assert {(row["network"], row["method"]) for row in some.rows_with(part="setting")} == {WAYS[0]}
    rows = run()
    assert run() == rows
    ahead.times()
    for network, method in WAYS:
        cells = ahead.rows_with(part="setting", network=network, method=method)
        best = min(cells, key=contest.mean)
        tried = {(row["batch"], row["rate"]) for row in cells}
        assert {(best["batch"], best["rate"] / 2), (best["batch"], best["rate"] * 2)} <= tried
        finals = ahead.rows_with(kind="final", network=network, method=method)
        assert {(row["batch"], row["rate"]) for row in finals} == {(best["batch"], best["rate"])}
    scores = ahead.rows_with(part="score")
    assert len(scores) == 2 * 5  # trainings, steps of all ways
    for row in scores:
        assert np.shape(row["crps"]) == (3, 3)
        assert row["distance"] > 0
    still, truth = ahead.rows_with(part="baseline")
    assert np.mean(truth["crps"]) == 0 < np.mean(still["crps"])
    lines = clips.table(ahead.rows).splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == [
        "last frame", "truth", "frame after frame", "frame after frame", "windows of 2", "Rolling Diffusion",
    ]  # fmt: skip


def test_starts_are_the_same_however_much_is_known_and_no_clip_is_of_both_kinds(tiny: Path) -> None:
    ahead = Next("sprites", tiny / "sprites-next")
    (past, truth), (longer, same) = (ahead.starts(False, count) for count in (2, 4))
    assert np.array_equal(truth, same)
    assert np.array_equal(past, longer[:, 2:])
    held = clips.held_out(ahead.data)
    for kind, first in ((False, 0), (True, 1)):
        for i, (before, after) in enumerate(zip(*ahead.starts(kind, 2), strict=True)):
            clip = held[2 * i + first]
            begins = [k for k in range(len(clip)) if np.array_equal(clip[k : k + 2], before)]
            assert any(np.array_equal(clip[k + 2 : k + 5], after) for k in begins)


def test_latents_are_trained_and_scored(tiny: Path) -> None:
    latents = Latents("sprites", tiny / "sprites-latents")
    for _ in range(2):
        latents.search_settings(0.01)
        latents.compare(0.01)
    rows, settings = latents.rows_with(part="latents"), latents.rows_with(part="setting")
    assert [row["method"] for row in rows] == ["3", "6"]
    best = min(settings, key=lambda row: row["loss"])
    assert {(row["batch"], row["rate"]) for row in rows} == {(best["batch"], best["rate"])}
    assert len(settings) == 2
    assert all(len(row["bits"]) == len(row["psnr"]) == 3 for row in rows)
    assert len(clip_latents.latents_table(rows).splitlines()) == 4


def first_stage(bits: float, psnr: float) -> contest.Row:
    """A row of latents of one frame."""
    spread = np.array([-1.0, 0.0, 1.0])
    return {"network": "1", "bits": (bits + 0.01 * spread).tolist(), "psnr": (psnr + spread).tolist()}


def test_latents_are_compared_at_equal_bits_between_their_rivals_alone() -> None:
    rivals = [first_stage(0.4, 24.0), first_stage(0.2, 20.0)]
    less: Callable[[float, float], object] = lambda bits, psnr: clip_latents.psnr_less(first_stage(bits, psnr), rivals)  # noqa: E731
    between = less(0.3, 25.0)
    assert isinstance(between, np.ndarray)
    assert between == pytest.approx(3.0)  # of clips that all rows share, whatever is drawn
    assert less(0.5, 25.0) is None
    assert less(0.1, 25.0) is None
    assert clip_latents.psnr_less(first_stage(0.3, 25.0), []) is None
