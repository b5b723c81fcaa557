"""The notebooks of examples/ run from the first cell to the last, at tiny size, and leave their pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualrate.forecasts import recipe
from dualrate.recipes import auto

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def _run(name: str, **settings: object) -> None:
    """Execute the code cells of a notebook in the working directory, after the first, which holds its settings."""
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    exec(code[0], names)
    assert settings.keys() <= names.keys()
    names |= settings
    for cell in code[1:]:
        exec(compile(cell, name, "exec"), names)


def test_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tier = replace(auto.TIERS["tiny"], conv=8, transformers=(None, 64), blocks=(1, 1), embedding=16)
    monkeypatch.setitem(auto.TIERS, "tiny", tier)
    _run("train_your_images", ITERATIONS=2)
    width, height = Image.open("samples.png").size
    assert width > 8 * 16
    assert height > 3 * 16
    assert Path("runs/photos-tiny-single/experiment.json").exists()


def test_own_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    tier = replace(recipe.TIERS["mini"], channels=(8, 8), blocks=(1, 1), embedding=16)
    monkeypatch.setitem(recipe.TIERS, "mini", tier)
    _run("forecast_your_fields", ITERATIONS=2, MEMBERS=3)
    assert Image.open("plume.png").width > 300


def test_retrofit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 1), dtype=np.uint8)
    np.savez("images.npz", images=images, labels=np.zeros(64, np.int64))
    _run("retrofit", DATA="images.npz", ITERATIONS=2)
    assert Image.open("both.png").width > 8 * 16
