"""The table that docs/results.md opens with."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from tests.report.made import row

STUDIES = Path(__file__).resolve().parents[2] / "studies"
sys.path.insert(0, str(STUDIES))
spec = spec_from_file_location("report_study", STUDIES / "report.py")  # `report` is this package
assert spec
assert spec.loader
study = module_from_spec(spec)
sys.modules[spec.name] = study  # where its dataclasses look their types up
spec.loader.exec_module(study)


def test_the_opening_table_has_all_at_two_rates_and_the_front_of_the_others() -> None:
    rows = [
        row("one", steps=8, heavy=8, macs=1_000_000_000, value=5.0),
        row("one", steps=16, heavy=16, macs=2_000_000_000, value=3.0),
        row("other", steps=8, heavy=8, macs=1_500_000_000, value=6.0),  # dearer than the first, and worse
        row("pair", steps=16, heavy=4, macs=3_000_000_000, value=7.0),  # beaten by all, and yet there
    ]
    made = study.summary_table(rows)
    assert made.header == ("network", "sampler", "steps", "heavy calls", "GFLOPs", "FD-squares")
    assert made.cells == (
        ("one", "ancestral", "8", "-", "2.00", "5.00 [4.00, 6.00]"),
        ("one", "ancestral", "16", "-", "4.00", "3.00 [2.00, 4.00]"),
        ("pair", "ancestral", "16", "4", "6.00", "7.00 [6.00, 8.00]"),
    )
