"""Which outcome of the paper's curve holds, by the rows of `paper_curve`: python -m tools.gpu.outcome FILE

The rule was written before the first call. A comparison is the mean over sets of
10,000 images of the log ratio of two Frechet distances to the same training images. Sets have the same seeds for every
plan. Its interval is Student's, at 95%; a single set has none. All judges have to agree.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

NEAR, FAR = 0.03, 0.15  # as good: at most so much worse, with twice that as the interval's end; far worse: more
QUANTILE = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # of Student's t, by the number of sets
PAIR, WHOLE = "pair 128/16", "heavy 256/256"
BASELINES = ("heavy 32/32", "mid 112/112")  # in N / 4 steps, and of the pair's cost
EVERY_STEP = ("pair 64/64", "heavy 64/64")
DECIDING = (PAIR, WHOLE, *BASELINES, *EVERY_STEP)
EQUAL_STEPS = {
    "pair 64/8": "heavy 64/64",
    "pair 64/16": "heavy 64/64",
    "pair 128/8": "heavy 128/128",
    PAIR: "heavy 128/128",
    "pair 256/16": WHOLE,
}
MEANING = {
    "open": "rows are missing, or an interval is too wide",
    "bug": "with a heavy call at every step the pair is worse than the heavy network: a bug",
    "weak": "the context is too weak: look at its age, at the projections, at dropout",
    "between": "the curve is not reproduced, for none of the reasons that were foreseen",
    "reproduced": "the paper's curve is reproduced",
    "baseline": "a baseline is as good: the gain is one of the baseline, and two rates do not pay here",
    "unclear": "pair and baselines are not told apart",
    "below, once": "the pair is below both baselines, in one training so far",
    "below": "the pair is below both baselines: the first positive on images without an unchanging condition",
}
Rows = Mapping[str, Any]


class Ratio(NamedTuple):
    """A Frechet distance over another one, less 1, with its interval."""

    mean: float
    low: float
    high: float

    @property
    def as_good(self) -> bool:
        """Whether the first is as good as the second, or better."""
        return self.mean <= NEAR and self.high <= 2 * NEAR

    @property
    def inverse(self) -> Ratio:
        return Ratio(*(1 / (1 + part) - 1 for part in (self.mean, self.high, self.low)))

    def __str__(self) -> str:
        interval = "of one set" if math.isinf(self.high) else f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{100 * self.mean:+.1f}% {interval}"


def key(sampler: str, plan: str, training: int, number: int) -> str:
    """The name of a row: of one set of images."""
    return f"{sampler}, {plan}, training {training}, set {number}"


def distances(rows: Rows, judge: str, plan: str, training: int) -> dict[int, float]:
    """Frechet distances under the ancestral sampler, by set."""
    pairs = ((number, rows.get(key("ancestral", plan, training, number), {})) for number in range(max(QUANTILE)))
    return {number: row["fd"][judge] for number, row in pairs if "fd" in row}


def compare(rows: Rows, judge: str, both: tuple[str, str], training: int) -> Ratio | None:
    """Two plans, on the sets that both have; None without any. A network that was trained once has training 0."""
    first, second = both
    ours = distances(rows, judge, first, training)
    theirs = distances(rows, judge, second, training) or distances(rows, judge, second, 0)
    logs = [math.log(ours[number] / theirs[number]) for number in sorted(ours.keys() & theirs.keys())]
    if not logs:
        return None
    mean = statistics.fmean(logs)
    if len(logs) == 1:
        return Ratio(math.expm1(mean), -1, math.inf)
    half = QUANTILE[len(logs)] * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.expm1(mean), math.expm1(mean - half), math.expm1(mean + half))


Comparisons = Mapping[tuple[str, str], list[Ratio]]  # of two plans, one in each training; empty: not scored yet


def comparisons(rows: Rows, judge: str) -> Comparisons:
    """All that the rule reads."""
    trainings = {PAIR: (0, 1)} if distances(rows, judge, PAIR, 1) else {}
    pairs = [EVERY_STEP, *EQUAL_STEPS.items(), *((PAIR, rival) for rival in (WHOLE, *BASELINES))]
    each = {both: [compare(rows, judge, both, of) for of in trainings.get(both[0], (0,))] for both in pairs}
    return {both: [ratio for ratio in ratios if ratio] if all(ratios) else [] for both, ratios in each.items()}


def curve(ratios: Comparisons) -> str:
    """The key in MEANING of the paper's curve."""
    even, whole = ratios[EVERY_STEP], ratios[PAIR, WHOLE]
    if even and even[0].mean > FAR:
        return "bug"
    if not all(ratios[both] for both in (EVERY_STEP, (PAIR, WHOLE), *EQUAL_STEPS.items())):
        return "open"
    if all(ratio.mean > FAR for both in EQUAL_STEPS.items() for ratio in ratios[both]):
        return "weak"
    if any(ratio.mean > NEAR for ratio in whole):
        return "between"
    return "reproduced" if all(ratio.as_good for ratio in whole) else "open"


def pays(ratios: Comparisons) -> str:
    """The key in MEANING of the pair against the baselines that the paper lacks."""
    against = [ratios[PAIR, rival] for rival in BASELINES]
    if not all(against) or any(math.isinf(ratio.high) for each in against for ratio in each):
        return "open"
    if any(all(ratio.inverse.as_good for ratio in each) for each in against):
        return "baseline"
    if any(ratio.high >= 0 for each in against for ratio in each):
        return "unclear"
    return "below" if len(against[0]) > 1 else "below, once"


def by_judge(rows: Rows) -> dict[str, Comparisons]:
    """The comparisons of every judge that scored anything."""
    return {name: comparisons(rows, name) for row in rows.values() for name in row.get("fd", ())}


def decided(rows: Rows) -> dict[str, str]:
    """Keys in MEANING of the curve and of the baselines, or those of each judge where they disagree."""
    parts: dict[str, Callable[[Comparisons], str]] = {"curve": curve, "pays": pays}
    says = {part: {name: rule(ratios) for name, ratios in by_judge(rows).items()} for part, rule in parts.items()}
    return {
        part: next(iter(keys.values()), "open") if len(set(keys.values())) < 2 else f"the judges disagree: {keys}"
        for part, keys in says.items()
    }


def page(rows: Rows) -> str:
    """Every comparison by every judge, and what holds, in words."""
    lines = [
        f"{name}: {' over '.join(both)}: {', '.join(map(str, ratios)) or 'not scored'}"
        for name, comparison in by_judge(rows).items()
        for both, ratios in comparison.items()
    ]
    return "\n".join([*lines, *(f"{part}: {MEANING.get(key, key)}" for part, key in decided(rows).items())])


if __name__ == "__main__":
    print(page(json.loads(Path(sys.argv[1]).read_text())["rows"]))
