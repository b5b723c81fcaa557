"""`dualrate plan`: the best plan for a budget.

`dualrate plan --search`: a plan found by measuring.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from dualrate.cli.console import loaded
from dualrate.cli.recipe import Compile, Device, Graphs, RunDir, Workers
from dualrate.config.imports import import_named
from dualrate.config.ranges import BatchSize, HeavyCalls, Images, Minutes, Probability, Range, Ranged, Steps, checked
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.values import Reuse
from dualrate.drawing.choice import Choice
from dualrate.drawing.plan_search import Candidate
from dualrate.experiment.experiment import Model
from dualrate.runs.store import called_by, check_denoiser, is_run
from dualrate.sampling.catalogue import ANCESTRAL
from dualrate.sampling.cost import CallCost
from dualrate.sampling.grids import check_grid
from dualrate.system.files import write_whole
from dualrate.system.progress import Reporter

if TYPE_CHECKING:
    from dualrate.drawing.plan_search import Compared, Findings


@dataclass(frozen=True)
class SearchOptions(Ranged):
    """A search by measuring."""

    search: bool = False
    """Search the grid of times and the first heavy call by drawing images: for one number of --steps, at --heavy calls,
    of a single network too. Says the score of what it finds on its own seeds, and on fresh ones."""
    heavy: HeavyCalls | None = None
    """H, heavy calls per image, of --search; as `dualrate sample` has it if not given."""
    sampler: str | None = None
    """Of --search; as `dualrate sample` has it if not given."""
    gamma: Probability | None = None
    """Noise level of the sampler."""
    minutes: Minutes | None = None
    """Of --search, 60 if not given; what they do not suffice for, the same command does next time. Without --search of
    measuring errors, 2 if not given: the grid is as fine as they allow."""

    @property
    def given(self) -> list[str]:
        """Options that mean something to a search alone, and were given."""
        return [f"--{name}" for name in ("heavy", "sampler", "gamma") if getattr(self, name) is not None]

    def choice(self, steps: int | None) -> Choice:
        import_named("sampler", self.sampler)
        return Choice(steps, self.heavy, self.sampler, self.gamma)


def run_search(
    model: Model,
    steps: int | None,
    options: SearchOptions,
    out: Path,
    *,
    features: Path | None,
    progress: Reporter,
    **effort: Any,
) -> None:
    """Searches, prints what was found, and writes `out`, and beside it a picture and what was measured.

    effort: num, grid, images, batch_size and mapper of a `search`
    """
    from dualrate.drawing.evaluator import evaluator
    from dualrate.drawing.measure import OutOfTime
    from dualrate.drawing.plan_search import search
    from dualrate.report.figures import plan_figure, png

    judge = evaluator(model.experiment.data, features=features, progress=progress)
    keep, seconds = out.with_suffix(".search"), 60 * (60 if options.minutes is None else options.minutes)
    try:
        found = search(model, options.choice(steps), judge, keep, seconds=seconds, progress=progress, **effort)
    except OutOfTime as stop:
        progress.note(f"{stop}")
        raise SystemExit(75) from None
    print(_text(found))
    write_whole(out, found.plan.to_json() + "\n")
    write_whole(out.with_suffix(".search.json"), json.dumps(_record(found), indent=1) + "\n")
    shown = [(found.names[plan], plan) for plan in dict.fromkeys((found.plan, found.usual))]
    write_whole(out.with_suffix(".png"), png(plan_figure(shown)))
    print(f"\n{out}: {found.names[found.plan]}; {out.with_suffix('.png')}, {out.with_suffix('.search.json')}")


def _text(found: Findings) -> str:
    """The last round, then both scores of the plan that was found and of the usual one."""
    last = found.rounds[-1]
    ordered = sorted(last.values.items(), key=lambda item: item[1])
    return "\n".join(
        [
            f"{found.search.found.metric}, {last.count} images a plan in the last of {len(found.rounds)} rounds",
            *(f"{value:9.3f}  {found.names[plan]}" for plan, value in ordered),
            *_lines("seeds of the search, which flatter what was found on them", found.search),
            *_lines("fresh seeds", found.fresh),
            f"On fresh seeds what was found is {_search_verdict(found.fresh)} the usual plan.",
        ]
    )


def _lines(seeds: str, both: Compared) -> list[str]:
    scores = {"found": both.found, "usual": both.usual}
    interval = both.interval
    return [
        "",
        f"{seeds}, {both.found.fingerprint.seeds}",
        *(f"{score.value:9.3f}  [{score.low:.3f}, {score.high:.3f}]  {name}" for name, score in scores.items()),
        f"{both.difference:+9.3f}  [{interval.low:+.3f}, {interval.high:+.3f}]  found less usual, paired",
    ]


def _search_verdict(both: Compared) -> str:
    """Of what was found, by the interval of the paired difference."""
    if both.interval.high < 0:
        return "better than"
    return "worse than" if both.interval.low > 0 else "not told apart from"


def _record(found: Findings) -> dict[str, Any]:
    """All that was measured, for JSON."""

    def both(compared: Compared) -> dict[str, Any]:
        scores = {"found": compared.found, "usual": compared.usual}
        return {
            "seeds": compared.found.fingerprint.seeds,
            **{name: {"value": s.value, "low": s.low, "high": s.high} for name, s in scores.items()},
            "difference": {"value": compared.difference, "low": compared.interval.low, "high": compared.interval.high},
        }

    return {
        "metric": found.search.found.metric,
        "features": found.search.found.fingerprint.features,
        "found": found.names[found.plan],
        "usual": found.names[found.usual],
        "search": both(found.search),
        "fresh": both(found.fresh),
        "rounds": [
            {"images": one.count, "scores": {found.names[plan]: value for plan, value in one.values.items()}}
            for one in found.rounds
        ],
    }


GRID = 64  # the finest, where none is given


DENOISER = (
    "What calls the networks: shared-encoder, deep-cache or fora of a single one; package.module:name of your own; or "
    "another run's directory, whose network makes the steps without a context; their own denoiser if not given."
)


@dataclass(frozen=True)
class PlanSearch(Ranged):
    """Find the best plan of a dual-rate model for a budget: how many steps, and where the heavy calls go.

    Of a single network: which steps another one makes, or where what it keeps is renewed (--denoiser).
    """

    run_dir: RunDir
    denoiser: Annotated[str | None, arg(help=DENOISER)] = None
    budget: str | None = None
    """Share of what a heavy call at every step of --grid costs, of 64 steps if that is not given: 0.25x of 64 steps is
    the cost of 16 heavy calls."""
    gmacs: Annotated[float, Range(0, 1_000_000_000, above=True)] | None = None
    """Budget in giga multiply-adds per image."""
    seconds: Annotated[float, Range(0, 1_000_000, above=True)] | None = None
    """Budget in seconds per image, at --batch-size on this machine."""
    switch_at: Probability | None = None
    """In place of a budget: the plan of one number of --steps, 32 if not given, in which another network makes those
    until this time, 1 for noise and 0 for data. Nothing is measured."""
    steps: tuple[Steps, ...] | None = None
    """Numbers of steps to choose from, parts of the grid; 8, 16, 32 and 64 if not given."""
    free_times: bool = False
    """Choose the times of the steps too, among those of the grid."""
    grid: Annotated[int, Range(1, 512)] | None = None
    """Steps of the grid on which errors are measured. If not given: 64, or 32, 16 or 8 where it would take longer than
    --minutes; one whose errors are known, or begun, is taken up."""
    spacing: str | None = None
    """Of the grid: equal steps in t if not given; log-snr, blend:0.5, karras as --grid of sample. If --grid is --steps,
    the plan has a sampler's own times."""
    images: Images = 128
    """Training images that errors are measured on."""
    ancestral: bool = False
    """Plan for ancestral sampling; else for solvers of second order, as the one that draws where none is named."""
    out: Path = Path("plan.json")
    """The plan, for --plan of sample and evaluate; a picture of it beside it."""
    num: Images = 1000
    """Images per plan of --search in its last round, and as many on fresh seeds."""
    by_search: Annotated[SearchOptions, arg(name="")] = SearchOptions()
    features: Path | None = None
    """Directory of the feature net of --search; the data set's own if not given."""
    batch_size: BatchSize = 64
    """Images at a time where calls are timed, for --seconds, and where a search draws."""
    workers: Workers = 1
    compile: Compile = False
    graphs: Graphs = False
    device: Device = None

    def run(self) -> None:
        from dualrate.drawing.plan_search import candidates, fitting_grid, measured_errors, require_plannable
        from dualrate.planning.planner import Planner
        from dualrate.system.workers import mapper

        if self.by_search.search:
            self._search()
            return
        grids = self._checked()
        model, progress = loaded(self.run_dir, self.device, compiled=self.compile, graphs=self.graphs)
        if not model.serves.any_plan:
            raise ValueError(f"{self.run_dir} is a distilled student, whose plan was set before it was trained")
        model = called_by(model, self.denoiser)
        process = model.gaussian  # before anything is measured
        if self.switch_at is not None:
            self._switched(model)
            return
        require_plannable(model)
        if self.ancestral and model.denoiser.reuse is Reuse.SMOOTH:
            raise ValueError(f"{self.denoiser} wants a smooth path, and ancestral sampling is none: drop --ancestral")
        costs, budget, unit = self._budget(model)
        how = {"images": self.images, "spacing": self.spacing or "t", "progress": progress}
        grid = fitting_grid(model, grids, minutes=self.by_search.minutes, **how)
        with mapper(self.workers, model.device, progress.note) as over:
            errors = measured_errors(model, grid=grid, mapper=over, **how)
        planner = Planner(errors, process, model.experiment.method.weighting, order=1 if self.ancestral else 2)
        found = candidates(planner, costs, budget, self._steps(grid), free_times=self.free_times)
        if self.budget is not None:
            whole = f"{self.grid or GRID} heavy calls, {budget / self._share:.4g} {unit}"
            print(f"{self.budget} of {whole}: {budget:.4g} {unit}\n")
        print(_table(found, unit))
        self._write([(f"{c.planned.plan.num_steps}/{c.planned.plan.num_heavy}", c.planned.plan) for c in found])

    def _search(self) -> None:
        """Raises ValueError for options that mean nothing to a search, and for more than one number of steps."""
        from dualrate.system.workers import mapper

        if self.ancestral:
            raise ValueError("a search draws by a sampler: say --sampler ancestral in place of --ancestral")
        if self.switch_at is not None:
            raise ValueError("--switch-at says the plan, and --search looks for one: drop one of the two")
        if self.denoiser is not None:
            raise ValueError(f"a search is of a model as it was trained: drop --denoiser {self.denoiser}, or --search")
        others = ("budget", "gmacs", "seconds", "free_times", "spacing")
        if given := [f"--{name.replace('_', '-')}" for name in others if getattr(self, name)]:
            raise ValueError(
                f"--search is at given --steps and --heavy calls, not a budget: drop {' and '.join(given)}"
            )
        if self.steps is not None and len(self.steps) != 1:
            raise ValueError(f"--search is for one number of --steps, got {' '.join(map(str, self.steps))}")
        self._check_out()
        model, progress = loaded(self.run_dir, self.device, compiled=self.compile, graphs=self.graphs)
        _ = model.gaussian  # before a feature net is trained
        counts = {"num": self.num, "grid": self.grid or GRID, "images": self.images, "batch_size": self.batch_size}
        steps = self.steps[0] if self.steps else None
        with mapper(self.workers, model.device, progress.note) as over:
            how = {"features": self.features, "progress": progress, "mapper": over, **counts}
            run_search(model, steps, self.by_search, self.out, **how)

    def _switched(self, model: Model) -> None:
        steps = self.steps[0] if self.steps else None
        sampler = ANCESTRAL if self.ancestral else None
        plan = Choice(steps, sampler=sampler, grid=self.spacing, switch_at=self.switch_at).step_plan(model)
        self._write([(f"{plan.num_steps}/{plan.num_heavy}", plan)])
        cost = model.call_cost.of(plan.num_steps, plan.num_heavy, plan.num_alone) / 1e9
        print(f"{plan.num_alone} steps until t = {self.switch_at:g} without a context; {cost:.4g} GMACs an image")

    def _write(self, shown: list[tuple[str, StepPlan]]) -> None:
        """The first plan, and a picture of all. shown: with names."""
        from dualrate.report.figures import plan_figure, png

        best = shown[0][1]
        write_whole(self.out, best.to_json() + "\n")
        write_whole(self.out.with_suffix(".png"), png(plan_figure(shown)))
        print(f"\n{self.out}: {best.num_steps} steps, {best.num_heavy} heavy calls; {self.out.with_suffix('.png')}")

    def _check_out(self) -> None:
        if self.out.suffix != ".json":
            raise ValueError(f"--out is a .json file, whose picture is written beside it as .png, got {self.out}")
        self.out.parent.mkdir(parents=True, exist_ok=True)

    def _checked(self) -> list[int]:
        """The grids to choose from, the finest first.

        Raises ValueError for options that could only fail later, after the measuring.
        """
        if self.by_search.given:
            given = " and ".join(self.by_search.given)
            raise ValueError(f"{given} without --search means nothing: add --search, or drop it")
        if not is_run(self.denoiser):
            import_named("denoiser", self.denoiser)
        check_denoiser(self.denoiser)
        check_grid(self.spacing or "t")
        if self.budget is not None:
            _ = self._share
        if len([value for value in (self.budget, self.gmacs, self.seconds, self.switch_at) if value is not None]) != 1:
            raise ValueError(
                "say what the plan may cost by one of --budget 0.25x, --gmacs 3 and --seconds 0.05, or where networks "
                "are switched by --switch-at 0.6"
            )
        if self.switch_at is not None:
            self._check_switch()
            self._check_out()
            return []
        self._check_out()
        usual = (GRID, GRID // 2, GRID // 4, GRID // 8) if self.grid is None else (self.grid,)
        fits = [grid for grid in usual if len(self._steps(grid)) >= len(self.steps or (1,))]
        if not fits:
            raise ValueError(
                f"--steps are divisors of --grid {self.grid or GRID}, or any number below it with --free-times, got "
                f"{' '.join(map(str, self.steps or ())) or 'none'}"
            )
        return fits

    def _check_switch(self) -> None:
        """Raises ValueError for what means nothing where a plan is switched at a time."""
        given = [f"--{name.replace('_', '-')}" for name in ("grid", "free_times") if getattr(self, name)]
        if given:
            raise ValueError(f"--switch-at says the plan, and nothing is measured: drop {' and '.join(given)}")
        if self.steps is not None and len(self.steps) != 1:
            raise ValueError(f"--switch-at is for one number of --steps, got {' '.join(map(str, self.steps))}")

    def _steps(self, grid: int) -> tuple[int, ...]:
        """The numbers of steps that a grid has plans of, of those that are asked for."""
        asked = self.steps or (8, 16, 32, 64)
        return tuple(n for n in asked if n <= grid and (self.free_times or not grid % n))

    def _budget(self, model: Model) -> tuple[CallCost, float, str]:
        """Costs of calls and the budget in one unit, and the unit's name."""
        from dualrate.drawing.measure import call_seconds

        if self.seconds is not None:
            return call_seconds(model, self.batch_size), self.seconds, "s"
        macs = model.call_cost
        alone = None if macs.alone is None else macs.alone / 1e9
        costs = CallCost(macs.heavy / 1e9, macs.light / 1e9, macs.own, macs.decode / 1e9, alone=alone)
        if self.gmacs is not None:
            return costs, self.gmacs, "GMACs"
        return costs, self._share * ((self.grid or GRID) * costs.heavy + costs.decode), "GMACs"

    @property
    def _share(self) -> float:
        try:
            share = float((self.budget or "").removesuffix("x"))
        except ValueError as error:
            raise ValueError(f"--budget is a share such as 0.25x, got {self.budget!r}") from error
        return checked("--budget", share, Annotated[float, Range(0, 10, above=True)])


def _table(found: list[Candidate], unit: str) -> str:
    """Candidates, best first."""
    lines = [f"{'N':>4} {'H':>4} {'alone':>5} {unit:>8}  objective  even spread"]
    for candidate in found:
        plan = candidate.planned.plan
        even = "-" if candidate.even is None else f"{candidate.even:.5f}"
        counts = f"{plan.num_steps:4} {plan.num_heavy:4} {plan.num_alone:5} {candidate.cost:8.3g}"
        lines.append(f"{counts}  {candidate.planned.objective:9.5f}  {even:>11}")
    lines.append("alone: steps without a context, by the light network or the other run's")
    lines.append("objective: weighted errors of x_hat summed over the steps; not a likelihood, nor a score")
    return "\n".join(lines)
