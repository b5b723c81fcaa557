"""`dualrate compare` as a function: arguments of the command in; a page, JSON and CSV out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dualrate.compare.candidates import (
    RunRequest,
    baselines_of,
    candidates_of,
    check_comparable,
    switched_at,
    with_trainings,
)
from dualrate.compare.measure import SCREEN_SEED, Session, promising, useful_first
from dualrate.compare.page import compare_page
from dualrate.compare.results import ComparisonResults, as_csv, as_json, merged_trainings
from dualrate.config.ranges import Images, Minutes, Precision, Ranged, WorkerCount, as_path
from dualrate.drawing.choice import Choice
from dualrate.drawing.latents import draw_latents, drawn_by
from dualrate.drawing.measure import check, evaluators, features_named
from dualrate.runs.store import load
from dualrate.system.files import write_whole
from dualrate.system.progress import Reporter, image_progress, run_lock
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
    progress: Reporter,
    command: str = "",
) -> ComparisonResults:
    """Measures, then writes `out` (.html) and beside it .json, .csv and a directory from which the same call continues.

    requests:  as `RunRequest.parse` reads them. Nothing is screened where each has a plan
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
    Raises ValueError for bad requests, runs that do not compare, and an `out` that is no .html file; OSError where
    another process compares into the same directory.
    """
    out, device = as_path(out), torch.device(device)
    if out.suffix != ".html":
        raise ValueError(f"--out is an .html file, beside which .json and .csv are written, got {out}")
    end = time.monotonic() + 60 * effort.minutes
    parsed = [RunRequest.parse(text) for text in requests]
    features_named(features)  # a bad name is refused before the models are loaded
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
    data = next((one for one in of_models if one.source), of_models[0])  # a folder of diffusers has no source
    base = None
    if latents_by is not None:
        base = load(latents_by, device=device, note=progress.note)
        for decoder in models.values():
            decoder.check_latents(base.codec.latents, base.shape)
        base = Choice().drawer(base, precision=precision)
    candidates = candidates_of(parsed, models)
    metrics = evaluators(data, features, device=device, progress=progress)
    check(metrics[:1], effort.screen, details=False)
    check(metrics, effort.count, details=True)
    duals = frozenset(one.network for one in candidates if models[one.run].call_cost.heavy and one.reuses)
    directory = out.with_suffix(".cells")
    directory.mkdir(parents=True, exist_ok=True)

    def write(results: ComparisonResults) -> None:
        for suffix, made in ((".json", as_json), (".csv", as_csv), (".html", compare_page)):
            write_whole(out.with_suffix(suffix), made(results))

    with run_lock(directory, "filled by a comparison"):
        session, latents = Session(models, metrics, directory, progress, precision), None
        with mapper(workers, device) as session.mapper:
            if base is not None:
                start = time.monotonic()
                progress.note(f"{effort.count} latents by {drawn_by(base)}")
                latents = draw_latents(
                    base, effort.count, directory, progress=image_progress(progress), mapper=session.mapper
                )
                progress.close()
                session.models = {run: model.with_latents(latents) for run, model in models.items()}
                end += time.monotonic() - start  # the minutes are for rows
            session.share = _share(workers, device)
            many = range(effort.count)
            if not all(session.row_file(one, many).exists() for one in with_trainings(candidates, parsed)):
                session.see_real_images()  # now, so that they are not in the time of what is drawn
            front = useful_first(candidates, {one.key: session.drawer(one).expected_cost.macs for one in candidates})
            screened, unfinished = [], []
            if not all(one.named for one in candidates):
                left = SCREENING * max(end - time.monotonic(), 0)
                screened, unfinished = session.measure(front, SCREEN_SEED, effort.screen, left)
                front = promising(screened, duals)
            left = max(end - time.monotonic() - TIMING * 60 * effort.minutes, 0)
            measured, more = session.measure(with_trainings(front, parsed), 0, effort.count, left)
        unfinished += more
        results = ComparisonResults(screened, measured, [], duals, unfinished, command, latents, device)
        write(replace(results, unfinished=[*unfinished, "Nothing was timed yet."]))
        finished = session.finish(merged_trainings(measured), end - time.monotonic())
        results = replace(results, finished=finished).with_savings()
        write(results)
        return results


def _share(workers: WorkerCount, device: torch.device) -> float:
    """Of the time that this process alone would take: several have a thread each, or a GPU."""
    count = number_of_workers(workers, device)
    if count == 1:
        return 1.0
    return 1 / min(count, torch.cuda.device_count()) if device.type == "cuda" else torch.get_num_threads() / count
