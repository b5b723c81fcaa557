"""Systems that are forecast: how each is simulated, observed and scored. Studies of them: contest.py and others.

The Kuramoto-Sivashinsky equation: a past of one frame is observed at 16 of 64 points, with noise of a tenth of a
standard deviation. Three frames are made at once, a third, two thirds and a whole Lyapunov time ahead.
kuramoto-sivashinsky-leads: the same frames, each made by itself and told its lead time.
kolmogorov: a plane flow on 32 x 32 points, by networks of patches of 2 x 2 points.
sphere: a layer of air on the rotating sphere, 32 x 64 points with their places, of the recipe sphere-forecast: one, two
and three days ahead.
moving-fashion-mnist: two garments bounce in a frame, of which one is given: where they go is chance.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import dualrate as dr
from dualrate.data.condition_rows import HeldOut
from dualrate.drawing.drawer import spread
from dualrate.forecasts.model import forecast_of, frame_shape
from dualrate.forecasts.netcdf import write_fields
from dualrate.forecasts.recipe import RECIPES, Forecasting
from dualrate.forecasts.simulations import SIMULATIONS, Kolmogorov, KuramotoSivashinsky
from dualrate.forecasts.simulations import System as Simulated
from dualrate.metrics.ensembles import energy_score, fair_crps
from dualrate.report.table import with_interval
from studies.common import RESULTS, Row
from studies.garments import MovingGarments

PAGE = RESULTS / "forecasts.md"
FRAMES = 3


@dataclass(frozen=True)
class System:
    """A simulation, and how it is observed, forecast and scored.

    windows: what is made at once; starts, members: of its scores
    patch: of the networks; shared: members of a start whose costs are counted
    """

    simulation: Simulated
    trajectories: int
    frames: int
    windows: Forecasting
    starts: int
    members: int = 16
    patch: int = 1
    shared: tuple[int, ...] = (1, 16, 64)

    def source(self, out: Path) -> Path:
        """The file of its trajectories."""
        return out / ("fields.nc" if self.simulation.axes else "fields.npz")

    def simulate(self, out: Path) -> None:
        """Writes them."""
        simulation = self.simulation
        trajectories = simulation.simulate(self.trajectories, self.frames, 0)
        write_fields(
            self.source(out), trajectories, simulation.variables, simulation.every, simulation.axes, simulation.metadata
        )


LINE = System(
    KuramotoSivashinsky(), 1100, 60,
    Forecasting(frames=FRAMES, lead=4, every=4, noise=0.1, periodic=True, size="tiny"), 256,
)  # fmt: skip
SYSTEMS = {
    "kuramoto-sivashinsky": LINE,
    "kuramoto-sivashinsky-leads": replace(LINE, windows=replace(LINE.windows, window="leads")),
    "kolmogorov": System(
        Kolmogorov(points=32, viscosity=0.01, waves=2, dt=0.05), 1000, 40,
        Forecasting(frames=FRAMES, lead=2, every=4, noise=0.1, periodic=True, size="tiny"), 128, patch=2,
    ),
    "moving-fashion-mnist": System(
        MovingGarments(), 2000, 20, Forecasting(frames=FRAMES, lead=2, size="tiny"), 128, patch=2
    ),
    "sphere": System(
        SIMULATIONS["barotropic-t21"][0], 128, 160, RECIPES["sphere-forecast"][1], 64, patch=2, shared=(1, 6, 16, 50)
    ),
}  # fmt: skip


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


def crps(row: Row) -> NDArray[np.float64]:
    """(starts,) over its frames."""
    return np.mean(row["crps"], 1)


def interval(score: NDArray[np.float64], digits: int) -> str:
    """A score, and where 95% of those of other starts lie."""
    return with_interval(score[0], *np.quantile(score[1:], (0.025, 0.975)), places=digits)
