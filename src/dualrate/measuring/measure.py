"""Sampling a model under a plan, timed and scored: a row of a report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.config.ranges import GuidanceWeight, NoiseLevel, Ranged
from dualrate.data.images import to_uint8
from dualrate.denoisers.denoiser import Denoiser
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.values import Cond
from dualrate.experiments.experiment import Model
from dualrate.machine.device import pays
from dualrate.metrics.evaluate import Evaluator
from dualrate.report.rows import Row
from dualrate.sampling.cost import PlanCost, plan_cost, seconds_per_call
from dualrate.sampling.step import Step
from dualrate.sampling.trajectory import sample


@dataclass(frozen=True)
class Guidance(Ranged):
    """weight: 1 is none; interval: of sigma/alpha in which it acts, None: everywhere."""

    weight: GuidanceWeight = 1.0
    interval: tuple[NoiseLevel, NoiseLevel] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interval is not None and self.weight == 1:
            raise ValueError("a guidance interval needs a guidance weight other than 1, which is no guidance")

    def __str__(self) -> str:
        """For a table: nothing for no guidance."""
        where = f" in ({self.interval[0]:g}, {self.interval[1]:g}]" if self.interval else ""
        return "" if self.weight == 1 else f", guidance {self.weight:g}{where}"


UNGUIDED = Guidance()


@dataclass(frozen=True)
class Samples:
    """images: (N, C, H, W) uint8; seconds: networks and sampler, the first batch included; cost: of one image."""

    images: np.ndarray
    seconds: float
    cost: PlanCost
    batch_size: int
    precision: str


def guided(model: Model, denoiser: Denoiser, guidance: Guidance) -> Denoiser:
    """The denoiser under classifier-free guidance; itself for weight 1."""
    if guidance.weight == 1:
        return denoiser
    if not model.num_classes:
        raise ValueError(f"{model.name} has no classes, so there is nothing to guide: drop the guidance weight")
    return Guided(denoiser, model.process, guidance.weight, model.num_classes, guidance.interval)


def balanced_labels(model: Model, seeds: Sequence[int], label: int | None = None) -> list[int] | None:
    """One class for all images, or class `seed mod classes` for each; None for an unconditional model."""
    if label is not None and not model.num_classes:
        raise ValueError(f"{model.name} has no classes: drop the label")
    if label is not None and not 0 <= label < model.num_classes:
        raise ValueError(f"{model.name} knows the classes 0 to {model.num_classes - 1}, got label {label}")
    if not model.num_classes:
        return None
    return [seed % model.num_classes if label is None else label for seed in seeds]


def balanced_strata(model: Model, seeds: Sequence[int]) -> torch.Tensor | None:
    """`balanced_labels` for a score's interval, (N,) int64; None where a class has one image, or there are no classes.

    One image does not tell its class's spread; the interval then counts the choice of classes as chance, and is wider.
    """
    labels = balanced_labels(model, seeds)
    if labels is None or min(Counter(labels).values()) < 2:
        return None
    return torch.tensor(labels)


def image_cost(
    model: Model, step: Step, plan: StepPlan, guidance: Guidance, *, device: torch.device | str = "cpu"
) -> PlanCost:
    """What an image costs, whatever its class. Raises ValueError for a plan that the model does not serve."""
    model.serves.check(plan)
    return plan_cost(
        model.denoiser,
        step,
        plan,
        model.shape,
        label=0 if model.num_classes else None,
        device=device,
        wrap=lambda inner: guided(model, inner, guidance),
    )


def draw_batches(
    model: Model,
    step: Step,
    plan: StepPlan,
    seeds: Sequence[int],
    *,
    label: int | None = None,
    guidance: Guidance = UNGUIDED,
    batch_size: int = 125,
    device: torch.device | str = "cpu",
    bfloat16: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Images of a model, (b, C, H, W) uint8, batch by batch as they are drawn. Raises what `sample` raises."""
    labels = balanced_labels(model, seeds, label)
    denoiser = guided(model, model.denoiser, guidance)
    how = {"batch_size": batch_size, "device": device, "bfloat16": bfloat16, "progress": progress}
    for batch in sample(denoiser, step, plan, model.shape, seeds, labels, **how):
        yield to_uint8(batch).cpu().numpy()


def draw(
    model: Model,
    step: Step,
    plan: StepPlan,
    seeds: Sequence[int],
    *,
    label: int | None = None,
    guidance: Guidance = UNGUIDED,
    batch_size: int = 125,
    device: torch.device | str = "cpu",
    bfloat16: bool | None = None,
    cost: PlanCost | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Images of a model, with what they cost: counted, unless given. bfloat16=None: where it pays, as in training.

    Raises ValueError for a plan that the model does not serve, and what `sample` raises.
    """
    model.serves.check(plan)
    bfloat16 = pays(torch.device(device)) if bfloat16 is None else bfloat16
    cost = cost or image_cost(model, step, plan, guidance, device=device)
    start = time.perf_counter()
    batches = list(
        draw_batches(
            model,
            step,
            plan,
            seeds,
            label=label,
            guidance=guidance,
            batch_size=batch_size,
            device=device,
            bfloat16=bfloat16,
            progress=progress,
        )
    )
    seconds = time.perf_counter() - start
    precision = "bfloat16" if bfloat16 else "float32"
    return Samples(np.concatenate(batches), seconds, cost, min(batch_size, len(seeds)), precision)


def cost_report(
    model: Model,
    step: Step,
    plan: StepPlan,
    guidance: Guidance = UNGUIDED,
    *,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
) -> dict[str, object]:
    """Parameters, MACs and FLOPs, and latency of the networks' calls and of a whole image, measured now."""
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, got {batch_size}")
    drawn = draw(model, step, plan, range(batch_size), guidance=guidance, batch_size=batch_size, device=device)
    calls = drawn.cost.calls
    heavy, light = seconds_of_calls(model, batch_size, device=device)
    return {
        **{f"parameters_{name}": count for name, count in model.parameters.items()},
        "macs_heavy_call": calls.heavy,
        "macs_light_call": calls.light,
        "flops_heavy_call": 2 * calls.heavy,
        "flops_light_call": 2 * calls.light,
        "seconds_heavy_call": heavy if calls.heavy else 0.0,
        "seconds_light_call": light,
        "steps": plan.num_steps,
        "heavy_calls_per_image": drawn.cost.heavy_calls,
        "light_calls_per_image": drawn.cost.light_calls,
        "macs_per_image": drawn.cost.macs,
        "flops_per_image": drawn.cost.flops,
        "seconds_per_image": drawn.seconds / batch_size,
        "batch_size": batch_size,
        "device": str(device),
        "precision": drawn.precision,
    }


def seconds_of_calls(
    model: Model, batch_size: int, *, device: torch.device | str = "cpu", seconds: float = 1.0
) -> tuple[float, float]:
    """Seconds of a heavy and of a light call of `batch_size` rows, measured now, for about `seconds` each."""
    device = torch.device(device)
    z = torch.zeros(batch_size, *model.shape, device=device)
    t = torch.full((batch_size,), 0.5, dtype=torch.float64, device=device)
    cond = Cond(torch.zeros(batch_size, dtype=torch.int64, device=device) if model.num_classes else None)
    bfloat16 = pays(device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        context = model.denoiser.encode(z, t, cond).aged()
        how = {"seconds": seconds, "device": device}
        heavy = seconds_per_call(lambda: model.denoiser.encode(z, t, cond), **how)
        return heavy, seconds_per_call(lambda: model.denoiser.denoise(z, t, context, cond), **how)


def check(evaluator: Evaluator, count: int, *, details: bool) -> None:
    """Raises ValueError, before anything is drawn, for what could not be scored."""
    evaluator.check_count(count)
    if details:
        _ = evaluator.reference_images


def measure(
    name: str,
    model: Model,
    step: Step,
    plan: StepPlan,
    evaluator: Evaluator,
    seeds: range,
    *,
    guidance: Guidance = UNGUIDED,
    batch_size: int = 125,
    device: torch.device | str = "cpu",
    details: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Row, Samples]:
    """Draw one image per seed, class `seed mod classes`, and score them; with details if asked for.

    Raises what `draw` and `Evaluator.score` raise, before anything is drawn where that is possible.
    """
    check(evaluator, len(seeds), details=details)
    drawn = draw(model, step, plan, seeds, guidance=guidance, batch_size=batch_size, device=device, progress=progress)
    score = evaluator.score(
        drawn.images,
        seeds=f"{seeds.start}-{seeds.stop - 1}",
        labels="seed mod classes" if model.num_classes else "none",
        strata=balanced_strata(model, seeds),
        details=details,
    )
    row = Row(
        network=name,
        sampler=f"{step}{guidance}",
        num_steps=plan.num_steps,
        num_heavy=plan.num_heavy,
        macs=drawn.cost.macs,
        seconds_per_image=drawn.seconds / len(seeds),
        batch_size=drawn.batch_size,
        precision=drawn.precision,
        score=score,
    )
    return row, drawn
