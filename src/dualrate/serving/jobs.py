"""Requests at work: one at a time in a thread, the others wait in a line of limited length.

A job that nobody has asked about for two minutes is given up: its page was closed. It ends between two steps.
"""

from __future__ import annotations

import base64
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data.images import to_uint8
from dualrate.report.files import png_bytes
from dualrate.sampling.trajectory import State
from dualrate.serving.offer import Offer, Request, Side

PATIENCE = 120.0  # seconds that a job goes on without being asked about; pages in the background ask once a minute
ENDING = 60.0  # seconds to wait for the step at work, at the end
KEPT = 32  # jobs that have ended and can still be asked about
PREVIEW = 2**17  # numbers of all states that are shown while they are drawn, at most: making PNGs takes time too

Status = Literal["waiting", "running", "done", "stopped", "failed"]
ENDED: tuple[Status, ...] = ("done", "stopped", "failed")


class Full(Exception):
    """As many requests wait as may."""


class _Stopped(Exception):
    """A job is not to go on."""


@dataclass(eq=False)
class Progress:
    """How far a side is. steps: done, None before its turn; seconds: of networks and sampler; images: as
    addresses, once it is finished.
    """

    side: Side
    steps: int | None = None
    seconds: float = 0.0
    state: Tensor | None = None
    images: Sequence[str] | None = None

    @property
    def macs(self) -> int:
        """Of an image, so far."""
        return self.side.macs_by_step[self.steps - 1] if self.steps else 0

    def report(self) -> dict[str, Any]:
        state, images = self.state, self.images  # in this order: the thread that draws goes on meanwhile
        finished = images is not None
        if images is None:
            images = addresses(to_uint8(state).cpu().numpy()) if state is not None and _is_picture(state) else ()
        return {
            **self.side.described(),
            "done": self.steps,
            "macs_so_far": self.macs,
            "seconds": self.seconds,
            "finished": finished,
            "images": images,
        }


def addresses(images: NDArray[np.uint8]) -> list[str]:
    """Images as PNGs that are their own addresses."""
    return [f"data:image/png;base64,{base64.b64encode(png_bytes(image)).decode()}" for image in images]


def _is_picture(z: Tensor) -> bool:
    """Whether a state has channels that a PNG has, and is small enough to be shown on the way."""
    return z.ndim == 4 and z.shape[1] in (1, 3) and z.numel() <= PREVIEW and bool(z.isfinite().all())


@dataclass(eq=False)
class Job:
    """A request at work. seeds: of its images; asked: when somebody last wanted to know of it; error: why it failed."""

    seeds: range
    sides: list[Progress]
    name: str = field(default_factory=lambda: secrets.token_urlsafe(12))  # which nobody guesses
    status: Status = "waiting"
    error: str = ""
    asked: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def given_up(self) -> bool:
        """Whether nobody asks about it any more."""
        return time.monotonic() - self.asked > PATIENCE

    def draw(self) -> None:
        """All sides in turn. Raises what drawing raises."""
        for side in self.sides:
            start, side.steps = time.perf_counter(), 0

            def watch(state: State, side: Progress = side, start: float = start) -> None:
                if self.stop.is_set() or self.given_up:
                    raise _Stopped
                side.seconds, side.steps, side.state = time.perf_counter() - start, state.i, state.z

            (images,) = side.side.drawer.batches(self.seeds, watch=watch)
            side.seconds = time.perf_counter() - start
            side.images, side.state = addresses(images), None  # once: the other side is timed while they are asked for


class Jobs:
    """Draws what is submitted, in turn, from when it is entered to when it is left; what is left over is stopped."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self._jobs: OrderedDict[str, Job] = OrderedDict()  # in the order in which they came
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="sampling", daemon=True)

    def __enter__(self) -> Jobs:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.stop.set()
            self._changed.notify()
        self._thread.join(timeout=ENDING)

    def submit(self, request: Request) -> Job:
        """Raises ValueError for what cannot be drawn, Full where too many wait."""
        with self._changed:
            self._require_place()  # before the work of counting a cost
        sides = self.offer.sides(request)
        with self._changed:
            self._require_place()
            job = Job(range(request.seed, request.seed + self.offer.images(request)), [*map(Progress, sides)])
            self._jobs[job.name] = job
            self._changed.notify()
        return job

    def _require_place(self) -> None:
        self._forget()
        ahead, most = len(self._waiting()) + (self._running() is not None), self.offer.limits.waiting
        if self._closed or ahead > most:
            raise Full(f"the queue is full, {most} wait: try again in a few seconds")

    def job(self, name: str) -> Job | None:
        """None for one that never was, or has been forgotten."""
        with self._changed:
            job = self._jobs.get(name)
            if job is not None:
                job.asked = time.monotonic()
            return job

    def stop(self, job: Job) -> None:
        """One that waits is stopped at once, one that runs at its next step."""
        with self._changed:
            job.stop.set()
            if job.status == "waiting":
                job.status = "stopped"

    def report(self, job: Job) -> dict[str, Any]:
        """For the page."""
        with self._changed:
            waiting = self._waiting()
            ahead = waiting.index(job) + (self._running() is not None) if job in waiting else 0
        return {
            "id": job.name,
            "status": job.status,
            "ahead": ahead,
            "error": job.error,
            "seeds": list(job.seeds),
            "labels": job.sides[0].side.drawer.labels(job.seeds),
            "sides": [side.report() for side in job.sides],
        }

    def _waiting(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.status == "waiting"]

    def _running(self) -> Job | None:
        return next((job for job in self._jobs.values() if job.status == "running"), None)

    def _forget(self) -> None:
        for job in self._waiting():
            if job.given_up:
                job.status = "stopped"
        ended = [job for job in self._jobs.values() if job.status in ENDED]
        for i, job in enumerate(ended):
            if job.given_up or i < len(ended) - KEPT:
                del self._jobs[job.name]

    def _next(self) -> Job | None:
        """The next one to draw, once there is one; None when it is over."""
        with self._changed:
            while not self._closed:
                self._forget()
                for job in self._waiting():
                    job.status = "running"
                    return job
                self._changed.wait()
        return None

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.draw()
                job.status = "done"
            except _Stopped:
                job.status = "stopped"
            except Exception as error:  # of any kind: the page says it, and the next request is served
                job.error, job.status = f"{type(error).__name__}: {error}", "failed"
