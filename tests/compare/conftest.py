"""A judge that is never asked."""

import pytest

from dualrate.metrics.evaluate import Evaluator


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Evaluator:
    monkeypatch.setattr(Evaluator, "metric", "FD-squares")
    return Evaluator.__new__(Evaluator)
