"""The tables of studies/report.py that pages open with."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

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


def test_a_plan_has_its_ratio_by_every_judge(judge: Evaluator) -> None:
    """A plan of cost 1 with 4 and 2, beside a network that has 8 / cost."""
    rivals = [seen(one, one.row.score.value) for one in RIVALS]
    made = study.headline_table(findings(judge, [seen(finished("dual", 1, 4.0), 2.0)], rivals))
    assert made.header == ("network", "sampler", "plan", "GFLOPs", "FD-squares", "FD-other")
    ((*_, first, second),) = made.cells
    assert first.startswith("2.00 [")
    assert second.startswith("4.00 [")
