"""Sampling a model under a plan, timed and scored: a row of a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dualrate.combinators import Guided
from dualrate.cost import PlanCost, call_cost, plan_cost
from dualrate.data.images import to_uint8
from dualrate.denoiser import Denoiser
from dualrate.metrics.evaluate import Evaluator
from dualrate.report.rows import Row
from dualrate.runs.store import Model
from dualrate.sampling import sample
from dualrate.steps import DDIM, Step
from dualrate.timing import StepPlan
from dualrate.training.precision import pays


@dataclass(frozen=True)
class Guidance:
    """weight: 1 is none; interval: of sigma/alpha in which it acts, None: everywhere."""

    weight: float = 1.0
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Samples:
    """images: (N, C, H, W) uint8; seconds: networks and sampler, without warming up; cost: of one image."""

    images: np.ndarray
    seconds: float
    cost: PlanCost
    batch_size: int


def guided(model: Model, denoiser: Denoiser, guidance: Guidance) -> Denoiser:
    """The denoiser under classifier-free guidance; itself for weight 1."""
    if guidance.weight == 1:
        return denoiser
    if not model.num_classes:
        raise ValueError(f"{model.name} has no classes, so there is nothing to guide: drop the guidance weight")
    return Guided(denoiser, model.process, guidance.weight, model.num_classes, guidance.interval)


def balanced_labels(model: Model, seeds: Sequence[int], label: int | None = None) -> list[int] | None:
    """One class for all images, or class `seed mod classes` for each; None for an unconditional model."""
    if label is not None and not 0 <= label < model.num_classes:
        raise ValueError(f"{model.name} knows the classes 0 to {model.num_classes - 1}, got label {label}")
    if not model.num_classes:
        return None
    return [seed % model.num_classes if label is None else label for seed in seeds]


def draw(
    model: Model,
    step: Step,
    plan: StepPlan,
    seeds: Sequence[int],
    *,
    label: int | None = None,
    guidance: Guidance = Guidance(),
    batch_size: int = 125,
    device: torch.device | str = "cpu",
    bfloat16: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Images of a model, with what they cost. bfloat16=None: where it pays, as in training."""
    labels = balanced_labels(model, seeds, label)
    denoiser = guided(model, model.denoiser, guidance)
    bfloat16 = pays(torch.device(device)) if bfloat16 is None else bfloat16
    cost = plan_cost(
        model.denoiser,
        step,
        plan,
        model.shape,
        cost=call_cost(model.denoiser, model.shape, labels and labels[0]),
        label=labels and labels[0],
        wrap=lambda inner: guided(model, inner, guidance),
    )
    start = time.perf_counter()
    batches = [
        to_uint8(batch).cpu().numpy()
        for batch in sample(
            denoiser,
            step,
            plan,
            model.shape,
            seeds,
            labels,
            batch_size=batch_size,
            device=device,
            bfloat16=bfloat16,
            progress=progress,
        )
    ]
    return Samples(np.concatenate(batches), time.perf_counter() - start, cost, min(batch_size, len(seeds)))


def measure(
    name: str,
    model: Model,
    step: Step,
    plan: StepPlan,
    evaluator: Evaluator,
    seeds: range,
    *,
    guidance: Guidance = Guidance(),
    batch_size: int = 125,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Row, Samples]:
    """Draw one image per seed, class `seed mod classes`, and score them."""
    drawn = draw(
        model, step, plan, seeds, guidance=guidance, batch_size=batch_size, device=device, progress=progress
    )
    score = evaluator.score(
        drawn.images,
        seeds=f"{seeds.start}-{seeds.stop - 1}",
        labels="seed mod classes" if model.num_classes else "none",
    )
    row = Row(
        network=name,
        sampler="DDIM" if isinstance(step, DDIM) else "ancestral",
        num_steps=plan.num_steps,
        num_heavy=plan.num_heavy,
        macs=drawn.cost.macs,
        seconds_per_image=drawn.seconds / len(seeds),
        batch_size=drawn.batch_size,
        score=score,
    )
    return row, drawn
