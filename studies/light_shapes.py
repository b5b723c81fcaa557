"""Light networks of forecasts in another shape, trained beside the usual one for equal seconds of a core.

    python -m studies.light_shapes OUT --system kolmogorov --seconds 150 --seeds 0 1

`dual` has the usual light network. That of `coarse` begins at the second level, by patches of twice the side, with as
many channels as the heavy network has there: more multiply-adds in fewer, wider layers. OUT has the trajectories of
studies/forecasts.py. Of each plan: the held-out loss of x_hat and the fair CRPS, of `coarse` over `dual`, the latter
with an interval over starts and trainings; milliseconds of a member, of 1, 16 and 64 of a start.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import dualrate as dr
from dualrate.experiment.network_configs import TwoConditional
from dualrate.networks.uvit import UViTConfig
from studies.common import Row, add_rows, command, markdown, on_one_thread
from studies.contest import Contest, Setting
from studies.equal_score import resampled
from studies.forecasts import SYSTEMS, crps, interval
from studies.roll_outs import SIZES
from studies.where import losses

SHAPES: tuple[Any, ...] = ("dual", "coarse")
SETTINGS = {"kuramoto-sivashinsky": Setting(16), "kolmogorov": Setting(8)}
STEPS, COUNT, ROUNDS = (4, 8), 512, 9  # COUNT: held-out windows of a loss


def coarse(networks: TwoConditional) -> TwoConditional:
    """The pair with a light network from the second level on."""
    heavy, light = networks.encoder, networks.light
    assert isinstance(heavy, UViTConfig)
    assert isinstance(light, UViTConfig)
    pairs = zip(light.levels[1:], heavy.levels[1:], strict=True)
    levels = tuple(replace(level, channels=wide.channels) for level, wide in pairs)
    return replace(networks, light=replace(light, levels=levels, patch=2 * light.patch))


@dataclass(frozen=True)
class Shapes(Contest):
    """The contest, of pairs by diffusion alone."""

    def untimed(self, network: str, method: str, seed: int) -> dr.Experiment:
        experiment = self.sized(replace(self.system.windows, size=SIZES[self.name]), "dual")
        assert isinstance(experiment.networks, TwoConditional)
        return experiment if network == "dual" else replace(experiment, networks=coarse(experiment.networks))

    def plans(self, method: str) -> tuple[int | None, ...]:
        return STEPS

    def train_all(self, seconds: float, seeds: list[int]) -> None:
        """Trains and scores what is missing, shapes in turn."""
        for seed, shape in ((seed, shape) for seed in seeds for shape in SHAPES):
            self.train("final", shape, "diffusion", SETTINGS[self.name], seconds, seed)
            which: Row = {"kind": "loss", "network": shape, "seconds": seconds, "seed": seed}
            if not self.known(**which):
                row = self.known(kind="final", network=shape, seconds=seconds, seed=seed)[0]
                add_rows(self.out, [which | {"losses": losses(dr.load(str(self.folder(row))), COUNT)}])

    def milliseconds(self) -> dict[tuple[str, int, int], list[float]]:
        """Milliseconds of a member, by shape, steps and members of a start, in rounds where all take turns."""
        models = {shape: dr.load(str(self.folder(self.known(kind="final", network=shape)[0]))) for shape in SHAPES}
        drawers = {
            (shape, steps, count): dr.Choice(steps=steps).drawer(
                models[shape], batch_size=count, members=count, precision="float32"
            )
            for shape in SHAPES
            for steps in STEPS
            for count in self.system.shared
        }
        taken: dict[tuple[str, int, int], list[float]] = {way: [] for way in drawers}
        for _ in range(ROUNDS + 1):
            for way, drawer in drawers.items():
                begun = time.process_time()
                _ = list(drawer.states([0]))
                taken[way].append(1000 * (time.process_time() - begun) / way[2])
        return {way: each[1:] for way, each in taken.items()}

    def comparison(self, seconds: float) -> str:
        finals, lost = (self.known(kind=kind, seconds=seconds) for kind in ("final", "loss"))
        errors = {shape: [sum(row["losses"]) for row in lost if row["network"] == shape] for shape in SHAPES}
        ratios = [b / a for a, b in zip(*errors.values(), strict=True)]
        scores = resampled(finals, lambda row: (row["network"], row["steps"]), crps)
        taken, lines = self.milliseconds(), []
        for steps in STEPS:
            usual, new = ([shape, steps] for shape in SHAPES)
            times = [np.divide(taken[(*new, count)], taken[(*usual, count)]) for count in self.system.shared]
            cells = [
                f"{np.median(taken[(*usual, count)]):.2f}, x {np.median(ratio):.2f}"
                for count, ratio in zip(self.system.shared, times, strict=True)
            ]
            each = [interval(scores[shape, steps], 4) for shape in SHAPES]
            lines.append([steps, *each, interval(scores["coarse", steps] / scores["dual", steps], 3), *cells])
        header = ("steps", *SHAPES, "ratio", *(f"ms of {count}" for count in self.system.shared))
        loss = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        return f"loss of x_hat, coarse over dual, by seed: {loss}\n\n{markdown(header, lines)}"


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--system", choices=SETTINGS, default="kolmogorov")
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    on_one_thread()
    assert options.system in SYSTEMS
    shapes = Shapes(options.system, options.out)
    shapes.train_all(options.seconds, options.seeds)
    print(shapes.comparison(options.seconds))


if __name__ == "__main__":
    main()
