"""The report of docs/results: compares models, then writes docs/results/NAME.json, and a page's tables and figures.

    make reproduce-report            settled-25: a small pair and single networks trained alike, 50,000 images, float32,
                                     nine to twenty hours of a core; KEPT=1: of rows that are kept, minutes

The same call goes on where it was. The page with everything is runs/NAME-report.html. With `--kept` rows are read from
docs/results/rows/NAME.tar.xz, where other machines have measured them, and new ones are kept in runs/NAME-rows; all in
one precision, as in `--kept --precision float32 --compile`.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from common import (
    JUDGES,
    PRETRAINED,
    RESULTS,
    ROOT,
    RUNS,
    SHOWN,
    command,
    kept_rows,
    on_one_thread,
    pages_with,
    place,
)
from entries import AGAIN, NEAR, each, trained_alike

from dualrate.cli.console import can_compile, reporter
from dualrate.compare.comparison import Effort, compare
from dualrate.compare.judges import verdict_table, verdicts
from dualrate.compare.page import front_table, reusing_plans, savings_table, trainings_table
from dualrate.compare.savings import ComparisonResults, Savings
from dualrate.compare.work import TimedContender
from dualrate.config.ranges import Precision
from dualrate.report.figures import pareto_figure, plan_figure, png
from dualrate.report.image_grid import save_grid
from dualrate.report.table import Table, as_markdown, compute_unit, plan_of, significant, table
from dualrate.system.device import pick_device

Writer = Callable[[ComparisonResults, Path], object]
KINDS = ("savings", "front")  # of tables on a page
FIRST = (ROOT / "docs/results.md",)  # where the table "headline" stands, too


@dataclass(frozen=True)
class Report:
    """entries: of `dualrate compare`, below the repository; command: what a user types; page: in docs/results

    judges: feature nets that see the same images; kinds: tables of its page
    """

    entries: Sequence[str]
    effort: Effort
    command: str
    page: str
    judges: str
    kinds: Sequence[str] = KINDS


REPORTS = {
    "settled-25": Report(
        trained_alike(each(NEAR), AGAIN),
        Effort(minutes=1440, screen=300, count=50_000),
        "make reproduce-report",
        "settled.md",
        f"{JUDGES},{PRETRAINED}",
        kinds=("verdicts", *KINDS, "trainings", "headline", "scores"),
    ),
}


def headline_table(findings: ComparisonResults) -> Table:
    """What each plan saves in FLOPs, a column a judge."""
    return _by_judge(findings, lambda one: str(one.savings[0]))


def scores_table(findings: ComparisonResults) -> Table:
    """How much the best of the others lack at each plan's FLOPs, a column a judge."""
    return _by_judge(findings, lambda one: str(one.score))


def _by_judge(findings: ComparisonResults, cell: Callable[[Savings], str]) -> Table:
    found = verdicts(findings)
    prefix, unit = compute_unit([one.first.finished.row.flops for one in found])
    cells = []
    for one in found:
        row = one.first.finished.row
        named = (row.network, row.sampler, plan_of(row), significant(row.flops / unit))
        cells.append((*named, *map(cell, one.by_judge.values())))
    judges = found[0].by_judge if found else ()
    return Table(("network", "sampler", "plan", f"{prefix}FLOPs", *judges), tuple(cells), ())


TABLES: Mapping[str, Callable[[ComparisonResults], Table]] = {  # by the kind between a page's markers
    "verdicts": verdict_table,
    "savings": savings_table,
    "front": lambda findings: front_table(findings.finished),
    "trainings": lambda findings: trainings_table([one.measured for one in findings.finished]),
    "headline": headline_table,
    "scores": scores_table,
}


def _by_cost(findings: ComparisonResults) -> list[TimedContender]:
    return sorted(findings.finished, key=lambda one: one.row.macs)


def _figure(cost: Literal["flops", "seconds"]) -> Writer:
    return lambda findings, file: file.write_bytes(png(pareto_figure([one.row for one in _by_cost(findings)], cost)))


def _plans(findings: ComparisonResults, file: Path) -> None:
    file.write_bytes(png(plan_figure(reusing_plans(findings.finished))))


def _samples(findings: ComparisonResults, file: Path) -> None:
    """A row of images each, in order of cost."""
    grid = np.concatenate([one.images for one in _by_cost(findings)])
    save_grid(grid, file, columns=SHOWN, scale=2 if grid.shape[-1] < 30 else 1)


def _screening(findings: ComparisonResults, file: Path) -> None:
    made = table([one.row for one in findings.screened])
    with file.open("w", newline="") as target:
        csv.writer(target, lineterminator="\n").writerows([made.header, *made.cells])


FILES: Mapping[str, Writer] = {  # NAME and this, where the report's page or the summary names it
    "-flops.png": _figure("flops"),
    "-seconds.png": _figure("seconds"),
    "-plans.png": _plans,
    "-samples.png": _samples,
    "-screening.csv": _screening,
}


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("name", choices=REPORTS)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw at once")
    parser.add_argument("--compile", action="store_true", help="the networks: a third faster in float32")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto")
    parser.add_argument(
        "--kept", action="store_true", help="take rows that are kept, and keep new ones in runs/NAME-rows"
    )
    options = parser.parse_args()
    name, report, device = options.name, REPORTS[options.name], pick_device(None)
    page = RESULTS / report.page
    for kind in report.kinds:  # before the work
        pages_with(f"{name} {kind}", [page, *FIRST])
    if device.type == "cpu":
        on_one_thread()
    os.chdir(ROOT)  # what is kept of a row has its entry's name, wherever the checkout stands
    out = RUNS / f"{name}-report.html"
    compiled = options.compile and can_compile(device, reporter())
    if options.kept and options.compile and not compiled:
        raise SystemExit("the rows that are kept are of compiled networks, for which there is no compiler here")
    findings = compare(
        report.entries,
        out,
        report.effort,
        features=report.judges,
        device=device,
        workers=options.workers,
        compiled=compiled,
        precision=options.precision,
        rows=kept_rows(name) if options.kept else None,
        progress=reporter(),
        command=report.command,
    )
    for sentence in findings.unplanned:
        print(sentence)
    if findings.unfinished:
        print(*findings.unfinished, f"the same command goes on; so far: {out}", sep="\n")
        raise SystemExit(75)
    named = "".join(file.read_text() for file in (page, *FIRST))
    for suffix in (".json", *([".csv"] if f"{name}.csv" in named else [])):
        (RESULTS / f"{name}{suffix}").write_text(out.with_suffix(suffix).read_text())
    for ending, write in FILES.items():
        if f"{name}{ending}" in named:
            write(findings, RESULTS / f"{name}{ending}")
    for kind in report.kinds:
        made = as_markdown(TABLES[kind](findings)) + "\n"
        for where in pages_with(f"{name} {kind}", [page, *FIRST]):
            place(f"{name} {kind}", made, where)
    print(out, page)


if __name__ == "__main__":
    main()
