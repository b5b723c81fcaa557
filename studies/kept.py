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
from dualrate.compare.candidates import Candidate, RunRequest, candidates_of, with_trainings
from dualrate.compare.measure import Session
from dualrate.drawing.evaluator import evaluators
from dualrate.system.workers import in_turn, mapper


@cache
def session_of(name: str) -> tuple[Session, list[Candidate]]:
    """What measures, and every training of every candidate, those first that the report names first."""
    requests, progress = [RunRequest.parse(text) for text in REPORTS[name].requests], reporter()
    runs = dict.fromkeys(run for request in requests for run in (request.run, *request.trainings))
    models = {run: replace(load(run), compiled=True) for run in runs}
    data = next(iter(models.values())).experiment.data
    metrics = evaluators(data, REPORTS[name].metrics, device=torch.device("cpu"), progress=progress)
    session = Session(models, metrics, RUNS / f"{name}-report.cells", progress, "float32", kept_rows(name))
    return session, with_trainings(candidates_of(requests, models), requests)


def seeds_of(name: str) -> range:
    return range(REPORTS[name].effort.count)


def measure(block: tuple[str, int]) -> None:
    """One row, by its place; in its process, whose session is its own."""
    name, i = block
    session, candidates = session_of(name)
    session.measure([candidates[i]], seeds_of(name), math.inf, details=True)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("name", choices=REPORTS)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    on_one_thread()
    session, candidates = session_of(options.name)
    missing = [i for i, one in enumerate(candidates) if not session.keeps(one, seeds_of(options.name))]
    print(f"{len(missing)} of {len(candidates)} rows are missing", flush=True)
    if not missing:
        return
    with mapper(options.processes, torch.device("cpu"), session.progress.note) as session.mapper:
        session.see_real_images()
        over, session.mapper = session.mapper, in_turn
        for _ in over(measure, [(options.name, i) for i in missing]):
            pass


if __name__ == "__main__":
    main()
