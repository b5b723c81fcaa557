"""Scores of images: their features, then the score of those."""

from typing import Any

from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.quality import QualityScore


def score_of(evaluator: Evaluator[Any], images: Any, **how: Any) -> QualityScore:
    return evaluator.score_features(evaluator.net.features(images), **how)
