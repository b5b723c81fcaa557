"""Rows with made-up numbers."""

import math

from dualrate.metrics.quality import QualityScore
from dualrate.metrics.store import Fingerprint
from dualrate.report.table import Row


def row(
    network: str = "dual-rate",
    sampler: str = "ancestral",
    steps: int = 32,
    heavy: int = 8,
    *,
    macs: int = 2_100_000_000,
    seconds: float = 0.035,
    value: float = 13.0,
    half: float = 1.0,
    floor: float = 2.613,
    count: int = 1000,
    note: str = "",
) -> Row:
    """The interval is value - half to value + half; floor NaN: none."""
    fingerprint = Fingerprint("squares:aa", "squares/train:bb", 60_000, count, f"0-{count - 1}", "seed mod classes")
    held_out = 0 if math.isnan(floor) else count
    score = QualityScore("FD-squares", value, value - half, value + half, 0.95, floor, held_out, fingerprint, note)
    return Row(network, sampler, steps, heavy, macs, seconds, 125, "float32", score)


HEAVY = row("heavy", "DDIM", 16, 16, macs=2_670_000_000, seconds=0.04, value=14.1)
LIGHT = row("light alone", steps=32, heavy=32, macs=930_000_000, seconds=0.02, value=31.24, half=2)
DUAL = row()
