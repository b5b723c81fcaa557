"""Candidates of `dualrate compare`: models, each under a sampler and a plan.

    RUN                     its usual numbers of steps and heavy calls
    RUN:32, RUN:32/8        32 steps; with 8 heavy calls
    RUN:plan.json           a plan, as `dualrate plan` writes it
    RUN:32@ddim             under a sampler
    RUN:32/8@ancestral:0.5  at noise level gamma 0.5
    RUN:32@mypkg.steps:Mine under a step of another package
    RUN+taylor:32/8, RUN+mypkg.caches:Mine:32/8    called by another denoiser (denoisers/catalogue.py)
    RUN+LIGHT:32/20         the first 12 of 32 steps by the network of another run (denoisers/duodiff.py)
    NAME=RUN                what its line is called

A part that is not given is as `drawing/choice.py` recommends, so `RUN:16/4` is `dualrate sample RUN --steps 16 --heavy
4` and `Choice(steps=16, heavy=4)`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dualrate.config.imports import import_named
from dualrate.config.ranges import Probability, Ranged, Steps, checked, is_whole
from dualrate.denoisers.catalogue import DENOISERS, denoiser_named
from dualrate.diffusion.context import Reuse
from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.choice import Choice, read_plan, step_for
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.model import Model
from dualrate.runs.store import called_by, is_run
from dualrate.sampling.catalogue import at_gamma, sampler_named
from dualrate.system.progress import Reporter

# Plans of a network, the main one first: where time is short the last are left out
LADDER = (8, 4, 16, 32)  # costs of an image, in calls of the most expensive network
MOST_STEPS = 256
DUAL_PLANS = ((16, 4), (8, 2), (12, 3), (32, 8), (16, 8))  # steps and heavy calls, where contexts are reused
LIGHT_FIRST_PLANS = ((16, 12), (8, 6), (8, 4), (16, 8), (32, 16))  # where another run's network makes the first steps


@dataclass(frozen=True)
class Candidate(Ranged):
    """A model under a sampler and a plan.

    run:      directory of the model
    network:  what its line is called
    gamma:    noise level of the sampler
    note:     name of the file that the plan is from, if any
    denoiser: that calls the model's networks; or the directory of another run, whose network makes the steps without a
              context. None: the model's own
    named:    whether the user gave the plan, so that it is measured on many images in any case
    """

    run: Path
    network: str
    sampler: str
    plan: StepPlan
    gamma: Probability = 0.0
    note: str = ""
    denoiser: str | None = None
    named: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        sampler_named(self.sampler)

    @property
    def reuses(self) -> bool:
        """Whether a step goes without a heavy call."""
        return self.plan.num_heavy < self.plan.num_steps

    @property
    def curve(self) -> str:
        """The same for candidates that differ in the number of steps alone."""
        rate = f"{self.plan.num_steps / self.plan.num_heavy:g}" if self.plan.num_heavy else "no heavy calls"
        return f"{self.network} {self.denoiser} {self.sampler} {self.gamma} {self.note} {rate}"

    @property
    def key(self) -> str:
        """A file name, different for every candidate; networks have different names."""
        content = f"{self.network} {self.denoiser} {self.gamma} {self.plan.digest}"
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        name = re.sub(r"[^\w.-]+", "-", self.network)
        return f"{name}-{self.plan.num_steps}-{self.plan.num_heavy}-{self.sampler.replace(':', '-')}-{digest}"

    def drawer(self, loaded: Model) -> Drawer:
        """loaded: the run's model. Raises what `called_by`, `step_for` and `Drawer` raise."""
        model = called_by(loaded, self.denoiser)
        step = step_for(model, self.sampler, self.gamma or None)
        return Drawer(model, step, self.plan, name=self.network)


@dataclass(frozen=True)
class RunRequest(Ranged):
    """An argument of `dualrate compare`: [NAME=]RUN[+DENOISER][:PLAN][@SAMPLER[:GAMMA]].

    choice:    sampler and plan, as far as they are given
    note:      name of the plan's file
    """

    run: Path
    network: str
    choice: Choice
    denoiser: str | None = None
    note: str = ""

    @staticmethod
    def parse(text: str) -> RunRequest:
        """Raises ValueError for a run that does not exist, and for a plan, sampler or denoiser that is none."""
        text = re.sub(r"(?<![^=,+:])~(?=/)", str(Path.home()), text)  # of each part, as a shell does of the first
        name, equals, rest = ("", "", text) if Path(text).is_dir() else text.partition("=")
        name, rest = (name, rest) if equals else ("", text)
        rest, _, sampler = rest.partition("@")
        run, denoiser, plan = _split(rest)
        if not run or not Path(run).is_dir():
            raise ValueError(
                f"there is no run {run or rest!r}: expected RUN, RUN:32/8, RUN:plan.json or RUN+DENOISER:32/8, got "
                f"{text!r}"
            )
        sampler, gamma = at_gamma(sampler)
        import_named("sampler", sampler)
        check_denoiser(denoiser)
        path = Path(run)
        choice = replace(_planned(plan), sampler=sampler or None, gamma=gamma)
        note = Path(plan).stem if plan.endswith(".json") else ""
        return RunRequest(path, name or path.resolve().name, choice, denoiser, note)

    @property
    def named(self) -> bool:
        """Whether a plan is given."""
        return self.choice.plan is not None or self.choice.steps is not None

    def candidates(self, loaded: Model, calls: Sequence[int]) -> list[Candidate]:
        """loaded: the run's model; calls: per image, of its light network at the costs of LADDER.

        Raises ValueError for a plan or sampler that the model does not serve.
        """
        model = called_by(loaded, self.denoiser)
        network = self.network
        if is_run(self.denoiser):
            network += f" after {Path(str(self.denoiser)).resolve().name}"
        elif self.denoiser is not None:
            network += f", {self.denoiser.rpartition(':')[2].replace('-', ' ')}"
        candidates = []
        for choice in [self.choice] if self.named else self._usual(model, calls):
            settled = choice.settled(model)
            assert settled.sampler is not None
            assert settled.plan is not None
            gamma = settled.gamma or 0.0
            candidates.append(
                Candidate(self.run, network, settled.sampler, settled.plan, gamma, self.note, self.denoiser, self.named)
            )
        return candidates

    def _usual(self, model: Model, calls: Sequence[int]) -> Iterator[Choice]:
        if not model.serves.any_plan:
            return (replace(self.choice, plan=plan) for plan in model.serves.ladder(calls))
        if model.denoiser.reuse is Reuse.FREE:
            return (replace(self.choice, steps=steps) for steps in dict.fromkeys(calls) if steps > 2)
        plans = LIGHT_FIRST_PLANS if is_run(self.denoiser) else DUAL_PLANS
        return (replace(self.choice, steps=steps, heavy=heavy) for steps, heavy in plans)


def check_denoiser(name: str | None) -> None:
    """Import what a command names to call networks. Raises ValueError for neither a denoiser nor a run's directory."""
    if name is None or is_run(name):
        return
    import_named("denoiser", name)
    try:
        denoiser_named(name)
    except ValueError as error:
        raise ValueError(f"{error}; nor is it the directory of a run") from error


def _split(text: str) -> tuple[str, str | None, str]:
    """Run, denoiser and plan of RUN[+DENOISER][:PLAN]; a denoiser of another package has a colon of its own."""
    if Path(text).is_dir():
        return text, None, ""
    run, plus, rest = text.partition("+")
    if plus and Path(run).is_dir():
        words = rest.split(":")
        size = 2 if words[0] not in DENOISERS and words[1:2] and words[1].isidentifier() else 1
        return run, ":".join(words[:size]), ":".join(words[size:])
    run, _, plan = text.rpartition(":")
    return (run, None, plan) if run else (plan, None, "")


def _planned(text: str) -> Choice:
    """Choice of "32", "32/8", "plan.json" or nothing. Raises ValueError for any other text."""
    if text.endswith(".json"):
        return Choice(plan=read_plan(Path(text)))
    if not text:
        return Choice()
    steps, slash, heavy = text.partition("/")
    if not (is_whole(steps) and (is_whole(heavy) or not slash)):
        raise ValueError(f"{text!r} is no plan: expected 32 (steps), 32/8 (steps/heavy calls) or a .json file")
    return Choice(checked("the number of steps", int(steps), Steps), int(heavy) if heavy else None)


def candidates_of(requests: Sequence[RunRequest], models: Mapping[Path, Model]) -> list[Candidate]:
    """Candidates to measure, none twice. models: by directory.

    Raises ValueError for a plan or sampler that a model does not serve, before anything is drawn.
    """
    costs = {run: model.call_cost for run, model in models.items()}
    most = max(max(cost.heavy, cost.light) for cost in costs.values())
    candidates: dict[str, Candidate] = {}
    for request in requests:
        cost = costs[request.run]
        calls = [min(MOST_STEPS, max(1, round((rung * most - cost.heavy) / cost.light))) for rung in LADDER]
        for candidate in request.candidates(models[request.run], calls):
            _ = candidate.drawer(models[candidate.run])
            if candidate.named or candidate.key not in candidates:
                candidates[candidate.key] = candidate
    return list(candidates.values())


def baselines_of(
    requests: Sequence[RunRequest], models: Mapping[Path, Model], *, progress: Reporter
) -> list[RunRequest]:
    """Ways to call the most expensive single network for less without training.

    The ways are the denoisers of the catalogue that fit it, and each cheaper single network for its first steps.
    Raises ValueError where no single network stands among the requests without a plan.
    """
    single = {}  # one whole network runs at every step, under any plan, and of nothing given but a prompt
    for request in requests:
        model, experiment = models[request.run], models[request.run].experiment
        of_noise = experiment.networks.given is None or experiment.condition.labelled
        alone = of_noise and model.denoiser.reuse is Reuse.FREE and model.serves.any_plan
        if alone and not request.named and request.denoiser is None:
            single[request] = model
    if not single:
        raise ValueError("--baselines call a single network in other ways: name its run without a plan")
    request, model = max(single.items(), key=lambda pair: pair[1].call_cost.light)
    cheaper = [str(each.run) for each, network in single.items() if network.call_cost.light < model.call_cost.light]
    ways = []
    for name in (*DENOISERS, *cheaper):
        try:
            called_by(model, name)
        except ValueError as error:
            progress.note(f"without {name}: {error}")
        else:
            ways.append(replace(request, denoiser=name, choice=Choice()))
    return ways


def check_requests(requests: Sequence[RunRequest]) -> None:
    """Raises ValueError for two runs of one name, and for first steps by another run's network, of an open number."""
    runs: dict[str, Path] = {}
    for request in requests:
        if runs.setdefault(request.network, request.run.resolve()) != request.run.resolve():
            raise ValueError(f"two runs are called {request.network!r}: name them, as in A={request.run} B=...")
        steps = request.choice.steps
        if is_run(request.denoiser) and steps is not None and request.choice.heavy is None:
            raise ValueError(f"say how many of the {steps} steps are those of {request.network}: {steps}/{steps // 2}")
