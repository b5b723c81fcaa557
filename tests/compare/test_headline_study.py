"""The tables of studies/report.py that pages open with."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from test_judges import seen
from test_savings import RIVALS, findings, finished

from dualrate.metrics.evaluate import Evaluator

STUDIES = Path(__file__).resolve().parents[2] / "studies"
sys.path.insert(0, str(STUDIES))
SPEC = spec_from_file_location("report_study", STUDIES / "report.py")  # tests have a folder of its name
assert SPEC
assert SPEC.loader
study = module_from_spec(SPEC)
sys.modules[SPEC.name] = study  # where its dataclasses look their types up
SPEC.loader.exec_module(study)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Evaluator:
    monkeypatch.setattr(Evaluator, "metric", "FD-squares")
    return Evaluator.__new__(Evaluator)


def test_ratios_are_those_beside_the_best_of_all_or_beside_one_network_alone(judge: Evaluator) -> None:
    """A plan of cost 1 with 4 and 2, beside a network that has 8 / cost, and one that does the same for a half."""
    good = [finished("good", cost, 4 / cost, heavy=4) for cost in (0.5, 4)]
    rivals = [seen(one, one.row.score.value) for one in (*RIVALS, *good)]
    results = findings(judge, [seen(finished("dual", 1, 4.0), 2.0)], rivals)
    made = study.headline_table(results)
    assert made.header == ("network", "sampler", "plan", "GFLOPs", "FD-squares", "FD-other")
    ((*_, first, second),) = made.cells
    assert first.startswith("1.00 [")
    assert second.startswith("2.00 [")
    ((*_, first, second),) = study.headline_table(study.against(results, "single")).cells
    assert first.startswith("2.00 [")
    assert second.startswith("4.00 [")
