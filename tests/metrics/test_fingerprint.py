"""Scores taken under different conditions are not compared by accident."""

import json
from dataclasses import asdict, fields, replace

import pytest

from dualrate.metrics.store import Fingerprint, require_same

ONE = Fingerprint("net:0123456789ab", "data/train:ba9876543210", 60000, 5000, "0-4999", "i mod classes")


def test_equal_fingerprints_pass_and_have_one_hash():
    require_same([ONE, replace(ONE), replace(ONE)])
    require_same([])
    assert ONE.short() == replace(ONE).short()
    assert json.loads(ONE.json()) == asdict(ONE)


@pytest.mark.parametrize("name", [field.name for field in fields(Fingerprint)])
def test_any_differing_field_is_refused_by_its_name(name):
    other = replace(ONE, **{name: 17 if "count" in name else "other"})
    assert other.short() != ONE.short()
    with pytest.raises(ValueError, match=f"differ in {name} \\("):
        require_same([ONE, ONE, other])


def test_all_differing_fields_are_named():
    with pytest.raises(ValueError, match=r"count \(5000 / 1000\), seeds \(0-4999 / 0-999\)"):
        require_same([ONE, replace(ONE, count=1000, seeds="0-999")])
