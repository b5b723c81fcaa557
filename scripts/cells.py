"""Cells of the tables of docs/results.md: a model under a plan, measured once and kept as a file.

A file in docs/results/cells holds the score, the cost, the surroundings, and the hash of the weights it was measured
on. It is measured again only if those, or the images asked for, have changed; a model that is not here keeps its file.
Seconds are measured apart from the images, all cells in one go, so that they compare (`time_cells`).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import dualrate as dr
from dualrate.config.serial import from_plain, to_plain
from dualrate.machine.environment import environment
from dualrate.machine.files import write_whole
from dualrate.machine.progress import Progress
from dualrate.measuring.measure import draw, measure
from dualrate.metrics.evaluate import Evaluator
from dualrate.report.rows import Row

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
CELLS, IMAGES, SECONDS = RESULTS / "cells", RESULTS / ".images", RESULTS / "seconds.json"
COUNT = 5000  # images of a cell
SHOWN = 20  # of them on the grid
TIMED = 125  # images of a timing, one batch


@dataclass(frozen=True)
class Cell:
    """network: as in the table; model: a directory below the repository; heavy: H, None for every step.

    first: the first seed; a cell's images have seeds first ... first + COUNT - 1
    """

    network: str
    model: str
    steps: int
    heavy: int | None = None
    ddim: bool = False
    first: int = 0

    @property
    def key(self) -> str:
        sampler = "ddim" if self.ddim else "ancestral"
        name = f"{Path(self.model).name}-{self.steps}-{self.steps if self.heavy is None else self.heavy}-{sampler}"
        return f"{name}-from-{self.first}" if self.first else name

    @property
    def seeds(self) -> range:
        return range(self.first, self.first + COUNT)

    @property
    def plan(self) -> dr.StepPlan:
        return dr.StepPlan.uniform(self.steps, self.heavy)

    @property
    def step(self) -> dr.Step:
        process = load(self.model).process
        return dr.DDIM(process) if self.ddim else dr.Ancestral(process)

    @property
    def here(self) -> bool:
        return (ROOT / self.model / "experiment.json").exists()


@cache
def load(model: str) -> dr.Model:
    return dr.load(ROOT / model)


def row_of(cell: Cell) -> Row | None:
    """The measured row; None if there is none, or it is of other weights than those here."""
    file = CELLS / f"{cell.key}.json"
    if not file.exists():
        return None
    record = json.loads(file.read_text())
    row = replace(from_plain(Row, record["row"]), network=cell.network)
    asked = row.score.fingerprint.seeds == f"{cell.first}-{cell.first + COUNT - 1}"
    if not asked or (cell.here and record["weights"] != load(cell.model).weights_hash):
        return None
    return replace(row, seconds_per_image=_seconds().get(cell.key, row.seconds_per_image))


def measure_cell(cell: Cell, judge: Evaluator[Any], progress: Progress) -> None:
    """Writes the cell's file, and its first images for the grid."""
    progress.note(f"{cell.key}: {COUNT} images")

    def update(done: int, total: int) -> None:
        progress.update(done, total, {"images": done})

    row, drawn = measure(cell.network, load(cell.model), cell.step, cell.plan, judge, cell.seeds, progress=update)
    progress.close()
    progress.note(f"  {row.score.metric} {row.score.value:.3f} [{row.score.low:.3f}, {row.score.high:.3f}]")
    record = {"weights": load(cell.model).weights_hash, "environment": environment(), "row": to_plain(row)}
    IMAGES.mkdir(exist_ok=True)
    np.save(IMAGES / f"{cell.key}.npy", drawn.images[:SHOWN])
    save(CELLS / f"{cell.key}.json", json.dumps(record, indent=1) + "\n")


def time_cells(cells: Sequence[Cell], progress: Progress, *, repeats: int = 3) -> None:
    """Seconds per image of every cell: the median over rounds of a batch each, so that all see the same load."""
    cells = [cell for cell in cells if cell.here]
    durations: dict[str, list[float]] = {cell.key: [] for cell in cells}
    for round_ in range(repeats):
        for i, cell in enumerate(cells):
            start = time.perf_counter()
            draw(load(cell.model), cell.step, cell.plan, range(TIMED), batch_size=TIMED)
            durations[cell.key].append((time.perf_counter() - start) / TIMED)
            progress.update(round_ * len(cells) + i + 1, repeats * len(cells), {"images": TIMED})
    progress.close()
    seconds = {key: statistics.median(times) for key, times in durations.items()}
    save(SECONDS, json.dumps({"environment": environment(), "seconds_per_image": seconds}, indent=1) + "\n")
    _seconds.cache_clear()


@cache
def _seconds() -> dict[str, float]:
    return json.loads(SECONDS.read_text())["seconds_per_image"] if SECONDS.exists() else {}


def save(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, text)
