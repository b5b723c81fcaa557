"""`dualrate compare` as a function: arguments of the command in; a page and JSON out. How it spends its minutes:

    1. screen: every candidate on few samples
    2. front:  those on the front of quality against FLOPs, and what the user named, on many samples of other seeds, so
               that no score of a screening decides twice
    3. time:   seconds of a sample of each of them, alone and in batches

Where time is short there are fewer samples, then fewer candidates. What measures is a `Yardstick` (yardstick.py), that
of images or a wing's own. It continues what a killed call left of a candidate, and rows stay as they are scored, so the
same command continues after it ran out of minutes, or was killed:

    DIRECTORY/KEY-DIGEST/                     what was drawn of a candidate: features of images, frames of forecasts
    DIRECTORY/KEY-FIRST-LAST-DIGEST.json      a row with its bootstrap replicates, of the samples of these seeds
    DIRECTORY/KEY-times-DIGEST.json           seconds of a sample, alone and in batches: delete it to time anew

The digest is of all that decides a row: its samples, the metrics, what samples are compared with, their cost; that of
times is also of the machine and its versions. So files of several machines may be put into one directory.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from dualrate.comparison.candidates import Candidate, RunRequest, baselines_of, candidates_of, check_requests
from dualrate.comparison.results import FIGURES, ComparisonResults, as_csv, as_json, compare_page
from dualrate.comparison.rows import MeasuredCandidate, keep_row, read_row
from dualrate.comparison.yardstick import SCREEN_SEED, Terms, Yardstick
from dualrate.config.ranges import GuidanceWeight, Images, Members, Minutes, Precision, as_path, many
from dualrate.data.condition_rows import Given
from dualrate.drawing.cost import call_seconds
from dualrate.drawing.drawer import UNGUIDED, Drawer, Guidance
from dualrate.drawing.evaluators import features_named
from dualrate.drawing.measure import OutOfTime, until
from dualrate.experiment.modality import conditions_named, maker_of
from dualrate.experiment.model import Model
from dualrate.report.figures import pareto_front
from dualrate.report.table import with_interval
from dualrate.runs.store import load
from dualrate.sampling.cost import CallCost
from dualrate.system.device import environment, pick_device
from dualrate.system.files import write_whole
from dualrate.system.progress import PlainReporter, Reporter, duration, run_lock

SCREENING = 0.5  # of the minutes: for screening at most
TIMING = 0.1  # of the minutes: reserved for timing at the end
SCORING = 1  # raised where a score, its interval or its replicates are made in another way
SLOWER = 1.3  # drawing, over its networks' calls
SHOWN = 20  # samples of a candidate on the page
BATCH = 32  # seeds that are timed at once
REPEATS = 3  # batches that are timed
CALLING = 0.3  # seconds that a call is timed for, at least
FEWEST = 2  # candidates that are measured however short the time is
Item = TypeVar("Item")


def compare(
    requests: str | Sequence[str],
    out: str | Path | None = None,
    *,
    minutes: Minutes = 60,
    screen: Images | None = None,
    count: Images | None = None,
    features: str | Path | None = None,
    mixed: bool = False,
    baselines: bool = False,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    compiled: bool = False,
    graphs: bool = False,
    prompt: str | None = None,
    guidance: GuidanceWeight = 1.0,
    members: Members = 1,
    equal_classes: bool = False,
    progress: Reporter | None = None,
    command: str = "dualrate.compare",
) -> ComparisonResults:
    """Measure models, samplers and plans: quality against FLOPs and time. The results print, and have a page.

    requests:  as `dualrate compare` takes them: RUN, RUN:32/8, RUN:plan.json, RUN:32@ddim, RUN+taylor:32/16 or NAME=RUN
               (comparison/candidates.py). Nothing is screened where each has a plan
    out:       the page (.html), beside which are .json and a directory from which the same call continues; None: it is
               in the results alone
    minutes:   of measuring, per call
    screen, count: samples of a candidate, at first and on the front; 1,000 and 5,000 images, or 50 starts of a forecast
    features:  feature nets of the metrics, as `features_named` reads them: all see the same images, and the first one
               screens and orders; the data set's own if not given
    device, precision, compiled, graphs: as of the command; what is timed is timed in this process, alone
    prompt:    of text-to-image models, as of `conditions_named`; held-out prompts of the first run if not given
    guidance:  weight of it, of those that have something to guide against
    members:   samples of each condition, of conditional models; they share a heavy call, and are scored as an ensemble
    equal_classes: of every class as many images; mixed: allow runs of other training data than the first's, which all
               are compared with; baselines: add every denoiser of the catalogue around the dearest single network
    Raises ValueError for bad requests, runs that do not compare, and an `out` that is no .html file; OSError where
    another process compares into the same directory.
    """
    terms = Terms(minutes, screen, count, features, mixed, baselines, precision, guidance, members, equal_classes)
    end, device = time.monotonic() + 60 * minutes, pick_device(device)
    progress = progress or PlainReporter(seconds=10)
    requests = [requests] if isinstance(requests, str) else requests
    for run in requests if isinstance(requests, Sequence) else [requests]:
        if not isinstance(run, str):
            raise TypeError(f"compare takes runs by their paths, such as 'runs/mine:16/4', got a {type(run).__name__}")
    if out is not None and as_path(out, "out").suffix != ".html":
        raise ValueError(f"--out is an .html file, beside which .json is written, got {out}")
    features_named(features)  # a bad name is refused before the models are loaded
    parsed = [RunRequest.parse(text) for text in requests]
    if not parsed:
        raise ValueError("nothing to compare: name runs, e.g. dualrate compare weights/fashion-mnist-*")
    runs = dict.fromkeys(request.run for request in parsed)
    models = {run: load(run, device=device, note=progress.note) for run in runs}
    models = {run: replace(model, compiled=compiled, graphs=graphs) for run, model in models.items()}
    yardstick = _yardstick_of(models.values())(list(models.values()), terms, progress)
    check_requests(parsed)
    if baselines:
        parsed += baselines_of(parsed, models, progress=progress)
    models = given_alike(models, prompt)
    candidates = candidates_of(parsed, models)
    yardstick.prepare()
    with TemporaryDirectory() if out is None else nullcontext() as folder:
        page = Path(folder, "report.html") if folder else as_path(out or "")
        session = Session(yardstick, models, page, terms, progress, command)
        with run_lock(session.directory, "filled by a comparison"):
            return session.run(candidates, end)


def _yardstick_of(models: Iterable[Model]) -> type[Yardstick]:
    """The class that measures these models. Raises ValueError for models of several modalities."""
    makers = {maker_of(model.experiment): model for model in models}
    if len(makers) > 1:
        makes = " and ".join(f"{model.name} makes {maker.noun}s" for maker, model in makers.items())
        raise ValueError(f"{makes}: compare what makes the same")
    return next(iter(makers)).yardstick() or Yardstick


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


@dataclass
class Session:
    """Measures candidates until the time is up.

    models: by directory
    page:   written at the end; in the directory beside it are rows and what is drawn
    """

    yardstick: Yardstick
    models: Mapping[Path, Model]
    page: Path
    terms: Terms
    progress: Reporter
    command: str = ""
    _drawers: dict[str, Drawer] = field(default_factory=dict)
    _calls: dict[tuple[Path, str | None], CallCost] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory = self.page.with_suffix(".cells")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.environment = environment(next(iter(self.models.values())).device)  # now: a checkout may change later

    def run(self, candidates: Sequence[Candidate], end: float) -> ComparisonResults:
        """Measure and time candidates until `end`, of `time.monotonic`, and write the page and its JSON."""
        screen, count, reserved = self.yardstick.screen, self.yardstick.count, TIMING * 60 * self.terms.minutes
        reusing = [candidate for candidate in candidates if candidate.reuses]
        duals = frozenset(each.network for each in reusing if self.models[each.run].call_cost.heavy)
        if not all(self.row_file(candidate, range(count)).exists() for candidate in candidates):
            self.yardstick.see_real()  # now, so that they are not in the time of what is drawn
        front, screened, unfinished = useful_first(candidates), [], []
        if screen and not all(candidate.named for candidate in candidates):
            left = SCREENING * max(end - time.monotonic(), 0)
            screened, unfinished = self.measure(front, SCREEN_SEED, screen, left)
            front = promising(screened, duals)
        measured, more = self.measure(front, 0, count, max(end - time.monotonic() - reserved, 0))
        unfinished += more
        about = self.command, self.environment, self.yardstick
        results = ComparisonResults(screened, measured, [], duals, unfinished, *about)
        if not self.page.exists():  # else it may be fuller
            self.write(replace(results, unfinished=[*unfinished, "Nothing was timed yet."]))
        results = replace(results, finished=self.finish(measured, end - time.monotonic())).with_savings()
        self.write(results)
        return results

    def write(self, results: ComparisonResults) -> None:
        """Write the page and its JSON."""
        write_whole(self.page.with_suffix(".json"), as_json(results))
        if results.finished:
            write_whole(self.page.with_suffix(".csv"), as_csv(results))
        for name, (figure, _) in zip(FIGURES, results.figures, strict=False):
            write_whole(self.page.with_suffix(f".{name}.svg"), figure)
        write_whole(self.page, compare_page(results))

    def drawer(self, candidate: Candidate) -> Drawer:
        """The candidate's drawer."""
        if candidate.key not in self._drawers:
            model, terms = self.models[candidate.run], self.terms
            drawer = replace(
                candidate.drawer(model),
                precision=terms.precision,
                members=terms.members,
                guidance=Guidance(terms.guidance) if model.guides else UNGUIDED,
                equal_classes=terms.equal_classes,
            )
            self._drawers[candidate.key] = self.yardstick.as_measured(drawer)
        return self._drawers[candidate.key]

    def seconds(self, candidate: Candidate, seeds: range) -> float:
        """Estimate of the time to draw those of these seeds that were not drawn before.

        It is made of the number of calls, and of the time of a call, which is measured once.
        """
        if self.row_file(candidate, seeds).exists():
            return 0.0
        drawer, network = self.drawer(candidate), (candidate.run, candidate.denoiser)
        if network not in self._calls:
            self._calls[network] = call_seconds(drawer.model, BATCH, seconds=CALLING, precision=drawer.precision)
        return SLOWER * self.yardstick.seconds(drawer, seeds, self._place_of(candidate), self._calls[network])

    def count(self, candidates: Sequence[Candidate], first: int, most: int, seconds: float) -> int:
        """The largest number of samples, from seed `first` on, that leaves time for all; else the smallest."""
        counts = self.yardstick.counts(first, most)
        takes = ((n, sum(self.seconds(each, range(first, first + n)) for each in candidates)) for n in counts)
        return next((count for count, needed in takes if needed <= seconds), counts[-1])

    def measure(
        self, candidates: Sequence[Candidate], first: int, most: int, seconds: float
    ) -> tuple[list[MeasuredCandidate], list[str]]:
        """Rows of the candidates that `seconds` suffice for, in this order, at least of the first FEWEST; then
        sentences on what is unfinished.

        first: seed of the first sample; most: samples of a candidate, fewer where time is short
        """
        start, rows, nouns, unit = time.monotonic(), [], f"{self.yardstick.noun}s", self.yardstick.unit
        count = self.count(candidates, first, most, seconds)
        seeds = range(first, first + count)
        verb = "measured" if first < SCREEN_SEED else "screened"
        takes = sum(self.seconds(candidate, seeds) for candidate in candidates)
        limit = f"; there are {duration(seconds)}" * (takes > seconds / 2 or count < most)  # else it says nothing
        self.progress.note(
            f"{many(len(candidates), 'candidate')} to be {verb} on {count} {nouns} each, which takes about "
            f"{duration(takes)}{limit}"
        )
        for i, candidate in enumerate(candidates):

            def show(done: int, total: int, i: int = i) -> None:
                done += i * total
                self.progress.update(done, total * len(candidates), {unit: done, "seconds": time.monotonic() - start})

            try:
                measured = self._measure(candidate, seeds, until(start + seconds if i >= FEWEST else math.inf, show))
            except OutOfTime:
                self.progress.note(f"{i + 1}/{len(candidates)} {candidate.key}: out of time")
                continue
            score = measured.row.score
            self.progress.note(
                f"{i + 1}/{len(candidates)} {candidate.key}: {score.metric} "
                f"{with_interval(score.value, score.low, score.high, 3)} of {count} {nouns}"
            )
            rows.append(measured)
        self.progress.close()
        missing = len(candidates) - len(rows)
        left = [f"{missing} of {many(len(candidates), 'candidate')} were not {verb} in time."] * bool(missing)
        left += [f"For lack of time {len(rows)} were {verb} on {count} {nouns}, not on {most}."] * (count < most)
        return rows, left

    def _measure(self, candidate: Candidate, seeds: range, progress: Any) -> MeasuredCandidate:
        file, place = self.row_file(candidate, seeds), self._place_of(candidate)
        if not file.exists():
            ran_on = ", ".join(f"{name} {value}" for name, value in self.environment.items())
            keep_row(file, self.yardstick.measure(self.drawer(candidate), seeds, place, progress), ran_on)
        if not self.yardstick.keeps:
            shutil.rmtree(place, ignore_errors=True)
        return read_row(file, candidate)

    def _place_of(self, candidate: Candidate) -> Path:
        """Directory of what is drawn of the candidate."""
        return self.directory / f"{candidate.key}-{self.yardstick.origin(self.drawer(candidate))}"

    def row_file(self, candidate: Candidate, seeds: range) -> Path:
        """File of the candidate's row of these seeds. Whatever gives another row has another name."""
        content = [SCORING, *self.yardstick.identity(self.drawer(candidate), seeds)]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
        return self.directory / f"{candidate.key}-{seeds.start}-{seeds.stop - 1}-{digest}.json"

    def finish(self, measured: Sequence[MeasuredCandidate], seconds: float = math.inf) -> list[MeasuredCandidate]:
        """Times every candidate, once only if the seconds are over, and takes its first samples."""
        deadline, finished = time.monotonic() + seconds, []
        self.progress.note(f"timing {many(len(measured), 'candidate')}, alone and in batches of {BATCH}")
        for i, entry in enumerate(measured):
            drawer = self.drawer(entry.candidate)
            alone, batched = self.times(entry.candidate, in_time=time.monotonic() < deadline)
            row = replace(entry.row, seconds_per_image=batched, batch_size=BATCH)
            shown = self.yardstick.samples(drawer, SHOWN)
            finished.append(replace(entry, row=row, seconds_alone=alone, **shown))
            self.progress.update(i + 1, len(measured), {self.yardstick.unit: SHOWN * (i + 1)})
        self.progress.close()
        return finished

    def times(self, candidate: Candidate, *, in_time: bool) -> tuple[float, float]:
        """Seconds of a sample, alone and in batches: kept ones, of this machine, or the median of some; of one alone,
        which is not kept, where the time is over.
        """
        drawer, model = self.drawer(candidate), self.models[candidate.run]
        machine = {name: value for name, value in self.environment.items() if name not in ("date", "commit")}
        content = [self.yardstick.origin(drawer), drawer.members, drawer.precision, BATCH, machine]
        digest = hashlib.sha256(json.dumps([*content, model.compiled, model.graphs]).encode()).hexdigest()[:8]
        file = self.directory / f"{candidate.key}-times-{digest}.json"
        with suppress(OSError, ValueError, TypeError):
            alone, batched = json.loads(file.read_text())
            return float(alone), float(batched)
        draw, repeats = self.yardstick.draw, REPEATS if in_time else 1
        alone, batched = (seconds_each(draw, drawer, size, repeats) for size in (1, BATCH))
        if in_time:
            write_whole(file, json.dumps([alone, batched]))
        return alone, batched


def seconds_each(draw: Callable[[Drawer, int], float], drawer: Drawer, size: int, repeats: int) -> float:
    """Seconds of a whole sample, networks and sampler, in batches of `size` seeds; the median of `repeats` batches.

    draw: draws the members of so many seeds, in so many seconds
    """
    samples = size * drawer.members
    sized = replace(drawer, batch_size=samples)
    if drawer.model.compiled or drawer.model.graphs:
        draw(sized, size)  # compiles or records what was not called yet
    return statistics.median(draw(sized, size) for _ in range(repeats)) / samples


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
    plans in their order, in which the main one is the first (`comparison/candidates.py`).
    """
    lines: dict[object, list[Candidate]] = {}
    for candidate in candidates:
        lines.setdefault((candidate.run, candidate.denoiser), []).append(candidate)
    return sorted(round_robin([*lines.values()]), key=lambda candidate: not candidate.named)


def round_robin(lists: Sequence[Sequence[Item]]) -> list[Item]:
    """The first of every list, the second of every list, and so on."""
    return [item for item in chain.from_iterable(zip_longest(*lists)) if item is not None]
