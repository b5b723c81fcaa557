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


def row_of(record: Record) -> Row:
    """A record with its scores by all metrics, which share the fingerprint of the first."""

    def score(metric: str, prefix: str) -> QualityScore:
        value, low, high, floor = (record[f"{prefix}{name}"] for name in ("value", "low", "high", "floor"))
        seen = Fingerprint(**record["fingerprint"])
        return QualityScore(metric, value, low, high, record["level"], floor, record["floor_count"], seen)

    return Row(
        **{name: record[name] for name in ("network", "sampler", "num_steps", "num_heavy", "macs")},
        **{name: record[name] for name in ("seconds_per_image", "batch_size")},
        precision="bfloat16",
        score=score(record["metric"], ""),
        beside=tuple(
            score(name.removesuffix(" value"), name.removesuffix("value")) for name in record if " value" in name
        ),
    )


def scored_table(records: Sequence[Record]) -> str:
    """Pairs in 4 and 6 steps, and the single decoders that no other single one beats by most metrics; by cost."""
    rows = sorted(map(row_of, records), key=lambda row: row.macs)
    single = [row for row in rows if row.num_heavy == row.num_steps]
    lines = []
    for row in rows:
        on_front = [
            not any(rival.macs <= row.macs and rival.scores[metric].value < score.value for rival in single)
            for metric, score in row.scores.items()
        ]
        if (row in single and sum(on_front) > len(on_front) / 2) or (row not in single and row.num_steps in (4, 6)):
            cells = [row.network, row.num_steps, significant(row.flops / 1e9)]
            lines.append([*cells, *map(scored, row.scores.values())])
    return markdown(["decoder", "steps", "GFLOPs", *rows[0].scores], lines, texts=1)


def savings_table(savings: Sequence[Record]) -> str:
    """Two lines for each plan whose score a single decoder reaches by some metric, and a column a metric."""
    lines = []
    for record in savings:
        judged = {of: [ratio(by[of]) for by in record["judges"].values()] for of in COSTS}
        if any(math.isfinite(saving.ratio) for saving in judged["FLOPs"]):
            lines += [[f"{record['network']} {record['plan']}", of, *ratios] for of, ratios in judged.items()]
    return markdown(["plan", "ratio of", *savings[0]["judges"]], lines)


def ratio(record: Record) -> Saving:
    value, low, high = (math.inf if record[part] == "never" else record[part] for part in ("ratio", "low", "high"))
    return Saving(value, low, high, record["at_most"])


def page() -> None:
    numbers = json.loads((RESULTS / "decoders.json").read_text())
    place("decoders savings", savings_table(numbers["savings"]), RESULTS / "decoders.md")
    place("decoders scores", scored_table(numbers["front"]), RESULTS / "decoders.md")
    rows = sorted(map(row_of, numbers["front"]), key=lambda row: row.macs)
    write_whole(RESULTS / "decoders-flops.png", png(pareto_figure(rows, "flops")))


if __name__ == "__main__":
    page()
