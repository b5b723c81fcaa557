"""The table of docs/results.md: measures every cell below, 5,000 images each, and draws the figures.

    make results            about half an hour on 2 cores; interrupted, it goes on where it was

Every finished cell is kept in docs/results/rows.json with the hash of the weights it was measured on. A cell is
measured again only if those, or the number of images, have changed.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import dualrate as dr
from dualrate.console import reporter
from dualrate.malloc import keep_freed_memory
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
        return f"{self.model} N={self.steps} H={self.heavy} {'ddim' if self.ddim else 'ancestral'}"


HEAVY, DUAL, LIGHT = "fashion-mnist-heavy", "fashion-mnist-dual", "fashion-mnist-light"
CELLS = (
    *(Cell("heavy", HEAVY, steps) for steps in (8, 16, 32, 64)),
    *(Cell("heavy", HEAVY, steps, ddim=True) for steps in (8, 16, 32)),
    *(Cell("light alone", LIGHT, steps) for steps in (32, 64, 128)),
    *(Cell("dual-rate", DUAL, *plan) for plan in ((16, 4), (32, 4), (32, 8), (32, 16), (64, 8), (64, 16), (128, 16))),
)


def measured(count: int, first_seed: int, progress: Progress) -> list[Row]:
    """All rows, those kept from before included."""
    file = RESULTS / "rows.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    models = {name: dr.load(ROOT / "weights" / name) for name in (HEAVY, DUAL, LIGHT)}
    judge = evaluator(models[HEAVY].experiment.data, features=None, progress=progress)
    rows = []
    for cell in CELLS:
        model = models[cell.model]
        stamp = {"weights": model.weights_hash, "count": count, "first_seed": first_seed}
        if kept.get(cell.key, {}).get("stamp") != stamp:
            step = dr.DDIM(model.process) if cell.ddim else dr.Ancestral(model.process)
            plan = dr.StepPlan.uniform(cell.steps, cell.heavy)
            seeds = range(first_seed, first_seed + count)
            progress.note(f"{cell.key}: {count} images")
            row, drawn = measure(
                cell.network, model, step, plan, judge, seeds,
                progress=lambda done, total: progress.update(done, total, {"images": done}),
            )  # fmt: skip
            progress.close()
            kept[cell.key] = {"stamp": stamp, "environment": environment(), "row": to_plain(row)}
            save(file, json.dumps(kept, indent=1))
            np.save(RESULTS / ".images" / f"{cell.key}.npy", drawn.images[:SHOWN])
            progress.note(f"  {row.score.metric} {row.score.value:.3f} [{row.score.low:.3f}, {row.score.high:.3f}]")
        rows.append(from_plain(Row, kept[cell.key]["row"]))
    return rows


def save(file: Path, text: str) -> None:
    aside = file.with_suffix(".tmp")
    aside.write_text(text)
    aside.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=5000, help="images per cell")
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    keep_freed_memory()
    (RESULTS / ".images").mkdir(parents=True, exist_ok=True)
    rows = measured(options.count, options.first_seed, reporter())
    for cost in ("flops", "seconds"):
        (RESULTS / f"quality-{cost}.png").write_bytes(png(quality_figure(rows, cost)))
    shown = [cell for cell in CELLS if (cell.steps, cell.heavy) in ((16, None), (64, None), (32, 8), (64, 16))]
    grids = [np.load(RESULTS / ".images" / f"{cell.key}.npy") for cell in shown]
    save_grid(np.concatenate(grids), RESULTS / "samples.png", columns=SHOWN, scale=2)
    page = ROOT / "docs" / "results.md"
    between = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end of table -->)", re.DOTALL)
    save(page, between.sub(lambda _: markdown_table(rows) + "\n", page.read_text()))
    print("\n".join(cell.key for cell in shown))


if __name__ == "__main__":
    main()
