"""The tables and figures of docs/results.

    make reproduce-table       the cells of the models in weights/, then the pages; goes on where it was
    make reproduce-ablations   the cells of the models in runs/ that `make reproduce-train` made, then the pages

Cells are shared between processes of one thread each, four at most. Every table stands on the page of its
study, between `<!-- name -->` and `<!-- end of name -->`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

import bounds
import common
import mixture_branches
import mixture_students
import numpy as np
import planned
import samplers
import students
from common import RESULTS, Cell, row_of

from dualrate.cli.console import reporter
from dualrate.drawing.evaluator import evaluator
from dualrate.report.figures import png, quality_figure
from dualrate.report.image_grid import save_grid
from dualrate.report.table import as_markdown, scored, table
from dualrate.system.progress import Reporter

HEAVY, DUAL, LIGHT, HEAVY_LONG, LIGHT_LONG, EARLY = (
    f"weights/fashion-mnist-{name}" for name in ("heavy", "dual", "light", "heavy-long", "light-long", "dual-early")
)
Line = tuple[Sequence[str], Sequence[Cell]]  # what a line of a table says first, and its cells


def dual(n: int, h: int, first: int = 0, model: str = DUAL) -> Cell:
    return Cell("dual-rate", model, n, h, first=first)


def duals(model: str) -> list[Cell]:
    return [dual(n, h, model=model) for n, h in ((16, 4), (32, 8), (64, 8))]


MAIN = (
    *(Cell("heavy", HEAVY, n) for n in (64, 32, 22, 16, 8)),  # 22: as many seconds as dual-rate 64/8
    *(Cell("heavy", HEAVY, n, ddim=True) for n in (32, 16, 8)),
    *(Cell("light alone", LIGHT, n) for n in (128, 64, 32)),
    *(dual(n, h) for n, h in ((64, 16), (64, 8), (32, 16), (32, 8), (32, 4), (16, 4))),
    Cell("dual-rate, H = N", DUAL, 32, 32),  # a heavy call at every step: the encoder without reuse
)
GRID = (Cell("heavy", HEAVY, 64), dual(64, 8), dual(32, 8), Cell("heavy", HEAVY, 16), Cell("light alone", LIGHT, 32))

# what a model was made from, seconds of training; cells of about 1, 2 and 3 giga multiply-adds
TRAINING: tuple[Line, ...] = (
    (("heavy", "7,000", "3,430"), [Cell("heavy", HEAVY, n) for n in (8, 16, 32)]),
    (("dual-rate, early", "1,500 heavy, 7,029 joint", "3,410"), duals(EARLY)),
    (("light alone", "7,000", "820"), [Cell("light alone", LIGHT, n) for n in (32, 64, 128)]),
    (("light alone, long", "11,094", "1,300"), [Cell("light alone", LIGHT_LONG, n) for n in (32, 64)]),
    (("heavy, long", "10,000", "4,900"), [Cell("heavy", HEAVY_LONG, n) for n in (8, 16, 32)]),
    (("dual-rate", "7,000 heavy, 7,000 light, 3,000 joint", "5,390"), duals(DUAL)),
)
BLOCKS: tuple[Line, ...] = tuple(
    ((name,), [make(first) for first in (0, 5000, 10_000)])
    for name, make in (
        ("dual-rate 16/4", lambda first: dual(16, 4, first)),
        ("heavy 8", lambda first: Cell("heavy", HEAVY, 8, first=first)),
        ("dual-rate 64/8", lambda first: dual(64, 8, first)),
    )
)


def trained(name: str) -> Cell:
    """The cell that compares runs of `studies/train.py`."""
    return dual(32, 8, model=f"runs/{name}")


RETROFIT: tuple[Line, ...] = tuple(
    ((f"{iterations:,}", f"{iterations * 0.21:,.0f}"), [trained(f"retrofit-{iterations}")])
    for iterations in (500, 1500, 3500, 7000)
)
SHARED: tuple[Line, ...] = (
    (("1", "128 x 1", "2,000", "760"), [trained("joint")]),
    (("2", "64 x 2", "2,700", "700"), [trained("shared-2")]),
    (("4", "32 x 4", "3,400", "680"), [trained("shared-4")]),
)
ABLATIONS: tuple[Line, ...] = (
    (("as it is", ""), [trained("retrofit-1500")]),
    (("context never dropped (p = 0)", "worse"), [trained("dropout-0")]),
    (("the encoder's last activation only", "worse"), [trained("last-level")]),
    (("features squeezed to 8 channels", "the same"), [trained("width-8")]),
    (("features squeezed to 2 channels", "worse"), [trained("width-2")]),
    (("encoder without its head", "(theirs has none)"), [trained("no-head")]),
)
CALLS: tuple[Line, ...] = ((("dual-rate, N = 32",), [dual(32, h) for h in (2, 4, 8, 16, 32)]),)


def score_of(cell: Cell) -> str:
    row = row_of(cell)
    return "not measured" if row is None else scored(row)


def fd_table(header: Sequence[str], lines: Sequence[Line]) -> str:
    """Markdown: the lines' own columns, then the score of every cell with its interval."""
    body = [[*texts, *map(score_of, cells)] for texts, cells in lines]
    body = [line + ["-"] * (len(header) - len(line)) for line in body]
    return common.markdown(header, body, texts=len(lines[0][0]))


def main_table() -> str:
    rows = [row for cell in MAIN if (row := row_of(cell)) is not None]
    return as_markdown(table(rows)) + "\n"


TABLES = {
    "main": main_table,
    "training": lambda: fd_table(("model", "iterations", "CPU seconds", "1 GMAC", "2 GMAC", "3 GMAC"), TRAINING),
    "blocks": lambda: fd_table(("", "seeds 0-4999", "5000-9999", "10000-14999"), BLOCKS),
    "retrofit": lambda: fd_table(("iterations", "CPU seconds", "32/8"), RETROFIT),
    "shared": lambda: fd_table(("k", "images x draws", "iterations", "CPU seconds", "32/8"), SHARED),
    "ablations": lambda: fd_table(("change", "in the paper", "32/8"), ABLATIONS),
    "calls": lambda: fd_table(("", "H = 2", "4", "8", "16", "32"), CALLS),
    "bounds": bounds.table,
    "planned": planned.table,
    "mixture students": mixture_students.table,
    "mixture branches": mixture_branches.table,
    "students": students.table,
    **{name: partial(samplers.table, name) for name in samplers.TABLES},
}


def cells_of(lines: Sequence[Line]) -> list[Cell]:
    return [cell for _, cells in lines for cell in cells]


GROUPS = {
    "table": list(dict.fromkeys([*MAIN, *cells_of(TRAINING), *cells_of(BLOCKS), *cells_of(CALLS)])),
    "ablations": list(dict.fromkeys([*cells_of(RETROFIT), *cells_of(SHARED), *cells_of(ABLATIONS)])),
    "page": [],
}


def draw_pages() -> None:
    """Every table of the pages, the figures, and the grid of samples."""
    rows = [row for cell in MAIN if (row := row_of(cell)) is not None]
    for cost in ("flops", "seconds"):
        (RESULTS / f"quality-{cost}.png").write_bytes(png(quality_figure(rows, cost)))
    grids = [common.IMAGES / f"{cell.key}.npy" for cell in GRID]
    if all(grid.exists() for grid in grids):
        images = np.concatenate([np.load(grid) for grid in grids])
        save_grid(images, RESULTS / "samples.png", columns=common.SHOWN, scale=2)
    for name, made in TABLES.items():
        common.place(name, made(), common.page_of(name, sorted(RESULTS.glob("*.md"))))


def measure_missing(cells: Sequence[Cell], progress: Reporter) -> None:
    missing = common.to_measure(cells)
    if missing:
        judge = evaluator(common.load(missing[0].model).experiment.data, features=None, progress=progress)
        for cell in missing:
            if row_of(cell) is None:  # no other process was faster
                common.measure_cell(cell, judge, progress)


def in_parts(arguments: list[str], parts: int) -> None:
    """Run this study once per part, side by side. Raises SystemExit if one fails."""
    single = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, __file__, *arguments, "--part", f"{i + 1}/{parts}"], env=single)
        for i in range(parts)
    ]
    try:
        if any(list(map(subprocess.Popen.wait, running))):
            raise SystemExit("a part failed; what it finished is kept, the same command goes on from there")
    finally:
        for process in running:
            process.terminate()


def main() -> None:
    parser = common.command(__doc__)
    parser.add_argument("cells", choices=GROUPS)
    parser.add_argument("--part", help="measure a share of the cells and no more, e.g. 1/2")
    options = parser.parse_args()
    common.on_one_thread()
    cells = GROUPS[options.cells]
    if options.part:
        part, parts = map(int, options.part.split("/"))
        measure_missing(cells[part - 1 :: parts], reporter())
        return
    if common.to_measure(cells):
        in_parts([options.cells], min(os.cpu_count() or 1, 4))
    if options.cells == "table" and all(cell.here for cell in MAIN):  # else the retired ones would lose theirs
        common.time_cells(MAIN, reporter())
    draw_pages()


if __name__ == "__main__":
    main()
