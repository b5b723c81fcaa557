"""The queue that draws requests, each within a time limit.

Many requests are drawn at once (serving/engine.py), the others wait in a queue of limited length. A job that nobody has
asked about for half a minute is stopped between two steps: whoever wanted it is gone. So is one that is drawn for
longer than the limit. One that has ended is known for two minutes more.
"""

from __future__ import annotations

import secrets
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from dualrate.serving.engine import Capacity, Drawing, Engine, Full
from dualrate.serving.offer import Limits, Side

IDLE, PATIENCE = 30.0, 120.0  # seconds that a job goes on without being asked about; that one is known which has ended
KEPT, KEPT_BYTES = 128, 2**28  # jobs that have ended and can still be asked about; of their answers
BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # seconds of a request, at most

Status = Literal["waiting", "running", "done", "stopped", "late", "failed"]


class Stopped(Exception):
    """A job is not to go on."""


class Late(Exception):
    """A job was drawn for as long as it may be."""


@dataclass(eq=False)
class Job:
    """A request at work.

    seconds: that it may be drawn; client: whose it is, "" where that does not matter
    place: in the engine; begun: when it came; last_asked: when somebody last asked about it
    """

    sides: Sequence[Side]
    seconds: float
    client: str
    place: Drawing
    name: str = field(default_factory=lambda: secrets.token_urlsafe(12))  # which nobody guesses
    begun: float = field(default_factory=time.monotonic)
    last_asked: float = field(default_factory=time.monotonic)
    drawing: Future[None] = field(default_factory=Future)

    @property
    def status(self) -> Status:
        if not self.drawing.done():
            return "running" if self.drawing.running() else "waiting"
        if self.drawing.cancelled() or isinstance(self.drawing.exception(), (Stopped, CancelledError)):
            return "stopped"
        if isinstance(self.drawing.exception(), Late):
            return "late"
        return "failed" if self.drawing.exception() else "done"

    @property
    def given_up(self) -> bool:
        """Whether nobody asks about it any more."""
        return time.monotonic() - self.last_asked > (PATIENCE if self.drawing.done() else IDLE)

    @property
    def bytes(self) -> int:
        """Size of its answers."""
        return sum(side.bytes for side in self.sides)

    def draw(self) -> None:
        """All sides in turn. Raises Stopped, CancelledError, Late, and what drawing raises."""
        end = time.monotonic() + self.seconds
        for side in self.sides:
            start, side.steps = time.perf_counter(), 0

            def watch(steps: int, x_hat: Tensor | None, side: Side = side, start: float = start) -> None:
                if self.given_up:
                    raise Stopped
                if time.monotonic() > end:
                    raise Late
                side.seconds, side.steps, side.x_hat = time.perf_counter() - start, steps, x_hat

            samples = self.place.samples(side.drawer, side.work, watch)
            side.seconds = time.perf_counter() - start
            side.finish(samples)

    def end(self) -> None:
        """Stop it: at once if it waits, for its turn or for a call, else after the call at work."""
        self.place.cancel()
        self.drawing.cancel()

    @property
    def error(self) -> str:
        """Why it was not drawn, in words, where that is no wish of its client."""
        if self.status == "late":
            return f"this took longer than {self.seconds:g} s, the most here: ask for fewer steps or images"
        failed = self.drawing.exception() if self.status == "failed" else None
        return f"{type(failed).__name__}: {failed}" if failed else ""

    def report(self, ahead: int) -> dict[str, Any]:
        """The job's status for the page, with the seed of each image. ahead: jobs that are drawn before it."""
        now = {"id": self.name, "status": self.status, "ahead": ahead, "error": self.error}
        return {**now, **self._described, "sides": [side.report() for side in self.sides]}

    @cached_property
    def _described(self) -> dict[str, Any]:
        drawer, work = self.sides[0].drawer, self.sides[0].work
        seeds = [seed for seed in work.seeds for _ in range(drawer.members)]
        return {"seeds": seeds, "labels": drawer.labels(seeds), "titles": work.titles(drawer)}


class Jobs:
    """Draws what is submitted, by an engine, until it is left. Its methods are called from one thread.

    ended:    requests by how they ended; seconds: of all of these; lasting: of these by the first bucket they fit
    refused:  answers that were refusals, by their error: the server counts them
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._jobs: dict[str, Job] = {}  # in the order in which they came
        self._waiting, self._running = list[Job](), dict[Job, None]()  # in the order in which they are drawn
        self._pool = ThreadPoolExecutor(limits.at_once, thread_name_prefix="sampling")
        self.engine = Engine(Capacity(images=limits.images * (limits.at_once + limits.waiting)))
        self.ended: Counter[Status] = Counter()
        self.seconds, self.lasting = Counter[Status](), Counter[tuple[Status, int]]()
        self.refused: Counter[str] = Counter()

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, *_: object) -> None:
        for job in self._jobs.values():
            job.end()
        self._pool.shutdown()
        self.engine.__exit__()

    def require_place(self, client: str = "") -> None:
        """Raises Full where too many wait, or are this client's. Forgets the jobs that nobody asks about."""
        ended, size = 0, 0
        for job in reversed(list(self._jobs.values())):  # the latest first
            if job.status == "waiting" and job.given_up:
                job.end()
                del self._jobs[job.name]
            elif job.drawing.done():
                ended, size = ended + 1, size + job.bytes
                if job.given_up or ended > KEPT or size > KEPT_BYTES:
                    del self._jobs[job.name]
        active, limits = self.active(), self._limits
        if len(active) >= limits.at_once + limits.waiting:
            raise Full(f"the queue is full, {limits.waiting} wait: try again in a few seconds")
        if client and sum(job.client == client for job in active) >= limits.each:
            raise Full(f"{limits.each} requests of yours are drawn or wait, the most here: wait for one of them")

    def submit(self, sides: Sequence[Side], client: str = "") -> Job:
        """Raises Full as `require_place`, and where there are too many images at work."""
        self.require_place(client)
        rows = max(side.drawer.members * (1 + (side.drawer.guidance.weight != 1)) for side in sides)
        place = self.engine.enter(len(sides[0].work.seeds) * rows, client)
        job = Job(sides, self._limits.seconds, client, place)
        job.drawing.add_done_callback(lambda _: self._leave(job))
        self._jobs[job.name] = job
        with self.engine.changed:
            self._waiting.append(job)
        self._start()
        return job

    def _start(self) -> None:
        """Draw as many as may be at once: the first of the client that has the fewest at work, who has not all places.

        So the next one who comes is drawn at once, too.
        """
        places = self._limits.at_once
        with self.engine.changed:
            while self._waiting and len(self._running) < places:
                running = Counter(job.client for job in self._running)
                job = min(self._waiting, key=lambda job: running[job.client])
                if running[job.client] >= max(1, places * 3 // 4):
                    return
                self._waiting.remove(job)
                self._running[job] = None
                self._pool.submit(self._draw, job)

    def _draw(self, job: Job) -> None:
        if job.drawing.set_running_or_notify_cancel():
            try:
                job.draw()
            except BaseException as error:
                job.drawing.set_exception(error)
            else:
                job.drawing.set_result(None)
        with self.engine.changed:
            self._running.pop(job, None)
        self._start()

    def _leave(self, job: Job) -> None:
        self.engine.leave(job.place)
        with self.engine.changed:
            status, seconds = job.status, time.monotonic() - job.begun
            self.ended[status] += 1
            self.seconds[status] += seconds  # pyright: ignore[reportArgumentType]  # a sum, not a count
            self.lasting[status, bisect_left(BUCKETS, seconds)] += 1
            if job in self._waiting:  # it was cancelled
                self._waiting.remove(job)

    def find(self, name: str) -> Job | None:
        """A job, which then is not given up; None for one that never was, or is forgotten."""
        job = self._jobs.get(name)
        if job is not None:
            job.last_asked = time.monotonic()
        return job

    def ahead(self, job: Job) -> int:
        """The number of jobs that are drawn before it."""
        return 0 if job.drawing.running() else next((i for i, each in enumerate(self.active()) if each is job), 0)

    def active(self) -> list[Job]:
        """Jobs that are drawn or wait, in the order in which they are drawn."""
        with self.engine.changed:
            return [job for job in (*self._running, *self._waiting) if not job.drawing.done()]
