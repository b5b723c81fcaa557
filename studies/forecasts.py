"""Forecasts of a chaotic system, by models that trained for equal seconds of a core, on equal starts.

    python -m studies.forecasts simulate OUT    trajectories, OUT/fields.npz
    python -m studies.forecasts train OUT --seconds 400 --seeds 0 1    trains and scores what OUT/rows.jsonl lacks
    python -m studies.forecasts page OUT        docs/results/forecasts.json.xz, .png and the tables of forecasts.md
    python -m studies.forecasts times OUT       milliseconds of all plans, into the rows that are kept

Without OUT/rows.jsonl a page is of the rows that were kept.

The Kuramoto-Sivashinsky equation: a past of one frame is observed at 16 of 64 points, with noise of a tenth of a
standard deviation. Three frames are made at once, a third, two thirds and a whole Lyapunov time ahead. Students of one
and two steps train for as long again as the teacher, two rates by diffusion, did. Roll-outs: studies/roll_outs.py.

With --system kolmogorov a plane flow on 32 x 32 points, by networks of patches of 2 x 2 points.

With --system kuramoto-sivashinsky-leads the first system's frames are made each by itself, told its lead time.

With --system sphere a layer of air on the rotating sphere, 32 x 64 points with their places (OUT/fields.nc), of the
recipe sphere-forecast: one, two and three days ahead. Members of a start: 1, 6, 16 and 50.

With --system moving-fashion-mnist two garments bounce in a frame, of which one is given: where they go is chance.

One thread in float32. Seconds of training are of its CPU time. Milliseconds, too: of untrained networks, all plans of a
system in turn. A student has its teacher's networks, so its milliseconds are the teacher's in as many steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

import dualrate as dr
from benchmarks.workloads import in_cpu_seconds, whole
from dualrate.cli.distill import Student
from dualrate.data.condition_rows import HeldOut
from dualrate.drawing.drawer import spread
from dualrate.experiment.data_config import DataConfig
from dualrate.forecasts.model import forecast_of, frame_shape
from dualrate.forecasts.netcdf import write_fields
from dualrate.forecasts.recipe import RECIPES, Forecasting, OfFrames
from dualrate.forecasts.simulations import SIMULATIONS, Kolmogorov, KuramotoSivashinsky
from dualrate.forecasts.simulations import System as Simulated
from dualrate.metrics.ensembles import energy_score, fair_crps
from dualrate.networks.uvit import UViTConfig
from dualrate.recipes.auto import distilled
from dualrate.recipes.tasks import Rate, TrainedBy
from dualrate.report.figures import log_axis, png
from dualrate.report.table import with_interval
from dualrate.system.files import write_whole
from dualrate.system.progress import Silent
from studies.common import RESULTS, Row, add_rows, keep, kept, markdown, place, rows_of, write_rows
from studies.equal_score import resampled
from studies.garments import MovingGarments

PAGE = RESULTS / "forecasts.md"
SHARED, FRAMES = (1, 16, 64), 3
PARTS = "windows", "students"  # of what is trained
TIMED, ROUNDS = 128, 3  # members that are drawn together for milliseconds, and how often
Plan = tuple[str, str, int]  # a network, what trained it, and steps
Scores = dict[Plan, NDArray[np.float64]]
StudentsOf = Literal["moments", "consistency"]
Method = TrainedBy | OfFrames
BY_STEPS = "diffusion", "corrdiff"  # methods of a loop of steps, scored at several numbers of them

WORDS = {  # of the page
    "dual": "two rates", "single": "large", "crps": "CRPS, one call", "refiner": "PDE-Refiner",
    "regression": "regression, one call", "corrdiff": "CorrDiff",
    "moments": "diffusion, then moments", "consistency": "diffusion, then consistency",
}  # fmt: skip
DRAWN = {"diffusion": ("o", "-", "diffusion"), "crps": ("*", "", "one call"), "moments": ("s", ":", "moments")}
DRAWN["consistency"] = "D", ":", "consistency"  # marker, line and legend
SCORED = (
    "network", "trained by", "steps", "million multiply-adds a member, of 1", "of 16", "ms, of 1", "of 16", "CRPS",
    "spread / skill",
)  # fmt: skip
SHOWN = 16  # members beside 1 in a table


@dataclass(frozen=True)
class System:
    """A simulation, and how it is observed, forecast and scored.

    models, windows: what is made at once; starts, members, steps: of its scores
    students: of two rates by diffusion, what trains them and their steps
    patch: of the networks; shared: members of a start whose costs are counted
    """

    simulation: Simulated
    trajectories: int
    frames: int
    models: tuple[tuple[Rate, Method], ...]
    windows: Forecasting
    starts: int
    members: int
    steps: tuple[int, ...]
    page: str
    batch_size: int = 64
    patch: int = 1
    shared: tuple[int, ...] = SHARED
    students: tuple[tuple[StudentsOf, int], ...] = ()

    def source(self, out: Path) -> Path:
        """The file of its trajectories."""
        return out / ("fields.nc" if self.simulation.axes else "fields.npz")


SYSTEMS = {
    "kuramoto-sivashinsky": System(
        KuramotoSivashinsky(), 1100, 60,
        (
            ("dual", "crps"), ("light", "crps"), ("single", "crps"), ("dual", "diffusion"), ("light", "diffusion"),
            ("single", "diffusion"), ("medium", "crps"), ("medium", "diffusion"), ("dual", "corrdiff"),
            ("single", "refiner"), ("single", "regression"),
        ),
        Forecasting(frames=FRAMES, lead=4, every=4, noise=0.1, periodic=True, size="tiny"), 256, 16, (2, 4, 8, 16),
        "forecasts",
        students=(("moments", 2), ("consistency", 2), ("consistency", 1)),
        batch_size=16,
    ),
    "kolmogorov": System(
        Kolmogorov(points=32, viscosity=0.01, waves=2, dt=0.05), 1000, 40,
        (
            ("dual", "diffusion"), ("dual", "crps"), ("single", "diffusion"), ("single", "crps"),
            ("light", "diffusion"), ("single", "refiner"),
        ),
        Forecasting(frames=FRAMES, lead=2, every=4, noise=0.1, periodic=True, size="tiny"), 128, 16, (2, 4, 8),
        "forecasts-kolmogorov", batch_size=16, patch=2,
    ),
    "moving-fashion-mnist": System(
        MovingGarments(), 2000, 20,
        (
            ("dual", "diffusion"), ("dual", "crps"), ("single", "diffusion"), ("single", "crps"),
            ("light", "diffusion"), ("light", "crps"),
        ),
        Forecasting(frames=FRAMES, lead=2, size="tiny"), 128, 16, (2, 4, 8), "forecasts-garments", batch_size=16,
        patch=2,
    ),
    "sphere": System(
        SIMULATIONS["barotropic-t21"][0], 128, 160,
        (
            ("dual", "diffusion"), ("dual", "crps"), ("single", "diffusion"), ("single", "crps"),
            ("light", "diffusion"), ("light", "crps"),
        ),
        RECIPES["sphere-forecast"][1], 64, 16, (2, 4, 8), "forecasts-sphere", batch_size=16, patch=2,
        shared=(1, 6, 16, 50),
    ),
}  # fmt: skip
SYSTEMS["kuramoto-sivashinsky-leads"] = replace(
    SYSTEMS["kuramoto-sivashinsky"],
    models=(
        ("dual", "diffusion"),
        ("dual", "crps"),
        ("single", "diffusion"),
        ("single", "crps"),
        ("light", "diffusion"),
    ),
    students=(),
    windows=replace(SYSTEMS["kuramoto-sivashinsky"].windows, window="leads"),
    page="forecasts-leads",
)


def experiment(
    recipe: Forecasting, system: System, source: Path, name: str, seconds: float, seed: int
) -> dr.Experiment:
    base = replace(recipe, data=DataConfig(str(source)))(Silent())
    networks = {field.name: getattr(base.networks, field.name) for field in fields(base.networks)}  # pyright: ignore[reportArgumentType]
    patched = {
        key: replace(network, patch=system.patch)
        for key, network in networks.items()
        if isinstance(network, UViTConfig)
    }
    fit = replace(base.fit, optim=replace(base.fit.optim, lr=2e-3, warmup=100))
    base = replace(base, fit=fit, networks=replace(base.networks, **patched))  # pyright: ignore[reportArgumentType]
    return timed(base, system, name, seconds, seed)


def timed(base: dr.Experiment, system: System, name: str, seconds: float, seed: int) -> dr.Experiment:
    """The same for so many seconds of a core."""
    fit = replace(
        base.fit, iterations=None, max_seconds=seconds, batch_size=system.batch_size, sample_every=10**8,
        checkpoint_every=500, seed=seed, precision="float32", ema_halflife=10_000 * system.batch_size // 64,
    )  # fmt: skip
    return replace(base, name=name, fit=fit)


def scored(model: dr.Model, system: System, steps: int | None, *, between: int = 0) -> Row:
    """A plan's cost and its fair CRPS of each start, in standard deviations of the field.

    between: of about so many starts that lie between the system's own, in place of these
    """
    members, (starts, truth) = system.members, starts_of(model, system, between)
    choice = dr.Choice() if steps is None else dr.Choice(steps=steps)
    drawer = choice.drawer(model, batch_size=256, members=members, precision="float32")
    return {
        "steps": drawer.plan.num_steps,
        "macs": {count: replace(drawer, members=count).expected_cost.macs / 1e6 for count in system.shared},
        **by_lead(by_start(drawer.states(starts), members), truth, area_of(model)),
    }


def by_start(batches: Iterable[torch.Tensor], members: int) -> torch.Tensor:
    """(N, M, F, C, H, W) float64, of batches of windows, whose members follow each other."""
    return torch.cat(list(batches)).unflatten(0, (-1, members)).double().unflatten(-3, (FRAMES, -1))


def starts_of(model: dr.Model, system: System, between: int) -> tuple[list[int], torch.Tensor]:
    """Numbers of starts, as `scored` takes them, and their truth (N, F, C, H, W) float64."""
    conditions = model.given
    assert isinstance(conditions, HeldOut)
    starts = spread(system.starts, len(conditions.images))
    if between:
        starts = spread(2 * system.starts, len(conditions.images))[1::2][:: max(1, system.starts // between)]
    truth = torch.from_numpy(conditions.originals(torch.from_numpy(starts))).double()
    return starts.tolist(), truth.unflatten(-3, (FRAMES, -1))


def area_of(model: dr.Model) -> torch.Tensor:
    """(C, H, W) float64 of mean 1: how much each point of a frame counts, by its area on a sphere, else alike."""
    return torch.from_numpy(forecast_of(model).geometry.weights(frame_shape(model)))


def by_lead(x: torch.Tensor, truth: torch.Tensor, area: torch.Tensor) -> Row:
    """Scores of members (N, M, F, C, H, W) against the truth (N, F, C, H, W): by start and lead, energy by start.

    area: of points. A score of first degree counts them so if the fields are multiplied by it, one of squares if by
          its root
    """
    members, root = x.shape[1], area.sqrt()
    crps = torch.stack([fair_crps(area * x[:, :, k], area * truth[:, k]) for k in range(x.shape[2])], 1)
    x, truth = root * x, root * truth
    error = (x.mean(1) - truth).square().mean((0, 2, 3, 4)).sqrt()
    deviation = (x.var(1).mean((0, 2, 3, 4)) * (members + 1) / members).sqrt()
    return {
        "spread_skill": (deviation / error).tolist(),
        "crps": np.round(crps.numpy(), 4).tolist(),
        "energy": np.round(energy_score(x, truth).numpy(), 4).tolist(),
    }


def simulate(system: System, out: Path) -> None:
    trajectories = system.simulation.simulate(system.trajectories, system.frames, 0)
    about: Simulated = system.simulation
    write_fields(system.source(out), trajectories, about.variables, about.every, about.axes, about.metadata)


def train(system: System, out: Path, seconds: float, seeds: Sequence[int], parts: Sequence[str] = PARTS) -> None:
    windows = [replace(system.windows, rate=rate, trained_by=trained_by) for rate, trained_by in system.models]
    for seed in seeds:
        for recipe in windows * ("windows" in parts):
            training = {"rate": recipe.rate, "trained_by": recipe.trained_by, "frames": recipe.frames, "seed": seed}
            name = f"{recipe.rate}-{recipe.trained_by}-{recipe.frames}-{seed}"
            make = partial(experiment, recipe, system, system.source(out), name, seconds, seed)
            trained(system, out, training, make, system.steps if recipe.trained_by in BY_STEPS else [None])
        for by, steps in system.students * ("students" in parts):
            training = {"rate": "dual", "trained_by": by, "frames": FRAMES, "seed": seed, "steps": steps}
            make = partial(student, by, steps, system, out, seconds, seed)
            trained(system, out, training, make, [None])


def student(by: StudentsOf, steps: int, system: System, out: Path, seconds: float, seed: int) -> dr.Experiment:
    """A student of two rates by diffusion. Where seconds are the limit, a teacher's steps stay as at first."""
    how: Any = {"annealing": 0.0, "teacher_steps": (64, 64)} if by == "consistency" else {}
    base = Student(distilled(), by=by, steps=steps, **how).of(out / f"dual-diffusion-{FRAMES}-{seed}")
    return timed(base, system, f"dual-{by}-{steps}-{seed}", seconds, seed)


def trained(
    system: System,
    out: Path,
    training: Row,
    make: Callable[[], dr.Experiment],
    plans: Sequence[int | None],
) -> None:
    """Trains what `make` makes and adds its rows, one for each plan, unless they are there.

    training: what tells the rows from those of other trainings
    """
    if any(training.items() <= ({"frames": FRAMES} | row).items() for row in rows_of(out)):
        return
    trial = make()
    with in_cpu_seconds():
        result = whole(dr.train(trial, out / trial.name))
    model = dr.load(str(out / trial.name))
    rows = [training | {"iterations": result.iteration} | scored(model, system, steps) for steps in plans]
    add_rows(out, rows)


def times(system: System, out: Path) -> None:
    """Writes milliseconds a member, of a batch of TIMED, into the kept rows: medians of rounds, all plans in turn."""
    file = RESULTS / f"{system.page}.json.xz"
    rows = kept(file, out)
    plans = {plan_of(row) for row in rows}
    milliseconds: dict[tuple[Plan, int], list[float]] = {}
    models = {network: _untrained(system, out, *network) for network in {_made_by(plan) for plan in plans}}
    for _ in range(ROUNDS):
        for plan in sorted(plans):
            for count in system.shared:
                drawer = dr.Choice(steps=plan[2]).drawer(
                    models[_made_by(plan)], batch_size=TIMED, members=count, precision="float32"
                )
                begun = time.process_time()
                _ = list(drawer.states(list(range(TIMED // count))))
                milliseconds.setdefault((plan, count), []).append(1000 * (time.process_time() - begun) / TIMED)
    for row in rows:
        row["ms"] = {
            str(count): round(float(np.median(milliseconds[plan_of(row), count])), 4) for count in system.shared
        }
    keep(file, rows)
    if rows_of(out):
        write_rows(out, rows)


def _made_by(plan: Plan) -> tuple[Rate, Method]:
    """The networks that draw by this plan: a student's are its teacher's."""
    rate, by, _ = plan
    network: Any = rate, "diffusion" if by in get_args(StudentsOf) else by
    return network


def _untrained(system: System, out: Path, rate: Rate, by: Method) -> dr.Model:
    recipe, name = replace(system.windows, rate=rate, trained_by=by), f"untrained-{rate}-{by}"
    base = experiment(recipe, system, system.source(out), name, 1.0, 0)
    base = replace(base, fit=replace(base.fit, iterations=1, max_seconds=None))
    _ = dr.train(base, out / name)
    return dr.load(str(out / name))


def plan_of(row: Row) -> Plan:
    return row["rate"], row["trained_by"], row["steps"]


def crps(row: Row) -> NDArray[np.float64]:
    """(starts,) over its frames."""
    return np.mean(row["crps"], 1)


def page(system: System, out: Path) -> None:
    rows = kept(RESULTS / f"{system.page}.json.xz", out)
    some = rows
    if has_contest(system):  # else of the pair alone, beside methods that were not searched
        some = [row for row in rows if row["rate"] == "dual" or row["trained_by"] not in ("diffusion", "crps")]
    name, table = f"{system.page} scores", scored_table(some)
    place(name, table, PAGE)  # where the page has a place for it
    print(f"<!-- {name} -->\n{table}<!-- end of {name} -->\n")
    if not has_contest(system):
        write_whole(RESULTS / f"{system.page}.png", png(figure(rows, resampled(rows, plan_of, crps))))


def has_contest(system: System) -> bool:
    """Whether networks of the system were searched by studies/contest.py, whose table has them."""
    name = next((name for name, each in SYSTEMS.items() if each is system), "")
    return (RESULTS / f"contest-{name}.json.xz").exists()


def scored_table(rows: Sequence[Row]) -> str:
    """A line for each plan of two rates that no cheaper one beats, the best first; of single networks their best.

    Means over seeds, and the interval over starts.
    """
    scores, lines = resampled(rows, plan_of, crps), []
    cost = {plan_of(row): row["macs"][str(SHOWN)] for row in rows}
    for key in sorted(scores, key=lambda key: scores[key][0]):
        rate, trained_by, steps = key
        rivals = [rival for rival in scores if rival[:2] == key[:2] and scores[rival][0] < scores[key][0]]
        if any(rate != "dual" or cost[rival] < cost[key] for rival in rivals):
            continue
        group = [row for row in rows if plan_of(row) == key]
        ms = next((row["ms"] for row in group if "ms" in row), {})
        cells = [word(rate), word(trained_by), steps, *(f"{group[0]['macs'][str(count)]:.2f}" for count in (1, SHOWN))]
        cells += [*(f"{ms[str(count)]:.2f}" if ms else "" for count in (1, SHOWN))]
        lines.append([*cells, interval(scores[key], 4), f"{np.mean([row['spread_skill'] for row in group]):.2f}"])
    return markdown(SCORED, lines)


def interval(score: NDArray[np.float64], digits: int) -> str:
    """A score, and where 95% of those of other starts lie."""
    return with_interval(score[0], *np.quantile(score[1:], (0.025, 0.975)), places=digits)


def word(name: str) -> str:
    """Name on the page."""
    return WORDS.get(name, name)


def figure(rows: Sequence[Row], scores: Scores) -> Figure:
    """CRPS against multiply-adds a member, of 1 and of 16 members, a line a network."""
    canvas = Figure((9, 3.6), layout="constrained")
    panels = canvas.subplots(1, 2, sharey=True)
    for axes, members in zip(panels, (1, 16), strict=True):
        for rate in get_args(Rate):
            for trained_by, (marker, line, says) in DRAWN.items():
                of_network = [row for row in rows if (row["rate"], row["trained_by"]) == (rate, trained_by)]
                cost = {row["steps"]: row["macs"][str(members)] for row in of_network}
                counts = sorted(cost)
                if not counts:
                    continue
                values = np.stack([scores[rate, trained_by, steps] for steps in counts], 1)
                low, high = np.quantile(values[1:], (0.025, 0.975), axis=0)
                colour = {"dual": "C3", "single": "C0", "medium": "C2", "light": "C1"}[rate]
                axes.errorbar(
                    [cost[steps] for steps in counts], values[0], [values[0] - low, high - values[0]], color=colour,
                    linestyle=line, marker=marker, markersize=10 if marker == "*" else 4,
                    label=f"{word(rate)}, {says}",
                )  # fmt: skip
        log_axis(axes, "x")
        axes.set(xlabel="million multiply-adds a member", title=f"members of a past: {members}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("fair CRPS")
    panels[1].legend(fontsize=7)
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=("simulate", "train", "times", "page"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--system", choices=SYSTEMS, default="kuramoto-sivashinsky")
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    system = SYSTEMS[options.system]
    if options.verb == "simulate":
        simulate(system, options.out)
    elif options.verb == "page":
        page(system, options.out)
    else:
        torch.set_num_threads(1)
        if options.verb == "train":
            train(system, options.out, options.seconds, options.seeds, options.parts)
        else:
            times(system, options.out)


if __name__ == "__main__":
    main()
