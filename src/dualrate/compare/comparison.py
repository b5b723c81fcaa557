"""`dualrate compare` as a function: entries in; a page, JSON and CSV out."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from dualrate.compare.contender import Contender
from dualrate.compare.contenders import (
    Entry,
    contenders_of,
    planning_seconds,
    require_plans,
    require_samplers,
    rivals_of,
    switched_at,
)
from dualrate.compare.page import compare_page
from dualrate.compare.records import as_csv, as_json
from dualrate.compare.savings import ComparisonResults
from dualrate.compare.speed import affordable, levels, useful_first
from dualrate.compare.trainings import as_one, require_trainings, with_trainings
from dualrate.compare.work import SCREEN_SEED, Bench, MeasuredContender, chosen
from dualrate.config.ranges import Images, Minutes, Precision, Ranged, WorkerCount, as_path
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.evaluator import evaluators, features_named
from dualrate.drawing.latents import draw_latents, drawn_by
from dualrate.drawing.measure import check
from dualrate.experiment.experiment import Model
from dualrate.report.table import plan_name
from dualrate.runs.store import load
from dualrate.sampling.cost import CallCost
from dualrate.system.files import write_whole
from dualrate.system.progress import Reporter, duration, image_progress, run_lock
from dualrate.system.workers import mapper, number_of_workers

PLANNING = 0.1  # of the minutes: for planning at most
SCREENING = 0.55  # of what is left then, and not reserved for the timing at the end: for screening at most
TIMING, TIMING_A_NETWORK = 0.1, 10.0  # reserved for it: of the minutes, and seconds for every network
TIMING_CALLS = 0.5  # of what is left after planning: for timing the networks' calls, by which all is planned
FRONT = 0.25  # of the contenders are on the front, as a rule
NAMED = 6  # contenders at most, in a list of those left out


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
    out: str | Path,
    effort: Effort = Effort(),
    *,
    features: str | Path | None = None,
    mixed: bool = False,
    rivals: bool = False,
    switch_at: float | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "auto",
    workers: WorkerCount = 1,
    compiled: bool = False,
    graphs: bool = False,
    latents_by: Path | None = None,
    rows: Path | None = None,
    progress: Reporter,
    command: str = "",
) -> ComparisonResults:
    """Measures, then writes `out` (.html) and beside it .json, .csv and a directory that the same call goes on from.

    entries:  see `contenders`
    features: judges, for every run, as `features_named` reads them: all see the same images, and the first one screens
              and orders; the data set's own if not given
    precision: of the networks' matrix products; auto: bfloat16 where it pays
    workers:  processes that draw at once; what is timed is timed in this one, alone
    compiled: the networks, when they are first called; memory is that without
    graphs:   their calls are recorded as CUDA graphs, on a GPU (system/device.py); memory is that without
    mixed:    allow runs that were trained on other data than the first, which judges all
    rivals:   add every denoiser of the catalogue around the dearest single network
    switch_at: time at which the heavy network takes over from a lighter run's, where its entry does not say it
    latents_by: directory of a model of latents: decoders are given those that it draws, as many as `count`, in place of
              those of held-out images
    rows:     directory of measured rows, as of several machines (compare/rows.py); beside `out` if not given
    Raises ValueError for entries that are none, runs that cannot be compared, and an `out` that is no .html file;
    OSError where another process compares into the same directory.
    """
    out = as_path(out)
    if out.suffix != ".html":
        raise ValueError(f"--out is an .html file, beside which .json and .csv are written, got {out}")
    clock, device = Clock(60 * effort.minutes), torch.device(device)
    parsed = [Entry.parse(text) for text in entries]
    _require_names(parsed)
    features_named(features)  # before the models are loaded
    runs = dict.fromkeys(run for entry in parsed for run in (entry.run, *entry.again))
    how = {"compiled": compiled, "graphs": graphs}
    models = {run: replace(load(run, device=device, note=progress.note), **how) for run in runs}
    _require_comparable(models, mixed=mixed)
    of_models = [model.experiment.data for model in models.values()]
    data = next((one for one in of_models if one.source), of_models[0])  # a folder of diffusers says none
    base = None if latents_by is None else _base(latents_by, models.values(), precision, progress)
    require_samplers(parsed, models)
    require_plans(parsed, models)
    require_trainings(parsed, models)
    if rivals:
        parsed += rivals_of(parsed, models, progress=progress)
    if switch_at is not None:
        parsed = switched_at(parsed, switch_at)
    judges = evaluators(data, features, device=device, progress=progress)
    check(judges[:1], effort.screen, details=False)
    check(judges, effort.count, details=True)
    directory, latents = out.with_suffix(".cells"), None
    directory.mkdir(parents=True, exist_ok=True)
    with run_lock(directory, "filled by a comparison"):
        bench = Bench(models, judges, directory, progress, precision, rows)
        unplanned = _unplanned(parsed, bench, clock)
        contenders = contenders_of(parsed, models, progress=progress, unplanned=unplanned)
        duals = frozenset(one.network for one in contenders if models[one.run].call_cost.heavy and one.reuses)
        if base is not None:
            start = time.monotonic()
            with mapper(workers, device, progress.note) as over:
                progress.note(f"{effort.count} latents by {drawn_by(base)}")
                latents = draw_latents(base, effort.count, directory, progress=image_progress(progress), mapper=over)
            progress.close()
            bench.models = {run: model.with_latents(latents) for run, model in models.items()}
            drawing = time.monotonic() - start
            clock = replace(clock, start=clock.start + drawing)  # they are kept: the minutes are for rows
        bench.share = _share(workers, device)
        with mapper(workers, device, progress.note) as bench.mapper:
            screened, measured, unfinished = _measured(contenders, parsed, bench, effort, clock, duals)
        how = {"measured": measured, "device": device, "unplanned": list(unplanned.values())}
        results = ComparisonResults(screened, [], duals, unfinished, bench.judge, command, latents, **how)
        _write(out, replace(results, unfinished=[*unfinished, "Nothing was timed yet."]))
        results = replace(results, finished=bench.finish(as_one(measured), clock.left))
        _write(out, results)
        return results


@dataclass(frozen=True)
class Clock:
    """Counts from when it was made. seconds: there are in all."""

    seconds: float
    start: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left, 0 where they are over."""
        return max(self.start + self.seconds - time.monotonic(), 0.0)


def _base(run: Path, decoders: Collection[Model], precision: Precision, progress: Reporter) -> Drawer:
    """What draws the latents, as is recommended for it. Raises what loading and `check_latents` raise."""
    model = load(run, device=next(iter(decoders)).device, note=progress.note)
    for decoder in decoders:
        decoder.check_latents(model.codec.latents, model.shape)
    return Choice().drawer(model, precision=precision)


def _share(workers: WorkerCount, device: torch.device) -> float:
    """Of the time that this process alone would take: several have a thread each, or a GPU."""
    count = number_of_workers(workers, device)
    if count == 1:
        return 1.0
    return 1 / min(count, torch.cuda.device_count()) if device.type == "cuda" else torch.get_num_threads() / count


def _unplanned(entries: Sequence[Entry], bench: Bench, clock: Clock) -> dict[Entry, str]:
    """The entries for whose planning these minutes are too few, with a sentence each."""
    found: dict[Entry, str] = {}
    seconds, wanted = PLANNING * clock.seconds, 0.0
    for entry in entries:
        if not planning_seconds(entry, bench.models, CallCost(1, 1)):
            continue
        wants = "more --minutes"
        if seconds > 0:
            start = time.monotonic()
            calls = bench.call_seconds(bench.models[entry.run], entry.run)
            takes = bench.pace * planning_seconds(entry, bench.models, calls)
            timing = time.monotonic() - start
            seconds, wanted = seconds - timing, wanted + timing + takes
            if takes <= seconds:
                seconds -= takes
                continue
            wants = f"--minutes {math.ceil(wanted / PLANNING / 60)} or more"
        found[entry] = f"No plans were planned for {entry.network}: that wants {wants}."
        bench.progress.note(found[entry])
    return found


def _write(out: Path, results: ComparisonResults) -> None:
    for suffix, text in ((".json", as_json(results)), (".csv", as_csv(results)), (".html", compare_page(results))):
        write_whole(out.with_suffix(suffix), text)


def _measured(
    contenders: Sequence[Contender],
    entries: Sequence[Entry],
    bench: Bench,
    effort: Effort,
    clock: Clock,
    duals: frozenset[str],
) -> tuple[list[MeasuredContender], list[MeasuredContender], list[str]]:
    """What was screened, what was measured on the front, every training, and what there was no time for."""
    wanted = (range(SCREEN_SEED, SCREEN_SEED + effort.screen), range(effort.count))
    if not all(bench.keeps(one, seeds) for one in with_trainings(contenders, entries) for seeds in wanted):
        bench.see_real_images()  # now, so that they are not in the time of what is drawn
    macs = {one.key: bench.drawer(one).expected_cost.macs for one in contenders}
    timed = bench.estimate(useful_first(contenders, macs), TIMING_CALLS * clock.left)
    timing = TIMING * clock.seconds + TIMING_A_NETWORK * len({(one.run, one.denoiser) for one in contenders})
    screens = levels(effort.screen, 2 * bench.judge.net.dim)
    seeds = {images: range(SCREEN_SEED, SCREEN_SEED + images) for images in screens}
    picked, images = affordable(
        timed,
        lambda contender, images: bench.seconds(contender, seeds[images]),
        SCREENING * (clock.left - min(timing, clock.left / 2)),
        list(seeds),
        wanted=(len(timed) + 1) // 2,
    )
    _announce(contenders, timed, picked, images, bench, effort, clock)
    screened = bench.measure(picked, seeds[images], SCREENING * clock.left, details=False)
    unfinished = _unfinished(len(contenders), len(screened), "contenders were", "screened", images, effort.screen)

    own = [one for one in screened if one.contender.network in duals]
    others = [one for one in screened if one.contender.network not in duals]
    front = with_trainings(chosen(screened, bench, [side for side in (others, own) if side]), entries)
    bench.estimate(front)
    fewest = 2 * max(judge.net.dim for judge in bench.judges)
    seconds = clock.left - min(timing, clock.left / 2)
    picked, images = affordable(
        front,
        lambda contender, images: bench.seconds(contender, range(images)),
        seconds,
        levels(effort.count, fewest),
        wanted=sum(bench.keeps(one, range(effort.count)) for one in front) or len(front),  # kept rows are not given up
    )
    bench.progress.note(f"measuring {len(picked)} of the {len(front)} on the front, {images} images each")
    measured = bench.measure(picked, range(images), seconds, details=True)
    unfinished += _unfinished(
        len(front), len(measured), "contenders on the front were", "measured", images, effort.count
    )
    return screened, measured, unfinished


def _announce(
    contenders: Sequence[Contender],
    timed: Sequence[Contender],
    picked: Sequence[Contender],
    images: int,
    bench: Bench,
    effort: Effort,
    clock: Clock,
) -> None:
    """What all of it would take, and what is done and left out this time."""
    screening = sum(bench.seconds(one, range(SCREEN_SEED, SCREEN_SEED + effort.screen)) for one in timed)
    front = FRONT * sum(bench.seconds(one, range(effort.count)) for one in timed)
    more = f" of {len(contenders)} (no time to time the others' calls)" if len(timed) < len(contenders) else ""
    bench.progress.note(
        f"{len(timed)} contenders{more}: {effort.screen} images of each take about {duration(screening)} at the speed "
        f"measured now, {effort.count} of those on the front, if that is {FRONT:.0%} of them, {duration(front)}; "
        f"there are {duration(clock.left)}"
    )
    keys = {one.key for one in picked}
    out = [_name(one) for one in contenders if one.key not in keys]
    more = f" and {len(out) - NAMED} more" if len(out) > NAMED else ""
    without = f"; left out this time: {', '.join(out[:NAMED])}{more}" if out else ""
    bench.progress.note(f"screening {len(picked)} of them on {images} images each{without}")
    takes = sum(bench.seconds(one, range(SCREEN_SEED, SCREEN_SEED + images)) for one in picked)
    if takes > clock.left:
        bench.progress.note(f"that takes about {duration(takes)}, longer than there is; no fewer can be compared")


def _name(contender: Contender) -> str:
    note = f" {contender.note}" if contender.note else ""
    plan = plan_name(contender.plan.num_steps, contender.plan.num_heavy)
    return f"{contender.network} {contender.sampler} {plan}{note}"


def _unfinished(of: int, done: int, what: str, verb: str, images: int, enough: int) -> list[str]:
    """What there was no time for, a sentence each."""
    found = [f"{of - done} of {of} {what} not {verb} in time."] if done < of else []
    return (
        [*found, f"For lack of time {done} were {verb} on {images} images, not on {enough}."]
        if images < enough
        else found
    )


def _require_names(entries: Sequence[Entry]) -> None:
    """One name, one run: lines of a page are told apart by it."""
    runs: dict[str, Path] = {}
    for entry in entries:
        if runs.setdefault(entry.network, entry.run.resolve()) != entry.run.resolve():
            raise ValueError(f"two runs are called {entry.network!r}: name them, as in A={entry.run} B=...")


def _require_comparable(models: dict[Path, Model], *, mixed: bool) -> None:
    first, *others = (model.experiment for model in models.values())
    for other in others:
        shape, its = (one.codec.data_shape(one.shape) for one in (first, other))
        if its != shape or other.num_classes != first.num_classes:
            raise ValueError(
                f"{other.name} makes images {its} of {other.num_classes} classes, {first.name} "
                f"{shape} of {first.num_classes}: they cannot be compared"
            )
        latents, unlike = (one.method.latents.fingerprint[:12] or "none" for one in (first, other))
        if latents != unlike:
            raise ValueError(
                f"{other.name} decodes latents of the codec {unlike}, {first.name} of {latents}: their images are not "
                "of the same latents, and do not compare"
            )
        data, unlike = (
            f"{d.source or 'images that nobody knows'} (size {d.size}, channels {d.channels})"
            for d in (first.data, other.data)
        )
        if data != unlike and not mixed:
            raise ValueError(
                f"{other.name} was trained on {unlike}, {first.name} on {data}: scores against different images do not "
                "compare. If they are the same images, or you want it all the same, add --mixed"
            )
