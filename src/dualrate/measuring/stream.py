"""Measuring in blocks: like `measure`, but features are kept in a directory as images are drawn, and images nowhere.

For 50,000 images or more, or a run that may be killed: the same call goes on where it was (see `metrics.blocks`). A
call for more seeds draws only those that are new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.diffusion.plan import StepPlan
from dualrate.experiments.experiment import Model
from dualrate.machine.device import pays
from dualrate.measuring.measure import UNGUIDED, Guidance, balanced_strata, check, draw_batches, image_cost
from dualrate.measuring.origin import origin_of
from dualrate.metrics.blocks import FeatureBlocks
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.extractor import FeatureExtractor
from dualrate.report.rows import Row
from dualrate.sampling.cost import PlanCost
from dualrate.sampling.step import Step


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
    cost = cost or image_cost(model, step, plan, guidance, device=device)
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
    bfloat16 = pays(torch.device(device))
    origin = origin_of(model, step, plan, guidance, net.identity, bfloat16=bfloat16)
    blocks = FeatureBlocks.open(directory, origin)

    def images(ids: Sequence[int]) -> NDArray[np.uint8]:
        how = {"guidance": guidance, "batch_size": batch_size, "device": device, "bfloat16": bfloat16}
        return np.concatenate(list(draw_batches(model, step, plan, ids, **how)))

    blocks.fill(seeds, images, net, size=block_size, progress=progress)
    return blocks
