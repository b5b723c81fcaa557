"""A score of the weights in training, now and then."""

from __future__ import annotations

from dualrate.experiments.experiment import DataConfig, Model
from dualrate.machine.progress import Progress
from dualrate.measuring.drawer import Drawer
from dualrate.measuring.evaluator import evaluator
from dualrate.measuring.measure import check, measure
from dualrate.runs.train import Score
from dualrate.sampling.ancestral import Ancestral

SCORED = 1000  # images


def scorer(data: DataConfig, progress: Progress) -> Score:
    """Frechet distance of 1,000 images under the model's own plan. Raises what `evaluator` raises."""
    judge = evaluator(data, features=None, progress=progress)
    check(judge, SCORED, details=False)

    def score(model: Model) -> tuple[str, float]:
        step, plan = Ancestral(model.process), model.experiment.serves.default_plan()
        return judge.metric, measure(Drawer(model, step, plan), range(SCORED), judge).row.score.value

    return score
