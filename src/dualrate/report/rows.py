"""A row of a report: one model under one sampler and plan, what it cost and how good it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dualrate.metrics.evaluate import Score


@dataclass(frozen=True)
class Row:
    """One measured configuration.

    network:           what was run, e.g. "heavy", "dual-rate", "light alone"
    sampler:           "ancestral", "DDIM", ..., with its settings and the guidance where they are not the usual ones
    num_steps:         N
    num_heavy:         H, heavy calls per image; N for a single-rate network
    macs:              multiply-adds per image, guidance counted; FLOPs are twice that
    seconds_per_image: of networks and sampler, measured in this run, at `batch_size`
    precision:         "float32" or "bfloat16", of the networks' matrix products; then ", compiled", ", CUDA graphs"
    score:             quality with its interval, by the first metric
    beside:            by the other metrics, of the same images
    """

    network: str
    sampler: str
    num_steps: int
    num_heavy: int
    macs: int
    seconds_per_image: float
    batch_size: int
    precision: str
    score: Score
    beside: tuple[Score, ...] = ()

    @property
    def flops(self) -> int:
        return 2 * self.macs

    @property
    def scores(self) -> dict[str, Score]:
        """By metric, the first one first."""
        return {score.metric: score for score in (self.score, *self.beside)}


def shared_metrics(rows: Sequence[Row]) -> list[str]:
    """The metrics that all of the rows have, in the order of the first one."""
    return [metric for metric in rows[0].scores if all(metric in row.scores for row in rows)]
