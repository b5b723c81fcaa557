"""Do planned plans beat even ones? Measured on seeds that no plan was made or chosen with.

    OMP_NUM_THREADS=1 .venv/bin/python studies/planned.py       goes on where it was
    OMP_NUM_THREADS=1 .venv/bin/python studies/planned.py --second-order       how that one ranks what was measured

At the cost of the even plans 8/2, 16/4 and 32/8 (about a half, 1 and 2 giga multiply-adds an image), under the sampler
that suits few steps, SDE-DPM-Solver++ 2M: the even plan; one whose calls start an eighth of the steps late; the
planner's places for the heavy calls, on the same times; its times too; and what it likes best of all numbers of steps,
with even and with free times. A plan may drop its context, and costs at most what the even one does. Features are kept
in runs/planned, rows in docs/results/planned.json, from which studies/results.py makes the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import NOT_MEASURED, RESULTS, RUNS, command, keep, load, markdown, on_one_thread, save

import dualrate as dr
from dualrate.cli.console import reporter
from dualrate.config.serial import from_plain, to_plain
from dualrate.diffusion.values import Refresh
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.errors import candidates, measured_errors, spearman
from dualrate.drawing.evaluator import evaluator
from dualrate.drawing.measure import measure
from dualrate.metrics.evaluate import Evaluator
from dualrate.planning.planner import Planned, Planner
from dualrate.report.rows import Row
from dualrate.report.table import scored
from dualrate.sampling.cost import CallCost
from dualrate.system.progress import Reporter, image_progress

MODEL = "weights/fashion-mnist-dual"
OUT, FEATURES = RESULTS / "planned.json", RUNS / "planned"
EVEN = ((8, 2), (16, 4), (32, 8))  # N, H of the plans whose cost is the budget
STEPS = (8, 16, 32, 64)  # what the planner chooses from
GRID, IMAGES = 64, 128  # of the errors, as `dualrate plan` measures them
FIRST, COUNT = 20_000, 5000  # seeds
SECOND = "second_order"  # the objective for samplers of second order, of a record


@dataclass(frozen=True)
class Contender:
    """budget: the name of the even plan, e.g. 16/4; kinds: all that this plan is; objective: the planner's"""

    budget: str
    kinds: tuple[str, ...]
    plan: dr.StepPlan
    objective: float

    @property
    def key(self) -> str:
        """A file name."""
        return f"{self.budget}-{self.kinds[0]}".replace("/", "-").replace(", ", "-").replace(" ", "-")


def contenders(planner: Planner, costs: CallCost) -> Iterator[Contender]:
    """Every plan, budget by budget, none twice in one."""
    for steps, heavy in EVEN:
        late = dr.StepPlan.late(steps, heavy)
        even, budget = dr.StepPlan.uniform(steps, heavy), costs.of(steps, heavy)
        found = {
            "even": Planned(even, planner.objective(even)),
            "late": Planned(late, planner.objective(late)),
            "planned": planner.best(steps, heavy),
            "free times": planner.best(steps, heavy, free_times=True),
            "any N": candidates(planner, costs, budget, STEPS)[0].planned,
            "any N, free times": candidates(planner, costs, budget, STEPS, free_times=True)[0].planned,
        }
        for planned in dict.fromkeys(found.values()):
            kinds = tuple(kind for kind, other in found.items() if other == planned)
            yield Contender(f"{steps}/{heavy}", kinds, planned.plan, planned.objective)


def measured(contender: Contender, judge: Evaluator[Any], count: int, progress: Reporter) -> dict[str, Any]:
    """A row with the plan that it is of."""
    model = load(MODEL)
    progress.note(f"{contender.key}: {count} images")
    drawer = Drawer(model, dr.SDEDPMSolver2M(model.gaussian), contender.plan, name=", ".join(contender.kinds))
    seeds, show = range(FIRST, FIRST + count), image_progress(progress)
    row = measure(drawer, seeds, judge, keep=FEATURES / contender.key, progress=show).row
    progress.close()
    progress.note(f"  {row.score.metric} {row.score.value:.3f} [{row.score.low:.3f}, {row.score.high:.3f}]")
    return {
        "budget": contender.budget,
        "objective": contender.objective,
        "plan": json.loads(contender.plan.to_json()),
        "row": to_plain(row),
    }


def table(file: Path = OUT) -> str:
    """Markdown of what was measured."""
    if not file.exists():
        return NOT_MEASURED
    records = json.loads(file.read_text())["measured"]
    header = ["at the cost of", "plan", "N", "H", "without context", "GMACs", "objective", "of second order"]
    header.append("FD-fashion-mnist")
    return markdown(header, map(_line, records), texts=2)


def _line(record: dict[str, Any]) -> list[str]:
    row = from_plain(Row, record["row"])
    dropped = record["plan"]["refresh"].count(Refresh.NONE.value)
    counts = [str(row.num_steps), str(row.num_heavy), f"{dropped} steps" if dropped else "-"]
    objectives = (f"{record[name]:.4f}" if name in record else "-" for name in ("objective", SECOND))
    return [record["budget"], row.network, *counts, f"{row.macs / 1e9:.3g}", *objectives, scored(row)]


def add_second_order(planner: Planner, file: Path = OUT) -> str:
    """Put the objective of second order beside what was measured; the rank correlations of both with the score."""
    kept = json.loads(file.read_text())
    records = kept["measured"]
    for record in records:
        record[SECOND] = planner.objective(dr.StepPlan.from_json(json.dumps(record["plan"])))
    save(file, json.dumps(kept) + "\n")
    lines = []
    for name, of in (("all", records), ("two heavy calls or more", [r for r in records if r["row"]["num_heavy"] >= 2])):
        scores = [record["row"]["score"]["value"] for record in of]
        each = (
            f"{objective} {spearman([r[objective] for r in of], scores):.2f}" for objective in ("objective", SECOND)
        )
        lines.append(f"Spearman over {len(of)} plans ({name}): {', '.join(each)}")
    return "\n".join(lines)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help="images per plan")
    parser.add_argument("--only", help="one plan, e.g. 32-8-planned")
    parser.add_argument("--second-order", action="store_true", help="that objective of the plans that were measured")
    parser.add_argument("--errors", type=int, default=IMAGES, help="images that errors are measured on")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if options.only and options.out == OUT:
        parser.error("--only would leave one row of the page: name another file, --out")
    on_one_thread()
    model, progress = load(MODEL), reporter()
    errors = measured_errors(model, grid=GRID, images=options.errors, progress=progress)
    if options.second_order:
        planner = Planner(errors, model.gaussian, model.experiment.method.weighting, order=2)
        print(add_second_order(planner, options.out))
        return
    planner = Planner(errors, model.gaussian, model.experiment.method.weighting)
    judge, records = evaluator(model.experiment.data, features=None, progress=progress), []
    for contender in contenders(planner, model.call_cost):
        if options.only in (None, contender.key):
            records.append(measured(contender, judge, options.count, progress))
    keep(options.out, weights=model.weights_hash, measured=records)  # all of them: what was drawn is kept in runs/
    print(table(options.out))


if __name__ == "__main__":
    main()
