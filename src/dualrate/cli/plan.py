"""`dualrate plan`: a plan for a budget. `plan search`: a plan by drawing. `plan calibrate`: a covariance table."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dualrate.cli.console import loaded
from dualrate.cli.recipe import AsJson, Compile, Device, Graphs, RunDir, Workers
from dualrate.config.imports import import_named
from dualrate.config.ranges import BatchSize, HeavyCalls, Images, Minutes, Probability, Range, Ranged, Rings, Steps
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.values import Reuse
from dualrate.drawing.choice import Choice
from dualrate.runs.store import called_by, check_denoiser, is_run
from dualrate.sampling.cost import CallCost
from dualrate.sampling.grids import check_grid
from dualrate.system.files import write_whole

GRID = 64  # steps of the finest grid
BUDGET = re.compile(r"([\d.]+(?:e[+-]?\d+)?)(x|gmacs|s)?")


@dataclass(frozen=True)
class Plan(Ranged):
    """Find the best plan of a dual-rate model for a budget: how many steps, and where the heavy calls go.

    For a single network, --denoiser names what makes the steps between its calls. `dualrate plan search RUN` finds a
    plan by drawing images. `dualrate plan calibrate RUN` measures the table of the covariance-aware samplers.
    """

    run_dir: RunDir
    budget: str
    """Compute per image. 0.25x: a share of a heavy call at every step of the grid; 3gmacs: giga multiply-adds; 0.05s:
    seconds on this machine."""
    denoiser: str | None = None
    """For a single network: shared-encoder, deep-cache or fora; package.module:name; or the directory of a run, whose
    network makes the steps without a context."""
    steps: tuple[Steps, ...] | None = None
    """Numbers of steps to choose from, divisors of the grid; 8, 16, 32 and 64 if not given."""
    grid: Annotated[int, Range(1, 512)] | None = None
    """Steps of the grid on which errors are measured; if not given 64, or fewer where 64 take longer than --minutes.
    A number; the kind of times is --spacing."""
    spacing: str = "t"
    """Times of the grid, as --grid of sample: t, log-snr, blend:0.5 or karras."""
    images: Images = 128
    """Training images that errors are measured on."""
    minutes: Minutes = 2
    """Time for measuring errors."""
    ancestral: bool = False
    """Plan for ancestral sampling, instead of solvers of second order."""
    out: Path = Path("plan.json")
    """The plan, for --plan of sample and evaluate; a picture is written beside it."""
    batch_size: BatchSize = 64
    """Images per call when calls are timed."""
    workers: Workers = 1
    compile: Compile = False
    graphs: Graphs = False
    device: Device = None

    def run(self) -> None:
        from dualrate.drawing.measure import call_seconds
        from dualrate.drawing.plan_search import candidates, fitting_grid, measured_errors, require_plannable
        from dualrate.planning.planner import Planner
        from dualrate.system.workers import mapper

        parts = BUDGET.fullmatch(self.budget.lower())
        if parts is None or not float(parts[1]) > 0:
            raise ValueError(f"--budget is 0.25x, 3gmacs or 0.05s, or the like, got {self.budget!r}")
        budget, unit = float(parts[1]), parts[2] or "x"
        if not is_run(self.denoiser):
            import_named("denoiser", self.denoiser)
        check_denoiser(self.denoiser)
        check_grid(self.spacing)
        check_out(self.out)
        usual = (GRID, GRID // 2, GRID // 4, GRID // 8) if self.grid is None else (self.grid,)
        grids = [grid for grid in usual if len(self._steps(grid)) >= len(self.steps or (1,))]
        if not grids:
            raise ValueError(f"--steps are divisors of --grid {usual[0]}, got {self.steps}")
        model, progress = loaded(self.run_dir, self.device, compiled=self.compile, graphs=self.graphs)
        if not model.serves.any_plan:
            raise ValueError(f"{self.run_dir} is a distilled student, whose plan was set before it was trained")
        model = called_by(model, self.denoiser)
        process = model.gaussian  # refused before anything is measured
        require_plannable(model)
        if self.ancestral and model.denoiser.reuse is Reuse.SMOOTH:
            raise ValueError(f"{self.denoiser} needs a sampler without noise: drop --ancestral")
        if unit == "s":
            costs = call_seconds(model, self.batch_size)
        else:
            macs = model.call_cost
            alone = None if macs.alone is None else macs.alone / 1e9
            costs = CallCost(macs.heavy / 1e9, macs.light / 1e9, macs.own, macs.decode / 1e9, alone=alone)
        if unit == "x":
            budget *= usual[0] * costs.heavy + costs.decode
        spacing, images = self.spacing, self.images
        grid = fitting_grid(model, grids, minutes=self.minutes, images=images, spacing=spacing, progress=progress)
        with mapper(self.workers, model.device) as over:
            errors = measured_errors(model, grid=grid, mapper=over, images=images, spacing=spacing, progress=progress)
        planner = Planner(errors, process, model.experiment.method.weighting, order=1 if self.ancestral else 2)
        found = candidates(planner, costs, budget, self._steps(grid))
        print(f"budget {self.budget}: {budget:.4g} {'s' if unit == 's' else 'GMACs'}\n")
        print(f"{'steps':>5} {'heavy':>5} {'alone':>5} {'cost':>8}  objective  even spread")
        for one in found:
            plan, even = one.planned.plan, "-" if one.even is None else f"{one.even:.5f}"
            counts = f"{plan.num_steps:5} {plan.num_heavy:5} {plan.num_alone:5} {one.cost:8.3g}"
            print(f"{counts}  {one.planned.objective:9.5f}  {even:>11}")
        print("alone: steps without a context. objective: weighted errors of x_hat, summed over the steps")
        plans = [one.planned.plan for one in found]
        write_plans(self.out, [(f"{plan.num_steps} steps, {plan.num_heavy} heavy calls", plan) for plan in plans])

    def _steps(self, grid: int) -> tuple[int, ...]:
        """Of the numbers of steps to choose from, those that divide a grid."""
        return tuple(n for n in self.steps or (8, 16, 32, 64) if n <= grid and not grid % n)


def check_out(out: Path) -> None:
    if out.suffix != ".json":
        raise ValueError(f"--out is a .json file, whose picture is written beside it as .png, got {out}")
    out.parent.mkdir(parents=True, exist_ok=True)


def write_plans(out: Path, named: list[tuple[str, StepPlan]]) -> None:
    """The first plan, and a picture of all."""
    from dualrate.report.figures import plan_figure, png

    name, plan = named[0]
    write_whole(out, plan.to_json() + "\n")
    write_whole(out.with_suffix(".png"), png(plan_figure(named)))
    print(f"\n{out}: {name}; {out.with_suffix('.png')}")


@dataclass(frozen=True)
class Search(Ranged):
    """Search a plan by drawing images: the times of the steps, and the first heavy call. Continues if run again.

    The numbers of steps and heavy calls stay. The plan that was found is also scored on fresh seeds.
    """

    run_dir: RunDir
    steps: Steps | None = None
    """N, steps; as `dualrate sample` if not given."""
    heavy: HeavyCalls | None = None
    """H, heavy calls per image; as `dualrate sample` if not given."""
    sampler: str | None = None
    """Sampler; as `dualrate sample` if not given."""
    gamma: Probability | None = None
    """Noise level of the sampler."""
    minutes: Minutes = 60
    """Time for drawing; the same command continues where it ended."""
    out: Path = Path("plan.json")
    """The plan, for --plan of sample and evaluate; a picture and all scores are written beside it."""
    num: Images = 1000
    """Images per plan in the last round, and on fresh seeds."""
    features: Path | None = None
    """Directory of the feature network; the data set's own if not given."""
    batch_size: BatchSize = 64
    """Images per batch."""
    workers: Workers = 1
    compile: Compile = False
    graphs: Graphs = False
    device: Device = None

    def run(self) -> None:
        from dualrate.drawing.measure import OutOfTime, evaluator
        from dualrate.drawing.plan_search import search
        from dualrate.system.workers import mapper

        import_named("sampler", self.sampler)
        choice = Choice(steps=self.steps, heavy=self.heavy, sampler=self.sampler, gamma=self.gamma)
        check_out(self.out)
        model, progress = loaded(self.run_dir, self.device, compiled=self.compile, graphs=self.graphs)
        _ = model.gaussian  # before a feature network is trained
        metric = evaluator(model.experiment.data, features=self.features, progress=progress)
        try:
            with mapper(self.workers, model.device) as over:
                found = search(
                    model,
                    choice,
                    metric,
                    self.out.with_suffix(".search"),
                    seconds=60 * self.minutes,
                    num=self.num,
                    batch_size=self.batch_size,
                    progress=progress,
                    mapper=over,
                )
        except OutOfTime as stop:
            progress.note(f"{stop}")
            raise SystemExit(75) from None
        names = found.names
        metric_name, features = found.search.found.metric, found.search.found.fingerprint.features
        print(f"{metric_name}, {found.rounds[-1].count} images a plan in the last of {len(found.rounds)} rounds")
        compared: dict[str, dict[str, object]] = {}
        for seeds, both in (("search", found.search), ("fresh", found.fresh)):
            print(f"\n{seeds} seeds, {both.found.fingerprint.seeds}")
            about: dict[str, object] = {"seeds": both.found.fingerprint.seeds}
            scores = {"found": both.found, "usual": both.usual}
            for name, score in scores.items():
                print(f"{score.value:9.3f}  [{score.low:.3f}, {score.high:.3f}]  {name}")
                about[name] = {"value": score.value, "low": score.low, "high": score.high}
            value, low, high = both.difference, both.interval.low, both.interval.high
            print(f"{value:+9.3f}  [{low:+.3f}, {high:+.3f}]  found less usual, paired")
            compared[seeds] = about | {"difference": {"value": value, "low": low, "high": high}}
        fresh = found.fresh.interval
        verdict = "better" if fresh.high < 0 else "worse" if fresh.low > 0 else "not significantly different"
        print(f"On fresh seeds the plan that was found is {verdict}.")
        rounds = [
            {"images": one.count, "scores": {names[plan]: value for plan, value in one.values.items()}}
            for one in found.rounds
        ]
        record = {"metric": metric_name, "found": names[found.plan], "features": features, "usual": names[found.usual]}
        record_file = self.out.with_suffix(".search.json")
        write_whole(record_file, json.dumps(record | {"rounds": rounds} | compared, indent=1) + "\n")
        write_plans(self.out, [(names[plan], plan) for plan in dict.fromkeys((found.plan, found.usual))])


@dataclass(frozen=True)
class Calibrate(Ranged):
    """Measure a run's covariance table, for the samplers covariance-table, covariance-jvp and addim-table."""

    run_dir: RunDir
    images: Annotated[int, Range(2, 10_000_000)] = 128
    """Number of training images."""
    rings: Rings = 12
    """Frequency bands of a channel."""
    workers: Workers = 1
    device: Device = None
    json: AsJson = False

    def run(self) -> None:
        from dualrate.drawing.calibration import calibrate
        from dualrate.runs.store import COVARIANCE
        from dualrate.sampling.covariance import TRUSTED
        from dualrate.system.workers import mapper

        model, progress = loaded(self.run_dir, self.device)
        with mapper(self.workers, model.device) as over:
            table = calibrate(model, images=self.images, rings=self.rings, progress=progress, mapper=over)
        trust = table.trust()
        if self.json:
            rows = [{"age": age, "ratio": ratio, "trusted": trusted} for age, ratio, trusted in trust]
            print(json.dumps({"ages": rows, "below": table.below, "above": table.above}))
            return
        print("Covariance by the derivative over that of the table, by age of the context in log-SNR.")
        print(f"Outside [{TRUSTED[0]}, {TRUSTED[1]}] the table is used.\n")
        print(f"{'age':>5}  {'median ratio':>12}  {'trusted':>7}")
        for age, ratio, trusted in trust:
            print(f"{age:>5}  {ratio:12.2f}  {trusted:7.0%}")
        print(f"\n{self.run_dir / COVARIANCE}")
