"""A score of the weights in training, now and then."""

from __future__ import annotations

import torch

from dualrate.experiments.experiment import DataConfig, Model
from dualrate.machine.progress import Progress
from dualrate.measuring.evaluator import evaluator
from dualrate.measuring.measure import check, measure
from dualrate.runs.train import Score
from dualrate.sampling.ancestral import Ancestral

SCORED = 1000  # images


def scorer(data: DataConfig, *, progress: Progress, device: torch.device | str = "cpu") -> Score:
    """Frechet distance of 1,000 images under the model's own plan. Raises what `evaluator` raises."""
    judge = evaluator(data, features=None, progress=progress)
    check(judge, SCORED, details=False)

    def score(model: Model) -> tuple[str, float]:
        step, plan = Ancestral(model.process), model.experiment.serves.default_plan()
        row, _ = measure(model.name, model, step, plan, judge, range(SCORED), device=device)
        return judge.metric, row.score.value

    return score
