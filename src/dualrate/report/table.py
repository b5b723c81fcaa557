"""Rows as a table: aligned text for terminals, Markdown, HTML cells, and dicts for JSON. Lowest cost first."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dualrate.metrics.fingerprint import require_same
from dualrate.report.rows import Row

EACH = "-"  # H of a single-rate row
TEXT_COLUMNS = 2  # network and sampler; the others are numbers
LINE = 119  # characters of a note in Markdown, at most


@dataclass(frozen=True)
class Table:
    """header and cells are text; notes: what the numbers mean, one line each."""

    header: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def table(rows: Sequence[Row]) -> Table:
    """The rows in order of cost, rounded for reading.

    Raises ValueError for no rows, and for scores that were taken under different conditions.
    """
    if not rows:
        raise ValueError("no rows, so there is no table: measure something first")
    require_same([row.score.fingerprint for row in rows])
    rows = sorted(rows, key=lambda row: row.macs)
    prefix, unit = compute_unit([row.flops for row in rows])
    score = rows[0].score
    header = (
        "network",
        "sampler",
        "N",
        "H",
        f"{prefix}MACs",
        f"{prefix}FLOPs",
        "ms",
        score.metric,
        f"{100 * score.level:.0f}% interval",
    )
    return Table(header, tuple(_cells(row, unit) for row in rows), _notes(rows))


def _cells(row: Row, unit: float) -> tuple[str, ...]:
    return (
        row.network,
        row.sampler,
        str(row.num_steps),
        EACH if row.num_heavy == row.num_steps else str(row.num_heavy),
        significant(row.macs / unit),
        significant(row.flops / unit),
        significant(1000 * row.seconds_per_image),
        significant(row.score.value),
        interval(row),
    )


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    score = rows[0].score
    batches = ", ".join(str(size) for size in sorted({row.batch_size for row in rows}))
    notes = [
        f"N steps, H heavy calls ({EACH}: the whole model at every step); MACs, FLOPs = 2 MACs and milliseconds per "
        f"image, measured in batches of {batches}",
        f"{score.metric}: lower is better; {score.fingerprint.count} images per row; fingerprint "
        f"{score.fingerprint.short()}",
        floor_note(rows),
    ]
    return (*notes, score.note) if score.note else tuple(notes)


def floor_note(rows: Sequence[Row]) -> str:
    """What real images reach, in words."""
    score = rows[0].score
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


def as_markdown(made: Table) -> str:
    """A Markdown table, the notes as a list below, no line of it longer than `LINE`."""
    rule = ["---" if i < TEXT_COLUMNS else "---:" for i in range(len(made.header))]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (made.header, *made.cells)]
    lines.insert(1, rule)
    notes = [
        textwrap.fill(note, LINE, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
        for note in made.notes
    ]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *notes])


def records(rows: Sequence[Row]) -> list[dict[str, object]]:
    """One flat dict per row, unrounded, in the order given; JSON has no NaN, so an unknown floor is None."""
    return [_record(row) for row in rows]


def _record(row: Row) -> dict[str, object]:
    own = asdict(row)
    score = own.pop("score")
    floor = None if math.isnan(row.score.floor) else row.score.floor
    left_out = ("precision", "details")
    return {k: v for k, v in (own | {"flops": row.flops} | score | {"floor": floor}).items() if k not in left_out}


def compute_unit(flops: Sequence[int]) -> tuple[str, float]:
    """The prefix that suits the largest of some costs, and its size: ("G", 1e9) from one thousand million on."""
    return ("G", 1e9) if max(flops) >= 1e9 else ("M", 1e6)


def interval(row: Row) -> str:
    """[low, high] with as many decimals as the value."""
    places = _places(row.score.value)
    return f"[{row.score.low:.{places}f}, {row.score.high:.{places}f}]"


def significant(value: float) -> str:
    """Three significant digits, never in exponent form; whole numbers keep all their digits."""
    return f"{value:.{_places(value)}f}"


def _places(value: float) -> int:
    if value == 0 or not math.isfinite(value):
        return 0
    return max(0, 2 - math.floor(math.log10(abs(float(f"{value:.3g}")))))
