"""Entries of the command line, and the contenders each stands for: its plans under samplers.

    RUN                     the usual plans of that kind of model
    RUN:32                  32 steps; a dual-rate model with its usual number of heavy calls
    RUN:32/8                32 steps, 8 heavy calls. Of a single network: its encoder shared between steps
    RUN:plan.json           a plan, as `dualrate plan` writes it
    RUN:32@ddim             under a sampler; if none is named, a student's own, DPM-Solver++ 2M for a smooth path, or
                            ancestral
    RUN:32/8@ancestral:0.5  at a noise level gamma other than 0
    RUN:32@mypkg.steps:Mine under a step of another package
    RUN+taylor:32/8, RUN+mypkg.caches:Mine:32/8    called by another denoiser (denoisers/catalogue.py)
    RUN+LIGHT:32/20         the first 12 of 32 steps by the network of another run, LIGHT (denoisers/duodiff.py)
    RUN+LIGHT:32            where a time of the switch is given: those that start before it
    RUN+OTHER:plan.json     the steps without a context by another run's network; RUN may be dual-rate, too
    RUN,RUN,RUN:32          trainings of one network from different seeds, one line of the report

Costs of different networks meet on the rungs of a ladder: so many calls of the dearest network per image.

The rivals of two rates: a trained single network under every denoiser of the catalogue, and after every lighter one
that is compared (DuoDiff, T-Stitch); trained exits at some thresholds.

Speculation is none of them: its images are those of the heavy network, its steps another sampler's
(contrib/speculative.py), and what it saves is time alone.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dualrate.compare.contender import Contender
from dualrate.compare.work import MeasuredContender
from dualrate.config.imports import import_named
from dualrate.config.ranges import Probability, Ranged, Steps, checked
from dualrate.denoisers.catalogue import DENOISERS, refreshing
from dualrate.denoisers.denoiser import abilities
from dualrate.diffusion.plan import StepPlan, before
from dualrate.diffusion.process import GaussianProcess, Process
from dualrate.diffusion.values import Reuse
from dualrate.drawing.calibration import read_table
from dualrate.drawing.choice import GAMMA, RECOMMENDED, SMOOTH, Choice, step_for
from dualrate.drawing.plan_search import SEED, are_errors_kept, measured_errors, read_plan
from dualrate.experiment.experiment import Model
from dualrate.experiment.plan_support import Serves
from dualrate.planning.planner import Planner, best_refreshes, similarities
from dualrate.report.table import Table, compute_unit, plan_of, scored, significant
from dualrate.runs.store import called_by, check_denoiser, is_run
from dualrate.sampling.catalogue import ANCESTRAL, SAMPLERS, Sampler, at_gamma, sampler_named
from dualrate.sampling.cost import CallCost
from dualrate.sampling.grids import grid_times
from dualrate.system.progress import Reporter

LADDER = (4, 8, 16, 32)  # costs of an image, in calls of the dearest network
MOST_STEPS = 256
DUAL_PLANS = ((8, 2), (12, 3), (16, 2), (16, 4), (16, 8), (32, 4), (32, 8), (64, 8))  # N, H
PLANNED_PLANS = ((8, 2), (16, 4), (32, 8))
SHARED_PLANS = ((8, 4), (16, 4), (16, 8), (32, 8), (32, 16))  # of what keeps features between steps
SWITCHED_PLANS = ((8, 6), (8, 4), (16, 12), (16, 8), (32, 24), (32, 16))  # the light network first, then the heavy one
SHARED_ENCODER = "shared-encoder"  # of a single network whose plan has fewer heavy calls than steps
SIMILARITY_IMAGES = 16
PLANNER_GRID, PLANNING_IMAGES = 64, 128  # of the planner


@dataclass(frozen=True)
class Entry(Ranged):
    """One argument of `dualrate compare`: [NAME=]RUN[,RUN...][+DENOISER][:PLAN][@SAMPLER[:GAMMA]].

    plan:  "32", "32/8", a file, or None
    again: further trainings of the run's network
    switch_at: of one after a light network, whose plan does not say which steps that makes: until which time
    """

    run: Path
    network: str
    plan: str | None = None
    sampler: str | None = None
    gamma: Probability | None = None
    denoiser: str | None = None
    again: tuple[Path, ...] = ()
    switch_at: Probability | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler is not None:
            sampler_named(self.sampler)
        check_denoiser(self.denoiser)
        if self.denoiser is not None and _has_table(self):
            raise ValueError(
                f"{self.sampler} has a table of the run's own denoiser, not of {self.denoiser}: name another sampler"
            )
        if self.plan is not None and not self.plan.endswith(".json"):
            self._counts()

    @staticmethod
    def parse(text: str) -> Entry:
        """An entry as it is written on a command line, where package.module:name is imported.

        Raises ValueError for a run that is not there, a plan or a gamma that is none, or a sampler nobody knows.
        """
        text = re.sub(r"(?<![^=,+:])~(?=/)", str(Path.home()), text)  # of each part, as a shell does of the first
        name, equals, rest = ("", "", text) if Path(text).is_dir() else text.partition("=")
        name, rest = (name, rest) if equals else ("", text)
        rest, _, sampler = rest.partition("@")
        *others, last = [rest] if Path(rest).is_dir() else rest.split(",")
        run, denoiser, plan = _parts(last)
        missing = [path for path in (*others, run) if not path or not Path(path).is_dir()]
        if missing:
            raise ValueError(
                f"there is no run {missing[0] or rest!r}: an entry is RUN, RUN:32/8, RUN:plan.json, RUN,RUN:32 or "
                f"RUN+DENOISER:32/8, got {text!r}"
            )
        sampler, gamma = at_gamma(sampler)
        import_named("sampler", sampler)
        if not is_run(denoiser):
            import_named("denoiser", denoiser)
        path, *again = map(Path, (*others, run))
        return Entry(path, name or path.resolve().name, plan or None, sampler or None, gamma, denoiser, tuple(again))

    def named_contender(self, loaded: Model) -> Contender:
        """The contender of an entry that names a plan. Raises ValueError for a plan that is none."""
        assert self.plan is not None
        if self.plan.endswith(".json"):
            plan = read_plan(Path(self.plan))
            entry = self._shared(loaded, plan.num_steps, plan.num_heavy)
            model = called_by(loaded, entry.denoiser)
            return entry.contender(plan, entry._sampler(model), note=Path(self.plan).stem)
        steps, heavy = self._counts()
        if self.is_switched:
            return after_light(self, called_by(loaded, self.denoiser), steps, heavy)
        heavy = loaded.serves.default_heavy(steps) if heavy is None else heavy
        entry = self._shared(loaded, steps, heavy)
        model = called_by(loaded, entry.denoiser)
        if heavy < steps and model.denoiser.reuse is Reuse.SMOOTH:
            return cached(entry, model, steps, heavy)
        sampler = entry._sampler(model)
        ages = heavy < steps and model.denoiser.reuse is not Reuse.FREE
        grid = "t" if ages else sampler_named(sampler).grid
        return entry.contender(model.serves.spread(grid_times(grid, model.process.schedule, steps), heavy), sampler)

    def _sampler(self, model: Model) -> str:
        """Of a plan that is named. model: as the entry calls it."""
        usual = SMOOTH if model.denoiser.reuse is Reuse.SMOOTH else ANCESTRAL
        return self.sampler or model.serves.sampler or usual

    def _shared(self, loaded: Model, steps: int, heavy: int) -> Entry:
        """With the encoder shared, where a single network is to run at fewer calls than steps."""
        alone = self.denoiser is None and not loaded.reuses_context
        return replace(self, denoiser=SHARED_ENCODER) if alone and heavy < loaded.serves.default_heavy(steps) else self

    def contender(
        self, plan: StepPlan, sampler: str | None = None, gamma: float | None = None, note: str = ""
    ) -> Contender:
        """Of a plan, under its own sampler and gamma if none is given."""
        network, name = self.network, sampler or self.sampler or ANCESTRAL
        if self.is_switched:
            network += f" after {Path(str(self.denoiser)).resolve().name}"
        elif self.denoiser is not None:
            network += f", {self.denoiser.rpartition(':')[2].replace('-', ' ')}"
        noise = (self.gamma or 0.0) if gamma is None else gamma
        return Contender(self.run, network, name, plan, noise, note, self.denoiser)

    def _counts(self) -> tuple[int, int | None]:
        """Steps and heavy calls of a plan that is no file. Raises ValueError for one that is none."""
        steps, _, heavy = (self.plan or "").partition("/")
        if not (steps.isdecimal() and (heavy or "0").isdecimal()):
            raise ValueError(f"{self.plan!r} is no plan: 32 (steps), 32/8 (steps/heavy calls), or a .json file")
        return checked("the number of steps", int(steps), Steps), int(heavy) if heavy else None

    @property
    def is_switched(self) -> bool:
        """Whether another run's network makes its first steps."""
        return is_run(self.denoiser)

    @property
    def switches(self) -> bool:
        """Whether another run's network makes its first steps, and its plan leaves open how many."""
        return self.is_switched and "/" not in (self.plan or "") and not (self.plan or "").endswith(".json")

    def samplers(self, process: Process) -> dict[str, Sampler]:
        """The one that was asked for, or the usual ones, of those that there are for this process.

        Raises ValueError for one that was asked for and is for another process.
        """
        if self.sampler is not None:
            named = sampler_named(self.sampler)
            named.require(process)
            return {self.sampler: named}
        return {name: sampler for name, sampler in SAMPLERS.items() if sampler.usual and sampler.fits(process)}

    def gammas(self, sampler: Sampler) -> tuple[float, ...]:
        """The noise level that was asked for, or the usual ones."""
        return sampler.gammas if self.gamma is None else (self.gamma,)


def usual_single(entry: Entry, model: Model, calls: Sequence[int]) -> list[Contender]:
    """A model whose context never grows old under every sampler: a single network, a dual-rate decoder.

    calls: of the network that runs at every step, per image, one number a rung of the ladder
    """
    schedule, found = model.process.schedule, []
    for rung, count in zip(LADDER, calls, strict=True):
        for name, sampler in entry.samplers(model.process).items():
            steps = sampler.step.most_steps(count)
            if steps < 3 or rung > sampler.longest:
                continue
            plan = StepPlan.spread(grid_times(sampler.grid, schedule, steps), model.serves.default_heavy(steps))
            found += [entry.contender(plan, name, gamma) for gamma in entry.gammas(sampler)]
    return found


def cached(entry: Entry, model: Model, steps: int, heavy: int, *, even: bool = False) -> Contender:
    """A denoiser that keeps features between steps, refreshed where these have changed most. model: called by it.

    even: refreshed evenly instead, as those are that the catalogue says it of
    """
    sampler = entry.sampler or SMOOTH
    times = grid_times(sampler_named(sampler).grid, model.process.schedule, steps)
    plan = StepPlan.spread(times, heavy)
    if not (even or refreshing(entry.denoiser).even):
        seeds = range(SEED, SEED + SIMILARITY_IMAGES)
        labels = [seed % model.num_classes for seed in seeds] if model.num_classes else None
        step = step_for(model, StepPlan.spread(times), sampler, entry.gamma or None)
        like = similarities(model.denoiser, step, times, model.shape, seeds, labels, device=model.device)
        plan = StepPlan.at(times, best_refreshes(like, heavy))
    return entry.contender(plan.renewing(abilities(model.denoiser).between), sampler)


def after_light(entry: Entry, model: Model, steps: int, heavy: int | None) -> Contender:
    """The light network's steps, then the heavy one's, on the sampler's own times. model: both.

    Raises ValueError where nothing says how many steps each makes.
    """
    sampler = entry.sampler or ANCESTRAL
    times = grid_times(sampler_named(sampler).grid, model.process.schedule, steps)
    if heavy is None and entry.switch_at is not None:
        heavy = steps - before(times, entry.switch_at)
    if heavy is None or heavy > steps:
        raise ValueError(
            f"of {model.name} say how many of the {steps} steps are the heavy network's: {steps}/{steps // 2}, got "
            f"{entry.plan}; or when it takes over, by --switch-at"
        )
    return entry.contender(StepPlan.late(times, heavy, steps - heavy), sampler)


def _parts(text: str) -> tuple[str, str | None, str]:
    """Run, denoiser and plan of RUN[+DENOISER][:PLAN]; a denoiser of another package has a colon of its own."""
    if Path(text).is_dir():
        return text, None, ""
    run, plus, rest = text.partition("+")
    if plus and Path(run).is_dir():
        words = rest.split(":")
        size = 2 if words[0] not in DENOISERS and words[1:2] and words[1].isidentifier() else 1
        return run, ":".join(words[:size]), ":".join(words[size:])
    run, _, plan = text.rpartition(":")
    return run, None, plan


def _has_table(entry: Entry) -> bool:
    return entry.sampler is not None and sampler_named(entry.sampler).of_table is not None


def usual_switched(entry: Entry, model: Model) -> list[Contender]:
    """A light network before a heavy one, under the sampler that is named or the one recommended. model: both."""
    fits = sampler_named(RECOMMENDED).fits(model.process)
    named = entry if entry.sampler is not None or not fits else replace(entry, sampler=RECOMMENDED, gamma=GAMMA)
    if entry.switch_at is not None:
        return [after_light(named, model, steps, None) for steps in dict(SWITCHED_PLANS)]
    return [after_light(named, model, steps, heavy) for steps, heavy in SWITCHED_PLANS]


def usual_dual(entry: Entry, model: Model, planner: Planner | None) -> list[Contender]:
    """A dual-rate model with even, planned, and late heavy calls; the last two under the last sampler and gamma.

    Without a planner none are planned. Late ones are those of `Choice`; a model whose context was never dropped in
    training gets none.
    """
    process = model.process
    samplers = {name: sampler for name, sampler in entry.samplers(process).items() if sampler.may_reuse(process)}

    def every(plan: StepPlan, note: str = "") -> list[Contender]:
        return [
            entry.contender(plan, name, gamma, note)
            for name, sampler in samplers.items()
            for gamma in entry.gammas(sampler)
        ]

    even = [model.serves.spread(StepPlan.uniform(steps).t, heavy) for steps, heavy in DUAL_PLANS]
    planned = [planner.best(steps, heavy).plan for steps, heavy in PLANNED_PLANS] if planner else []
    late = [Choice(steps, heavy).step_plan(model) for steps, heavy in PLANNED_PLANS if model.serves.drops]
    return [
        *(one for plan in even for one in every(plan)),
        *(every(plan, "planned")[-1] for plan in planned if plan not in even),
        *(every(plan, "late")[-1] for plan in late),
    ]


def usual_student(entry: Entry, serves: Serves, calls: Sequence[int]) -> list[Contender]:
    """A distilled student under what it was distilled for: its own plan, and on the ladder what else it serves.

    Raises ValueError for another sampler than its own.
    """
    if entry.sampler not in (None, serves.sampler):
        raise ValueError(f"{entry.network} is a distilled student, for {serves.sampler} sampling: drop {entry.sampler}")
    return [entry.contender(plan, serves.sampler) for plan in serves.ladder(calls)]


def switched_at(entries: Sequence[Entry], time: float) -> list[Entry]:
    """With those after a light network switched at a time, unless their plan says where.

    Raises ValueError where there is none.
    """
    found = [replace(entry, switch_at=time) if entry.switches else entry for entry in entries]
    if found == list(entries):
        raise ValueError(
            f"no entry is switched at {time:g}: --switch-at is for a light network before a heavy one, RUN+LIGHT or "
            "RUN+LIGHT:32, whose plan does not say which steps it makes"
        )
    return found


def require_samplers(entries: Sequence[Entry], models: dict[Path, Model]) -> None:
    """Raises ValueError for a sampler that is for another process than its run's."""
    for entry in entries:
        _ = entry.samplers(models[entry.run].process)


def require_plans(entries: Sequence[Entry], models: dict[Path, Model]) -> None:
    """Raises ValueError for a dual-rate run beside another that makes some of its steps, where no plan says which."""
    for entry in entries:
        if entry.is_switched and models[entry.run].reuses_context and not (entry.plan or "").endswith(".json"):
            raise ValueError(
                f"{entry.network} has a light network of its own: which steps it leaves to {entry.denoiser} is said by "
                "a plan, as `dualrate plan RUN --denoiser OTHER` writes it: RUN+OTHER:plan.json"
            )


def require_markovian(entry: Entry, process: Process) -> None:
    """Raises ValueError for a sampler that may not reuse a context."""
    if not any(sampler.may_reuse(process) for sampler in entry.samplers(process).values()):
        others = [name for name, one in SAMPLERS.items() if one.fits(process) and one.may_reuse(process)]
        raise ValueError(
            f"{entry.network} reuses contexts, which {entry.sampler} cannot: name {' or '.join(others)}, or none"
        )


def contenders_of(
    entries: Sequence[Entry],
    models: dict[Path, Model],
    *,
    progress: Reporter,
    unplanned: Container[Entry] = (),
) -> list[Contender]:
    """What the entries stand for, none twice. models: by directory.

    unplanned: entries without those of their usual plans that have to be planned first, by calling the network
    Raises ValueError for plans that are none, or not for that kind of model.
    """
    costs = {run: model.call_cost for run, model in models.items()}
    dearest = max(max(cost.heavy, cost.light) for cost in costs.values())
    found: list[Contender] = []
    for entry in entries:
        loaded, cost = models[entry.run], costs[entry.run]
        model = called_by(loaded, entry.denoiser)
        if _has_table(entry):
            read_table(model)  # before any work, to refuse one that is not there
        if entry.plan is not None:
            found.append(replace(entry.named_contender(loaded), named=True))
            model.serves.check(found[-1].plan)
        elif entry.is_switched:
            found += usual_switched(entry, model)
        elif not model.serves.any_plan:
            found += usual_student(entry, model.serves, calls_of(cost.light, dearest))
        elif model.denoiser.reuse is Reuse.SMOOTH:
            even = entry in unplanned
            found += [cached(entry, model, steps, heavy, even=even) for steps, heavy in SHARED_PLANS]
        elif model.denoiser.reuse is Reuse.MARKOV:
            require_markovian(entry, model.process)
            planner = None
            if is_planned(model) and entry not in unplanned and refreshing(entry.denoiser).planned:
                errors = measured_errors(model, grid=PLANNER_GRID, images=PLANNING_IMAGES, progress=progress)
                planner = Planner(errors, model.gaussian, model.experiment.method.weighting, order=2)
            found += usual_dual(entry, model, planner)
        else:
            found += usual_single(entry, model, calls_of(cost.light, dearest, cost.heavy))
            if can_share_encoder(entry.run, models) and entry.denoiser is None and entry not in unplanned:
                progress.note(f"planning where the shared encoder of {entry.network} is refreshed")
                shared = replace(entry, denoiser=SHARED_ENCODER)
                found += [
                    cached(shared, model.with_denoiser(SHARED_ENCODER), steps, heavy) for steps, heavy in SHARED_PLANS
                ]
    if not found:
        raise ValueError("no plan is left to compare: the samplers named are not tried at these costs; name plans too")
    kept: dict[str, Contender] = {}
    for one in found:
        if one.named or one.key not in kept:
            kept[one.key] = one
    return list(kept.values())


def calls_of(network: float, dearest: float, once: float = 0) -> list[int]:
    """How often a network may be called for the cost of each rung of the ladder. Costs: MACs of a call.

    once: of what is called once an image besides
    """
    return [min(MOST_STEPS, max(1, round((rung * dearest - once) / network))) for rung in LADDER]


def can_share_encoder(run: Path, models: dict[Path, Model]) -> bool:
    """Whether a run is the dearest single network, of Gaussian noise, no decoder, and its middle has blocks to share,
    and one to spare.
    """
    single = [model.call_cost.light for model in models.values()]
    dearest = models[run].call_cost.light == max(single, default=0) and is_planned(models[run])
    networks = models[run].experiment.networks
    configs = networks.configs if networks.latent is None else {}
    return dearest and "model" in configs and configs["model"].levels[-1].blocks > 1


def is_planned(model: Model) -> bool:
    """Whether plans are found by the errors of its x_hat: of Gaussian noise alone."""
    return isinstance(model.process, GaussianProcess)


def planning_seconds(entry: Entry, models: dict[Path, Model], seconds: CallCost) -> float:
    """What finding an entry's usual plans takes. seconds: of calls of its model, per image."""
    if entry.plan is not None or entry.is_switched or refreshing(entry.denoiser).even:
        return 0.0
    model = called_by(models[entry.run], entry.denoiser)
    if not model.serves.any_plan:
        return 0.0
    similarity = SIMILARITY_IMAGES * sum(steps for steps, _ in SHARED_PLANS) * seconds.light
    if model.denoiser.reuse is Reuse.SMOOTH:
        return similarity
    if model.denoiser.reuse is Reuse.MARKOV:
        kept = is_planned(model) and are_errors_kept(model, grid=PLANNER_GRID, images=PLANNING_IMAGES)
        light = PLANNER_GRID * (PLANNER_GRID + 1) / 2
        calls = 2 * PLANNER_GRID * seconds.heavy + light * seconds.light  # errors, and the bend
        return PLANNING_IMAGES * calls if is_planned(model) and not kept else 0.0
    return similarity if entry.denoiser is None and can_share_encoder(entry.run, models) else 0.0


def rivals_of(entries: Sequence[Entry], models: dict[Path, Model], *, progress: Reporter) -> list[Entry]:
    """The dearest single network under every denoiser of the catalogue that takes it, and after lighter ones.

    Its encoder, shared, is a usual contender, so not among them. models: by directory.
    Raises ValueError where no such network stands alone among the entries.
    """
    usual = [entry for entry in entries if entry.plan is None and entry.denoiser is None]
    single = {entry: models[entry.run] for entry in usual if is_single(models[entry.run])}
    if not single:
        raise ValueError(
            "rivals are other ways to call a single network, and none is named without a plan: name its run, as in "
            "dualrate compare weights/fashion-mnist-heavy-annealed --rivals"
        )
    entry, model = max(single.items(), key=lambda pair: pair[1].call_cost.light)
    lighter = [str(other.run) for other, its in single.items() if its.call_cost.light < model.call_cost.light]
    wanted = [(entry, name) for name in DENOISERS if name != SHARED_ENCODER]
    wanted += [(entry, name) for name in lighter]
    found = []
    for one, name in wanted:
        try:
            called_by(models[one.run], name)
        except ValueError as error:
            progress.note(f"without {name}: {error}")
        else:
            found.append(replace(one, denoiser=name, sampler=None, gamma=None, again=()))
    return found


def is_single(model: Model) -> bool:
    """Whether one network runs at every step, whole, under any plan, and of nothing given."""
    alone = model.denoiser.reuse is Reuse.FREE
    return alone and model.serves.any_plan and model.experiment.networks.latent is None


def rivals_table(screened: Sequence[MeasuredContender]) -> Table:
    """A line per plan of a run that another denoiser calls, beside the run's own best for no more FLOPs."""
    plain = [one for one in screened if one.contender.denoiser is None]
    lines = sorted((one for one in screened if one.contender.denoiser), key=lambda one: one.row.macs)
    header = ("called by", "sampler", "plan", "FLOPs", "score", "the run itself", "FLOPs", "score")
    if not lines:
        return Table(header, (), ())
    prefix, unit = compute_unit([one.row.flops for one in lines])
    cells = []
    for one in lines:
        own = [other for other in plain if other.contender.run == one.contender.run and other.row.macs <= one.row.macs]
        best = min(own, key=lambda other: other.row.score.value, default=None)
        beside = ("-", "-", "-") if best is None else (f"{best.row.sampler} {plan_of(best.row)}", *_cells(best, unit))
        cells.append((one.row.network, one.row.sampler, plan_of(one.row), *_cells(one, unit), *beside))
    score = lines[0].row.score
    notes = (
        f"{prefix}FLOPs an image, and {score.metric} (lower is better) with its {100 * score.level:.0f}% interval, of "
        "the images of the screening; without training, but for exits, so what differs is how often which part of the "
        "network runs, or a lighter one in its place",
        "the run itself: the best of its plans and samplers for at most as many FLOPs, called as it is",
    )
    return Table(header, tuple(cells), notes)


def _cells(one: MeasuredContender, unit: float) -> tuple[str, str]:
    return significant(one.row.flops / unit), scored(one.row)
