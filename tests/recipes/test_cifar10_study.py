"""studies/cifar10.py: a call trains for nine minutes more, though the trainer's limit is on the sum over calls."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from dualrate.training import checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(ROOT / "studies"))
    study = importlib.import_module("cifar10")
    monkeypatch.setattr(study, "ROOT", tmp_path)
    return study


def limit(arguments: list[str]) -> float | None:
    option = "--fit.max-seconds"
    return float(arguments[arguments.index(option) + 1]) if option in arguments else None


def test_every_call_of_full_size_has_nine_minutes_of_its_own(study, tmp_path: Path) -> None:
    assert limit(study.command("heavy", "full", "data")) == 540
    for iteration, seconds in ((10, 200.0), (20, 540.5)):
        checkpoints = tmp_path / "runs" / "cifar10-full-heavy" / "checkpoints"
        checkpoint.save(checkpoints, iteration, {"model": {"w": torch.zeros(1)}}, {"seconds": seconds})
        assert limit(study.command("heavy", "full", "data")) == pytest.approx(540 + seconds)
    assert limit(study.command("dual", "full", "data")) == 540
    assert limit(study.command("heavy", "reduced", "data")) is None
