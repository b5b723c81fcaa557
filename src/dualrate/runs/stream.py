"""Measuring in blocks: like `measure`, but features are kept in a directory as images are drawn, and images nowhere.

For 50,000 images or more, or a run that may be killed: the same call goes on where it was (see `metrics.blocks`). A
call for more seeds draws only those that are new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.cost import PlanCost
from dualrate.data.images import to_uint8
from dualrate.metrics.blocks import FeatureBlocks, Origin
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.extractor import FeatureExtractor
from dualrate.report.rows import Row
from dualrate.runs.measure import Guidance, balanced_labels, balanced_strata, check, guided, image_cost
from dualrate.runs.store import Model
from dualrate.sampling import sample
from dualrate.serial import to_plain
from dualrate.steps import Step
from dualrate.timing import StepPlan
from dualrate.training.device import pays

UNGUIDED = Guidance()


def measure_in_blocks(
    name: str,
    model: Model,
    step: Step,
    plan: StepPlan,
    evaluator: Evaluator,
    seeds: range,
    directory: Path,
    *,
    guidance: Guidance = UNGUIDED,
    batch_size: int = 125,
    block_size: int = 250,
    device: torch.device | str = "cpu",
    details: bool = False,
    cost: PlanCost | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Row:
    """Draw one image per seed, class `seed mod classes`, unless `directory` has its features, and score them all.

    Seconds per image are those of the calls that drew them; cost: of an image, counted unless given.
    Raises what `measure` and `FeatureBlocks` raise.
    """
    check(evaluator, len(seeds), details=details)
    blocks = draw_in_blocks(
        model,
        step,
        plan,
        evaluator.net,
        seeds,
        directory,
        guidance=guidance,
        batch_size=batch_size,
        block_size=block_size,
        device=device,
        progress=progress,
    )
    kept, origin = blocks.read(seeds), blocks.origin
    cost = cost or image_cost(model, step, plan, guidance, device=device)
    score = evaluator.score_features(
        kept.features,
        seeds=f"{seeds.start}-{seeds.stop - 1}",
        labels=origin.labels,
        strata=balanced_strata(model, seeds),
        details=details,
    )
    return Row(
        network=name,
        sampler=f"{step}{guidance}",
        num_steps=plan.num_steps,
        num_heavy=plan.num_heavy,
        macs=cost.macs,
        seconds_per_image=kept.seconds / len(seeds),
        batch_size=min(batch_size, block_size, len(seeds)),
        precision=origin.precision,
        score=score,
    )


def draw_in_blocks(
    model: Model,
    step: Step,
    plan: StepPlan,
    net: FeatureExtractor,
    seeds: range,
    directory: Path,
    *,
    guidance: Guidance = UNGUIDED,
    batch_size: int = 125,
    block_size: int = 250,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> FeatureBlocks:
    """Draw one image per seed, class `seed mod classes`, unless `directory` has its features; raises what those do."""
    denoiser, bfloat16 = guided(model, model.denoiser, guidance), pays(torch.device(device))
    blocks = FeatureBlocks.open(directory, origin_of(model, step, plan, guidance, net, bfloat16=bfloat16))

    def images(ids: Sequence[int]) -> NDArray[np.uint8]:
        labels = balanced_labels(model, ids)
        batches = sample(
            denoiser, step, plan, model.shape, ids, labels, batch_size=batch_size, device=device, bfloat16=bfloat16
        )
        return np.concatenate([to_uint8(batch).cpu().numpy() for batch in batches])

    blocks.fill(seeds, images, net, size=block_size, progress=progress)
    return blocks


def origin_of(
    model: Model, step: Step, plan: StepPlan, guidance: Guidance, net: FeatureExtractor, *, bfloat16: bool
) -> Origin:
    """What the features of a model's images are of."""
    return Origin(
        weights=model.weights_hash,
        experiment=_digest(to_plain(model.experiment)),
        sampler=json.dumps([to_plain(step), to_plain(guidance)], default=_named),
        plan=f"{plan.num_steps} steps, {plan.num_heavy} heavy, {_digest(plan.to_json())[:12]}",
        labels="seed mod classes" if model.num_classes else "none",
        features=net.identity,
        precision="bfloat16" if bfloat16 else "float32",
    )


def _named(part: Any) -> str:
    """Of a step's parts that are no plain values: a tensor by its content, a function or a counter by its name."""
    if isinstance(part, Tensor):
        return _digest(part.tolist())
    return getattr(part, "__qualname__", type(part).__qualname__)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
