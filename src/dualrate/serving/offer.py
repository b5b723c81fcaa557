"""Requests of a page, checked before anything is drawn; and the queue that draws them, each within a time limit.

A request is drawn beside a baseline from the same seeds: the same model with a heavy call at every step, or another
model, with as many steps or with as many as the request's MACs allow.

Many requests are drawn at once (serving/engine.py), the others wait in a queue of limited length. A job that nobody has
asked about for two minutes is stopped between two steps: its page was closed. So is one that is drawn for longer than
the limit.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dualrate.config.ranges import Classes, GuidanceWeight, HeavyCalls, Range, Ranged, Seed, Steps
from dualrate.data.images import to_uint8
from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer, Guidance
from dualrate.experiment.modality import maker_of
from dualrate.experiment.model import Model
from dualrate.report.image_grid import Pictures, png_bytes
from dualrate.sampling.catalogue import SAMPLERS
from dualrate.serving.engine import Capacity, Drawing, Engine, Full

USUAL_IMAGES = 8  # of a request
Baseline = Literal["steps", "cost", "nothing"]
ShownImages = Annotated[int, Range(1, 256)]


@dataclass(frozen=True)
class Limits:
    """The most that may be asked for.

    steps:   of a plan; images: of a request; seconds: that one is drawn
    at_once: requests that are drawn at a time; waiting: those that wait beside them
    each:    requests of an address that is not this machine's, drawn or waiting
    """

    steps: int = 256
    images: int = 16
    at_once: int = 32
    waiting: int = 32
    each: int = 16
    seconds: float = 300.0


@dataclass(frozen=True)
class Request(Ranged):
    """Settings that a page asks for; None: as recommended.

    label:  one class for all images, its number or its name; None: class `seed mod classes` for each
    seed:   of the first image; image i has seed + i
    members: images of each seed, of a conditional model, which share its condition
    beside: the baseline that is drawn too: of as many steps, of about the same MACs, or nothing
    """

    steps: Steps | None = None
    heavy: HeavyCalls | None = None
    sampler: str | None = None
    guidance: GuidanceWeight = 1.0
    label: Classes | str | None = None
    seed: Seed = 0
    images: ShownImages | None = None
    members: ShownImages = 1
    beside: Baseline | None = None


@dataclass(eq=False)
class Side:
    """Images of one side of the page, and how far their drawing is.

    Raises ValueError for what the model does not allow.
    note:   why it has fewer heavy calls than were asked for
    steps:  done, None before its turn; seconds: of networks and sampler; x_hat: of the latest step
    images: PNGs in data URIs, once it is finished
    """

    name: str
    drawer: Drawer
    note: str = ""
    steps: int | None = None
    seconds: float = 0.0
    x_hat: Tensor | None = None
    images: list[str] | None = None
    macs_by_step: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.macs_by_step = self.drawer.macs_by_step

    @property
    def plan(self) -> StepPlan:
        return self.drawer.plan

    def described(self) -> dict[str, Any]:
        """Facts for the page that are known before it is drawn."""
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

    def report(self) -> dict[str, Any]:
        """Progress for the page: how far it is, and its images; while it is drawn they show x_hat, if this is pictures
        and few enough.
        """
        x, images, shown = self.x_hat, self.images, []  # in this order: the thread that draws goes on meanwhile
        if x is not None and x.ndim == 4 and x.shape[1] in (1, 3) and x.numel() <= PREVIEW and bool(x.isfinite().all()):
            shown = data_uris(to_uint8(x).cpu().numpy())
        return {
            **self.described(),
            "done": self.steps,
            "macs_so_far": self.macs_by_step[self.steps - 1] if self.steps else 0,
            "seconds": self.seconds,
            "finished": images is not None,
            "images": shown if images is None else images,
        }


def data_uris(images: NDArray[np.uint8]) -> list[str]:
    """Images (N, C, H, W) as PNGs in data URIs."""
    return [f"data:image/png;base64,{base64.b64encode(png_bytes(image)).decode()}" for image in images]


class Offered:
    """The plans and samplers that a model serves, of at most `most` steps.

    usual:    number of steps -> the usual number of heavy calls
    steps:    the default
    least:    heavy calls that may be asked for; None: there is no choice
    samplers: name -> whether its steps may reuse a context, so that fewer heavy calls than steps can be asked for
    Raises ValueError for a model that serves no plan of so few steps.
    """

    def __init__(self, model: Model, most: int) -> None:
        self.usual: dict[int, int] = {}
        for steps in range(1, most + 1):
            with suppress(ValueError):
                self.usual[steps] = Choice(steps).step_plan(model).num_heavy
        if not self.usual:
            raise ValueError(f"{model.name} serves no plan of {most} steps or fewer: use dualrate sample")
        self.steps = self.nearest(model.serves.steps)
        free = model.serves.any_plan and model.reuses_context
        self.least = (0 if model.serves.drops else 1) if free else None
        self.samplers: dict[str, bool] = {}
        for name, sampler in SAMPLERS.items():
            for heavy in (self.steps, None) if sampler.fits(model.process) else ():
                with suppress(ValueError, OSError):  # OSError: a table of the model that cannot be read
                    _ = Choice(self.steps, heavy, name).drawer(model, note=lambda text: None).macs_by_step
                    self.samplers[name] = heavy is None

    def nearest(self, steps: int) -> int:
        """The number of steps that is served and nearest to this one."""
        return min(self.usual, key=lambda served: abs(served - steps))


class Offer:
    """A model, and what a page may ask of it.

    baseline: another model, drawn beside it; None: the model itself, with a heavy call at every step
    Raises ValueError for a baseline of other images or classes, and for a text model.
    """

    def __init__(self, model: Model, baseline: Model | None = None, limits: Limits = Limits()) -> None:
        if maker_of(model.experiment).files(model).ending != Pictures.ending or model.experiment.networks.frames > 1:
            noun = model.experiment.noun
            raise ValueError(f"{model.name} is a {noun} model, the page shows images: use dualrate sample")
        self.model, self.limits = model, limits
        self.offered = Offered(model, self.limits.steps)
        self.baseline, self.of_baseline = model, self.offered
        if baseline is not None:
            if (baseline.image_shape, baseline.num_classes) != (model.image_shape, model.num_classes):
                raise ValueError(
                    f"{model.name} has images of {model.image_shape} and {model.num_classes} classes, {baseline.name} "
                    f"of {baseline.image_shape} and {baseline.num_classes}: choose a model of the same images"
                )
            self.baseline, self.of_baseline = baseline, Offered(baseline, self.limits.steps)
        self._drawer = lru_cache(DRAWERS)(self._make_drawer)
        alone = baseline is None and self.offered.least is None
        self.baselines: tuple[Baseline, ...] = ("nothing",) if alone else ("steps", "cost", "nothing")

    def images(self, request: Request) -> int:
        """The number of seeds that a request asks for, each of which has its members."""
        usual = max(1, min(USUAL_IMAGES, self.limits.images) // request.members)
        return usual if request.images is None else request.images

    def sides(self, request: Request) -> list[Side]:
        """Sides of the page for a request: the model's, then the baseline's unless it asks for nothing beside.

        Raises ValueError for what cannot be drawn. A sampler's name never imports a module here.
        """
        usual, samplers = self.offered.usual, self.offered.samplers
        if request.steps is not None and request.steps not in usual:
            first, last = min(usual), max(usual)
            allowed = f"{first}" if first == last else f"from {first} to {last}"
            raise ValueError(f"steps is {allowed} on this page, got {request.steps}")
        if request.sampler is not None and request.sampler not in samplers:
            raise ValueError(f"sampler is one of {', '.join(samplers)}, got {request.sampler[:60]!r}")
        if self.images(request) * request.members > self.limits.images:
            of_members = f" times {request.members} members" * (request.members > 1)
            raise ValueError(
                f"images is at most {self.limits.images} on this page, got {self.images(request)}{of_members}"
            )
        if request.beside is not None and request.beside not in self.baselines:
            raise ValueError(f"beside is one of {', '.join(self.baselines)} for this model, got {request.beside}")
        choice = Choice(request.steps or self.offered.steps, request.heavy, request.sampler)
        side = self._side(self.model, choice, request)
        beside = request.beside or self.baselines[0]
        if beside == "nothing":
            return [side]
        steps = side.plan.num_steps
        if beside == "cost":
            branches, call = 1 if request.guidance == 1 else 2, self.baseline.call_cost
            network = branches * (call.of(1, 1) - call.decode)  # decoding is once an image
            calls = max(1, int((side.macs_by_step[-1] - call.decode) // network))
            steps = self._baseline(calls, request).drawer.step.most_steps(calls)
        return [side, self._baseline(steps, request)]

    def _baseline(self, steps: int, request: Request) -> Side:
        """The baseline's side, of about so many steps, a heavy call at each, and the same sampler if it allows it."""
        steps = self.of_baseline.nearest(steps)
        sampler = request.sampler if request.sampler in self.of_baseline.samplers else None
        heavy = None if self.of_baseline.least is None else steps
        return self._side(self.baseline, Choice(steps, heavy, sampler), request)

    def _side(self, model: Model, choice: Choice, request: Request) -> Side:
        rows, members = self.images(request) * request.members, request.members
        drawer, note = self._drawer(model is self.model, choice, request.guidance, request.label, rows, members)
        name, heavy = model.name, drawer.plan.num_heavy
        if choice.heavy == choice.steps and model.reuses_context:
            name += ", all heavy" if heavy == choice.steps else f", {heavy} of {choice.steps} heavy"
        return Side(name, drawer, note)

    def _make_drawer(
        self, of_model: bool, choice: Choice, weight: float, label: int | str | None, images: int, members: int
    ) -> tuple[Drawer, str]:
        """Drawer of a side, and why it has fewer heavy calls than were asked for."""
        notes: list[str] = []
        guidance, model = Guidance(weight), self.model if of_model else self.baseline
        drawer = choice.drawer(
            model, note=notes.append, guidance=guidance, label=label, batch_size=images, members=members
        )
        return drawer, "".join(notes)

    def described(self) -> dict[str, Any]:
        """The model for the page, its controls and their limits."""
        model, cost = self.model, self.model.call_cost
        usual = self.sides(Request())[0]
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
            "baseline": None if self.baseline is model else self.baseline.name,
            "recommended": usual.drawer.sampler,
            "default": {"steps": usual.plan.num_steps, "images": self.images(Request())},
            "steps": [min(self.offered.usual), max(self.offered.usual)],
            "usual_heavy": self.offered.usual,
            "least_heavy": self.offered.least,
            "members": 1 if model.experiment.networks.given is None else self.limits.images,
            "samplers": self.offered.samplers,
            "beside": self.baselines,
            "limits": asdict(self.limits),
        }


DRAWERS = 256  # that are kept, the latest, with what they cost
PATIENCE = 120.0  # seconds that a job goes on without being asked about; pages in the background ask once a minute
KEPT = 128  # jobs that have ended and can still be asked about
PREVIEW = 2**17  # numbers of all x_hat that are shown while they are drawn, at most: making PNGs takes time too

Status = Literal["waiting", "running", "done", "stopped", "late", "failed"]


class Stopped(Exception):
    """A job is not to go on."""


class Late(Exception):
    """A job was drawn for as long as it may be."""


@dataclass(eq=False)
class Job:
    """A request at work.

    seeds: of its images; seconds: that it may be drawn; client: whose it is, "" where that does not matter
    place: in the engine; last_asked: when somebody last asked about it
    """

    seeds: range
    sides: Sequence[Side]
    seconds: float
    client: str
    place: Drawing
    name: str = field(default_factory=lambda: secrets.token_urlsafe(12))  # which nobody guesses
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
        return time.monotonic() - self.last_asked > PATIENCE

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

            images = self.place.images(side.drawer, self.seeds, watch)
            side.seconds = time.perf_counter() - start
            side.images, side.x_hat = data_uris(images), None

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
        drawer = self.sides[0].drawer
        seeds = [seed for seed in self.seeds for _ in range(drawer.members)]
        return {
            "id": self.name,
            "status": self.status,
            "ahead": ahead,
            "error": self.error,
            "seeds": seeds,
            "labels": drawer.labels(seeds),
            "sides": [side.report() for side in self.sides],
        }


class Jobs:
    """Draws what is submitted, by an engine, until it is left. Its methods are called from one thread."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._jobs: dict[str, Job] = {}  # in the order in which they came
        self._pool = ThreadPoolExecutor(limits.at_once, thread_name_prefix="sampling")
        self.engine = Engine(Capacity(images=limits.images * (limits.at_once + limits.waiting)))
        self.ended: Counter[Status] = Counter()

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, *_: object) -> None:
        for job in self._jobs.values():
            job.end()
        self._pool.shutdown()
        self.engine.__exit__()

    def require_place(self, client: str = "") -> None:
        """Raises Full where too many wait, or are this client's. Forgets the jobs that nobody asks about."""
        for job in self._jobs.values():
            if job.given_up and job.status == "waiting":
                job.end()
        ended = [job for job in self._jobs.values() if job.status not in ("waiting", "running")]
        for i, job in enumerate(ended):
            if job.given_up or i < len(ended) - KEPT:
                del self._jobs[job.name]
        active, limits = self.active(), self._limits
        if len(active) >= limits.at_once + limits.waiting:
            raise Full(f"the queue is full, {limits.waiting} wait: try again in a few seconds")
        if client and sum(job.client == client for job in active) >= limits.each:
            raise Full(f"{limits.each} requests of yours are drawn or wait, the most here: wait for one of them")

    def submit(self, seeds: range, sides: Sequence[Side], client: str = "") -> Job:
        """Raises Full as `require_place`, and where there are too many images at work."""
        self.require_place(client)
        rows = max(side.drawer.members * (1 + (side.drawer.guidance.weight != 1)) for side in sides)
        job = Job(seeds, sides, self._limits.seconds, client, self.engine.enter(len(seeds) * rows))
        job.drawing = self._pool.submit(job.draw)
        job.drawing.add_done_callback(lambda _: self._leave(job))
        self._jobs[job.name] = job
        return job

    def _leave(self, job: Job) -> None:
        self.engine.leave(job.place)
        with self.engine.changed:
            self.ended[job.status] += 1

    def find(self, name: str) -> Job | None:
        """A job, which then is not given up; None for one that never was, or is forgotten."""
        job = self._jobs.get(name)
        if job is not None:
            job.last_asked = time.monotonic()
        return job

    def ahead(self, job: Job) -> int:
        """The number of jobs that are drawn before it."""
        active = self.active()
        return active.index(job) if job in active else 0

    def active(self) -> list[Job]:
        """Jobs that are drawn or wait, in the order in which they came."""
        return [job for job in self._jobs.values() if job.status in ("waiting", "running")]
