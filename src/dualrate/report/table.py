"""Measured rows, and tables of them: cells for pages, aligned text for terminals, flat dicts for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from dualrate.metrics.ensembles import EnsembleScores
from dualrate.metrics.quality import QualityScore
from dualrate.metrics.store import require_same
from dualrate.system.terminal import one_line

EACH = "-"  # H of a single-rate row
TEXT_COLUMNS = 2  # network and sampler; the others are numbers


@dataclass(frozen=True)
class Row:
    """A model under one sampler and plan: what an image cost and how good the images were.

    network:           what was run, e.g. "heavy", "dual-rate", "light alone"
    sampler:           "ancestral", "DDIM", ..., with its settings and the guidance where they are not the usual ones
    num_steps:         N
    num_heavy:         H, heavy calls per image; N for a single-rate network
    macs:              multiply-adds per image, guidance counted; FLOPs are twice that
    seconds_per_image: of networks and sampler, measured in this run, at `batch_size`
    precision:         "float32" or "bfloat16", of the networks' matrix products; then ", compiled", ", CUDA graphs"
    score:             quality with its interval, by the first metric
    beside:            by the other metrics, of the same images
    ensemble:          scores of several samples a condition; None where there are none
    """

    network: str
    sampler: str
    num_steps: int
    num_heavy: int
    macs: int
    seconds_per_image: float
    batch_size: int
    precision: str
    score: QualityScore
    beside: tuple[QualityScore, ...] = ()
    ensemble: EnsembleScores | None = None

    @property
    def flops(self) -> int:
        return 2 * self.macs

    @property
    def scores(self) -> dict[str, QualityScore]:
        """Scores by metric, the main one first."""
        return {score.metric: score for score in (self.score, *self.beside)}

    @property
    def plan(self) -> str:
        """N/H, or N alone where all of the model runs at every step."""
        return str(self.num_steps) if self.num_heavy == self.num_steps else f"{self.num_steps}/{self.num_heavy}"

    def __str__(self) -> str:
        """E.g. "dual-rate ancestral 32/8" for N = 32 and H = 8; "heavy DDIM 16" for a network called at every step."""
        return f"{self.network} {self.sampler} {self.plan}"


@dataclass(frozen=True)
class Table:
    """Rows and columns to print.

    header and cells are text; notes: what the numbers mean, one line each; texts: columns that are no numbers
    """

    header: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    texts: int = TEXT_COLUMNS


def shared_metrics(rows: Sequence[Row]) -> list[str]:
    """The metrics that all of the rows have, in the order of the first one."""
    return [metric for metric in rows[0].scores if all(metric in row.scores for row in rows)]


def table(
    rows: Sequence[Row],
    beside: Sequence[Mapping[str, str]] = (),
    notes: Sequence[str] = (),
    *,
    noun: str = "image",
) -> Table:
    """The rows in order of cost, rounded for reading; a column for every metric that all rows have, with its interval.

    beside: further columns by their name, the same for each row, or none; notes: on these; noun: of one sample
    Raises ValueError for no rows, and for scores that were taken under different conditions.
    """
    if not rows:
        raise ValueError("no rows, so there is no table: measure something first")
    require_same([row.score.fingerprint for row in rows])
    first, *rest = shared_metrics(rows)
    for metric in rest:
        require_same([row.scores[metric].fingerprint for row in rows])
    prefix, unit = compute_unit([row.flops for row in rows])
    lines = []
    for row, more in sorted(zip(rows, beside or [{}] * len(rows), strict=True), key=lambda pair: pair[0].macs):
        line = {
            "network": row.network,
            "sampler": row.sampler,
            "N": str(row.num_steps),
            "H": EACH if row.num_heavy == row.num_steps else str(row.num_heavy),
            first: scored(row.score),
            f"{prefix}FLOPs": significant(row.flops / unit),
            "ms": significant(1000 * row.seconds_per_image),
        }
        lines.append({**line, **more, **{metric: scored(row.scores[metric]) for metric in rest}})
    batches = ", ".join(str(size) for size in sorted({row.batch_size for row in rows}))
    explained = [
        f"N: steps. H: heavy calls; {EACH}: the whole model runs at every step. FLOPs: twice the multiply-adds of "
        f"{with_article(noun)}. ms: milliseconds per {noun} in batches of {batches}. Brackets: "
        f"{100 * rows[0].score.level:.0f}% intervals over {noun}s",
        *notes,
    ]
    for score in (rows[0].scores[metric] for metric in (first, *rest)):
        count, mark = score.fingerprint.count, score.fingerprint.short()
        explained.append(f"{score.metric}: {score.better} is better; {count} {noun}s per row; fingerprint {mark}")
        if not math.isnan(score.floor):
            explained.append(f"floor: {significant(score.floor)}, reached by {score.floor_count} held-out real {noun}s")
        explained.append(score.note)
    notes = tuple(dict.fromkeys(filter(None, explained)))
    return Table(tuple(lines[0]), tuple(tuple(line.values()) for line in lines), notes)


def as_text(table: Table) -> str:
    """Columns aligned for a terminal, the notes below. Line feeds in them, as of names, are shown as spaces."""
    rows = [[*map(one_line, row)] for row in (table.header, *table.cells)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < table.texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", *map(one_line, table.notes)])


def record(row: Row) -> dict[str, object]:
    """A flat dict, unrounded. JSON has no NaN, so an unknown floor is None."""
    fields = asdict(row) | {"flops": row.flops, "arithmetic": row.precision} | asdict(row.score)
    for name in ("precision", "score", "details", "beside"):
        del fields[name]
    for score in row.beside:
        fields |= {
            f"{score.metric} {name}": getattr(score, name) for name in ("value", "low", "high", "floor", "accuracy")
        }
    return {name: None if value != value else value for name, value in fields.items()}


def compute_unit(flops: Sequence[int]) -> tuple[str, float]:
    """The prefix that suits the largest of some costs, and its size: ("G", 1e9) from one thousand million on."""
    return ("G", 1e9) if max(flops) >= 1e9 else ("M", 1e6)


def significant(value: float) -> str:
    """Three significant digits, never in exponent form; whole numbers keep all their digits."""
    return f"{value:.{_places(value)}f}"


def _places(value: float) -> int:
    if value == 0 or not math.isfinite(value):
        return 0
    return max(0, 2 - math.floor(math.log10(abs(float(f"{value:.3g}")))))


def scored(score: QualityScore) -> str:
    """Value and interval, with as many decimals as the value."""
    return with_interval(score.value, score.low, score.high, _places(score.value))


def with_article(noun: str) -> str:
    """An image; a forecast."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def aligned(values: Mapping[str, object]) -> str:
    """A line for each name and its value."""
    width = max(map(len, values))
    shown = (
        "-" if value is None else f"{value:.4g}" if isinstance(value, float) else value for value in values.values()
    )
    return "\n".join(f"{name:{width}}  {one_line(str(value))}" for name, value in zip(values, shown, strict=True))


def with_interval(value: float, low: float, high: float, places: int) -> str:
    """Value [low, high]; of no interval (NaN) the value alone."""
    return f"{value:.{places}f}" + ("" if math.isnan(low) else f" [{low:.{places}f}, {high:.{places}f}]")
