"""What is compared: entries of the command line, and the plans each stands for.

    RUN                     the usual plans of that kind of model
    RUN:32                  32 steps; a dual-rate model with its usual number of heavy calls
    RUN:32/8                32 steps, 8 heavy calls. Of a single network: its encoder shared between steps (caching/)
    RUN:plan.json           a plan, as `dualrate plan` writes it
    RUN:32@ddim             under a sampler: ancestral if none is named, DPM-Solver++ 2M for a shared encoder
    RUN:32/8@ancestral:0.5  at a noise level gamma other than 0
    RUN:32@mypkg.steps:Mine under a step of another package

Costs of different networks meet on the rungs of a ladder: so many calls of the dearest network per image.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dualrate.config.ranges import Probability, Ranged, SharedBlocks, Steps, checked
from dualrate.denoisers.shared_encoder import SharedEncoder
from dualrate.diffusion.plan import StepPlan
from dualrate.experiments.experiment import Model
from dualrate.experiments.serves import Serves
from dualrate.machine.progress import Progress
from dualrate.measuring.calibration import read_table, step_for
from dualrate.measuring.planning import SEED, CallCosts, are_errors_kept, call_macs, measured_errors, read_plan
from dualrate.networks.uvit import UViT
from dualrate.planning.planner import Planner
from dualrate.planning.similarity import best_refreshes, similarities
from dualrate.sampling.catalogue import ANCESTRAL, SAMPLERS, Sampler, sampler_named
from dualrate.sampling.grids import grid_times
from dualrate.sampling.step import Step

LADDER = (4, 8, 16, 32)  # costs of an image, in calls of the dearest network
MOST_STEPS = 256
DUAL = ((8, 2), (12, 3), (16, 2), (16, 4), (16, 8), (32, 4), (32, 8), (64, 8))  # N, H
PLANNED = ((8, 2), (16, 4), (32, 8))
SHARED = ((8, 4), (16, 4), (16, 8), (32, 8))
SMOOTH = "dpm++2m"  # of a shared encoder, where none is named
SIMILARITY_IMAGES = 16
GRID, PLANNING_IMAGES = 64, 128  # of the planner


@dataclass(frozen=True)
class Contender(Ranged):
    """A model under a sampler and a plan.

    run:     directory of the model
    network: what its line is called
    gamma:   noise level of a sampler with noise
    note:    what is special about the plan, empty if nothing
    split:   blocks of a single network's middle that steps share; None: none
    asked:   named by the user, plan and all, so measured on the front in any case
    """

    run: Path
    network: str
    sampler: str
    plan: StepPlan
    gamma: Probability = 0.0
    note: str = ""
    split: SharedBlocks | None = None
    asked: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        sampler_named(self.sampler)

    @property
    def key(self) -> str:
        """A file name, different for every contender; networks have different names."""
        says = f"{self.network} {self.split} {self.gamma} {self.plan.to_json()}"
        digest = hashlib.sha256(says.encode()).hexdigest()[:8]
        name = re.sub(r"[^\w.-]+", "-", self.network)
        return f"{name}-{self.plan.num_steps}-{self.plan.num_heavy}-{self.sampler.replace(':', '-')}-{digest}"

    def step(self, model: Model) -> Step:
        return step_for(model, self.plan, self.sampler, self.gamma or None)

    def model(self, loaded: Model) -> Model:
        """The loaded model as this contender calls it."""
        if self.split is None:
            return loaded
        network = loaded.networks.get_submodule("model")
        assert isinstance(network, UViT)
        denoiser = SharedEncoder(network, loaded.process, self.split)
        return replace(loaded, denoiser=denoiser, weights_hash=f"{loaded.weights_hash} shared to {self.split}")


def split_of(network: UViT) -> int:
    """The blocks that are shared: five in six of the middle's, at least one (dev/LOG.md has why)."""
    return max(1, network.config.levels[-1].blocks * 5 // 6)


@dataclass(frozen=True)
class Entry(Ranged):
    """One argument of `dualrate compare`: [NAME=]RUN[:PLAN][@SAMPLER[:GAMMA]].

    plan: "32", "32/8", a file, or None
    """

    run: Path
    network: str
    plan: str | None = None
    sampler: str | None = None
    gamma: Probability | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler is not None:
            sampler_named(self.sampler)
        if self.plan is not None and not self.plan.endswith(".json"):
            self._counts()

    @staticmethod
    def parse(text: str) -> Entry:
        """Raises ValueError for a run that is not there, a plan or a gamma that is none, or a sampler nobody knows."""
        name, equals, rest = ("", "", text) if Path(text).is_dir() else text.partition("=")
        name, rest = (name, rest) if equals else ("", text)
        rest, _, sampler = rest.partition("@")
        run, _, plan = (rest, "", "") if Path(rest).is_dir() else rest.rpartition(":")
        if not Path(run).is_dir() or not run:
            raise ValueError(
                f"there is no run {run or rest!r}: an entry is RUN, RUN:32/8 or RUN:plan.json, got {text!r}"
            )
        head, _, tail = sampler.rpartition(":")
        is_gamma = tail.replace(".", "", 1).isdecimal()
        if head in SAMPLERS and not is_gamma:
            raise ValueError(f"there is no noise level {tail!r}: {head}:0.5 is {head} at gamma 0.5, got {text!r}")
        sampler, gamma = (head, float(tail)) if head and is_gamma else (sampler, None)
        path = Path(run)
        return Entry(path, name or path.resolve().name, plan or None, sampler or None, gamma)

    def asked(self, model: Model, device: torch.device) -> Contender:
        """The contender of an entry that names a plan. Raises ValueError for a plan that is none."""
        assert self.plan is not None
        sampler = self.sampler or ANCESTRAL
        if self.plan.endswith(".json"):
            plan, name = read_plan(Path(self.plan)), Path(self.plan).stem
            if plan.num_heavy < plan.num_steps and not model.reuses_context:
                return replace(sharing(self, model, plan), note=name)
            return Contender(self.run, self.network, sampler, plan, self.gamma or 0.0, name)
        steps, heavy = self._counts()
        calls = model.serves.default_heavy(steps) if heavy is None else heavy
        if calls < steps and not model.reuses_context:
            return shared(self, model, steps, calls, device)
        grid = sampler_named(sampler).grid if calls == steps else "t"
        plan = StepPlan.spread(grid_times(grid, model.process.schedule, steps), calls)
        return Contender(self.run, self.network, sampler, plan, self.gamma or 0.0)

    def _counts(self) -> tuple[int, int | None]:
        """Steps and heavy calls of a plan that is no file. Raises ValueError for one that is none."""
        steps, _, heavy = (self.plan or "").partition("/")
        if not (steps.isdecimal() and (heavy or "0").isdecimal()):
            raise ValueError(f"{self.plan!r} is no plan: 32 (steps), 32/8 (steps/heavy calls), or a .json file")
        return checked("the number of steps", int(steps), Steps), int(heavy) if heavy else None

    @property
    def samplers(self) -> dict[str, Sampler]:
        """The one that was asked for, or the usual ones."""
        if self.sampler is not None:
            return {self.sampler: sampler_named(self.sampler)}
        return {name: sampler for name, sampler in SAMPLERS.items() if sampler.usual}

    def gammas(self, sampler: Sampler) -> tuple[float, ...]:
        """The noise level that was asked for, or the usual ones."""
        return sampler.gammas if self.gamma is None else (self.gamma,)


def usual_single(entry: Entry, model: Model, calls: Sequence[int]) -> list[Contender]:
    """A single network under every sampler. calls: of the network per image, one number a rung of the ladder."""
    schedule, found = model.process.schedule, []
    for rung, count in zip(LADDER, calls, strict=True):
        for name, sampler in entry.samplers.items():
            steps = sampler.step.most_steps(count)
            if steps < 3 or rung > sampler.longest:
                continue
            plan = StepPlan.spread(grid_times(sampler.grid, schedule, steps))
            found += [Contender(entry.run, entry.network, name, plan, gamma) for gamma in entry.gammas(sampler)]
    return found


def shared(entry: Entry, model: Model, steps: int, heavy: int, device: torch.device) -> Contender:
    """A single network's encoder shared, refreshed where its features have changed most."""
    _refuse_table(entry)
    network = model.networks.get_submodule("model")
    assert isinstance(network, UViT)
    sampler = entry.sampler or SMOOTH
    times = grid_times(sampler_named(sampler).grid, model.process.schedule, steps)
    seeds = range(SEED, SEED + SIMILARITY_IMAGES)
    labels = [seed % model.num_classes for seed in seeds] if model.num_classes else None
    denoiser = SharedEncoder(network, model.process, split_of(network))
    step = step_for(model, StepPlan.spread(times), sampler, entry.gamma or None)
    like = similarities(denoiser, step, times, model.shape, seeds, labels, device=device)
    return sharing(entry, model, StepPlan.at(times, best_refreshes(like, heavy)))


def sharing(entry: Entry, model: Model, plan: StepPlan) -> Contender:
    """A single network's encoder shared under a plan."""
    network = model.networks.get_submodule("model")
    assert isinstance(network, UViT)
    name, sampler, gamma = f"{entry.network}, shared encoder", entry.sampler or SMOOTH, entry.gamma or 0.0
    _refuse_table(entry)
    return Contender(entry.run, name, sampler, plan, gamma, split=split_of(network))


def _refuse_table(entry: Entry) -> None:
    if _has_table(entry):
        raise ValueError(
            f"{entry.sampler} has a table of the whole network, not of a shared encoder: name another sampler"
        )


def _has_table(entry: Entry) -> bool:
    return entry.sampler is not None and sampler_named(entry.sampler).of_table is not None


def usual_dual(entry: Entry, model: Model, planner: Planner | None) -> list[Contender]:
    """A dual-rate model with even, planned, and late heavy calls; the last two under the last sampler and gamma.

    Without a planner none are planned; a model whose context was never dropped in training gets no late ones.
    """

    samplers = {name: sampler for name, sampler in entry.samplers.items() if sampler.markovian}

    def every(plan: StepPlan, note: str = "") -> list[Contender]:
        return [
            Contender(entry.run, entry.network, name, plan, gamma, note)
            for name, sampler in samplers.items()
            for gamma in entry.gammas(sampler)
        ]

    even = [StepPlan.uniform(steps, heavy) for steps, heavy in DUAL]
    planned = [planner.best(steps, heavy).plan for steps, heavy in PLANNED] if planner else []
    late = [starting_late(steps, heavy) for steps, heavy in PLANNED if model.serves.drops]
    return [
        *(one for plan in even for one in every(plan)),
        *(every(plan, "planned")[-1] for plan in planned if plan not in even),
        *(every(plan, "late")[-1] for plan in late),
    ]


def usual_student(entry: Entry, serves: Serves, calls: Sequence[int]) -> list[Contender]:
    """A distilled student under what it was distilled for: its own plan, and on the ladder what else it serves.

    Raises ValueError for a sampler other than ancestral.
    """
    if entry.sampler not in (None, ANCESTRAL):
        raise ValueError(f"{entry.network} is a distilled student, for {ANCESTRAL} sampling: drop {entry.sampler}")
    return [Contender(entry.run, entry.network, ANCESTRAL, plan, entry.gamma or 0.0) for plan in serves.ladder(calls)]


def require_markovian(entry: Entry) -> None:
    """Raises ValueError for a sampler that may not reuse a context."""
    if not any(sampler.markovian for sampler in entry.samplers.values()):
        others = [name for name, sampler in SAMPLERS.items() if sampler.markovian]
        raise ValueError(
            f"{entry.network} reuses contexts, which {entry.sampler} cannot: name {' or '.join(others)}, or none"
        )


def starting_late(steps: int, heavy: int) -> StepPlan:
    """The light network alone for the first eighth of the steps, then heavy calls spread evenly."""
    alone = steps // 8
    return StepPlan.at(steps, (alone + j * (steps - alone) // heavy for j in range(heavy)))


def contenders_of(
    entries: Sequence[Entry],
    models: dict[Path, Model],
    *,
    progress: Progress,
    device: torch.device,
    unplanned: Container[Path] = (),
) -> list[Contender]:
    """What the entries stand for, none twice. models: by directory.

    unplanned: runs without those of their usual plans that have to be planned first, by calling the network
    Raises ValueError for plans that are none, or not for that kind of model.
    """
    costs = {run: call_macs(model) for run, model in models.items()}
    dearest = max(max(cost.heavy, cost.light) for cost in costs.values())
    found: list[Contender] = []
    for entry in entries:
        model, cost = models[entry.run], costs[entry.run]
        if _has_table(entry):
            read_table(model)  # before any work, to refuse one that is not there
        if entry.plan is not None:
            found.append(replace(entry.asked(model, device), asked=True))
            model.serves.check(found[-1].plan)
        elif not model.serves.any_plan:
            found += usual_student(entry, model.serves, calls_of(cost.light, dearest))
        elif model.reuses_context:
            require_markovian(entry)
            planner = None
            if entry.run not in unplanned:
                errors = measured_errors(model, grid=GRID, images=PLANNING_IMAGES, progress=progress, device=device)
                planner = Planner(errors, model.process, model.experiment.method.weighting)
            found += usual_dual(entry, model, planner)
        else:
            found += usual_single(entry, model, calls_of(cost.light, dearest))
            if shares(entry.run, models, costs) and entry.run not in unplanned:
                progress.note(f"planning where the shared encoder of {entry.network} is refreshed")
                found += [shared(entry, model, steps, heavy, device) for steps, heavy in SHARED]
    if not found:
        raise ValueError("no plan is left to compare: the samplers named are not tried at these costs; name plans too")
    return list({one.key: one for one in found}.values())


def calls_of(network: float, dearest: float) -> list[int]:
    """How often a network may be called for the cost of each rung of the ladder. Costs: MACs of a call."""
    return [min(MOST_STEPS, max(1, round(rung * dearest / network))) for rung in LADDER]


def shares(run: Path, models: dict[Path, Model], costs: dict[Path, CallCosts]) -> bool:
    """Whether a run is the dearest single network, and its middle has blocks to share, and one to spare."""
    dearest = costs[run].light == max(cost.light for cost in costs.values())
    configs = models[run].experiment.networks.configs
    return dearest and "model" in configs and configs["model"].levels[-1].blocks > 1


def planning_seconds(
    entry: Entry, models: dict[Path, Model], heavy: float, light: float, *, device: torch.device
) -> float:
    """What finding an entry's usual plans takes. heavy, light: seconds of a call of its model, per image."""
    model = models[entry.run]
    if entry.plan is not None or not model.serves.any_plan:
        return 0.0
    if model.reuses_context:
        kept = are_errors_kept(model, grid=GRID, images=PLANNING_IMAGES, device=device)
        return 0.0 if kept else PLANNING_IMAGES * (GRID * heavy + GRID * (GRID + 1) / 2 * light)
    costs = {run: call_macs(model) for run, model in models.items()}
    return SIMILARITY_IMAGES * sum(steps for steps, _ in SHARED) * light if shares(entry.run, models, costs) else 0.0
