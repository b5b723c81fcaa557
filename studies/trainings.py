"""Networks trained several times: their scores as one, with the noise of training beside that of the images.

A network's score is the geometric mean over its trainings. What training adds to its logarithm is taken as normal, of
one variance for all networks of a comparison, the same for every plan of a training: all that a few trainings tell.
Their mean square difference w, over networks and plans, has nu = sum of (trainings - 1) degrees of freedom and holds
the noise of images too, of which the replicates explain v. So the replicates of a network are shifted by normal noise
of variance (q^2 w - v) / trainings, q = t / z of the quantiles that end an interval of Student's t of nu degrees of
freedom and of the normal law: an interval that takes all noise for normal is then as wide as that t's. Every replicate
is there twice, shifted by one number and by its negative, so that shifts and images are not correlated by chance.
Simulations counted how often intervals hold (docs/results/tried.md). They fail where one network is noisier than the
others: trained once twice as noisy, trained twice three times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dualrate.comparison.candidates import Candidate
from dualrate.comparison.rows import MeasuredCandidate
from dualrate.metrics.distances import LEVEL, interval_of
from dualrate.metrics.quality import QualityScore
from studies.saving import Point

LEAST_FREEDOM = 3  # degrees of freedom: with fewer Student's t is too wide to be of use
COST = 1.0  # of points whose scores are pooled, whatever they cost
Trainings = Sequence[Sequence[Point]]  # of one network: a row a training, a column a plan


def pooled(networks: Mapping[str, Trainings], *, level: float = LEVEL, seed: int = 0) -> dict[str, list[Point]]:
    """One point per plan of every network, whose replicates, twice as many, hold the noise of images and of training.

    Plans of a network are in the same order in each of its trainings; a point's name, cost and curve are those of the
    first. level: of the intervals that the replicates are for. Raises ValueError for trainings of different plans, and
    for fewer than LEAST_FREEDOM degrees of freedom.
    """
    for name, trainings in networks.items():
        plans = {tuple(point.cost for point in training) for training in trainings}
        if len(plans) != 1:
            raise ValueError(f"the trainings of {name} were measured under different plans: measure the same ones")
    deviation = training_deviation(networks, level)
    first = next(iter(networks.values()))[0][0]
    shifts = deviation * antithetic_normals(len(networks), len(first.replicates), seed)
    return {
        name: [_merged(plan, shift / math.sqrt(len(trainings))) for plan in zip(*trainings, strict=True)]
        for (name, trainings), shift in zip(networks.items(), shifts, strict=True)
    }


def antithetic_normals(rows: int, pairs: int, seed: int) -> NDArray[np.float64]:
    """(rows, 2 pairs), the second half the negative of the first; rows of variance 1, and no two correlated.

    Of as many numbers drawn as they come, variances and correlations are off by chance, by a few percent.
    """
    drawn = np.random.default_rng(seed).standard_normal((pairs, rows))
    half = np.linalg.qr(drawn)[0].T * math.sqrt(pairs - 0.5)
    return np.concatenate([half, -half], axis=1)


def training_deviation(networks: Mapping[str, Trainings], level: float = LEVEL) -> float:
    """Deviation that training adds to a log score, as wide as so few trainings ask; 0 where images explain it all.

    level: of the intervals that it is for. Raises ValueError for fewer than LEAST_FREEDOM degrees of freedom.
    """
    freedom = sum(len(trainings) - 1 for trainings in networks.values())
    if freedom < LEAST_FREEDOM:
        raise ValueError(
            f"{freedom} trainings beyond the first of their network tell too little of the noise of training: train "
            f"networks again with other seeds, {LEAST_FREEDOM - freedom} times or more"
        )
    seen = explained = 0.0
    for trainings in networks.values():
        scores = np.log([[point.score for point in training] for training in trainings])  # (trainings, plans)
        replicates = np.array([[point.log_replicates for point in training] for training in trainings])
        of_images = _residuals(replicates - replicates.mean(2, keepdims=True))
        seen += float(np.square(_residuals(scores)).sum(0).mean())
        explained += float(np.square(of_images).mean(2).sum(0).mean())
    probability = (1 + level) / 2
    wider = float(stats.t.ppf(probability, freedom) / stats.norm.ppf(probability))
    return math.sqrt(max(wider**2 * seen - explained, 0.0) / freedom)


def _residuals(of_trainings: NDArray[np.float64]) -> NDArray[np.float64]:
    return of_trainings - of_trainings.mean(0)


def _merged(plan: Sequence[Point], shift: NDArray[np.float64]) -> Point:
    score = math.exp(np.mean([math.log(point.score) for point in plan]))
    logs = np.mean([point.log_replicates for point in plan], axis=0)
    return replace(plan[0], score=score, replicates=np.exp(np.tile(logs, 2) + shift))


def pooled_rows(measured: Sequence[MeasuredCandidate], level: float = LEVEL) -> list[MeasuredCandidate]:
    """A line a plan: scores are those of `pooled`, by every metric, and the rest is the first training's.

    level: of the intervals that are made of them

    A plan that some training of its network lacks is left out. Where too few are there to tell the noise of training,
    the first trainings stand alone. A network is the same whoever calls it: one of another run that makes some
    of its steps adds no noise of its own.
    """
    complete = plans_of(measured)
    if not complete:
        return [entry for entry in measured if training(entry.candidate)[1] == 0]
    entries = [plan[0] for plan in complete]
    for metric in entries[0].row.scores:
        scores = _pooled(complete, metric, level)
        entries = [
            _scored(entry, metric, point, len(plan))
            for entry, point, plan in zip(entries, scores, complete, strict=True)
        ]
    return entries


def training(candidate: Candidate) -> tuple[str, int]:
    """Name and seed of a candidate's network: NAME-seed1 is trained as NAME is, from another seed."""
    name, _, seed = candidate.network.partition("-seed")
    return name, int(seed or 0)


def _first_key(candidate: Candidate) -> str:
    """The key of the same plan of the first training."""
    return replace(candidate, network=training(candidate)[0]).key


def kept_file(candidate: Candidate) -> str:
    """Name of a file in docs/results/rows: the key of the first training's candidate, and the seed of others."""
    seed = training(candidate)[1]
    return f"{_first_key(candidate)}{f'-{seed}' if seed else ''}.json"


def plans_of(measured: Sequence[MeasuredCandidate]) -> list[list[MeasuredCandidate]]:
    """The trainings of each plan, in the order of seeds, where no training of its network lacks it; plans by their key.

    None where there are too few to tell the noise of training.
    """
    by_key: dict[str, list[MeasuredCandidate]] = {}
    for entry in sorted(measured, key=lambda entry: training(entry.candidate)[1]):
        by_key.setdefault(_first_key(entry.candidate), []).append(entry)
    plans = [plan for _, plan in sorted(by_key.items()) if training(plan[0].candidate)[1] == 0]
    trainings: dict[Path, int] = {}
    for plan in plans:
        trainings[_network(plan)] = max(trainings.get(_network(plan), 0), training(plan[-1].candidate)[1] + 1)
    complete = [plan for plan in plans if len(plan) == trainings[_network(plan)]]
    freedom = sum(trainings[network] - 1 for network in set(map(_network, complete)))
    return complete if freedom >= LEAST_FREEDOM else []


def _network(plan: Sequence[MeasuredCandidate]) -> Path:
    """The first run of a plan's trainings."""
    return plan[0].candidate.run


def _pooled(plans: Sequence[Sequence[MeasuredCandidate]], metric: str, level: float) -> list[Point]:
    """A point a plan, by one metric. plans: the trainings of each."""
    by_network: dict[str, list[int]] = {}
    for i, plan in enumerate(plans):
        by_network.setdefault(str(_network(plan)), []).append(i)
    points = [[point_of(entry, metric, COST) for entry in plan] for plan in plans]
    trainings = {
        network: list(zip(*(points[i] for i in indices), strict=True)) for network, indices in by_network.items()
    }
    merged = pooled(trainings, level=level)
    place = {
        i: point for network, indices in by_network.items() for i, point in zip(indices, merged[network], strict=True)
    }
    return [place[i] for i in range(len(plans))]


def _scored(entry: MeasuredCandidate, metric: str, point: Point, trainings: int) -> MeasuredCandidate:
    """The entry with the pooled score of a metric, and its replicates."""
    first, *rest = (
        _pooled_score(score, point, trainings) if score.metric == metric else score
        for score in entry.row.scores.values()
    )
    row = replace(entry.row, score=first, beside=tuple(rest))
    return replace(entry, row=row, replicates={**entry.replicates, metric: point.replicates})


def point_of(entry: MeasuredCandidate, metric: str, cost: float) -> Point:
    """The entry as a point, by one metric, at a cost."""
    return Point(
        entry.candidate.key, cost, entry.row.scores[metric].value, entry.replicates[metric], entry.candidate.curve
    )


def _pooled_score(score: QualityScore, point: Point, trainings: int) -> QualityScore:
    low, high = map(math.exp, interval_of(np.log(point.replicates), score.level))
    many = f"geometric mean of {trainings} trainings" if trainings > 1 else "one training"
    note = f"{many}; interval: images and trainings"
    return replace(score, value=point.score, low=low, high=high, note=f"{score.note}; {note}" if score.note else note)
