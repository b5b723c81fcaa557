"""What a model's images are of: weights, sampler, plan, labels and precision, as the text that is kept beside them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import Tensor

from dualrate.config.serial import to_plain
from dualrate.diffusion.plan import StepPlan
from dualrate.experiments.experiment import Model
from dualrate.measuring.measure import Guidance
from dualrate.metrics.origin import Origin
from dualrate.sampling.step import Step


def origin_of(
    model: Model,
    step: Step,
    plan: StepPlan,
    guidance: Guidance,
    features: str,
    *,
    label: int | None = None,
    bfloat16: bool,
) -> Origin:
    """What a model's images are of, or features of them. label: one class for all images, as in `balanced_labels`."""
    return Origin(
        weights=model.weights_hash,
        experiment=_digest(to_plain(model.experiment)),
        sampler=json.dumps([plain_step(step), to_plain(guidance)]),
        plan=f"{plan.num_steps} steps, {plan.num_heavy} heavy, {_digest(plan.to_json())[:12]}",
        labels=_labels(model, label),
        features=features,
        precision="bfloat16" if bfloat16 else "float32",
    )


def plain_step(step: Step) -> dict[str, Any]:
    """The update rule with all its settings, ready for JSON; of one of another package, also where it is from."""
    plain = json.loads(json.dumps(to_plain(step), default=_named))
    module = type(step).__module__
    return plain if module.split(".")[0] == "dualrate" else {"module": module, "step": plain}


def _labels(model: Model, label: int | None) -> str:
    if not model.num_classes:
        return "none"
    return "seed mod classes" if label is None else f"class {label}"


def _named(part: Any) -> str:
    """Of a step's parts that are no plain values: a tensor by its content, a function or a counter by its name."""
    if isinstance(part, Tensor):
        return _digest(part.tolist())
    return getattr(part, "__qualname__", type(part).__qualname__)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
