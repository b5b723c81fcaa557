"""The table of docs/results.md: measures every cell below, 5,000 images each, and draws the figures.

    make results            about 50 minutes on one core; interrupted, it goes on where it was

Every finished cell is a file in docs/results/cells with the hash of the weights it was measured on. A cell is measured
again only if those, or the images asked for, have changed. `--part 1/2` and `--part 2/2` share the cells between two
processes; whichever ends last draws the page.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import dualrate as dr
from dualrate.console import reporter
from dualrate.malloc import keep_freed_memory
from dualrate.metrics.evaluate import Evaluator
from dualrate.report.figures import png, quality_figure
from dualrate.report.grid import save_grid
from dualrate.report.rows import Row
from dualrate.report.table import markdown_table
from dualrate.runs.environment import environment
from dualrate.runs.evaluator import evaluator
from dualrate.runs.measure import measure
from dualrate.serial import from_plain, to_plain
from dualrate.training.log import Progress

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
CELL_FILES, IMAGES = RESULTS / "cells", RESULTS / ".images"
SHOWN = 20  # images of every cell on the grid


@dataclass(frozen=True)
class Cell:
    """network: as in the table; model: directory in weights/; heavy: H, None for every step."""

    network: str
    model: str
    steps: int
    heavy: int | None = None
    ddim: bool = False

    @property
    def key(self) -> str:
        return "-".join(
            [self.model, str(self.steps), str(self.heavy or self.steps), "ddim" if self.ddim else "ancestral"]
        )


HEAVY, DUAL, LIGHT = "fashion-mnist-heavy", "fashion-mnist-dual", "fashion-mnist-light"
CELLS = (  # dearest first, so that two processes share them evenly
    Cell("heavy", HEAVY, 64),
    Cell("heavy", HEAVY, 32),
    Cell("dual-rate, H = N", DUAL, 32, 32),  # a heavy call at every step: the encoder without reuse
    Cell("heavy", HEAVY, 32, ddim=True),
    Cell("dual-rate", DUAL, 128, 16),
    Cell("dual-rate", DUAL, 64, 16),
    Cell("light alone", LIGHT, 128),
    Cell("dual-rate", DUAL, 64, 8),
    Cell("dual-rate", DUAL, 32, 16),
    Cell("heavy", HEAVY, 22),  # as many seconds as dual-rate 64/8
    Cell("heavy", HEAVY, 16),
    Cell("heavy", HEAVY, 16, ddim=True),
    Cell("dual-rate", DUAL, 32, 8),
    Cell("light alone", LIGHT, 64),
    Cell("dual-rate", DUAL, 32, 4),
    Cell("heavy", HEAVY, 8),
    Cell("heavy", HEAVY, 8, ddim=True),
    Cell("dual-rate", DUAL, 16, 4),
    Cell("light alone", LIGHT, 32),
)
GRID = (
    Cell("heavy", HEAVY, 64),
    Cell("dual-rate", DUAL, 64, 8),
    Cell("dual-rate", DUAL, 32, 8),
    Cell("heavy", HEAVY, 16),
    Cell("light alone", LIGHT, 32),
)


def measure_cell(cell: Cell, model: dr.Model, judge: Evaluator, seeds: range, progress: Progress) -> None:
    """Writes the cell's file, and its first images for the grid."""
    progress.note(f"{cell.key}: {len(seeds)} images")
    row, drawn = measure(
        cell.network,
        model,
        dr.DDIM(model.process) if cell.ddim else dr.Ancestral(model.process),
        dr.StepPlan.uniform(cell.steps, cell.heavy),
        judge,
        seeds,
        progress=lambda done, total: progress.update(done, total, {"images": done}),
    )
    progress.close()
    progress.note(f"  {row.score.metric} {row.score.value:.3f} [{row.score.low:.3f}, {row.score.high:.3f}]")
    record = {"stamp": stamp(model, seeds), "environment": environment(), "row": to_plain(row)}
    np.save(IMAGES / f"{cell.key}.npy", drawn.images[:SHOWN])
    save(CELL_FILES / f"{cell.key}.json", json.dumps(record, indent=1) + "\n")


def stamp(model: dr.Model, seeds: range) -> dict[str, object]:
    """What a kept cell must agree in."""
    return {
        "weights": model.weights_hash,
        "seeds": f"{seeds.start}-{seeds.stop - 1}",
        "threads": torch.get_num_threads(),
        "version": dr.__version__,
    }


def row_of(cell: Cell, model: dr.Model, seeds: range) -> Row | None:
    """The measured row, if there is one of these weights and seeds."""
    file = CELL_FILES / f"{cell.key}.json"
    record = json.loads(file.read_text()) if file.exists() else {}
    return from_plain(Row, record["row"]) if record.get("stamp") == stamp(model, seeds) else None


def draw_page(rows: list[Row]) -> None:
    """Figures, sample grid, and the table in docs/results.md."""
    for cost in ("flops", "seconds"):
        (RESULTS / f"quality-{cost}.png").write_bytes(png(quality_figure(rows, cost)))
    grids = [np.load(IMAGES / f"{cell.key}.npy") for cell in CELLS if cell in GRID]
    save_grid(np.concatenate(grids), RESULTS / "samples.png", columns=SHOWN, scale=2)
    page = ROOT / "docs" / "results.md"
    between = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end of table -->)", re.DOTALL)
    save(page, between.sub(lambda _: markdown_table(rows) + "\n", page.read_text()))


def save(file: Path, text: str) -> None:
    aside = file.with_suffix(".tmp")
    aside.write_text(text)
    aside.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=5000, help="images per cell")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--part", default="1/1", help="this process's share of the cells, e.g. 1/2")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    seeds = range(options.first_seed, options.first_seed + options.count)
    keep_freed_memory()
    for folder in (IMAGES, CELL_FILES):
        folder.mkdir(parents=True, exist_ok=True)
    models = {name: dr.load(ROOT / "weights" / name) for name in (HEAVY, DUAL, LIGHT)}
    progress = reporter()
    missing = [cell for cell in CELLS[part - 1 :: parts] if row_of(cell, models[cell.model], seeds) is None]
    if missing:
        judge = evaluator(models[HEAVY].experiment.data, features=None, progress=progress)
        for cell in missing:
            measure_cell(cell, models[cell.model], judge, seeds, progress)
    rows = [row_of(cell, models[cell.model], seeds) for cell in CELLS]
    if None in rows:
        progress.note("the other part is not done: the page is drawn when all cells are there")
    else:
        draw_page([row for row in rows if row is not None])


if __name__ == "__main__":
    main()
