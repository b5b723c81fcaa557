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
class Comparison:
    """Two rows and what their intervals and costs allow to say about the first."""

    row: Row
    other: Row
    verdict: str

    @property
    def sentences(self) -> str:
        return f"{describe(self.row)}; {describe(self.other)}. {self.verdict}"


def compare(row: Row, other: Row) -> Comparison:
    """Raises ValueError for scores that were taken under different conditions."""
    require_same([row.score.fingerprint, other.score.fingerprint])
    if row.score.low <= other.score.high and other.score.low <= row.score.high:
        verdict = f"The intervals overlap: {count(row)} images do not tell the two apart. {_costs(row, other)}"
    else:
        better, worse = (row, other) if row.score.value < other.score.value else (other, row)
        verdict = _winner(better, worse)
    return Comparison(row, other, verdict)


def nearest(row: Row, others: Sequence[Row]) -> Row:
    """The one of `others` whose FLOPs are nearest to the row's, by their ratio."""
    return min(others, key=lambda other: abs(math.log(other.flops / row.flops)))


def closest_pair(rows: Sequence[Row], others: Sequence[Row]) -> Comparison:
    """The comparison at the most similar FLOPs: chosen by cost alone, so that the result cannot choose it."""
    pairs = [(row, nearest(row, others)) for row in rows]
    return compare(*min(pairs, key=lambda pair: abs(math.log(pair[0].flops / pair[1].flops))))


def describe(row: Row) -> str:
    """Network, plan, score with its interval, and both costs of an image."""
    prefix, unit = compute_unit([row.macs])
    return (
        f"{name(row)}: {row.score.metric} {significant(row.score.value)} {interval(row)} at "
        f"{significant(row.flops / unit)} {prefix}FLOPs and {significant(1000 * row.seconds_per_image)} ms per image"
    )


def name(row: Row) -> str:
    """E.g. "dual-rate ancestral 32/8" for N = 32 and H = 8; "heavy DDIM 16" for a network called at every step."""
    return f"{row.network} {row.sampler} {plan(row)}"


def plan(row: Row) -> str:
    """N/H, or N alone where all of the model runs at every step."""
    return str(row.num_steps) if row.num_heavy == row.num_steps else f"{row.num_steps}/{row.num_heavy}"


def count(row: Row) -> int:
    """Images behind the row's score."""
    return row.score.fingerprint.count


def _winner(better: Row, worse: Row) -> str:
    flops, seconds = better.flops / worse.flops, better.seconds_per_image / worse.seconds_per_image
    if flops <= COMPARABLE and seconds <= COMPARABLE:
        return f"{_capital(name(better))} is better at no higher cost. {_costs(better, worse)}"
    if flops <= COMPARABLE:
        return f"{_capital(name(better))} is better for its FLOPs, but not for its time. {_costs(better, worse)}"
    if seconds <= COMPARABLE:
        return f"{_capital(name(better))} is better for its time, but not for its FLOPs. {_costs(better, worse)}"
    return f"{_capital(name(better))} is better and costs more, so neither wins. {_costs(better, worse)}"


def _costs(row: Row, other: Row) -> str:
    flops, seconds = row.flops / other.flops, row.seconds_per_image / other.seconds_per_image
    return (
        f"{_capital(name(row))} takes {significant(flops)} times the FLOPs and {significant(seconds)} times the "
        f"measured time of {name(other)}."
    )


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
