"""A score of the weights in training, now and then."""

from __future__ import annotations

from dualrate.experiments.data import DataConfig
from dualrate.experiments.experiment import Model
from dualrate.machine.progress import Reporter
from dualrate.measuring.choosing import Choice
from dualrate.measuring.evaluator import evaluator
from dualrate.measuring.measure import check, measure
from dualrate.runs.train import Score

SCORED = 1000  # images


def scorer(data: DataConfig, progress: Reporter) -> Score:
    """Frechet distance of 1,000 images under the recommended sampler and plan. Raises what `evaluator` raises."""
    judge = evaluator(data, progress=progress)
    check([judge], SCORED, details=False)

    def score(model: Model) -> tuple[str, float]:
        return judge.metric, measure(Choice().drawer(model), range(SCORED), judge).row.score.value

    return score
