"""Measuring a model: images drawn, scored and timed, as a row of a report; and what its calls and images cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualrate.diffusion.values import Cond
from dualrate.experiments.experiment import Model
from dualrate.machine.device import pays
from dualrate.machine.progress import ImageProgress
from dualrate.measuring.drawer import Drawer
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.extractor import FeatureExtractor
from dualrate.metrics.feature_store import FeatureStore
from dualrate.report.rows import Row
from dualrate.sampling.cost import seconds_per_call


@dataclass(frozen=True, eq=False)
class Measurement:
    """A row, and the features of its images, (N, D), from which its score was made."""

    row: Row
    features: Tensor


def check(judge: Evaluator[Any], count: int, *, details: bool) -> None:
    """Raises ValueError, before anything is drawn, for what could not be scored."""
    judge.check_count(count)
    if details:
        _ = judge.reference_images


def measure(
    drawer: Drawer,
    seeds: range,
    judge: Evaluator[Any],
    *,
    keep: Path | None = None,
    shard_size: int = 250,
    details: bool = False,
    progress: ImageProgress | None = None,
) -> Measurement:
    """Draw one image per seed and score them; with details if asked for.

    keep: a directory that holds the features as images are drawn, `shard_size` at a time, and images nowhere: for
          50,000 of them or more, or a run that may be killed. The same call goes on where it was, one for more seeds
          draws only those that are new, and seconds per image are those of the calls that drew them
    Raises what drawing, `Evaluator.score` and `FeatureStore` raise, before anything is drawn where that is possible.
    """
    check(judge, len(seeds), details=details)
    cost = drawer.cost  # counted apart from the seconds; refuses what cannot be drawn
    if keep is None:
        drawn = drawer.draw(seeds, progress)
        features, seconds, largest = judge.net.features(drawn.images), drawn.seconds, len(seeds)
    else:
        store = keep_features(drawer, seeds, judge.net, keep, shard_size=shard_size, progress=progress)
        kept = store.read(seeds)
        features, seconds, largest = kept.features, kept.seconds, min(shard_size, len(seeds))
    score = judge.score_features(
        features,
        seeds=f"{seeds.start}-{seeds.stop - 1}",
        labels=drawer.labels_rule,
        strata=drawer.strata(seeds),
        details=details,
    )
    row = Row(
        network=drawer.network,
        sampler=drawer.sampler,
        num_steps=drawer.plan.num_steps,
        num_heavy=drawer.plan.num_heavy,
        macs=cost.macs,
        seconds_per_image=seconds / len(seeds),
        batch_size=min(drawer.batch_size, largest),
        precision="bfloat16" if drawer.bfloat16 else "float32",
        score=score,
    )
    return Measurement(row, features)


def keep_features(
    drawer: Drawer,
    seeds: range,
    net: FeatureExtractor,
    directory: Path,
    *,
    shard_size: int = 250,
    progress: ImageProgress | None = None,
) -> FeatureStore:
    """Draw one image per seed, unless `directory` has its features. Raises what `FeatureStore` and drawing raise."""
    store = FeatureStore.open(directory, drawer.origin(net.identity))
    store.fill(seeds, lambda ids: drawer.draw(ids).images, net, size=shard_size, progress=progress)
    return store


def seconds_of_calls(model: Model, batch_size: int, *, seconds: float = 1.0) -> tuple[float, float]:
    """Seconds of a heavy and of a light call of `batch_size` rows, measured now, for about `seconds` each."""
    device = model.device
    z = torch.zeros(batch_size, *model.shape, device=device)
    t = torch.full((batch_size,), 0.5, dtype=torch.float64, device=device)
    cond = Cond(torch.zeros(batch_size, dtype=torch.int64, device=device) if model.num_classes else None)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=pays(device)):
        context = model.denoiser.encode(z, t, cond).aged()
        how = {"seconds": seconds, "device": device}
        heavy = seconds_per_call(lambda: model.denoiser.encode(z, t, cond), **how)
        return heavy, seconds_per_call(lambda: model.denoiser.denoise(z, t, context, cond), **how)


def cost_report(drawer: Drawer) -> dict[str, object]:
    """Parameters, MACs and FLOPs, and latency of the networks' calls and of a batch's images, measured now."""
    cost, count = drawer.cost, drawer.batch_size
    seconds = drawer.draw(range(count)).seconds
    heavy, light = seconds_of_calls(drawer.model, count)
    return {
        **{f"parameters_{name}": parameters for name, parameters in drawer.model.parameters.items()},
        "macs_heavy_call": cost.calls.heavy,
        "macs_light_call": cost.calls.light,
        "flops_heavy_call": 2 * cost.calls.heavy,
        "flops_light_call": 2 * cost.calls.light,
        "seconds_heavy_call": heavy if cost.calls.heavy else 0.0,
        "seconds_light_call": light,
        "steps": drawer.plan.num_steps,
        "heavy_calls_per_image": cost.heavy_calls,
        "light_calls_per_image": cost.light_calls,
        "macs_per_image": cost.macs,
        "flops_per_image": cost.flops,
        "seconds_per_image": seconds / count,
        "batch_size": count,
        "device": str(drawer.model.device),
        "precision": "bfloat16" if drawer.bfloat16 else "float32",
    }
