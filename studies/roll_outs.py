"""Roll-outs: frame after frame, window after window, and by Rolling Diffusion, each with its best sampler.

    python -m studies.contest OUT simulate         trajectories
    python -m studies.roll_outs OUT train --seeds 0 1 2
    python -m studies.roll_outs OUT search          sampler, noise and grid of every number of steps, by seed 0
    python -m studies.roll_outs OUT score           of each training, in the best way of every number of steps

Add --system kolmogorov to each. Each goes on where it was. Rows of OUT, which has all trainings of its system, are kept
in docs/results/roll-outs.json.xz, of which `python -m studies.forecasts` makes tables.

The past is one frame, observed in full with noise. All networks train for equal seconds, by `studies.contest`'s rule,
in the same batches and at the same rate; none was searched. The search's starts are not those of the scores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import dualrate as dr
from dualrate.forecasts.model import costs, forecast_of
from dualrate.forecasts.recipe import Forecasting, Size
from dualrate.forecasts.rollout import roll_out
from dualrate.forecasts.starts import Starts, held_out_starts
from studies.common import RESULTS, Row, add_rows, keep, kept_in, markdown, on_one_thread, place
from studies.contest import Contest, Network, Setting, mean
from studies.equal_score import resampled
from studies.systems import PAGE, area_of, by_lead, interval

FILE = RESULTS / "roll-outs.json.xz"
SIZES: dict[str, Size] = {"kuramoto-sivashinsky": "tiny", "kolmogorov": "mini"}  # of networks, by system
WAYS: tuple[tuple[Network, str], ...] = (  # networks, what trains them and the frames of a window
    ("single", "diffusion-1"), ("dual", "diffusion-1"), ("dual", "diffusion-4"), ("single", "rolling-4"),
    ("dual", "rolling-4"),
)  # fmt: skip
STEPS = {"diffusion": (2, 4, 8), "rolling": (1, 2, 4)}  # of a window; of a roll, which makes one frame
CELLS: tuple[Row, ...] = (
    *({"sampler": "sde-dpm++2m", "gamma": gamma, "grid": "t"} for gamma in (0.0, 0.5, 1.0)),
    *({"sampler": "sde-dpm++2m", "gamma": gamma, "grid": "blend:0.3"} for gamma in (0.0, 0.5, 1.0)),
    {"sampler": "ancestral", "grid": "t"},
)
SECONDS, SETTING = 200.0, Setting(16, 2e-3)
STARTS, SEARCHED, MEMBERS, AHEAD = 50, 24, 8, 8  # starts of scores and of the search, members, frames
HEADER = (
    "network", "method", "sampler", "steps", "million multiply-adds a frame", "ms a frame", "CRPS", "of frame 1",
    "less the best frame after frame",
)  # fmt: skip


@dataclass(frozen=True)
class RollOuts(Contest):
    """The trainings of a system's roll-outs."""

    def untimed(self, network: Network, method: str, seed: int) -> dr.Experiment:
        by, frames = method.split("-")
        size = SIZES[self.name]
        recipe = Forecasting(lead=self.system.windows.lead, noise=0.1, periodic=True, frames=int(frames), size=size)
        return self.sized(replace(recipe, trained_by=by), network)  # pyright: ignore[reportArgumentType]

    def trainings(self, seeds: Sequence[int], seconds: float) -> Iterator[Row]:
        """Values that tell each training from the others."""
        for seed, (network, method) in product(seeds, WAYS):
            yield self.which("roll-out", network, method, SETTING, seconds, seed)

    def train_all(self, seeds: Sequence[int], seconds: float) -> None:
        """Trains what is not trained yet."""
        for which in self.trainings(seeds, seconds):
            if not self.rows_with(part="training", **which):
                add_rows(self.out, [{"part": "training"} | self.fit(which)])

    def search_samplers(self, seconds: float, cells: Sequence[Row] = ()) -> None:
        """Scores every cell of seed 0."""
        for which in self.trainings([0], seconds):
            every = product(self.steps(which["method"]), cells or CELLS)
            self.rows_of(which, "search", [{"steps": count} | cell for count, cell in every])

    def steps(self, method: str) -> tuple[int, ...]:
        """Numbers of steps that a method is scored in."""
        return STEPS[method.split("-")[0]]

    def score(self, seeds: Sequence[int], seconds: float) -> None:
        """Scores each training by the best cell of every number of steps."""
        for which in self.trainings(seeds, seconds):
            self.rows_of(which, "score", self.best_cells(which))

    def best_cells(self, which: Row) -> list[Row]:
        """The cell of each number of steps with the least CRPS in the search."""
        rows = self.rows_with(part="search", **{name: which[name] for name in ("network", "method", "seconds")})
        each = [min((row for row in rows if row["steps"] == steps), key=mean) for steps in steps_of(rows)]
        return [{name: row[name] for name in ("steps", "sampler", "gamma", "grid") if name in row} for row in each]

    def rows_of(self, which: Row, part: str, cells: Sequence[Row]) -> None:
        """Adds a row for each cell, unless it is there."""
        cells = [cell for cell in cells if not self.rows_with(part=part, **which, **cell)]
        model = dr.load(str(self.folder(which))) if cells else None
        for cell in cells:
            assert model is not None
            row = {"part": part, **which, **cell} | self.rolled(model, cell, part == "search")
            add_rows(self.out, [row])
            print(part, *which.values(), *cell.values(), f"{mean(row):.4f}", flush=True)

    def rolled(self, model: dr.Model, cell: Row, search: bool) -> Row:
        """Cost and scores of a cell. search: of other starts than those of the scores"""
        return rolled(model, cell, search)


def rolled(model: dr.Model, cell: Row, search: bool) -> Row:
    """A frame's cost, a mean over a roll-out, and scores by start and lead, as `by_lead` has them.

    search: of starts between those of the scores
    """
    starts = held_out_starts(model, AHEAD, 2 * STARTS)
    places = np.arange(2 * STARTS)[search::2][: SEARCHED if search else None]
    assert starts.truth is not None
    truth = np.stack([starts.truth(int(i)) for i in places])
    return scored_members(model, cell, starts.past[places], truth, MEMBERS)[0]


def scored_members(
    model: dr.Model, cell: Row, past: NDArray[np.float32], truth: NDArray[np.float32], members: int
) -> tuple[Row, NDArray[np.float64]]:
    """Cost and scores as of `rolled`, and the members (N, M, T, C, H, W) of these starts, in the data's units.

    past: (N, past, C, H, W); truth: (N, T, C, H, W); members: of a start
    """
    ahead, std = truth.shape[1], torch.tensor(forecast_of(model).statistics.std)
    drawer = dr.Choice(**cell).drawer(model, batch_size=256, members=members, precision="float32")
    begun = time.process_time()
    pieces = list(roll_out(drawer, Starts(past, "held-out starts"), ahead))
    seconds = time.process_time() - begun
    x = np.zeros((len(past), members, *truth.shape[1:]))
    for piece in pieces:
        x[np.ix_(piece.starts, piece.members, piece.frames)] = piece.x
    scaled, true = (torch.tensor(part).double() / std[:, None, None] for part in (x, truth))
    cost = costs(replace(drawer, members=1))
    macs = cost["first_window"] + (ahead / cost["frames"] - 1) * cost["later_window"]
    ms = round(1000 * seconds / (len(past) * members * ahead), 4)
    return {"macs": macs / 1e6 / ahead, "ms": ms, **by_lead(scaled, true, area_of(model))}, x


def crps(row: Row) -> NDArray[np.float64]:
    """(starts,), over the frames."""
    return np.mean(row["crps"], 1)


def first(row: Row) -> NDArray[np.float64]:
    """(starts,), of the first frame."""
    return np.array(row["crps"])[:, 0]


def steps_of(rows: Sequence[Row]) -> list[int]:
    """Every number of steps, once."""
    return sorted({row["steps"] for row in rows})


def plan_of(row: Row) -> tuple[str, str, int]:
    return row["network"], row["method"], row["steps"]


def table(rows: Sequence[Row]) -> str:
    """Each way in its best number of steps and by its best cell of them; the kept rows have all.

    Means over trainings, intervals over these and starts. The last column: less the best of frame after frame.
    """
    scored = [row for row in rows if row.get("part") == "score"]
    means, firsts = resampled(scored, plan_of, crps), resampled(scored, plan_of, first)
    best = means[min((plan for plan in means if plan[1] == "diffusion-1"), key=lambda plan: means[plan][0])]
    lines = []
    for way in WAYS:
        plan = min((plan for plan in means if plan[:2] == way), key=lambda plan: means[plan][0])
        some = [row for row in scored if plan_of(row) == plan]
        lines.append(
            [
                "two rates" if plan[0] == "dual" else "large",
                name_of(plan[1]),
                sampler_of(some[0]),
                plan[2],
                f"{some[0]['macs']:.1f}",
                f"{np.median([row['ms'] for row in some]):.2f}",
                *(interval(values, 3) for values in (means[plan], firsts[plan], means[plan] - best)),
            ]
        )
    return markdown(HEADER, lines, texts=3)


def name_of(method: str) -> str:
    """A method as the page calls it."""
    by, frames = method.split("-")
    return (
        "Rolling Diffusion" if by == "rolling" else f"windows of {frames}" if int(frames) > 1 else "frame after frame"
    )


def sampler_of(cell: Row) -> str:
    """A cell's sampler as the page calls it."""
    gamma = f", gamma {cell['gamma']:g}" if "gamma" in cell else ""
    return f"{cell['sampler']}{gamma}{'' if cell['grid'] == 't' else ', ' + cell['grid']}"


def page() -> None:
    """The tables of the rows that are kept."""
    rows = kept_in(FILE)
    for name in sorted({row["system"] for row in rows}):
        place(f"roll-outs {name}", table([row for row in rows if row["system"] == name]), PAGE)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("verb", choices=("train", "search", "score"))
    parser.add_argument("--system", choices=SIZES, default="kuramoto-sivashinsky")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    contest = RollOuts(options.system, options.out)
    on_one_thread()
    if options.verb == "train":
        contest.train_all(options.seeds, options.seconds)
    elif options.verb == "search":
        contest.search_samplers(options.seconds)
    else:
        contest.score(options.seeds, options.seconds)
    scores = [row | {"system": options.system} for row in contest.rows if row.get("part") in ("search", "score")]
    rest = [row for row in kept_in(FILE) if row["system"] != options.system] if FILE.exists() else []
    if scores:
        keep(FILE, [*rest, *scores])


if __name__ == "__main__":
    main()
