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
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import common
import numpy as np
import torch
from matplotlib.figure import Figure
from mixture_students import (
    PROCESS,
    SETS,
    SIZE,
    WEIGHTING,
    Encoder,
    Light,
    Mlp,
    Sampler,
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
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Truncated
from dualrate.diffusion.values import Batch, Cond, Reuse
from dualrate.methods.consistency import Consistency, TeacherSteps
from dualrate.methods.em_distillation import EMDistillation, Langevin
from dualrate.methods.moment_matching.states import ForwardPairs
from dualrate.recipes.students import NOISE_LEVEL
from dualrate.report.figures import INK, PALETTE, png
from dualrate.sampling.ancestral import DDIM
from dualrate.sampling.catalogue import make_step, sampler_named
from dualrate.sampling.grids import grid_times
from dualrate.system.environment import environment
from dualrate.system.files import whole

OUT = common.RESULTS / "mixture-branches.json"
POINTS = common.IMAGES / "mixture-branches.npz"  # of the pictures
SHOWN, STEPS = 2000, (1, 2, 4, 8)
UPDATES, TEACHER_UPDATES, RATE = 1500, 8000, 5e-4
CHOSEN = (("ancestral", None), ("ddim", None), ("addim", None), ("dpm++2m", None), ("sde-dpm++2m", 0.1))

Pairs = tuple[Tensor, Tensor, Tensor, Tensor, Cond]


class OnForwardPath(Consistency):
    """Trained where a denoiser of two rates is: z_tau is z_t with more noise."""

    def pairs(self, batch: Batch, draws: Draws) -> Pairs:
        states = ForwardPairs(self.plan, self.process)(self.student, batch, Cond(), draws)
        return states.z_t, states.t, states.z_tau, states.tau, Cond()


class Independent(OnForwardPath):
    """z_tau is of the same image and of a noise of its own."""

    def pairs(self, batch: Batch, draws: Draws) -> Pairs:
        z_t, t, _, tau, cond = super().pairs(batch, draws)
        return z_t, t, self.process.add_noise(batch.x, tau, draws.normal("apart", 2).to(z_t.dtype)), tau, cond


def of_teacher(network: Mlp, steps: int, name: str = "ddim", gamma: float | None = None) -> Sampler:
    plan = dr.StepPlan.spread(grid_times(sampler_named(name).grid, PROCESS.schedule, steps))
    return Sampler(name, Plain(network, PROCESS), plan, make_step(name, PROCESS, gamma))


def best_of_teacher(network: Mlp, steps: int) -> Sampler:
    """Of the samplers of one call a step, by a set of points that no row is measured on."""
    reference, first = exact(-(2 * SETS + 1) * SIZE, SIZE), SETS * SIZE
    found = [of_teacher(network, steps, *which) for which in CHOSEN]
    return min(found, key=lambda sampler: sliced_wasserstein(sampler(first), reference))


def consistency(network: Mlp, steps: int, *, taught: bool = True, times: tuple[int, int] = (16, 64)) -> Sampler:
    model = copy.deepcopy(network)
    student, guide = Plain(model, PROCESS), Plain(network, PROCESS) if taught else None
    annealed = TeacherSteps(*times, UPDATES // 2)
    method = Consistency(nn.ModuleDict({"model": model}), student, PROCESS, steps, guide, annealed)
    fit(method, UPDATES, RATE)
    return Sampler("", student, method.plan, DDIM(PROCESS))


def dual_consistency(
    network: Mlp, steps: int, made: type[Consistency] = Consistency, *, spared: bool = False
) -> Sampler:
    """spared: what the light network asks for does not reach the encoder's network."""
    torch.manual_seed(0)  # of the new parts
    encoder, light = Encoder(copy.deepcopy(network), 32), Light(32, 32)
    networks = nn.ModuleDict({"encoder": encoder, "light": light})
    student = DualRate(encoder, light, PROCESS, Reuse.OWN)
    annealed = TeacherSteps(16, 64, UPDATES // 2)
    how = {"heavy": steps // 2, "backbone": encoder.net if spared else None}
    method = made(networks, student, PROCESS, steps, Plain(network, PROCESS), annealed, **how)
    fit(method, UPDATES, RATE)
    return Sampler("", student, method.plan, DDIM(PROCESS))


def moments(network: Mlp, steps: int) -> Sampler:
    return plain_student(network, steps, "alternating", UPDATES)


def dual_moments(network: Mlp, steps: int, rollout: str) -> Sampler:
    torch.manual_seed(0)
    return dual_student(network, rollout, UPDATES, steps)


def em(network: Mlp, steps: int, *, chain: int = 1, latent_step: float = 0.0) -> Sampler:
    process = replace(PROCESS, schedule=Truncated(PROCESS.schedule, NOISE_LEVEL))
    model, auxiliary = copy.deepcopy(network), copy.deepcopy(network)
    student = Plain(model, process)
    method = EMDistillation(
        networks=nn.ModuleDict({"model": model}),
        student=student,
        auxiliaries=nn.ModuleDict({"auxiliary": auxiliary}),
        auxiliary=Plain(auxiliary, process),
        teacher=Plain(network, process),
        process=process,
        weighting=WEIGHTING,
        langevin=Langevin(chain, latent_step=latent_step),
    )
    fit(method, 2 * UPDATES, RATE)
    return Sampler("", student, dr.StepPlan.uniform(steps), dr.Ancestral(process))


@dataclass(frozen=True)
class Branch:
    """A line of the table: (teacher, steps) -> what samples."""

    name: str
    make: Callable[[Mlp, int], Sampler]
    steps: tuple[int, ...] = STEPS


BRANCHES = (
    Branch("teacher, DDIM", of_teacher),
    Branch("teacher, best sampler", best_of_teacher),
    Branch("consistency, from the teacher", consistency),
    Branch("consistency, from data", partial(consistency, taught=False)),
    Branch("moment matching", moments),
    Branch("EM distillation", em, (1,)),
    Branch("dual-rate consistency", dual_consistency, (4, 8)),
    Branch("the same, the encoder's network by its own loss alone", partial(dual_consistency, spared=True), (4, 8)),
    Branch("the same, pairs of a forward path", partial(dual_consistency, made=OnForwardPath), (4, 8)),
    Branch("the same, independent pairs", partial(dual_consistency, made=Independent), (4, 8)),
    Branch("dual-rate moment matching, A", partial(dual_moments, rollout="A"), (4,)),
    Branch("dual-rate moment matching, B", partial(dual_moments, rollout="B"), (4,)),
)
SETTINGS = (
    Branch("from the teacher, always 16 of its steps", partial(consistency, times=(16, 16)), (1, 2, 4)),
    Branch("from the teacher, always 64", partial(consistency, times=(64, 64)), (1, 2)),
    Branch("EM distillation, four Langevin steps", partial(em, chain=4, latent_step=0.01), (1,)),
)


def measured(make: Callable[[Mlp, int], Sampler], steps: int) -> tuple[dict[str, Any], Tensor]:
    """A row, and points of its picture."""
    network, start = trained(), time.perf_counter()
    sampler = make(network, steps)
    seconds, sets = time.perf_counter() - start, [sampler(i * SIZE) for i in range(SETS)]
    values = [sliced_wasserstein(own, exact(-(i + 1) * SIZE, SIZE)) for i, own in enumerate(sets)]
    heavy = sampler.plan.num_heavy
    row = {"heavy": heavy, "distance": float(np.mean(values)), "interval": interval(values), "seconds": seconds}
    return {"sampler": str(sampler.step), **row, "values": values}, sets[0][:SHOWN]


def table() -> str:
    """Markdown: a line a branch, a column a number of steps."""
    rows = json.loads(OUT.read_text())["rows"]
    lines = [
        [branch.name, *(_cell(rows.get(f"{branch.name}, {n}")) for n in STEPS)] for branch in (*BRANCHES, *SETTINGS)
    ]
    lines.insert(0, ["exact", *[_cell(rows["exact, 0"])] * len(STEPS)])
    return common.markdown(("", *(f"{n} step{'s' * (n > 1)}" for n in STEPS)), lines, texts=1)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    low, high = row["interval"]
    return f"{row['distance']:.3f} [{low:.3f}, {high:.3f}]"


def exact_row() -> tuple[dict[str, Any], Tensor]:
    sets = [exact(-(SETS + i + 1) * SIZE, SIZE) for i in range(SETS)]
    values = [sliced_wasserstein(own, exact(-(i + 1) * SIZE, SIZE)) for i, own in enumerate(sets)]
    return {"distance": float(np.mean(values)), "interval": interval(values), "values": values}, sets[0][:SHOWN]


@cache
def trained() -> Mlp:
    """The teacher."""
    torch.manual_seed(0)
    return teacher(TEACHER_UPDATES)


def picture(points: dict[str, np.ndarray]) -> Figure:
    """A row a branch, a column a number of steps; the first row the exact points. Settings are left out."""
    points = points | {"exact, 1": points["exact, 0"]}
    names = ["exact", *(branch.name for branch in BRANCHES)]
    figure = Figure(figsize=(6.4, 1.62 * len(names)), layout="constrained")
    for name, row in zip(names, figure.subplots(len(names), len(STEPS)), strict=True):
        for n, axes in zip(STEPS, row, strict=True):
            shown = points.get(f"{name}, {n}")
            axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), xticks=[], yticks=[], aspect="equal")
            if shown is None:
                axes.set_axis_off()
                continue
            axes.scatter(shown[:, 0], shown[:, 1], s=0.3, color=PALETTE[0], rasterized=True)
            title = name if name == "exact" else f"{name}, {n}"
            axes.set_title(textwrap.fill(title, 32), fontsize=6, color=INK)
    return figure


def main() -> None:
    common.command(__doc__).parse_args()
    POINTS.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(OUT.read_text()) if OUT.exists() else {"updates": UPDATES, "rows": {}}
    if kept["updates"] != UPDATES:
        raise ValueError(f"{OUT} is of {kept['updates']} updates, not of {UPDATES}: delete it to measure anew")
    points = dict(np.load(POINTS)) if POINTS.exists() else {}
    wanted = {"exact, 0": exact_row} | {
        f"{branch.name}, {n}": partial(measured, branch.make, n)
        for branch in (*BRANCHES, *SETTINGS)
        for n in branch.steps
    }
    for key, make in wanted.items():
        if key in kept["rows"] and key in points:
            continue
        row, shown = make()
        kept["rows"][key], points[key] = row | {"environment": environment()}, shown.numpy()
        print(f"{key:44} {_cell(row)} {row.get('seconds', 0):.0f} s {row.get('sampler', '')}", flush=True)
        with whole(POINTS) as aside, aside.open("wb") as file:
            np.savez_compressed(file, **points)
        common.save(OUT, json.dumps(kept, indent=1) + "\n")
    OUT.with_suffix(".png").write_bytes(png(picture(points)))


if __name__ == "__main__":
    main()
