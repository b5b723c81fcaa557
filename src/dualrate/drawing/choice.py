"""A sampler and a plan for a model: what is asked for, else what docs/choosing.md recommends:

sampler  SDE-DPM-Solver++ 2M at gamma 0.1, of windows that roll at gamma 0; of a denoiser that needs a smooth path
         DPM-Solver++ 2M; of a student the one that it was made for, ancestral or DDIM; ancestral of a pair that was
         trained on even grids of heavy calls, as published
grid     that of the sampler's class, which may be another one where a context is reused; of windows that
         roll equal steps
steps    32, or a distilled student's own
heavy    a quarter of the steps, within what was trained, at times that the encoder was trained at; the first quarter
         of the steps goes without a context where the model was trained on steps without one, but not where on even
         grids. After switch_at a single network at every step. Of a single network after another run's: the last steps
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dualrate.config.ranges import HeavyCalls, Precision, Probability, Ranged, Steps
from dualrate.data.source import read_utf8, reading
from dualrate.denoisers.denoiser import abilities
from dualrate.diffusion.brief import Brief
from dualrate.diffusion.context import Reuse
from dualrate.diffusion.plan import StepPlan, before
from dualrate.drawing.drawer import Drawer, Guidance
from dualrate.experiment.modality import maker_of
from dualrate.experiment.model import Model
from dualrate.sampling.catalogue import ANCESTRAL, make_step, sampler_named
from dualrate.sampling.grids import check_grid, grid_times
from dualrate.sampling.step import Step
from dualrate.system.device import own_defaults
from dualrate.system.progress import ImageProgress, shown_later

RECOMMENDED, GAMMA = "sde-dpm++2m", 0.1
SMOOTH = "dpm++2m"  # where a path must be smooth
Places = Literal["late", "even"]
Note = Callable[[str], object]


@dataclass(frozen=True, repr=False)
class Choice(Brief, Ranged):
    """Wishes of a user; None: as recommended.

    sampler: a name of sampling/catalogue.py, or package.module:Class
    gamma, eta: settings of the sampler
    grid:    a name of sampling/grids.py, or blend:0.3
    plan:    times and heavy calls together, instead of steps, heavy, grid and places
    places:  of the heavy calls: spread evenly over all steps, or over those after the first quarter
    switch_at: a time: steps that start before it, noisier, have no context, so are another run's or the light network's
    """

    steps: Steps | None = None
    heavy: HeavyCalls | None = None
    sampler: str | None = None
    gamma: Probability | None = None
    eta: Probability | None = None
    grid: str | None = None
    places: Places | None = None
    plan: StepPlan | None = None
    switch_at: Probability | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler is not None:
            sampler_named(self.sampler)
        if self.grid is not None:
            check_grid(self.grid)
        where = [name for name in ("steps", "grid", "heavy", "places", "switch_at") if getattr(self, name) is not None]
        if not isinstance(self.plan, StepPlan | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"plan is a StepPlan, got {self.plan!r}: StepPlan.from_json(text) reads one of a file")
        if self.switch_at is not None and self.places is not None:
            raise ValueError("switch_at says which steps have no context: drop places")
        if self.plan is not None and where:
            raise ValueError(f"a plan has its own steps and heavy calls: drop {' and '.join(where)}")

    def _repr_html_(self) -> str | None:
        return None if self.plan is None else self.plan.html(repr(self))

    @own_defaults()
    def drawer(self, model: Model, *, note: Note = warnings.warn, **more: Any) -> Drawer:
        """Drawer of the model, as chosen. note: as of `step_plan`; more: fields of a `Drawer`.

        Raises what `check_loaded`, `step_for` and `Drawer` raise."""
        check_loaded(model)
        plan = self.step_plan(model, note)
        return Drawer(model, step_for(model, *self._sampler(model), self.eta), plan, **more)

    @own_defaults()
    def settled(self, model: Model, note: Note = warnings.warn) -> Choice:
        """Choice with sampler, noise level and plan filled in: later versions' recommendations change nothing.

        Raises what `step_plan` raises.
        """
        sampler, gamma = self._sampler(model)
        return Choice(sampler=sampler, gamma=gamma, eta=self.eta, plan=self.step_plan(model, note))

    @own_defaults()
    def step_plan(self, model: Model, note: Note = warnings.warn) -> StepPlan:
        """Plan of steps and heavy calls.

        note: called where the plan has fewer heavy calls than were asked for, and why.

        Raises ValueError for a plan that the model does not serve.
        """
        plan = self._plan(model) if self.plan is None else self.plan
        model.serves.check(plan)
        if self.heavy is not None and plan.num_heavy < self.heavy:
            note(
                f"{plan.counts}, not {self.heavy}: the other steps are at noise levels at which the encoder of "
                f"{model.name} was not trained"
            )
        return plan

    def _plan(self, model: Model) -> StepPlan:
        steps = self.steps or model.serves.steps
        if self.switch_at is not None and not switches(model):
            raise ValueError(
                f"{model.name} has no other network for the steps before switch_at: name one (denoiser LIGHT, a run's "
                "directory), or a dual-rate model that was trained on steps without a context"
            )
        heavy = self._heavy(model, steps)
        single, markov = model.serves.default_heavy(steps) == steps, model.denoiser.reuse is Reuse.MARKOV
        light_first = markov and single and abilities(model.denoiser).alone_differs
        everywhere = heavy >= steps and not model.serves.untrained(StepPlan.uniform(1))  # trained at t = 1 too
        reuse = markov and not (everywhere or light_first)
        sampler = sampler_named(self._sampler(model)[0])
        usual = (sampler.step.reusing if reuse else sampler.step.grid) if model.process.one_time else "t"
        grid = self.grid or (usual if model.serves.any_plan else None)
        times = model.serves.own_times(steps) if grid is None else grid_times(grid, model.process.pace, steps)
        starts_alone, alone = reuse and switches(model), 0
        if self.places == "late" and not starts_alone:
            raise ValueError(
                f"places late leaves the first steps without a context, and {model.name} has no context, or was not "
                "trained without it, or is called at every step: drop places"
            )
        if self.switch_at is not None:
            alone = before(times, self.switch_at)
            heavy = min(heavy, steps - alone) if self.heavy is None else heavy
        elif light_first and self.places is None:
            alone = max(steps - heavy, 0)
        elif heavy > 0 and starts_alone and (self.places or ("even" if model.serves.even else "late")) == "late":
            alone = min(steps // 4, steps - heavy)
        return model.serves.spread(times, heavy, alone).renewing(abilities(model.denoiser).between)

    def _heavy(self, model: Model, steps: int) -> int:
        """Raises ValueError for fewer heavy calls than steps of a network that has nothing to reuse."""
        usual = model.serves.default_heavy(steps)
        if self.heavy is None:
            return max(1, steps // 4) if model.denoiser.reuse is Reuse.SMOOTH else usual
        if self.heavy != usual and model.denoiser.reuse is Reuse.FREE:
            what = (
                "one network, called at every step" if usual == steps else "a context that never grows old, of one call"
            )
            raise ValueError(
                f"{model.name} has {what}: drop heavy ({self.heavy}), or share its encoder between steps (denoiser "
                "shared-encoder)"
            )
        return self.heavy

    def _sampler(self, model: Model) -> tuple[str, float | None]:
        """Name and gamma of the sampler."""
        if self.sampler is not None:
            return self.sampler, self.gamma
        if self.eta is not None or not sampler_named(RECOMMENDED).fits(model.process):
            return ANCESTRAL, self.gamma
        if model.serves.sampler is not None:
            return model.serves.sampler, self.gamma
        if model.denoiser.reuse is Reuse.SMOOTH:
            return SMOOTH, self.gamma
        return RECOMMENDED, (GAMMA if model.process.one_time else 0.0) if self.gamma is None else self.gamma


def read_plan(path: Path) -> StepPlan:
    """A plan from a JSON file. Raises OSError if it cannot be read; ValueError, naming the file, if it is no plan."""
    with reading(path, "a plan"):
        return StepPlan.from_json(read_utf8(path))


def sample(
    model: Model,
    seeds: int | Sequence[int],
    *,
    steps: int | None = None,
    heavy: int | None = None,
    sampler: str | None = None,
    label: int | str | None = None,
    guidance: float = 1.0,
    batch_size: int = 125,
    precision: Precision = "auto",
    progress: ImageProgress | None = None,
) -> NDArray[np.uint8]:
    """Images (N, C, H, W), 8-bit. The defaults are those that docs/choosing.md recommends.

    seeds:    how many images, of seeds 0, 1, ...; or the seeds themselves. An image depends on its own seed, and on the
              precision
    steps:    N, calls of the light network; heavy: H, calls of the encoder
    sampler:  a name of sampling/catalogue.py, or package.module:Class
    label:    one class for all images, its number or its name; None: class `seed mod classes`
    precision: of matrix products; auto: bfloat16 where that pays for so many images at a time
    guidance: weight of classifier-free guidance; 1 is none
    Raises ValueError for a model of fields or a plan that it does not serve, and as `Drawer` and `sample_batches`.
    """
    choice = Choice(steps=steps, heavy=heavy, sampler=sampler)
    if isinstance(guidance, str | Guidance):
        raise TypeError(f"guidance is a number, got {guidance!r}: dr.Choice(...).drawer takes a Guidance")
    check_loaded(model)
    _ = maker_of(model.experiment).files(model)  # refuses what makes no pictures
    drawer = choice.drawer(model, guidance=Guidance(guidance), label=label, batch_size=batch_size, precision=precision)
    with shown_later() as later:
        return drawer.draw(seeds, progress or later).images


def check_loaded(value: object) -> None:
    """Raise TypeError, with the way, for the name of a model in place of one."""
    if isinstance(value, str | Path):
        raise TypeError(f"expected a model, got {value!r}: dr.load(...) makes one of a run or its weights")


def switches(model: Model) -> bool:
    """Whether another network makes the steps without a context: another run's, or the light one of two rates."""
    return model.denoiser.reuse is Reuse.MARKOV and (model.serves.drops or abilities(model.denoiser).alone_differs)


def step_for(model: Model, name: str, gamma: float | None = None, eta: float | None = None) -> Step:
    """The step of this name, for a model.

    Raises what `make_step` raises, and ValueError for a step that the model does not serve.
    """
    step = make_step(name, model.process, gamma, eta)
    model.serves.check_step(step)
    return step
