"""What a page may ask for: read off a model, whatever its kind, and checked before anything is drawn.

A request is drawn beside a rival from the same seeds: of the same model with a heavy call at every step, or of another
one. Of as many steps, or of as many as its MACs allow.

Requests at work: one at a time in a thread, the others wait in a line of limited length.

A job that nobody has asked about for two minutes is given up: its page was closed. It ends between two steps.
"""

from __future__ import annotations

import base64
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dualrate.config.ranges import Classes, GuidanceWeight, HeavyCalls, Range, Ranged, Seed, Steps
from dualrate.data.images import to_uint8
from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer, Guidance
from dualrate.experiment.experiment import Model
from dualrate.report.image_grid import png_bytes
from dualrate.sampling.catalogue import SAMPLERS
from dualrate.sampling.trajectory import State

USUAL_IMAGES = 8  # of a request
Rival = Literal["steps", "cost", "nothing"]
Waiting = Annotated[int, Range(0, 10_000)]
MostSteps = Annotated[int, Range(1, 1000)]
ShownImages = Annotated[int, Range(1, 256)]


@dataclass(frozen=True)
class Limits(Ranged):
    """Of what may be asked for. steps: of a plan; images: of a request; waiting: requests beside the one at work."""

    steps: MostSteps = 256
    images: ShownImages = 16
    waiting: Waiting = 8


@dataclass(frozen=True)
class Request(Ranged):
    """What a page asks for; None: as recommended.

    label:  one class for all images; None: class `seed mod classes` for each
    seed:   of the first image; image i has seed + i
    beside: the rival that is drawn too: of as many steps, of about the same MACs, or nothing
    """

    steps: Steps | None = None
    heavy: HeavyCalls | None = None
    sampler: str | None = None
    guidance: GuidanceWeight = 1.0
    label: Classes | None = None
    seed: Seed = 0
    images: ShownImages | None = None
    beside: Rival | None = None


@dataclass(frozen=True, eq=False)
class Side:
    """What is drawn on one side of the page."""

    name: str
    drawer: Drawer
    note: str = ""  # why it has fewer heavy calls than were asked for

    @property
    def plan(self) -> StepPlan:
        return self.drawer.plan

    @cached_property
    def macs_by_step(self) -> list[int]:
        return self.drawer.macs_by_step

    def described(self) -> dict[str, Any]:
        """For the page: all that is known before it is drawn."""
        return {
            "name": self.name,
            "sampler": self.drawer.sampler,
            "steps": self.plan.num_steps,
            "heavy": self.plan.num_heavy if self.drawer.model.call_cost.heavy else None,  # None: of a single network
            "note": self.note,
            "t": [round(t, 5) for t in self.plan.t],
            "refresh": [refresh.value for refresh in self.plan.refresh],
            "macs": self.macs_by_step[-1],
        }


@dataclass(frozen=True)
class Offered:
    """The plans and samplers that a model serves, of a limited number of steps.

    usual:    number of steps -> the usual number of heavy calls
    steps:    where nothing is asked for
    least:    heavy calls that may be asked for; None: there is no choice
    samplers: name -> whether its steps may reuse a context, so that fewer heavy calls than steps can be asked for
    """

    usual: Mapping[int, int]
    steps: int
    least: int | None
    samplers: Mapping[str, bool]

    @staticmethod
    def of(model: Model, most: int) -> Offered:
        """most: steps. Raises ValueError for a model that serves no plan of so few steps."""
        usual = dict(_usual(model, most))
        if not usual:
            steps = model.serves.default_steps
            raise ValueError(
                f"{model.name} serves no plan of {most} steps or fewer: allow {steps} or more with --max-steps"
            )
        free = model.serves.any_plan and model.reuses_context
        least = (0 if model.serves.drops else 1) if free else None
        steps = min(usual, key=lambda served: abs(served - model.serves.default_steps))
        return Offered(usual, steps, least, dict(_samplers(model, steps)))

    def nearest(self, steps: int) -> int:
        """The number of steps that is served and nearest to this one."""
        return min(self.usual, key=lambda served: abs(served - steps))

    def require(self, request: Request) -> None:
        """Raises ValueError for steps and samplers that are not among these.

        A sampler's name may elsewhere be that of a module to import: never here.
        """
        first, last = min(self.usual), max(self.usual)
        if request.steps is not None and request.steps not in self.usual:
            allowed = f"{first}" if first == last else f"from {first} to {last}"
            raise ValueError(f"steps is {allowed} on this page, got {request.steps}")
        if request.sampler is not None and request.sampler not in self.samplers:
            raise ValueError(f"sampler is one of {', '.join(self.samplers)}, got {request.sampler[:60]!r}")


def _usual(model: Model, most: int) -> Iterator[tuple[int, int]]:
    """The numbers of steps that the model serves, with their heavy calls."""
    for steps in range(1, most + 1):
        with suppress(ValueError):
            yield steps, Choice(steps).step_plan(model).num_heavy


def _samplers(model: Model, steps: int) -> Iterator[tuple[str, bool]]:
    """Those that draw from this model, and whether with its usual number of heavy calls."""
    for name, sampler in SAMPLERS.items():
        if not sampler.fits(model.process):
            continue
        if _draws(model, Choice(steps, sampler=name)):
            yield name, True
        elif _draws(model, Choice(steps, steps, name)):
            yield name, False


def _draws(model: Model, choice: Choice) -> bool:
    try:
        return bool(choice.drawer(model, note=lambda text: None).macs_by_step)
    except (ValueError, OSError):  # OSError: a table of the model that cannot be read
        return False


class Offer:
    """A model, and what a page may ask of it.

    rival:  another model, drawn beside it; None: the model itself, with a heavy call at every step
    limits: of what may be asked for
    Raises ValueError for a rival of other images or classes.
    """

    def __init__(self, model: Model, rival: Model | None = None, limits: Limits | None = None) -> None:
        if model.experiment.codec.alphabet:
            raise ValueError(f"{model.name} is a model of texts, the page shows images: use dualrate sample")
        self.model, self.limits = model, limits or Limits()
        self.offered = Offered.of(model, self.limits.steps)
        self.rival, self.of_rival = model, self.offered
        self.rivals: tuple[Rival, ...] = ("nothing",) if self.offered.least is None else ("steps", "cost", "nothing")
        if rival is not None:
            if (rival.image_shape, rival.num_classes) != (model.image_shape, model.num_classes):
                raise ValueError(
                    f"{model.name} has images of {model.image_shape} and {model.num_classes} classes, {rival.name} of "
                    f"{rival.image_shape} and {rival.num_classes}: choose a model of the same images to draw beside it"
                )
            self.rival, self.of_rival = rival, Offered.of(rival, self.limits.steps)
            self.rivals = ("steps", "cost", "nothing")

    def images(self, request: Request) -> int:
        """How many a request asks for."""
        return min(USUAL_IMAGES, self.limits.images) if request.images is None else request.images

    def sides(self, request: Request) -> list[Side]:
        """What a request asks for: it, and its rival. Raises ValueError for what cannot be drawn."""
        self.offered.require(request)
        if self.images(request) > self.limits.images:
            raise ValueError(f"images is at most {self.limits.images} on this page, got {request.images}")
        if request.beside is not None and request.beside not in self.rivals:
            raise ValueError(f"beside is one of {', '.join(self.rivals)} for this model, got {request.beside}")
        choice = Choice(request.steps or self.offered.steps, request.heavy, request.sampler)
        own = self._side(self.model, choice, request)
        beside = request.beside or self.rivals[0]
        if beside == "nothing":
            return [own]
        steps = own.plan.num_steps
        if beside == "cost":
            branches, call = 1 if request.guidance == 1 else 2, self.rival.call_cost
            network = branches * (call.of(1, 1) - call.decode)  # decoding is once an image
            calls = max(1, int((own.macs_by_step[-1] - call.decode) // network))
            steps = self._rival(calls, request).drawer.step.most_steps(calls)
        return [own, self._rival(steps, request)]

    def _rival(self, steps: int, request: Request) -> Side:
        """Of about so many steps, a heavy call at each where that may be chosen, under the same sampler if it can."""
        steps = self.of_rival.nearest(steps)
        sampler = request.sampler if request.sampler in self.of_rival.samplers else None
        heavy = None if self.of_rival.least is None else steps
        return self._side(self.rival, Choice(steps, heavy, sampler), request)

    def _side(self, model: Model, choice: Choice, request: Request) -> Side:
        notes: list[str] = []
        how = {"guidance": Guidance(request.guidance), "label": request.label, "batch_size": self.limits.images}
        drawer = choice.drawer(model, note=notes.append, **how)
        name, made = model.name, drawer.plan.num_heavy
        if choice.heavy == choice.steps and model.reuses_context:
            name += ", all heavy" if made == choice.steps else f", {made} of {choice.steps} heavy"
        side = Side(name, drawer, "".join(notes))
        _ = side.macs_by_step  # refuses a sampler that the model cannot be under
        return side

    def described(self) -> dict[str, Any]:
        """For the page: the model, its controls and their limits."""
        model, cost = self.model, self.model.call_cost
        own = self.sides(Request())[0]
        return {
            "name": model.name,
            "iteration": model.iteration,
            "weights": model.weights_hash[:12],
            "device": model.device.type,
            "shape": model.image_shape,
            "classes": model.num_classes,
            "class_names": model.class_names,
            "parameters": model.parameters,
            "macs": {"heavy": cost.heavy, "light": cost.light},
            "rival": None if self.rival is model else self.rival.name,
            "recommended": own.drawer.sampler,
            "default": {"steps": own.plan.num_steps, "images": self.images(Request())},
            "steps": [min(self.offered.usual), max(self.offered.usual)],
            "usual_heavy": self.offered.usual,
            "least_heavy": self.offered.least,
            "samplers": self.offered.samplers,
            "beside": self.rivals,
            "limits": {field.name: getattr(self.limits, field.name) for field in fields(self.limits)},
        }


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
