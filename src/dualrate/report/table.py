"""Rows as a table: aligned text for terminals, Markdown, HTML cells, and dicts for JSON. Lowest cost first.

What rows allow to be said, in sentences. A win is claimed only for separate intervals at no higher cost.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dualrate.metrics.evaluate import Score
from dualrate.metrics.origin import require_same
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
