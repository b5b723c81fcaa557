"""How often the interval of a saving holds the truth: synthetic comparisons whose answer is known.

    .venv/bin/python studies/coverage.py     # two minutes; writes the table of docs/results/coverage.md

The truth is the published comparison (docs/results/fashion-mnist.json): its scores, costs and curves are taken for the
true ones, and so is what each dual-rate plan saves. Each of EXPERIMENTS experiments gives every score noise of the size
that its own interval tells, with bootstrap replicates that have the same law around the noisy score, and asks whether
the interval leaves out the truth, below or above. Noise is independent between plans, or half of it is shared, as seeds
share it, between trainings too; at the images measured, and at ten times as many. The last lines train networks several
times, all of them alike or some more often, as reports do that have no time for more; in some a training moves the
dual-rate network two or three times as much as others. The counts are in docs/results/coverage.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from common import RESULTS, command, keep, markdown, place
from numpy.typing import NDArray

from dualrate.report.pareto import Point
from dualrate.report.saving import cost_at, side
from dualrate.report.trainings import pooled

EXPERIMENTS, REPLICATES = 1000, 200
OF_TRAINING = 0.05  # what a seed changes a log score by
DUAL = "dual-rate"
PAGE = RESULTS / "coverage.md"
Normal = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """shared: part of the variance that all scores share; images: times as many

    trainings: numbers of them, of networks that have several; none: trainings are no part of it
    noisier:   what a training moves the dual-rate network by, over others
    """

    shared: float
    images: int
    trainings: tuple[tuple[str, int], ...] = ()
    noisier: float = 1.0

    def __str__(self) -> str:
        seeds = ", ".join(f"{count} {name}" for name, count in self.trainings)
        noisier = f", {DUAL} {self.noisier:g} times as noisy" if self.noisier != 1 else ""
        trainings = f"; trainings: {seeds}{noisier}" if seeds else ""
        return f"{100 * self.shared:.0f}% shared, {5000 * self.images:,} images{trainings}"


SETTINGS = (
    *(Setting(shared, images) for images in (1, 10) for shared in (0.0, 0.5)),
    Setting(0.5, 10, (("heavy", 3), ("medium", 3), ("light", 3), (DUAL, 3))),
    *(Setting(0.5, images, (("medium", 3), (DUAL, 3))) for images in (10, 1)),
    *(Setting(0.5, images, (("medium", 2), ("light", 2), (DUAL, 2))) for images in (10, 1)),
    *(Setting(0.5, images, (("heavy", 2), ("medium", 2), ("light", 2), (DUAL, 3))) for images in (10, 1)),
    Setting(0.5, 10, (("medium", 2), ("light", 2), (DUAL, 3)), 2.0),
    Setting(0.5, 10, (("heavy", 2), ("medium", 2), ("light", 2)), 2.0),
    *(
        Setting(0.5, 10, tuple((name, 2) for name in ("heavy", "medium", "light", DUAL)), noisier)
        for noisier in (1, 2, 3)
    ),
)


@cache
def published() -> tuple[list[Point], list[Point], dict[str, str], dict[str, float]]:
    """Own and rival points, and by their names the network of each and the deviation of its log score."""
    points, networks, deviations = [], {}, {}
    for row in json.loads((RESULTS / "fashion-mnist.json").read_text())["front"]:
        rate = row["num_steps"] / row["num_heavy"]
        note = f", {row['note_on_plan']}" if row["note_on_plan"] else ""
        curve = f"{row['network']}, {row['sampler']}, {rate:g}"
        name = f"{row['num_steps']}/{row['num_heavy']}{note}, {curve}"
        points.append(Point(name, row["flops"], row["value"], np.empty(0), curve))
        networks[name] = row["network"]
        deviations[name] = math.log(row["high"] / row["low"]) / (2 * 1.96)
    own = [point for point in points if networks[point.name] == DUAL]
    return own, [point for point in points if networks[point.name] != DUAL], networks, deviations


def seen(
    points: Sequence[Point],
    deviations: Mapping[str, float],
    setting: Setting,
    draw: Callable[..., Normal],
    common: Normal | None = None,
) -> list[Point]:
    """The points as an experiment sees them. common: (1 + REPLICATES, 1), what all share; drawn, if not given."""
    deviation = np.array([deviations[point.name] for point in points]) / math.sqrt(setting.images)
    common = draw((1 + REPLICATES, 1)) if common is None else common
    apart = draw((1 + REPLICATES, len(points)))
    noise = deviation * (math.sqrt(1 - setting.shared) * apart + math.sqrt(setting.shared) * common)
    score = np.log([point.score for point in points]) + noise[0]
    replicates = np.exp(score + noise[1:])
    return [
        replace(point, score=math.exp(one), replicates=column)
        for point, one, column in zip(points, score, replicates.T, strict=True)
    ]


def trained_again(
    points: Sequence[Point], networks: Mapping[str, str], draw: Callable[..., Normal], noisier: float = 1.0
) -> list[Point]:
    """Points of one training: all of a network are shifted by what the training is worth."""
    sizes = {name: OF_TRAINING * (noisier if name == DUAL else 1.0) for name in sorted(set(networks.values()))}
    shift = {name: math.exp(size * float(draw(()))) for name, size in sizes.items()}
    return [replace(point, score=point.score * shift[networks[point.name]]) for point in points]


def experiment(setting: Setting, seed: int) -> list[Point]:
    own, rivals, networks, deviations = published()
    draw = np.random.default_rng(seed).standard_normal
    if not setting.trainings:
        return seen([*own, *rivals], deviations, setting, draw)
    counts, common = dict(setting.trainings), draw((1 + REPLICATES, 1))
    rounds = [
        seen(trained_again([*own, *rivals], networks, draw, setting.noisier), deviations, setting, draw, common)
        for _ in range(max(counts.values()))
    ]
    by_network = {
        network: [
            [point for point in points if networks[point.name] == network]
            for points in rounds[: counts.get(network, 1)]
        ]
        for network in dict.fromkeys(networks.values())
    }
    made = {point.name: point for points in pooled(by_network, seed=seed).values() for point in points}
    return [made[point.name] for point in (*own, *rivals)]


def missed(setting: Setting) -> dict[str, tuple[float, float, float]]:
    """By plan: the true ratio, and the shares of experiments that put it below and above their interval."""
    own, rivals, _, _ = published()
    truth = {point.name: cost_at(rivals, point.score) / point.cost for point in own}
    counts = {point.name: [0, 0] for point in own if math.isfinite(truth[point.name])}
    for seed in range(EXPERIMENTS):
        points = experiment(setting, seed)
        for point in points[: len(own)]:
            if point.name in counts:
                where = side(point, points[len(own) :], truth[point.name])
                counts[point.name][0] += where < 0
                counts[point.name][1] += where > 0
    return {name: (truth[name], below / EXPERIMENTS, above / EXPERIMENTS) for name, (below, above) in counts.items()}


def main() -> None:
    command(__doc__).parse_args()
    records, lines = [], []
    for setting in SETTINGS:
        for name, (ratio, below, above) in missed(setting).items():
            plan = name.partition(f", {DUAL}")[0]
            records.append({"noise": str(setting), "plan": plan, "ratio": ratio, "below": below, "above": above})
            shares = (f"{100 * share:.1f}" for share in (1 - below - above, below, above))
            lines.append([str(setting), plan, f"{ratio:.2f}", *shares])
            print(*lines[-1], sep=" | ", flush=True)
    keep(PAGE.with_suffix(".json"), 1, experiments=EXPERIMENTS, replicates=REPLICATES, plans=records)
    header = ("noise", "plan", "true ratio", "held, %", "truth below, %", "truth above, %")
    place("coverage", markdown(header, lines, 2), PAGE)


if __name__ == "__main__":
    main()
