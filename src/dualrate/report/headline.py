"""What rows allow to be said, in sentences. A win is claimed only for separate intervals at no higher cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dualrate.metrics.fingerprint import require_same
from dualrate.report.rows import Row
from dualrate.report.table import compute_unit, interval, significant

COMPARABLE = 1.1  # costs within this factor count as equal


@dataclass(frozen=True)
class Verdict:
    """Two rows and what may be said about them; where they differ, `first` has the better score."""

    first: Row
    second: Row
    verdict: str

    @property
    def sentence(self) -> str:
        """The verdict, both scores, and the ratio of the costs."""
        flops = significant(self.first.flops / self.second.flops)
        seconds = significant(self.first.seconds_per_image / self.second.seconds_per_image)
        return (
            f"{capital(self.verdict)}: {scored(self.first)} against {scored(self.second)}, at {flops} times the FLOPs "
            f"and {seconds} times the measured time."
        )


def compare(row: Row, other: Row) -> Verdict:
    """Raises ValueError for scores that were taken under different conditions."""
    if not distinguishable(row, other):
        images = row.score.fingerprint.count
        return Verdict(row, other, f"{name(row)} and {name(other)} are not distinguishable at {images} images")
    better, worse = (row, other) if row.score.value < other.score.value else (other, row)
    return Verdict(better, worse, _verdict(better, worse))


def distinguishable(row: Row, other: Row) -> bool:
    """Whether the intervals are separate. Raises ValueError for scores that were taken under different conditions."""
    require_same([row.score.fingerprint, other.score.fingerprint])
    return row.score.low > other.score.high or other.score.low > row.score.high


def best_within(row: Row, others: Sequence[Row]) -> Row | None:
    """The best score among `others` of at most COMPARABLE times the row's FLOPs; None if all take more."""
    affordable = [other for other in others if other.flops <= COMPARABLE * row.flops]
    return min(affordable, key=lambda other: other.score.value) if affordable else None


def tally(pairs: Sequence[tuple[Row, Row]]) -> str:
    """How often the first of a pair is better, worse, or not distinguishable, in words."""
    decided = [(row, other) for row, other in pairs if distinguishable(row, other)]
    better = sum(row.score.value < other.score.value for row, other in decided)
    worse, undecided = len(decided) - better, len(pairs) - len(decided)
    return f"better in {better} of {len(pairs)} plans, worse in {worse}, not distinguishable in {undecided}"


def nearest(row: Row, others: Sequence[Row]) -> Row:
    """The one of `others` whose FLOPs are nearest to the row's, by their ratio."""
    return min(others, key=lambda other: abs(math.log(other.flops / row.flops)))


def describe(row: Row) -> str:
    """Network, plan, score with its interval, and both costs of an image."""
    return f"{name(row)}: {row.score.metric} {scored(row)} at {costs(row)} per image"


def costs(row: Row) -> str:
    """FLOPs and milliseconds of an image."""
    prefix, unit = compute_unit([row.flops])
    return f"{significant(row.flops / unit)} {prefix}FLOPs and {significant(1000 * row.seconds_per_image)} ms"


def scored(row: Row) -> str:
    """The score and its interval."""
    return f"{significant(row.score.value)} {interval(row)}"


def name(row: Row) -> str:
    """E.g. "dual-rate ancestral 32/8" for N = 32 and H = 8; "heavy DDIM 16" for a network called at every step."""
    return f"{row.network} {row.sampler} {plan_of(row)}"


def plan_of(row: Row) -> str:
    """N/H, or N alone where all of the model runs at every step."""
    return plan_name(row.num_steps, row.num_heavy)


def plan_name(steps: int, heavy: int) -> str:
    """N/H, or N alone for H = N."""
    return str(steps) if heavy == steps else f"{steps}/{heavy}"


def capital(words: str) -> str:
    """The first letter in upper case, the others as they are."""
    return words[:1].upper() + words[1:]


def _verdict(better: Row, worse: Row) -> str:
    fewer_flops = better.flops <= COMPARABLE * worse.flops
    less_time = better.seconds_per_image <= COMPARABLE * worse.seconds_per_image
    match fewer_flops, less_time:
        case True, True:
            return f"{name(better)} beats {name(worse)} at no higher cost"
        case True, False:
            return f"{name(better)} beats {name(worse)} at no more FLOPs, but takes more time"
        case False, True:
            return f"{name(better)} beats {name(worse)} in no more time, but takes more FLOPs"
        case _:
            return f"{name(better)} is better than {name(worse)} but costs more, so neither wins"
