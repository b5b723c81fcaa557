"""The seam between engine and applications: the wings' answers, and a toy application that is one module and a line."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import dualrate as dr
from dualrate.data.images import ImageSet
from dualrate.data.source import DataProgress, Split
from dualrate.drawing.evaluators import evaluator
from dualrate.experiment import modality
from dualrate.experiment.modality import IMAGES, Modality, conditions_named, maker_of, reader_of
from dualrate.forecasts.modality import MODALITY as FIELDS
from dualrate.runs.store import load, read_experiment
from dualrate.runs.train import save_samples
from dualrate.system.progress import Silent
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
        np.save(file.with_suffix(".npy"), samples)


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
        ("novel.txt", TEXTS), ("python-docs", TEXTS), ("fashion-mnist", None), ("photos", None), ("photos.tar", None),
        ("photos.parquet", None), ("", None),
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
