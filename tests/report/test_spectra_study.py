"""studies/spectra.py: powers and distances of bands, on images whose spectra are known."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from dualrate.sampling.covariance import Bands

ROOT = Path(__file__).resolve().parent.parent.parent
BANDS = Bands((1, 8, 8), 4)


@pytest.fixture
def spectra(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "studies"))
    return importlib.import_module("spectra")


def _images(scale: int) -> Tensor:
    """(400, 1, 8, 8) uint8 of mean 127.5 exactly, whose deviations from it are `scale` times half-integers."""
    deviation = scale * (2 * torch.randint(0, 14, (200, 1, 8, 8), generator=torch.Generator().manual_seed(0)) + 1)
    return torch.cat([(255 + deviation) // 2, (255 - deviation) // 2]).to(torch.uint8)


def test_a_third_of_every_deviation_has_a_ninth_of_the_power(spectra: ModuleType) -> None:
    """FD of N(m, S) and N(m, c^2 S) is (1 - c)^2 tr S."""
    real, found = (spectra.banded(_images(scale), BANDS) for scale in (9, 3))
    for power, shape in spectra.differences(found, real):
        assert power == pytest.approx(100 / 9, rel=1e-6)
        assert shape == pytest.approx(100 * (1 - 1 / 3) ** 2, rel=1e-6)


def test_other_brightness_shows_in_the_lowest_band_alone(spectra: ModuleType) -> None:
    images = _images(3)
    real, brighter = (spectra.banded(one, BANDS) for one in (images, images + 10))
    lowest, *others = spectra.differences(brighter, real)
    gap = (10 / 127.5) ** 2 * BANDS.index.numel()  # |U 1|^2 = number of pixels
    assert lowest[0] == pytest.approx(100)
    assert lowest[1] == pytest.approx(100 * gap / real[0].cov.trace().item(), rel=1e-6)
    assert all(shape == pytest.approx(0, abs=1e-6) for _, shape in others)
