"""Tables: the values in their columns, the floor and the notes beside them, nothing compared that cannot be."""

import json
import math
from dataclasses import replace

import pytest

from dualrate.report.table import as_text, record, significant, table
from report.made import DUAL, HEAVY, LIGHT, row

ROWS = [HEAVY, LIGHT, DUAL]


def cells_by_name(rows) -> list[dict[str, str]]:
    made = table(rows)
    return [dict(zip(made.header, line, strict=True)) for line in made.cells]


def test_values_stand_in_their_columns_lowest_cost_first():
    light, dual, heavy = cells_by_name(ROWS)
    assert [line["network"] for line in (light, dual, heavy)] == ["light alone", "dual-rate", "heavy"]
    assert (dual["N"], dual["H"], dual["GFLOPs"]) == ("32", "8", "4.20")
    assert (dual["ms"], dual["FD-squares"]) == ("35.0", "13.0 [12.0, 14.0]")
    assert light["GFLOPs"] == "1.86"
    assert (heavy["sampler"], heavy["N"], heavy["H"]) == ("DDIM", "16", "-")


def test_small_costs_are_in_millions():
    (line,) = cells_by_name([row(macs=29_000_000)])
    assert line["MFLOPs"] == "58.0"


def test_the_floor_and_the_notes_of_the_scores_are_stated():
    noted = row(note="only few images")
    shown = as_text(table([noted]))
    assert "floor: 2.61, reached by 1000 held-out real images" in shown
    assert "only few images" in shown
    assert noted.score.fingerprint.short() in shown
    assert "floor" not in as_text(table([row(floor=math.nan)]))  # the score's note says why there is none


def test_text_columns_are_aligned():
    head, *lines = as_text(table(ROWS)).splitlines()[:4]
    assert all(len(line) == len(head) for line in lines)
    assert all(line[: head.index("N") - 2].rstrip().endswith(("ancestral", "DDIM")) for line in lines)


def test_a_name_of_several_lines_stays_in_its_row():
    named = table([replace(DUAL, network="two\nlines\u2028 long")], [{"a\nplace": "b\nc"}], ["a note\nof two"])
    head, line, *notes = as_text(named).splitlines()
    assert line.startswith("two lines  long  ")
    assert (head[-7:], line[-3:]) == ("a place", "b c")
    assert len(notes) == 1 + len(named.notes)
    assert "a note of two" in notes


def test_a_metric_has_columns_and_what_stands_beside_keeps_to_its_row():
    other = replace(DUAL.score, metric="FD-other", value=5.0)
    rows = [replace(one, beside=(other,)) for one in ROWS]
    made = table(rows, [{"place": str(i)} for i in range(3)], ["a note"])
    found = [dict(zip(made.header, line, strict=True)) for line in made.cells]
    assert [(line["network"], line["place"]) for line in found] == [
        ("light alone", "1"),
        ("dual-rate", "2"),
        ("heavy", "0"),
    ]
    assert {line["FD-other"][:5] for line in found} == {"5.00 "}
    assert "a note" in made.notes


def test_records_are_json_and_unrounded():
    light, unknown = json.loads(json.dumps([record(LIGHT), record(row(floor=math.nan))], allow_nan=False))
    assert (light["macs"], light["flops"]) == (930_000_000, 1_860_000_000)
    assert (light["value"], light["low"], light["floor"]) == (31.24, 29.24, 2.613)
    assert light["fingerprint"]["count"] == 1000
    assert unknown["floor"] is None


def test_scores_of_different_conditions_are_not_put_side_by_side():
    with pytest.raises(ValueError, match="count"):
        table([DUAL, row(count=5000)])
    with pytest.raises(ValueError, match="no rows"):
        table([])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.012345, "0.0123"), (1.0, "1.00"), (9.996, "10.0"), (99.96, "100"), (12345.6, "12346")],
)
def test_three_significant_digits(value, shown):
    assert significant(value) == shown
