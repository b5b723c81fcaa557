"""A light network for the first steps and a heavy one for the rest: what each share of light steps costs and scores.

    OMP_NUM_THREADS=1 .venv/bin/python studies/switching.py --images 500

Two tables in Markdown: the errors of both networks at every step; and the scores of plans with so many light steps, on
the same seeds. `dualrate plan HEAVY --denoiser LIGHT` says by the first where to change over, `dualrate compare
HEAVY+LIGHT` does the second for a report.
"""

from __future__ import annotations

import torch
from common import command, load, markdown, on_one_thread, scored

import dualrate as dr
from dualrate.cli.console import reporter
from dualrate.diffusion.draws import Draws
from dualrate.measuring.choosing import GAMMA, RECOMMENDED, step_for
from dualrate.measuring.evaluator import evaluator
from dualrate.measuring.measure import measure
from dualrate.measuring.subset import subset_parts
from dualrate.planning.planner import NO_CONTEXT, Errors, measure_errors
from dualrate.runs.pairs import switched
from dualrate.sampling.catalogue import sampler_named
from dualrate.sampling.grids import grid_times


def errors_of(pair: dr.Model, times: tuple[float, ...], images: int) -> Errors:
    (part,) = subset_parts(pair, pair.experiment.data.load("train"), images, images)
    batch, draws = part.on(pair.device), Draws(0, torch.arange(images))
    return measure_errors(pair.denoiser, pair.gaussian, times, batch.x, batch.cond, draws)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--heavy", default="weights/fashion-mnist-heavy-annealed")
    parser.add_argument("--light", default="weights/fashion-mnist-light")
    parser.add_argument("--sampler", default=RECOMMENDED)
    parser.add_argument("--gamma", type=float, default=GAMMA)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--alone", type=int, nargs="+", default=[0, 2, 4, 6, 8, 12, 16])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--errors", type=int, default=256, help="images that errors are measured on")
    asked = parser.parse_args()
    on_one_thread()
    pair, progress = switched(load(asked.heavy), load(asked.light)), reporter()
    times = grid_times(sampler_named(asked.sampler).grid, pair.process.schedule, asked.steps)
    errors = errors_of(pair, times, asked.errors).errors
    lines = [
        (
            f"{t:.3f}",
            f"{errors[i, i]:.5f}",
            f"{errors[i, NO_CONTEXT]:.5f}",
            f"{errors[i, NO_CONTEXT] / errors[i, i]:.3f}",
        )
        for i, t in enumerate(times[:-1])
    ]
    print(markdown(("t", "heavy", "light", "ratio"), lines, texts=0))
    judge, rows = evaluator(pair.experiment.data, features=None, progress=progress), []
    for alone in asked.alone:
        plan = dr.StepPlan.late(times, asked.steps - alone, alone)
        drawer = dr.Drawer(pair, step_for(pair, plan, asked.sampler, asked.gamma), plan)
        row = measure(drawer, range(asked.images), judge).row
        rows.append((str(alone), f"{row.macs / 1e9:.3f}", scored(row)))
        progress.note(" ".join(rows[-1]))
    print(markdown(("light steps", "GMACs", f"FD of {asked.images} images"), rows, texts=0))


if __name__ == "__main__":
    main()
