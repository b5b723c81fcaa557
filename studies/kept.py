"""Rows of `studies/report.py settled-25 --kept` that are there so far, and what the pair saves beside them.

    .venv/bin/python studies/kept.py        # a minute; draws nothing: tables "settled-25 so far" of settled.md

Once all rows are there the report itself says so, and this goes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from common import RESULTS, command, load, markdown, place, within
from report import REPORTS

from dualrate.cli.console import reporter
from dualrate.compare.contenders import Entry, contenders_of
from dualrate.compare.work import Bench, MeasuredContender
from dualrate.measuring.evaluator import evaluators
from dualrate.report.headline import plan_of
from dualrate.report.pareto import Point
from dualrate.report.saving import saving

NAME, PAIR = "settled-25", "dual-25"


def kept() -> tuple[list[MeasuredContender], int]:
    """In order of cost; and of how many."""
    report, progress = REPORTS[NAME], reporter()
    entries = [Entry.parse(text) for text in report.entries]
    models = {run: replace(load(run), compiled=True) for run in dict.fromkeys(entry.run for entry in entries)}
    data = next(iter(models.values())).experiment.data
    judges = evaluators(data, report.judges, device=torch.device("cpu"), progress=progress)
    rows = RESULTS / "rows" / NAME
    bench = Bench(models, judges, rows, progress, "float32", rows)
    contenders, seeds = contenders_of(entries, models, progress=progress, unplanned={}), range(report.effort.count)
    found = [contender for contender in contenders if bench.keeps(contender, seeds)]
    bench.estimates = {contender.key: 0.0 for contender in found}
    measured = bench.measure(found, seeds, math.inf, details=True)
    return sorted(measured, key=lambda one: one.row.macs), len(contenders)


def point(one: MeasuredContender, metric: str) -> Point:
    return one.judged_by(metric).point(float(one.row.flops))


def main() -> None:
    command(__doc__).parse_args()
    rows, total = kept()
    metrics = list(rows[0].row.scores)
    header = ("network", "sampler", "steps", "MFLOPs", *metrics)
    scores, savings, rivals = [], [], [one for one in rows if one.row.network != PAIR]
    for one in rows:
        row = one.row
        named = [row.network, row.sampler, plan_of(row), f"{row.flops / 1e6:.0f}"]
        scores.append([*named, *(within((s.value, s.low, s.high)) for s in row.scores.values())])
        if row.network == PAIR:
            ratios = (saving(point(one, metric), [point(rival, metric) for rival in rivals]) for metric in metrics)
            savings.append([*named, *map(str, ratios)])
    tables = f"{len(rows)} of {total} rows.\n\n{markdown(header, scores, 3)}\n{markdown(header, savings, 3)}\n"
    place(f"{NAME} so far", tables, RESULTS / "settled.md")
    print(tables)


if __name__ == "__main__":
    main()
