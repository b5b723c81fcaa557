"""Which sampler when: the samplers on the Fashion-MNIST models at N = 4 to 64, against calls and seconds.

    OMP_NUM_THREADS=1 .venv/bin/python studies/samplers.py      about 90 minutes of one core; goes on where it was
    .venv/bin/python studies/samplers.py --show                 the tables and figure of what is measured, no more

All are screened on 1,000 images with seeds of their own. Of the dual-rate model the best covariance-aware and the best
other sampler at N = 4, 8, 16 and 32 are then measured on 5,000: eight cells. A derivative counts as a call, and no cell
of the heavy model makes more than 64. Features are kept in runs/samplers; rows go to docs/results/samplers.json, from
which studies/results.py makes the tables.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
from common import COUNT, RESULTS, RUNS, load
from matplotlib.figure import Figure
from released import WEIGHTS

import dualrate as dr
from dualrate.compare.contender import Contender
from dualrate.compare.work import SCREEN_SEED, Bench, MeasuredContender
from dualrate.config.serial import from_plain, to_plain
from dualrate.diffusion.plan import StepPlan
from dualrate.report.figures import png
from dualrate.report.rows import Row
from dualrate.report.table import scored, significant
from dualrate.sampling.catalogue import sampler_named
from dualrate.sampling.grids import GridName, grid_times

OUT, FEATURES = RESULTS / "samplers.json", RUNS / "samplers"
HEAVY, DUAL = WEIGHTS / "fashion-mnist-heavy", WEIGHTS / "fashion-mnist-dual"
STEPS = (4, 8, 16, 32, 64)
SCREEN = 1000
# sampler, noise level, grid of the single network
SAMPLERS: tuple[tuple[str, float, GridName], ...] = (
    ("ancestral", 0.0, "t"),
    ("ancestral", 0.2, "t"),
    ("ddim", 0.0, "t"),
    ("addim", 0.0, "t"),
    ("heun", 0.0, "log-snr"),
    ("dpm++2m", 0.0, "karras"),
    ("dpm++2m", 0.0, "log-snr"),
    ("dpm++3m", 0.0, "log-snr"),
    ("sde-dpm++2m", 0.0, "log-snr"),
    ("sde-dpm++2m", 0.2, "log-snr"),
    ("covariance", 0.0, "t"),
    ("covariance", 0.0, "log-snr"),
    ("covariance-ddim", 0.0, "log-snr"),
    ("covariance-table", 0.0, "t"),
    ("covariance-table-ddim", 0.0, "t"),
    ("covariance-jvp", 0.0, "t"),
    ("covariance-jvp-ddim", 0.0, "t"),
)
MEASURED = "samplers measured"
TABLES = ("samplers heavy", "samplers dual-rate", MEASURED)
NETWORKS = ("heavy", "dual-rate")
COMPARED = (4, 8, 16, 32)  # N at which the dual-rate model's best of both kinds are measured


def heavy_cells(model: dr.Model) -> list[Contender]:
    found = []
    for name, gamma, grid in SAMPLERS:
        for steps in STEPS:
            if steps * sampler_named(name).step.calls_per_step <= max(STEPS):
                plan = StepPlan.spread(grid_times(grid, model.process.schedule, steps))
                found.append(Contender(HEAVY, "heavy", name, plan, gamma, grid))
    return found


def dual_cells() -> list[Contender]:
    reusing = dict.fromkeys((name, gamma) for name, gamma, _ in SAMPLERS if sampler_named(name).markovian)
    return [
        Contender(DUAL, "dual-rate", name, StepPlan.uniform(steps, steps // 4), gamma, "t")
        for name, gamma in reusing
        for steps in STEPS
    ]


def best(screened: Sequence[MeasuredContender]) -> list[Contender]:
    """The best covariance-aware and the best other cell of the dual-rate model at the numbers of steps compared."""
    found = []
    for steps in COMPARED:
        for aware in (False, True):
            cells = [
                one
                for one in screened
                if one.contender.network == "dual-rate"
                and one.contender.plan.num_steps == steps
                and one.contender.sampler.startswith("covariance") == aware
            ]
            found.append(min(cells, key=lambda one: one.row.score.value).contender)
    return found


def record(measured: MeasuredContender, bench: Bench, milliseconds: float | None = None) -> dict[str, Any]:
    contender, cost = measured.contender, bench.drawer(measured.contender).cost
    return {
        "network": contender.network,
        "sampler": contender.sampler,
        "gamma": contender.gamma,
        "grid": contender.note,
        "heavy_calls": cost.heavy_calls,
        "light_calls": cost.light_calls,
        "milliseconds": milliseconds,
        "row": to_plain(measured.row),
    }


def measure(screen: int, count: int, out: Path) -> None:
    cells = [*dual_cells(), *heavy_cells(load(HEAVY))]
    bench = common.bench_of(cells, FEATURES)
    screened = bench.measure(cells, range(SCREEN_SEED, SCREEN_SEED + screen), common.DAY, details=False)
    records, finals = [record(one, bench) for one in screened], []
    for one in bench.measure(best(screened), range(count), common.DAY, details=False):
        finals.append(record(one, bench, 1000 * common.timed(one, bench).seconds_per_image))
    common.keep(out, screened=records, measured=finals)


def _name(cell: dict[str, Any]) -> tuple[str, str]:
    """Sampler and grid."""
    gamma = f", gamma {cell['gamma']:g}" if cell["gamma"] else ""
    return f"{cell['sampler']}{gamma}", cell["grid"]


def table(name: str, file: Path = OUT) -> str:
    """Markdown of one of TABLES: what was screened of a network, or what was measured."""
    if not file.exists():
        return common.NOT_MEASURED
    written = json.loads(file.read_text())
    if name == MEASURED:
        return _measured_table(written["measured"])
    return _screened_table([cell for cell in written["screened"] if f"samplers {cell['network']}" == name])


def _screened_table(cells: Sequence[dict[str, Any]]) -> str:
    lines = []
    for name in dict.fromkeys(map(_name, cells)):
        scores = {cell["row"]["num_steps"]: cell["row"]["score"]["value"] for cell in cells if _name(cell) == name}
        lines.append([*name, *(significant(scores[n]) if n in scores else "-" for n in STEPS)])
    return common.markdown(["sampler", "grid", *(f"N = {n}" for n in STEPS)], lines, texts=2)


def _measured_table(cells: Sequence[dict[str, Any]]) -> str:
    header = ("network", "sampler", "grid", "N", "heavy calls", "light calls", "GMACs", "ms/image", "FD-fashion-mnist")
    lines = []
    for cell in cells:
        row = from_plain(Row, cell["row"])
        calls = [str(row.num_steps), str(cell["heavy_calls"]), str(cell["light_calls"]), f"{row.macs / 1e9:.3g}"]
        lines.append([cell["network"], *_name(cell), *calls, f"{cell['milliseconds']:.3g}", scored(row)])
    return common.markdown(header, lines, texts=3)


def figure(cells: Sequence[dict[str, Any]]) -> Figure:
    """FD of what was screened, against calls of the network that runs at every step, and against seconds."""
    figure = Figure(figsize=(11, 10), layout="constrained")
    grid = figure.subplots(2, 2)
    for network, column in zip(NETWORKS, grid.T, strict=True):
        mine = [cell for cell in cells if cell["network"] == network]
        for name in dict.fromkeys(map(_name, mine)):
            line = [cell for cell in mine if _name(cell) == name]
            scores = [cell["row"]["score"]["value"] for cell in line]
            style = {"label": ", ".join(name), "markersize": 4}
            kind = "o-" if name[0].startswith("covariance") else "s:"
            column[0].plot([cell["light_calls"] for cell in line], scores, kind, **style)
            column[1].plot([1000 * cell["row"]["seconds_per_image"] for cell in line], scores, kind, **style)
        column[0].set_title(network)
        column[0].set_xlabel("calls of the " + ("network" if network == "heavy" else "light network") + " per image")
        column[1].set_xlabel("ms per image, in batches of 125")
        for axes in column:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_ylabel("FD-fashion-mnist, 1,000 images")
        column[1].legend(fontsize=7, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return figure


def main() -> None:
    parser = common.command(__doc__)
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--screen", type=int, default=SCREEN, help="images of every cell")
    parser.add_argument("--count", type=int, default=COUNT, help="images of the best ones")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    common.on_one_thread()
    if not options.show:
        measure(options.screen, options.count, options.out)
    elif not options.out.exists():
        parser.error(f"{options.out} is not there yet: run without --show")
    written = json.loads(options.out.read_text())
    options.out.with_suffix(".png").write_bytes(png(figure(written["screened"])))
    print(*(f"{name}\n\n{table(name, options.out)}" for name in TABLES), sep="\n")


if __name__ == "__main__":
    main()
