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
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dualrate.metrics.frechet import LEVEL
from dualrate.report.figures import Point

LEAST_FREEDOM = 3  # degrees of freedom: with fewer Student's t is too wide to be of use, and `student_quantile` wrong
Trainings = Sequence[Sequence[Point]]  # of one network: a row a training, a column a plan


def pooled(networks: Mapping[str, Trainings], *, level: float = LEVEL, seed: int = 0) -> dict[str, list[Point]]:
    """Of every network one point per plan, whose replicates, twice as many, hold the noise of images and of training.

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
    """Of what training adds to a log score, as wide as what is known of it asks; 0 where images explain it all.

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
    wider = student_quantile(probability, freedom) / NormalDist().inv_cdf(probability)
    return math.sqrt(max(wider**2 * seen - explained, 0.0) / freedom)


def student_quantile(probability: float, freedom: int) -> float:
    """Of Student's t, by Abramowitz and Stegun (1964), 26.7.5: right to 0.2% at LEAST_FREEDOM and 0.975."""
    z, nu = NormalDist().inv_cdf(probability), freedom
    return (
        z
        + (z**3 + z) / (4 * nu)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * nu**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * nu**4)
    )


def _residuals(of_trainings: NDArray[np.float64]) -> NDArray[np.float64]:
    return of_trainings - of_trainings.mean(0)


def _merged(plan: Sequence[Point], shift: NDArray[np.float64]) -> Point:
    score = math.exp(np.mean([math.log(point.score) for point in plan]))
    logs = np.mean([point.log_replicates for point in plan], axis=0)
    return replace(plan[0], score=score, replicates=np.exp(np.tile(logs, 2) + shift))
