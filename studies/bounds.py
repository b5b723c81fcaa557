"""Likelihood bounds of the models in weights/, for docs/results/bounds.md (`make reproduce-table` puts them there).

    OMP_NUM_THREADS=1 .venv/bin/python studies/bounds.py

What `dualrate bound weights/fashion-mnist-MODEL --steps N --heavy H --grid GRID` prints, for every line and both grids
of the table, kept in docs/results/bounds. All lines judge the same images with the same noise, so differences between
them are taken image by image.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from common import RESULTS, Cell, command, keep, load, markdown, on_one_thread, require_same, row_of

import dualrate as dr
from dualrate.cli.console import reporter
from dualrate.config.serial import from_plain, to_plain
from dualrate.data.images import ImageSet, load_images
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.likelihood import Estimate, Likelihood, bits_per_dimension, fit_variance
from dualrate.report.table import significant
from dualrate.sampling.grids import GridName, grid_times
from dualrate.system.progress import Reporter, image_progress

BOUNDS = RESULTS / "bounds"
COUNT = 500  # test images
GRIDS: tuple[GridName, ...] = ("t", "log-snr")


@dataclass(frozen=True)
class Line:
    """name: in weights/fashion-mnist-<name>"""

    name: Literal["heavy", "dual", "light"]
    steps: int
    heavy: int

    @property
    def key(self) -> str:
        return f"{self.name}-{self.steps}-{self.heavy}"

    @property
    def model(self) -> dr.Model:
        return load(f"weights/fashion-mnist-{self.name}")

    def drawer(self, grid: GridName) -> Drawer:
        process = self.model.gaussian
        plan = dr.StepPlan.spread(grid_times(grid, process.schedule, self.steps), self.heavy)
        return Drawer(self.model, dr.Ancestral(process), plan)


LINES = (
    Line("heavy", 64, 64),
    Line("heavy", 32, 32),
    Line("dual", 64, 16),
    Line("dual", 64, 8),
    Line("dual", 32, 8),
    Line("light", 64, 64),
)


def file_of(line: Line, grid: GridName) -> Path:
    return BOUNDS / f"{line.key}-{grid}.json"


def bound_of(line: Line, grid: GridName) -> Likelihood | None:
    """What was measured; None if nothing was, or on another number of images."""
    file = file_of(line, grid)
    if not file.exists():
        return None
    found = from_plain(Likelihood, json.loads(file.read_text())["bound"])
    return found if len(found.images) == COUNT else None


def measure(line: Line, grid: GridName, train: ImageSet, test: ImageSet, progress: Reporter) -> None:
    drawer = line.drawer(grid)
    progress.note(f"{line.key}, grid {grid}")
    fitted = replace(drawer, step=fit_variance(drawer, train))
    found = bits_per_dimension(fitted, test, count=COUNT, progress=image_progress(progress))
    progress.close()
    progress.note(f"  {found.total.value:.4f} +- {found.total.error:.4f} bits per dimension")
    keep(file_of(line, grid), weights=line.model.weights_hash, bound=to_plain(found))


def table() -> str:
    """Markdown: the FD of the page's first table; for either grid the bound, of it the last step, and what it is more
    than the first line's, image by image.
    """
    header = ["model", "N", "H", "FD, equal steps in t"]
    for grid in GRIDS:
        header += [
            f"bits/dim, equal steps in {'t' if grid == 't' else 'log-SNR'}",
            "last step",
            f"over {_title(LINES[0])}",
        ]
    first = {grid: bound_of(LINES[0], grid) for grid in GRIDS}
    rows = [
        [*_named(line), _fd(line), *(text for grid in GRIDS for text in _texts(bound_of(line, grid), first[grid]))]
        for line in LINES
    ]
    return markdown(header, rows, texts=1)


def _named(line: Line) -> list[str]:
    name = {"heavy": "heavy", "dual": "dual-rate", "light": "light alone"}[line.name]
    return [name, str(line.steps), str(line.heavy) if line.name == "dual" else "-"]


def _title(line: Line) -> str:
    return " ".join(_named(line)[:2])


def _fd(line: Line) -> str:
    row = row_of(Cell(line.key, f"weights/fashion-mnist-{line.name}", line.steps, line.heavy))
    return "not measured" if row is None else significant(row.score.value)


def _texts(found: Likelihood | None, first: Likelihood | None) -> list[str]:
    if found is None or first is None:
        return ["not measured", "", ""]
    over = Estimate.of(torch.tensor(found.images) - torch.tensor(first.images))
    return [str(found.total), f"{found.each_step[-1]:.3f}", str(over) if over.error else "-"]


def main() -> None:
    command(__doc__).parse_args()
    on_one_thread()
    progress = reporter()
    train, test = (load_images("fashion-mnist", split=split) for split in ("train", "test"))
    for line in LINES:
        for grid in GRIDS:
            if file_of(line, grid).exists():
                require_same(file_of(line, grid), line.model)
            if bound_of(line, grid) is None:
                measure(line, grid, train, test, progress)
    print(table())


if __name__ == "__main__":
    main()
