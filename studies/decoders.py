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
from dualrate.report.table import EACH, Row, scored, significant
from dualrate.system.files import write_whole
from studies.common import RESULTS, markdown, place
from studies.saving import Saving

COSTS = ("FLOPs", "time in batches", "time alone")
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


def front_table(records: Sequence[Record]) -> str:
    """The lowest cost first."""
    lines = []
    for one, row in sorted(((one, row_of(one)) for one in records), key=lambda pair: (pair[1].macs, str(pair[1]))):
        heavy = EACH if row.num_heavy == row.num_steps else row.num_heavy
        cells: list[object] = [row.network, row.sampler, row.num_steps, heavy, significant(row.flops / 1e9)]
        cells += [significant(1000 * one[name]) for name in ("seconds_per_image", "seconds_alone")]
        cells += [row.batch_size, round(one["peak_bytes"] / 1e6), *map(scored, row.scores.values())]
        cells += [f"{1000 * one['kernel']:.2f} +- {1000 * one['kernel_standard_error']:.2f}"]
        cells += [f"{one[name]:.3f}" for name in ("precision", "recall")]
        lines.append([*cells, f"{one['psnr']:.2f} +- {one['psnr_standard_error']:.2f}"])
    head = ["network", "sampler", "N", "H", "GFLOPs", "ms", "ms alone", "batch", "MB", *row_of(records[0]).scores]
    return markdown([*head, "KD x 1000", "precision", "recall", "PSNR, dB"], lines)


def savings_table(savings: Sequence[Record]) -> str:
    """A line for each plan and metric."""
    lines = []
    for one in savings:
        for metric, judged in one["judges"].items():
            lines.append([one["network"], one["sampler"], one["plan"], metric, *(ratio(judged[of]) for of in COSTS)])
    return markdown(["network", "sampler", "plan", "metric", *COSTS], lines, texts=4)


def ratio(one: Record) -> Saving:
    value, low, high = (math.inf if one[part] == "never" else one[part] for part in ("ratio", "low", "high"))
    return Saving(value, low, high, one["at_most"], math.nan)


def page() -> None:
    known = json.loads((RESULTS / "decoders.json").read_text())
    place("decoders savings", savings_table(known["savings"]), RESULTS / "decoders.md")
    place("decoders front", front_table(known["front"]), RESULTS / "decoders.md")
    rows = sorted(map(row_of, known["front"]), key=lambda row: row.macs)
    write_whole(RESULTS / "decoders-flops.png", png(pareto_figure(rows, "flops")))


if __name__ == "__main__":
    page()
