"""`dualrate plan --search`: a plan found by measuring."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualrate.config.imports import import_named
from dualrate.config.ranges import HeavyCalls, Minutes, Probability, Ranged
from dualrate.experiments.experiment import Model
from dualrate.machine.files import write_whole
from dualrate.machine.progress import Reporter
from dualrate.measuring.choosing import Choice

if TYPE_CHECKING:
    from dualrate.measuring.search import Compared, Findings


@dataclass(frozen=True)
class SearchOptions(Ranged):
    """A search by measuring."""

    search: bool = False
    """Search the grid of times and the first heavy call by drawing images: for one number of --steps, at --heavy calls,
    of a single network too. Says the score of what it finds on its own seeds, and on fresh ones."""
    heavy: HeavyCalls | None = None
    """H, heavy calls per image, of --search; as `dualrate sample` has it if not given."""
    sampler: str | None = None
    """Of --search; as `dualrate sample` has it if not given."""
    gamma: Probability | None = None
    """Noise level of the sampler."""
    minutes: Minutes | None = None
    """Of --search, 60 if not given; what they do not suffice for, the same command does next time. Without --search of
    measuring errors, 2 if not given: the grid is as fine as they allow."""

    @property
    def given(self) -> list[str]:
        """Options that mean something to a search alone, and were given."""
        return [f"--{name}" for name in ("heavy", "sampler", "gamma") if getattr(self, name) is not None]

    def choice(self, steps: int | None) -> Choice:
        import_named("sampler", self.sampler)
        return Choice(steps, self.heavy, self.sampler, self.gamma)


def run_search(
    model: Model,
    steps: int | None,
    options: SearchOptions,
    out: Path,
    *,
    features: Path | None,
    progress: Reporter,
    **effort: Any,
) -> None:
    """Searches, prints what was found, and writes `out`, and beside it a picture and what was measured.

    effort: num, grid, images, batch_size and mapper of a `search`
    """
    from dualrate.measuring.evaluator import evaluator
    from dualrate.measuring.measure import OutOfTime
    from dualrate.measuring.search import search
    from dualrate.report.figures import plan_figure, png

    judge = evaluator(model.experiment.data, features=features, progress=progress)
    keep, seconds = out.with_suffix(".search"), 60 * (60 if options.minutes is None else options.minutes)
    try:
        found = search(model, options.choice(steps), judge, keep, seconds=seconds, progress=progress, **effort)
    except OutOfTime as stop:
        progress.note(f"{stop}")
        raise SystemExit(75) from None
    print(_text(found))
    write_whole(out, found.plan.to_json() + "\n")
    write_whole(out.with_suffix(".search.json"), json.dumps(_record(found), indent=1) + "\n")
    shown = [(found.names[plan], plan) for plan in dict.fromkeys((found.plan, found.usual))]
    write_whole(out.with_suffix(".png"), png(plan_figure(shown)))
    print(f"\n{out}: {found.names[found.plan]}; {out.with_suffix('.png')}, {out.with_suffix('.search.json')}")


def _text(found: Findings) -> str:
    """The last round, then both scores of the plan that was found and of the usual one."""
    last = found.rounds[-1]
    ordered = sorted(last.values.items(), key=lambda item: item[1])
    return "\n".join(
        [
            f"{found.search.found.metric}, {last.count} images a plan in the last of {len(found.rounds)} rounds",
            *(f"{value:9.3f}  {found.names[plan]}" for plan, value in ordered),
            *_lines("seeds of the search, which flatter what was found on them", found.search),
            *_lines("fresh seeds", found.fresh),
            f"On fresh seeds what was found is {_verdict(found.fresh)} the usual plan.",
        ]
    )


def _lines(seeds: str, both: Compared) -> list[str]:
    scores = {"found": both.found, "usual": both.usual}
    interval = both.interval
    return [
        "",
        f"{seeds}, {both.found.fingerprint.seeds}",
        *(f"{score.value:9.3f}  [{score.low:.3f}, {score.high:.3f}]  {name}" for name, score in scores.items()),
        f"{both.difference:+9.3f}  [{interval.low:+.3f}, {interval.high:+.3f}]  found less usual, paired",
    ]


def _verdict(both: Compared) -> str:
    """Of what was found, by the interval of the paired difference."""
    if both.interval.high < 0:
        return "better than"
    return "worse than" if both.interval.low > 0 else "not told apart from"


def _record(found: Findings) -> dict[str, Any]:
    """All that was measured, for JSON."""

    def both(compared: Compared) -> dict[str, Any]:
        scores = {"found": compared.found, "usual": compared.usual}
        return {
            "seeds": compared.found.fingerprint.seeds,
            **{name: {"value": s.value, "low": s.low, "high": s.high} for name, s in scores.items()},
            "difference": {"value": compared.difference, "low": compared.interval.low, "high": compared.interval.high},
        }

    return {
        "metric": found.search.found.metric,
        "features": found.search.found.fingerprint.features,
        "found": found.names[found.plan],
        "usual": found.names[found.usual],
        "search": both(found.search),
        "fresh": both(found.fresh),
        "rounds": [
            {"images": one.count, "scores": {found.names[plan]: value for plan, value in one.values.items()}}
            for one in found.rounds
        ],
    }
