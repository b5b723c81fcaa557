"""The tables and the figure of docs/results/decoders.md, of the numbers in decoders.json: `python -m studies.decoders`.

What measured them is in the history (docs/results/decoders.md). Replicates were not kept, so intervals are as they
were.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dualrate.metrics.quality import QualityScore
from dualrate.metrics.store import Fingerprint
from dualrate.report.figures import pareto_figure, png
from dualrate.report.table import Row, scored, significant
from dualrate.system.files import write_whole
from studies.common import RESULTS, markdown, place
from studies.saving import Saving

COSTS = "FLOPs", "time alone"
Record = Mapping[str, Any]  # a plan's numbers


def row_of(one: Record) -> Row:
    """By all metrics, of which the first one's fingerprint is known."""

    def score(metric: str, prefix: str) -> QualityScore:
        value, low, high, floor = (one[f"{prefix}{name}"] for name in ("value", "low", "high", "floor"))
        seen = Fingerprint(**one["fingerprint"])
        return QualityScore(metric, value, low, high, one["level"], floor, one["floor_count"], seen)

    return Row(
        **{name: one[name] for name in ("network", "sampler", "num_steps", "num_heavy", "macs")},
        **{name: one[name] for name in ("seconds_per_image", "batch_size")},
        precision="bfloat16",
        score=score(one["metric"], ""),
        beside=tuple(
            score(name.removesuffix(" value"), name.removesuffix("value")) for name in one if " value" in name
        ),
    )


def scored_table(records: Sequence[Record]) -> str:
    """Pairs in 4 and 6 steps, and the single decoders that no other single one beats by most metrics; by cost."""
    rows = sorted(map(row_of, records), key=lambda row: row.macs)
    single = [row for row in rows if row.num_heavy == row.num_steps]
    lines = []
    for row in rows:
        on_front = [
            not any(one.macs <= row.macs and one.scores[metric].value < score.value for one in single)
            for metric, score in row.scores.items()
        ]
        if (row in single and sum(on_front) > len(on_front) / 2) or (row not in single and row.num_steps in (4, 6)):
            cells = [row.network, row.num_steps, significant(row.flops / 1e9)]
            lines.append([*cells, *map(scored, row.scores.values())])
    return markdown(["decoder", "steps", "GFLOPs", *rows[0].scores], lines, texts=1)


def savings_table(savings: Sequence[Record]) -> str:
    """Two lines for each plan whose score a single decoder reaches by some metric, and a column a metric."""
    lines = []
    for one in savings:
        judged = {of: [ratio(by[of]) for by in one["judges"].values()] for of in COSTS}
        if any(math.isfinite(found.ratio) for found in judged["FLOPs"]):
            lines += [[f"{one['network']} {one['plan']}", of, *ratios] for of, ratios in judged.items()]
    return markdown(["plan", "ratio of", *savings[0]["judges"]], lines)


def ratio(one: Record) -> Saving:
    value, low, high = (math.inf if one[part] == "never" else one[part] for part in ("ratio", "low", "high"))
    return Saving(value, low, high, one["at_most"])


def page() -> None:
    known = json.loads((RESULTS / "decoders.json").read_text())
    place("decoders savings", savings_table(known["savings"]), RESULTS / "decoders.md")
    place("decoders scores", scored_table(known["front"]), RESULTS / "decoders.md")
    rows = sorted(map(row_of, known["front"]), key=lambda row: row.macs)
    write_whole(RESULTS / "decoders-flops.png", png(pareto_figure(rows, "flops")))


if __name__ == "__main__":
    page()
