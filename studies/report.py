"""The report of docs/results: compares models, then writes docs/results/NAME.json, and a page's tables and figures.

    make reproduce-report            settled-25: a small pair and single networks trained alike, 50,000 images, float32,
                                     nine to twenty hours of a core; KEPT=1: of the rows that are kept, minutes

The same call goes on where it was. The page with everything is runs/NAME-report.html. With `--kept` rows are read from
docs/results/rows/NAME.tar.xz, a file for each training of each candidate, and only times are measured anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from common import (
    METRICS,
    PRETRAINED,
    RESULTS,
    ROOT,
    RUNS,
    SHOWN,
    as_markdown,
    command,
    kept_rows,
    load,
    on_one_thread,
    pages_with,
    place,
    save,
)
from trainings import kept_file, training
from verdicts import headline_table, pooled_results, savings_table, scores_table, trainings_table, verdict_table

from dualrate.cli.console import reporter, working
from dualrate.compare.candidates import RunRequest, candidates_of
from dualrate.compare.comparison import Effort, Session, compare
from dualrate.compare.results import (
    ComparisonResults,
    MeasuredCandidate,
    as_json,
    compare_page,
    front_table,
    read_row,
    reusing_plans,
)
from dualrate.config.ranges import Precision
from dualrate.report.figures import pareto_figure, plan_figure, png
from dualrate.report.image_grid import save_grid
from dualrate.report.table import Table
from dualrate.system.device import pick_device

# Requests of `dualrate compare`

SETTLED = "@sde-dpm++2m:0.1"
PLANS = "docs/results/plans"  # plans of the pair, and grids of single networks
EVEN = "log-snr"  # the usual grid of a single network until 2026-11-26


def blended(plan: str, gamma: float) -> str:
    """A way to sample a pair; plan: blend, steps and heavy calls."""
    return f"{PLANS}/blend-{plan}.json@sde-dpm++2m:{gamma}"


def single(steps: int, grid: str = "blend-0.5") -> str:
    """A way to sample a single network, on the pair's own family of times if not another."""
    return f"{PLANS}/single/{steps}/{grid}.json{SETTLED}"


NEAR = {  # dual-25 and what decided its ratios by some metric, at 10,000 images or more, or lies between two of these
    "dual-25": (
        *(blended(plan, 0.1) for plan in ("0.7-8-2", "0.5-10-3", "0.5-12-3")),
        blended("0.5-8-2", 0.05),
    ),
    "light-10": (
        *(f"{steps}@dpm++2m" for steps in (5, 6, 8, 10)),
        *(single(steps, EVEN) for steps in (10, 12)),
        *(single(steps) for steps in (6, 8, 10, 12)),
    ),
    "light": (
        *(f"{steps}@dpm++2m" for steps in (6, 7, 8)),
        *(single(steps, EVEN) for steps in (8, 10)),
        *(single(steps) for steps in (8, 10)),
    ),
    "medium-25": (
        *(f"{steps}@dpm++2m" for steps in (6, 7, 8)),
        *(single(steps, EVEN) for steps in (10, 12)),
        *(single(steps) for steps in (8, 10)),
    ),
}
AGAIN = {"dual-25": (1, 2), "light-10": (1, 2), "light": (1, 2), "medium-25": (1,)}  # trained from these seeds, too


REQUESTS = [
    f"{trained}=weights/fashion-mnist-{trained}:{how}"
    for name, ways in NEAR.items()
    for trained in (name, *(f"{name}-seed{seed}" for seed in AGAIN[name]))
    for how in ways
]


# The report

Writer = Callable[[ComparisonResults, Path], object]
KINDS = ("savings", "front")  # of tables on a page
FIRST = (ROOT / "docs/results.md",)  # where the table "headline" stands, too


@dataclass(frozen=True)
class Report:
    """requests: of `dualrate compare`, below the repository; command: what a user types; page: in docs/results

    metrics: feature nets that see the same images; kinds: tables of its page
    """

    requests: Sequence[str]
    effort: Effort
    command: str
    page: str
    metrics: str
    kinds: Sequence[str] = KINDS


REPORTS = {
    "settled-25": Report(
        REQUESTS,
        Effort(minutes=1440, screen=300, count=50_000),
        "make reproduce-report",
        "settled.md",
        f"{METRICS},{PRETRAINED}",
        kinds=("verdicts", *KINDS, "trainings", "headline", "scores"),
    ),
}


TABLES: Mapping[str, Callable[[ComparisonResults], Table]] = {  # by the kind between a page's markers
    "verdicts": verdict_table,
    "savings": savings_table,
    "front": lambda findings: front_table(pooled_results(findings).finished),
    "trainings": trainings_table,
    "headline": headline_table,
    "scores": scores_table,
}


def _by_cost(findings: ComparisonResults) -> list[MeasuredCandidate]:
    return sorted(pooled_results(findings).finished, key=lambda one: one.row.macs)


def _figure(cost: Literal["flops", "seconds"]) -> Writer:
    return lambda findings, file: file.write_bytes(png(pareto_figure([one.row for one in _by_cost(findings)], cost)))


def _plans(findings: ComparisonResults, file: Path) -> None:
    file.write_bytes(png(plan_figure(reusing_plans(_by_cost(findings)))))


def _samples(findings: ComparisonResults, file: Path) -> None:
    """A row of images each, in order of cost."""
    grid = np.concatenate([one.images for one in _by_cost(findings)])
    save_grid(grid, file, columns=SHOWN, scale=2 if grid.shape[-1] < 30 else 1)


FILES: Mapping[str, Writer] = {  # NAME and this, where the report's page or the summary names it
    "-flops.png": _figure("flops"),
    "-seconds.png": _figure("seconds"),
    "-plans.png": _plans,
    "-samples.png": _samples,
}


def kept_results(name: str, precision: Precision) -> ComparisonResults:
    """Of the rows that are kept: their files have the names of the candidates. Times are measured now."""
    report, folder, progress = REPORTS[name], kept_rows(name), reporter()
    requests = [RunRequest.parse(text) for text in report.requests]
    models = {request.run: load(request.run) for request in requests}
    candidates = candidates_of(requests, models)
    measured = [read_row(folder / kept_file(one), one) for one in candidates]
    session = Session(models, (), RUNS / f"{name}-report.cells", progress, precision)
    duals = frozenset(one.network for one in candidates if one.reuses)
    timed = session.finish([one for one in measured if training(one.candidate)[1] == 0])
    results = ComparisonResults([], measured, timed, duals, (), report.command, session.environment)
    return results.with_savings()


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("name", choices=REPORTS)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw at once")
    parser.add_argument("--compile", action="store_true", help="the networks: a third faster in float32")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto")
    parser.add_argument("--kept", action="store_true", help="take the rows that are kept")
    options = parser.parse_args()
    name, report, device = options.name, REPORTS[options.name], pick_device(None)
    page = RESULTS / report.page
    for kind in report.kinds:  # before the work
        pages_with(f"{name} {kind}", [page, *FIRST])
    if device.type == "cpu":
        on_one_thread()
    os.chdir(ROOT)  # a row's name has its request's paths, which are below the repository
    out = RUNS / f"{name}-report.html"
    if options.kept:
        findings = kept_results(name, options.precision)
        save(out, compare_page(findings))
        save(out.with_suffix(".json"), as_json(findings))
    else:
        findings = compare(
            report.requests,
            out,
            report.effort,
            features=report.metrics,
            device=device,
            workers=options.workers,
            compiled=working(device, reporter(), compiled=options.compile, graphs=False)["compiled"],
            precision=options.precision,
            progress=reporter(),
            command=report.command,
        )
    if findings.unfinished:
        print(*findings.unfinished, f"the same command goes on; so far: {out}", sep="\n")
        raise SystemExit(75)
    named = "".join(file.read_text() for file in (page, *FIRST))
    (RESULTS / f"{name}.json").write_text(out.with_suffix(".json").read_text())
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
