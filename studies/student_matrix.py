"""Dual-rate students of every size: N in {2, 4, 8} steps, H in {1, ..., N} heavy calls, by algorithm B. For a GPU.

    .venv/bin/python studies/student_matrix.py fashion-mnist       14 students, then their scores; goes on where it was
    .venv/bin/python studies/student_matrix.py cifar10             of the models that make reproduce-cifar10 trains

Every student is one `dualrate distill` command, printed before it starts, in runs/students-RECIPE-N-H; options that are
not the script's own (--fit.iterations 10000) are passed on to it. Scores are of 5,000 images, seeds 0-4999, kept in
runs/students-RECIPE-features. Writes docs/results/students-RECIPE.json. On a CPU core a student of 8 steps takes half
an hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from common import COUNT, RESULTS, ROOT, RUNS, command, dualrate, keep

import dualrate as dr
from dualrate.cli.console import reporter
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.evaluator import evaluator
from dualrate.drawing.measure import check, measure
from dualrate.report.rows import Row
from dualrate.report.table import as_text, table
from dualrate.runs.store import read_experiment
from dualrate.system.device import pick_device

STEPS = (2, 4, 8)
MODELS = {  # recipe: teacher, and the dual-rate model that the students start from
    "fashion-mnist": ("weights/fashion-mnist-heavy-annealed", "weights/fashion-mnist-retrofit"),
    "cifar10": ("runs/cifar10-full-heavy", "runs/cifar10-full-dual"),
    "cifar10-reduced": ("runs/cifar10-reduced-heavy", "runs/cifar10-reduced-dual"),
}


def distil(recipe: str, steps: int, heavy: int, more: Sequence[str]) -> Path:
    """The student's directory, once it is trained. Raises SystemExit where `dualrate distill` fails."""
    teacher, dual = MODELS[recipe]
    out = f"runs/students-{recipe}-{steps}-{heavy}"
    arguments = f"distill {recipe} --teacher {teacher} --student-from {dual} --student dual --rollout full"
    dualrate([*arguments.split(), "--steps", str(steps), "--heavy", str(heavy), "--out", out, *more])
    return ROOT / out


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("recipe", choices=MODELS)
    parser.add_argument("--count", type=int, default=COUNT, help="images of a score")
    options, more = parser.parse_known_args()
    recipe, device = options.recipe, pick_device(None)
    judge = evaluator(read_experiment(ROOT / MODELS[recipe][0]).data, features=None, progress=reporter())
    check([judge], options.count, details=False)
    rows: list[Row] = []
    for steps, heavy in [(n, h) for n in STEPS for h in range(1, n + 1)]:
        model = dr.load(distil(recipe, steps, heavy, more), device=device)
        plan, name = dr.StepPlan.uniform(steps, heavy), f"student {steps}/{heavy}"
        drawer, features = Drawer(model, dr.Ancestral(model.gaussian), plan, name=name), f"students-{recipe}-features"
        row = measure(drawer, range(options.count), judge, keep=RUNS / features / f"{steps}-{heavy}").row
        rows.append(row)
        keep(RESULTS / f"students-{recipe}.json", rows=[asdict(row) for row in rows])
    print(as_text(table(rows)))


if __name__ == "__main__":
    main()
