"""Networks that were trained several times: each training is measured on the front, and they are one line of a report.

Screening, timing and pictures are of the first training: another seed changes neither cost nor, much, which plans are
worth many images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from dualrate.compare.contender import Contender
from dualrate.compare.contenders import Entry
from dualrate.compare.work import MeasuredContender
from dualrate.experiment.experiment import Model
from dualrate.metrics.evaluate import Score
from dualrate.metrics.frechet import LEVEL, interval_of
from dualrate.report.figures import Point
from dualrate.report.trainings import LEAST_FREEDOM, pooled
from dualrate.training.config import FREE

COST = 1.0  # of points whose scores are pooled, whatever they cost


def require_trainings(entries: Sequence[Entry], models: Mapping[Path, Model]) -> None:
    """Raises ValueError unless an entry's runs are trainings of one network from different seeds, and enough in all."""
    trainings = _again(entries)
    for first, again in trainings.items():
        for run in again:
            if _kind(models[run]) != _kind(models[first]):
                raise ValueError(
                    f"{run} is not another training of {first}: their networks, methods or how long and how they were "
                    "trained differ; make it an entry"
                )
            if models[run].weights_hash == models[first].weights_hash:
                raise ValueError(f"{run} and {first} are the same training: name each of a network's seeds once")
        seeds = [models[run].experiment.fit.seed for run in (first, *again)]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"trainings of {first} have the seeds {seeds}: name those of different seeds (--fit.seed)")
    freedom = sum(map(len, trainings.values()))
    if 0 < freedom < LEAST_FREEDOM:
        raise ValueError(
            f"{freedom} trainings beyond the first of their network tell too little of the noise of training: name "
            f"{LEAST_FREEDOM} or more, of all networks together, or one of each network"
        )


def _again(entries: Sequence[Entry]) -> dict[Path, list[Path]]:
    """Of every run its further trainings that any entry names, each once."""
    again: dict[Path, dict[Path, None]] = {}
    for entry in entries:
        again.setdefault(entry.run, {}).update(dict.fromkeys(entry.again))
    return {run: list(others) for run, others in again.items()}


def _kind(model: Model) -> tuple[object, ...]:
    """What trainings of one network have in common; where they start from may differ."""
    experiment, fit = model.experiment, asdict(model.experiment.fit)
    for name in ("seed", *FREE):
        del fit[name]
    return experiment.networks, experiment.process, type(experiment.method), fit


def with_trainings(contenders: Sequence[Contender], entries: Sequence[Entry]) -> list[Contender]:
    """Each contender, followed by the same of the other trainings of its network."""
    again = _again(entries)
    return [
        replace(contender, run=run, training=i)
        for contender in contenders
        for i, run in enumerate((contender.run, *again[contender.run]))
    ]


def as_one(measured: Sequence[MeasuredContender], level: float = LEVEL) -> list[MeasuredContender]:
    """A line a plan: scores are those of `pooled`, by every judge, and the rest is the first training's.

    level: of the intervals that are made of them

    A plan that some training of its network lacks is left out. Where too few are there to tell the noise of training,
    the first trainings stand alone. A network is one whoever calls it; that of another run which makes some of its
    steps adds no noise of its own.
    """
    firsts = [one for one in measured if one.contender.training == 0]
    by_key: dict[str, list[MeasuredContender]] = {}
    for one in measured:
        by_key.setdefault(replace(one.contender, training=0).key, []).append(one)
    plans = [plan for plan in by_key.values() if plan[0].contender.training == 0]
    trainings: dict[Path, int] = {}
    for plan in plans:
        trainings[_network(plan)] = max(trainings.get(_network(plan), 0), plan[-1].contender.training + 1)
    complete = [plan for plan in plans if len(plan) == trainings[_network(plan)]]
    made = [plan[0] for plan in complete]
    if sum(trainings[network] - 1 for network in set(map(_network, complete))) < LEAST_FREEDOM:
        return firsts
    for metric in made[0].row.scores:
        scores = _pooled(complete, metric, level)
        made = [_scored(one, metric, point, len(plan)) for one, point, plan in zip(made, scores, complete, strict=True)]
    return [replace(one, trainings=_values(plan)) for one, plan in zip(made, complete, strict=True)]


def _values(plan: Sequence[MeasuredContender]) -> dict[str, tuple[float, ...]]:
    """By metric the score of each training."""
    return {metric: tuple(one.row.scores[metric].value for one in plan) for metric in plan[0].row.scores}


def _network(plan: Sequence[MeasuredContender]) -> Path:
    """Of a plan's trainings: the first run."""
    return plan[0].contender.run


def _pooled(plans: Sequence[Sequence[MeasuredContender]], metric: str, level: float) -> list[Point]:
    """A point a plan, by one judge. plans: the trainings of each."""
    by_network: dict[str, list[int]] = {}
    for i, plan in enumerate(plans):
        by_network.setdefault(str(_network(plan)), []).append(i)
    points = [[one.judged_by(metric).point(COST) for one in plan] for plan in plans]
    trainings = {
        network: list(zip(*(points[i] for i in indices), strict=True)) for network, indices in by_network.items()
    }
    found = pooled(trainings, level=level)
    place = {
        i: point for network, indices in by_network.items() for i, point in zip(indices, found[network], strict=True)
    }
    return [place[i] for i in range(len(plans))]


def _scored(one: MeasuredContender, metric: str, point: Point, trainings: int) -> MeasuredContender:
    """With the pooled score of a judge, and its replicates."""
    own, *others = (
        _pooled_score(score, point, trainings) if score.metric == metric else score for score in one.row.scores.values()
    )
    row = replace(one.row, score=own, beside=tuple(others))
    if metric == own.metric:
        return replace(one, row=row, replicates=point.replicates)
    return replace(one, row=row, beside={**one.beside, metric: point.replicates})


def _pooled_score(score: Score, point: Point, trainings: int) -> Score:
    low, high = map(math.exp, interval_of(np.log(point.replicates), score.level))
    many = f"geometric mean of {trainings} trainings" if trainings > 1 else "one training"
    note = f"{many}; interval: images and trainings"
    return replace(score, value=point.score, low=low, high=high, note=f"{score.note}; {note}" if score.note else note)
