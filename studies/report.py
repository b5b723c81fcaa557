"""The report of docs/results: compares models, then writes docs/results/NAME.json, and a page's tables and its figure.

    make reproduce-report            settled-25: a small pair and single networks trained alike, 50,000 images, float32,
                                     nine to twenty hours of a core; KEPT=1: of the rows that are kept, seconds

The same call goes on where it was. The page of single trainings is runs/NAME-report.html. With `--kept` nothing is
measured: rows are those of docs/results/rows/NAME.tar.xz, a file for each training of each candidate, and times those
of docs/results/NAME.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from dualrate.comparison.candidates import RunRequest, candidates_of
from dualrate.comparison.compare import compare
from dualrate.comparison.results import ComparisonResults, as_json
from dualrate.comparison.rows import MeasuredCandidate, read_row
from dualrate.config.ranges import Precision
from dualrate.options.console import Machine, reporter
from dualrate.report.figures import pareto_figure, png
from dualrate.report.table import Table
from dualrate.system.device import pick_device
from dualrate.system.files import write_whole
from studies.common import (
    METRICS,
    PRETRAINED,
    RESULTS,
    ROOT,
    RUNS,
    as_markdown,
    command,
    kept_rows,
    load,
    on_one_thread,
    pages_with,
    place,
    save,
)
from studies.trainings import kept_file, training
from studies.verdicts import (
    as_savings,
    headline_table,
    pooled_results,
    verdict_table,
    verdicts,
)

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

FIRST = ROOT / "docs/results.md"  # where the table "headline" stands


@dataclass(frozen=True)
class Report:
    """requests: of `dualrate compare`, below the repository; command: what a user types; page: in docs/results

    metrics: feature nets that see the same images
    """

    requests: Sequence[str]
    effort: Mapping[str, Any]
    command: str
    page: str
    metrics: str


REPORTS = {
    "settled-25": Report(
        REQUESTS,
        {"minutes": 1440, "screen": 300, "count": 50_000},
        "make reproduce-report",
        "settled.md",
        f"{METRICS},{PRETRAINED}",
    ),
}


TABLES: Mapping[str, Callable[[ComparisonResults], Table]] = {  # by the kind between a page's markers
    "verdicts": verdict_table,
    "headline": headline_table,
}


def figure(results: ComparisonResults) -> bytes:
    return png(pareto_figure([entry.row for entry in pooled_results(results).finished], "flops"))


def numbers(results: ComparisonResults) -> str:
    """All numbers of the page, as JSON."""
    pooled = replace(pooled_results(results), screened=())
    return json.dumps({**json.loads(as_json(pooled)), "savings": as_savings(verdicts(pooled))}, indent=1) + "\n"


def kept_results(name: str) -> ComparisonResults:
    """Results of the rows that are kept: their files have the names of the candidates. Times are those of NAME.json.

    Raises ValueError for a candidate whose times it lacks.
    """
    report, summary = REPORTS[name], json.loads((RESULTS / f"{name}.json").read_text())
    requests = [RunRequest.parse(text) for text in report.requests]
    candidates = candidates_of(requests, {request.run: load(request.run) for request in requests})
    with kept_rows(name) as folder:
        measured = [read_row(folder / kept_file(candidate), candidate) for candidate in candidates]
    times = {tuple(record[part] for part in PLAN): record for record in summary["front"]}
    first = [entry for entry in measured if training(entry.candidate)[1] == 0]
    finished = [with_times(entry, times.get(tuple(getattr(entry.row, part) for part in PLAN))) for entry in first]
    duals = frozenset(candidate.network for candidate in candidates if candidate.reuses)
    return ComparisonResults([], measured, finished, duals, (), report.command, summary["environment"])


PLAN = ("network", "sampler", "num_steps", "num_heavy")  # what tells rows of one report apart


def with_times(entry: MeasuredCandidate, record: Mapping[str, Any] | None) -> MeasuredCandidate:
    """The entry with its times, of its record in NAME.json."""
    if record is None:
        raise ValueError(f"{entry.row} has a row that is kept and no times: measure it, without --kept")
    row = replace(entry.row, seconds_per_image=record["seconds_per_image"], batch_size=record["batch_size"])
    return replace(entry, row=row, seconds_alone=record["seconds_alone"])


def write(name: str, results: ComparisonResults) -> None:
    """Writes the numbers, the figure, and the tables of the page."""
    page = RESULTS / REPORTS[name].page
    save(RESULTS / f"{name}.json", numbers(results))
    write_whole(RESULTS / f"{name}-flops.png", figure(results))
    for kind, table in TABLES.items():
        text = as_markdown(table(results)) + "\n"
        for where in pages_with(f"{name} {kind}", [page, FIRST]):
            place(f"{name} {kind}", text, where)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("name", choices=REPORTS)
    parser.add_argument("--compile", action="store_true", help="the networks: a third faster in float32")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto")
    parser.add_argument("--kept", action="store_true", help="take the rows that are kept, and their times")
    options = parser.parse_args()
    name, report, device = options.name, REPORTS[options.name], pick_device(None)
    for kind in TABLES:  # before the work
        pages_with(f"{name} {kind}", [RESULTS / report.page, FIRST])
    if device.type == "cpu":
        on_one_thread()
    os.chdir(ROOT)  # a row's name has its request's paths, which are below the repository
    if options.kept:
        write(name, kept_results(name))
        return
    out = RUNS / f"{name}-report.html"
    results = compare(
        report.requests,
        out,
        **report.effort,
        features=report.metrics,
        device=device,
        compiled=Machine(compile=options.compile).calls(device, reporter())["compiled"],
        precision=options.precision,
        progress=reporter(),
        command=report.command,
    )
    if results.unfinished:
        print(*results.unfinished, f"the same command goes on; so far: {out}", sep="\n")
        raise SystemExit(75)
    write(name, results)
    print(out)


if __name__ == "__main__":
    main()
