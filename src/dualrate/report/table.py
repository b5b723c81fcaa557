"""Rows as a table: cells for pages, aligned text for terminals, dicts for JSON. Lowest cost first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from dualrate.metrics.evaluate import Score
from dualrate.metrics.store import require_same
from dualrate.report.rows import Row, shared_metrics

EACH = "-"  # H of a single-rate row
TEXT_COLUMNS = 2  # network and sampler; the others are numbers


@dataclass(frozen=True)
class Table:
    """header and cells are text; notes: what the numbers mean, one line each."""

    header: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def table(rows: Sequence[Row], beside: Sequence[Mapping[str, str]] = (), notes: Sequence[str] = ()) -> Table:
    """The rows in order of cost, rounded for reading; a column for every metric that all rows have, with its interval.

    beside: further columns by their name, the same for each row, or none; notes: on these
    Raises ValueError for no rows, and for scores that were taken under different conditions.
    """
    if not rows:
        raise ValueError("no rows, so there is no table: measure something first")
    metrics = shared_metrics(rows)
    require_same([row.score.fingerprint for row in rows])
    for metric in metrics:
        require_same([row.scores[metric].fingerprint for row in rows])
    prefix, unit = compute_unit([row.flops for row in rows])
    lines = []
    for row, more in sorted(zip(rows, beside or [{}] * len(rows), strict=True), key=lambda pair: pair[0].macs):
        line = {
            "network": row.network,
            "sampler": row.sampler,
            "N": str(row.num_steps),
            "H": EACH if row.num_heavy == row.num_steps else str(row.num_heavy),
            metrics[0]: scored(row.score),
            f"{prefix}FLOPs": significant(row.flops / unit),
            "ms": significant(1000 * row.seconds_per_image),
        }
        lines.append({**line, **more, **{metric: scored(row.scores[metric]) for metric in metrics[1:]}})
    batches = ", ".join(str(size) for size in sorted({row.batch_size for row in rows}))
    scores = [rows[0].scores[metric] for metric in metrics]
    explained = (
        f"N steps, H heavy calls ({EACH}: the whole model at every step); FLOPs, twice the multiply-adds, and "
        f"milliseconds are per image, measured in batches of {batches}; brackets are "
        f"{100 * scores[0].level:.0f}% intervals over images",
        *notes,
        *(note for score in scores for note in (_score_note(score), floor_note(score))),
        *dict.fromkeys(score.note for score in scores if score.note),
    )
    return Table(tuple(lines[0]), tuple(tuple(line.values()) for line in lines), explained)


def _score_note(score: Score) -> str:
    count, fingerprint = score.fingerprint.count, score.fingerprint.short()
    return f"{score.metric}: lower is better; {count} images per row; fingerprint {fingerprint}"


def floor_note(score: Score) -> str:
    """What real images reach, in words."""
    if math.isnan(score.floor):
        return "floor: unknown, no held-out images"
    return f"floor: {significant(score.floor)}, reached by {score.floor_count} held-out real images"


def as_text(made: Table) -> str:
    """Columns aligned for a terminal, the notes below."""
    lines = [made.header, *made.cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(made.header))]

    def aligned(line: Sequence[str]) -> str:
        left = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        return "  ".join(left[:TEXT_COLUMNS] + right[TEXT_COLUMNS:]).rstrip()

    return "\n".join([*map(aligned, lines), "", *made.notes])


def records(rows: Sequence[Row]) -> list[dict[str, object]]:
    """One flat dict per row, unrounded, in the order given; JSON has no NaN, so an unknown floor is None."""
    return [_record(row) for row in rows]


def _record(row: Row) -> dict[str, object]:
    own = asdict(row)
    score = own.pop("score")
    left_out = ("precision", "details", "beside")
    merged = own | {"flops": row.flops, "arithmetic": row.precision} | score | {"floor": _floor(row.score)}
    flat = {k: v for k, v in merged.items() if k not in left_out}
    for other in row.beside:
        named = {"value": other.value, "low": other.low, "high": other.high, "floor": _floor(other)}
        flat |= {f"{other.metric} {name}": value for name, value in named.items()}
    return flat


def _floor(score: Score) -> float | None:
    return None if math.isnan(score.floor) else score.floor


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


def costs(row: Row) -> str:
    """FLOPs and milliseconds of an image."""
    prefix, unit = compute_unit([row.flops])
    return f"{significant(row.flops / unit)} {prefix}FLOPs and {significant(1000 * row.seconds_per_image)} ms"


def scored(score: Score) -> str:
    """Value and interval, [low, high], with as many decimals as the value."""
    places = _places(score.value)
    return f"{significant(score.value)} [{score.low:.{places}f}, {score.high:.{places}f}]"


def name(row: Row) -> str:
    """E.g. "dual-rate ancestral 32/8" for N = 32 and H = 8; "heavy DDIM 16" for a network called at every step."""
    return f"{row.network} {row.sampler} {plan_of(row)}"


def plan_of(row: Row) -> str:
    """N/H, or N alone where all of the model runs at every step."""
    return plan_name(row.num_steps, row.num_heavy)


def plan_name(steps: int, heavy: int) -> str:
    """N/H, or N alone for H = N."""
    return str(steps) if heavy == steps else f"{steps}/{heavy}"
