"""`dualrate compare` as a function: arguments of the command in; a page and JSON out. How it spends its minutes:

    1. screen: every candidate on few images
    2. front:  those on the front of quality against FLOPs, and what the user named, on many images of other seeds, so
               that no score of a screening decides twice
    3. time:   seconds of an image of each of them, alone and in batches

Where time is short there are fewer images, then fewer candidates. Features are kept as images are drawn
(metrics/store.py) and rows as they are scored, so the same command continues after it ran out of minutes, or was
killed:

    DIRECTORY/KEY-FIRST-LAST-DIGEST.json      a row with its bootstrap replicates, of the images of these seeds

The digest is of all that decides a row: its images, the metrics, what images are compared with, their cost. So files of
several machines may be put into one directory.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import torch

from dualrate.compare.candidates import Candidate, RunRequest, baselines_of, candidates_of, check_comparable
from dualrate.compare.results import ComparisonResults, MeasuredCandidate, as_json, compare_page, keep_row, read_row
from dualrate.config.ranges import GuidanceWeight, Images, Members, Minutes, Precision, Ranged, WorkerCount, as_path
from dualrate.data.conditions import Given
from dualrate.drawing.cost import call_seconds
from dualrate.drawing.drawer import UNGUIDED, Drawer, Guidance
from dualrate.drawing.evaluators import evaluators, features_named
from dualrate.drawing.measure import OutOfTime, check, drawn_alike, measure, scored_together, stores, until
from dualrate.drawing.samples import strips
from dualrate.experiment.modality import conditions_named
from dualrate.experiment.model import Model
from dualrate.metrics.evaluate import RESAMPLING_SEED, Evaluator
from dualrate.report.figures import pareto_front
from dualrate.runs.store import load
from dualrate.sampling.cost import CallCost
from dualrate.system.device import environment, pick_device
from dualrate.system.files import write_whole
from dualrate.system.progress import Reporter, duration, run_lock
from dualrate.system.workers import Mapper, in_turn, mapper, number_of_workers

SCREENING = 0.5  # of the minutes: for screening at most
TIMING = 0.1  # of the minutes: reserved for timing at the end
SCORING = 1  # raised where a score, its interval or its replicates are made in another way
SCREEN_SEED = 1_000_000  # of the first image of a screening; a final score starts at 0
SLOWER = 1.3  # drawing, over its networks' calls
SHOWN = 20  # images of a candidate on the page
BATCH = 32  # images that are timed at once
CALLING = 0.3  # seconds that a call is timed for, at least
INCREMENT = 250  # images by which a candidate has fewer, where time is short
FEWEST = 2  # candidates that are measured however short the time is
Item = TypeVar("Item")


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
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    workers: WorkerCount = 1,
    compiled: bool = False,
    graphs: bool = False,
    prompt: str | None = None,
    guidance: GuidanceWeight = 1.0,
    members: Members = 1,
    equal_classes: bool = False,
    progress: Reporter,
    command: str = "",
) -> ComparisonResults:
    """Measures, then writes `out` (.html) and beside it .json and a directory from which the same call continues.

    requests:  as `RunRequest.parse` reads them. Nothing is screened where each has a plan
    features:  feature nets of the metrics, as `features_named` reads them: all see the same images, and the first one
               screens and orders; the data set's own if not given
    device:    None: the first GPU, or the CPU where there is none, as of the commands
    precision: of the networks' matrix products; auto: bfloat16 where it pays
    workers:   processes that draw at once; what is timed is timed in this one, alone
    compiled:  the networks, when they are first called
    graphs:    their calls are recorded as CUDA graphs, on a GPU (system/device.py)
    prompt:    of text-to-image models, as of `conditions_named`; held-out prompts of the first run if not given
    guidance:  weight of it, of those that have something to guide against
    members:   samples of each condition, of conditional models; they share a heavy call, and are scored as an ensemble
    equal_classes: of every class as many images, not by their shares in the data
    mixed:     allow runs that were trained on other data than the first, which all are compared with
    baselines: add every denoiser of the catalogue around the most expensive single network
    Raises ValueError for bad requests, runs that do not compare, and an `out` that is no .html file; OSError where
    another process compares into the same directory.
    """
    end, device = time.monotonic() + 60 * effort.minutes, pick_device(device)
    features_named(features)  # a bad name is refused before the models are loaded
    out, parsed, models = loaded(requests, out, device=device, compiled=compiled, graphs=graphs, progress=progress)
    if baselines:
        parsed += baselines_of(parsed, models, progress=progress)
    check_comparable(parsed, models, mixed=mixed)
    configs = [model.experiment.data for model in models.values()]
    data = next((config for config in configs if config.source), configs[0])  # a folder of diffusers has no source
    models = given_alike(models, prompt)
    candidates = candidates_of(parsed, models)
    metrics = evaluators(data, features, device=device, progress=progress)
    check(metrics[:1], effort.screen, details=False)
    check(metrics, effort.count, details=True)
    duals = frozenset(
        candidate.network for candidate in candidates if models[candidate.run].call_cost.heavy and candidate.reuses
    )
    directory = out.with_suffix(".cells")
    directory.mkdir(parents=True, exist_ok=True)

    def write(results: ComparisonResults) -> None:
        write_whole(out.with_suffix(".json"), as_json(results))
        write_whole(out, compare_page(results))

    with run_lock(directory, "filled by a comparison"):
        session = Session(
            models,
            metrics,
            directory,
            progress,
            precision,
            share=_share(workers, device),
            members=members,
            guidance=Guidance(guidance),
            equal_classes=equal_classes,
        )
        with mapper(workers, device) as session.mapper:
            if not all(session.row_file(candidate, range(effort.count)).exists() for candidate in candidates):
                session.see_real_images()  # now, so that they are not in the time of what is drawn
            front = useful_first(candidates)
            screened, unfinished = [], []
            if not all(candidate.named for candidate in candidates):
                left = SCREENING * max(end - time.monotonic(), 0)
                screened, unfinished = session.measure(front, SCREEN_SEED, effort.screen, left)
                front = promising(screened, duals)
            left = max(end - time.monotonic() - TIMING * 60 * effort.minutes, 0)
            measured, more = session.measure(front, 0, effort.count, left)
        unfinished += more
        results = ComparisonResults(screened, measured, [], duals, unfinished, command, session.environment)
        write(replace(results, unfinished=[*unfinished, "Nothing was timed yet."]))
        finished = session.finish(measured, end - time.monotonic())
        results = replace(results, finished=finished).with_savings()
        write(results)
        return results


def loaded(
    requests: Sequence[str], out: str | Path, *, device: torch.device, compiled: bool, graphs: bool, progress: Reporter
) -> tuple[Path, list[RunRequest], dict[Path, Model]]:
    """The page's path, what is asked for, and its models by directory. Raises ValueError for bad requests and paths."""
    out = as_path(out)
    if out.suffix != ".html":
        raise ValueError(f"--out is an .html file, beside which .json is written, got {out}")
    parsed = [RunRequest.parse(text) for text in requests]
    runs = dict.fromkeys(request.run for request in parsed)
    models = {run: load(run, device=device, note=progress.note) for run in runs}
    return out, parsed, {run: replace(model, compiled=compiled, graphs=graphs) for run, model in models.items()}


def given_alike(models: Mapping[Path, Model], prompt: str | None) -> dict[Path, Model]:
    """The models, by directory. Those of texts are given one prompt, or file of them; without it a pipeline, which has
    no prompts of its own, is given those of the first run that has.

    Raises ValueError for a prompt of models of no texts, and as `conditions_named` and `Experiment.given`.
    """
    if prompt is not None:
        first = next(iter(models.values()))
        conditions = conditions_named(first.experiment, prompt, first.device)
        return {run: model.with_given(conditions) for run, model in models.items()}
    lacking = {
        run for run, model in models.items() if model.experiment.networks.given and not model.experiment.data.source
    }
    held_out = next((model.given for run, model in models.items() if lacking and run not in lacking), None)
    prompts = held_out if isinstance(held_out, Given) else None
    return {run: model.with_given(prompts) if run in lacking and prompts else model for run, model in models.items()}


def _share(workers: WorkerCount, device: torch.device) -> float:
    """Share of the time that this process alone would take: several have a thread each, or a GPU."""
    count = number_of_workers(workers, device)
    if count == 1:
        return 1.0
    return 1 / min(count, torch.cuda.device_count()) if device.type == "cuda" else torch.get_num_threads() / count


@dataclass
class Session:
    """Measures candidates until the time is up.

    models:     by directory
    evaluators: one of each metric; the first screens and orders
    directory:  of features and rows that are kept; it is made
    mapper:     draws; share: of the time of one process that it takes
    """

    models: Mapping[Path, Model]
    evaluators: Sequence[Evaluator[Any]]
    directory: Path
    progress: Reporter
    precision: Precision = "auto"
    mapper: Mapper = in_turn
    share: float = 1.0
    members: int = 1
    guidance: Guidance = UNGUIDED
    equal_classes: bool = False
    _drawers: dict[str, Drawer] = field(default_factory=dict)
    _calls: dict[tuple[Path, str | None], CallCost] = field(default_factory=dict)
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.environment = environment(next(iter(self.models.values())).device)  # now: a checkout may change later

    def _evaluators_of(self, seeds: range) -> Sequence[Evaluator[Any]]:
        """All of them for the front, the first alone for a screening."""
        return self.evaluators if seeds.start < SCREEN_SEED else self.evaluators[:1]

    def drawer(self, candidate: Candidate) -> Drawer:
        if candidate.key not in self._drawers:
            model = self.models[candidate.run]
            members = 1 if model.experiment.networks.given is None else self.members
            guidance = self.guidance if model.guides else UNGUIDED
            drawer = replace(
                candidate.drawer(model),
                precision=self.precision,
                members=members,
                guidance=guidance,
                equal_classes=self.equal_classes,
            )
            self._drawers[candidate.key] = drawn_alike(drawer, self.evaluators)
        return self._drawers[candidate.key]

    def see_real_images(self) -> None:
        """Takes the real images' features by every metric, once."""
        for evaluator in self.evaluators:
            if evaluator.reference is not None:
                images = len(evaluator.reference_images)
                self.progress.note(f"{evaluator.metric}: features of the {images} images to compare with")
            evaluator.prepare(self.mapper)
            self.progress.close()  # the next one has its own rate

    def seconds(self, candidate: Candidate, seeds: range) -> float:
        """Estimate of the time to draw those of these images that were not drawn before.

        It is made of the number of calls, and of the time of a call, which is measured once.
        """
        if self.row_file(candidate, seeds).exists():
            return 0.0
        drawer, directory, missing = self.drawer(candidate), self._features_of(candidate), set(seeds)
        if directory.exists():
            nets = [evaluator.net for evaluator in self._evaluators_of(seeds)]
            missing = set().union(*(store.missing(seeds) for store in stores(drawer, nets, directory)))
        network = (candidate.run, candidate.denoiser)
        if network not in self._calls:
            self._calls[network] = call_seconds(drawer.model, BATCH, seconds=CALLING, precision=self.precision)
        images = self.share * len(missing)
        if seeds.start < SCREEN_SEED:  # all members of some, in this process
            images += (drawer.members - 1) * len(scored_together(drawer, seeds))
        return SLOWER * drawer.expected_cost.total(self._calls[network]) * images

    def images(self, candidates: Sequence[Candidate], first: int, most: int, seconds: float) -> int:
        """The largest number of images, from seed `first` on, that leaves time for all; else the smallest."""
        fewest = 2 * max(evaluator.net.dim for evaluator in self._evaluators_of(range(first, first + most)))
        levels = [most, *reversed([n for n in range(INCREMENT, most, INCREMENT) if n >= fewest])]
        for count in levels:
            if sum(self.seconds(candidate, range(first, first + count)) for candidate in candidates) <= seconds:
                return count
        return levels[-1]

    def measure(
        self, candidates: Sequence[Candidate], first: int, most: int, seconds: float
    ) -> tuple[list[MeasuredCandidate], list[str]]:
        """Rows of the candidates that `seconds` suffice for, in this order, at least of the first FEWEST; then
        sentences on what is unfinished.

        first: seed of the first image; most: images of a candidate, fewer where time is short
        """
        start, rows = time.monotonic(), []
        images = self.images(candidates, first, most, seconds)
        seeds, total = range(first, first + images), images * len(candidates)
        verb = "measured" if first < SCREEN_SEED else "screened"
        takes = duration(sum(self.seconds(candidate, seeds) for candidate in candidates))
        self.progress.note(
            f"{len(candidates)} candidates are {verb} on {images} images each, which takes about {takes}; there are "
            f"{duration(seconds)}"
        )
        for i, candidate in enumerate(candidates):

            def show(done: int, _: int, before: int = i * images) -> None:
                logs = {"images": before + done, "seconds": time.monotonic() - start}
                self.progress.update(before + done, total, logs)

            try:
                measured = self._measure(candidate, seeds, until(start + seconds if i >= FEWEST else math.inf, show))
            except OutOfTime:
                self.progress.note(f"{i + 1}/{len(candidates)} {candidate.key}: out of time")
                continue
            score = measured.row.score
            self.progress.note(
                f"{i + 1}/{len(candidates)} {candidate.key}: {score.metric} {score.value:.3f} "
                f"[{score.low:.3f}, {score.high:.3f}] of {images} images"
            )
            rows.append(measured)
        self.progress.close()
        unfinished = []
        if missing := len(candidates) - len(rows):
            unfinished.append(f"{missing} of {len(candidates)} candidates were not {verb} in time.")
        if images < most:
            unfinished.append(f"For lack of time {len(rows)} were {verb} on {images} images, not on {most}.")
        return rows, unfinished

    def _measure(self, candidate: Candidate, seeds: range, progress: Any) -> MeasuredCandidate:
        file = self.row_file(candidate, seeds)
        if not file.exists():
            measurement = measure(
                self.drawer(candidate),
                seeds,
                *self._evaluators_of(seeds),
                keep=self._features_of(candidate),
                details=seeds.start < SCREEN_SEED,
                ensemble=seeds.start < SCREEN_SEED,
                progress=progress,
                mapper=self.mapper,
            )
            ran_on = ", ".join(f"{name} {value}" for name, value in self.environment.items())
            keep_row(file, measurement.row, measurement.replicates, ran_on)
        return read_row(file, candidate)

    def _features_of(self, candidate: Candidate) -> Path:
        """Directory in which the candidate's features are kept."""
        return (
            self.directory / f"{candidate.key}-{self.drawer(candidate).origin(self.evaluators[0].net.identity).digest}"
        )

    def row_file(self, candidate: Candidate, seeds: range) -> Path:
        """File in which the candidate's row of these images is kept. Whatever gives another row has another name."""
        drawer = self.drawer(candidate)
        content: list[object] = [SCORING, RESAMPLING_SEED, drawer.expected_cost.macs]
        content += [drawer.members] if drawer.members > 1 else []
        for metric in self._evaluators_of(seeds):
            real = (metric.reference, metric.held_out)
            content.append(drawer.origin(metric.net.identity).json())
            content += [images.fingerprint if images else "" for images in real]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
        return self.directory / f"{candidate.key}-{seeds.start}-{seeds.stop - 1}-{digest}.json"

    def finish(self, measured: Sequence[MeasuredCandidate], seconds: float = math.inf) -> list[MeasuredCandidate]:
        """Times every candidate, once only if the seconds are over, and takes its first images."""
        deadline, finished = time.monotonic() + seconds, []
        self.progress.note(f"timing {len(measured)} candidates, alone and in batches of {BATCH}")
        for i, entry in enumerate(measured):
            drawer = self.drawer(entry.candidate)
            repeats = 3 if time.monotonic() < deadline else 1
            alone, batched = (seconds_per_image(drawer, size, repeats) for size in (1, BATCH))
            shown, columns = strips(drawer, range(SHOWN), drawer.draw(range(SHOWN)).images)
            timed = replace(
                entry,
                row=replace(entry.row, seconds_per_image=batched, batch_size=BATCH),
                seconds_alone=alone,
                images=shown,
                columns=columns,
                alphabet=drawer.model.experiment.codec.alphabet,
            )
            finished.append(timed)
            self.progress.update(i + 1, len(measured), {"images": SHOWN * (i + 1)})
        self.progress.close()
        return finished


def seconds_per_image(drawer: Drawer, size: int, repeats: int) -> float:
    """Seconds of whole images, networks and sampler, in batches of `size` seeds; the median of `repeats` batches."""
    images = size * drawer.members
    sized = replace(drawer, batch_size=images)
    if drawer.model.compiled or drawer.model.graphs:
        sized.draw(range(size))  # compiles or records what was not called yet
    return statistics.median(sized.draw(range(size)).seconds for _ in range(repeats)) / images


def promising(screened: Sequence[MeasuredCandidate], duals: Collection[str]) -> list[Candidate]:
    """Candidates that deserve many images, most important first: what the user named, the fronts of dual-rate and of
    baselines by turns, then those of each network. A front's best score comes first.

    duals: names of the networks at two rates
    """

    def front(entries: Iterable[MeasuredCandidate]) -> list[Candidate]:
        best = pareto_front(list(entries), lambda entry: (entry.row.macs, entry.row.score.value))
        return [entry.candidate for entry in reversed(best)]

    sides = [
        front(entry for entry in screened if (entry.candidate.network in duals) == reuses) for reuses in (False, True)
    ]
    names = sorted({entry.candidate.network for entry in screened})
    lines = [front(entry for entry in screened if entry.candidate.network == name) for name in names]
    named = [entry.candidate for entry in screened if entry.candidate.named]
    return list(
        {candidate.key: candidate for candidate in (*named, *round_robin(sides), *chain.from_iterable(lines))}.values()
    )


def useful_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates in the order to measure them: those that the user named; then the networks by turns, each network's
    plans in their order, in which the main one is the first (`compare/candidates.py`).
    """
    lines: dict[object, list[Candidate]] = {}
    for candidate in candidates:
        lines.setdefault((candidate.run, candidate.denoiser), []).append(candidate)
    return sorted(round_robin([*lines.values()]), key=lambda candidate: not candidate.named)


def round_robin(lists: Sequence[Sequence[Item]]) -> list[Item]:
    """The first of every list, the second of every list, and so on."""
    return [item for item in chain.from_iterable(zip_longest(*lists)) if item is not None]
