"""Drawers of images: a model under a sampler, a plan, guidance and shares of classes, as one value.

Whatever measures a model measures a `Drawer`. An image is a function of the drawer and its seed; the batch size acts on
its rounding alone, and in float32 hardly on that.

`real_batches` are images spread over a set, in batches, as a model takes them: errors and likelihoods are measured on
them.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.codecs.codec import decoded
from dualrate.config import ranges
from dualrate.config.ranges import Precision, Ranged, count_or_list, many
from dualrate.config.serial import to_plain, type_name
from dualrate.data.condition_rows import Given, HeldOut
from dualrate.data.conditions import OfPicture
from dualrate.data.images import to_uint8
from dualrate.data.loader import Augment, ByteBatch, TrainingSet
from dualrate.denoisers.denoiser import Denoiser, abilities
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.context import Refresh, Reuse, for_rows
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.experiment.model import Model
from dualrate.metrics.evaluate import by_turns
from dualrate.metrics.store import Origin
from dualrate.networks.blocks import in_bfloat16
from dualrate.sampling.cost import PlanCost, check_calls, expected_costs, mean_macs
from dualrate.sampling.step import Step, settings_of
from dualrate.sampling.trajectory import State, check_reuse, sample_batches
from dualrate.system.device import own_defaults
from dualrate.system.progress import ImageProgress


@dataclass(frozen=True)
class Guidance(Ranged):
    """Classifier-free guidance. weight: 1 is none; interval: of sigma/alpha in which it acts, None: everywhere."""

    weight: ranges.GuidanceWeight = 1.0
    interval: tuple[ranges.NoiseLevel, ranges.NoiseLevel] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interval is not None and self.weight == 1:
            raise ValueError("a guidance interval needs a guidance weight other than 1, which is no guidance")

    def __str__(self) -> str:
        """Words for a table: none for no guidance."""
        where = f" in ({self.interval[0]:g}, {self.interval[1]:g}]" if self.interval else ""
        return "" if self.weight == 1 else f", guidance {self.weight:g}{where}"


UNGUIDED = Guidance()
SHOWN = 100  # samples of a picture in a notebook
COUNTED = 64  # images over which a cost is a mean, where it differs from image to image


@dataclass(frozen=True)
class Samples:
    """Images, and the time that they took.

    images: (N, C, H, W) uint8, of M members (N M, C, H, W), those of a seed one after the other.
    seconds: of networks and sampler, the first batch included.
    frames: of each, where they are clips
    """

    images: NDArray[np.uint8]
    seconds: float
    frames: int = 1

    def __repr__(self) -> str:
        count, *shape = self.images.shape
        return f"{many(count, 'sample')} of {' x '.join(map(str, shape))} (C, H, W), drawn in {self.seconds:.3g} s"

    def _repr_html_(self) -> str:
        """A picture of the first of them, in a notebook."""
        from dualrate.report.html import notebook, picture
        from dualrate.report.image_grid import image_grid, side_by_side

        columns = 1 if self.frames > 1 else None
        return notebook(self, picture(image_grid(side_by_side(self.images[:SHOWN], self.frames), columns)))


@dataclass(frozen=True, eq=False)
class Drawer(Ranged):
    """A model, and how its images are drawn.

    label:      one class for all images, its number or its name; None: all classes, by turns
    shares:     in which they take turns, one number for each class; none: equally often, class `seed mod classes`. A
                score draws by those of the real images (drawing/measure.py)
    equal_classes: a score draws every class that has real images equally often
    batch_size: images at a time
    members:    M, images for each seed; of a conditional model M samples of one condition, which share its heavy call
    precision:  of matrix products; auto: bfloat16 where it pays for batches of this size
    name:       what a table calls it; the model's own name if empty
    Raises ValueError for a plan that the model does not serve, for guidance, a label or shares without its classes, and
    as `check_calls` and `check_reuse`.
    """

    model: Model
    step: Step
    plan: StepPlan
    guidance: Guidance = UNGUIDED
    label: ranges.Classes | str | None = None
    batch_size: ranges.BatchSize = 125
    precision: Precision = "auto"
    name: str = ""
    members: ranges.Members = 1
    shares: tuple[ranges.ClassShare, ...] = ()
    equal_classes: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        model = self.model
        model.serves.check(self.plan)
        if wrong := model.serves.untrained(self.plan):
            warnings.warn(  # once: Python repeats no warning of one place and text
                f"{wrong} of the plan's {self.plan.num_heavy} heavy calls are at noise levels at which the encoder of "
                f"{model.name} was not trained: those of dr.Choice(steps, heavy) are not",
                stacklevel=1,
            )
        if Refresh.PARTIAL in self.plan.refresh and Refresh.PARTIAL not in abilities(model.denoiser).between:
            raise ValueError(f"{model.name} has no partial steps: use toca or duca, or make these steps keep or full")
        check_calls(self.step, self.plan, model.shape)
        check_reuse(model.denoiser, self.step, self.plan)
        model.serves.check_step(self.step)
        if model.untrained_alone and self.plan.num_alone:
            raise ValueError(
                f"{model.name} was not trained without a context, and {self.plan.num_alone} of the plan's "
                f"{self.plan.num_steps} steps have no context: begin with a heavy call (heavy 1 or more, places even, "
                "no switch_at), or take another plan"
            )
        if self.guidance.weight != 1 and not model.guides:
            raise ValueError(
                f"{model.name} has nothing to guide against: no classes, no null class, or it was trained with every "
                "label. Drop the guidance weight, or train with --method.label-dropout 0.1"
            )
        if self.label is not None:
            model.class_number(self.label)  # refuses
        if self.shares:
            if len(self.shares) != model.num_classes or not any(self.shares):
                raise ValueError(
                    f"shares are a number for each of the {model.num_classes} classes of {model.name}, not all 0, got "
                    f"{self.shares}"
                )
            shares = tuple(count // math.gcd(*self.shares) for count in self.shares)
            object.__setattr__(self, "shares", () if set(shares) == {1} else shares)
        if self.members > 1 and model.experiment.networks.given is None:
            raise ValueError(f"{model.name} has no condition that members would share: drop them, and draw more seeds")

    def __repr__(self) -> str:
        images = f"{self.members} images a seed, " * (self.members > 1) + f"{self.batch_size} at a time"
        label = "" if self.label is None else f", of class {self.label}"
        return f"Drawer of {self.model}\n  {self.sampler}: {images}{label}\n  {self.plan!r}"

    def _repr_html_(self) -> str:
        return self.plan.html(repr(self))

    @property
    def network(self) -> str:
        """Name in a table."""
        return self.name or self.model.name

    @property
    def sampler(self) -> str:
        """Sampler in words, with its settings and guidance."""
        return f"{self.step}{self.guidance}"

    @property
    def denoiser(self) -> Denoiser:
        """Denoiser that draws: guided, where there is guidance; called under autocast where `bfloat16` says so."""
        return self.guided(self.model.ready(bfloat16=self.bfloat16).denoiser)

    @property
    def bfloat16(self) -> bool:
        """Whether matrix products are in bfloat16."""
        return in_bfloat16(self.precision, self.model.device, (self.batch_size, *self.model.shape))

    @property
    def arithmetic(self) -> str:
        """Arithmetic of the networks, in words."""
        return self.model.arithmetic(bfloat16=self.bfloat16)

    @property
    def resolved(self) -> Drawer:
        """Drawer with the precision that "auto" means here, for other processes."""
        return replace(self, precision="bfloat16" if self.bfloat16 else "float32")

    @property
    def labels_rule(self) -> str:
        """Rule in words of which classes its images have, and which conditions."""
        conditions, shares = self.model.given, ":".join(map(str, self.shares))
        shares = shares if len(shares) < 25 else f"sha256 {_digest(self.shares)[:12]}"
        rule = f"classes by turns, {shares}" if self.shares else "seed mod classes"
        rule = rule if self.label is None else f"class {self.model.class_number(self.label)}"
        rules = [rule] if self.model.num_classes else []
        rules += [] if conditions is None else [f"conditions {conditions.digest[:12]}"]
        return ", ".join(rules) or "none"

    @property
    def seeds_at_once(self) -> int:
        """Seeds of a batch, which holds all members of each: one at least."""
        return max(1, self.batch_size // self.members)

    def for_seeds(self, count: int) -> Drawer:
        """Drawer with batches no larger than the rows of so many seeds: "auto" then means what pays for these."""
        return replace(self, batch_size=min(self.batch_size, max(1, count) * self.members))

    def labels(self, seeds: Sequence[int]) -> list[int] | None:
        """The classes of the images of these seeds; None for an unconditional model."""
        if not (classes := self.model.num_classes):
            return None
        turns = _turns(self.shares or (1,) * classes) if self.label is None else (self.model.class_number(self.label),)
        return [turns[seed % len(turns)] for seed in seeds]

    def strata(self, seeds: Sequence[int]) -> Tensor | None:
        """`labels` for a score's interval, (N,) int64; None where a class has one image, or there are no two classes.

        One image does not tell its class's spread; the interval then counts the choice of classes as chance, and is
        wider.
        """
        labels = self.labels(seeds)
        counts = Counter(labels or ())
        return None if len(counts) < 2 or min(counts.values()) < 2 else torch.tensor(labels)

    @cached_property
    @own_defaults()
    def cost(self) -> PlanCost:
        """Cost of an image, whatever its class; of early exits a mean over the first COUNTED images.

        Raises ValueError for a step that the denoiser cannot be under.
        """
        model, seeds, cost = self.model, range(COUNTED), self.expected_cost
        if not abilities(model.denoiser).varies:
            return cost
        guided, labels = self.guided(model.denoiser), self.labels(seeds)
        macs = mean_macs(guided, self.step, self.plan, model.shape, seeds, labels, device=model.device)
        return replace(cost, mean=macs)

    @property
    def expected_cost(self) -> PlanCost:
        """Cost as of `cost`, without running a network. Raises alike."""
        return replace(self._expected_costs[-1], members=self.members)

    @property
    def macs_by_step(self) -> list[int]:
        """MACs of an image up to the end of each step, as in `cost`, without running a network. Raises alike."""
        return [replace(cost, members=self.members).macs for cost in self._expected_costs]

    @cached_property
    @own_defaults()
    def _expected_costs(self) -> list[PlanCost]:
        model, label = self.model, 0 if self.model.num_classes else None
        return expected_costs(
            model.call_cost, model.denoiser.reuse, self.step, self.plan, model.shape, label=label, wrap=self.guided
        )

    def batches(
        self,
        seeds: Sequence[int],
        progress: ImageProgress | None = None,
        watch: Callable[[State], None] | None = None,
        denoiser: Denoiser | None = None,
    ) -> Iterator[NDArray[np.uint8]]:
        """The images of these seeds, (b, C, H, W), batch by batch as they are drawn, latents decoded, and with what a
        condition knows of them (`OfPicture.keep`).

        progress, watch: as of `sample`; denoiser: as of `states`. Raises what `sample` and the codec raise.
        """
        condition = self.model.experiment.condition
        rows = for_rows(torch.tensor(list(seeds), dtype=torch.int64, device="cpu"), len(seeds) * self.members)
        for batch in self.states(seeds, progress, watch, denoiser):
            row, rows = rows[: len(batch)].to(batch.device), rows[len(batch) :]
            if isinstance(condition, OfPicture) and self.model.given is not None:  # a batch has all members of a seed
                y = self.model.given(row[:: self.members]).to(batch.device)
                batch = condition.keep(batch, for_rows(y, len(batch)))
            with own_defaults():
                pixels = to_uint8(decoded(self.model.codec, batch, Draws(0, row))).cpu().numpy()
            yield pixels

    def states(
        self,
        seeds: Sequence[int],
        progress: ImageProgress | None = None,
        watch: Callable[[State], None] | None = None,
        denoiser: Denoiser | None = None,
    ) -> Iterator[Tensor]:
        """Ends of the trajectories of these seeds, as `sample` yields them, which takes and raises the rest.

        denoiser: that draws; None: the drawer's
        Latents, where the model is of latents. Raises ValueError for windows that roll, drawn by a plan whose contexts
        serve several rolls.
        """
        served = self.model.process.served(self.plan)
        if self.model.denoiser.reuse is Reuse.MARKOV and served != self.plan:
            raise ValueError(
                f"{self.model.name} learned contexts that serve one roll of its window each, and this plan draws a "
                f"window by {self.plan.num_heavy} in {self.plan.num_steps} steps: roll it out, dualrate forecast RUN"
            )
        return sample_batches(
            self.denoiser if denoiser is None else denoiser,
            self.step,
            self.plan,
            self.model.shape,
            seeds,
            self.labels(seeds),
            batch_size=self.batch_size,
            device=self.model.device,
            bfloat16=self.bfloat16,
            given=self.model.given,
            members=self.members,
            progress=progress,
            watch=watch,
        )

    def draw(
        self,
        seeds: int | Sequence[int] | Tensor | NDArray[Any],
        progress: ImageProgress | None = None,
        *,
        members: int | None = None,
    ) -> Samples:
        """The images of these seeds, all at once; or of conditions of your own, (N, C, h, w) in [-1, 1], also of NumPy.

        seeds: a number: how many images, of seeds 0, 1, ...
        members: in place of the drawer's
        Raises what `sample_batches` raises, and ValueError for conditions that the model does not take.
        """
        drawer = self if members is None else replace(self, members=members)
        if isinstance(seeds, (Tensor, np.ndarray)) and seeds.ndim > 1:
            drawer = replace(drawer, model=drawer.model.with_given(Given(torch.as_tensor(seeds))))
            seeds = len(seeds)
        rows: Sequence[int] = count_or_list("seeds", seeds)
        start = time.perf_counter()
        images = np.concatenate([*drawer.for_seeds(len(rows)).batches(rows, progress)])
        return Samples(images, time.perf_counter() - start, self.model.experiment.networks.frames)

    def origin(self, features: str, labels: str | None = None) -> Origin:
        """Origin of its images, for keeping them. features: the extractor's identity, or PIXELS.

        labels: which classes and conditions they have, in words; None: `labels_rule`, which reads the conditions
        """
        codec, identity = self.model.codec, self.model.experiment.drawing
        own_decoder = codec.latents == codec.fingerprint  # else another decoder of its latents
        return Origin(
            weights=self.model.identity,
            experiment=_digest(identity if own_decoder else [identity, codec.fingerprint]),
            sampler=json.dumps([plain_step(self.step), to_plain(self.guidance)]),
            plan=f"{self.plan.num_steps} steps, {self.plan.num_heavy} heavy, {self.plan.digest}",
            labels=self.labels_rule if labels is None else labels,
            features=features,
            precision=self.arithmetic,
        )

    def guided(self, denoiser: Denoiser) -> Denoiser:
        """This denoiser under its guidance."""
        weight, interval = self.guidance.weight, self.guidance.interval
        return (
            denoiser if weight == 1 else Guided(denoiser, self.model.process, weight, self.model.num_classes, interval)
        )


@lru_cache(maxsize=8)
def _turns(shares: tuple[int, ...]) -> tuple[int, ...]:
    """The classes of seeds 0, 1, ..., again and again: every beginning has each by its share; equal ones in order."""
    labels = np.repeat(np.arange(len(shares)), shares)
    return tuple(labels[by_turns(labels)].tolist())


def plain_step(step: Step) -> dict[str, Any]:
    """The update rule with all its settings, ready for JSON."""
    settings = {name: to_plain(value) for name, value in settings_of(step).items()}
    return json.loads(json.dumps({"type": type_name(type(step)), **settings}, default=_named))


def _named(part: Any) -> str:
    """Name of a step's part that is no plain value: numbers by their content, a function or a counter by its name."""
    if isinstance(part, (Tensor, np.ndarray, np.generic)):
        return _digest(part.tolist())
    return type_name(part if hasattr(part, "__qualname__") else type(part))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def measured_on(model: Model) -> TrainingSet:
    """The images that errors of a model are measured on: of training; of a conditional model the held-out ones, whose
    conditions `model.given` has.

    Raises ValueError for a model with conditions whose images are not known.
    """
    if model.conditions is not None:
        raise ValueError(f"errors of {model.name} are measured on held-out images: drop conditions of your own")
    conditions, experiment = model.given, model.experiment
    if isinstance(conditions, HeldOut):
        return conditions.images
    return experiment.load("train") if conditions is None else experiment.seen(experiment.load("test"), "test")


def real_batches(model: Model, images: TrainingSet, count: int, batch_size: int) -> Iterator[ByteBatch]:
    """`count` images, evenly spread over a set, in batches, with the labels that the model is conditioned on.

    A batch's `sample` are the places of its images in the set.
    Raises ValueError for more images than there are, and images or labels that are not the model's.
    """
    if not 1 <= count <= len(images):
        raise ValueError(f"the count is from 1 to {len(images)}, the images of {images.name}, got {count}")
    if images.shape != model.shape:
        raise ValueError(f"{model.name} models images of {model.shape} (C, H, W), {images.name} has {images.shape}")
    if model.num_classes and (images.labels is None or images.num_classes > model.num_classes):
        raise ValueError(f"{model.name} knows {model.num_classes} classes, {images.name} has {images.num_classes}")
    labels = images.labels if model.num_classes else None
    chosen = spread(count, len(images))
    for first in range(0, count, batch_size):
        row = chosen[first : first + batch_size]
        rows = images.rows(row, Draws(0, torch.from_numpy(row)), Augment())
        label = None if labels is None else torch.tensor(np.asarray(labels[row]))
        yield ByteBatch(rows, label, torch.from_numpy(row), images.floats, 0)


def spread(count: int, size: int) -> NDArray[np.int64]:
    """The places of `count` of `size` images, evenly spread over all, in their order."""
    return np.linspace(0, size - 1, count).astype(np.int64)
