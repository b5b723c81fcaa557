"""The branches of distillation at 1 to 8 steps, on the mixture of `mixture_students.py`: distances, pictures.

    OMP_NUM_THREADS=1 .venv/bin/python studies/mixture_branches.py     # docs/results/mixture-branches.*; resumes

One teacher. Every student starts from it and gets the same number of updates; one with an auxiliary as many for that.
Dual-rate ones are of an encoder that starts from the teacher and of a small light network. Of these one branch trains
on the pairs (z_tau, z_t) that sampling by DDIM makes, and two, for comparison only, on pairs that it does not: of one
forward path, and of one image with two noises that have nothing to do with one another. A row that was measured stays.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import common
import numpy as np
import torch
from mixture_students import (
    PROCESS,
    SETS,
    SIZE,
    Encoder,
    Light,
    Mlp,
    Sampler,
    draw,
    dual_student,
    exact,
    fit,
    interval,
    plain_student,
    sliced_wasserstein,
    teacher,
)
from torch import Tensor, nn

import dualrate as dr
from dualrate.denoisers.denoiser import DualRate, Plain
from dualrate.diffusion.draws import Draws
from dualrate.diffusion.values import Batch, Cond, Reuse
from dualrate.machine.environment import environment
from dualrate.methods.consistency import Consistency, TeacherSteps
from dualrate.methods.moment_matching.states import ForwardPairs
from dualrate.report.figures import png
from dualrate.sampling.ancestral import DDIM
from dualrate.sampling.catalogue import make_step, sampler_named
from dualrate.sampling.grids import grid_times

OUT = common.RESULTS / "mixture-branches.json"
POINTS = common.IMAGES / "mixture-branches.npz"  # of the pictures
SHOWN = 2000
UPDATES, TEACHER_UPDATES, RATE = 1500, 8000, 5e-4
CHOSEN = (("ancestral", None), ("ddim", None), ("addim", None), ("dpm++2m", None), ("sde-dpm++2m", 0.1))

Pairs = tuple[Tensor, Tensor, Tensor, Tensor]


class OnForwardPath(Consistency):
    """Trained where a denoiser of two rates is: z_tau is z_t with more noise."""

    def pairs(self, batch: Batch, draws: Draws) -> Pairs:
        states = ForwardPairs(self.plan, self.process)(self.student, batch, Cond(), draws)
        return states.z_t, states.t, states.z_tau, states.tau


class Independent(OnForwardPath):
    """z_tau is of the same image and of a noise of its own."""

    def pairs(self, batch: Batch, draws: Draws) -> Pairs:
        z_t, t, _, tau = super().pairs(batch, draws)
        return z_t, t, self.process.add_noise(batch.x, tau, draws.normal("apart", 2).to(z_t.dtype)), tau


def of_teacher(network: Mlp, steps: int, name: str = "ddim", gamma: float | None = None) -> Sampler:
    plan = dr.StepPlan.spread(grid_times(sampler_named(name).grid, PROCESS.schedule, steps))
    return Sampler(name, Plain(network, PROCESS), plan, make_step(name, PROCESS, gamma))


def best_of_teacher(network: Mlp, steps: int) -> Sampler:
    """Of the samplers of one call a step, by a set of points that no row is measured on."""
    reference, first = exact(-(2 * SETS + 1) * SIZE, SIZE), SETS * SIZE
    found = [of_teacher(network, steps, *which) for which in CHOSEN]
    return min(found, key=lambda sampler: sliced_wasserstein(sampler(first), reference))


def consistency(
    network: Mlp, steps: int, *, taught: bool = True, times: tuple[int, int] = (16, 64), eta: float = 0.75
) -> Sampler:
    model = copy.deepcopy(network)
    student, guide = Plain(model, PROCESS), Plain(network, PROCESS) if taught else None
    annealed = TeacherSteps(*times, UPDATES // 2)
    method = Consistency(nn.ModuleDict({"model": model}), student, PROCESS, steps, guide, annealed, eta=eta)
    fit(method, UPDATES, RATE)
    return Sampler("", student, method.plan, DDIM(PROCESS))


def dual_consistency(network: Mlp, steps: int, made: type[Consistency] = Consistency) -> Sampler:
    torch.manual_seed(0)  # of the new parts
    encoder, light = Encoder(copy.deepcopy(network), 32), Light(32, 32)
    networks = nn.ModuleDict({"encoder": encoder, "light": light})
    student = DualRate(encoder, light, PROCESS, Reuse.OWN)
    annealed = TeacherSteps(16, 64, UPDATES // 2)
    method = made(networks, student, PROCESS, steps, Plain(network, PROCESS), annealed, heavy=steps // 2)
    fit(method, UPDATES, RATE)
    return Sampler("", student, method.plan, DDIM(PROCESS))


def moments(network: Mlp, steps: int) -> Sampler:
    return plain_student(network, steps, "alternating", UPDATES)


def dual_moments(network: Mlp, steps: int, rollout: str) -> Sampler:
    torch.manual_seed(0)
    return dual_student(network, rollout, UPDATES, steps)


@dataclass(frozen=True)
class Branch:
    """A line of the table: (teacher, steps) -> what samples."""

    name: str
    make: Callable[[Mlp, int], Sampler]
    steps: tuple[int, ...] = (1, 2, 4, 8)


BRANCHES = (
    Branch("teacher, DDIM", of_teacher),
    Branch("teacher, best sampler", best_of_teacher),
    Branch("consistency, from the teacher", consistency),
    Branch("consistency, from data", partial(consistency, taught=False)),
    Branch("moment matching", moments),
    Branch("dual-rate consistency", dual_consistency, (4, 8)),
    Branch("the same, pairs of a forward path", partial(dual_consistency, made=OnForwardPath), (4, 8)),
    Branch("the same, independent pairs", partial(dual_consistency, made=Independent), (4, 8)),
    Branch("dual-rate moment matching, A", partial(dual_moments, rollout="A"), (4,)),
    Branch("dual-rate moment matching, B", partial(dual_moments, rollout="B"), (4,)),
    Branch("from the teacher, always 16 of its steps", partial(consistency, times=(16, 16)), (1, 2, 4)),
    Branch("from the teacher, always 64", partial(consistency, times=(64, 64)), (1, 2, 4)),
    Branch("from the teacher, 64 to 1280", partial(consistency, times=(64, 1280)), (1, 2, 4)),
    Branch("from the teacher by DDIM", partial(consistency, eta=0.0), (1, 2, 4)),
)


def measured(make: Callable[[Mlp, int], Sampler], network: Mlp, steps: int) -> tuple[dict[str, Any], Tensor]:
    """A row, and points of its picture."""
    start = time.perf_counter()
    sampler = make(network, steps)
    seconds, sets = time.perf_counter() - start, [sampler(i * SIZE) for i in range(SETS)]
    values = [sliced_wasserstein(own, exact(-(i + 1) * SIZE, SIZE)) for i, own in enumerate(sets)]
    heavy = sampler.plan.num_heavy
    row = {"heavy": heavy, "distance": float(np.mean(values)), "interval": interval(values), "seconds": seconds}
    return {"sampler": str(sampler.step), **row, "values": values}, sets[0][:SHOWN]


def table() -> str:
    """Markdown: a line a branch, a column a number of steps."""
    rows, steps = json.loads(OUT.read_text())["rows"], (1, 2, 4, 8)
    lines = [[branch.name, *(_cell(rows.get(f"{branch.name}, {n}")) for n in steps)] for branch in BRANCHES]
    lines.insert(0, ["exact", *[_cell(rows["exact, 0"])] * len(steps)])
    return common.markdown(("", *(f"{n} step{'s' * (n > 1)}" for n in steps)), lines, texts=1)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    low, high = row["interval"]
    return f"{row['distance']:.3f} [{low:.3f}, {high:.3f}]"


def exact_row() -> tuple[dict[str, Any], Tensor]:
    sets = [exact(-(SETS + i + 1) * SIZE, SIZE) for i in range(SETS)]
    values = [sliced_wasserstein(own, exact(-(i + 1) * SIZE, SIZE)) for i, own in enumerate(sets)]
    return {"distance": float(np.mean(values)), "interval": interval(values), "values": values}, sets[0][:SHOWN]


def main() -> None:
    common.command(__doc__).parse_args()
    POINTS.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = teacher(TEACHER_UPDATES)
    kept = json.loads(OUT.read_text()) if OUT.exists() else {"updates": UPDATES, "rows": {}}
    points = dict(np.load(POINTS)) if POINTS.exists() else {}
    wanted = {"exact, 0": exact_row} | {
        f"{branch.name}, {n}": partial(measured, branch.make, network, n) for branch in BRANCHES for n in branch.steps
    }
    for key, make in wanted.items():
        if key in kept["rows"] and key in points:
            continue
        row, shown = make()
        kept["rows"][key], points[key] = row, shown.numpy()
        kept["environment"] = environment()
        print(f"{key:44} {_cell(row)} {row.get('seconds', 0):.0f} s {row.get('sampler', '')}", flush=True)
        OUT.write_text(json.dumps(kept, indent=1) + "\n")
        np.savez_compressed(POINTS, **points)
    titles = {_title(key): torch.from_numpy(points[key]) for key in wanted}
    OUT.with_suffix(".png").write_bytes(png(draw(titles)))


def _title(key: str) -> str:
    name, _, steps = key.rpartition(", ")
    return name if steps == "0" else f"{name}\nN = {steps}"


if __name__ == "__main__":
    main()
