"""Draws what is missing of the rows that `studies/report.py NAME --kept` takes, one at a time on each of two cores.

    OMP_NUM_THREADS=1 .venv/bin/python studies/kept.py settled-25 --processes 2

The report draws a row on all cores and scores it on one; here none waits. Rows are kept in runs/NAME-rows as
they are measured, float32 and compiled; stopped, it goes on where it was.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import torch
from common import RUNS, command, kept_rows, load, on_one_thread
from report import REPORTS

from dualrate.cli.console import reporter
from dualrate.compare.contender import Contender
from dualrate.compare.contenders import Entry, contenders_of
from dualrate.compare.trainings import with_trainings
from dualrate.compare.work import Bench
from dualrate.drawing.evaluator import evaluators
from dualrate.system.workers import in_turn, mapper


@cache
def bench_of(name: str) -> tuple[Bench, list[Contender]]:
    """What measures, and every training of every contender, those first that the report names first."""
    entries, progress = [Entry.parse(text) for text in REPORTS[name].entries], reporter()
    runs = dict.fromkeys(run for entry in entries for run in (entry.run, *entry.again))
    models = {run: replace(load(run), compiled=True) for run in runs}
    data = next(iter(models.values())).experiment.data
    judges = evaluators(data, REPORTS[name].judges, device=torch.device("cpu"), progress=progress)
    bench = Bench(models, judges, RUNS / f"{name}-report.cells", progress, "float32", kept_rows(name))
    contenders = with_trainings(contenders_of(entries, models, progress=progress, unplanned={}), entries)
    bench.estimates = {one.key: 1.0 for one in contenders}  # of an image: what is told counts images
    return bench, contenders


def seeds_of(name: str) -> range:
    return range(REPORTS[name].effort.count)


def measure(block: tuple[str, int]) -> None:
    """One row, by its place; in its process, whose bench is its own."""
    name, i = block
    bench, contenders = bench_of(name)
    bench.measure([contenders[i]], seeds_of(name), math.inf, details=True)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("name", choices=REPORTS)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    on_one_thread()
    bench, contenders = bench_of(options.name)
    missing = [i for i, one in enumerate(contenders) if not bench.keeps(one, seeds_of(options.name))]
    print(f"{len(missing)} of {len(contenders)} rows are missing", flush=True)
    if not missing:
        return
    with mapper(options.processes, torch.device("cpu"), bench.progress.note) as bench.mapper:
        bench.see_real_images()
        over, bench.mapper = bench.mapper, in_turn
        for _ in over(measure, [(options.name, i) for i in missing]):
            pass


if __name__ == "__main__":
    main()
