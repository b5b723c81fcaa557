"""How often the interval of a saving holds the truth: synthetic comparisons whose answer is known.

    .venv/bin/python studies/coverage.py     # five minutes; writes the tables of docs/results/coverage.md

The truth is the published comparison (docs/results/fashion-mnist.json): its scores, costs and curves are taken for the
true ones, and so is what each dual-rate plan saves. Each of EXPERIMENTS experiments gives every score noise of the size
that its own interval tells, with bootstrap replicates that have the same law around the noisy score, and asks whether
the interval leaves out the truth, below or above. Noise is independent between plans, or half of it is shared, as seeds
share it, between trainings too; at the images measured, and at ten times as many. The last lines train networks several
times, all of them alike or some more often, as reports do that have no time for more; in some a training moves the
dual-rate network two or three times as much as others. The second table asks what the verdict hangs on: of the report
of the small pair (settled-25.json), each plan given the score that the best single network has at its cost, how often
would a loss or a saving be told? The counts are in docs/results/coverage.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from common import RESULTS, command, keep, markdown, place
from numpy.typing import NDArray

from dualrate.compare.rows import read_row
from dualrate.report.figures import Point
from dualrate.report.saving import cost_at, score_ratio, side
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
    noisier:   what a training moves the network `noisy` by, over others
    """

    shared: float
    images: int
    trainings: tuple[tuple[str, int], ...] = ()
    noisier: float = 1.0
    noisy: str = DUAL

    def __str__(self) -> str:
        seeds = ", ".join(f"{count} {name}" for name, count in self.trainings)
        noisier = f", {self.noisy} {self.noisier:g} times as noisy" if self.noisier != 1 else ""
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


OF_THE_PAIR = tuple(
    Setting(0.5, 10, tuple((name, count) for name in ("dual-25", "light-10", "light", "medium-25")), noisier, noisy)
    for count in (2, 3)
    for noisy, noisier in (("dual-25", 1), ("dual-25", 2), ("light-10", 2), ("light-10", 3))
)


@dataclass(frozen=True, eq=False)
class Truth:
    """Own and rival points; by name the network of each, the deviation of its log score at 5,000 images, and of own
    ones the ratio that their interval has to hold.
    """

    own: Sequence[Point]
    rivals: Sequence[Point]
    networks: Mapping[str, str]
    deviations: Mapping[str, float]
    ratios: Mapping[str, float]


@cache
def published() -> Truth:
    """As published, by the only judge."""
    rows = _front("fashion-mnist")
    deviations = [math.log(row["high"] / row["low"]) / (2 * 1.96) for row in rows]
    return truth_of(rows, DUAL, [row["value"] for row in rows], deviations)


@cache
def level(metric: str) -> Truth:
    """The report of the small pair by one judge, its plans exactly as good as the best single network at their cost."""
    rows, of_images = _front("settled-25"), kept_deviations()[metric]
    scores = [row["value"] if metric == row["metric"] else row[f"{metric} value"] for row in rows]
    samplers = [row["sampler"].removesuffix(f", {row['note_on_plan']}") for row in rows]
    deviations = [
        math.sqrt(10) * of_images[row["network"], sampler, row["flops"]]
        for row, sampler in zip(rows, samplers, strict=True)
    ]
    truth = truth_of(rows, "dual-25", scores, deviations)
    certain = [_without_noise(point) for point in truth.rivals]
    own = [replace(one, score=one.score * score_ratio(_without_noise(one), certain).ratio) for one in truth.own]
    return replace(truth, own=own, ratios=dict.fromkeys((point.name for point in own), 1.0))


@cache
def kept_deviations() -> dict[str, dict[tuple[str, str, int], float]]:
    """By judge, network, sampler and FLOPs: of the log score of 50,000 images of a training."""
    found: dict[str, dict[tuple[str, str, int], float]] = {}
    for file in sorted((RESULTS / "rows/settled-25").glob("*-0-49999-*.json")):
        kept = read_row(file)
        for metric, replicates in kept.by_metric.items():
            deviation = float(np.log(replicates).std())
            found.setdefault(metric, {})[kept.row.network, kept.row.sampler, kept.row.flops] = deviation
    return found


def truth_of(
    rows: Sequence[Mapping[str, Any]], dual: str, scores: Sequence[float], deviations: Sequence[float]
) -> Truth:
    """Of rows of a report; its ratios are what the rivals pay. dual: the network that is set against all others"""
    points = [_point(row, score) for row, score in zip(rows, scores, strict=True)]
    own = [point for point, row in zip(points, rows, strict=True) if row["network"] == dual]
    rivals = [point for point, row in zip(points, rows, strict=True) if row["network"] != dual]
    networks = {point.name: row["network"] for point, row in zip(points, rows, strict=True)}
    named = {point.name: deviation for point, deviation in zip(points, deviations, strict=True)}
    return Truth(own, rivals, networks, named, paid(own, rivals))


def paid(own: Sequence[Point], rivals: Sequence[Point]) -> dict[str, float]:
    """What the rivals pay for each point's score, over its own cost, where any reaches it."""
    ratios = {point.name: cost_at(rivals, point.score) / point.cost for point in own}
    return {name: ratio for name, ratio in ratios.items() if math.isfinite(ratio)}


def _front(name: str) -> list[dict[str, Any]]:
    return json.loads((RESULTS / f"{name}.json").read_text())["front"]


def _point(row: Mapping[str, Any], score: float) -> Point:
    rate = row["num_steps"] / row["num_heavy"]
    note = f", {row['note_on_plan']}" if row["note_on_plan"] else ""
    curve = f"{row['network']}, {row['sampler']}, {rate:g}"
    return Point(f"{row['num_steps']}/{row['num_heavy']}{note}, {curve}", row["flops"], score, np.empty(0), curve)


def _without_noise(point: Point) -> Point:
    return replace(point, replicates=np.full(2, point.score))


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
    points: Sequence[Point], networks: Mapping[str, str], draw: Callable[..., Normal], setting: Setting
) -> list[Point]:
    """Points of one training: all of a network are shifted by what the training is worth."""
    sizes = dict.fromkeys(sorted(set(networks.values())), OF_TRAINING)
    if setting.noisy in sizes:
        sizes[setting.noisy] *= setting.noisier
    shift = {name: math.exp(size * float(draw(()))) for name, size in sizes.items()}
    return [replace(point, score=point.score * shift[networks[point.name]]) for point in points]


def experiment(truth: Truth, setting: Setting, seed: int) -> list[Point]:
    points, networks = [*truth.own, *truth.rivals], truth.networks
    draw = np.random.default_rng(seed).standard_normal
    if not setting.trainings:
        return seen(points, truth.deviations, setting, draw)
    counts, common = dict(setting.trainings), draw((1 + REPLICATES, 1))
    rounds = [
        seen(trained_again(points, networks, draw, setting), truth.deviations, setting, draw, common)
        for _ in range(max(counts.values()))
    ]
    by_network = {
        network: [
            [point for point in training if networks[point.name] == network]
            for training in rounds[: counts.get(network, 1)]
        ]
        for network in dict.fromkeys(networks.values())
    }
    made = {point.name: point for training in pooled(by_network, seed=seed).values() for point in training}
    return [made[point.name] for point in points]


def missed(truth: Truth, setting: Setting) -> dict[str, tuple[float, float]]:
    """By plan: the shares of experiments that put the true ratio below and above their interval."""
    counts = {name: [0, 0] for name in truth.ratios}
    for seed in range(EXPERIMENTS):
        points = experiment(truth, setting, seed)
        for point in points[: len(truth.own)]:
            if point.name in counts:
                where = side(point, points[len(truth.own) :], truth.ratios[point.name])
                counts[point.name][0] += where < 0
                counts[point.name][1] += where > 0
    return {name: (below / EXPERIMENTS, above / EXPERIMENTS) for name, (below, above) in counts.items()}


def of_published() -> tuple[list[list[str]], list[dict[str, object]]]:
    """Lines of the first table, and what they are made of."""
    lines, records, truth = [], [], published()
    for setting in SETTINGS:
        for name, (below, above) in missed(truth, setting).items():
            plan, ratio = name.partition(f", {DUAL}")[0], truth.ratios[name]
            records.append({"noise": str(setting), "plan": plan, "ratio": ratio, "below": below, "above": above})
            shares = (f"{100 * share:.1f}" for share in (1 - below - above, below, above))
            lines.append([str(setting), plan, f"{ratio:.2f}", *shares])
            print(*lines[-1], sep=" | ", flush=True)
    return lines, records


def of_level_pairs() -> tuple[list[list[str]], list[dict[str, object]]]:
    """Lines of the second table, the least and the most of the plans in each, and what they are made of."""
    lines, records = [], []
    for setting in OF_THE_PAIR:
        for metric in kept_deviations():
            found = missed(level(metric), setting)
            records += [
                {"noise": str(setting), "judge": metric, "plan": name, "cheaper": below, "dearer": above}
                for name, (below, above) in found.items()
            ]
            shares = (f"{100 * min(each):.1f} to {100 * max(each):.1f}" for each in zip(*found.values(), strict=True))
            lines.append([str(setting), metric, *shares])
            print(*lines[-1], sep=" | ", flush=True)
    return lines, records


def main() -> None:
    command(__doc__).parse_args()
    lines, plans = of_published()
    level_lines, of_level = of_level_pairs()
    keep(PAGE.with_suffix(".json"), 1, experiments=EXPERIMENTS, replicates=REPLICATES, plans=plans, level=of_level)
    header = ("noise", "plan", "true ratio", "held, %", "truth below, %", "truth above, %")
    place("coverage", markdown(header, lines, 2), PAGE)
    header = ("noise", "judge", "told to be cheaper, %", "told to be dearer, %")
    place("coverage of level pairs", markdown(header, level_lines, 2), PAGE)


if __name__ == "__main__":
    main()
