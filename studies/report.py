"""Reports of docs/results: compares models, then writes docs/results/NAME.json, and a page's tables and figures.

    make reproduce-report                   settled-25: a small pair and what was trained alike, 50,000 images, float32,
                                            nine to twenty hours of a core; KEPT=1: of rows that are kept, minutes
    .venv/bin/python studies/report.py settled          larger ones too, an hour and a half
    .venv/bin/python studies/report.py students-settled their students, of `make reproduce-train MODEL=settle-student-`,
                                            50,000 images, two hours of a core
    .venv/bin/python studies/report.py rivals           what else spends less per step, 5,000 images, about two hours
    .venv/bin/python studies/report.py rivals-plans     more plans of the caches, 1,000 images, twenty minutes
    .venv/bin/python studies/report.py rivals-32        the same of 32 x 32, of `make reproduce-train MODEL=flat-...`
    .venv/bin/python studies/report.py natural16        natural images, of `make reproduce-train MODEL=natural16-...`
    .venv/bin/python studies/report.py decoders         decoders of a latent: `make reproduce-train MODEL=decoder-...`
    .venv/bin/python studies/report.py decoders-drawn   the same of latents that a base model drew
    .venv/bin/python studies/report.py fashion-mnist    all plans and samplers of older models, about an hour
    make reproduce-cifar10 PIECE=report     cifar10-full, or with SIZE=reduced cifar10-reduced: the models in runs/

The same call goes on where it was. The page with everything is runs/NAME-report.html. With `--kept` rows are read from
docs/results/rows/NAME, where other machines have measured them, and new ones are kept there as they are measured; all
in one precision, as in `--kept --precision float32 --compile`.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import decoder_samplers
import numpy as np
from common import (
    JUDGES,
    PRETRAINED,
    RESULTS,
    ROOT,
    RUNS,
    SHOWN,
    Net,
    command,
    load,
    nets_in,
    on_one_thread,
    pages_with,
    place,
    require_released,
)
from entries import (
    AGAIN,
    ALONE,
    BETWEEN,
    DRAWN,
    FASHION,
    FLAT,
    HEAVY,
    MANY,
    NATURAL,
    NEAR,
    PLANS,
    REDUCED,
    RIVALS,
    SDE,
    SETTLED,
    TOGETHER,
    each,
    taught_alike,
    trained_alike,
)

from dualrate.cli.console import can_compile, reporter
from dualrate.compare.comparison import Effort, compare
from dualrate.compare.contenders import Entry
from dualrate.compare.judges import verdict_table, verdicts
from dualrate.compare.page import front_table, reusing_plans, savings_table, trainings_table
from dualrate.compare.savings import ComparisonResults, Savings
from dualrate.compare.work import TimedContender
from dualrate.config.ranges import Precision
from dualrate.metrics.architectures import Architecture, Stacked
from dualrate.report.figures import pareto_figure, plan_figure, png
from dualrate.report.image_grid import save_grid
from dualrate.report.table import Table, as_markdown, compute_unit, plan_of, significant, table
from dualrate.system.device import pick_device

Writer = Callable[[ComparisonResults, Path], object]
KINDS = ("savings", "front")  # of tables on a page
FIRST = (ROOT / "docs/results.md", ROOT / "README.md")  # where tables of the kind "headline" stand, too


@dataclass(frozen=True)
class Report:
    """entries: of `dualrate compare`, below the repository; command: what a user types; page: in docs/results

    judges: nets that see the same images; None: the data set's own
    latents_by: a model that draws the latents that decoders are given; None: those of held-out images
    kinds: tables of its page
    nets: judges besides these that are none of the package's, trained in runs/NAME-judges where they are missing
    """

    entries: Sequence[str]
    effort: Effort
    command: str
    page: str
    judges: str | None = None
    latents_by: str | None = None
    nets: Mapping[str, Net] = field(default_factory=dict)
    kinds: Sequence[str] = KINDS


def cifar10(size: str, effort: Effort, plans: Mapping[str, Sequence[str]]) -> Report:
    """The models of studies/cifar10.py under these plans; none: the usual ones."""
    entries = [f"{name}=runs/cifar10-{size}-{name}" for name in REDUCED]
    entries = [f"{entry}:{plan}" for entry in entries for plan in plans[entry.partition("=")[0]]] if plans else entries
    return Report(entries, effort, f"make reproduce-cifar10 PIECE=report SIZE={size}", "cifar10.md")


def decoders(name: str, counts: Mapping[str, Sequence[int]], latents_by: str | None = None) -> Report:
    """Of `make reproduce-train MODEL=latents` and then `decoder-...`, then studies/decoder_samplers.py."""
    made = f".venv/bin/python studies/report.py {name}"
    effort = Effort(minutes=480, screen=300, count=10_000 if latents_by is None else 5000)
    return Report(decoder_samplers.entries(counts), effort, made, "decoders.md", JUDGES, latents_by)


REPORTS = {
    "settled": Report(
        trained_alike(each(TOGETHER | ALONE)),
        Effort(minutes=480, screen=300, count=20_000),
        ".venv/bin/python studies/report.py settled",
        "settled.md",
        JUDGES,
        kinds=("verdicts", *KINDS),
    ),
    "settled-25": Report(
        trained_alike(each(NEAR), AGAIN),
        Effort(minutes=1440, screen=300, count=50_000),
        "make reproduce-report",
        "settled.md",
        f"{JUDGES},{PRETRAINED}",
        kinds=("verdicts", *KINDS, "trainings", "headline", "scores"),
    ),
    "students-settled": Report(
        taught_alike(),
        Effort(minutes=1440, screen=300, count=50_000),
        ".venv/bin/python studies/report.py students-settled --kept --compile --precision float32",
        "students.md",
        f"{JUDGES},{PRETRAINED}",
        kinds=("verdicts", *KINDS, "trainings"),
    ),
    "rivals": Report(
        [f"heavy={HEAVY}{how}" for how in RIVALS]
        + [f"medium-45=weights/fashion-mnist-medium-45:{steps}{SETTLED}" for steps in (6, 8, 10)]
        + [f"retrofit=weights/fashion-mnist-retrofit:{PLANS}/late-{plan}.json{SETTLED}" for plan in ("16-4", "14-3")]
        + ["student=weights/fashion-mnist-student-8-4:8/4"],
        Effort(minutes=480, screen=300, count=5000),
        ".venv/bin/python studies/report.py rivals",
        "rivals.md",
        JUDGES,
    ),
    "rivals-plans": Report(
        [*MANY],
        Effort(minutes=480, screen=300, count=1000),
        ".venv/bin/python studies/report.py rivals-plans",
        "rivals.md",
        JUDGES,
    ),
    "rivals-32": Report(
        FLAT,
        Effort(minutes=480, screen=300, count=5000),
        ".venv/bin/python studies/report.py rivals-32",
        "cifar10.md",
        nets={"cifar10-a": (Architecture, 0, 10), "cifar10-b": (Stacked, 1, 10)},
    ),
    "natural16": Report(
        [f"{name}=runs/natural16-{name}:{how}" for name, ways in NATURAL.items() for how in ways],
        Effort(minutes=480, screen=300, count=20_000),
        ".venv/bin/python studies/report.py natural16",
        "natural16.md",
        f"natural16,{PRETRAINED}",
        nets={"natural16-b": (Stacked, 1, 10), "natural16-c": (Architecture, 2, 10)},
        kinds=("verdicts", *KINDS),
    ),
    "decoders": decoders("decoders", decoder_samplers.DECODERS),
    "decoders-drawn": decoders("decoders-drawn", DRAWN, "runs/latents/base"),
    "fashion-mnist": Report(
        [f"{name}=weights/fashion-mnist-{model}" for model, name in FASHION.items()]
        + [f"{FASHION[model]}=weights/fashion-mnist-{model}:{plan}{SDE}" for model, plan in BETWEEN],
        Effort(minutes=60),
        ".venv/bin/python studies/report.py fashion-mnist",
        "fashion-mnist.md",
    ),
    "cifar10-reduced": cifar10("reduced", Effort(minutes=60, screen=1000, count=2000), REDUCED),
    "cifar10-full": cifar10("full", Effort(minutes=9), {}),
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
    parser.add_argument("--kept", action="store_true", help="take rows of docs/results/rows, and keep new ones there")
    options = parser.parse_args()
    name, report, device = options.name, REPORTS[options.name], pick_device(None)
    page = RESULTS / report.page
    for kind in report.kinds:  # before the work
        pages_with(f"{name} {kind}", [page, *FIRST])
    if device.type == "cpu":
        on_one_thread()
    for weights in re.findall(r"weights/[\w-]+", " ".join(report.entries)):
        require_released(weights)
    os.chdir(ROOT)  # what is kept of a row has its entry's name, wherever the checkout stands
    out, features = RUNS / f"{name}-report.html", report.judges
    if report.nets:
        data = load(Entry.parse(report.entries[0]).run).experiment.data
        trained = nets_in(RUNS / f"{name}-judges", report.nets, data, reporter())
        features = trained if report.judges is None else f"{report.judges},{trained}"
    compiled = options.compile and can_compile(device, reporter())
    if options.kept and options.compile and not compiled:
        raise SystemExit("the rows that are kept are of compiled networks, for which there is no compiler here")
    findings = compare(
        report.entries,
        out,
        report.effort,
        features=features,
        device=device,
        workers=options.workers,
        compiled=compiled,
        precision=options.precision,
        latents_by=None if report.latents_by is None else ROOT / report.latents_by,
        rows=RESULTS / "rows" / name if options.kept else None,
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
