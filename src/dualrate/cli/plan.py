"""`dualrate plan`: the best plan for a budget."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dualrate.comparison.candidates import check_denoiser
from dualrate.config.ranges import Images, Members, Range, Ranged, Steps
from dualrate.diffusion.context import Reuse
from dualrate.drawing.choice import RECOMMENDED
from dualrate.drawing.cost import call_seconds
from dualrate.drawing.planning import candidates, measured_errors, require_plannable
from dualrate.options.console import Machine
from dualrate.options.parsing import Device, Nproc, RunDir, SharedWork
from dualrate.report.figures import plan_figure, png
from dualrate.runs.store import called_by
from dualrate.sampling.catalogue import ANCESTRAL, sampler_named
from dualrate.sampling.grids import check_grid
from dualrate.sampling.planner import Planner
from dualrate.system.files import write_whole
from dualrate.system.workers import mapper

BUDGET = re.compile(r"([0-9.]+(?:e[+-]?[0-9]+)?)(x|gmacs|s)")
TIMED = 64  # images per call when calls are timed


@dataclass(frozen=True)
class Plan(Ranged, SharedWork):
    """Find the best plan of a dual-rate model for a budget: how many steps, and where the heavy calls go.

    A heavy network that sees only a condition is called once. For a single network, --denoiser names the cache or
    network that makes the steps between its calls.

    `dualrate compare RUN:16/4 RUN:16/2` measures plans by drawing images.
    """

    run_dir: RunDir
    budget: str
    """Compute per image. 0.25x: a share of the cost of a heavy call at every step of the grid, each for one image
    alone. 3gmacs: giga multiply-adds. 0.05s: seconds on this machine."""
    denoiser: str | None = None
    """For a single network: a cache (shared-encoder, deep-cache or fora); package.module:name; or the directory of a
    run, whose network makes the steps without a context."""
    steps: tuple[Steps, ...] | None = None
    """Numbers of steps, divisors of --grid: one, as objectives of different numbers compare badly. Of a model with a
    condition the default is the grid, its half, quarter and eighth."""
    grid: Annotated[int, Range(1, 512)] = 32
    """Steps of the grid on which errors are measured. Half as many take a quarter of the time."""
    spacing: str = "t"
    """Times of the grid, as --grid of sample: t, log-snr, blend:0.5 or karras."""
    images: Images = 128
    """Number of training images on which errors are measured; for a conditional model, of held-out images with their
    conditions."""
    members: Members = 1
    """Samples of each condition. They share the heavy call that reads it."""
    ancestral: bool = False
    """Plan for ancestral sampling, instead of solvers of second order."""
    out: Path = Path("plan.json")
    """File for the plan, which --plan of sample and evaluate reads. A picture is written beside it."""
    nproc: Nproc = 1
    device: Device = None

    def run(self) -> None:
        parts, steps = BUDGET.fullmatch(self.budget.lower()), self.steps
        if parts is None or not float(parts[1]) > 0:
            raise ValueError(
                f"--budget is a number above 0 and its unit, as 0.25x, 3gmacs or 0.05s, got {self.budget!r}"
            )
        budget, unit = float(parts[1]), parts[2]
        if steps is None:
            steps = tuple(self.grid // part for part in (8, 4, 2, 1) if self.grid % part == 0)
        elif any(self.grid % count for count in steps):
            raise ValueError(f"--steps are divisors of --grid {self.grid}, got {steps}")
        check_denoiser(self.denoiser)
        check_grid(self.spacing)
        if self.out.suffix != ".json":
            raise ValueError(f"--out is a .json file, whose picture is written beside it as .png, got {self.out}")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        model, progress = Machine(device=self.device).loaded(self.run_dir)
        model = called_by(model, self.denoiser)
        require_plannable(model)
        process = model.gaussian  # refused before anything is measured
        if self.steps is None and model.given is None:
            raise ValueError(
                "give --steps, one number: for images, objectives of different numbers of steps do not compare, and "
                "the least may be that of far too few"
            )
        if self.ancestral and model.denoiser.reuse is Reuse.SMOOTH:
            raise ValueError(f"{self.denoiser} needs a sampler without noise: drop --ancestral")
        costs, unit_size = (call_seconds(model, TIMED), 1.0) if unit == "s" else (model.call_cost, 1e9)
        budget *= costs.read + self.grid * costs.heavy + costs.decode if unit == "x" else unit_size
        costs = costs.shared(self.members)
        how = {"spacing": self.spacing, "progress": progress, "mapper": mapper(model.device)}
        errors = measured_errors(model, grid=self.grid, images=self.images, **how)
        planner = Planner(errors, process, model.experiment.method.weighting, order=1 if self.ancestral else 2)
        ranked = candidates(planner, costs, budget, steps)
        print(f"budget {self.budget}: {budget / unit_size:.4g} {'s' if unit == 's' else 'GMACs'}\n")
        print(f"{'steps':>5} {'heavy':>5} {'alone':>5} {'cost':>8}  objective  even spread")
        for candidate in ranked:
            plan, even = candidate.planned.plan, "-" if candidate.even is None else f"{candidate.even:.5f}"
            counts = f"{plan.num_steps:5} {plan.num_heavy:5} {plan.num_alone:5} {candidate.cost / unit_size:8.3g}"
            print(f"{counts}  {candidate.planned.objective:9.5f}  {even:>11}")
        print("alone: steps without a context. objective: weighted errors of x_hat, summed over the steps")
        usual = sampler_named(ANCESTRAL if self.ancestral else RECOMMENDED).step
        if usual.reusing != self.spacing:
            print(f"even spread: as many heavy calls at equal distances, on this grid, {self.spacing}; the times of "
                  f"`sample` without --plan are {usual.reusing}")  # fmt: skip
        if len(ranked) > 1 and model.given is None:
            print("objectives of different numbers of steps do not compare: the first line may not be the best plan")
        plans = [candidate.planned.plan for candidate in ranked]
        names = [plan.counts for plan in plans]
        picture = self.out.with_suffix(".png")
        write_whole(self.out, plans[0].to_json() + "\n")
        write_whole(picture, png(plan_figure([*dict(zip(names, plans, strict=True)).items()])))
        print(f"\nwrote {self.out.absolute()}: {names[0]}; its picture is {picture.name}")
