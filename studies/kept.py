"""Rows of `studies/report.py settled-25 --kept` that are there so far, and what the pair saves beside them.

    .venv/bin/python studies/kept.py            # a minute; draws nothing
    .venv/bin/python studies/kept.py --draw 2   # first the rows that are missing, one at a time on each of two cores

Makes the tables "settled-25 so far" of settled.md, those of README and results.md, and their figure. The report draws a
row on all cores and scores it on one; here none waits. Stopped, it goes on where it was. Once all rows are there the
report itself makes all this, and this goes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from common import RESULTS, ROOT, RUNS, command, load, markdown, on_one_thread, place, within
from report import REPORTS

from dualrate.cli.console import reporter
from dualrate.compare.contender import Contender
from dualrate.compare.contenders import Entry, contenders_of
from dualrate.compare.page import trainings_table
from dualrate.compare.trainings import as_one, with_trainings
from dualrate.compare.work import Bench, MeasuredContender
from dualrate.machine.workers import in_turn, mapper
from dualrate.measuring.evaluator import evaluators
from dualrate.report.figures import pareto_figure, png
from dualrate.report.headline import plan_of
from dualrate.report.pareto import Point
from dualrate.report.saving import saving
from dualrate.report.table import as_markdown

NAME, PAIR = "settled-25", "dual-25"
SEEDS = range(REPORTS[NAME].effort.count)


@cache
def bench_of() -> tuple[Bench, list[Contender]]:
    """What measures, and every training of every contender, those first that decided."""
    entries, progress = [Entry.parse(text) for text in REPORTS[NAME].entries], reporter()
    runs = dict.fromkeys(run for entry in entries for run in (entry.run, *entry.again))
    models = {run: replace(load(run), compiled=True) for run in runs}
    data = next(iter(models.values())).experiment.data
    judges = evaluators(data, REPORTS[NAME].judges, device=torch.device("cpu"), progress=progress)
    bench = Bench(models, judges, RUNS / f"{NAME}-report.cells", progress, "float32", RESULTS / "rows" / NAME)
    contenders = with_trainings(contenders_of(entries, models, progress=progress, unplanned={}), entries)
    bench.estimates = {one.key: float(bench.drawer(one).expected_cost.macs) for one in contenders}
    return bench, contenders


def measure(bench: Bench, contender: Contender) -> MeasuredContender:
    return bench.measure([contender], SEEDS, math.inf, details=True)[0]


def draw(missing: Sequence[int], count: int) -> None:
    """These contenders, in so many processes."""
    on_one_thread()
    bench, _ = bench_of()
    with mapper(count, torch.device("cpu"), bench.progress.note) as over:
        bench.mapper = over
        bench.see_real_images()
        bench.mapper = in_turn
        for _ in over(_measure, missing):
            pass


def _measure(i: int) -> None:
    """In its process, whose bench is its own."""
    bench, contenders = bench_of()
    measure(bench, contenders[i])


def point(one: MeasuredContender, metric: str) -> Point:
    return one.judged_by(metric).point(float(one.row.flops))


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--draw", type=int, default=0, help="processes that draw what is missing")
    options = parser.parse_args()
    bench, contenders = bench_of()
    missing = [i for i, one in enumerate(contenders) if not bench.keeps(one, SEEDS)]
    if options.draw and missing:
        draw(missing, options.draw)
    measured = [measure(bench, one) for one in contenders if bench.keeps(one, SEEDS)]
    rows = sorted(as_one(measured), key=lambda one: one.row.macs)
    over = "images and trainings" if rows[0].trainings else "images, of the first training of each network"
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
    tables = [markdown(header, scores, 3), markdown(header, savings, 3)]
    place(f"{NAME} summary", tables[0] + "\n", ROOT / "docs/results.md")
    place(f"{NAME} headline", tables[1] + "\n", ROOT / "README.md")
    if rows[0].trainings:
        tables.append(as_markdown(trainings_table(rows)) + "\n")
    kept = f"{len(measured)} of {len(contenders)} rows are kept; here are plans with all their trainings"
    text = f"{kept}; intervals over {over}.\n\n" + "\n".join(tables) + "\n"
    place(f"{NAME} so far", text, RESULTS / "settled.md")
    (RESULTS / f"{NAME}-flops.png").write_bytes(png(pareto_figure([one.row for one in rows], "flops")))
    print(text)


if __name__ == "__main__":
    main()
