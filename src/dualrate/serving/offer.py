"""Requests of a page, checked before anything is drawn.

A request is drawn beside a baseline from the same seeds: the same model with a heavy call at every step, or another
model, with as many steps or with as many as the request's MACs allow.
"""

from __future__ import annotations

import base64
import io
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
from dualrate.experiment.modality import service_of
from dualrate.experiment.model import Model
from dualrate.report.image_grid import png_bytes
from dualrate.sampling.catalogue import SAMPLERS
from dualrate.serving.work import Service, Work

DRAWERS = 256  # that are kept, the latest, with what they cost
PREVIEW = 2**17  # numbers of all x_hat that are shown while they are drawn, at most: making PNGs takes time too
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
    prompt, start: what a sample is made of, where the model takes one (`serving.work.Service`)
    beside: the baseline that is drawn too: of as many steps, of about the same MACs, or nothing
    previews: whether reports have pictures of x_hat while it is drawn
    """

    steps: Steps | None = None
    heavy: HeavyCalls | None = None
    sampler: str | None = None
    guidance: GuidanceWeight = 1.0
    label: Classes | str | None = None
    seed: Seed = 0
    images: ShownImages | None = None
    members: ShownImages | None = None
    prompt: str | None = None
    start: Seed | str | list | None = None
    beside: Baseline | None = None
    previews: bool = False


@dataclass(eq=False)
class Side:
    """Images of one side of the page, and how far their drawing is.

    Raises ValueError for what the model does not allow.
    note:   why it has fewer heavy calls than were asked for; previews: as of `Request`
    steps:  done, None before its turn; seconds: of networks and sampler; x_hat: of the latest step
    answer: pictures as PNGs in data URIs, arrays as .npy files in base64, and facts, once it is finished
    """

    name: str
    drawer: Drawer
    work: Work
    note: str = ""
    previews: bool = False
    steps: int | None = None
    seconds: float = 0.0
    x_hat: Tensor | None = None
    answer: dict[str, Any] | None = None
    bytes: int = 0  # of it
    macs_by_step: list[int] = field(init=False)
    described: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.macs_by_step = self.drawer.macs_by_step
        self.described = self._described()

    @property
    def plan(self) -> StepPlan:
        return self.drawer.plan

    def _described(self) -> dict[str, Any]:
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
        x, answer, shown = self.x_hat, self.answer, []  # in this order: the thread that draws goes on meanwhile
        if self.previews and x is not None and x.numel() <= PREVIEW and bool(x.isfinite().all()):
            pictures = self.work.preview(self.drawer, x)
            shown = [] if pictures is None else data_uris(to_uint8(pictures).cpu().numpy())
        return {
            **self.described,
            "done": self.steps,
            "macs_so_far": self.macs_by_step[self.steps - 1] if self.steps else 0,
            "seconds": self.seconds,
            "finished": answer is not None,
            **({"images": shown} if answer is None else answer),
        }

    def finish(self, samples: NDArray[Any]) -> None:
        """Show what was drawn."""
        answer = self.work.answer(self.drawer, samples)
        arrays = {name: npy(array) for name, array in answer.arrays.items()}
        images = data_uris(answer.pictures)
        self.bytes = sum(map(len, (*images, *arrays.values())))
        self.answer, self.x_hat = {"images": images, **arrays, **answer.facts}, None


def data_uris(images: NDArray[np.uint8]) -> list[str]:
    """Images (N, C, H, W) as PNGs in data URIs."""
    return [f"data:image/png;base64,{base64.b64encode(png_bytes(image)).decode()}" for image in images]


def npy(array: NDArray[Any]) -> str:
    """An .npy file in base64."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return base64.b64encode(file.getbuffer()).decode()


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
    Raises ValueError for a baseline of other images or classes, and as `service_of`.
    """

    def __init__(self, model: Model, baseline: Model | None = None, limits: Limits = Limits()) -> None:
        self.model, self.limits, self.service = model, limits, service_of(model) or Service(model)
        self.offered = Offered(model, self.limits.steps)
        self.baseline, self.of_baseline = model, self.offered
        if baseline is not None:
            if (baseline.image_shape, baseline.num_classes) != (model.image_shape, model.num_classes):
                raise ValueError(
                    f"{model.name} has images of {model.image_shape} and {model.num_classes} classes, {baseline.name} "
                    f"of {baseline.image_shape} and {baseline.num_classes}: choose a model of the same images"
                )
            if type(service_of(baseline) or Service(baseline)) is not type(self.service):
                raise ValueError(f"{baseline.name} makes {baseline.experiment.noun}s of something else: choose another")
            self.baseline, self.of_baseline = baseline, Offered(baseline, self.limits.steps)
        self._drawer = lru_cache(DRAWERS)(self._make_drawer)
        alone = baseline is None and self.offered.least is None
        self.baselines: tuple[Baseline, ...] = ("nothing",) if alone else ("steps", "cost", "nothing")

    def members(self, request: Request) -> int:
        """The number of samples of each seed."""
        return min(self.service.usual[1], self.limits.images) if request.members is None else request.members

    def work(self, request: Request) -> Work:
        """Return the work of a request. Raises ValueError for more than may be, and as `Service.work`."""
        members, most, takes = self.members(request), self.limits.images, self.service.takes
        for name in {"prompt", "start"} - {takes}:
            if getattr(request, name) is not None:
                raise ValueError(f"{name} is nothing that {self.model.name} takes: drop it")

        def check(images: int) -> None:
            if images * members > most:
                of_members = f" times {members} members" * (members > 1)
                raise ValueError(f"images is at most {most} on this page, got {images}{of_members}")

        check(request.images or 1)  # before its start is read
        work = self.service.work(getattr(request, takes, None), request.seed, request.images, members, most)
        check(len(work.seeds))
        return work

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
        if request.beside is not None and request.beside not in self.baselines:
            raise ValueError(f"beside is one of {', '.join(self.baselines)} for this model, got {request.beside}")
        work = self.work(request)
        choice = Choice(request.steps or self.offered.steps, request.heavy, request.sampler)
        side = self._side(self.model, choice, request, work)
        beside = request.beside or self.baselines[0]
        if beside == "nothing":
            return [side]
        steps = side.plan.num_steps
        if beside == "cost":
            branches, call = 1 if request.guidance == 1 else 2, self.baseline.call_cost
            network = branches * (call.of(1, 1) - call.decode)  # decoding is once an image
            calls = max(1, int((side.macs_by_step[-1] - call.decode) // network))
            steps = self._baseline(calls, request, work).drawer.step.most_steps(calls)
        return [side, self._baseline(steps, request, work)]

    def _baseline(self, steps: int, request: Request, work: Work) -> Side:
        """The baseline's side, of about so many steps, a heavy call at each, and the same sampler if it allows it."""
        steps = self.of_baseline.nearest(steps)
        sampler = request.sampler if request.sampler in self.of_baseline.samplers else None
        heavy = None if self.of_baseline.least is None else steps
        return self._side(self.baseline, Choice(steps, heavy, sampler), request, work)

    def _side(self, model: Model, choice: Choice, request: Request, work: Work) -> Side:
        members = self.members(request)
        rows = len(work.seeds) * members
        drawer, note = self._drawer(model is self.model, choice, request.guidance, request.label, rows, members)
        name, heavy = model.name, drawer.plan.num_heavy
        if choice.heavy == choice.steps and model.reuses_context:
            name += ", all heavy" if heavy == choice.steps else f", {heavy} of {choice.steps} heavy"
        return Side(name, drawer, work, note, request.previews)

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
        model, cost, members = self.model, self.model.call_cost, self.members(Request())
        drawer, _ = self._drawer(True, Choice(self.offered.steps), 1.0, None, members, members)
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
            "recommended": drawer.sampler,
            "takes": self.service.takes,
            "picture": self.service.picture,
            "default": {
                "steps": drawer.plan.num_steps,
                "images": max(1, min(self.service.usual[0], self.limits.images) // members),
                "members": members,
            },
            "steps": [min(self.offered.usual), max(self.offered.usual)],
            "usual_heavy": self.offered.usual,
            "least_heavy": self.offered.least,
            "members": 1 if model.experiment.networks.given is None else self.limits.images,
            "samplers": self.offered.samplers,
            "beside": self.baselines,
            "limits": asdict(self.limits),
        }
