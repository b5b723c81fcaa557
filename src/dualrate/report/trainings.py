"""Networks trained several times: their scores as one, with the noise of training beside that of the images.

A network's score is the geometric mean over its trainings. What training adds to its logarithm is taken as normal, of
one variance for all networks of a comparison, the same for every plan of a training: all that a few trainings tell.
Their mean square difference w, over networks and plans, has nu = sum of (trainings - 1) degrees of freedom and holds
the noise of images too, of which the replicates explain v. So the replicates of a network are shifted by normal noise
of variance (nu / (nu - 2) * w - v) / trainings, the factor being the variance of Student's t of nu degrees of
freedom: their whole noise is then at least that t's, and at nu = 3, where images make as much noise as trainings,
wider. `studies/coverage.py` counts how often intervals hold. They fail where the noisiest network is trained once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dualrate.report.pareto import Point

LEAST_FREEDOM = 3  # degrees of freedom: with fewer the variance of Student's t is infinite
Trainings = Sequence[Sequence[Point]]  # of one network: a row a training, a column a plan


def pooled(networks: Mapping[str, Trainings], *, seed: int = 0) -> dict[str, list[Point]]:
    """Of every network one point per plan, whose replicates hold the noise of images and of training.

    Plans of a network are in the same order in each of its trainings; a point's name, cost and curve are those of the
    first. Raises ValueError for trainings of different plans, and for fewer than LEAST_FREEDOM degrees of freedom.
    """
    for name, trainings in networks.items():
        plans = {tuple(point.cost for point in training) for training in trainings}
        if len(plans) != 1:
            raise ValueError(f"the trainings of {name} were measured under different plans: measure the same ones")
    deviation = training_deviation(networks)
    first = next(iter(networks.values()))[0][0]
    shifts = deviation * standard_normals(len(networks), len(first.replicates), seed)
    return {
        name: [_merged(plan, shift / math.sqrt(len(trainings))) for plan in zip(*trainings, strict=True)]
        for (name, trainings), shift in zip(networks.items(), shifts, strict=True)
    }


def standard_normals(rows: int, count: int, seed: int) -> NDArray[np.float64]:
    """(rows, count), each row of mean 0 and variance 1, and no two correlated: not by chance a few percent off."""
    drawn = np.random.default_rng(seed).standard_normal((count, rows))
    return np.linalg.qr(drawn - drawn.mean(0))[0].T * math.sqrt(count - 1)


def training_deviation(networks: Mapping[str, Trainings]) -> float:
    """Of what training adds to a log score, as wide as what is known of it asks; 0 where images explain it all.

    Raises ValueError for fewer than LEAST_FREEDOM degrees of freedom.
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
    return math.sqrt(max(freedom / (freedom - 2) * seen - explained, 0.0) / freedom)


def _residuals(of_trainings: NDArray[np.float64]) -> NDArray[np.float64]:
    return of_trainings - of_trainings.mean(0)


def _merged(plan: Sequence[Point], shift: NDArray[np.float64]) -> Point:
    score = math.exp(np.mean([math.log(point.score) for point in plan]))
    logs = np.mean([point.log_replicates for point in plan], axis=0)
    return replace(plan[0], score=score, replicates=np.exp(logs + shift))
