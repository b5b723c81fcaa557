"""`dualrate compare` as a function: arguments of the command in; a page, JSON and CSV out."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from dualrate.compare.candidates import (
    Candidate,
    RunRequest,
    baselines_of,
    candidates_of,
    check_comparable,
    switched_at,
    with_trainings,
)
from dualrate.compare.measure import SCREEN_SEED, Session, promising, useful_first
from dualrate.compare.page import compare_page
from dualrate.compare.results import ComparisonResults, MeasuredCandidate, as_csv, as_json, merged_trainings
from dualrate.config.ranges import Images, Minutes, Precision, Ranged, WorkerCount, as_path
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.latents import draw_latents, drawn_by
from dualrate.drawing.measure import check, evaluators, features_named
from dualrate.experiment.experiment import Model
from dualrate.runs.store import load
from dualrate.system.files import write_whole
from dualrate.system.progress import Reporter, duration, image_progress, run_lock
from dualrate.system.workers import mapper, number_of_workers

SCREENING = 0.5  # of the minutes: for screening at most
TIMING = 0.1  # of the minutes: reserved for timing at the end


@dataclass(frozen=True)
class Effort(Ranged):
    """minutes: of measuring, per call; screen, count: images of a candidate, at first and on the front."""

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
    requests: Sequence[str],
    out: str | Path,
    effort: Effort = Effort(),
    *,
    features: str | Path | None = None,
    mixed: bool = False,
    baselines: bool = False,
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

    requests:  as `RunRequest.parse` reads them
    features:  feature nets of the metrics, as `features_named` reads them: all see the same images, and the first one
               screens and orders; the data set's own if not given
    precision: of the networks' matrix products; auto: bfloat16 where it pays
    workers:   processes that draw at once; what is timed is timed in this one, alone
    compiled:  the networks, when they are first called
    graphs:    their calls are recorded as CUDA graphs, on a GPU (system/device.py)
    mixed:     allow runs that were trained on other data than the first, which all are compared with
    baselines: add every denoiser of the catalogue around the most expensive single network
    switch_at: time at which the heavy network takes over from another run's, where the request does not say it
    latents_by: directory of a model of latents: decoders are given those that it draws, as many as `count`, in place of
               those of held-out images
    rows:      directory of measured rows, as of several machines (compare/results.py); beside `out` if not given
    Raises ValueError for requests that are none, runs that do not compare, and an `out` that is no .html file; OSError
    where another process compares into the same directory.
    """
    out = as_path(out)
    if out.suffix != ".html":
        raise ValueError(f"--out is an .html file, beside which .json and .csv are written, got {out}")
    clock, device = Clock(60 * effort.minutes), torch.device(device)
    parsed = [RunRequest.parse(text) for text in requests]
    features_named(features)  # refuses what is none before the models are loaded
    runs = dict.fromkeys(run for request in parsed for run in (request.run, *request.trainings))
    models = {
        run: replace(load(run, device=device, note=progress.note), compiled=compiled, graphs=graphs) for run in runs
    }
    if baselines:
        parsed += baselines_of(parsed, models, progress=progress)
    if switch_at is not None:
        parsed = switched_at(parsed, switch_at)
    check_comparable(parsed, models, mixed=mixed)
    of_models = [model.experiment.data for model in models.values()]
    data = next((one for one in of_models if one.source), of_models[0])  # a folder of diffusers says none
    base = None if latents_by is None else _base(latents_by, models.values(), precision, progress)
    candidates = candidates_of(parsed, models)
    metrics = evaluators(data, features, device=device, progress=progress)
    check(metrics[:1], effort.screen, details=False)
    check(metrics, effort.count, details=True)
    duals = frozenset(one.network for one in candidates if models[one.run].call_cost.heavy and one.reuses)
    directory, latents = out.with_suffix(".cells"), None
    directory.mkdir(parents=True, exist_ok=True)
    with run_lock(directory, "filled by a comparison"):
        session = Session(models, metrics, directory, progress, precision, rows)
        with mapper(workers, device, progress.note) as session.mapper:
            if base is not None:
                start = time.monotonic()
                progress.note(f"{effort.count} latents by {drawn_by(base)}")
                latents = draw_latents(
                    base, effort.count, directory, progress=image_progress(progress), mapper=session.mapper
                )
                progress.close()
                session.models = {run: model.with_latents(latents) for run, model in models.items()}
                clock = replace(clock, start=clock.start + time.monotonic() - start)  # the minutes are for rows
            session.share = _share(workers, device)
            screened, measured, unfinished = _measured(candidates, parsed, session, effort, clock, duals)
        results = ComparisonResults(
            screened, measured, [], duals, [*unfinished, "Nothing was timed yet."], command, latents, device
        )
        _write(out, results)
        finished = session.finish(merged_trainings(measured), clock.left)
        results = replace(results, finished=finished, unfinished=unfinished).with_savings()
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


def _write(out: Path, results: ComparisonResults) -> None:
    for suffix, text in ((".json", as_json(results)), (".csv", as_csv(results)), (".html", compare_page(results))):
        write_whole(out.with_suffix(suffix), text)


def _measured(
    candidates: Sequence[Candidate],
    requests: Sequence[RunRequest],
    session: Session,
    effort: Effort,
    clock: Clock,
    duals: Collection[str],
) -> tuple[list[MeasuredCandidate], list[MeasuredCandidate], list[str]]:
    """What was screened, what was measured on the front, every training, and what there was no time for.

    Nothing is screened where the user gave every plan.
    """
    if not all(session.keeps(one, range(effort.count)) for one in with_trainings(candidates, requests)):
        session.see_real_images()  # now, so that they are not in the time of what is drawn
    ordered = useful_first(candidates, {one.key: session.drawer(one).expected_cost.macs for one in candidates})
    screened, unfinished, front = [], [], ordered
    if not all(one.named for one in candidates):
        dim = 2 * session.evaluators[0].net.dim
        images = session.images(ordered, SCREEN_SEED, effort.screen, dim, SCREENING * clock.left)
        seeds = range(SCREEN_SEED, SCREEN_SEED + images)
        _announce(session, "screening", ordered, seeds, clock)
        screened = session.measure(ordered, seeds, SCREENING * clock.left, details=False)
        unfinished = _unfinished(len(ordered), len(screened), "candidates were", "screened", images, effort.screen)
        front = promising(screened, duals)

    front, reserved = with_trainings(front, requests), TIMING * clock.seconds
    dim = 2 * max(one.net.dim for one in session.evaluators)
    images = session.images(front, 0, effort.count, dim, clock.left - reserved)
    _announce(session, "measuring", front, range(images), clock)
    measured = session.measure(front, range(images), clock.left - reserved, details=True)
    what = "candidates on the front were"
    unfinished += _unfinished(len(front), len(measured), what, "measured", images, effort.count)
    return screened, measured, unfinished


def _announce(session: Session, verb: str, candidates: Sequence[Candidate], seeds: range, clock: Clock) -> None:
    takes = duration(sum(session.seconds(one, seeds) for one in candidates))
    session.progress.note(
        f"{verb} {len(candidates)} candidates on {len(seeds)} images each, which takes about {takes}; there are "
        f"{duration(clock.left)} in all"
    )


def _unfinished(of: int, done: int, what: str, verb: str, images: int, enough: int) -> list[str]:
    """What there was no time for, a sentence each."""
    found = [f"{of - done} of {of} {what} not {verb} in time."] if done < of else []
    fewer = [f"For lack of time {done} were {verb} on {images} images, not on {enough}."] if images < enough else []
    return found + fewer
