"""Rows as a table: aligned text for terminals, Markdown, HTML cells, and dicts for JSON. Lowest cost first."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dualrate.metrics.evaluate import Score
from dualrate.metrics.fingerprint import require_same
from dualrate.report.rows import Row, shared_metrics

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
    """The rows in order of cost, rounded for reading; a column and an interval for every judge.

    Raises ValueError for no rows, and for scores that were taken under different conditions.
    """
    if not rows:
        raise ValueError("no rows, so there is no table: measure something first")
    require_judged_alike(rows)
    rows = sorted(rows, key=lambda row: row.macs)
    prefix, unit = compute_unit([row.flops for row in rows])
    header = (
        "network",
        "sampler",
        "N",
        "H",
        f"{prefix}MACs",
        f"{prefix}FLOPs",
        "ms",
        *judge_header(rows),
    )
    return Table(header, tuple(_cells(row, unit, shared_metrics(rows)) for row in rows), _notes(rows))


def require_judged_alike(rows: Sequence[Row]) -> None:
    """ValueError for scores of one judge that were taken under different conditions, and for other first judges."""
    require_same([row.score.fingerprint for row in rows])
    for metric in shared_metrics(rows):
        require_same([row.scores[metric].fingerprint for row in rows])


def judge_header(rows: Sequence[Row]) -> tuple[str, ...]:
    """Of two columns a judge: value, interval."""
    scores = [rows[0].scores[metric] for metric in shared_metrics(rows)]
    return tuple(text for score in scores for text in (score.metric, f"{100 * score.level:.0f}% interval"))


def judge_cells(row: Row, metrics: Sequence[str]) -> tuple[str, ...]:
    """Of the columns of `judge_header`."""
    seen = [row.judged_by(metric) for metric in metrics]
    return tuple(text for own in seen for text in (significant(own.score.value), interval(own)))


def heavy_calls(row: Row) -> str:
    """H, or EACH where all of the model runs at every step."""
    return EACH if row.num_heavy == row.num_steps else str(row.num_heavy)


def _cells(row: Row, unit: float, metrics: Sequence[str]) -> tuple[str, ...]:
    return (
        row.network,
        row.sampler,
        str(row.num_steps),
        heavy_calls(row),
        significant(row.macs / unit),
        significant(row.flops / unit),
        significant(1000 * row.seconds_per_image),
        *judge_cells(row, metrics),
    )


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    batches = ", ".join(str(size) for size in sorted({row.batch_size for row in rows}))
    scores = [rows[0].scores[metric] for metric in shared_metrics(rows)]
    return (
        f"N steps, H heavy calls ({EACH}: the whole model at every step); MACs, FLOPs = 2 MACs and milliseconds per "
        f"image, measured in batches of {batches}",
        *judge_notes(rows),
        *dict.fromkeys(score.note for score in scores if score.note),
    )


def judge_notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """What the numbers of each judge mean, and what real images reach."""
    scores = [rows[0].scores[metric] for metric in shared_metrics(rows)]
    return tuple(note for score in scores for note in (_score_note(score), floor_note(score)))


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
