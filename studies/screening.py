"""Screens samplers, grids and plans of a model on few images, by every judge, from seeds that no report scores.

    .venv/bin/python studies/screening.py runs/natural16-light 8@dpm++2m 10@sde-dpm++2m:0.1,grid=blend:0.7
    .venv/bin/python studies/screening.py runs/natural16-dual-25 8/2@sde-dpm++2m:0.1,grid=blend:0.7,alone=3

A way is STEPS[/HEAVY]@SAMPLER[:GAMMA] and what is not as recommended: the grid, and of two rates how many steps the
light network makes alone before the first heavy call. Reports name what was chosen so; the log has the scores.
"""

from __future__ import annotations

from pathlib import Path

from common import command, load, on_one_thread

import dualrate as dr
from dualrate.cli.console import reporter
from dualrate.drawing.evaluator import evaluators
from dualrate.drawing.measure import measure
from dualrate.report.table import scored
from dualrate.sampling.catalogue import at_gamma
from dualrate.sampling.grids import grid_times
from dualrate.system.progress import image_progress

FIRST = 3_000_000  # seed; reports score from 0 on, and screen from 1,000,000


def drawer(model: dr.Model, way: str) -> dr.Drawer:
    """Raises ValueError for a way that is none."""
    entry, *settings = way.split(",")
    size, _, sampled = entry.partition("@")
    steps, _, heavy = size.partition("/")
    sampler, gamma = at_gamma(sampled)
    said: dict[str, str] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        said[name] = value
    unknown = sorted(said.keys() - {"grid", "alone"})
    if unknown:
        raise ValueError(f"{way}: there is no setting {unknown[0]}, but grid and alone")
    grid = said.get("grid")
    if "alone" in said:
        if not heavy:
            raise ValueError(f"{way}: alone is of two rates, STEPS/HEAVY")
        times = grid_times(grid or "log-snr", model.gaussian.schedule, int(steps))
        plan = dr.StepPlan.late(times, int(heavy), int(said["alone"]))
        choice = dr.Choice(sampler=sampler or None, gamma=gamma, plan=plan)
    else:
        choice = dr.Choice(
            steps=int(steps), heavy=int(heavy) if heavy else None, sampler=sampler or None, gamma=gamma, grid=grid
        )
    return choice.drawer(model, name=way)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("ways", nargs="+")
    parser.add_argument("--features", help="judges, as of `dualrate compare`; the data set's own if not given")
    parser.add_argument("--num", type=int, default=2000, help="images of each")
    parser.add_argument("--seed", type=int, default=FIRST, help="of the first image; those of reports begin at 0")
    options = parser.parse_args()
    on_one_thread()
    model, progress = load(options.run), reporter()
    judges = evaluators(model.experiment.data, options.features, progress=progress)
    seeds = range(options.seed, options.seed + options.num)
    drawers = [drawer(model, way) for way in options.ways]  # all, before any is drawn
    for one in drawers:
        row = measure(one, seeds, *judges, progress=image_progress(progress)).row
        progress.close()
        scores = "   ".join(scored(row.judged_by(metric)) for metric in row.scores)
        print(f"{row.network:44} {row.flops / 1e9:.3g} GFLOPs   {scores}", flush=True)


if __name__ == "__main__":
    main()
