"""The seam between engine and applications: the wings' answers, and a toy application that is one module and a line."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from runs.made import saved_random

import dualrate as dr
from dualrate.comparison.rows import MeasuredCandidate
from dualrate.comparison.yardstick import Terms, Yardstick
from dualrate.data.images import ImageSet
from dualrate.data.source import DataProgress, Split
from dualrate.drawing.evaluators import evaluator
from dualrate.drawing.measure import Measurement, row_of
from dualrate.experiment import modality
from dualrate.experiment.modality import IMAGES, Modality, conditions_named, maker_of, reader_of
from dualrate.forecasts.modality import MODALITY as FIELDS
from dualrate.metrics.quality import QualityScore
from dualrate.metrics.store import Fingerprint
from dualrate.runs.store import load, read_experiment
from dualrate.runs.train import save_samples
from dualrate.system.progress import Reporter, Silent
from dualrate.texts.modality import MODALITY as TEXTS

NET = dr.UViTConfig(image_size=8, image_channels=1, levels=(dr.Level("conv", 8, 1),), embedding=16, head_dim=8)


class OfTones(Modality):
    """Sounds as images of 8 x 8, from a source by the name tones-N."""

    noun = "tone"

    def reads(self, source: str) -> bool:
        return source.startswith("tones-")

    def makes(self, experiment: Any) -> bool:
        return self.reads(experiment.data.source)

    def read(self, data: Any, split: Split, progress: DataProgress) -> ImageSet:
        data.refuse("holds tones, which have no colours", "channels")
        count = int(data.source.removeprefix("tones-"))
        time = np.arange(64) / 64
        waves = np.stack([np.sin(2 * np.pi * (1 + number % 5) * time) for number in range(count)])
        return ImageSet((127.5 + 127 * waves).astype(np.uint8).reshape(count, 1, 8, 8), None, (), data.source)

    def save(self, experiment: Any, samples: Any, file: Any) -> None:
        np.save(file.with_suffix(".npy"), samples())

    def yardstick(self) -> type[Yardstick]:
        return Loudness

    def passage(self, experiment: Any, samples: Any) -> str:
        return "hum"


class Loudness(Yardstick):
    """How far tones lie from silence on the mean."""

    def __init__(self, models: Sequence[dr.Model], terms: Terms, progress: Reporter) -> None:
        self.noun, self.screen, self.count = "tone", 0, terms.count or 4

    def prepare(self) -> None: ...

    def see_real(self) -> None: ...

    def as_measured(self, drawer: dr.Drawer) -> dr.Drawer:
        return drawer

    def origin(self, drawer: dr.Drawer) -> str:
        return drawer.origin("loudness").digest

    def identity(self, drawer: dr.Drawer, seeds: range) -> list[object]:
        return [self.origin(drawer)]

    def counts(self, first: int, most: int) -> list[int]:
        return [most]

    def seconds(self, drawer: dr.Drawer, seeds: range, place: Path, calls: Any) -> float:
        return drawer.expected_cost.total(calls) * len(seeds)

    def measure(self, drawer: dr.Drawer, seeds: range, place: Path, progress: Any) -> Measurement:
        loud = float(np.abs(drawer.draw(seeds, progress).images / 255 - 0.5).mean())
        seen = Fingerprint("loudness", "silence", None, len(seeds), f"{seeds}", "none")
        score = QualityScore("loudness", loud, loud, loud, 0.95, math.nan, 0, seen)
        replicates = {"loudness": np.array([loud])}
        return Measurement(row_of(drawer, drawer.cost.macs, 1.0, 1, score), {}, replicates, {"pitch": 440})

    @staticmethod
    def columns(measured: MeasuredCandidate) -> dict[str, str]:
        return {"pitch": str(measured.more["pitch"])}


@pytest.fixture
def tones(monkeypatch) -> None:
    module = ModuleType("tones_modality")
    module.MODALITY = OfTones()  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "tones_modality", module)
    monkeypatch.setattr(modality, "WINGS", (*modality.WINGS, "tones_modality"))


def experiment(source: str) -> dr.Experiment:
    fit = dr.FitConfig(iterations=1, batch_size=4, precision="float32")
    return dr.Experiment("run", dr.OneNetwork(NET), dr.DenoisingConfig(), fit, dr.DataConfig(source))


def test_a_toy_application_is_described_loaded_trained_and_shown(tones, tmp_path):
    of_tones = experiment("tones-12")
    assert of_tones.noun == "tone"
    assert len(of_tones.data.load("train")) == 12
    with pytest.raises(ValueError, match=r"tones-3 holds tones, which have no colours: drop --data\.channels"):
        dr.DataConfig("tones-3", channels=3).load("train")
    with pytest.raises(ValueError, match="tones-3 holds tones, which are no images"):
        evaluator(dr.DataConfig("tones-3"), progress=Silent())
    dr.train(of_tones, tmp_path / "run", progress=Silent())
    save_samples(load(tmp_path / "run"), tmp_path / "shown.png")
    assert np.load(tmp_path / "shown.npy").shape[1:] == (1, 8, 8)
    assert read_experiment(tmp_path / "run") == of_tones


def test_models_of_a_toy_application_are_compared_by_its_own_yardstick(tones, tmp_path):
    saved_random(experiment("tones-12"), tmp_path / "run")
    requests, page = [f"{tmp_path / 'run'}:{steps}" for steps in (2, 3)], tmp_path / "page.html"
    how = {"count": 6, "progress": Silent(), "device": "cpu"}
    results = dr.compare(requests, page, **how)
    drawer = dr.Choice(2).drawer(load(tmp_path / "run", device="cpu"))
    loud = np.abs(drawer.draw(range(6)).images / 255 - 0.5).mean()
    assert results.finished[0].row.score.value == pytest.approx(loud)
    shown = str(results)
    assert all(part in shown for part in ("loudness", "pitch", "440", "6 tones per row", "ms a tone"))
    assert "hum" in page.read_text()
    again = dr.compare(requests, page, **how)
    assert [each.row.score for each in again.finished] == [each.row.score for each in results.finished]


@pytest.mark.parametrize(
    "place",
    ["comparison", "drawing/measure.py", "drawing/evaluators.py", "cli/compare.py", "cli/evaluate.py"],
)
def test_what_measures_asks_no_model_of_what_kind_it_is(place):
    root = Path(modality.__file__).parents[1] / place
    for file in root.rglob("*.py") if root.is_dir() else [root]:
        words = set(re.findall(r"\w+", file.read_text()))
        assert not words & {"alphabet", "is_text", "is_fields", "are_forecasts", "Forecast", "forecast_of"}, file


def test_without_its_line_the_same_source_is_no_tone():
    assert reader_of("tones-12") is None
    assert experiment("tones-12").noun == "image"
    with pytest.raises(FileNotFoundError):
        dr.DataConfig("tones-12").load("train")


@pytest.mark.parametrize(
    ("source", "reader"),
    [
        ("kolmogorov", FIELDS), ("weather.nc", FIELDS), ("weather.zarr", FIELDS), ("weather.h5", FIELDS),
        ("fields.npz", FIELDS), ("images.npz", None), ("neither.npz", None), ("gone.npz", None),
        ("novel.txt", TEXTS), ("NOVEL.TXT", TEXTS), ("python-docs", TEXTS), ("fashion-mnist", None), ("photos", None),
        ("photos.tar", None), ("photos.parquet", None), ("", None),
    ],
)  # fmt: skip
def test_every_source_has_one_reader(source, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, fields = np.zeros((4, 8, 8, 1), np.uint8), np.zeros((2, 3, 1, 4, 4), np.float32)
    np.savez("images.npz", images=images)
    np.savez("fields.npz", fields=fields)
    (tmp_path / "neither.npz").write_bytes(b"no archive")
    (tmp_path / "photos").mkdir()
    assert reader_of(source) is reader
    assert sum(each.reads(source) for each in modality.modalities()) == (reader is not None)


def test_a_model_of_images_takes_no_text():
    plain = experiment("fashion-mnist")
    assert maker_of(plain) is IMAGES
    with pytest.raises(ValueError, match="run takes no prompts: drop the prompt"):
        conditions_named(plain, "a cat", "cpu")
