"""`dualrate compare` as a function: entries in; a page, JSON and CSV out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dualrate.compare.contenders import Contender, Entry, contenders_of, is_dual
from dualrate.compare.page import compare_page
from dualrate.compare.records import as_csv, as_json
from dualrate.compare.savings import Findings
from dualrate.compare.work import SCREEN_SEED, SCREENING, TIMING, Bench, Measured, chosen
from dualrate.files import write_whole
from dualrate.ranges import Images, Minutes, Ranged
from dualrate.runs.evaluator import evaluator
from dualrate.runs.store import Model, load
from dualrate.training.log import Progress


@dataclass(frozen=True)
class Effort(Ranged):
    """minutes: of measuring, per call; screen, count: images of a contender, at first and on the front."""

    minutes: Minutes = 60
    screen: Images = 1000
    count: Images = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.screen > self.count:
            raise ValueError(
                f"got {self.screen} images to screen and {self.count} on the front: screen on no more than are on it"
            )


def compare(
    entries: Sequence[str],
    out: Path,
    effort: Effort = Effort(),
    *,
    features: Path | None = None,
    mixed: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress,
    command: str = "",
) -> Findings:
    """Measures, then writes `out` (.html) and beside it .json, .csv and a directory that the same call goes on from.

    entries:  see `contenders`
    features: directory of the feature net, for every run; the data set's own if not given
    mixed:    allow runs that were trained on other data than the first, which judges all
    Raises ValueError for entries that are none, runs that cannot be compared, and an `out` that is no .html file.
    """
    if out.suffix != ".html":
        raise ValueError(f"--out is an .html file, beside which .json and .csv are written, got {out}")
    start, device = time.monotonic(), torch.device(device)
    parsed = [Entry.parse(text) for text in entries]
    _require_names(parsed)
    models = {entry.run: load(entry.run, device=device, note=progress.note) for entry in parsed}
    _require_comparable(models, mixed=mixed)
    judge = evaluator(next(iter(models.values())).experiment.data, features=features, progress=progress)
    for count in (effort.screen, effort.count):
        judge.check_count(count)
    directory = out.with_suffix(".cells")
    directory.mkdir(parents=True, exist_ok=True)
    bench = Bench(models, judge, directory, device, progress)
    contenders = contenders_of(parsed, models, progress=progress, device=device)
    duals = frozenset(entry.network for entry in parsed if is_dual(models[entry.run]))
    screened, measured, left = _measured(contenders, bench, effort, start, duals)
    _write(out, Findings(screened, [], duals, [*left, "Nothing was timed yet."], judge, command))
    findings = Findings(screened, bench.finish(measured), duals, left, judge, command)
    _write(out, findings)
    return findings


def _write(out: Path, findings: Findings) -> None:
    for suffix, text in ((".json", as_json(findings)), (".csv", as_csv(findings)), (".html", compare_page(findings))):
        write_whole(out.with_suffix(suffix), text)


def _measured(
    contenders: Sequence[Contender], bench: Bench, effort: Effort, start: float, duals: frozenset[str]
) -> tuple[list[Measured], list[Measured], list[str]]:
    """What was screened, what was measured on the front, and what the minutes since `start` did not suffice for."""
    minutes, left = 60 * effort.minutes, []
    bench.estimate(contenders)
    cheapest_first = sorted(contenders, key=lambda contender: bench.costs[contender.key].macs)
    seeds = range(SCREEN_SEED, SCREEN_SEED + effort.screen)
    bench.progress.note(f"screening {len(contenders)} contenders on {effort.screen} images each")
    screened = bench.measure(cheapest_first, seeds, SCREENING * minutes, details=False)
    if len(screened) < len(contenders):
        left.append(f"{len(contenders) - len(screened)} of {len(contenders)} contenders were not screened in time.")
    own = [one for one in screened if one.contender.network in duals]
    others = [one for one in screened if one.contender.network not in duals]
    front = chosen(screened, bench, [side for side in (others, own) if side])
    bench.progress.note(f"measuring {len(front)} of them on {effort.count} images each")
    seconds = start + (1 - TIMING) * minutes - time.monotonic()
    measured = bench.measure(front, range(effort.count), seconds, details=True)
    if len(measured) < len(front):
        left.append(f"{len(front) - len(measured)} of {len(front)} contenders on the front were not measured in time.")
    return screened, measured, left


def _require_names(entries: Sequence[Entry]) -> None:
    """One name, one run: lines of a page are told apart by it."""
    runs: dict[str, Path] = {}
    for entry in entries:
        if runs.setdefault(entry.network, entry.run.resolve()) != entry.run.resolve():
            raise ValueError(f"two runs are called {entry.network!r}: name them, as in A={entry.run} B=...")


def _require_comparable(models: dict[Path, Model], *, mixed: bool) -> None:
    first, *others = (model.experiment for model in models.values())
    for other in others:
        if other.shape != first.shape or other.num_classes != first.num_classes:
            raise ValueError(
                f"{other.name} makes images {other.shape} of {other.num_classes} classes, {first.name} "
                f"{first.shape} of {first.num_classes}: they cannot be compared"
            )
        data, unlike = (f"{d.source} (size {d.size}, channels {d.channels})" for d in (first.data, other.data))
        if data != unlike and not mixed:
            raise ValueError(
                f"{other.name} was trained on {unlike}, {first.name} on {data}: scores against different images do not "
                "compare. If they are the same images, or you want it all the same, add --mixed"
            )
